//! Metrics: newest reports in memory, history as compressed chunks, the log as their head.
//!
//! Reports gather in memory, one list a node, until ten minutes or many samples have come; then each list
//! becomes one row of `chunks` and `meta.chunked` says up to which log row. After a restart the list is
//! read again from the log rows above it. Both depend on nothing but the log.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nexus_proto::{
    ids::{Incarnation, Lane, NodeId},
    metrics::{Decoder, Encoder, Snapshot},
    record::{Body, Record},
    store::v1,
    time::Timestamp,
};
use prost::Message as _;
use rusqlite::{Connection, params};

use crate::{
    StoreError,
    entry::Entry,
    log::{self, Log},
    rows::{Newest, Point},
};

/// The reports of a chunk span about this long.
const CHUNK_MS: i64 = 10 * 60 * 1000;
/// Samples kept in memory before they are written earlier than that.
const HEAD_SAMPLES: usize = 4_000_000;
const ZSTD_LEVEL: i32 = 3;

/// What readers see.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    newest: HashMap<NodeId, Newest>,
    heads: HashMap<NodeId, Vec<Report>>,
}

#[derive(Debug, Clone)]
struct Report {
    /// The log row it came in.
    index: i64,
    time: Timestamp,
    /// When that row was appended.
    received: Timestamp,
    snapshot: Arc<Snapshot>,
}

/// Shared between a shard's writer and its readers.
pub(crate) type Shared = Arc<Mutex<Memory>>;

pub(crate) fn hold(shared: &Shared) -> MutexGuard<'_, Memory> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    pub(crate) fn newest(&self, node: NodeId) -> Option<&Newest> {
        self.newest.get(&node)
    }

    /// The newest report is the last one: a node's clock may be set back.
    fn take_in(&mut self, node: NodeId, report: Report) {
        let newest = Newest {
            time: report.time,
            received: report.received,
            snapshot: Arc::clone(&report.snapshot),
        };
        self.newest.insert(node, newest);
        self.heads.entry(node).or_default().push(report);
    }
}

/// The writer's side.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    memory: Shared,
    /// Of the transaction that is open.
    staged: Vec<(NodeId, Report)>,
    samples: usize,
    /// When the oldest report in memory was committed.
    since: Option<Timestamp>,
    flushed: bool,
}

impl Metrics {
    pub(crate) fn shared(&self) -> Shared {
        Arc::clone(&self.memory)
    }

