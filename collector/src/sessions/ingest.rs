//! From the bytes of an upload frame to entries for the shard: decoding at the edge, limits, dead letters.
//!
//! A record that cannot be read becomes a dead letter and counts as received, so that the stream goes on.
//! Metric reports are coded against the ones before them; after one that could not be read the rest of the
//! stream means nothing, so the stream is ended once what came before is committed, and the agent's next
//! stream begins with a key frame.

use nexus_proto::{
    agent::v1 as wire,
    ids::{Incarnation, JobId, Lane, NodeId},
    limits,
    metrics::Decoder,
    record::{Body, Record, RecordError},
    time::Timestamp,
};
use nexus_store::entry::{DeadLetter, Entry, Records};
use prost::bytes::Bytes;

/// A frame that breaks the protocol.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// Too much in one frame.
    #[error("a frame has {count} {what}, at most {max} are allowed")]
    TooMany {
        what: &'static str,
        count: usize,
        max: usize,
    },
    /// Seqs must rise.
    #[error("record {seq} follows record {before} on the lane {lane}")]
    Order { lane: Lane, before: u64, seq: u64 },
}

/// What a frame came to.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    /// For the shard's log, in order.
    pub(crate) entries: Vec<Entry>,
    /// The last seq of the frame.
    pub(crate) last_seq: u64,
    /// Records that are new.
    pub(crate) records: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Those that could not be read.
    pub(crate) dead: u64,
    /// Jobs whose runs changed.
    pub(crate) jobs: Vec<JobId>,
    /// Why no further frame of this stream can be read.
    pub(crate) broken: Option<String>,
}

/// One lane's stream.
pub(crate) struct Reader {
    node: NodeId,
    incarnation: Incarnation,
    lane: Lane,
    decoder: Decoder,
    /// The highest seq that was taken in before or in this stream.
    last_seq: u64,
    /// The last seq of this stream.
    last_in_stream: Option<u64>,
}

impl Reader {
    /// A stream of `lane` whose records up to `cursor` are committed.
    pub(crate) fn new(node: NodeId, incarnation: Incarnation, lane: Lane, cursor: u64) -> Self {
        Self {
            node,
            incarnation,
            lane,
            decoder: Decoder::new(),
            last_seq: cursor,
            last_in_stream: None,
        }
    }

    /// Reads one frame.
    pub(crate) fn read(
        &mut self,
        batch: wire::RecordBatch,
        now: Timestamp,
    ) -> Result<Intake, FrameError> {
        let bytes = batch.records.iter().map(Bytes::len).sum();
        check("records", batch.records.len(), limits::BATCH_RECORDS)?;
        check("bytes of records", bytes, limits::BATCH_BYTES)?;
        let mut intake = Intake::default();
        let mut good = Vec::new();
        for encoded in batch.records {
            let len = u64::try_from(encoded.len()).unwrap_or(u64::MAX);
            let (seq, outcome) = self.decode(encoded.clone())?;
            self.last_in_stream = Some(seq);
            if seq > self.last_seq {
                self.last_seq = seq;
                intake.records += 1;
                intake.bytes = intake.bytes.saturating_add(len);
                match outcome {
                    Ok(record) => {
                        if let Some(job) = job_of(&record.body)
                            && intake.jobs.last() != Some(&job)
                        {
                            intake.jobs.push(job);
                        }
                        good.push(record);
                        continue;
                    }
                    Err(error) => {
                        intake.dead += 1;
                        self.flush(&mut good, &mut intake);
                        let reason = nexus_runtime::errors::chain(&error).to_string();
                        if matches!(error, RecordError::Metrics(_)) {
                            intake.broken = Some(reason.clone());
                        }
                        intake
                            .entries
                            .push(self.dead_letter(seq, reason, encoded, now));
                    }
                }
            } else if let Err(error @ RecordError::Metrics(_)) = outcome {
                intake.broken = Some(error.to_string());
            }
            if intake.broken.is_some() {
                break;
            }
        }
        self.flush(&mut good, &mut intake);
        intake.last_seq = self.last_seq;
        Ok(intake)
    }

    fn decode(&mut self, encoded: Bytes) -> Result<(u64, Result<Record, RecordError>), FrameError> {
        let outcome = Record::decode(encoded.clone(), &mut self.decoder).and_then(|record| {
            if record.body.fits(self.lane) {
                Ok(record)
            } else {
                Err(RecordError::Missing("body that belongs on this lane"))
            }
        });
        let before = self.last_in_stream;
        let seq = match &outcome {
            Ok(record) => record.seq,
            // An unreadable record usually still says its seq; else it takes the next one.
            Err(_) => seq_of(&encoded)
                .filter(|seq| before.is_none_or(|before| *seq > before))
                .unwrap_or_else(|| before.unwrap_or(self.last_seq).saturating_add(1)),
        };
        match before {
            Some(before) if seq <= before => Err(FrameError::Order {
                lane: self.lane,
                before,
                seq,
            }),
            _ => Ok((seq, outcome)),
        }
    }

    fn flush(&self, good: &mut Vec<Record>, intake: &mut Intake) {
        if !good.is_empty() {
            intake.entries.push(Entry::Records(Records {
                node: self.node,
                incarnation: self.incarnation,
                lane: self.lane,
                records: std::mem::take(good),
            }));
        }
    }

