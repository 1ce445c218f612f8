//! Hints about which runs of a job changed, for who watches it. One that is missed costs nothing but time: the rows say
//! what is.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use nexus_proto::ids::{JobId, NodeId};
use tokio::sync::Notify;

/// One watcher's view of a job. A node may be in it that has no run of the job and only named it; the rows say what is.
#[derive(Debug, Default)]
pub struct Watch {
    nodes: Mutex<BTreeSet<NodeId>>,
    notify: Notify,
}

impl Watch {
    /// Resolves when the job, its runs or their output changed since this was called last. For one waiter.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Nodes whose runs changed since this was called last.
    #[must_use]
    pub fn take(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut *self.nodes())
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who watches which job. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watches(Arc<Mutex<HashMap<JobId, Vec<Weak<Watch>>>>>);

impl Watches {
    pub(crate) fn watch(&self, job: JobId) -> Arc<Watch> {
        let watch = Arc::<Watch>::default();
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|_, of| {
            of.retain(|watch| watch.strong_count() > 0);
            !of.is_empty()
        });
        watches.entry(job).or_default().push(Arc::downgrade(&watch));
        watch
    }

    /// The job changed, and its runs on these nodes.
    pub(crate) fn touch(&self, job: JobId, nodes: &BTreeSet<NodeId>) {
        let watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for watch in watches.get(&job).into_iter().flatten() {
            if let Some(watch) = watch.upgrade() {
                watch.nodes().extend(nodes);
                watch.notify.notify_one();
            }
        }
    }
}
