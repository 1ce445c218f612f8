//! The facade: one value that stands for the whole store.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use nexus_proto::{
    ids::{Incarnation, JobId, Lane, NodeId, TokenId},
    operator::v1::AuditRow,
    time::Timestamp,
};
use nexus_runtime::clock::Clock;

use crate::{
    StoreError,
    entry::{ControlEntry, Entry, Outcome},
    rows::{
        JobRow, Newest, NodeRow, OutputRow, Point, RunRow, RunState, SectionRow, TokenRow,
        TrustRow, Value, ViewInfo,
    },
};

/// How a new store is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    shards: u16,
}

impl Layout {
    /// This many shards, at least one, sharing the slots evenly.
    #[must_use]
    pub fn new(shards: u16) -> Self {
        Self {
            shards: shards.clamp(1, 64),
        }
    }
}

/// What a query may cost.
#[derive(Debug, Clone)]
pub struct QueryOptions {
    /// Show things as they were then.
    pub as_of: Option<Timestamp>,
    /// Rows at most; 0: the largest limit.
    pub limit: usize,
    /// It ends after this.
    pub timeout: Duration,
    /// Only these nodes are seen; `None`: all.
    pub nodes: Option<Vec<NodeId>>,
}

/// The answer to a query: its columns, then rows in bounded batches.
#[derive(Debug)]
pub struct QueryStream {
    /// Names of the columns.
    pub columns: Vec<String>,
    #[expect(dead_code, reason = "filled with the query")]
    rows: Option<Value>,
}

impl QueryStream {
    /// The next rows; `None` after the last. An error ends the answer.
    pub async fn next(&mut self) -> Option<Result<Vec<Vec<Value>>, StoreError>> {
        None
    }

    /// Whether the row limit cut the answer; known once the rows have ended.
    #[must_use]
    pub fn truncated(&self) -> bool {
        false
    }
}

/// The whole store. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<()>,
}

const EARLY: StoreError = StoreError::Closed;

impl Store {
    /// Makes an empty store in a folder that holds none.
    pub fn create(_dir: &Path, layout: Layout) -> Result<(), StoreError> {
        Err(StoreError::Invalid(format!(
            "cannot make {} shards yet",
            layout.shards
        )))
    }
    /// Opens a store: locks its folder, migrates files of an older version after a backup, applies what
    /// a crash left unapplied, closes the sessions it left open.
    pub fn open(_dir: &Path, _clock: Clock) -> Result<Self, StoreError> {
        Err(EARLY)
    }
    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        let _ = &self.inner;
        1
    }
    /// The shard a node lives in.
    #[must_use]
    pub fn shard_of(&self, _node: NodeId) -> u16 {
        0
    }
    /// Appends entries to a shard's log, in one commit, and applies them; one outcome an entry.
    pub async fn append(
        &self,
        _shard: u16,
        _entries: Vec<Entry>,
    ) -> Result<Vec<Outcome>, StoreError> {
        Err(EARLY)
    }
    /// [`Store::append`] for one entry about one node.
    pub async fn append_for(
        &self,
        _node: NodeId,
        _entry: impl Into<Entry>,
    ) -> Result<Outcome, StoreError> {
        Err(EARLY)
    }
    /// Appends entries to the control log.
    pub async fn control_append(
        &self,
        _entries: Vec<ControlEntry>,
    ) -> Result<Vec<Outcome>, StoreError> {
        Err(EARLY)
    }
    /// Appends to the audit chain, durably. `seq`, `prev_hash` and `hash` are filled in.
    pub async fn audit(&self, _row: AuditRow) -> Result<AuditRow, StoreError> {
        Err(EARLY)
    }
    /// Up to `limit` rows of the audit chain from `from_seq` on.
    pub fn audit_rows(&self, _from_seq: u64, _limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        Err(EARLY)
    }
    /// A node.
    pub fn node(&self, _id: NodeId) -> Result<Option<NodeRow>, StoreError> {
        Err(EARLY)
    }
    /// Every node, by name; as it was at `as_of`, if given.
    pub fn nodes(&self, _as_of: Option<Timestamp>) -> Result<Vec<NodeRow>, StoreError> {
        Err(EARLY)
    }
    /// The highest committed seq of each lane of an incarnation; 0 where there is none.
    pub fn cursors(
        &self,
        _node: NodeId,
        _incarnation: Incarnation,
    ) -> Result<[(Lane, u64); 3], StoreError> {
        Err(EARLY)
    }
    /// The sections held of a node.
    pub fn sections(&self, _node: NodeId) -> Result<Vec<SectionRow>, StoreError> {
        Err(EARLY)
    }
    /// A job.
    pub fn job(&self, _job: JobId) -> Result<Option<JobRow>, StoreError> {
        Err(EARLY)
    }
    /// Jobs that have not ended.
    pub fn active_jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        Err(EARLY)
    }
    /// Every run of a job, by node id.
    pub fn runs(&self, _job: JobId) -> Result<Vec<RunRow>, StoreError> {
        Err(EARLY)
    }
    /// One run.
    pub fn run(&self, _job: JobId, _node: NodeId) -> Result<Option<RunRow>, StoreError> {
        Err(EARLY)
    }
    /// Runs of a job by state.
    pub fn run_counts(&self, _job: JobId) -> Result<BTreeMap<RunState, u64>, StoreError> {
        Err(EARLY)
    }
    /// Output of a job's runs on one shard that arrived after row `after` (0: from the first), at most `limit` pieces.
    pub fn run_outputs(
        &self,
        _job: JobId,
        _shard: u16,
        _after: i64,
        _limit: usize,
    ) -> Result<Vec<OutputRow>, StoreError> {
        Err(EARLY)
    }
    /// A version that rises whenever a run of the job, its output or the job itself changed.
    #[must_use]
    pub fn watch(&self, _job: JobId) -> tokio::sync::watch::Receiver<u64> {
        tokio::sync::watch::channel(0).1
    }
    /// A token.
    pub fn token(&self, _id: TokenId) -> Result<Option<TokenRow>, StoreError> {
        Err(EARLY)
    }
    /// The signer policy in force.
    pub fn trust(&self) -> Result<TrustRow, StoreError> {
        Err(EARLY)
    }
    /// The newest report of a node.
    #[must_use]
    pub fn newest(&self, _node: NodeId) -> Option<Newest> {
        None
    }
    /// Values of a metric of a node, in order of time, both ends included.
    pub fn history(
        &self,
        _node: NodeId,
        _name: &str,
        _from: Timestamp,
        _to: Timestamp,
    ) -> Result<Vec<Point>, StoreError> {
        Err(EARLY)
    }
    /// Runs one read-only statement over the documented views.
    pub async fn query(
        &self,
        _sql: &str,
        _options: QueryOptions,
    ) -> Result<QueryStream, StoreError> {
        Err(EARLY)
    }
    /// The views a query may name.
    #[must_use]
    pub fn schema(&self) -> Vec<ViewInfo> {
        Vec::new()
    }
    /// Ends the writers after what they hold is committed.
    pub fn close(&self) {}
}
