//! Connections that wait for the next query. They hold nothing of those who used them: what a caller may see is made
//! into a connection that is not kept, and what of a query is in memory ends with it (`current`). No statement is
//! left on them, so that they keep no snapshot of a file and its WAL can be cleared away.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::prepared::Prepared;

/// How many wait at most.
const IDLE: usize = 4;
/// What SQLite may hold for one of them; one with which a large answer left more is closed.
const IDLE_BYTES: i64 = 8 * 1024 * 1024;

/// Each with the bytes that SQLite holds for it.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<(Prepared, i64)>>);

impl Pool {
    pub(super) fn take(&self) -> Option<(Prepared, i64)> {
        self.idle().pop()
    }

    pub(super) fn put(&self, prepared: Prepared, bytes: i64) {
        let mut idle = self.idle();
        if idle.len() < IDLE && bytes <= IDLE_BYTES {
            idle.push((prepared, bytes));
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Prepared, i64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