    pub(super) fn load(
        &mut self,
        db: &Connection,
        log: &Log,
        applied: i64,
    ) -> Result<(), StoreError> {
        *self = Self {
            memory: self.shared(),
            ..Self::default()
        };
        *hold(&self.memory) = Memory::default();
        let chunked: i64 = db.query_row(
            "SELECT coalesce(max(value), 0) FROM meta WHERE key = 'chunked'",
            [],
            |row| row.get(0),
        )?;
        // What stands in chunks came by then at the latest.
        let flushed = log.time_of(chunked)?.unwrap_or_default();
        let mut last = db.prepare(
            "SELECT node, body FROM chunks WHERE id IN (SELECT max(id) FROM chunks GROUP BY node)",
        )?;
        let mut last = last.query([])?;
        while let Some(row) = last.next()? {
            let node = super::nodes::node_id(&row.get::<_, Vec<u8>>(0)?)?;
            if let Some((time, snapshot)) =
                unpack(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?.pop()
            {
                let newest = Newest {
                    time,
                    received: time.min(flushed),
                    snapshot: Arc::new(snapshot),
                };
                hold(&self.memory).newest.insert(node, newest);
            }
        }
        let mut seen: HashMap<(NodeId, Incarnation), u64> = HashMap::new();
        for index in chunked + 1..=applied {
            let Some(row) = log.read::<Entry>(index)? else {
                break;
            };
            for fact in row.facts {
                let Entry::Records(records) = fact else {
                    continue;
                };
                if records.lane != Lane::Metrics {
                    continue;
                }
                for record in records.records {
                    let seen = seen.entry((records.node, records.incarnation)).or_default();
                    if record.seq > *seen {
                        *seen = record.seq;
                        if let Body::Metrics(snapshot) = record.body {
                            let at = (row.index, row.time);
                            self.stage(records.node, at, record.time, Arc::new(snapshot));
                        }
                    }
                }
            }
            self.settle(true);
        }
        Ok(())
    }

    pub(super) fn stage(
        &mut self,
        node: NodeId,
        (index, received): (i64, Timestamp),
        time: Timestamp,
        snapshot: Arc<Snapshot>,
    ) {
        let report = Report {
            index,
            time,
            received,
            snapshot,
        };
        self.staged.push((node, report));
    }

    /// How much is staged.
    pub(super) fn staged(&self) -> usize {
        self.staged.len()
    }

    /// Forgets what was staged since.
    pub(super) fn unstage(&mut self, to: usize) {
        self.staged.truncate(to);
    }

    /// Writes chunks, when it is time, with what is staged in them.
    pub(super) fn finish(
        &mut self,
        db: &Connection,
        index: i64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let staged: usize = self
            .staged
            .iter()
            .map(|(_, report)| report.snapshot.samples.len())
            .sum();
        let old = self
            .since
            .is_some_and(|since| now.as_ms() - since.as_ms() >= CHUNK_MS);
        if !old && self.samples + staged < HEAD_SAMPLES {
            return Ok(());
        }
        let mut heads = hold(&self.memory).heads.clone();
        for (node, report) in &self.staged {
            heads.entry(*node).or_default().push(report.clone());
        }
        let mut nodes: Vec<_> = heads.into_iter().collect();
        nodes.sort_unstable_by_key(|(node, _)| *node);
        let mut insert = db.prepare_cached(
            "INSERT INTO chunks (node, from_ms, to_ms, reports, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for (node, reports) in nodes {
            let from = reports
                .iter()
                .map(|report| report.time)
                .min()
                .unwrap_or_default();
            let to = reports
                .iter()
                .map(|report| report.time)
                .max()
                .unwrap_or_default();
            let count = i64::try_from(reports.len()).unwrap_or(i64::MAX);
            insert.execute(params![
                node.as_bytes(),
                from.as_ms(),
                to.as_ms(),
                count,
                pack(&reports)?
            ])?;
        }
        db.prepare_cached("INSERT INTO meta (key, value) VALUES ('chunked', ?1) ON CONFLICT DO UPDATE SET value = ?1")?
            .execute([index])?;
        self.flushed = true;
        Ok(())
    }

    pub(super) fn settle(&mut self, committed: bool) {
        let flushed = std::mem::take(&mut self.flushed);
        let staged = std::mem::take(&mut self.staged);
        if !committed {
            return;
        }
        let mut memory = hold(&self.memory);
        for (node, report) in staged {
            self.samples += report.snapshot.samples.len();
            self.since.get_or_insert(report.received);
            memory.take_in(node, report);
        }
        if flushed {
            memory.heads.clear();
            self.samples = 0;
            self.since = None;
        }
    }
}

/// Values of a metric of a node, chunks first, then the head.
pub(crate) fn history(
    db: &Connection,
    memory: &Shared,
    node: NodeId,
    name: &str,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<Point>, StoreError> {
    let mut points = Vec::new();
    let mut pick = |time: Timestamp, snapshot: &Snapshot| {
        if (from..=to).contains(&time) {
            let samples = snapshot
                .samples
                .iter()
                .filter(|sample| sample.key.name == name);
            points.extend(samples.map(|sample| Point {
                time,
                key: Arc::clone(&sample.key),
                value: sample.value,
            }));
        }
    };
    // The memory is not held while chunks are read: its writer would wait. What is flushed meanwhile stands in both,
    // and is known by its row.
    let head = hold(memory).heads.get(&node).cloned().unwrap_or_default();
    let read = db.unchecked_transaction()?;
    let chunked: i64 = read.query_row(
        "SELECT coalesce(max(value), 0) FROM meta WHERE key = 'chunked'",
        [],
        |row| row.get(0),
    )?;
    let mut chunks = read.prepare_cached(
        "SELECT body FROM chunks WHERE node = ?1 AND to_ms >= ?2 AND from_ms <= ?3 ORDER BY id",
    )?;
    let mut chunks = chunks.query(params![node.as_bytes(), from.as_ms(), to.as_ms()])?;
    while let Some(row) = chunks.next()? {
        for (time, snapshot) in unpack(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?)? {
            pick(time, &snapshot);
        }
    }
    for report in head.iter().filter(|report| report.index > chunked) {
        pick(report.time, &report.snapshot);
    }
    points.sort_by_key(|point| point.time);
    Ok(points)
}

fn pack(reports: &[Report]) -> Result<Vec<u8>, StoreError> {
    let mut encoder = Encoder::new();
    let reports = reports.iter().zip(1..).map(|(report, seq)| {
        let body = Body::Metrics((*report.snapshot).clone());
        Record {
            seq,
            time: report.time,
            body,
        }
        .to_wire(&mut encoder)
    });
    let chunk = v1::Chunk {
        reports: reports.collect(),
    }
    .encode_to_vec();
    log::pack(&chunk, ZSTD_LEVEL).map_err(|e| StoreError::corrupt("a chunk", e))
}

pub(crate) fn unpack(packed: &[u8]) -> Result<Vec<(Timestamp, Snapshot)>, StoreError> {
    let bytes = log::unpack(packed).map_err(|e| StoreError::corrupt("a chunk of metrics", e))?;
    let chunk = v1::Chunk::decode(bytes.as_slice())
        .map_err(|e| StoreError::corrupt("a chunk of metrics", e))?;
    let mut decoder = Decoder::new();
    let mut reports = Vec::with_capacity(chunk.reports.len());
    for report in chunk.reports {
        let record = Record::from_wire(report, &mut decoder)
            .map_err(|e| StoreError::corrupt("a chunk of metrics", e))?;
        if let Body::Metrics(snapshot) = record.body {
            reports.push((record.time, snapshot));
        }
    }
    Ok(reports)
}
