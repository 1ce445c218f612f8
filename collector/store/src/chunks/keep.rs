//! What happens to chunks as time goes by: those that are too old, or too many, go, in small steps, and the file
//! gives back the room.

use nexus_proto::time::Timestamp;
use rusqlite::params;

use super::{file::MetricsFile, roll::Work, schema::Resolution};
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

struct Chunk {
    id: i64,
    stored: Timestamp,
    bytes: u64,
}

impl MetricsFile {
    /// Does some of what is due, in one transaction at most for each thing. None of them waits for another that fails.
    pub(crate) fn step(&mut self, now: Timestamp, budget: Budget) -> Result<Stepped, StoreError> {
        let windows = self.roll(now, budget.windows);
        let chunks = self.remove_old(now, budget.chunks);
        let pages = self.give_back(budget.pages);
        Ok(Stepped {
            windows: windows?,
            chunks: chunks?,
            pages: pages?,
        })
    }

    fn remove_old(&mut self, now: Timestamp, most: usize) -> Result<usize, StoreError> {
        let mut doomed: Vec<(Resolution, i64)> = Vec::new();
        for resolution in Resolution::ALL {
            self.bring_back(resolution, now, most)?;
            let limit = now.before(self.keep.of(resolution));
            let most = most - doomed.len();
            self.oldest(resolution, most, |chunk| {
                let old = chunk.stored < limit;
                if old {
                    doomed.push((resolution, chunk.id));
                }
                old
            })?;
        }
        let excess = self.totals()?.bytes.saturating_sub(self.keep.bytes);
        for resolution in Resolution::ALL {
            if excess == 0 || !doomed.is_empty() {
                break;
            }
            let mut bytes = 0;
            self.oldest(resolution, most, |chunk| {
                let more = bytes < excess;
                if more {
                    bytes += chunk.bytes;
                    doomed.push((resolution, chunk.id));
                }
                more
            })?;
        }
        if doomed.is_empty() {
            return Ok(0);
        }
        let mut writing = self.begin(now)?;
        let mut work = Work::new()?;
        for (resolution, id) in &doomed {
            work.roll_before(&mut writing, *resolution, *id)?;
            writing.remove(*resolution, *id)?;
        }
        writing.end()?;
        Ok(doomed.len())
    }

    /// Chunks that were stored by a clock that was ahead count as stored now, once they are the oldest: else they would
    /// stay until then, and all that was stored after them.
    fn bring_back(
        &self,
        resolution: Resolution,
        now: Timestamp,
        most: usize,
    ) -> Result<(), StoreError> {
        let mut ahead = false;
        self.oldest(resolution, 1, |chunk| {
            ahead = chunk.stored > now;
            false
        })?;
        if ahead {
            let table = resolution.table();
            let sql = format!(
                "UPDATE {table} SET stored_ms = ?1 WHERE stored_ms > ?1
                   AND id IN (SELECT id FROM {table} ORDER BY id LIMIT ?2)"
            );
            self.connection
                .execute(&sql, params![now.as_ms(), super::file::size(most)])?;
        }
        Ok(())
    }

    /// Chunks in the order they were stored in, while more are wanted.
    fn oldest(
        &self,
        resolution: Resolution,
        most: usize,
        mut each: impl FnMut(Chunk) -> bool,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "SELECT id, stored_ms, length(body) FROM {} ORDER BY id LIMIT ?1",
            resolution.table()
        );
        let mut select = self.connection.prepare_cached(&sql)?;
        let mut rows = select.query([super::file::size(most)])?;
        while let Some(row) = rows.next()? {
            let more = each(Chunk {
                id: row.get(0)?,
                stored: Timestamp(row.get(1)?),
                bytes: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
            });
            if !more {
                break;
            }
        }
        Ok(())
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
