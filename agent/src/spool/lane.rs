//! One lane: segment files in a folder, oldest first, and what is known of them.
//!
//! Seqs are reserved in blocks by an fsynced file before the first of a block is used. An unclean start
//! (the highest seq found is below what was reserved) cannot know which of the rest were used and sent,
//! so it skips them and says so with a gap. *A gap record carries the last of the seqs it stands for*, so
//! gaps keep the order of the lane and are acked like any record.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use nexus_pki::files;
use nexus_proto::{
    ids::Lane,
    metrics::Encoder,
    record::{Body, Gap, Record},
    time::Timestamp,
};

use super::{
    SpoolError,
    marks::SEQ_END,
    marks::{self, Cursor},
    segment::{self, HEADER_BYTES, Stored},
};

/// How far beyond what was ever stored here an ack may be: a folder that lost its latest seqs must learn of
/// them, and a collector must not be able to use all of them up.
const AHEAD: u64 = 1 << 40;
/// A file that is wholly acked is not added to beyond this: each reader goes through it from its start.
const ACKED_BYTES: u64 = 64 * 1024;

/// How many seqs are reserved at once.
pub(super) const BLOCK: u64 = 1024;

/// Bounds of one lane.
#[derive(Debug, Clone, Copy)]
pub struct LaneConfig {
    /// Bytes of all its files.
    pub bytes: u64,
    /// Bytes after which a new file is begun.
    pub segment_bytes: u64,
    /// Records older than this are given up (metrics alone).
    pub age: Duration,
}

/// What is known of one file.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) bytes: u64,
    pub(super) newest: Timestamp,
    /// First seq of the gap, when one gap record is all the file holds.
    pub(super) gap_from: Option<u64>,
}

#[derive(Debug)]
pub(super) struct LaneLog {
    pub(super) lane: Lane,
    pub(super) dir: PathBuf,
    pub(super) config: LaneConfig,
    pub(super) segments: VecDeque<Segment>,
    /// Changes whenever a file is replaced or removed, so that readers find their place again.
    pub(super) generation: u64,
    pub(super) next_seq: u64,
    pub(super) reserved: u64,
    pub(super) acked: u64,
    /// The end of the last segment, when records may still be added to it.
    writer: Option<File>,
    pub(super) cursor: Cursor,
    /// The gap an unclean start has to leave, for as long as the disk does not take it.
    owed: Option<Owed>,
    /// The file that could not be read, and how often that was tried.
    pub(super) unreadable: Option<(PathBuf, u32)>,
}

#[derive(Debug, Clone, Copy)]
struct Owed {
    first: u64,
    last: u64,
    time: Timestamp,
}

