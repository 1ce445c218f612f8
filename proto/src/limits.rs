//! Every limit of the wire, in one place: what a message, a call, a connection, an address and an identity may
//! cost. A value beyond its limit is refused by name, never cut.

use std::time::Duration;

/// Bytes of a gRPC request or response before its first DATA frame, header section included.
pub const PREFACE_BYTES: usize = 16 * 1024;
/// Bytes of one gRPC message.
pub const MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of one message of a collector to an agent: two signed documents.
pub const COLLECTOR_FRAME_BYTES: usize = 2 * JOB_BYTES;
/// Concurrent calls of an agent's connection; over QUIC each is a bidirectional stream.
pub const STREAMS: u32 = 8;
/// Concurrent calls of an operator's connection.
pub const OPERATOR_STREAMS: u32 = 64;
/// Unidirectional QUIC streams of one connection: control, QPACK encoder and decoder, and one to spare.
pub const UNI_STREAMS: u32 = 4;
/// Streams of one connection refused for what they carried outside of DATA; the last one ends the connection.
pub const REFUSED_STREAMS: u64 = 16;
/// A connection without traffic ends after this, so that a node that died without a word shows as gone; the side that
/// dialled sends keep-alives well before.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of QUIC's keep-alives: how soon an agent can notice that UDP no longer comes through.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Interval of HTTP/2's pings; a broken TCP connection mostly tells by itself.
pub const PING: Duration = Duration::from_secs(15);
/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client whose first message (TLS ClientHello) takes longer over TCP is given up.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
/// A handshake over TCP that has been under way for this long may be ended to make room for a newer one.
pub const HANDSHAKE_PATIENCE_TCP: Duration = Duration::from_secs(1);
/// The same over QUIC, where newer ones can wait for their turn.
pub const HANDSHAKE_PATIENCE_QUIC: Duration = Duration::from_secs(3);
/// How long an agent waits for a connection over QUIC: its turn may come late when a whole fleet connects at once.
pub const QUIC_PATIENCE: Duration = Duration::from_secs(20);
/// A peer that has waited longer for its handshake is sent away when its turn comes: it would not wait for the end.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(15);
/// Peers that wait for their handshakes over QUIC at the same time; half of them may be of one address.
pub const HANDSHAKES_WAITING: usize = 16_384;
/// Bytes of datagrams kept of each of them, besides the first: a ClientHello has two, and what is lost is sent again.
pub const HANDSHAKE_WAITING_BYTES: usize = 4096;
/// Of a port's handshakes at the same time, the part that one address (of IPv6 the first 64 bits) may have once half
/// of all are taken.
pub const HANDSHAKE_SHARE: usize = 8;

/// Connections of one agent at the same time; a newer one ends the oldest. A hand-over takes two.
pub const CONNECTIONS_PER_AGENT: usize = 4;
/// Connections of one operator at the same time; a newer one ends the oldest.
pub const CONNECTIONS_PER_OPERATOR: usize = 64;
/// Connections of all operators at the same time. How many agents may connect is a setting (`limits.connections`).
pub const OPERATOR_CONNECTIONS: usize = 1000;
/// Of a port's connections, the part that may be without a certificate.
pub const ANONYMOUS_SHARE: usize = 10;
/// Connections without a certificate from one address (of IPv6 the first 64 bits).
pub const ANONYMOUS_CONNECTIONS: usize = 16;
/// Concurrent calls of a connection without a certificate.
pub const ANONYMOUS_CALLS: u32 = 4;
/// How long a connection without a certificate may last.
pub const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);
/// A connection without a certificate that is older may be ended to make room for a newer one.
pub const ANONYMOUS_PATIENCE: Duration = Duration::from_secs(5);

/// The highest seq of a record. No agent counts that far, so what is beyond is no seq, and seqs can be added to.
pub const SEQ: u64 = (1 << 62) - 1;
/// Bytes of one encoded record.
pub const RECORD_BYTES: usize = 1024 * 1024;
/// Bytes of the records of one upload frame.
pub const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// Records of one upload frame.
pub const BATCH_RECORDS: usize = 4096;
/// Bytes of one message of an agent to a collector: a frame of records, and a little to say around it.
pub const AGENT_MESSAGE_BYTES: usize = BATCH_BYTES + 64 * 1024;
/// Bytes of one message of an operator: a job comes with the names of all its targets.
pub const OPERATOR_MESSAGE_BYTES: usize = 4 * MESSAGE_BYTES;
/// Bytes of one message of a caller without a certificate: a request to log in.
pub const STRANGER_MESSAGE_BYTES: usize = 64 * 1024;
/// Bytes of one piece of a run's output.
pub const OUTPUT_PIECE_BYTES: usize = 64 * 1024;

