//! A shard's metrics: the head of reports as they came, chunks of those that are older, and what is known of them
//! in memory.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nexus_proto::{
    agent::v1::record::Body,
    ids::{Incarnation, NodeId},
    limits,
    metrics::KeyPool,
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use rusqlite::Connection;

use crate::{
    StoreError,
    chunks::{self, Answer, Ask, HOUR_MS, Keep, Known, MetricsFile, Resume, Samples, Totals},
    compact::{CUT_BYTES, Compaction},
    db::{self, Readers},
    entry::{Outcome, Reports},
    head::{
        self, Head,
        live::{self, Memory, Shared, Tail, hold},
        replay::Replay,
        writer::HeadWriter,
    },
    health::Health,
    rows::{Newest, Point},
    store::reading,
    writer::QueueDepth,
};

/// How metrics are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Commits of a shard's metrics follow each other no faster, so that one holds the reports of many nodes. An
    /// acknowledgement takes up to this much longer.
    pub gather: Duration,
    /// How long reports stay as they came, before they are brought into chunks.
    pub chunk_after: Duration,
    /// How long what was sampled is kept.
    pub raw: Duration,
    /// How long its minimum, maximum, sum, count and last value of each minute are.
    pub minutes: Duration,
    /// The same of each hour.
    pub hours: Duration,
    /// Of all chunks, in bytes: beyond it the oldest go, raw ones first. Each shard has an equal part.
    pub bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(100),
            chunk_after: Duration::from_secs(600),
            raw: Duration::from_secs(2 * 86_400),
            minutes: Duration::from_secs(30 * 86_400),
            hours: Duration::from_secs(63_115_200),
            bytes: 1 << 40,
        }
    }
}

/// How often a read begins anew when what it reads is moved.
const ATTEMPTS: usize = 4;
/// The file of the head in a shard's folder.
pub(crate) const HEAD: &str = "head.db";
/// The file of its chunks.
pub(crate) const CHUNKS: &str = "metrics.db";

/// Makes the files of a shard without metrics.
pub(crate) fn create(folder: &Path) -> Result<(), StoreError> {
    Head::open(&folder.join(HEAD))?.close();
    MetricsFile::open(&folder.join(CHUNKS), Keep::default())?.close();
    Ok(())
}

/// Fails if a file is of a later version.
pub(crate) fn refuse_newer(folder: &Path) -> Result<(), StoreError> {
    db::refuse_newer(&folder.join(HEAD), &head::format())?;
    db::refuse_newer(&folder.join(CHUNKS), &chunks::format())
}

pub(crate) struct Metrics {
    writer: Arc<HeadWriter>,
    path: PathBuf,
    head: Mutex<Connection>,
    chunks: Readers,
    memory: Shared,
    totals: Arc<Mutex<Totals>>,
    /// Of what brings reports into chunks.
    health: Arc<Health>,
}

impl Metrics {
    /// Opens the files; what is to be done from time to time is handed out.
    pub(crate) fn open(
        folder: &Path,
        clock: Clock,
        settings: Settings,
        keys: KeyPool,
    ) -> Result<(Self, Compaction), StoreError> {
        let path = folder.join(HEAD);
        let mut head = Head::open(&path)?;
        let keep = Keep {
            raw: settings.raw,
            minutes: settings.minutes,
            hours: settings.hours,
            bytes: settings.bytes,
        };
        let file = MetricsFile::open(&folder.join(CHUNKS), keep)?;
        head.begin_after(file.chunked()?)?;
        let reader = db::open_reader(&path)?;
        let memory = Shared::default();
        let mut known = hold(&memory);
        let mut replay = Replay::new(keys.clone());
        file.resumes(|resume| take_up(resume, &mut replay, &mut known))?;
        live::load(&reader, &path, file.chunked()?, replay, &mut known)?;
        known.note_all(head.index());
        drop(known);
        let writer = HeadWriter::start(head, Arc::clone(&memory), clock, settings.gather)?;
        let writer = Arc::new(writer);
        let totals = Arc::new(Mutex::new(file.totals()?));
        let health = Arc::<Health>::default();
        let compaction = Compaction {
            file,
            head: db::open_reader(&path)?,
            path: path.clone(),
            writer: Arc::clone(&writer),
            memory: Arc::clone(&memory),
            keys,
            totals: Arc::clone(&totals),
            health: Arc::clone(&health),
            after: settings.chunk_after,
            cut_bytes: CUT_BYTES,
            ending: Arc::default(),
        };
        let metrics = Self {
            writer,
            path,
            head: Mutex::new(reader),
            chunks: Readers::open(&folder.join(CHUNKS))?,
            memory,
            totals,
            health,
        };
        Ok((metrics, compaction))
    }

    pub(crate) async fn append(&self, reports: Reports) -> Result<Outcome, StoreError> {
        self.writer.append(reports).await
    }

    pub(crate) fn newest(&self, node: NodeId) -> Option<Newest> {
        hold(&self.memory).newest(node).cloned()
    }

    /// When the newest report of a node was committed.
    pub(crate) fn heard(&self, node: NodeId) -> Option<Timestamp> {
        let memory = hold(&self.memory);
        memory.newest(node).map(|newest| newest.received)
    }

