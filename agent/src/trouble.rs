//! What keeps the agent from doing its work, for whoever has to know: the log, and the collector.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nexus_proto::time::Timestamp;
use nexus_runtime::errors::chain;
use tokio::sync::Notify;

use crate::spool::Spool;

/// Troubles by what they are about.
#[derive(Debug, Default)]
pub struct Troubles {
    lasting: Mutex<BTreeMap<&'static str, String>>,
    changed: Notify,
}

impl Troubles {
    /// Something does not work, and why.
    pub fn begin(&self, what: &'static str, why: String) {
        self.lasting().insert(what, why);
        self.changed.notify_one();
    }

    /// It works again.
    pub fn end(&self, what: &'static str) {
        self.lasting().remove(what);
        self.changed.notify_one();
    }

    /// All of them in words; empty when there is none.
    #[must_use]
    pub fn text(&self) -> String {
        let lasting = self.lasting();
        let all: Vec<_> = lasting
            .iter()
            .map(|(what, why)| format!("{what}: {why}"))
            .collect();
        all.join("; ")
    }

    /// Resolves when one has begun or ended since the last time this did. For one waiter.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lasting(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.lasting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says once that something cannot be stored, and once that it can be again: what was missed meanwhile is an
/// event, so that the hole is explained where it shows.
#[derive(Debug)]
pub(crate) struct Storing {
    what: &'static str,
    troubles: Arc<Troubles>,
    since: Option<Timestamp>,
    missed: u64,
}

impl Storing {
    pub(crate) fn new(what: &'static str, troubles: Arc<Troubles>) -> Self {
        Self {
            what,
            troubles,
            since: None,
            missed: 0,
        }
    }

    /// Whether it was stored.
    pub(crate) fn note<T, E: std::error::Error>(
        &mut self,
        stored: &Result<T, E>,
        now: Timestamp,
        spool: &Spool,
    ) -> bool {
        let what = self.what;
        match (stored, self.since) {
            (Err(error), since) => {
                if since.is_none() {
                    let why = chain(error).to_string();
                    tracing::error!(error = why, "{what} cannot be stored");
                    self.troubles.begin(what, why);
                    self.since = Some(now);
                }
                self.missed += 1;
                false
            }
            (Ok(_), None) => true,
            (Ok(_), Some(since)) => {
                let message = format!(
                    "{what} could not be stored from {since} to {now}; {} tries failed",
                    self.missed
                );
                tracing::info!("{message}");
                if let Err(error) = spool.event(now, "spool_recovered", &message) {
                    tracing::error!(error = %chain(&error), "an event cannot be stored");
                }
                self.troubles.end(what);
                self.since = None;
                self.missed = 0;
                true
            }
        }
    }
}