/// Series one node may report.
pub const SERIES: usize = 20_000;
/// Bytes of a series' name and labels together.
pub const SERIES_BYTES: usize = 4096;
/// Bytes of the names and labels of all series of one stream: a key frame names them all, and is one record.
pub const STREAM_KEY_BYTES: usize = RECORD_BYTES;
/// Reports of one chunk of stored metrics.
pub const CHUNK_REPORTS: usize = 4096;
/// Series of one chunk: those of a node, and those that come and go within its span.
pub const CHUNK_SERIES: usize = 2 * SERIES;
/// Bytes of the names and labels of all series of one chunk.
pub const CHUNK_KEY_BYTES: usize = 2 * STREAM_KEY_BYTES;
/// Reports times series of one chunk, so that what it claims to hold fits in memory.
pub const CHUNK_CELLS: usize = 1024 * 1024;
/// Rows of one inventory section.
pub const SECTION_ROWS: usize = 50_000;
/// Bytes of a reason, an error or an event's message in a record.
pub const REASON_BYTES: usize = 4096;
/// Bytes of one cell of inventory.
pub const CELL_BYTES: usize = 16 * 1024;

/// Bytes of a node's name (RFC 1035: a host name has at most 253).
pub const NAME_BYTES: usize = 253;
/// Bytes of a label's key and of its value, as Kubernetes limits them.
pub const LABEL_KEY_BYTES: usize = 253;
/// See [`LABEL_KEY_BYTES`].
pub const LABEL_VALUE_BYTES: usize = 63;
/// Labels of one node.
pub const LABELS: usize = 64;

/// Targets of one job.
pub const JOB_TARGETS: usize = 100_000;
/// Bytes of a job's signed payload.
pub const JOB_BYTES: usize = 1024 * 1024;
/// Arguments and environment variables of a command, each.
pub const JOB_ARGS: usize = 4096;
/// Output kept of one run unless the job says otherwise, stdout and stderr together.
pub const RUN_OUTPUT_BYTES: u64 = 64 * 1024 * 1024;
/// The most output a job may ask to be kept of one run.
pub const RUN_OUTPUT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Jobs one agent runs at the same time, and asks for in advance. Twice as many may be held, when a connection
/// broke with some under way.
pub const CONCURRENT_RUNS: u32 = 16;

/// Bytes of one frame between an agent and its helper: a dispatch, or a piece of output.
pub const HELPER_FRAME_BYTES: usize = COLLECTOR_FRAME_BYTES;
/// Connections to a helper at the same time.
pub const HELPER_CONNECTIONS: usize = 32;
/// How long a connection to a helper may take until it has asked for something.
pub const HELPER_HELLO: Duration = Duration::from_secs(10);
/// Pieces of output a helper sends before the first of them is taken.
pub const HELPER_PIECES: usize = 8;
/// Output of a run that a helper holds for its agent. A program that writes more waits, as at any full pipe.
pub const HELPER_OUTPUT_BYTES: usize = 512 * 1024;
/// A helper that nobody needs ends after this, when its socket is the service manager's.
pub const HELPER_IDLE: Duration = Duration::from_secs(30);
/// How long a helper keeps the output of a run that has ended for an agent that does not come for it.
pub const HELPER_KEEPS: Duration = Duration::from_secs(3600);
/// How long an agent asks for a run at a helper that does not answer, until it reports it `unknown`.
pub const HELPER_AWAY: Duration = Duration::from_secs(600);
/// Bytes of a local policy.
pub const LOCAL_POLICY_BYTES: usize = 256 * 1024;

/// Bytes of an encoded certificate signing request.
pub const CSR_BYTES: usize = 4096;
/// Bytes of an encoded token.
pub const TOKEN_BYTES: usize = 8192;
/// Certificates of a presented chain.
pub const CHAIN_CERTIFICATES: usize = 4;
/// Addresses in a token or code.
pub const ADDRESSES: usize = 16;
/// Bytes of one of them, `host:port`.
pub const ADDRESS_BYTES: usize = 300;
/// Signers of one policy.
pub const SIGNERS: usize = 64;
/// Bytes of a signer policy's payload.
pub const POLICY_BYTES: usize = 64 * 1024;
/// Signatures of one envelope.
pub const SIGNATURES: usize = 16;
/// Bytes of one of them, and of the name of its key.
pub const SIGNATURE_BYTES: usize = 1024;

/// Bytes of one SQL statement.
pub const SQL_BYTES: usize = 64 * 1024;

/// Points of one answer about a metric, all of its series together.
pub const METRIC_POINTS: usize = 250_000;
/// Values that are read for one answer, or for a node and metric of `metric_history`, and held in memory meanwhile.
pub const METRIC_VALUES: usize = 2_000_000;
/// Points of one message of such an answer, which stays far below [`MESSAGE_BYTES`].
pub const METRIC_POINTS_A_MESSAGE: usize = 4096;
/// Label matchers of one question about a metric.
pub const METRIC_MATCHERS: usize = LABELS;

/// Life of an agent's and a collector's certificate.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Life of an operator's certificate.
pub const OPERATOR_LIFE: Duration = Duration::from_secs(8 * 3600);
/// An expired agent may renew with its old key for this long.
pub const RENEW_EXPIRED: Duration = Duration::from_secs(30 * 24 * 3600);
/// Life of a policy's freshness statement.
pub const FRESHNESS_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Certificates are dated back by this much, for clocks that run behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);
