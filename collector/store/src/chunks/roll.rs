//! When rollups are made. A window of a node is due some time after it ended, and again when something came late.
//!
//! A due window is made anew from what is finer. A point that was made of more samples than are still there stays as it
//! is, and what came late for it is counted.

use std::collections::BTreeMap;

use nexus_proto::{ids::NodeId, time::Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    Built, DAY_MS, HOUR_MS, Key, MINUTE_MS, WINDOW_MS,
    file::{MetricsFile, Writing},
    raw::Packer,
    reading::{self, Reading, rolled_points},
    rolled::{self, Lines, Roller, window},
    schema::Resolution,
};
use crate::{StoreError, writer::chain};

/// Samples that are held in memory at the same time.
const SAMPLES: i64 = 1_000_000;

impl Resolution {
    /// How far apart its points are; raw ones may be as near as they like.
    pub(super) fn length(self) -> i64 {
        match self {
            Self::Raw => 1,
            Self::Minute => MINUTE_MS,
            Self::Hour => HOUR_MS,
        }
    }

    /// The span of its windows.
    pub(super) fn window(self) -> i64 {
        match self {
            Self::Raw | Self::Minute => WINDOW_MS,
            Self::Hour => DAY_MS,
        }
    }
}

/// A window of a node that must be rolled up.
#[derive(Debug, Clone, Copy)]
struct Due {
    node: i64,
    resolution: Resolution,
    window: i64,
}

impl MetricsFile {
    /// Rolls up some of the windows that are due.
    pub(super) fn roll(&mut self, now: Timestamp, most: usize) -> Result<usize, StoreError> {
        let due = {
            let mut select = self.connection.prepare_cached(
                "SELECT node, resolution, window_ms FROM due WHERE due_ms <= ?1
                 ORDER BY due_ms LIMIT ?2",
            )?;
            let rows = select.query_map(params![now.as_ms(), super::file::size(most)], due)?;
            rows.collect::<Result<Vec<_>, _>>()?
        };
        if due.is_empty() {
            return Ok(0);
        }
        let mut writing = self.begin(now)?;
        let mut work = Work::new()?;
        for due in &due {
            work.roll(&mut writing, *due)?;
        }
        writing.end()?;
        Ok(due.len())
    }
}

fn due(row: &rusqlite::Row<'_>) -> rusqlite::Result<Due> {
    let resolution: i64 = row.get(1)?;
    let minutes = resolution == Resolution::Minute.number();
    Ok(Due {
        node: row.get(0)?,
        resolution: if minutes {
            Resolution::Minute
        } else {
            Resolution::Hour
        },
        window: row.get(2)?,
    })
}

/// What one rollup after another uses.
pub(super) struct Work {
    packer: Packer,
}

impl Work {
    pub(super) fn new() -> Result<Self, StoreError> {
        Ok(Self {
            packer: Packer::new()?,
        })
    }

    /// Rolls up all windows of a chunk that are still to be.
    pub(super) fn roll_before(
        &mut self,
        writing: &mut Writing<'_>,
        resolution: Resolution,
        chunk: i64,
    ) -> Result<(), StoreError> {
        let coarser = match resolution {
            Resolution::Raw => Resolution::Minute,
            Resolution::Minute => Resolution::Hour,
            Resolution::Hour => return Ok(()),
        };
        let due = {
            let sql = format!(
                "SELECT due.node, resolution, window_ms FROM due, {table} chunk
                 WHERE chunk.id = ?1 AND due.node = chunk.node AND resolution = ?2
                   AND window_ms > from_ms - ?3 AND window_ms <= to_ms",
                table = resolution.table()
            );
            let mut select = writing.tx.prepare_cached(&sql)?;
            let of = params![chunk, coarser.number(), coarser.window()];
            let rows = select.query_map(of, due)?;
            rows.collect::<Result<Vec<_>, _>>()?
        };
        for due in due {
            self.roll(writing, due)?;
        }
        Ok(())
    }

    fn roll(&mut self, writing: &mut Writing<'_>, due: Due) -> Result<(), StoreError> {
        let (resolution, start) = (due.resolution, due.window);
        match self.make(writing, due) {
            Ok(made) => {
                for id in made.instead_of {
                    writing.remove(resolution, id)?;
                }
                for built in made.chunks {
                    writing.insert(resolution, due.node, writing.now, &built)?;
                }
                writing.count("late", usize::try_from(made.late).unwrap_or(usize::MAX));
                if resolution == Resolution::Minute {
                    writing.mark(due.node, Resolution::Hour, window(start, DAY_MS), DAY_MS)?;
                }
            }
            // It would be so the next time too, and whatever is due after it would wait for good.
            Err(error @ StoreError::Corrupt { .. }) => {
                tracing::error!(
                    error = chain(&error),
                    "a window of metrics is not rolled up"
                );
            }
            Err(error) => return Err(error),
        }
        writing
            .tx
            .prepare_cached(
                "DELETE FROM due WHERE node = ?1 AND resolution = ?2 AND window_ms = ?3",
            )?
            .execute(params![due.node, resolution.number(), start])?;
        Ok(())
    }

