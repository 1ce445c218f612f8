//! Records: what an agent spools, sends, and a shard stores, keyed (node, incarnation, lane, seq).
//!
//! On the wire a metric report is coded against the ones before it in the same stream or spool
//! segment, so turning records to and from the wire takes that stream's encoder or decoder; here a
//! record holds absolute values and stands alone.

mod section;

use prost::{Message as _, bytes::Bytes};

use crate::{
    agent::v1 as wire,
    ids::{IdError, Lane, RunKey},
    limits,
    metrics::{Decoder, Encoder, MetricError, Snapshot},
    time::Timestamp,
};

pub use section::{Cell, Row, Section, section_hash};

/// One entry of a lane.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Place in its lane; rises, with gaps that gap records explain.
    pub seq: u64,
    /// When the agent made it, by its own clock.
    pub time: Timestamp,
    /// What it says.
    pub body: Body,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// The host's metrics.
    Metrics(Snapshot),
    /// One kind of inventory, whole.
    Section(Section),
    /// An execution began.
    Started(Started),
    /// A piece of an execution's output.
    Output(Output),
    /// An execution ended, or will never begin.
    Finished(Finished),
    /// Records that will never arrive.
    Gap(Gap),
    /// Something about the agent itself.
    Event(Event),
}

impl Body {
    /// Whether a record of this kind belongs on a lane. Gaps and events do on every one.
    #[must_use]
    pub fn fits(&self, lane: Lane) -> bool {
        match self {
            Self::Metrics(_) => lane == Lane::Metrics,
            Self::Section(_) => lane == Lane::Inventory,
            Self::Started(_) | Self::Output(_) | Self::Finished(_) => lane == Lane::Results,
            Self::Gap(_) | Self::Event(_) => true,
        }
    }
}

/// An execution began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Which.
    pub run: RunKey,
    /// The process that leads its group.
    pub pid: u32,
}

/// A piece of an execution's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Which execution.
    pub run: RunKey,
    /// Where it was written.
    pub stream: OutputStream,
    /// Bytes of this stream before this piece.
    pub offset: u64,
    /// At most [`limits::OUTPUT_PIECE_BYTES`].
    pub data: Bytes,
}

/// Where output was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutputStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl OutputStream {
    /// `stdout` or `stderr`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// From a wire enum.
    pub fn from_wire(number: i32) -> Result<Self, RecordError> {
        match wire::OutputStream::try_from(number) {
            Ok(wire::OutputStream::Stdout) => Ok(Self::Stdout),
            Ok(wire::OutputStream::Stderr) => Ok(Self::Stderr),
            Ok(wire::OutputStream::Unspecified) | Err(_) => Err(RecordError::Enum {
                what: "output stream",
                number,
            }),
        }
    }

    /// As a wire enum.
    #[must_use]
    pub fn to_wire(self) -> wire::OutputStream {
        match self {
            Self::Stdout => wire::OutputStream::Stdout,
            Self::Stderr => wire::OutputStream::Stderr,
        }
    }
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Which.
    pub run: RunKey,
    /// How.
    pub outcome: RunOutcome,
    /// Always there when it exited; also when it exited on being told to end.
    pub exit_code: Option<i32>,
    /// Always there when a signal ended it; also the one a timeout or a cancellation ended it with.
    pub signal: Option<i32>,
    /// In words, for every outcome but [`RunOutcome::Exited`].
    pub reason: String,
    /// Bytes written to stdout, kept or not.
    pub stdout_bytes: u64,
    /// Bytes written to stderr, kept or not.
    pub stderr_bytes: u64,
    /// Of those, bytes not kept.
    pub stdout_dropped_bytes: u64,
    /// Of those, bytes not kept.
    pub stderr_dropped_bytes: u64,
    /// When it began; when it was refused, for one that never did.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
}

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RunOutcome {
    /// By itself, with an exit code.
    Exited,
    /// By a signal that was not ours.
    Signaled,
    /// By us, out of time.
    TimedOut,
    /// By us, on an operator's word; or it never began.
    Cancelled,
    /// Admission said no; nothing ran.
    Rejected,
    /// Its start is in the ledger, its end is not.
    Unknown,
    /// No such program, no such user …
    FailedToStart,
}

