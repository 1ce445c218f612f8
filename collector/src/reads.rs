//! Reads of the store block a thread for as long as they take: those that may be long get one of their own.

use nexus_runtime::tasks::Tasks;
use nexus_store::{Store, StoreError};

/// Runs a read off the async threads.
pub(crate) async fn read<T: Send + 'static>(
    tasks: &Tasks,
    store: &Store,
    what: &'static str,
    read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let store = store.clone();
    let work = tasks.spawn_blocking(what, move || read(&store));
    match work.await {
        Ok(result) => result,
        // It panicked, or the runtime is ending.
        Err(_) => Err(StoreError::Closed),
    }
}
