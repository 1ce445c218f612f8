//! What the agent saw and did, kept on disk until a collector has committed it.
//!
//! Three lanes, each a folder of segment files ([`segment`](self) format in `segment.rs`) with its own
//! seqs, cursor and bound. A result, an inventory section or an event is fsynced before it counts as
//! stored; metrics and pieces of output ride the page cache. When a lane is full, results are kept
//! whatever happens (new jobs are refused, pieces of output counted as dropped), superseded inventory
//! sections are left out, and the oldest metrics make way for a gap record.
//!
//! Metric reports are coded against the ones before them in the same file; a file begins with a key
//! frame. Each upload decodes them and codes them anew for its stream.

mod lane;
mod marks;
mod mend;
mod open;
mod reader;
mod segment;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use nexus_pki::files::{self, FileError};
use nexus_proto::{
    ids::Lane,
    metrics::{Decoder, Encoder, KeyPool},
    record::{Body, Event, Record},
    time::Timestamp,
};
use nexus_runtime::errors::chain;
use tokio::sync::Notify;

pub use self::{
    lane::LaneConfig,
    open::{Finding, UNCLEAN_START},
};
use self::{lane::LaneLog, mend::Bad, reader::Reader};
use crate::ration::Ration;

/// The file of what inventory is stored or on its way: a line `KIND HEX` each.
const SECTIONS: &str = "sections";

/// Bounds of the three lanes.
#[derive(Debug, Clone, Copy)]
pub struct SpoolConfig {
    /// Results.
    pub results: LaneConfig,
    /// Inventory.
    pub inventory: LaneConfig,
    /// Metrics.
    pub metrics: LaneConfig,
}

/// Why something could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file operation failed.
    #[error("cannot {action} {path}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file could not be replaced.
    #[error("cannot keep a file of the spool")]
    Replace(#[from] FileError),
    /// Written by a later version of the agent.
    #[error("{} was written by a newer version of nexus-agent", .0.display())]
    Newer(PathBuf),
    /// A record that was good when it was written no longer is.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
    /// The record is larger than any may be.
    #[error("a record of {bytes} bytes is too large for the {lane} lane")]
    TooLarge {
        /// For which lane.
        lane: Lane,
        /// Its size.
        bytes: usize,
    },
    /// An ack for what was never stored, by far.
    #[error("seq {seq} of the {lane} lane is acked, of which {last} is the last")]
    Ack {
        /// Of which lane.
        lane: Lane,
        /// What was acked.
        seq: u64,
        /// What was stored.
        last: u64,
    },
    /// The lane is full, and this kind of record is not stored regardless.
    #[error("the {0} lane is full")]
    Full(Lane),
}

/// The three lanes. All of its methods block on the disk alone, and shortly.
#[derive(Debug)]
pub struct Spool {
    results: Mutex<LaneLog>,
    inventory: Mutex<LaneLog>,
    metrics: Mutex<(LaneLog, Encoder)>,
    sections: Mutex<BTreeMap<String, [u8; 32]>>,
    dir: PathBuf,
    changed: [Notify; Lane::ALL.len()],
    acked: Notify,
    /// Kinds of inventory that have to be looked at again, since a file of theirs was lost.
    lost_sections: Mutex<Vec<String>>,
    complaints: Mutex<BTreeMap<&'static str, Ration>>,
    keys: KeyPool,
}

impl Spool {
    /// Opens or makes the spool in `dir`, mending what an unclean stop left. `sessions`: how many there have been,
    /// so that a spool that was removed never gives a seq again that a collector may know.
    pub fn open(
        dir: &Path,
        config: &SpoolConfig,
        sessions: u64,
        now: Timestamp,
    ) -> Result<(Self, Vec<Finding>), SpoolError> {
        files::create_folder(dir)?;
        let mut findings = Vec::new();
        let mut open = |lane: Lane, config| {
            let (log, mut found) = open::open(lane, dir.join(lane.name()), config, sessions, now)?;
            findings.append(&mut found);
            Ok::<_, SpoolError>(log)
        };
        let results = open(Lane::Results, config.results)?;
        let inventory = open(Lane::Inventory, config.inventory)?;
        let metrics = open(Lane::Metrics, config.metrics)?;
        // Lost inventory has to be looked at again, not merely said to be lost.
        let inventory_lost = findings.iter().any(|f| f.lane == Lane::Inventory);
        let sections = if inventory_lost {
            BTreeMap::new()
        } else {
            read_sections(dir)
        };
        let spool = Self {
            results: Mutex::new(results),
            inventory: Mutex::new(inventory),
            metrics: Mutex::new((metrics, Encoder::new())),
            sections: Mutex::new(sections),
            dir: dir.to_owned(),
            changed: Default::default(),
            acked: Notify::new(),
            lost_sections: Mutex::default(),
            complaints: Mutex::default(),
            keys: KeyPool::new(),
        };
        for finding in &findings {
            if finding.kind == "spool_quarantined" {
                spool.say(finding, now);
            }
        }
        Ok((spool, findings))
    }

