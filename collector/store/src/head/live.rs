//! What a shard knows of its nodes' metrics without reading a file: newest reports, and where in the head the
//! others are.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nexus_proto::{
    ids::{Incarnation, NodeId},
    time::Timestamp,
};

use rusqlite::Connection;

use super::replay::Replay;
use crate::{StoreError, head, rows::Newest};

/// How far a life's reports have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The stream that the last report came in; 0: one of an earlier process.
    pub(crate) stream: u64,
    /// Of the last report.
    pub(crate) seq: u64,
    /// How many reports came.
    pub(crate) records: u64,
    /// When the last was committed.
    pub(crate) received: Timestamp,
}

/// What is known of one node.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) newest: Option<Newest>,
    /// Rows of the head with reports of this node that stand in no chunk, rising.
    pub(crate) rows: Vec<i64>,
}

#[derive(Debug, Default)]
pub(crate) struct Memory {
    nodes: HashMap<NodeId, Live>,
    tails: HashMap<(NodeId, Incarnation), Tail>,
    /// The last row of the head whose reports are known here. One that was appended a moment ago is there already, and
    /// not known yet.
    noted: i64,
}

/// Shared between a shard's writer and its readers.
pub(crate) type Shared = Arc<Mutex<Memory>>;

pub(crate) fn hold(shared: &Shared) -> MutexGuard<'_, Memory> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    pub(crate) fn newest(&self, node: NodeId) -> Option<&Newest> {
        self.nodes.get(&node)?.newest.as_ref()
    }

    pub(crate) fn rows(&self, node: NodeId) -> Vec<i64> {
        self.nodes
            .get(&node)
            .map(|live| live.rows.clone())
            .unwrap_or_default()
    }

    pub(crate) fn tail(&self, node: NodeId, of: Incarnation) -> Tail {
        self.tails.get(&(node, of)).copied().unwrap_or_default()
    }

    pub(crate) fn set_tail(&mut self, node: NodeId, of: Incarnation, tail: Tail) {
        self.tails.insert((node, of), tail);
    }

    /// The newest report is the last one: a node's clock may be set back.
    pub(crate) fn set_newest(&mut self, node: NodeId, newest: Newest) {
        self.nodes.entry(node).or_default().newest = Some(newest);
    }

    pub(crate) fn note_row(&mut self, node: NodeId, row: i64) {
        let rows = &mut self.nodes.entry(node).or_default().rows;
        if rows.last() != Some(&row) {
            rows.push(row);
        }
    }

    /// Reports of all rows up to this one are known.
    pub(crate) fn note_all(&mut self, to: i64) {
        self.noted = to;
    }

    pub(crate) fn noted(&self) -> i64 {
        self.noted
    }

    /// Nodes with reports up to this row that stand in no chunk.
    pub(crate) fn nodes_with_rows(&self, to: i64) -> Vec<NodeId> {
        let has = |live: &Live| live.rows.first().is_some_and(|row| *row <= to);
        let nodes = self.nodes.iter().filter(|(_, live)| has(live));
        nodes.map(|(node, _)| *node).collect()
    }

    /// Rows up to this one stand in chunks.
    pub(crate) fn forget_rows(&mut self, to: i64) {
        for live in self.nodes.values_mut() {
            let kept = live.rows.partition_point(|row| *row <= to);
            live.rows.drain(..kept);
        }
    }
}

/// What the rows of a head after that one come to, once chains were resumed where their chunks end.
pub(crate) fn load(
    connection: &Connection,
    path: &Path,
    after: i64,
    mut replay: Replay,
    memory: &mut Memory,
) -> Result<(), StoreError> {
    let mut last: HashMap<NodeId, (Incarnation, Timestamp, Timestamp, u32)> = HashMap::new();
    head::rows(connection, path, (after, i64::MAX), |row| {
        replay.take(
            &row,
            |_| true,
            |taken| {
                let at = (
                    taken.incarnation,
                    taken.time,
                    taken.row.1,
                    taken.interval_ms,
                );
                last.insert(taken.node, at);
                memory.note_row(taken.node, taken.row.0);
                let records = memory.tail(taken.node, taken.incarnation).records + 1;
                let tail = Tail {
                    stream: 0,
                    seq: taken.seq,
                    records,
                    received: taken.row.1,
                };
                memory.set_tail(taken.node, taken.incarnation, tail);
            },
        )
    })?;
    for (node, (incarnation, time, received, interval_ms)) in last {
        if let Some(chain) = replay.chains.get(&(node, incarnation)) {
            let newest = Newest {
                time,
                received,
                snapshot: Arc::new(chain.decoder.snapshot(interval_ms)),
            };
            memory.set_newest(node, newest);
        }
    }
    Ok(())
}