impl LaneLog {
    pub(super) fn assemble(
        (lane, dir, config): (Lane, PathBuf, LaneConfig),
        segments: VecDeque<Segment>,
        (cursor, acked): (Cursor, u64),
        (next_seq, reserved): (u64, u64),
    ) -> Self {
        Self {
            lane,
            dir,
            config,
            segments,
            generation: 0,
            next_seq,
            reserved,
            acked,
            writer: None,
            cursor,
            owed: None,
            unreadable: None,
        }
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The highest seq stored.
    pub(super) fn last(&self) -> u64 {
        self.next_seq.saturating_sub(1)
    }

    /// The lowest seq that is stored and not acked; one above the highest when there is none.
    pub(super) fn lowest(&self) -> u64 {
        let first = self
            .segments
            .front()
            .map_or(self.next_seq, |segment| segment.first);
        first.max(self.acked.saturating_add(1))
    }

    /// Adds a record that `encode` makes of its seq and of whether it begins a file.
    pub(super) fn append(
        &mut self,
        time: Timestamp,
        encode: impl FnOnce(u64, bool) -> Bytes,
        sync: bool,
    ) -> Result<u64, SpoolError> {
        self.settle()?;
        let full = self
            .segments
            .back()
            .is_none_or(|s| s.bytes >= self.config.segment_bytes);
        if full {
            self.writer = None;
        }
        let seq = self.next_seq;
        self.reserve(seq)?;
        let fresh = self.writer.is_none();
        let payload = encode(seq, fresh);
        if payload.len() > nexus_proto::limits::RECORD_BYTES {
            // The encoder's state has moved on without the record.
            self.writer = None;
            return Err(SpoolError::TooLarge {
                lane: self.lane,
                bytes: payload.len(),
            });
        }
        if fresh {
            self.begin_segment(seq)?;
        }
        let bytes = segment::frame(&Stored { seq, time, payload });
        if let Err(error) = self.write(&bytes, sync) {
            self.give_up_tail();
            return Err(error);
        }
        if let Some(segment) = self.segments.back_mut() {
            segment.last = seq;
            segment.bytes += u64::try_from(bytes.len()).unwrap_or(0);
            segment.newest = segment.newest.max(time);
        }
        self.next_seq = seq + 1;
        Ok(seq)
    }

    pub(super) fn sync(&mut self) -> Result<(), SpoolError> {
        match &self.writer {
            Some(file) => file
                .sync_data()
                .map_err(|source| self.fail("fsync", source)),
            None => Ok(()),
        }
    }

    /// Everything up to `seq` is committed at the collector; files that hold nothing else are removed.
    pub(super) fn ack(&mut self, seq: u64) -> Result<(), SpoolError> {
        if seq >= SEQ_END || seq > self.next_seq.saturating_add(AHEAD) {
            return Err(SpoolError::Ack {
                lane: self.lane,
                seq,
                last: self.last(),
            });
        }
        if seq <= self.acked {
            return Ok(());
        }
        if seq >= self.next_seq && self.lowest() < self.next_seq {
            tracing::error!(
                lane = %self.lane, seq, stored = self.last(),
                "the collector has records under seqs that this folder gave to others, which are lost"
            );
        }
        self.acked = seq;
        self.owed = self.owed.filter(|owed| owed.last > seq);
        if seq >= self.next_seq {
            // The collector knows seqs this folder does not: never use them again.
            self.next_seq = seq + 1;
            self.writer = None;
        }
        while self
            .segments
            .front()
            .is_some_and(|segment| segment.last <= seq)
        {
            let last_file = self.segments.len() == 1;
            if last_file && self.writer.is_some() {
                let small = self
                    .segments
                    .front()
                    .is_some_and(|s| s.bytes < self.config.segment_bytes.min(ACKED_BYTES));
                if small {
                    break;
                }
                self.writer = None;
            }
            self.remove_front();
        }
        self.cursor
            .write(self.acked)
            .map_err(|source| self.fail("write the cursor of", source))
    }

    /// Gives up the oldest file, leaving a gap in its place; gaps at the front become one.
    pub(super) fn drop_oldest(&mut self, now: Timestamp, reason: &str) -> Result<bool, SpoolError> {
        let gaps = self
            .segments
            .iter()
            .take_while(|s| s.gap_from.is_some())
            .count();
        let Some(victim) = self.segments.get(gaps).cloned() else {
            return Ok(false);
        };
        if gaps + 1 == self.segments.len() {
            self.writer = None;
        }
        let first = self
            .segments
            .front()
            .map_or(victim.first, |s| s.gap_from.unwrap_or(s.first));
        let first = first.max(self.acked.saturating_add(1)).min(victim.last);
        let gap = self.write_gap(first, victim.last, now, reason)?;
        let given_up: Vec<_> = self.segments.drain(..=gaps).collect();
        let path = gap.path.clone();
        self.segments.push_front(gap);
        self.generation += 1;
        for segment in given_up.iter().filter(|s| s.path != path) {
            discard(&segment.path);
        }
        Ok(true)
    }

    /// A file that holds one gap record alone.
    pub(super) fn write_gap(
        &self,
        first_seq: u64,
        last_seq: u64,
        time: Timestamp,
        reason: &str,
    ) -> Result<Segment, SpoolError> {
        let stored = gap_record(first_seq, last_seq, time, reason);
        write_segment(&self.dir, self.lane, &[stored], Some(first_seq))
    }

    /// Replaces all files by one that holds `records`.
    pub(super) fn replace_all(&mut self, records: &[Stored]) -> Result<(), SpoolError> {
        self.writer = None;
        self.generation += 1;
        let kept = match records {
            [] => None,
            records => Some(write_segment(&self.dir, self.lane, records, None)?),
        };
        let old = std::mem::replace(&mut self.segments, kept.into_iter().collect());
        let kept = self.segments.front().map(|kept| kept.path.clone());
        for segment in &old {
            // In their order: a start that finds some of them takes the new file for the copy it is, as long
            // as those left are the later ones.
            if kept.as_ref() != Some(&segment.path) && !discard(&segment.path) {
                break;
            }
        }
        Ok(())
    }

    /// Adds a gap up to the end of what is reserved, as an unclean start must; on a full disk, as soon as it can.
    pub(super) fn skip_reserved(&mut self, first: u64, now: Timestamp) {
        self.owed = Some(Owed {
            first,
            last: self.reserved,
            time: now,
        });
        self.next_seq = self.reserved + 1;
        if let Err(error) = self.settle() {
            let error = nexus_runtime::errors::chain(&error).to_string();
            tracing::warn!(lane = %self.lane, error, "a gap is not written yet");
        }
    }

    /// Writes what has to stand before the next record.
    fn settle(&mut self) -> Result<(), SpoolError> {
        if let Some(Owed { first, last, time }) = self.owed {
            let gap = self.write_gap(first, last, time, "unclean_start")?;
            marks::write_reserved(&self.dir, self.reserved)?;
            self.segments.push_back(gap);
            self.owed = None;
        }
        Ok(())
    }

    /// A disk that takes nothing, and does not let go of what it took.
    #[cfg(test)]
    pub(super) fn break_writer(&mut self) {
        self.writer = OpenOptions::new().write(true).open("/dev/full").ok();
    }

    /// The last file is not added to any more.
    pub(super) fn end_file(&mut self) {
        self.writer = None;
    }

    /// Fsyncs all and gives back what is reserved and not used, so that the next start is a clean one.
    pub(super) fn close(&mut self) -> Result<(), SpoolError> {
        self.settle()?;
        self.sync()?;
        self.reserved = self.last();
        Ok(marks::write_reserved(&self.dir, self.reserved)?)
    }

    fn reserve(&mut self, seq: u64) -> Result<(), SpoolError> {
        if seq > self.reserved {
            let reserved = seq.saturating_add(BLOCK - 1);
            marks::write_reserved(&self.dir, reserved)?;
            self.reserved = reserved;
        }
        Ok(())
    }

    fn begin_segment(&mut self, seq: u64) -> Result<(), SpoolError> {
        files::create_folder(&self.dir)?;
        let path = self.dir.join(file_name(seq));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let begin = || {
            let mut file = options.open(&path)?;
            file.write_all(&segment::header(self.lane, seq))?;
            sync_folder(&self.dir)?;
            Ok(file)
        };
        let file = begin().map_err(|source| SpoolError::File {
            action: "begin",
            path: path.clone(),
            source,
        })?;
        self.writer = Some(file);
        self.segments.push_back(Segment {
            path,
            first: seq,
            last: seq.saturating_sub(1),
            bytes: HEADER_BYTES,
            newest: Timestamp(i64::MIN),
            gap_from: None,
        });
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], sync: bool) -> Result<(), SpoolError> {
        let written = match &mut self.writer {
            Some(file) => file
                .write_all(bytes)
                .and_then(|()| if sync { file.sync_data() } else { Ok(()) }),
            None => Err(io::Error::other("no file is open")),
        };
        written.map_err(|source| self.fail("write to", source))
    }