impl RunOutcome {
    /// From a wire enum.
    pub fn from_wire(number: i32) -> Result<Self, RecordError> {
        Ok(match wire::RunOutcome::try_from(number) {
            Ok(wire::RunOutcome::Exited) => Self::Exited,
            Ok(wire::RunOutcome::Signaled) => Self::Signaled,
            Ok(wire::RunOutcome::TimedOut) => Self::TimedOut,
            Ok(wire::RunOutcome::Cancelled) => Self::Cancelled,
            Ok(wire::RunOutcome::Rejected) => Self::Rejected,
            Ok(wire::RunOutcome::Unknown) => Self::Unknown,
            Ok(wire::RunOutcome::FailedToStart) => Self::FailedToStart,
            Ok(wire::RunOutcome::Unspecified) | Err(_) => {
                let what = "run outcome";
                return Err(RecordError::Enum { what, number });
            }
        })
    }

    /// As a wire enum.
    #[must_use]
    pub fn to_wire(self) -> wire::RunOutcome {
        match self {
            Self::Exited => wire::RunOutcome::Exited,
            Self::Signaled => wire::RunOutcome::Signaled,
            Self::TimedOut => wire::RunOutcome::TimedOut,
            Self::Cancelled => wire::RunOutcome::Cancelled,
            Self::Rejected => wire::RunOutcome::Rejected,
            Self::Unknown => wire::RunOutcome::Unknown,
            Self::FailedToStart => wire::RunOutcome::FailedToStart,
        }
    }
}

/// Records that were assigned a seq but will never arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub first_seq: u64,
    /// The last of them.
    pub last_seq: u64,
    /// `spool_full`, `spool_age`, `unclean_start`, `corrupt_segment`.
    pub reason: String,
}

/// Something about the agent itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `agent_started`, `spool_quarantined`, `job_refused` …
    pub kind: String,
    /// In words.
    pub message: String,
}

