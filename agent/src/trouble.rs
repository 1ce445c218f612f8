//! What keeps the agent from doing its work, for whoever has to know: the log, and the collector.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

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
