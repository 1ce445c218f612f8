//! What can be said to a shard's log and to the control log.
//!
//! The facts are the messages of `nexus.store.v1` themselves, since the log is their only reader; records
//! come in their domain form. Metric reports ([`Reports`]) are said to the head of metrics instead.

use std::sync::Arc;

use nexus_proto::{
    agent::v1 as wire,
    ids::{Incarnation, Lane, NodeId},
    metrics::{Decoder, Encoder, Snapshot},
    record::Record,
    store::v1,
    time::Timestamp,
};
use prost::{Message as _, bytes::Bytes};

use crate::StoreError;

pub use nexus_proto::store::v1::{
    AuditHead, CertificateIssued, CollectorStarted, DeadLetter, FreshnessSet, JobCancelled,
    JobCreated, JobEnded, LabelsSet, NodeEnrolled, NodeHeld, NodeNoted, OperatorLoggedIn,
    PolicySet, RunDispatched, RunSettled, RunsPlanned, SerialIssued, SessionClosed, SessionOpened,
    SessionsLost, SlotTable, TokenCreated, TokenRevoked, TokenUsed,
    control_fact::Kind as ControlEntry, fact::Kind as Fact,
};

/// Records of one lane of one incarnation, in rising seq order.
#[derive(Debug, Clone, PartialEq)]
pub struct Records {
    /// Whose.
    pub node: NodeId,
    /// Which life of its state folder.
    pub incarnation: Incarnation,
    /// Which lane.
    pub lane: Lane,
    /// The records.
    pub records: Vec<Record>,
}

/// Metric reports of one node, in rising seq order, each as it came and as what it says.
#[derive(Debug, Clone)]
pub struct Reports {
    /// Whose.
    pub node: NodeId,
    /// Which life of its state folder.
    pub incarnation: Incarnation,
    /// The stream they came in: no two streams of a process have the same, none is 0.
    pub stream: u64,
    /// The reports.
    pub reports: Vec<Report>,
}

/// A metric report.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its seq.
    pub seq: u64,
    /// When the agent sampled it, by its own clock.
    pub time: Timestamp,
    /// The report of the stream that this one continues; none: it is a key frame.
    pub base: Option<u64>,
    /// The `nexus.agent.v1.Record` with it.
    pub encoded: Bytes,
    /// All values.
    pub snapshot: Arc<Snapshot>,
}

impl Reports {
    /// Snapshots as a stream of their own.
    #[must_use]
    pub fn encode(
        node: NodeId,
        incarnation: Incarnation,
        stream: u64,
        snapshots: Vec<(u64, Timestamp, Snapshot)>,
    ) -> Self {
        let mut encoder = Encoder::new();
        let mut before = None;
        let mut reports = Vec::with_capacity(snapshots.len());
        for (seq, time, snapshot) in snapshots {
            let report = encoder.encode(&snapshot);
            let key_frame = report.key_frame;
            let record = wire::Record {
                seq,
                time_ms: time.as_ms(),
                body: Some(wire::record::Body::Metrics(report)),
            };
            reports.push(Report {
                seq,
                time,
                base: before.replace(seq).filter(|_| !key_frame),
                encoded: record.encode_to_vec().into(),
                snapshot: Arc::new(snapshot),
            });
        }
        Self {
            node,
            incarnation,
            stream,
            reports,
        }
    }

    pub(crate) fn to_part(&self) -> v1::MetricReports {
        let first = self.reports.first();
        v1::MetricReports {
            node: self.node.to_wire(),
            incarnation: self.incarnation.to_wire(),
            base: first.and_then(|report| report.base).unwrap_or_default(),
            records: self
                .reports
                .iter()
                .map(|report| report.encoded.clone())
                .collect(),
        }
    }

    /// Roughly how much memory they hold.
    pub(crate) fn weight(&self) -> usize {
        let of = |report: &Report| 128 + report.encoded.len() + report.snapshot.samples.len() * 24;
        64 + self.reports.iter().map(of).sum::<usize>()
    }
}

/// One entry for a shard's log.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// What an agent reported.
    Records(Records),
    /// What the collector did or saw. Its `Records` variant is refused: see [`Entry::Records`].
    Fact(Box<Fact>),
}

macro_rules! from_fact {
    ($($message:ident => $variant:ident),* $(,)?) => {
        $(impl From<v1::$message> for Entry {
            fn from(message: v1::$message) -> Self {
                Self::Fact(Box::new(Fact::$variant(message)))
            }
        })*
    };
}

from_fact! {
    NodeEnrolled => Enrolled, CertificateIssued => Certificate, SessionOpened => Opened,
    SessionClosed => Closed, SessionsLost => SessionsLost, NodeHeld => Held, LabelsSet => Labels,
    DeadLetter => DeadLetter, RunsPlanned => Planned, RunDispatched => Dispatched,
    RunSettled => Settled, NodeNoted => Noted,
}

impl From<Records> for Entry {
    fn from(records: Records) -> Self {
        Self::Records(records)
    }
}

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in force.
    Applied,
    /// Records up to this seq of their lane are committed.
    Committed(u64),
    /// It is in the log and changed nothing; why, in words.
    Refused(String),
}

impl Outcome {
    /// Why it changed nothing, if so.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused(why) => Some(why),
            Self::Applied | Self::Committed(_) => None,
        }
    }
}

/// A log whose entries are one kind of batch.
pub(crate) trait Facts: Sized + Send + 'static {
    /// The bytes of a batch.
    fn encode(batch: &[Self]) -> Vec<u8>;
    /// The batch of these bytes.
    fn decode(bytes: &[u8]) -> Result<Vec<Self>, StoreError>;
    /// Roughly how much memory it holds.
    fn weight(&self) -> usize;
}