/// A record that is not one.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not even protobuf.
    #[error("not a record")]
    Protobuf(#[from] prost::DecodeError),
    /// An id is not one.
    #[error("a bad id")]
    Id(#[from] IdError),
    /// A metric report is not one, or out of step.
    #[error("a bad metric report")]
    Metrics(#[from] MetricError),
    /// A part is missing.
    #[error("the record has no {0}")]
    Missing(&'static str),
    /// A number outside an enum.
    #[error("{what} {number} does not exist")]
    Enum {
        /// Which enum.
        what: &'static str,
        /// The number.
        number: i32,
    },
    /// A part that is too large.
    #[error("{what} has {size}, more than {limit}")]
    Limit {
        /// Which part, with its unit: `bytes of a cell`.
        what: &'static str,
        /// How many.
        size: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// More than [`limits::SEQ`].
    #[error("{0} is beyond any seq")]
    Seq(u64),
    /// Rows that are not the ones the hash was taken of.
    #[error("the rows of section `{0}` do not have the hash it claims")]
    Hash(String),
    /// A name that is no name of a kind.
    #[error("`{0}` is no name of a kind of section")]
    Kind(String),
    /// A gap that ends before it begins.
    #[error("a gap from {first_seq} to {last_seq}")]
    Backwards {
        /// Where it begins.
        first_seq: u64,
        /// Where it ends.
        last_seq: u64,
    },
}

impl Record {
    /// The message, coded as the next of a stream of records.
    #[must_use]
    pub fn to_wire(&self, metrics: &mut Encoder) -> wire::Record {
        use wire::record::Body as Wire;
        let body = match &self.body {
            Body::Metrics(snapshot) => Wire::Metrics(metrics.encode(snapshot)),
            Body::Section(section) => Wire::Section(section.to_wire()),
            Body::Started(started) => Wire::Started(wire::RunStarted {
                run: Some(started.run.to_wire()),
                pid: started.pid,
            }),
            Body::Output(output) => Wire::Output(wire::RunOutput {
                run: Some(output.run.to_wire()),
                stream: output.stream.to_wire().into(),
                offset: output.offset,
                data: output.data.clone(),
            }),
            Body::Finished(finished) => Wire::Finished(finished.to_wire()),
            Body::Gap(gap) => Wire::Gap(wire::Gap {
                first_seq: gap.first_seq,
                last_seq: gap.last_seq,
                reason: gap.reason.clone(),
            }),
            Body::Event(event) => Wire::Event(wire::NodeEvent {
                kind: event.kind.clone(),
                message: event.message.clone(),
            }),
        };
        wire::Record {
            seq: self.seq,
            time_ms: self.time.as_ms(),
            body: Some(body),
        }
    }

    /// From the next message of a stream of records.
    pub fn from_wire(record: wire::Record, metrics: &mut Decoder) -> Result<Self, RecordError> {
        use wire::record::Body as Wire;
        check_seq(record.seq)?;
        let body = match record.body.ok_or(RecordError::Missing("body"))? {
            Wire::Metrics(report) => Body::Metrics(metrics.decode(&report)?),
            Wire::Section(section) => Body::Section(Section::from_wire(section)?),
            Wire::Started(started) => Body::Started(Started {
                run: run_key(started.run.as_ref())?,
                pid: started.pid,
            }),
            Wire::Output(output) => {
                let limit = limits::OUTPUT_PIECE_BYTES;
                check_limit("bytes of a piece of output", output.data.len(), limit)?;
                Body::Output(Output {
                    run: run_key(output.run.as_ref())?,
                    stream: OutputStream::from_wire(output.stream)?,
                    offset: output.offset,
                    data: output.data,
                })
            }
            Wire::Finished(finished) => Body::Finished(Finished::from_wire(finished)?),
            Wire::Gap(gap) => {
                check_reason("bytes of a gap's reason", &gap.reason)?;
                check_seq(gap.last_seq)?;
                let (first_seq, last_seq) = (gap.first_seq, gap.last_seq);
                if first_seq > last_seq {
                    return Err(RecordError::Backwards {
                        first_seq,
                        last_seq,
                    });
                }
                Body::Gap(Gap {
                    first_seq,
                    last_seq,
                    reason: gap.reason,
                })
            }
            Wire::Event(event) => {
                check_limit(
                    "bytes of an event's kind",
                    event.kind.len(),
                    limits::NAME_BYTES,
                )?;
                check_reason("bytes of an event's message", &event.message)?;
                Body::Event(Event {
                    kind: event.kind,
                    message: event.message,
                })
            }
        };
        Ok(Self {
            seq: record.seq,
            time: Timestamp(record.time_ms),
            body,
        })
    }

    /// The encoded message: see [`Record::to_wire`].
    #[must_use]
    pub fn encode(&self, metrics: &mut Encoder) -> Bytes {
        self.to_wire(metrics).encode_to_vec().into()
    }

    /// From an encoded message: see [`Record::from_wire`].
    pub fn decode(encoded: Bytes, metrics: &mut Decoder) -> Result<Self, RecordError> {
        check_limit("bytes of a record", encoded.len(), limits::RECORD_BYTES)?;
        Self::from_wire(wire::Record::decode(encoded)?, metrics)
    }
}

impl Finished {
    /// To the wire.
    #[must_use]
    pub fn to_wire(&self) -> wire::RunFinished {
        wire::RunFinished {
            run: Some(self.run.to_wire()),
            outcome: self.outcome.to_wire().into(),
            exit_code: self.exit_code,
            signal: self.signal,
            reason: self.reason.clone(),
            stdout_bytes: self.stdout_bytes,
            stderr_bytes: self.stderr_bytes,
            stdout_dropped_bytes: self.stdout_dropped_bytes,
            stderr_dropped_bytes: self.stderr_dropped_bytes,
            started_ms: self.started.as_ms(),
            finished_ms: self.finished.as_ms(),
        }
    }

    /// From the wire.
    pub fn from_wire(finished: wire::RunFinished) -> Result<Self, RecordError> {
        check_reason("bytes of a run's reason", &finished.reason)?;
        let outcome = RunOutcome::from_wire(finished.outcome)?;
        match outcome {
            RunOutcome::Exited if finished.exit_code.is_none() => {
                return Err(RecordError::Missing("exit code, though the run exited"));
            }
            RunOutcome::Signaled if finished.signal.is_none() => {
                return Err(RecordError::Missing(
                    "signal, though a signal ended the run",
                ));
            }
            _ => {}
        }
        Ok(Self {
            run: run_key(finished.run.as_ref())?,
            outcome,
            exit_code: finished.exit_code,
            signal: finished.signal,
            reason: finished.reason,
            stdout_bytes: finished.stdout_bytes,
            stderr_bytes: finished.stderr_bytes,
            stdout_dropped_bytes: finished.stdout_dropped_bytes,
            stderr_dropped_bytes: finished.stderr_dropped_bytes,
            started: Timestamp(finished.started_ms),
            finished: Timestamp(finished.finished_ms),
        })
    }
}

fn run_key(key: Option<&wire::RunKey>) -> Result<RunKey, RecordError> {
    Ok(RunKey::from_wire(
        key.ok_or(RecordError::Missing("run key"))?,
    )?)
}

fn check_limit(what: &'static str, size: usize, limit: usize) -> Result<(), RecordError> {
    if size <= limit {
        Ok(())
    } else {
        Err(RecordError::Limit { what, size, limit })
    }
}

fn check_seq(seq: u64) -> Result<(), RecordError> {
    if seq <= limits::SEQ {
        Ok(())
    } else {
        Err(RecordError::Seq(seq))
    }
}

fn check_reason(what: &'static str, reason: &str) -> Result<(), RecordError> {
    check_limit(what, reason.len(), limits::REASON_BYTES)
}

#[cfg(test)]
mod tests;
