//! What brings metric reports from the heads into chunks: one thread for all shards, one shard at a time.
//!
//! When the oldest report of a head has waited long enough, all that is in it then (the cut) becomes chunks, and
//! rollups follow, in the shard's `metrics.db`; each node's place in its chain of reports is kept with them, so that
//! what comes after the cut can be read without what was before. That is one durable transaction. Only after it are
//! the rows removed from the head. A crash in between leaves rows that are passed over.
//!
//! Reports are grouped by node in memory, so a large head is read several times, each time for some of the nodes.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use nexus_proto::{
    agent::v1::{Record, record::Body},
    ids::{Incarnation, NodeId},
    metrics::KeyPool,
    store::v1,
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use prost::Message as _;
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::{
    StoreError,
    chunks::{Budget, Builder, Cursor, MetricsFile, NodeBatch, Resume, Totals},
    head::{
        self, Row,
        live::{Shared, hold},
        replay::Replay,
        writer::HeadWriter,
    },
    health::Health,
    log,
    writer::chain,
};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);
/// Orders that wait.
const ORDERS: usize = 4;
/// Steps of rolling up and removing in one turn.
const STEPS: usize = 8;
/// Bytes of reports that are in memory at once, roughly.
const GROUP_BYTES: i64 = 32 << 20;
/// How much larger reports are than their rows, roughly.
const UNPACKED: i64 = 4;
/// A head that is larger is due, however young.
const HEAD_BYTES: i64 = 1 << 30;
/// Bytes of rows that one transaction takes, roughly. Each is read once for every group of nodes.
pub(crate) const CUT_BYTES: i64 = 128 << 20;
/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(15);

/// A shard's part.
pub(crate) struct Compaction {
    pub(crate) file: MetricsFile,
    pub(crate) head: Connection,
    pub(crate) path: PathBuf,
    pub(crate) writer: Arc<HeadWriter>,
    pub(crate) memory: Shared,
    pub(crate) keys: KeyPool,
    pub(crate) health: Arc<Health>,
    /// What the file held when it was looked at last.
    pub(crate) totals: Arc<Mutex<Totals>>,
    /// How long reports wait.
    pub(crate) after: Duration,
    /// Bytes of rows that are taken at once.
    pub(crate) cut_bytes: i64,
    /// The store is being closed.
    pub(crate) ending: Arc<AtomicBool>,
}

/// What is brought into chunks at once.
struct Cut {
    /// The first and the last row: those after it, and up to it.
    rows: (i64, i64),
    /// Of those rows.
    bytes: i64,
}

/// To be done at once, whatever is due.
type Order = oneshot::Sender<Result<(), StoreError>>;