    /// After a failed write: cut what it left and begin a new file with the next record.
    fn give_up_tail(&mut self) {
        let Some(file) = self.writer.take() else {
            return;
        };
        let Some(segment) = self.segments.back() else {
            return;
        };
        if file.set_len(segment.bytes).is_err() {
            // The record may be there whole when the file is read again: its seq is spent.
            self.next_seq += 1;
        } else if segment.bytes == HEADER_BYTES {
            fs::remove_file(&segment.path).ok();
            self.segments.pop_back();
            self.generation += 1;
        }
    }

    fn remove_front(&mut self) {
        if let Some(segment) = self.segments.pop_front() {
            self.generation += 1;
            discard(&segment.path);
        }
    }

    fn fail(&self, action: &'static str, source: io::Error) -> SpoolError {
        let path = self
            .segments
            .back()
            .map_or_else(|| self.dir.clone(), |s| s.path.clone());
        SpoolError::File {
            action,
            path,
            source,
        }
    }
}

pub(super) fn gap_record(first_seq: u64, last_seq: u64, time: Timestamp, reason: &str) -> Stored {
    let reason = reason.to_owned();
    let body = Body::Gap(Gap {
        first_seq,
        last_seq,
        reason,
    });
    let payload = Record {
        seq: last_seq,
        time,
        body,
    }
    .encode(&mut Encoder::new());
    Stored {
        seq: last_seq,
        time,
        payload,
    }
}

/// Writes a whole file: temporary, fsync, rename, fsync of the folder.
pub(super) fn write_segment(
    dir: &Path,
    lane: Lane,
    records: &[Stored],
    gap_from: Option<u64>,
) -> Result<Segment, SpoolError> {
    files::create_folder(dir)?;
    let first = records.first().map_or(0, |stored| stored.seq);
    let mut bytes = segment::header(lane, first);
    for stored in records {
        bytes.extend_from_slice(&segment::frame(stored));
    }
    files::write_private(dir, &file_name(first), &bytes)?;
    Ok(Segment {
        path: dir.join(file_name(first)),
        first,
        last: records.last().map_or(0, |stored| stored.seq),
        bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        newest: records
            .iter()
            .map(|stored| stored.time)
            .max()
            .unwrap_or_default(),
        gap_from,
    })
}

pub(super) fn file_name(first_seq: u64) -> String {
    format!("{first_seq:020}.seg")
}

pub(super) fn remove(path: &Path) -> Result<(), SpoolError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            let path = path.to_owned();
            Err(SpoolError::File {
                action: "remove",
                path,
                source,
            })
        }
        _ => Ok(()),
    }
}

/// Removes what is no longer known. If that fails the next start finds it, and finds that it is not needed.
fn discard(path: &Path) -> bool {
    let removed = remove(path);
    if let Err(error) = &removed {
        let error = nexus_runtime::errors::chain(error).to_string();
        tracing::warn!(error, "a file of the spool stays behind");
    }
    removed.is_ok()
}

pub(super) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
