//! The query that a connection runs at the moment. Functions and tables are made once for a connection and ask here,
//! so that nothing of a query outlasts it; while there is none, they show nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use nexus_proto::{
    ids::{Incarnation, NodeId},
    metrics::SeriesKey,
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use tokio::sync::mpsc;

use super::Batch;
use crate::{
    StoreError,
    head::live::Tail,
    rows::{Newest, Value},
};

/// A node by its id and its name.
#[derive(Debug, Clone)]
pub(crate) struct NamedNode {
    pub(crate) node: NodeId,
    pub(crate) id: String,
    pub(crate) name: String,
}

/// Which nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose<'a> {
    All,
    Name(&'a str),
    Id(NodeId),
}

/// One value to show.
pub(crate) type Shown = (Arc<SeriesKey>, f64, Timestamp);

/// Between two times, both included.
pub(crate) type Span = (Timestamp, Timestamp);

/// What of metrics the caller may see.
pub(crate) trait Metrics: Send + Sync {
    fn nodes(&self, whose: Whose<'_>) -> Result<Vec<NamedNode>, StoreError>;
    fn newest(&self, node: NodeId) -> Option<Newest>;
    /// Values of a metric of that name.
    fn history(&self, node: NodeId, name: &str, span: Span) -> Result<Vec<Shown>, String>;
    /// How far one life of a node came, or when any of it was heard of.
    fn tail(&self, node: NodeId, of: Option<Incarnation>) -> Tail;
}

/// Why a query was ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ended {
    /// It took too long.
    Late,
    /// Nobody waits for it.
    Alone,
}

/// A query, and what it was told. More comes while it runs: what it was told of a node's newest report and of all
/// nodes once it is told again, so that figures agree.
pub(super) struct Asking {
    deadline: Instant,
    clock: Clock,
    rows: mpsc::Sender<Batch>,
    ended: OnceLock<Ended>,
    metrics: Arc<dyn Metrics>,
    nodes: OnceLock<Arc<[NamedNode]>>,
    newest: Mutex<HashMap<NodeId, Option<Newest>>>,
    tails: Mutex<HashMap<(NodeId, Option<Incarnation>), Tail>>,
}

impl Asking {
    pub(super) fn new(
        deadline: Instant,
        clock: Clock,
        rows: mpsc::Sender<Batch>,
        metrics: Arc<dyn Metrics>,
    ) -> Self {
        Self {
            deadline,
            clock,
            rows,
            ended: OnceLock::new(),
            metrics,
            nodes: OnceLock::new(),
            newest: Mutex::default(),
            tails: Mutex::default(),
        }
    }

    /// Hands rows over, as soon as there is room for them.
    pub(super) fn send(&self, rows: Vec<Vec<Value>>) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let sent = self.rows.blocking_send(Ok(rows));
        sent.map_err(|_| StoreError::Closed)
    }

    /// Whether it has to end.
    fn over(&self) -> bool {
        let why = if self.clock.instant() >= self.deadline {
            Ended::Late
        } else if self.rows.is_closed() {
            Ended::Alone
        } else {
            return false;
        };
        self.ended.get_or_init(|| why);
        true
    }

    /// Why it had to.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.get().copied()
    }

    pub(super) fn nodes(&self, whose: Whose<'_>) -> Result<Arc<[NamedNode]>, StoreError> {
        let Whose::All = whose else {
            return Ok(self.metrics.nodes(whose)?.into());
        };
        if let Some(nodes) = self.nodes.get() {
            return Ok(Arc::clone(nodes));
        }
        let nodes = self.metrics.nodes(whose)?;
        Ok(Arc::clone(self.nodes.get_or_init(|| nodes.into())))
    }

    pub(super) fn newest(&self, node: NodeId) -> Option<Newest> {
        let mut told = hold(&self.newest);
        let told = told.entry(node);
        told.or_insert_with(|| self.metrics.newest(node)).clone()
    }

    pub(super) fn history(
        &self,
        node: NodeId,
        name: &str,
        span: Span,
    ) -> Result<Vec<Shown>, String> {
        self.metrics.history(node, name, span)
    }

    pub(super) fn tail(&self, node: NodeId, of: Option<Incarnation>) -> Tail {
        let mut told = hold(&self.tails);
        let told = told.entry((node, of));
        *told.or_insert_with(|| self.metrics.tail(node, of))
    }
}

/// The query of one connection.
#[derive(Clone, Default)]
pub(super) struct Current(Arc<Mutex<Option<Arc<Asking>>>>);

impl Current {
    /// It is this one until what is returned is dropped.
    pub(super) fn begin(&self, asking: Arc<Asking>) -> Turn<'_> {
        *hold(&self.0) = Some(asking);
        Turn(self)
    }

    pub(super) fn get(&self) -> Option<Arc<Asking>> {
        hold(&self.0).clone()
    }

    /// Whether what runs has to end.
    pub(super) fn over(&self) -> bool {
        hold(&self.0).as_ref().is_none_or(|asking| asking.over())
    }
}

pub(super) struct Turn<'a>(&'a Current);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *hold(&self.0.0) = None;
    }
}

fn hold<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
