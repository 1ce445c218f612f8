//! Connections that wait for the next query. They hold nothing of those who used them: what a caller may see is made
//! into a connection that is not kept, and what of a query is in memory ends with it (`current`). No statement is
//! left on them, so that they keep no snapshot of a file and its WAL can be cleared away; what they keep in memory is
//! their pages of the files (`prepared::CACHE_KB`) and the schemas.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::prepared::Prepared;

/// How many wait at most.
const IDLE: usize = 4;

#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Prepared>>);

impl Pool {
    pub(super) fn take(&self) -> Option<Prepared> {
        self.idle().pop()
    }

    pub(super) fn put(&self, prepared: Prepared) {
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(prepared);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Prepared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
