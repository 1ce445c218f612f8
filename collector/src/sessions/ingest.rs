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
            if let Err(error) = outcome
                && self.breaks(&error)
            {
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
                if self.breaks(&error) {
                    intake.broken = Some(reason.clone());
                }
                intake.add_entry(self.dead_letter(seq, reason, encoded, now));
            }
        }
        Ok(())
    }

    /// Whether what follows a record that could not be read would be taken for something else: each report is coded
    /// against the one before.
    fn breaks(&self, error: &RecordError) -> bool {
        self.lane == Lane::Metrics || matches!(error, RecordError::Metrics(_))
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
mod tests;
