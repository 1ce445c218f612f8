//! Hints that a job changed. Who misses one looks a little later; nothing depends on them.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nexus_proto::ids::JobId;
use tokio::sync::Notify;

/// Jobs that changed since the scheduler last looked.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    changed: Mutex<Changed>,
    notify: Notify,
}

/// Which jobs, by what changed.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// Their rows: they are new, or somebody cancelled them.
    pub(crate) rows: BTreeSet<JobId>,
    /// Nothing but how far some of their runs are.
    pub(crate) runs: BTreeSet<JobId>,
}

impl Hints {
    /// Something about the job itself changed.
    pub(crate) fn changed(&self, job: JobId) {
        self.lock().rows.insert(job);
        self.notify.notify_one();
    }

    /// Runs of the job began or ended.
    pub(crate) fn ran(&self, job: JobId) {
        self.lock().runs.insert(job);
        self.notify.notify_one();
    }

    /// Jobs that changed since the last call.
    pub(crate) fn take(&self) -> Changed {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when there may be some.
    pub(crate) async fn wait(&self) {
        self.notify.notified().await;
    }
}