    pub(crate) fn tail(&self, node: NodeId, of: Incarnation) -> Tail {
        hold(&self.memory).tail(node, of)
    }

    /// What the chunks hold.
    pub(crate) fn totals(&self) -> Totals {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Points of a node's series, of the finest resolution that is there and no finer than is asked for.
    pub(crate) fn points(&self, ask: &Ask<'_>) -> Result<Answer, StoreError> {
        for _ in 0..ATTEMPTS {
            // Chunks after the head: what is brought there meanwhile is in both, and counts once.
            if let Some(samples) = self.head_samples(ask)? {
                return chunks::points(&*self.chunks.get()?, ask, samples);
            }
        }
        Err(moved())
    }

    /// Series that there are, and when, whatever the time that is asked for.
    pub(crate) fn known(&self, ask: &Ask<'_>) -> Result<Known, StoreError> {
        let ask = &Ask {
            from: Timestamp(i64::MIN),
            to: Timestamp(i64::MAX),
            ..*ask
        };
        for _ in 0..ATTEMPTS {
            let Some(samples) = self.head_samples(ask)? else {
                continue;
            };
            let mut known = chunks::known(&*self.chunks.get()?, ask)?;
            for ((key, _), values) in &samples {
                for (time, _) in values {
                    chunks::widen(&mut known, key, (Timestamp(*time), Timestamp(*time)));
                }
            }
            return Ok(known);
        }
        Err(moved())
    }

    /// What of it is in the head; `None` if rows were removed meanwhile.
    fn head_samples(&self, ask: &Ask<'_>) -> Result<Option<Samples>, StoreError> {
        let mut samples = Samples::new();
        // A minute or hour begins before its first sample that is asked for.
        let from = ask.from.as_ms().saturating_sub(HOUR_MS);
        let mut held = 0;
        let rows = hold(&self.memory).rows(ask.node);
        let mut replay = Replay::default();
        let (chunked, resume) = chunks::resume(&*self.chunks.get()?, ask.node)?;
        if let Some(resume) = resume {
            replay.take_up(&resume)?;
        }
        for index in rows.into_iter().filter(|row| *row > chunked) {
            // The file is not held for longer than a row takes: others ask too.
            let row = head::row(&reading(&self.head), &self.path, index)?;
            let Some(row) = row else { return Ok(None) };
            replay.take(
                &row,
                |of| of == ask.node,
                |taken| {
                    let time = taken.time.as_ms();
                    if !(from..=ask.to.as_ms()).contains(&time) || held > ask.most {
                        return;
                    }
                    for (key, kind, value) in taken.decoder.each() {
                        if (ask.wanted)(key) {
                            held += 1;
                            let key = (Arc::clone(key), kind);
                            samples.entry(key).or_default().push((time, value));
                        }
                    }
                },
            )?;
            if held > ask.most {
                return Err(StoreError::TooMany(ask.most));
            }
        }
        Ok(Some(samples))
    }

    /// Values of a metric of a node, in order of time.
    pub(crate) fn history(
        &self,
        node: NodeId,
        name: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Point>, StoreError> {
        let answer = self.points(&Ask {
            node,
            wanted: &|key| key.name == name,
            from,
            to,
            step: None,
            most: limits::METRIC_VALUES,
        })?;
        let mut points: Vec<_> = answer
            .lines
            .into_iter()
            .flat_map(|line| {
                let key = line.key.0;
                line.points.into_iter().map(move |point| Point {
                    time: point.time,
                    key: Arc::clone(&key),
                    value: point.last,
                })
            })
            .collect();
        points.sort_by_key(|point| point.time);
        Ok(points)
    }

    pub(crate) fn depth(&self) -> QueueDepth {
        self.writer.depth()
    }

    pub(crate) async fn turn(&self) -> Result<(), StoreError> {
        self.writer.turn().await
    }

    pub(crate) fn failing(&self, now: Instant) -> Option<String> {
        let failing = self.writer.failing(now);
        failing.or_else(|| self.health.failing(now))
    }

    pub(crate) fn close(&self) {
        self.writer.close();
    }
}

fn moved() -> StoreError {
    StoreError::Query("the metrics were moved while they were read".to_owned())
}

/// What is known of a node from where it stood when its chunks were made.
fn take_up(resume: Resume, replay: &mut Replay, memory: &mut Memory) -> Result<(), StoreError> {
    for cursor in &resume.cursors {
        let tail = Tail {
            stream: 0,
            seq: cursor.seq,
            records: cursor.records,
            received: resume.received,
        };
        memory.set_tail(resume.node, cursor.incarnation, tail);
    }
    let Some(stood) = replay.take_up(&resume)? else {
        return Ok(());
    };
    let chain = replay.chains.get(&(resume.node, stood.incarnation));
    if let (Some(chain), Some(Body::Metrics(report))) = (chain, &stood.record.body) {
        let newest = Newest {
            time: Timestamp(stood.record.time_ms),
            received: resume.received,
            snapshot: Arc::new(chain.decoder.snapshot(report.interval_ms)),
        };
        memory.set_newest(resume.node, newest);
    }
    Ok(())
}
