//! From the bytes of an upload frame to entries for the shard: decoding at the edge, limits, dead letters.
//!
//! A record that cannot be read becomes a dead letter and counts as received, so that the stream goes on.
//! Metric reports are coded against the ones before them; after one that could not be read the rest of the
//! stream means nothing, so the stream is ended once what came before is committed, and the agent's next
//! stream begins with a key frame.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use nexus_proto::{
    agent::v1 as wire,
    ids::{Incarnation, JobId, Lane, NodeId},
    limits,
    metrics::{Decoder, KeyPool, Sample, Snapshot},
    record::{Body, Record, RecordError},
    time::Timestamp,
};
use nexus_store::entry::{DeadLetter, Entry, Records, Report, Reports};
use prost::{Message as _, bytes::Bytes};

/// Bytes that records of one frame may take, decoded, before they are stored: a frame of a few kilobytes can stand
/// for gigabytes of samples, since a report names only what changed.
pub(crate) const PART_BYTES: usize = 8 * 1024 * 1024;
/// What a record takes besides what it says.
const RECORD_WEIGHT: usize = 256;

/// Bytes of memory one encoded byte can become: the smallest series, cell or field is a few bytes.
fn expansion(lane: Lane) -> usize {
    match lane {
        Lane::Metrics => 32,
        Lane::Inventory => 24,
        Lane::Results => 2,
    }
}

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

/// A frame, as far as it was not read yet.
#[derive(Debug)]
pub(crate) struct Frame(std::vec::IntoIter<Bytes>);

impl Frame {
    /// Whether all of it was read.
    pub(crate) fn is_read(&self) -> bool {
        self.0.as_slice().is_empty()
    }
}

/// Records that are committed together.
#[derive(Debug)]
pub(crate) enum Batch {
    /// For the shard's log.
    Entries(Vec<Entry>),
    /// For the head of its metrics.
    Reports(Reports),
}

/// What a part of a frame came to.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    /// To be committed one after the other: a cursor says that everything before it is.
    pub(crate) batches: Vec<Batch>,
    /// The last seq that was read.
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
    /// Of metric reports, which continue each other.
    stream: u64,
    /// The last report of this stream that was taken in, not only read.
    last_report: Option<u64>,
}

static STREAMS: AtomicU64 = AtomicU64::new(1);

impl Reader {
    /// A stream of `lane` whose records up to `cursor` are committed. Hosts of one kind have most of their series in
    /// common: `keys` keeps one copy of each.
    pub(crate) fn new(
        (node, incarnation): (NodeId, Incarnation),
        lane: Lane,
        cursor: u64,
        keys: KeyPool,
    ) -> Self {
        Self {
            node,
            incarnation,
            lane,
            decoder: Decoder::pooled(keys),
            last_seq: cursor,
            last_in_stream: None,
            stream: STREAMS.fetch_add(1, Ordering::Relaxed),
            last_report: None,
        }
    }

    /// A frame to be read; one beyond its limits is refused whole.
    pub(crate) fn open(batch: wire::RecordBatch) -> Result<Frame, FrameError> {
        let bytes = batch.records.iter().map(Bytes::len).sum();
        check("records", batch.records.len(), limits::BATCH_RECORDS)?;
        check("bytes of records", bytes, limits::BATCH_BYTES)?;
        Ok(Frame(batch.records.into_iter()))
    }

    /// Bytes of memory that the frame's next record takes at most, roughly, before it is stored; 0 after the last.
    pub(crate) fn weight_of_next(&self, frame: &Frame) -> usize {
        let Some(encoded) = frame.0.as_slice().first() else {
            return 0;
        };
        // Even a report of no bytes stands for a sample of every series.
        let samples = self.decoder.series() * size_of::<Sample>();
        encoded.len() * expansion(self.lane) + samples + RECORD_WEIGHT
    }

