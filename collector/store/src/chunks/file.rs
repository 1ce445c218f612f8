//! `metrics.db`: the home of compacted metrics, one writer's side of it.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    time::Duration,
};

use nexus_proto::{
    ids::{Incarnation, NodeId},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::{
    Built, Key, WINDOW_MS, keyset,
    schema::{self, Resolution},
};
use crate::{StoreError, db, writer::chain};

/// Rollups begin this long after their window ended: what was reported within it has been compacted by then.
const GRACE_MS: i64 = 20 * 60 * 1000;
/// They are spread over this long, by node.
const SPREAD_MS: i64 = 60 * 60 * 1000;
/// A window of a node whose clock is ahead is rolled up after this at the latest.
const PATIENCE_MS: i64 = 24 * 3600 * 1000;
/// Hashes of key sets kept in memory.
const KEYSETS: usize = 100_000;

/// How long chunks are kept since they were stored, and how large the file may become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    pub(crate) raw: Duration,
    pub(crate) minutes: Duration,
    pub(crate) hours: Duration,
    /// Beyond it the oldest raw chunks go first, then minutes, then hours.
    pub(crate) bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        const DAY: u64 = 24 * 3600;
        Self {
            raw: Duration::from_secs(2 * DAY),
            minutes: Duration::from_secs(30 * DAY),
            hours: Duration::from_secs(730 * DAY),
            bytes: u64::MAX,
        }
    }
}

impl Keep {
    pub(super) fn of(&self, resolution: Resolution) -> Duration {
        match resolution {
            Resolution::Raw => self.raw,
            Resolution::Minute => self.minutes,
            Resolution::Hour => self.hours,
        }
    }
}

/// How far the metrics of one incarnation of a node are compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) incarnation: Incarnation,
    pub(crate) seq: u64,
    pub(crate) records: u64,
}

/// What a node is resumed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resume {
    pub(crate) node: NodeId,
    /// When the collector last received metrics of it.
    pub(crate) received: Timestamp,
    pub(crate) state: Vec<u8>,
    pub(crate) cursors: Vec<Cursor>,
}

/// What the file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Of the file, without what is free in it.
    pub bytes: u64,
    /// Free in it.
    pub free_bytes: u64,
    /// Raw, minutes, hours.
    pub held: [Held; 3],
    /// Since the file was made: reports replaced by a later one of the same time.
    pub replaced: u64,
    /// Reports whose time was ahead of the collector's.
    pub ahead: u64,
    /// Samples that came when neither raw chunks nor a free place in a rollup were there for them.
    pub late: u64,
}

/// What it holds of one resolution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub chunks: u64,
    pub samples: u64,
    /// Of the chunks' bodies.
    pub bytes: u64,
    /// When the oldest was stored.
    pub oldest: Option<Timestamp>,
}

/// The file, open for its one writer.
pub(crate) struct MetricsFile {
    pub(super) connection: Connection,
    pub(super) keep: Keep,
    pub(super) keysets: Keysets,
}

impl MetricsFile {
    pub(crate) fn open(path: &Path, keep: Keep) -> Result<Self, StoreError> {
        db::prepare_shrinking(path)?;
        Ok(Self {
            connection: db::open_writer(path, &schema::format())?,
            keep,
            keysets: Keysets::default(),
        })
    }

    /// The log index up to which reports are in here.
    pub(crate) fn chunked(&self) -> Result<i64, StoreError> {
        meta(&self.connection, "chunked")
    }

