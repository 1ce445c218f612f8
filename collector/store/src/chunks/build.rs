//! Reports of one node become chunks.

use std::{collections::HashMap, sync::Arc};

use nexus_proto::{
    limits,
    metrics::{SeriesKey, SeriesType},
    time::Timestamp,
};

use super::{
    ChunkError, SKEW, WINDOW_MS,
    column::Columns,
    raw::{self, Kind, Packer, Ranges},
    rolled::window,
};

/// From a chunk's first report to its last: whoever reads or rolls up a window reads no chunk that is far from it.
const SPAN_MS: u64 = 4 * WINDOW_MS.unsigned_abs();

/// What makes a series: a series that changes its type is another one.
pub(crate) type Key = (Arc<SeriesKey>, SeriesType);

/// A chunk of one node, ready to be stored.
#[derive(Debug)]
pub(crate) struct Built {
    /// Its series, in the order of its columns.
    pub(crate) keys: Vec<Key>,
    /// The first and the last report's time.
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    #[cfg_attr(not(test), expect(dead_code, reason = "tests look at it"))]
    pub(crate) reports: usize,
    pub(crate) samples: usize,
    /// Reports that were left out: another one of the same time came later.
    pub(crate) replaced: usize,
    /// Reports whose time was beyond [`SKEW`] ahead of the collector's when they came.
    pub(crate) ahead: usize,
    /// The windows of two hours that its reports are in, by their beginnings.
    pub(crate) windows: Vec<i64>,
    pub(crate) body: Vec<u8>,
}

/// Builds the chunks of one node after another.
pub(crate) struct Builder {
    packer: Packer,
    gathered: Gathered,
    done: Vec<Built>,
    columns: Columns,
    values: Vec<f64>,
    body: Vec<u8>,
}

/// The reports of the chunk that is being built.
#[derive(Default)]
struct Gathered {
    keys: Vec<Key>,
    /// Of all of them.
    key_bytes: usize,
    /// Empty until a report comes whose series are others than those of the one before.
    places: HashMap<Key, usize>,
    /// Which column each sample of a report belongs to. Reports mostly have the series of the one before, in the
    /// same order.
    orders: Vec<Vec<usize>>,
    rows: Vec<Row>,
    /// Of all rows.
    values: Vec<f64>,
    /// The first and the last time.
    span: Option<(i64, i64)>,
    ahead: usize,
}

#[derive(Clone, Copy)]
struct Row {
    time: i64,
    interval: u32,
    /// Its place in `orders`.
    order: usize,
    /// Where its values begin.
    start: usize,
}

impl Builder {
    pub(crate) fn new() -> Result<Self, ChunkError> {
        Ok(Self {
            packer: Packer::new()?,
            gathered: Gathered::default(),
            done: Vec::new(),
            columns: Columns::default(),
            values: Vec::new(),
            body: Vec::new(),
        })
    }

    /// Adds the report that came next, at `received` by the collector's clock.
    pub(crate) fn push<'a>(
        &mut self,
        time: Timestamp,
        received: Timestamp,
        interval_ms: u32,
        samples: impl Iterator<Item = (&'a Arc<SeriesKey>, SeriesType, f64)> + Clone,
    ) -> Result<(), ChunkError> {
        let ahead = time.since(received) > SKEW;
        let row = (time.as_ms(), interval_ms);
        if !self.gathered.take_in(row, samples.clone()) {
            self.seal()?;
            if !self.gathered.take_in(row, samples) {
                return Err(ChunkError::TooMany {
                    what: "series in a report",
                    found: u64::MAX,
                    limit: limits::CHUNK_SERIES,
                });
            }
        }
        self.gathered.ahead += usize::from(ahead);
        Ok(())
    }

    /// The chunks of what was added since the last time; then the next node may begin.
    pub(crate) fn finish(&mut self) -> Result<Vec<Built>, ChunkError> {
        self.seal()?;
        Ok(std::mem::take(&mut self.done))
    }

    fn seal(&mut self) -> Result<(), ChunkError> {
        let gathered = &mut self.gathered;
        let came = gathered.rows.len();
        gathered.sort();
        let (Some(first), Some(last)) = (gathered.rows.first(), gathered.rows.last()) else {
            return Ok(());
        };
        let (from, to) = (Timestamp(first.time), Timestamp(last.time));
        let whole = gathered.orders.len() == 1;
        let inverse: Vec<Vec<Option<usize>>> = gathered
            .orders
            .iter()
            .map(|order| inverse(order, gathered.keys.len()))
            .collect();
        self.columns.clear();
        let mut partial: Vec<(usize, Ranges)> = Vec::new();
        let mut samples = 0;
        for column in 0..gathered.keys.len() {
            self.values.clear();
            let mut ranges = Ranges::new();
            for (index, row) in gathered.rows.iter().enumerate() {
                let place = inverse.get(row.order).and_then(|places| places.get(column));
                let value = place
                    .copied()
                    .flatten()
                    .and_then(|place| gathered.values.get(row.start + place));
                let Some(value) = value else {
                    continue;
                };
                self.values.push(*value);
                if !whole {
                    match ranges.last_mut() {
                        Some((_, end)) if *end == index => *end += 1,
                        _ => ranges.push((index, index + 1)),
                    }
                }
            }
            if self.values.len() < gathered.rows.len() {
                partial.push((column, ranges));
            }
            samples += self.values.len();
            self.columns.push(&self.values);
        }
        let reports: Vec<(i64, u32)> = gathered
            .rows
            .iter()
            .map(|row| (row.time, row.interval))
            .collect();
        let mut windows: Vec<i64> = reports
            .iter()
            .map(|(time, _)| window(*time, WINDOW_MS))
            .collect();
        windows.dedup();
        self.body.clear();
        raw::write(
            &mut self.body,
            &reports,
            gathered.keys.len(),
            &partial,
            &self.columns,
        );
        let body = self.packer.pack(Kind::Raw, &self.body)?;
        self.done.push(Built {
            from,
            to,
            reports: reports.len(),
            samples,
            replaced: came - reports.len(),
            ahead: gathered.ahead,
            windows,
            body,
            keys: std::mem::take(&mut gathered.keys),
        });
        gathered.clear();
        Ok(())
    }
}