/// The thread; it ends when this is closed.
pub(crate) struct Compactor {
    orders: Mutex<Option<SyncSender<Order>>>,
    ending: Vec<Arc<AtomicBool>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Compactor {
    pub(crate) fn start(shards: Vec<Compaction>, clock: Clock) -> Result<Self, StoreError> {
        let (orders, ordered) = sync_channel(ORDERS);
        let ending = shards.iter().map(|shard| Arc::clone(&shard.ending));
        let ending = ending.collect();
        let thread = thread::Builder::new()
            .name("compact".to_owned())
            .spawn(move || run(shards, &clock, &ordered))
            .map_err(|source| StoreError::File {
                doing: "cannot start what makes chunks of",
                path: PathBuf::from("metrics"),
                source,
            })?;
        Ok(Self {
            orders: Mutex::new(Some(orders)),
            ending,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Brings all that is there into chunks.
    pub(crate) async fn now(&self) -> Result<(), StoreError> {
        let (order, done) = oneshot::channel();
        let orders = self.orders();
        let sent = orders.ok_or(StoreError::Closed)?.try_send(order);
        sent.map_err(|_| StoreError::Full("compactor"))?;
        done.await.map_err(|_| StoreError::Closed)?
    }

    fn orders(&self) -> Option<SyncSender<Order>> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.clone()
    }

    /// Ends the thread, and what it is at.
    pub(crate) fn close(&self) {
        for ending in &self.ending {
            ending.store(true, Ordering::Relaxed);
        }
        let orders = &self.orders;
        drop(orders.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = &self.thread;
        let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("what makes chunks of metrics ended by a panic");
        }
    }
}

fn run(mut shards: Vec<Compaction>, clock: &Clock, ordered: &Receiver<Order>) {
    loop {
        match ordered.recv_timeout(LOOK) {
            Ok(order) => {
                let mut first = Ok(());
                for shard in &mut shards {
                    first = first.and(shard.turn(clock, true));
                }
                // Whoever asked may be gone.
                drop(order.send(first));
            }
            Err(RecvTimeoutError::Disconnected) => {
                shards.into_iter().for_each(|shard| shard.file.close());
                return;
            }
            Err(RecvTimeoutError::Timeout) => {
                for shard in &mut shards {
                    if !shard.health.failed_within(clock.instant(), RETRY) {
                        // What fails is told already, and tried again.
                        drop(shard.turn(clock, false));
                    }
                }
            }
        }
    }
}

impl Compaction {
    /// Does what is due, each thing whether or not another fails: a disk that is full has room again once old chunks
    /// are gone.
    fn turn(&mut self, clock: &Clock, whatever: bool) -> Result<(), StoreError> {
        let now = clock.now();
        let compacted = self.compact_due(now, whatever);
        let kept = self.keep(now);
        let done = compacted.and(kept);
        match &done {
            Ok(()) => {
                if self.health.worked() {
                    tracing::info!(file = %self.path.display(), "metrics are brought into chunks again");
                }
            }
            // Nothing is lost: the reports stay where they are.
            Err(error) => {
                let why = format!(
                    "metrics are not brought into chunks, or old ones not removed: {}",
                    chain(error)
                );
                if self.health.failed(clock.instant(), &why) {
                    tracing::error!(file = %self.path.display(), error = why, "metrics wait where they are");
                }
            }
        }
        done
    }

    fn compact_due(&mut self, now: Timestamp, whatever: bool) -> Result<(), StoreError> {
        let to = hold(&self.memory).noted();
        while let Some(cut) = self.due(now, whatever, to)? {
            if self.ending.load(Ordering::Relaxed) {
                break;
            }
            self.compact(&cut, now)?;
        }
        Ok(())
    }

    fn keep(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let mut done = Ok(());
        for _ in 0..STEPS {
            match self.file.step(now, Budget::default()) {
                Ok(stepped) if stepped.worked() => {}
                stepped => {
                    done = stepped.map(drop);
                    break;
                }
            }
        }
        let totals = self.file.totals()?;
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
        done
    }

    /// The rows of a head that are due, none after `to`: of a row that the writer has not noted yet it is not known
    /// whose reports it has.
    fn due(&self, now: Timestamp, whatever: bool, to: i64) -> Result<Option<Cut>, StoreError> {
        let failed = || StoreError::sqlite("cannot read", &self.path);
        let chunked = self.file.chunked()?;
        let (oldest, bytes): (Option<i64>, i64) = self
            .head
            .prepare_cached(
                "SELECT (SELECT time_ms FROM head WHERE idx > ?1 AND idx <= ?2 ORDER BY idx LIMIT 1),
                    (SELECT (page_count - freelist_count) * page_size
                     FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size())",
            )
            .and_then(|mut read| {
                read.query_row([chunked, to], |row| Ok((row.get(0)?, row.get(1)?)))
            })
            .map_err(failed())?;
        let Some(oldest) = oldest else {
            return Ok(None);
        };
        // A clock that was set back must not keep them for long.
        let waited = now.as_ms().abs_diff(oldest);
        let old = waited >= u64::try_from(self.after.as_millis()).unwrap_or(u64::MAX);
        if whatever || old || bytes > HEAD_BYTES {
            self.cut((chunked, to)).map(Some).map_err(failed())
        } else {
            Ok(None)
        }
    }

    /// As many of these rows as are taken at once.
    fn cut(&self, (after, to): (i64, i64)) -> rusqlite::Result<Cut> {
        let mut cut = Cut {
            rows: (after, to),
            bytes: 0,
        };
        let mut sizes = self.head.prepare_cached(
            "SELECT idx, length(body) FROM head WHERE idx > ?1 AND idx <= ?2 ORDER BY idx",
        )?;
        let mut sizes = sizes.query([after, to])?;
        while let Some(row) = sizes.next()? {
            cut.bytes += row.get::<_, i64>(1)?;
            if cut.bytes >= self.cut_bytes {
                cut.rows.1 = row.get(0)?;
                break;
            }
        }
        Ok(cut)
    }

    fn compact(&mut self, cut: &Cut, now: Timestamp) -> Result<(), StoreError> {
        let to = cut.rows.1;
        let mut nodes = hold(&self.memory).nodes_with_rows(to);
        nodes.sort_unstable();
        let groups = usize::try_from(cut.bytes * UNPACKED / GROUP_BYTES).unwrap_or(usize::MAX);
        let size = nodes.len().div_ceil(groups.max(1)).max(1);
        let mut builder = Builder::new()?;
        let mut writing = self.file.begin(now)?;
        for group in nodes.chunks(size) {
            let mut rows: HashMap<NodeId, Vec<Row>> =
                group.iter().map(|node| (*node, Vec::new())).collect();
            let ending = || self.ending.load(Ordering::Relaxed);
            gather(&self.head, &self.path, cut.rows, &mut rows, ending)?;
            for node in group {
                if ending() {
                    // Nothing of it is written: it is made when the store is open again.
                    return Ok(());
                }
                let rows = rows.remove(node).unwrap_or_default();
                let resume = writing.resume(*node)?;
                let made = chunks_of(*node, resume, &rows, &self.keys, &mut builder)?;
                let Some(made) = made else { continue };
                let built = builder.finish()?;
                writing.add(&NodeBatch {
                    node: *node,
                    received: made.received,
                    resume: &made.state,
                    cursors: &made.cursors,
                    chunks: &built,
                })?;
            }
        }
        writing.commit(to)?;
        hold(&self.memory).forget_rows(to);
        self.writer.trim(to)
    }
}

/// The rows that are left of a head, with the reports of these nodes.
fn gather(
    head: &Connection,
    path: &std::path::Path,
    span: (i64, i64),
    wanted: &mut HashMap<NodeId, Vec<Row>>,
    ending: impl Fn() -> bool,
) -> Result<(), StoreError> {
    head::rows(head, path, span, |row| {
        if ending() {
            return Ok(());
        }
        for part in row.parts {
            let node = NodeId::from_wire(&part.node)
                .map_err(|e| StoreError::corrupt("an id in the head of metrics", e))?;
            let Some(rows) = wanted.get_mut(&node) else {
                continue;
            };
            match rows.last_mut() {
                Some(last) if last.index == row.index => last.parts.push(part),
                _ => rows.push(Row {
                    index: row.index,
                    time: row.time,
                    parts: vec![part],
                }),
            }
        }
        Ok(())
    })
}

/// What is kept of a node beside its chunks.
struct Made {
    received: Timestamp,
    state: Vec<u8>,
    cursors: Vec<Cursor>,
}

/// Hands a node's reports to the builder. `None`: there are none.
fn chunks_of(
    node: NodeId,
    resume: Option<Resume>,
    rows: &[Row],
    keys: &KeyPool,
    builder: &mut Builder,
) -> Result<Option<Made>, StoreError> {
    let mut replay = Replay::new(keys.clone());
    let mut cursors = Vec::new();
    if let Some(resume) = resume {
        replay.take_up(&resume)?;
        cursors = resume.cursors;
    }
    let mut newest: Option<(Incarnation, Timestamp, Record)> = None;
    let mut failed = None;
    for row in rows {
        replay.take(
            row,
            |_| true,
            |taken| {
                let samples = taken.decoder.each();
                let pushed = builder.push(taken.time, taken.row.1, taken.interval_ms, samples);
                if let Err(error) = pushed {
                    failed.get_or_insert(error);
                }
                let cursor = cursors
                    .iter_mut()
                    .find(|cursor: &&mut Cursor| cursor.incarnation == taken.incarnation);
                match cursor {
                    Some(cursor) => {
                        (cursor.seq, cursor.records) = (taken.seq, cursor.records + 1);
                    }
                    None => cursors.push(Cursor {
                        incarnation: taken.incarnation,
                        seq: taken.seq,
                        records: 1,
                    }),
                }
                let record = Record {
                    seq: taken.seq,
                    time_ms: taken.time.as_ms(),
                    body: Some(Body::Metrics(nexus_proto::agent::v1::MetricReport {
                        interval_ms: taken.interval_ms,
                        ..Default::default()
                    })),
                };
                newest = Some((taken.incarnation, taken.row.1, record));
            },
        )?;
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    let Some((incarnation, received, mut record)) = newest else {
        return Ok(None);
    };
    if let Some(stands) = replay.chains.get(&(node, incarnation))
        && let Some(Body::Metrics(report)) = &mut record.body
    {
        *report = stands.decoder.key_frame(report.interval_ms);
    }
    let state = Newest {
        incarnation,
        record,
    };
    Ok(Some(Made {
        received,
        state: state.pack()?,
        cursors,
    }))
}

/// The newest report of a node when its chunks were made, as a key frame that later ones continue.
#[derive(Debug)]
pub(crate) struct Newest {
    pub(crate) incarnation: Incarnation,
    pub(crate) record: Record,
}

impl Newest {
    fn pack(self) -> Result<Vec<u8>, StoreError> {
        let state = v1::MetricsState {
            incarnation: self.incarnation.to_wire(),
            newest: Some(self.record),
        };
        let pack = || {
            let mut zstd = zstd::bulk::Compressor::new(log::ZSTD_LEVEL)?;
            zstd.include_checksum(true)?;
            zstd.compress(&state.encode_to_vec())
        };
        pack().map_err(|e| StoreError::corrupt("where a node's metrics stood", e))
    }

    pub(crate) fn unpack(packed: &[u8]) -> Result<Self, StoreError> {
        let what = "where a node's metrics stood";
        let bytes = log::unpack(packed).map_err(|e| StoreError::corrupt(what, e))?;
        let state =
            v1::MetricsState::decode(bytes.as_slice()).map_err(|e| StoreError::corrupt(what, e))?;
        let incarnation =
            Incarnation::from_wire(&state.incarnation).map_err(|e| StoreError::corrupt(what, e))?;
        Ok(Self {
            incarnation,
            record: state.newest.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests;