    /// Begins one transaction.
    pub(crate) fn begin(&mut self, now: Timestamp) -> Result<Writing<'_>, StoreError> {
        self.keysets.begin();
        Ok(Writing {
            tx: self.connection.unchecked_transaction()?,
            keysets: &mut self.keysets,
            now,
            counts: HashMap::new(),
        })
    }

    /// Every node with what its reports resume from.
    pub(crate) fn resumes(
        &self,
        mut each: impl FnMut(Resume) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut nodes = self
            .connection
            .prepare("SELECT id, node, received_ms, resume FROM nodes ORDER BY id")?;
        let mut nodes = nodes.query([])?;
        while let Some(row) = nodes.next()? {
            match resumed(&self.connection, row) {
                Ok(resume) => each(resume)?,
                // The others are good.
                Err(error @ StoreError::Corrupt { .. }) => {
                    tracing::error!(
                        error = chain(&error),
                        "metrics of a node are not gone on with"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Forgets all of a node.
    #[cfg_attr(not(test), expect(dead_code, reason = "nodes cannot be deleted yet"))]
    pub(crate) fn forget(&mut self, node: NodeId, now: Timestamp) -> Result<(), StoreError> {
        let mut writing = self.begin(now)?;
        if let Some(id) = number_of(&writing.tx, node)? {
            for resolution in Resolution::ALL {
                let chunks: Vec<i64> = {
                    let sql = format!("SELECT id FROM {} WHERE node = ?1", resolution.table());
                    let mut select = writing.tx.prepare_cached(&sql)?;
                    let found = select.query_map([id], |row| row.get(0))?;
                    found.collect::<Result<_, _>>()?
                };
                for chunk in chunks {
                    writing.remove(resolution, chunk)?;
                }
            }
            for sql in [
                "DELETE FROM due WHERE node = ?1",
                "DELETE FROM cursors WHERE node = ?1",
                "DELETE FROM nodes WHERE id = ?1",
            ] {
                writing.tx.execute(sql, [id])?;
            }
        }
        writing.end()
    }

    pub(crate) fn totals(&self) -> Result<Totals, StoreError> {
        let (free, pages) = self.pages()?;
        let page = self.pragma("page_size")?;
        let mut totals = Totals {
            bytes: pages.saturating_sub(free) * page,
            free_bytes: free * page,
            replaced: unsigned(meta(&self.connection, "replaced")?),
            ahead: unsigned(meta(&self.connection, "ahead")?),
            late: unsigned(meta(&self.connection, "late")?),
            ..Totals::default()
        };
        for (resolution, held) in Resolution::ALL.into_iter().zip(&mut totals.held) {
            let sql = format!(
                "SELECT chunks, samples, bytes,
                        (SELECT stored_ms FROM {} ORDER BY id LIMIT 1)
                 FROM totals WHERE resolution = ?1",
                resolution.table()
            );
            let mut select = self.connection.prepare_cached(&sql)?;
            *held = select.query_row([resolution.number()], |row| {
                Ok(Held {
                    chunks: unsigned(row.get(0)?),
                    samples: unsigned(row.get(1)?),
                    bytes: unsigned(row.get(2)?),
                    oldest: row.get::<_, Option<i64>>(3)?.map(Timestamp),
                })
            })?;
        }
        Ok(totals)
    }

    /// Free pages, and all pages.
    pub(super) fn pages(&self) -> Result<(u64, u64), StoreError> {
        Ok((self.pragma("freelist_count")?, self.pragma("page_count")?))
    }

    /// As if the disk ended there.
    #[cfg(test)]
    pub(crate) fn bound_pages(&self, pages: i64) {
        let bound = self.connection.pragma_update(None, "max_page_count", pages);
        bound.expect("a bound of pages");
    }

    fn pragma(&self, name: &str) -> Result<u64, StoreError> {
        let value = self
            .connection
            .pragma_query_value(None, name, |row| row.get(0));
        Ok(value.map(unsigned)?)
    }

    /// Brings what is in the WAL into the file.
    pub(crate) fn close(self) {
        db::finish(&self.connection);
    }
}

/// The log index up to which reports are in chunks, and what a node's are resumed with.
pub(crate) fn resume(
    connection: &Connection,
    node: NodeId,
) -> Result<(i64, Option<Resume>), StoreError> {
    // One transaction: both change together.
    let read = connection.unchecked_transaction()?;
    Ok((meta(&read, "chunked")?, resume_of(&read, node)?))
}

fn resume_of(connection: &Connection, node: NodeId) -> Result<Option<Resume>, StoreError> {
    let mut nodes = connection
        .prepare_cached("SELECT id, node, received_ms, resume FROM nodes WHERE node = ?1")?;
    let mut nodes = nodes.query([node.as_bytes()])?;
    let row = nodes.next()?;
    row.map(|row| resumed(connection, row)).transpose()
}

fn resumed(connection: &Connection, row: &Row<'_>) -> Result<Resume, StoreError> {
    let mut found = connection
        .prepare_cached("SELECT incarnation, seq, records FROM cursors WHERE node = ?1")?;
    let mut found = found.query([row.get::<_, i64>(0)?])?;
    let mut cursors = Vec::new();
    while let Some(row) = found.next()? {
        let incarnation = match Incarnation::from_wire(blob(row, 0)?).map_err(damaged) {
            Ok(incarnation) => incarnation,
            // That life begins anew, the others do not.
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "it is not known how far a node's metrics came"
                );
                continue;
            }
        };
        cursors.push(Cursor {
            incarnation,
            seq: unsigned(row.get(1)?),
            records: unsigned(row.get(2)?),
        });
    }
    Ok(Resume {
        node: NodeId::from_wire(blob(row, 1)?).map_err(damaged)?,
        received: Timestamp(row.get(2)?),
        state: row.get(3)?,
        cursors,
    })
}

/// What is known of a node when it is written.
#[derive(Debug)]
pub(crate) struct NodeBatch<'a> {
    pub(crate) node: NodeId,
    pub(crate) received: Timestamp,
    pub(crate) resume: &'a [u8],
    pub(crate) cursors: &'a [Cursor],
    pub(crate) chunks: &'a [Built],
}

/// A transaction. Nothing of it is there unless it is committed.
pub(crate) struct Writing<'a> {
    pub(super) tx: Transaction<'a>,
    pub(super) keysets: &'a mut Keysets,
    pub(super) now: Timestamp,
    /// What is added to `meta` at the end.
    pub(super) counts: HashMap<&'static str, i64>,
}