    /// Stores one record; once this returns a start, an end, an event or a section survives a power cut.
    pub fn append(&self, time: Timestamp, body: Body) -> Result<u64, SpoolError> {
        let (lane, seq) = match body {
            Body::Metrics(_) => (Lane::Metrics, self.append_metrics(time, body)?),
            Body::Section(_) => (Lane::Inventory, self.append_section(time, body)?),
            Body::Output(_) => {
                let mut log = lock(&self.results);
                if log.bytes() >= log.config.bytes {
                    return Err(SpoolError::Full(Lane::Results));
                }
                let seq = log.append(time, |seq, _| encode(seq, time, body), false)?;
                (Lane::Results, seq)
            }
            _ => {
                let mut log = lock(&self.results);
                let seq = log.append(time, |seq, _| encode(seq, time, body), true)?;
                (Lane::Results, seq)
            }
        };
        self.changed_in(lane).notify_one();
        Ok(seq)
    }

    /// Stores an event.
    pub fn event(&self, time: Timestamp, kind: &str, message: &str) -> Result<u64, SpoolError> {
        let limit = nexus_proto::limits::REASON_BYTES / 4;
        let message = message.chars().take(limit).collect();
        self.append(
            time,
            Body::Event(Event {
                kind: kind.to_owned(),
                message,
            }),
        )
    }

    /// Logs and stores an event that a collector can cause as often as it likes: while there is room, and not more
    /// often than anybody reads it.
    pub fn complain(&self, now: Timestamp, kind: &'static str, message: &str) {
        let ration = lock(&self.complaints).entry(kind).or_default().take(now);
        let Some(withheld) = ration else {
            tracing::debug!(kind, "{message}");
            return;
        };
        tracing::warn!(kind, withheld, "{message}");
        let message = match withheld {
            0 => message.to_owned(),
            withheld => format!("{message} ({withheld} more before it were not kept)"),
        };
        if self.takes_jobs()
            && let Err(error) = self.event(now, kind, &message)
        {
            tracing::error!(error = %chain(&error), "an event cannot be stored");
        }
    }

    /// Whether there is room for the results of another job: at least a quarter of the lane.
    #[must_use]
    pub fn takes_jobs(&self) -> bool {
        let log = lock(&self.results);
        log.bytes() < log.config.bytes / 4 * 3
    }

    /// The lowest seq of a lane that is stored and not acked, for Hello.
    #[must_use]
    pub fn lowest(&self, lane: Lane) -> u64 {
        self.with(lane, |log| log.lowest())
    }

    /// The highest seq that the collector has committed, as far as this folder knows.
    #[must_use]
    pub fn acked(&self, lane: Lane) -> u64 {
        self.with(lane, |log| log.acked)
    }

    /// The highest seq stored.
    #[must_use]
    pub fn last(&self, lane: Lane) -> u64 {
        self.with(lane, |log| log.last())
    }

    /// Whether a result with this seq is stored or committed, not lost.
    #[must_use]
    pub fn holds_result(&self, seq: u64) -> bool {
        self.with(Lane::Results, |log| {
            if seq <= log.acked {
                return true;
            }
            let mut reader = Reader::new(seq.saturating_sub(1), self.keys.clone());
            while let Ok(Some(stored)) = reader.next(log) {
                if stored.seq >= seq {
                    let record = Record::decode(stored.payload, &mut Decoder::new());
                    let gap = matches!(
                        record,
                        Ok(Record {
                            body: Body::Gap(_),
                            ..
                        })
                    );
                    return stored.seq == seq && !gap;
                }
            }
            false
        })
    }

    /// Bytes on disk.
    #[must_use]
    pub fn bytes(&self, lane: Lane) -> u64 {
        self.with(lane, |log| log.bytes())
    }

    /// Everything up to `seq` of this lane is committed.
    pub fn ack(&self, lane: Lane, seq: u64) -> Result<(), SpoolError> {
        self.with(lane, |log| log.ack(seq))?;
        self.acked.notify_waiters();
        Ok(())
    }

    /// Resolves when something was stored in this lane since the last time it did. For one waiter a lane.
    pub async fn changed(&self, lane: Lane) {
        self.changed_in(lane).notified().await;
    }