impl Gathered {
    fn clear(&mut self) {
        self.keys.clear();
        self.key_bytes = 0;
        self.places.clear();
        self.orders.clear();
        self.rows.clear();
        self.values.clear();
        self.span = None;
        self.ahead = 0;
    }

    /// Takes a report in, unless the chunk would then be beyond its limits.
    fn take_in<'a>(
        &mut self,
        (time, interval): (i64, u32),
        samples: impl Iterator<Item = (&'a Arc<SeriesKey>, SeriesType, f64)>,
    ) -> bool {
        let (first, last) = self.span.unwrap_or((time, time));
        let span = (first.min(time), last.max(time));
        if span.1.abs_diff(span.0) > SPAN_MS {
            return false;
        }
        let (start, known) = (self.values.len(), self.keys.len());
        let order = self.place(samples);
        let fits = self.rows.len() < limits::CHUNK_REPORTS
            && self.keys.len() <= limits::CHUNK_SERIES
            && self.key_bytes <= limits::CHUNK_KEY_BYTES
            && (self.rows.len() + 1) * self.keys.len() <= limits::CHUNK_CELLS;
        if !fits {
            self.values.truncate(start);
            for key in self.keys.drain(known..) {
                self.key_bytes -= key.0.bytes();
                self.places.remove(&key);
            }
            return false;
        }
        let order = match order {
            Placed::AsBefore => self.orders.len().saturating_sub(1),
            Placed::Anew(order) => {
                self.orders.push(order);
                self.orders.len() - 1
            }
        };
        self.span = Some(span);
        self.rows.push(Row {
            time,
            interval,
            order,
            start,
        });
        true
    }

    /// Adds the values, and says which columns they belong to.
    fn place<'a>(
        &mut self,
        samples: impl Iterator<Item = (&'a Arc<SeriesKey>, SeriesType, f64)>,
    ) -> Placed {
        let before = self.orders.last();
        let (mut same, mut known) = (0, self.keys.len());
        let mut other: Option<Vec<usize>> = None;
        for (key, kind, value) in samples {
            if other.is_none() {
                let expected = before.and_then(|order| order.get(same));
                let expected = expected.and_then(|column| self.keys.get(*column));
                if expected.is_some_and(|(known, of)| Arc::ptr_eq(known, key) && *of == kind) {
                    same += 1;
                    self.values.push(value);
                    continue;
                }
            }
            let order = other.get_or_insert_with(|| {
                let same = before.and_then(|order| order.get(..same));
                same.unwrap_or_default().to_vec()
            });
            let place = find(&mut self.keys, &mut self.places, key, kind);
            if self.keys.len() > known {
                known = self.keys.len();
                self.key_bytes += key.bytes();
            }
            order.push(place);
            self.values.push(value);
        }
        match (other, before) {
            (Some(order), _) => Placed::Anew(order),
            (None, Some(order)) if order.len() == same => Placed::AsBefore,
            (None, order) => {
                let same = order.and_then(|order| order.get(..same));
                Placed::Anew(same.unwrap_or_default().to_vec())
            }
        }
    }

    /// In order of time; of those of the same time the last that came.
    fn sort(&mut self) {
        let rising = |pair: &[Row]| matches!(pair, [a, b] if a.time < b.time);
        if self.rows.windows(2).all(rising) {
            return;
        }
        self.rows.sort_by_key(|row| row.time);
        self.rows.reverse();
        self.rows.dedup_by_key(|row| row.time);
        self.rows.reverse();
    }
}

enum Placed {
    AsBefore,
    Anew(Vec<usize>),
}

/// The column of a series, a new one if it has none.
fn find(
    keys: &mut Vec<Key>,
    places: &mut HashMap<Key, usize>,
    key: &Arc<SeriesKey>,
    kind: SeriesType,
) -> usize {
    if places.len() < keys.len() {
        places.extend(keys.iter().cloned().zip(0..));
    }
    let fresh = keys.len();
    let key = (Arc::clone(key), kind);
    let place = *places.entry(key.clone()).or_insert(fresh);
    if place == fresh {
        keys.push(key);
    }
    place
}

/// For every column the place of its sample in reports of this order.
fn inverse(order: &[usize], columns: usize) -> Vec<Option<usize>> {
    let mut inverse = vec![None; columns];
    for (place, column) in order.iter().enumerate() {
        if let Some(entry) = inverse.get_mut(*column) {
            *entry = Some(place);
        }
    }
    inverse
}