impl Writing<'_> {
    /// What a node's reports resume with.
    pub(crate) fn resume(&self, node: NodeId) -> Result<Option<Resume>, StoreError> {
        resume_of(&self.tx, node)
    }

    /// Adds a node's chunks and replaces what it resumes from.
    pub(crate) fn add(&mut self, batch: &NodeBatch<'_>) -> Result<(), StoreError> {
        let node: i64 = self
            .tx
            .prepare_cached(
                "INSERT INTO nodes (node, received_ms, resume) VALUES (?1, ?2, ?3)
                 ON CONFLICT (node) DO UPDATE SET received_ms = ?2, resume = ?3 RETURNING id",
            )?
            .query_row(
                params![batch.node.as_bytes(), batch.received.as_ms(), batch.resume],
                |row| row.get(0),
            )?;
        for cursor in batch.cursors {
            self.tx
                .prepare_cached(
                    "INSERT INTO cursors (node, incarnation, seq, records) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET seq = ?3, records = ?4",
                )?
                .execute(params![
                    node,
                    cursor.incarnation.as_bytes(),
                    signed(cursor.seq),
                    signed(cursor.records)
                ])?;
        }
        for chunk in batch.chunks {
            self.count("replaced", chunk.replaced);
            self.count("ahead", chunk.ahead);
            self.insert(Resolution::Raw, node, self.now, chunk)?;
            for window in &chunk.windows {
                self.mark(node, Resolution::Minute, *window, WINDOW_MS)?;
            }
        }
        Ok(())
    }

    /// Makes it all durable, with the log index up to which reports are in here now.
    pub(crate) fn commit(self, chunked: i64) -> Result<(), StoreError> {
        self.tx
            .prepare_cached(
                "INSERT INTO meta (key, value) VALUES ('chunked', ?1)
                 ON CONFLICT DO UPDATE SET value = ?1",
            )?
            .execute([chunked])?;
        self.end()
    }

    pub(super) fn end(mut self) -> Result<(), StoreError> {
        for (key, value) in self.counts.drain() {
            self.tx
                .prepare_cached(
                    "INSERT INTO meta (key, value) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET value = value + ?2",
                )?
                .execute(params![key, value])?;
        }
        self.keysets.write_uses(&self.tx)?;
        self.tx.commit()?;
        self.keysets.settled = true;
        Ok(())
    }

    pub(super) fn count(&mut self, what: &'static str, by: usize) {
        if by > 0 {
            *self.counts.entry(what).or_default() += size(by);
        }
    }

    pub(super) fn insert(
        &mut self,
        resolution: Resolution,
        node: i64,
        stored: Timestamp,
        chunk: &Built,
    ) -> Result<(), StoreError> {
        let keyset = self.keysets.id_of(&self.tx, &chunk.keys)?;
        self.keysets.used(keyset, 1);
        let sql = format!(
            "INSERT INTO {} (node, from_ms, to_ms, stored_ms, samples, keyset, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            resolution.table()
        );
        self.tx.prepare_cached(&sql)?.execute(params![
            node,
            chunk.from.as_ms(),
            chunk.to.as_ms(),
            stored.as_ms(),
            size(chunk.samples),
            keyset,
            chunk.body
        ])?;
        self.total(resolution, 1, size(chunk.samples), size(chunk.body.len()))
    }

    /// Removes a chunk.
    pub(super) fn remove(&mut self, resolution: Resolution, chunk: i64) -> Result<(), StoreError> {
        let sql = format!(
            "DELETE FROM {} WHERE id = ?1 RETURNING keyset, samples, length(body)",
            resolution.table()
        );
        let removed: Option<(i64, i64, i64)> = self
            .tx
            .prepare_cached(&sql)?
            .query_row([chunk], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((keyset, samples, bytes)) = removed else {
            return Ok(());
        };
        self.keysets.used(keyset, -1);
        self.total(resolution, -1, -samples, -bytes)
    }

    fn total(
        &self,
        resolution: Resolution,
        chunks: i64,
        samples: i64,
        bytes: i64,
    ) -> Result<(), StoreError> {
        self.tx
            .prepare_cached(
                "UPDATE totals SET chunks = chunks + ?2, samples = samples + ?3, bytes = bytes + ?4
                 WHERE resolution = ?1",
            )?
            .execute(params![resolution.number(), chunks, samples, bytes])?;
        Ok(())
    }

    /// Says that a window of a node must be rolled up into a resolution, once it has ended.
    pub(super) fn mark(
        &self,
        node: i64,
        resolution: Resolution,
        window: i64,
        length: i64,
    ) -> Result<(), StoreError> {
        let now = self.now.as_ms();
        let end = window.saturating_add(length);
        let patience = now.saturating_add(PATIENCE_MS);
        let due = end.clamp(now, patience) + GRACE_MS + spread(node);
        self.tx
            .prepare_cached(
                "INSERT INTO due (node, resolution, window_ms, due_ms) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET due_ms = min(due_ms, excluded.due_ms)",
            )?
            .execute(params![node, resolution.number(), window, due])?;
        Ok(())
    }
}