    /// Reads on in a frame: one record, then more while they fit into [`PART_BYTES`] and `has_room` for so many
    /// bytes more. What was read is to be stored before the rest is.
    pub(crate) fn read(
        &mut self,
        frame: &mut Frame,
        now: Timestamp,
        mut has_room: impl FnMut(usize) -> bool,
    ) -> Result<Intake, FrameError> {
        let mut intake = Intake::default();
        let mut weight = self.weight_of_next(frame);
        while let Some(encoded) = frame.0.next() {
            self.take(encoded, now, &mut intake)?;
            if intake.broken.is_some() {
                break;
            }
            let next = self.weight_of_next(frame);
            weight += next;
            if next > 0 && (weight > PART_BYTES || !has_room(next)) {
                break;
            }
        }
        intake.last_seq = self.last_seq;
        Ok(intake)
    }

    fn take(
        &mut self,
        encoded: Bytes,
        now: Timestamp,
        intake: &mut Intake,
    ) -> Result<(), FrameError> {
        let len = u64::try_from(encoded.len()).unwrap_or(u64::MAX);
        let (seq, outcome) = self.decode(encoded.clone())?;
        self.last_in_stream = Some(seq);
        if seq <= self.last_seq {
            if let Err(error @ RecordError::Metrics(_)) = outcome {
                intake.broken = Some(error.to_string());
            }
            return Ok(());
        }
        let before = std::mem::replace(&mut self.last_seq, seq);
        intake.records += 1;
        intake.bytes = intake.bytes.saturating_add(len);
        match outcome {
            Ok(mut record) => {
                if let Body::Gap(gap) = &mut record.body {
                    // A node that lost its cursor does not know what came through of what it lost.
                    gap.first_seq = gap
                        .first_seq
                        .max(before.saturating_add(1))
                        .min(gap.last_seq);
                }
                if let Some(job) = job_of(&record.body)
                    && intake.jobs.last() != Some(&job)
                {
                    intake.jobs.push(job);
                }
                match record.body {
                    Body::Metrics(snapshot) => {
                        let report = self.report(seq, record.time, snapshot, encoded);
                        intake.add_report(report, self.reports());
                    }
                    _ => intake.add_record(record, self.records()),
                }
            }
            Err(error) => {
                intake.dead += 1;
                let reason = nexus_runtime::errors::chain(&error).to_string();
                if matches!(error, RecordError::Metrics(_)) {
                    intake.broken = Some(reason.clone());
                }
                intake.add_entry(self.dead_letter(seq, reason, encoded, now));
            }
        }
        Ok(())
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

    /// A report as it is kept: as it came, unless it continues one that was committed by another stream.
    fn report(&mut self, seq: u64, time: Timestamp, snapshot: Snapshot, encoded: Bytes) -> Report {
        let before = self.last_report.replace(seq);
        let (base, encoded) = if self.decoder.at_key_frame() {
            (None, encoded)
        } else if before.is_some() {
            (before, encoded)
        } else {
            let report = self.decoder.key_frame(snapshot.interval_ms);
            let record = wire::Record {
                seq,
                time_ms: time.as_ms(),
                body: Some(wire::record::Body::Metrics(report)),
            };
            (None, record.encode_to_vec().into())
        };
        Report {
            seq,
            time,
            base,
            encoded,
            snapshot: Arc::new(snapshot),
        }
    }

    fn reports(&self) -> Reports {
        Reports {
            node: self.node,
            incarnation: self.incarnation,
            stream: self.stream,
            reports: Vec::new(),
        }
    }

    fn records(&self) -> Records {
        Records {
            node: self.node,
            incarnation: self.incarnation,
            lane: self.lane,
            records: Vec::new(),
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

impl Intake {
    fn add_report(&mut self, report: Report, mut of: Reports) {
        if let Some(Batch::Reports(last)) = self.batches.last_mut() {
            last.reports.push(report);
        } else {
            of.reports.push(report);
            self.batches.push(Batch::Reports(of));
        }
    }

    fn add_record(&mut self, record: Record, mut of: Records) {
        if let Some(Batch::Entries(entries)) = self.batches.last_mut()
            && let Some(Entry::Records(last)) = entries.last_mut()
        {
            last.records.push(record);
        } else {
            of.records.push(record);
            self.add_entry(Entry::Records(of));
        }
    }

    fn add_entry(&mut self, entry: Entry) {
        if let Some(Batch::Entries(entries)) = self.batches.last_mut() {
            entries.push(entry);
        } else {
            self.batches.push(Batch::Entries(vec![entry]));
        }
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
    (1..=limits::SEQ).contains(&seq).then_some(seq)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nexus_proto::{
        metrics::{Encoder, SeriesKey, SeriesType, Snapshot},
        record::Event,
    };

    use super::*;

    const NOW: Timestamp = Timestamp(1);

    fn reader(lane: Lane, cursor: u64) -> Reader {
        let of = (NodeId::random(), Incarnation::random());
        Reader::new(of, lane, cursor, KeyPool::new())
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

    /// All of a frame, with room enough.
    fn read(reader: &mut Reader, records: Vec<Bytes>) -> Result<Intake, FrameError> {
        let mut frame = Reader::open(wire::RecordBatch { records })?;
        let intake = reader.read(&mut frame, NOW, |_| true)?;
        assert!(frame.is_read() || intake.broken.is_some());
        Ok(intake)
    }

    #[test]
    fn takes_new_records_once() {
        let mut reader = reader(Lane::Results, 1);
        let intake = read(&mut reader, vec![event(1), event(2), event(5)]).unwrap();
        assert_eq!((intake.records, intake.last_seq), (2, 5));
        let [Batch::Entries(entries)] = intake.batches.as_slice() else {
            panic!("{:?}", intake.batches);
        };
        let [Entry::Records(records)] = entries.as_slice() else {
            panic!("{entries:?}");
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
        let intake = read(&mut reader, vec![event(1), poison.into(), event(3)]).unwrap();
        assert_eq!((intake.dead, intake.last_seq, intake.broken), (1, 3, None));
        assert!(
            matches!(intake.batches.as_slice(), [Batch::Entries(entries)] if entries.len() == 3)
        );
        let garbage = read(&mut reader, vec![Bytes::from_static(&[0xff; 9]), event(6)]).unwrap();
        assert_eq!((garbage.dead, garbage.last_seq), (1, 6));
    }

    #[test]
    fn a_lost_key_frame_ends_the_stream_after_what_was_good() {
        let mut encoder = Encoder::new();
        let lost = metrics(1, &mut encoder);
        let delta = metrics(2, &mut encoder);
        let mut reader = reader(Lane::Metrics, 0);
        let intake = read(&mut reader, vec![delta.clone(), delta]).unwrap();
        assert!(intake.broken.is_some() && intake.dead == 1, "{intake:?}");
        assert!(
            read(
                &mut Reader::new(
                    (reader.node, reader.incarnation),
                    Lane::Metrics,
                    0,
                    KeyPool::new()
                ),
                vec![lost]
            )
            .unwrap()
            .broken
            .is_none()
        );
    }

    #[test]
    fn a_record_of_another_lane_is_a_dead_letter() {
        let mut reader = reader(Lane::Inventory, 0);
        let intake = read(&mut reader, vec![metrics(1, &mut Encoder::new())]).unwrap();
        assert_eq!((intake.dead, intake.last_seq), (1, 1));
    }

    #[test]
    fn seqs_must_rise() {
        let mut reader = reader(Lane::Results, 0);
        let error = read(&mut reader, vec![event(2), event(2)]).unwrap_err();
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
            read(&mut reader, many),
            Err(FrameError::TooMany { .. })
        ));
    }

    /// A key frame of so many series, then reports that change nothing, two bytes each and the seq.
    fn bomb(series: usize, reports: usize) -> Vec<Bytes> {
        let mut encoder = Encoder::new();
        let samples = (0..series).map(|index| Sample {
            key: Arc::new(SeriesKey::new(&format!("n{index}"), &[])),
            kind: SeriesType::Gauge,
            value: 0.0,
        });
        let body = Body::Metrics(Snapshot {
            interval_ms: 10_000,
            samples: samples.collect(),
        });
        (1..)
            .take(reports)
            .map(|seq| {
                Record {
                    seq,
                    time: Timestamp(5),
                    body: body.clone(),
                }
                .encode(&mut encoder)
            })
            .collect()
    }

    fn samples(intake: &Intake) -> usize {
        reports(intake)
            .map(|report| report.snapshot.samples.len())
            .sum()
    }

    fn reports(intake: &Intake) -> impl Iterator<Item = &Report> {
        intake.batches.iter().flat_map(|batch| match batch {
            Batch::Reports(of) => of.reports.iter(),
            Batch::Entries(entries) => panic!("{entries:?}"),
        })
    }

    #[test]
    fn a_stream_that_goes_on_after_what_was_committed_begins_with_a_key_frame() {
        let mut encoder = Encoder::new();
        let records: Vec<_> = (1..=4).map(|seq| metrics(seq, &mut encoder)).collect();
        let mut reader = reader(Lane::Metrics, 2);
        let intake = read(&mut reader, records.clone()).unwrap();
        let bases: Vec<_> = reports(&intake).map(|r| (r.seq, r.base)).collect();
        assert_eq!(bases, [(3, None), (4, Some(3))]);
        let kept: Vec<_> = reports(&intake).map(|r| r.encoded.clone()).collect();
        assert!(kept[0] != records[2] && kept[1] == records[3]);
        let mut decoder = Decoder::new();
        for (kept, report) in kept.into_iter().zip(reports(&intake)) {
            let record = Record::decode(kept, &mut decoder).unwrap();
            assert_eq!(record.body, Body::Metrics((*report.snapshot).clone()));
        }
    }

    #[test]
    fn a_small_frame_never_becomes_much_memory_at_once() {
        let records = bomb(limits::SERIES, 300);
        let bytes: usize = records.iter().skip(1).map(Bytes::len).sum();
        assert!(bytes < 10_000, "{bytes}");
        let mut reader = reader(Lane::Metrics, 0);
        let mut frame = Reader::open(wire::RecordBatch { records }).unwrap();
        let (mut seq, mut parts) = (0, 0);
        while !frame.is_read() {
            let intake = reader.read(&mut frame, NOW, |_| true).unwrap();
            assert!(samples(&intake) * size_of::<Sample>() <= PART_BYTES);
            assert!(intake.broken.is_none() && intake.last_seq > seq);
            (seq, parts) = (intake.last_seq, parts + 1);
        }
        assert_eq!(seq, 300);
        assert!(parts >= 300 * limits::SERIES * size_of::<Sample>() / PART_BYTES);
    }

    #[test]
    fn nodes_of_one_kind_share_the_names_of_their_series() {
        let pool = KeyPool::new();
        let mut keys = Vec::new();
        for _ in 0..2 {
            let of = (NodeId::random(), Incarnation::random());
            let mut reader = Reader::new(of, Lane::Metrics, 0, pool.clone());
            let intake = read(&mut reader, bomb(1, 1)).unwrap();
            let first = reports(&intake).next().unwrap();
            keys.push(Arc::clone(&first.snapshot.samples[0].key));
        }
        assert!(Arc::ptr_eq(&keys[0], &keys[1]));
    }

    #[test]
    fn without_room_a_frame_is_read_record_by_record() {
        let mut reader = reader(Lane::Metrics, 0);
        let mut frame = Reader::open(wire::RecordBatch {
            records: bomb(10, 3),
        })
        .unwrap();
        for seq in 1..=3 {
            assert!(!frame.is_read());
            let intake = reader.read(&mut frame, NOW, |_| false).unwrap();
            assert_eq!((intake.records, intake.last_seq), (1, seq));
        }
        assert!(frame.is_read());
        assert_eq!(reader.weight_of_next(&frame), 0);
    }
}
