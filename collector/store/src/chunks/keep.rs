//! What happens to chunks as time goes by: those that are too old, or too many, go, in small steps, and the file
//! gives back the room.

use nexus_proto::time::Timestamp;

use super::{file::MetricsFile, schema::Resolution};
use crate::{StoreError, db};

/// Free pages are left to what is written next: one in so many of all.
const SLACK: u64 = 16;
/// And at least so many.
const SLACK_PAGES: u64 = 256;

/// How much one step may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Windows of nodes to roll up.
    pub(crate) windows: usize,
    /// Chunks to remove.
    pub(crate) chunks: usize,
    /// Pages to give back.
    pub(crate) pages: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            windows: 64,
            chunks: 2000,
            pages: 4000,
        }
    }
}

/// What one step did. With nothing done there is nothing left to do for now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stepped {
    pub(crate) windows: usize,
    pub(crate) chunks: usize,
    pub(crate) pages: u64,
}

impl Stepped {
    pub(crate) fn worked(&self) -> bool {
        *self != Self::default()
    }
}

impl MetricsFile {
    /// Does some of what is due, in one transaction at most for each thing.
    pub(crate) fn step(&mut self, now: Timestamp, budget: Budget) -> Result<Stepped, StoreError> {
        let chunks = self.remove_old(now, budget.chunks)?;
        Ok(Stepped {
            windows: 0,
            chunks,
            pages: self.give_back(budget.pages)?,
        })
    }

    fn remove_old(&mut self, now: Timestamp, most: usize) -> Result<usize, StoreError> {
        let mut doomed: Vec<(Resolution, i64)> = Vec::new();
        for resolution in Resolution::ALL {
            let limit = now.before(self.keep.of(resolution));
            let oldest = self.oldest(resolution, most - doomed.len())?;
            let old = oldest.into_iter().take_while(|(_, stored)| *stored < limit);
            doomed.extend(old.map(|(id, _)| (resolution, id)));
        }
        if doomed.is_empty() && self.totals()?.bytes > self.keep.bytes {
            for resolution in Resolution::ALL {
                let oldest = self.oldest(resolution, most)?;
                doomed.extend(oldest.into_iter().map(|(id, _)| (resolution, id)));
                if !doomed.is_empty() {
                    break;
                }
            }
        }
        if doomed.is_empty() {
            return Ok(0);
        }
        let mut writing = self.begin(now)?;
        for (resolution, id) in &doomed {
            writing.remove(*resolution, *id)?;
        }
        writing.end()?;
        Ok(doomed.len())
    }

    /// The oldest chunks with when they were stored.
    fn oldest(
        &self,
        resolution: Resolution,
        most: usize,
    ) -> Result<Vec<(i64, Timestamp)>, StoreError> {
        let sql = format!(
            "SELECT id, stored_ms FROM {} ORDER BY id LIMIT ?1",
            resolution.table()
        );
        let mut select = self.connection.prepare_cached(&sql)?;
        let rows = select.query_map([super::file::size(most)], |row| {
            Ok((row.get(0)?, Timestamp(row.get(1)?)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn give_back(&self, most: u64) -> Result<u64, StoreError> {
        let (free, pages) = self.pages()?;
        let slack = (pages / SLACK).max(SLACK_PAGES);
        let back = free.saturating_sub(slack).min(most);
        if back > 0 {
            db::shrink(&self.connection, back)?;
        }
        Ok(back)
    }
}
