//! What operators may ask, on port 7461: one service, behind one layer (`gate`) that authorizes, audits,
//! names and counts every call, so that no call can forget to.

pub(crate) mod authorize;
pub(crate) mod chain;
pub(crate) mod fleet;
pub(crate) mod gate;
pub(crate) mod history;
pub(crate) mod login;
pub(crate) mod service;
pub(crate) mod status;
pub(crate) mod watch;
pub(crate) mod work;

use std::sync::Arc;

use nexus_pki::authority::Authority;
use nexus_runtime::{clock::Clock, tasks::Tasks};
use nexus_store::Store;
use tokio::sync::watch::Receiver;

use crate::{
    addresses::Addresses, codes::Codes, config::QueryLimits, jobs::submit::Jobs,
    pages::metrics::Metrics, refusals::Refusals, sessions::registry::Registry, trust::Trust,
};

/// What operators' calls work with.
pub(crate) struct Operators {
    pub(crate) store: Store,
    pub(crate) authority: Arc<Authority>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) jobs: Jobs,
    pub(crate) codes: Codes,
    pub(crate) refusals: Refusals,
    pub(crate) addresses: Addresses,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    pub(crate) query: Receiver<QueryLimits>,
}
