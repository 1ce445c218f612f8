//! Hints that a job changed. Who misses one looks a little later; nothing depends on them.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use nexus_proto::ids::JobId;
use tokio::sync::Notify;

/// Jobs that changed since the scheduler last looked.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    changed: Mutex<BTreeSet<JobId>>,
    notify: Notify,
}

impl Hints {
    /// Something about the job changed.
    pub(crate) fn changed(&self, job: JobId) {
        self.changed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(job);
        self.notify.notify_one();
    }

    /// Jobs that changed since the last call.
    pub(crate) fn take(&self) -> BTreeSet<JobId> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resolves when there may be some.
    pub(crate) async fn wait(&self) {
        self.notify.notified().await;
    }
}
