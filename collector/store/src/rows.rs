//! What reads give back.

use std::{collections::BTreeMap, sync::Arc};

use nexus_proto::{
    agent::v1::{Envelope, Target},
    ids::{Incarnation, JobId, NodeId, SessionId, TokenId},
    metrics::Snapshot,
    record::OutputStream,
    time::Timestamp,
};
use prost::bytes::Bytes;

/// A node as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Its id.
    pub id: NodeId,
    /// Its host name.
    pub name: String,
    /// `connected`, `disconnected`, `quarantined` or `revoked`.
    pub state: String,
    /// Why it is held, or how its last session ended.
    pub state_reason: String,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
    /// PRETTY_NAME of its os-release.
    pub os: String,
    /// uname -r.
    pub kernel: String,
    /// uname -m.
    pub arch: String,
    /// Of its agent.
    pub agent_version: String,
    /// `quic`, `tcp`, or empty before the first session.
    pub transport: String,
    /// The key exchange of its newest session.
    pub key_exchange: String,
    /// When a session or a record last came.
    pub last_seen: Option<Timestamp>,
    /// When it was enrolled.
    pub enrolled_at: Timestamp,
    /// The shard that holds it.
    pub shard: u16,
    /// The slot it belongs to.
    pub slot: u16,
    /// The life of its state folder that is bound to its identity.
    pub incarnation: Incarnation,
    /// Its open session.
    pub session: Option<SessionId>,
    /// The highest session counter it has shown.
    pub session_counter: u64,
    /// When its newest certificate ends.
    pub certificate_expires: Option<Timestamp>,
    /// Round trip of its newest session, microseconds.
    pub rtt_us: Option<u64>,
    /// Where its newest session came from.
    pub address: String,
}

/// A section as the shard holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionRow {
    /// Which kind.
    pub kind: String,
    /// Of its rows.
    pub hash: [u8; 32],
    /// Since when it is so.
    pub since: Timestamp,
    /// Why newer rows could not be read.
    pub error: Option<String>,
}

/// One target's execution of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
    /// The job.
    pub job: JobId,
    /// The target.
    pub node: NodeId,
    /// The target's name when the job was made.
    pub name: String,
    /// The target's incarnation when the job was made.
    pub incarnation: Incarnation,
    /// Where it stands.
    pub state: RunState,
    /// The session it was last dispatched to.
    pub session: Option<SessionId>,
    /// When it was dispatched.
    pub dispatched: Option<Timestamp>,
    /// When it began, by the node's clock.
    pub started: Option<Timestamp>,
    /// When it ended, by the node's clock; by the collector's for one that never began.
    pub finished: Option<Timestamp>,
    /// What it exited with.
    pub exit_code: Option<i32>,
    /// What signal ended it.
    pub signal: Option<i32>,
    /// In words.
    pub reason: String,
    /// Produced, kept or not.
    pub stdout_bytes: u64,
    /// Produced, kept or not.
    pub stderr_bytes: u64,
    /// Of those, not kept.
    pub stdout_dropped_bytes: u64,
    /// Of those, not kept.
    pub stderr_dropped_bytes: u64,
    /// What a report said that came after the state was final; empty: none came.
    pub late_state: String,
}

/// Where a run stands. It enters one final state and stays in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RunState {
    /// Not sent yet.
    Pending,
    /// Sent to its node.
    Dispatched,
    /// The node reported that it began.
    Running,
    /// Exit code 0.
    Succeeded,
    /// Another exit code, a signal, or it could not be started.
    Failed,
    /// Ended by the agent, out of time.
    TimedOut,
    /// Ended, or never begun, on an operator's word.
    Cancelled,
    /// Never reached its node in time.
    Expired,
    /// Refused by the agent.
    Rejected,
    /// Dispatched, and never heard of again.
    Lost,
    /// Begun, with its end unknown.
    Unknown,
}

impl RunState {
    /// Every state.
    pub const ALL: [Self; 11] = [
        Self::Pending,
        Self::Dispatched,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::Cancelled,
        Self::Expired,
        Self::Rejected,
        Self::Lost,
        Self::Unknown,
    ];

    /// As people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Dispatched => "dispatched",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether it stays so.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Dispatched | Self::Running)
    }
}

/// A piece of a run's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputRow {
    /// Rises in the order of arrival within a shard; where to continue.
    pub id: i64,
    /// Whose.
    pub node: NodeId,
    /// Which stream.
    pub stream: OutputStream,
    /// Bytes of the stream before it.
    pub offset: u64,
    /// The piece.
    pub data: Bytes,
}

/// A job: the intent.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// What was signed.
    pub envelope: Envelope,
    /// In the order of the signed tree.
    pub targets: Vec<Target>,
    /// What was asked for.
    pub selector: String,
    /// The request that made it.
    pub request_id: String,
    /// Who signed it.
    pub operator: String,
    /// The command line, for the reader.
    pub summary: String,
    /// When the operator made it.
    pub created: Timestamp,
    /// No execution starts before this.
    pub not_before: Timestamp,
    /// No execution starts at or after this.
    pub expires: Timestamp,
    /// Why it was cancelled, if it was.
    pub cancelled: Option<String>,
    /// When its last run became final.
    pub ended: Option<Timestamp>,
    /// Final state → targets, once it has ended.
    pub counts: BTreeMap<String, u64>,
}

/// A join token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRow {
    /// Its id.
    pub id: TokenId,
    /// What was signed.
    pub envelope: Envelope,
    /// Labels its nodes get.
    pub labels: BTreeMap<String, String>,
    /// How many nodes may use it.
    pub uses: u32,
    /// How many have.
    pub used: u32,
    /// Who signed it.
    pub operator: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

/// The signer policy in force, with its freshness.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrustRow {
    /// Over `SignerPolicy`.
    pub policy: Option<Envelope>,
    /// Its version; 0 before there is one.
    pub version: u64,
    /// Over `PolicyFreshness`.
    pub freshness: Option<Envelope>,
    /// When the freshness statement ends.
    pub fresh_until: Option<Timestamp>,
}

/// The newest report of a node.
#[derive(Debug, Clone)]
pub struct Newest {
    /// When the agent sampled it, by its own clock.
    pub time: Timestamp,
    /// When it was committed.
    pub received: Timestamp,
    /// The samples.
    pub snapshot: Arc<Snapshot>,
}

/// One value of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// When it was sampled.
    pub time: Timestamp,
    /// Of which series.
    pub key: Arc<nexus_proto::metrics::SeriesKey>,
    /// The value.
    pub value: f64,
}

/// A view that may be named in SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewInfo {
    /// Its name.
    pub name: String,
    /// What a row is.
    pub about: String,
    /// In order.
    pub columns: Vec<ColumnInfo>,
}

/// A column of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnInfo {
    /// Its name.
    pub name: String,
    /// `TEXT`, `INTEGER`, `REAL` or `BLOB`.
    pub kind: &'static str,
    /// Meaning and unit.
    pub about: String,
}

/// A cell of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL.
    Real(f64),
    /// TEXT.
    Text(String),
    /// BLOB.
    Blob(Bytes),
}