impl Facts for Entry {
    fn encode(batch: &[Self]) -> Vec<u8> {
        let mut encoder = Encoder::new();
        let facts = batch.iter().map(|entry| {
            let kind = match entry {
                Self::Fact(fact) => (**fact).clone(),
                Self::Records(records) => Fact::Records(v1::Records {
                    node: records.node.to_wire(),
                    incarnation: records.incarnation.to_wire(),
                    lane: records.lane.to_wire().into(),
                    records: records
                        .records
                        .iter()
                        .map(|r| r.to_wire(&mut encoder))
                        .collect(),
                }),
            };
            v1::Fact { kind: Some(kind) }
        });
        v1::Batch {
            facts: facts.collect(),
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Vec<Self>, StoreError> {
        let batch = v1::Batch::decode(bytes).map_err(|e| StoreError::corrupt("a batch", e))?;
        let mut decoder = Decoder::new();
        let mut entries = Vec::with_capacity(batch.facts.len());
        for fact in batch.facts {
            match fact.kind {
                Some(Fact::Records(wire)) => decode_records(wire, &mut decoder, &mut entries)?,
                Some(fact) => entries.push(Self::Fact(Box::new(fact))),
                None => {
                    return Err(StoreError::Corrupt {
                        what: "a fact without a kind: a newer version wrote it; the log".into(),
                        source: None,
                    });
                }
            }
        }
        Ok(entries)
    }

    fn weight(&self) -> usize {
        match self {
            Self::Fact(fact) => {
                64 + v1::Fact {
                    kind: Some((**fact).clone()),
                }
                .encoded_len()
            }
            Self::Records(records) => {
                let first = records.records.first().map_or(0, names_weight);
                records.records.iter().map(record_weight).sum::<usize>() + first + 64
            }
        }
    }
}

/// A record that cannot be read becomes a dead letter in its place: it must not keep a shard from starting.
fn decode_records(
    wire: v1::Records,
    decoder: &mut Decoder,
    entries: &mut Vec<Entry>,
) -> Result<(), StoreError> {
    let bad = |e| StoreError::corrupt("an id in a batch", e);
    let mut part = Records {
        node: NodeId::from_wire(&wire.node).map_err(bad)?,
        incarnation: Incarnation::from_wire(&wire.incarnation).map_err(bad)?,
        lane: Lane::from_wire(wire.lane).map_err(bad)?,
        records: Vec::with_capacity(wire.records.len()),
    };
    for record in wire.records {
        match Record::from_wire(record.clone(), decoder) {
            Ok(record) => part.records.push(record),
            Err(error) => {
                let letter = DeadLetter {
                    node: wire.node.clone(),
                    incarnation: wire.incarnation.clone(),
                    lane: wire.lane,
                    seq: record.seq,
                    reason: crate::writer::chain(&error),
                    data: record.encode_to_vec().into(),
                    time_ms: record.time_ms,
                };
                let before = std::mem::take(&mut part.records);
                entries.push(Entry::Records(Records {
                    records: before,
                    ..part.clone()
                }));
                entries.push(letter.into());
            }
        }
    }
    entries.push(Entry::Records(part));
    Ok(())
}

/// The log names each series of a node that another node's reports come before.
fn names_weight(record: &Record) -> usize {
    use nexus_proto::record::Body;
    let Body::Metrics(snapshot) = &record.body else {
        return 0;
    };
    let samples = snapshot.samples.iter();
    samples.map(|sample| sample.key.bytes()).sum()
}

fn record_weight(record: &Record) -> usize {
    use nexus_proto::record::Body;
    64 + match &record.body {
        Body::Metrics(snapshot) => snapshot.samples.len() * 24,
        Body::Section(section) => section.rows.iter().map(|row| 32 + row.0.len() * 40).sum(),
        Body::Output(output) => output.data.len(),
        Body::Started(_) | Body::Finished(_) | Body::Gap(_) | Body::Event(_) => 128,
    }
}

impl Facts for ControlEntry {
    fn encode(batch: &[Self]) -> Vec<u8> {
        let facts = batch.iter().map(|kind| v1::ControlFact {
            kind: Some(kind.clone()),
        });
        v1::ControlBatch {
            facts: facts.collect(),
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Vec<Self>, StoreError> {
        let batch = v1::ControlBatch::decode(bytes)
            .map_err(|e| StoreError::corrupt("a control batch", e))?;
        let kinds = batch.facts.into_iter().map(|fact| {
            fact.kind.ok_or_else(|| StoreError::Corrupt {
                what: "a control fact without a kind: a newer version wrote it".into(),
                source: None,
            })
        });
        kinds.collect()
    }

    fn weight(&self) -> usize {
        64 + v1::ControlFact {
            kind: Some(self.clone()),
        }
        .encoded_len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nexus_proto::{
        metrics::{Sample, SeriesKey, SeriesType, Snapshot},
        record::Body,
        time::Timestamp,
    };

    use super::*;

    #[test]
    fn an_entry_weighs_what_the_log_writes_of_it() {
        let key = SeriesKey::new("n", &[("l", &"x".repeat(4000))]);
        let sample = Sample {
            key: Arc::new(key),
            kind: SeriesType::Gauge,
            value: 1.0,
        };
        let record = Record {
            seq: 1,
            time: Timestamp(1),
            body: Body::Metrics(Snapshot {
                interval_ms: 1,
                samples: vec![sample],
            }),
        };
        let entry = Entry::from(Records {
            node: NodeId::random(),
            incarnation: Incarnation::random(),
            lane: Lane::Metrics,
            records: vec![record],
        });
        let written = Entry::encode(std::slice::from_ref(&entry)).len();
        assert!(entry.weight() >= written, "{written}");
    }
}