    /// Resolves at the next ack. For any number of waiters, who look at [`Spool::acked`] first.
    pub async fn ack_arrived(&self) {
        self.acked.notified().await;
    }

    /// Hashes of the sections stored here or at the collector, by kind.
    #[must_use]
    pub fn sections(&self) -> BTreeMap<String, [u8; 32]> {
        lock(&self.sections).clone()
    }

    /// Kinds of inventory that were lost from a running spool since the last time this was asked.
    #[must_use]
    pub fn lost_sections(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.lost_sections))
    }

    /// Keys of the series that are stored and sent: whoever samples them takes them from here.
    #[must_use]
    pub fn keys(&self) -> KeyPool {
        self.keys.clone()
    }

    /// A reader of what stands above `after`, for one upload stream.
    #[must_use]
    pub fn upload(&self, lane: Lane, after: u64) -> Upload {
        Upload {
            lane,
            reader: Reader::new(after, self.keys.clone()),
            encoder: Encoder::new(),
        }
    }

    /// Fsyncs everything and marks the stop as a clean one.
    pub fn close(&self) -> Result<(), SpoolError> {
        for lane in Lane::ALL {
            self.with(lane, |log| log.close())?;
        }
        Ok(())
    }

    fn append_metrics(&self, time: Timestamp, body: Body) -> Result<u64, SpoolError> {
        let mut guard = lock(&self.metrics);
        let (log, encoder) = &mut *guard;
        let oldest = time.before(log.config.age);
        loop {
            let front = log.segments.iter().find(|s| s.gap_from.is_none());
            let reason = if front.is_some_and(|s| s.newest < oldest && s.last >= s.first) {
                "spool_age"
            } else if log.bytes() > log.config.bytes {
                "spool_full"
            } else {
                break;
            };
            if !log.drop_oldest(time, reason)? {
                break;
            }
        }
        log.append(
            time,
            |seq, fresh| {
                if fresh {
                    *encoder = Encoder::new();
                }
                Record { seq, time, body }.encode(encoder)
            },
            false,
        )
    }

    fn append_section(&self, time: Timestamp, body: Body) -> Result<u64, SpoolError> {
        let known = match &body {
            Body::Section(section) if section.error.is_none() => {
                Some((section.kind.clone(), section.hash))
            }
            _ => None,
        };
        let mut log = lock(&self.inventory);
        let seq = log.append(time, |seq, _| encode(seq, time, body), true)?;
        // The section is stored, whatever becomes of the rest.
        if log.bytes() > log.config.bytes
            && let Err(error) = coalesce(&mut log)
        {
            tracing::warn!(error = %chain(&error), "superseded inventory stays in the spool");
        }
        drop(log);
        if let Some((kind, hash)) = known {
            let mut sections = lock(&self.sections);
            sections.insert(kind, hash);
            self.keep_sections(&sections);
        }
        Ok(seq)
    }

    fn keep_sections(&self, sections: &BTreeMap<String, [u8; 32]>) {
        let text: String = sections
            .iter()
            .map(|(kind, hash)| format!("{kind} {}\n", nexus_pki::hex(hash)))
            .collect();
        if let Err(error) = files::write_private(&self.dir, SECTIONS, text.as_bytes()) {
            // The next start sends more than it would have to.
            tracing::warn!(error = %chain(&error), "the list of stored inventory is out of date");
        }
    }

    /// Makes an event of what was found.
    fn say(&self, finding: &Finding, now: Timestamp) {
        if let Err(error) = self.event(now, finding.kind, &finding.message) {
            tracing::error!(error = %chain(&error), "an event cannot be stored");
        }
    }

    /// A file was lost while the spool was in use.
    fn lost(&self, finding: &Finding, now: Timestamp) {
        tracing::error!(lane = %finding.lane, lost = ?finding.lost, "{}", finding.message);
        if finding.lane == Lane::Inventory && finding.lost.is_some() {
            let mut sections = lock(&self.sections);
            let kinds = std::mem::take(&mut *sections).into_keys();
            lock(&self.lost_sections).extend(kinds);
            self.keep_sections(&sections);
        }
        self.say(finding, now);
    }

    fn changed_in(&self, lane: Lane) -> &Notify {
        let [results, inventory, metrics] = &self.changed;
        match lane {
            Lane::Results => results,
            Lane::Inventory => inventory,
            Lane::Metrics => metrics,
        }
    }

    fn with<T>(&self, lane: Lane, act: impl FnOnce(&mut LaneLog) -> T) -> T {
        match lane {
            Lane::Results => act(&mut lock(&self.results)),
            Lane::Inventory => act(&mut lock(&self.inventory)),
            Lane::Metrics => act(&mut lock(&self.metrics).0),
        }
    }
}

