//! Sessions: who is connected, what they may send, what is sent to them.
//!
//! A session begins with a Hello that is judged (`hello`), stands in the `registry` while its control
//! stream lives (`control`), and brings records on one call per lane (`upload`). An ack is sent after the
//! store has committed and applied, never before.

pub(crate) mod control;
pub(crate) mod credit;
pub(crate) mod hello;
pub(crate) mod ingest;
pub(crate) mod registry;
pub(crate) mod service;
pub(crate) mod upload;

use std::{sync::Arc, time::Duration};

use nexus_proto::metrics::KeyPool;
use nexus_runtime::{clock::Clock, tasks::Tasks};
use nexus_store::Store;
use tokio::sync::Semaphore;

use crate::{
    addresses::Addresses, enrolment::Enrolment, jobs::hints::Hints, pages::metrics::Metrics,
    trust::Trust,
};
use registry::Registry;

/// How much the collector takes in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The widest window of one lane.
    pub(crate) upload_credit: u64,
    /// Commits of metrics wait so long for each other.
    pub(crate) gather: Duration,
    /// Windows shrink while commits take longer.
    pub(crate) commit_latency: Duration,
    /// Sessions at the same time.
    pub(crate) sessions: usize,
}

/// Memory of records that are decoded and not stored yet, over all sessions, in KiB.
pub(crate) const INTAKE_KIB: usize = 64 * 1024;

/// Uploads of inventory that may send at the same time.
const INVENTORY_UPLOADS: usize = 64;
/// Of the processors, the part that keeps inventory at most.
const INVENTORY_SHARE: usize = 4;

/// Inventory takes turns. A node that joins tells all of its own, which costs more than everything else about joining:
/// a crowd that did so at once would take memory for all of it, and keep Hellos and metrics waiting behind it.
#[derive(Debug)]
pub(crate) struct Turns {
    /// For sending.
    pub(crate) sending: Arc<Semaphore>,
    /// For being stored, what was read of one frame at a time.
    pub(crate) storing: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            sending: Arc::new(Semaphore::new(INVENTORY_UPLOADS)),
            storing: Semaphore::new((processors / INVENTORY_SHARE).max(1)),
        }
    }
}

/// What sessions are made of.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) store: Store,
    pub(crate) registry: Arc<Registry>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) enrolment: Arc<Enrolment>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) addresses: Addresses,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
    /// The names of all nodes' series.
    pub(crate) keys: KeyPool,
    /// Permits of one KiB of [`INTAKE_KIB`].
    pub(crate) intake: Arc<Semaphore>,
    /// Who may send inventory, and whose may be in the store's hands.
    pub(crate) inventory: Turns,
    /// Ends when the collector takes no more.
    pub(crate) tasks: Tasks,
}
