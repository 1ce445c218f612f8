//! Hints that something about a job changed: a number a job, which rises.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use nexus_proto::ids::JobId;
use tokio::sync::watch;

/// Clones share the numbers. Only jobs that somebody watches have one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watches(Arc<Mutex<HashMap<JobId, watch::Sender<u64>>>>);

impl Watches {
    pub(crate) fn watch(&self, job: JobId) -> watch::Receiver<u64> {
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|_, sender| sender.receiver_count() > 0);
        watches
            .entry(job)
            .or_insert_with(|| watch::channel(0).0)
            .subscribe()
    }

    pub(crate) fn touch(&self, job: JobId) {
        let watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watches.get(&job) {
            sender.send_modify(|version| *version += 1);
        }
    }
}