    /// Makes the chunks of a window, and writes nothing.
    fn make(&mut self, writing: &Writing<'_>, due: Due) -> Result<Made, StoreError> {
        let (tx, resolution) = (&writing.tx, due.resolution);
        let span = (
            due.window,
            due.window.saturating_add(resolution.window() - 1),
        );
        let of = (due.node, node_id(tx, due.node)?);
        let made = match resolution {
            Resolution::Hour => hours(tx, of, span)?,
            _ => minutes(tx, of, span)?,
        };
        let instead_of = chunks_of(tx, due.node, resolution, span)?;
        let mut lines = Lines::new();
        if !instead_of.is_empty() {
            let mut all = Reading::all();
            rolled_points(tx, of, resolution, span, &mut all, &mut lines)?;
        }
        let late = renew(&mut lines, made);
        Ok(Made {
            chunks: rolled::build(&mut self.packer, &lines, resolution.length())?,
            instead_of,
            late,
        })
    }
}

/// What a window comes to.
struct Made {
    chunks: Vec<Built>,
    /// Those that were there.
    instead_of: Vec<i64>,
    /// Samples that came too late.
    late: u64,
}

fn node_id(tx: &Connection, number: i64) -> Result<NodeId, StoreError> {
    let bytes: Option<Vec<u8>> = tx
        .prepare_cached("SELECT node FROM nodes WHERE id = ?1")?
        .query_row([number], |row| row.get(0))
        .optional()?;
    NodeId::from_wire(&bytes.unwrap_or_default())
        .map_err(|e| StoreError::corrupt("the number of a node's metrics", e))
}

/// Points of minutes from raw chunks.
fn minutes(
    tx: &Connection,
    of: (i64, NodeId),
    (start, end): (i64, i64),
) -> Result<Lines, StoreError> {
    let samples: i64 = tx
        .prepare_cached(
            "SELECT coalesce(sum(samples), 0) FROM raw WHERE node = ?1 AND to_ms >= ?2 AND from_ms <= ?3",
        )?
        .query_row(params![of.0, start, end], |row| row.get(0))?;
    // A node with very many series is taken in pieces.
    let pieces = (samples / SAMPLES + 1).min(WINDOW_MS / MINUTE_MS);
    let piece = window(WINDOW_MS / pieces, MINUTE_MS).max(MINUTE_MS);
    let mut previous = last_before(tx, of, start, &mut Reading::all())?;
    let mut lines = Lines::new();
    let mut from = start;
    while from <= end {
        let to = from.saturating_add(piece - 1).min(end);
        for (key, mut values) in reading::raw_samples(tx, of, (from, to), &mut Reading::all())? {
            reading::in_order(&mut values);
            let mut roller = Roller::new(MINUTE_MS, key.1, previous.get(&key).copied());
            for (time, value) in values {
                roller.add(time, value);
            }
            if let Some(last) = roller.previous {
                previous.insert(key.clone(), last);
            }
            lines.entry(key).or_default().extend(roller.finish());
        }
        let Some(next) = to.checked_add(1) else {
            break;
        };
        from = next;
    }
    Ok(lines)
}

/// The last value of each series before a time, as far as the window before it that was rolled up last has it.
pub(super) fn last_before(
    tx: &Connection,
    (number, node): (i64, NodeId),
    start: i64,
    reading: &mut Reading<'_>,
) -> Result<BTreeMap<Key, f64>, StoreError> {
    let before: Option<i64> = tx
        .prepare_cached(
            "SELECT to_ms FROM minutes WHERE node = ?1 AND from_ms < ?2 ORDER BY to_ms DESC LIMIT 1",
        )?
        .query_row([number, start], |row| row.get(0))
        .optional()?;
    let mut lines = Lines::new();
    if let Some(before) = before {
        let end = start.saturating_sub(1);
        // A window may have several chunks.
        let span = (window(before.min(end), WINDOW_MS), end);
        let of = (number, node);
        rolled_points(tx, of, Resolution::Minute, span, reading, &mut lines)?;
    }
    let last = |points: Vec<super::Point>| {
        let values = points.into_iter().rev().map(|point| point.last);
        values.into_iter().find(|last| !last.is_nan())
    };
    Ok(lines
        .into_iter()
        .filter_map(|(key, points)| Some((key, last(points)?)))
        .collect())
}

/// Points of hours from those of minutes.
fn hours(tx: &Connection, of: (i64, NodeId), span: (i64, i64)) -> Result<Lines, StoreError> {
    let mut lines = Lines::new();
    rolled_points(
        tx,
        of,
        Resolution::Minute,
        span,
        &mut Reading::all(),
        &mut lines,
    )?;
    for ((_, kind), points) in &mut lines {
        let mut roller = Roller::new(HOUR_MS, *kind, None);
        for point in std::mem::take(points) {
            roller.add_point(point);
        }
        *points = roller.finish();
    }
    Ok(lines)
}

/// Chunks of rollups of a window that are there already.
fn chunks_of(
    tx: &Connection,
    node: i64,
    resolution: Resolution,
    (start, end): (i64, i64),
) -> Result<Vec<i64>, StoreError> {
    let sql = format!(
        "SELECT id FROM {} WHERE node = ?1 AND to_ms >= ?2 AND from_ms <= ?3",
        resolution.table()
    );
    let mut select = tx.prepare_cached(&sql)?;
    let rows = select.query_map([node, start, end], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Puts points that were made anew in the place of those that are known, unless they are of fewer samples: then some of
/// theirs are gone. Says of how many samples they were that are not used then.
pub(super) fn renew(known: &mut Lines, made: Lines) -> u64 {
    let mut late = 0;
    for (key, points) in made {
        let line = known.entry(key).or_default();
        for point in points {
            match line.binary_search_by_key(&point.time, |known| known.time) {
                Ok(place) => match line.get_mut(place) {
                    Some(known) if point.count < known.count => late += point.count,
                    Some(known) => *known = point,
                    None => {}
                },
                Err(place) => line.insert(place, point),
            }
        }
    }
    late
}