/// Nodes that come one after another are far apart.
fn spread(node: i64) -> i64 {
    // Knuth's multiplicative hash.
    node.wrapping_mul(2_654_435_761).rem_euclid(SPREAD_MS)
}

/// Key sets that are known to be in the file.
#[derive(Debug, Default)]
pub(super) struct Keysets {
    known: HashMap<[u8; 32], i64>,
    uses: HashMap<i64, i64>,
    /// Whether the last transaction was committed.
    settled: bool,
}

impl Keysets {
    fn begin(&mut self) {
        if !std::mem::replace(&mut self.settled, false) {
            // What was learned in a transaction that never happened.
            self.known.clear();
            self.uses.clear();
        }
    }

    fn id_of(&mut self, tx: &Connection, keys: &[Key]) -> Result<i64, StoreError> {
        let list = keyset::write(keys);
        let hash = keyset::hash(&list);
        if let Some(id) = self.known.get(&hash) {
            return Ok(*id);
        }
        let found: Option<i64> = tx
            .prepare_cached("SELECT id FROM keysets WHERE hash = ?1")?
            .query_row([hash], |row| row.get(0))
            .optional()?;
        let id = match found {
            Some(id) => id,
            None => tx
                .prepare_cached(
                    "INSERT INTO keysets (hash, series, uses, body) VALUES (?1, ?2, 0, ?3)
                     RETURNING id",
                )?
                .query_row(
                    params![hash, size(keys.len()), keyset::pack(&list)?],
                    |row| row.get(0),
                )?,
        };
        if self.known.len() >= KEYSETS {
            self.known.clear();
        }
        self.known.insert(hash, id);
        Ok(id)
    }

    fn used(&mut self, keyset: i64, times: i64) {
        *self.uses.entry(keyset).or_default() += times;
    }

    /// Removes those that no chunk names any more.
    fn write_uses(&mut self, tx: &Connection) -> Result<(), StoreError> {
        let mut gone = HashSet::new();
        for (keyset, times) in self.uses.drain() {
            let left: Option<i64> = tx
                .prepare_cached("UPDATE keysets SET uses = uses + ?2 WHERE id = ?1 RETURNING uses")?
                .query_row(params![keyset, times], |row| row.get(0))
                .optional()?;
            // One that is lost already is not to be removed.
            if left.is_some_and(|left| left <= 0) {
                tx.prepare_cached("DELETE FROM keysets WHERE id = ?1")?
                    .execute([keyset])?;
                gone.insert(keyset);
            }
        }
        if !gone.is_empty() {
            self.known.retain(|_, id| !gone.contains(id));
        }
        Ok(())
    }
}

pub(super) fn meta(connection: &Connection, key: &str) -> Result<i64, StoreError> {
    let mut select =
        connection.prepare_cached("SELECT coalesce(max(value), 0) FROM meta WHERE key = ?1")?;
    Ok(select.query_row([key], |row| row.get(0))?)
}

/// A node's number in this file.
pub(super) fn number_of(connection: &Connection, node: NodeId) -> Result<Option<i64>, StoreError> {
    let found = connection
        .prepare_cached("SELECT id FROM nodes WHERE node = ?1")?
        .query_row([node.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(found)
}

pub(super) fn blob<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    Ok(row.get_ref(column)?.as_blob()?)
}

fn damaged(error: nexus_proto::ids::IdError) -> StoreError {
    StoreError::corrupt("a row of a node's metrics", error)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
