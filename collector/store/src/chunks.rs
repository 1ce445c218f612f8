//! Metrics as they stand on disk once they are compacted: columns of one node and a span of time.
//!
//! What is written down here holds for points, wherever they are read:
//!
//! - A chunk's reports are sorted by the node's time, whatever order they came in, and chunks may overlap: readers put
//!   points in order. Of two reports of the same time the one that came last counts; the other is counted as replaced.
//! - A report's time is the node's own, kept as it was said. One that is more than [`SKEW`] ahead of the
//!   collector's clock when it comes is kept at that time too, and counted as ahead. How long something is kept goes by when it was
//!   stored, by the collector's clock, so that no node's clock makes anything stay or go.
//! - Every double comes back to the bit: NaN with its payload, infinities, -0.0. Rollups leave NaN out of everything but `last`.
//! - A gap is no point; nothing is interpolated. A series that ends or begins has points only while it is there.

mod build;
mod bytes;
mod checks;
mod column;
mod file;
mod keep;
mod keyset;
mod raw;
mod read;
mod reading;
mod roll;
mod rolled;
mod schema;
mod unit;

use std::{io, time::Duration};

use crate::StoreError;

pub(crate) use build::{Builder, Built, Key};
pub(crate) use checks::{check_keys, check_raw, check_rollup, examples, read_raw, seal};
pub(crate) use file::{Cursor, Keep, MetricsFile, NodeBatch, Resume, resume};
pub use file::{Held, Totals};
pub(crate) use keep::Budget;
pub use read::{Answer, Ask, Known, Line, Point};
pub(crate) use read::{Samples, known, points, widen};
pub use schema::Resolution;
pub(crate) use schema::format;

/// How far ahead of the collector's clock a node's clock may be without being counted.
pub(crate) const SKEW: Duration = Duration::from_secs(600);

/// Raw chunks are gathered, and rollups of a minute made, by windows of this length, aligned to UTC.
const WINDOW_MS: i64 = 2 * HOUR_MS;
/// Windows of points of an hour.
const DAY_MS: i64 = 24 * HOUR_MS;
pub(crate) const HOUR_MS: i64 = 60 * MINUTE_MS;
const MINUTE_MS: i64 = 60_000;

/// A chunk is not what it should be, or would not be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChunkError {
    /// Written by a later version.
    #[error("its version is {0}, and this program knows version 1")]
    Version(u8),
    /// Not what was written.
    #[error("{0}")]
    Damaged(&'static str),
    /// Beyond a limit.
    #[error("it has {found} {what}, more than {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        found: u64,
        /// How many there may be.
        limit: usize,
    },
    /// Compression failed.
    #[error("zstd refused it")]
    Zstd(#[source] io::Error),
}

impl From<ChunkError> for StoreError {
    fn from(error: ChunkError) -> Self {
        Self::corrupt("a chunk of metrics", error)
    }
}

#[cfg(test)]
mod tests;