    fn dead_letter(&self, seq: u64, reason: String, data: Bytes, now: Timestamp) -> Entry {
        DeadLetter {
            node: self.node.to_wire(),
            incarnation: self.incarnation.to_wire(),
            lane: self.lane.to_wire().into(),
            seq,
            reason,
            data,
            time_ms: now.as_ms(),
        }
        .into()
    }
}

fn check(what: &'static str, count: usize, max: usize) -> Result<(), FrameError> {
    if count > max {
        return Err(FrameError::TooMany { what, count, max });
    }
    Ok(())
}

fn job_of(body: &Body) -> Option<JobId> {
    match body {
        Body::Started(started) => Some(started.run.job),
        Body::Output(output) => Some(output.run.job),
        Body::Finished(finished) => Some(finished.run.job),
        Body::Metrics(_) | Body::Section(_) | Body::Gap(_) | Body::Event(_) => None,
    }
}

/// The first field of a message that cannot be read as a whole.
fn seq_of(encoded: &[u8]) -> Option<u64> {
    // Field 1, varint, as every encoder writes it first.
    let (&0x08, mut rest) = encoded.split_first()? else {
        return None;
    };
    let seq = prost::encoding::decode_varint(&mut rest).ok()?;
    (seq > 0 && seq < u64::MAX / 2).then_some(seq)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nexus_proto::{
        metrics::{Encoder, Sample, SeriesKey, SeriesType, Snapshot},
        record::Event,
    };

    use super::*;

    const NOW: Timestamp = Timestamp(1);

    fn reader(lane: Lane, cursor: u64) -> Reader {
        Reader::new(NodeId::random(), Incarnation::random(), lane, cursor)
    }

    fn event(seq: u64) -> Bytes {
        let record = Record {
            seq,
            time: Timestamp(5),
            body: Body::Event(Event {
                kind: "test".to_owned(),
                message: "x".to_owned(),
            }),
        };
        record.encode(&mut Encoder::new())
    }

    fn metrics(seq: u64, encoder: &mut Encoder) -> Bytes {
        let key = Arc::new(SeriesKey::new("node_load1", &[]));
        let sample = Sample {
            key,
            kind: SeriesType::Gauge,
            value: 0.25,
        };
        let record = Record {
            seq,
            time: Timestamp(5),
            body: Body::Metrics(Snapshot {
                interval_ms: 10_000,
                samples: vec![sample],
            }),
        };
        record.encode(encoder)
    }

    fn frame(records: Vec<Bytes>) -> wire::RecordBatch {
        wire::RecordBatch { records }
    }

    #[test]
    fn takes_new_records_once() {
        let mut reader = reader(Lane::Results, 1);
        let intake = reader
            .read(frame(vec![event(1), event(2), event(5)]), NOW)
            .unwrap();
        assert_eq!((intake.records, intake.last_seq), (2, 5));
        let [Entry::Records(records)] = intake.entries.as_slice() else {
            panic!("{:?}", intake.entries);
        };
        assert_eq!(
            records.records.iter().map(|r| r.seq).collect::<Vec<_>>(),
            [2, 5]
        );
    }

    #[test]
    fn a_poison_record_costs_only_itself() {
        let mut reader = reader(Lane::Results, 0);
        let mut poison = event(2).to_vec();
        poison.truncate(poison.len() - 1);
        let intake = reader
            .read(frame(vec![event(1), poison.into(), event(3)]), NOW)
            .unwrap();
        assert_eq!((intake.dead, intake.last_seq, intake.broken), (1, 3, None));
        assert_eq!(intake.entries.len(), 3);
        let garbage = reader
            .read(frame(vec![Bytes::from_static(&[0xff; 9]), event(6)]), NOW)
            .unwrap();
        assert_eq!((garbage.dead, garbage.last_seq), (1, 6));
    }

    #[test]
    fn a_lost_key_frame_ends_the_stream_after_what_was_good() {
        let mut encoder = Encoder::new();
        let lost = metrics(1, &mut encoder);
        let delta = metrics(2, &mut encoder);
        let mut reader = reader(Lane::Metrics, 0);
        let intake = reader.read(frame(vec![delta.clone(), delta]), NOW).unwrap();
        assert!(intake.broken.is_some() && intake.dead == 1, "{intake:?}");
        assert!(
            Reader::new(reader.node, reader.incarnation, Lane::Metrics, 0)
                .read(frame(vec![lost]), NOW)
                .unwrap()
                .broken
                .is_none()
        );
    }

    #[test]
    fn a_record_of_another_lane_is_a_dead_letter() {
        let mut reader = reader(Lane::Inventory, 0);
        let intake = reader
            .read(frame(vec![metrics(1, &mut Encoder::new())]), NOW)
            .unwrap();
        assert_eq!((intake.dead, intake.last_seq), (1, 1));
    }

    #[test]
    fn seqs_must_rise() {
        let mut reader = reader(Lane::Results, 0);
        let error = reader
            .read(frame(vec![event(2), event(2)]), NOW)
            .unwrap_err();
        assert!(matches!(
            error,
            FrameError::Order {
                before: 2,
                seq: 2,
                ..
            }
        ));
        let many = vec![Bytes::new(); limits::BATCH_RECORDS + 1];
        assert!(matches!(
            reader.read(frame(many), NOW),
            Err(FrameError::TooMany { .. })
        ));
    }
}