/// Reads one lane for one upload stream, coding metrics for that stream.
#[derive(Debug)]
pub struct Upload {
    lane: Lane,
    reader: Reader,
    encoder: Encoder,
}

impl Upload {
    /// The next records with their seqs, at most `bytes` of them (but one at least). A file that is damaged or
    /// gone is mended first; `Err` when it cannot be read now.
    pub fn next_batch(
        &mut self,
        spool: &Spool,
        bytes: usize,
        now: Timestamp,
    ) -> Result<Vec<(u64, Bytes)>, SpoolError> {
        let files = spool.with(self.lane, |log| log.segments.len());
        // One that is still bad when it was mended is not mended for ever.
        for _ in 0..=files {
            let batch = spool.with(self.lane, |log| self.gather(log, bytes))?;
            let Some(bad) = self.reader.bad.take_if(|_| batch.is_empty()) else {
                return Ok(batch);
            };
            let found = spool.with(self.lane, |log| log.mend(bad, now))?;
            if let Some(finding) = found {
                spool.lost(&finding, now);
            }
        }
        Err(SpoolError::Damaged(spool.dir.join(self.lane.name())))
    }

    /// What can be read before something that cannot.
    fn gather(&mut self, log: &LaneLog, bytes: usize) -> Result<Vec<(u64, Bytes)>, SpoolError> {
        let mut batch = Vec::new();
        let mut size = 0;
        while self.reader.bad.is_none()
            && size < bytes
            && batch.len() < nexus_proto::limits::BATCH_RECORDS
        {
            let stored = match self.reader.next(log) {
                Ok(Some(stored)) => stored,
                Ok(None) => break,
                Err(error) => {
                    self.reader.bad = Some(Bad::of(error)?);
                    break;
                }
            };
            let seq = stored.seq;
            let known = seq <= self.reader.after;
            let payload = if self.lane == Lane::Metrics {
                match Record::decode(stored.payload, &mut self.reader.decoder) {
                    Ok(_) if known => continue,
                    Ok(record) => record.encode(&mut self.encoder),
                    Err(error) => {
                        // The reports behind it are differences to it.
                        tracing::error!(seq, error = %chain(&error), "a spooled report is not readable");
                        let path = self.reader.path(log).unwrap_or(&log.dir).to_owned();
                        self.reader.bad = Some(Bad {
                            path: path.clone(),
                            below: seq,
                            error: SpoolError::Damaged(path),
                        });
                        break;
                    }
                }
            } else if known {
                continue;
            } else {
                stored.payload
            };
            self.reader.after = seq;
            size += payload.len();
            batch.push((seq, payload));
        }
        Ok(batch)
    }
}

/// Leaves out sections that a later one of the same kind supersedes.
fn coalesce(log: &mut LaneLog) -> Result<(), SpoolError> {
    let mut reader = Reader::new(log.acked, KeyPool::new());
    let mut kept: BTreeMap<u64, segment::Stored> = BTreeMap::new();
    // By kind, and whether it says that the kind could not be read: what was read stands until more was.
    let mut newest: BTreeMap<(String, bool), u64> = BTreeMap::new();
    while let Some(stored) = reader.next(log)? {
        if stored.seq <= log.acked {
            continue;
        }
        let record = Record::decode(stored.payload.clone(), &mut Decoder::new());
        if let Ok(Record {
            body: Body::Section(section),
            ..
        }) = record
        {
            let (kind, failed) = (section.kind, section.error.is_some());
            let mut before = vec![newest.insert((kind.clone(), failed), stored.seq)];
            if !failed {
                before.push(newest.remove(&(kind, true)));
            }
            for seq in before.into_iter().flatten() {
                kept.remove(&seq);
            }
        }
        kept.insert(stored.seq, stored);
    }
    let kept: Vec<_> = kept.into_values().collect();
    log.replace_all(&kept)
}

fn encode(seq: u64, time: Timestamp, body: Body) -> Bytes {
    // Only metrics take the encoder's state.
    Record { seq, time, body }.encode(&mut Encoder::new())
}

fn read_sections(dir: &Path) -> BTreeMap<String, [u8; 32]> {
    // Without the file, or with one that cannot be understood, everything is sent again.
    let text = std::fs::read_to_string(dir.join(SECTIONS)).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (kind, hex) = line.split_once(' ')?;
            Some((
                kind.to_owned(),
                *blake3::Hash::from_hex(hex).ok()?.as_bytes(),
            ))
        })
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held ends the program; what tests leave behind is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
