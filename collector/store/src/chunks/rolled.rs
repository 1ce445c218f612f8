//! Points of minutes and hours, and the form of a chunk of them.
//!
//! A window's `sum`, `count`, `min` and `max` are of its values without NaN; `last` is the last one, even NaN. With no
//! value but NaN the count is 0, and the extremes are NaN. A counter's `increase` adds what each value is above the one before,
//! or the value itself where it is lower: then the counter began again. The value before may be of an earlier window or chunk; the
//! first that is known of a series adds nothing. What a counter rose during a gap counts where its points begin again.
//!
//! The body begins like that of a raw chunk, with windows as reports. Each series has the columns last, min, max, sum and
//! count, and increase if it is a counter. The extremes are differences from `last` in its unit. So are the sum, from
//! `count` times it, and the increase, from what `last` rose, unless their own unit says that they are plain doubles.
//! Sums and increases of decimals are rounded to as many digits.

use std::collections::{BTreeMap, BTreeSet};

use nexus_proto::{limits, metrics::SeriesType, time::Timestamp};

use super::{
    Built, ChunkError, Key, Point,
    bytes::Bytes,
    column::{self, Column, Columns},
    raw::{self, Head, Kind, Packer, Ranges},
    unit::Unit,
};

/// Columns of a series.
const FIELDS: usize = 6;
const INTEGERS: Unit = Unit::Decimal(nexus_proto::metrics::Scale::WHOLE);

/// Points by series.
pub(super) type Lines = BTreeMap<Key, Vec<Point>>;

/// Puts values or points of one series, in order, into windows.
#[derive(Debug)]
pub(super) struct Roller {
    length: i64,
    counter: bool,
    /// The value before, if it is known.
    pub(super) previous: Option<f64>,
    points: Vec<Point>,
}

impl Roller {
    pub(super) fn new(length: i64, kind: SeriesType, previous: Option<f64>) -> Self {
        Self {
            length,
            counter: kind == SeriesType::Counter,
            previous,
            points: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, time: i64, value: f64) {
        let mut point = Point::of_sample(time, value);
        if point.count == 0 {
            point.sum = 0.0;
        }
        if self.counter {
            point.increase = Some(match self.previous {
                _ if value.is_nan() => 0.0,
                Some(before) if value < before => value,
                Some(before) => value - before,
                None => 0.0,
            });
        }
        if !value.is_nan() {
            self.previous = Some(value);
        }
        self.add_point(point);
    }

    pub(super) fn add_point(&mut self, point: Point) {
        let start = window(point.time.as_ms(), self.length);
        match self.points.last_mut() {
            Some(open) if open.time.as_ms() == start => {
                // `min` and `max` prefer what is not NaN.
                open.min = open.min.min(point.min);
                open.max = open.max.max(point.max);
                open.sum += point.sum;
                open.count += point.count;
                open.last = point.last;
                open.increase = open.increase.zip(point.increase).map(|(a, b)| a + b);
            }
            _ => self.points.push(Point {
                time: Timestamp(start),
                ..point
            }),
        }
    }

    pub(super) fn finish(self) -> Vec<Point> {
        self.points
    }
}

/// When the window begins that a time is in.
pub(super) fn window(time: i64, length: i64) -> i64 {
    time.div_euclid(length).saturating_mul(length)
}

/// A series and its points.
type Entry<'a> = (&'a Key, &'a Vec<Point>);

/// Makes chunks of points that are so far apart; more than one where limits ask for it.
pub(super) fn build(
    packer: &mut Packer,
    lines: &Lines,
    length: i64,
) -> Result<Vec<Built>, ChunkError> {
    let mut built = Vec::new();
    for lines in groups(lines) {
        let points = lines.iter().flat_map(|(_, points)| points.iter());
        let times: BTreeSet<i64> = points.map(|point| point.time.as_ms()).collect();
        let times: Vec<i64> = times.into_iter().collect();
        let most = limits::CHUNK_CELLS / (FIELDS * lines.len().max(1));
        for times in times.chunks(most.clamp(1, limits::CHUNK_REPORTS)) {
            built.extend(build_one(packer, &lines, times, length)?);
        }
    }
    Ok(built)
}

/// The series by as many as one chunk may have.
fn groups(lines: &Lines) -> Vec<Vec<Entry<'_>>> {
    let mut groups: Vec<Vec<Entry<'_>>> = Vec::new();
    let mut bytes = 0;
    for entry in lines {
        bytes += entry.0.0.bytes();
        match groups.last_mut() {
            Some(group)
                if group.len() < limits::CHUNK_SERIES && bytes <= limits::CHUNK_KEY_BYTES =>
            {
                group.push(entry);
            }
            _ => {
                bytes = entry.0.0.bytes();
                groups.push(vec![entry]);
            }
        }
    }
    groups
}

fn build_one(
    packer: &mut Packer,
    lines: &[Entry<'_>],
    times: &[i64],
    length: i64,
) -> Result<Option<Built>, ChunkError> {
    let (Some(from), Some(to)) = (times.first(), times.last()) else {
        return Ok(None);
    };
    let mut keys = Vec::new();
    let mut partial: Vec<(usize, Ranges)> = Vec::new();
    let mut columns = Columns::default();
    let mut samples = 0;
    for (key, points) in lines {
        let first = points.partition_point(|point| point.time.as_ms() < *from);
        let end = points.partition_point(|point| point.time.as_ms() <= *to);
        let points = points.get(first..end).unwrap_or_default();
        if points.is_empty() {
            continue;
        }
        if points.len() < times.len() {
            partial.push((keys.len(), ranges(points, times)));
        }
        push(&mut columns, points);
        samples += points.iter().map(|point| point.count).sum::<u64>();
        keys.push((*key).clone());
    }
    let interval = u32::try_from(length).unwrap_or(u32::MAX);
    let windows: Vec<(i64, u32)> = times.iter().map(|time| (*time, interval)).collect();
    let mut body = Vec::new();
    raw::write(&mut body, &windows, keys.len(), &partial, &columns);
    Ok(Some(Built {
        body: packer.pack(Kind::Rollup, &body)?,
        keys,
        from: Timestamp(*from),
        to: Timestamp(*to),
        reports: times.len(),
        samples: usize::try_from(samples).unwrap_or(usize::MAX),
        replaced: 0,
        ahead: 0,
        windows: Vec::new(),
    }))
}

fn ranges(points: &[Point], times: &[i64]) -> Ranges {
    let mut ranges = Ranges::new();
    let mut points = points.iter().peekable();
    for (row, time) in times.iter().enumerate() {
        if points
            .next_if(|point| point.time.as_ms() == *time)
            .is_none()
        {
            continue;
        }
        match ranges.last_mut() {
            Some((_, end)) if *end == row => *end += 1,
            _ => ranges.push((row, row + 1)),
        }
    }
    ranges
}

fn push(columns: &mut Columns, points: &[Point]) {
    let fields: [fn(&Point) -> f64; 3] = [|p| p.last, |p| p.min, |p| p.max];
    let values: Vec<f64> = fields
        .iter()
        .flat_map(|field| points.iter().map(field))
        .collect();
    let mut mantissas = Vec::new();
    let unit = Unit::fit(&values, &mut mantissas);
    let (last, extremes) = mantissas.split_at(points.len());
    let (min, max) = extremes.split_at(points.len());
    let below = |extreme: &[i64]| -> Vec<i64> {
        let pairs = last.iter().zip(extreme);
        pairs
            .map(|(last, extreme)| last.wrapping_sub(*extreme))
            .collect()
    };
    columns.push_integers(unit, last);
    columns.push_integers(unit, &below(min));
    columns.push_integers(unit, &below(max));

    let counts: Vec<i64> = points
        .iter()
        .map(|point| point.count.cast_signed())
        .collect();
    let expected: Vec<i64> = last
        .iter()
        .zip(&counts)
        .map(|(last, count)| last.wrapping_mul(*count))
        .collect();
    push_near(columns, unit, points.iter().map(|p| p.sum), &expected);
    columns.push_integers(INTEGERS, &counts);
    let increases: Vec<f64> = points.iter().filter_map(|point| point.increase).collect();
    if increases.len() == points.len() {
        push_near(columns, unit, increases.into_iter(), &rises(last));
    }
}

/// Adds how far values are from what is expected of them, or the values when they are no decimals.
fn push_near(
    columns: &mut Columns,
    unit: Unit,
    values: impl Iterator<Item = f64> + Clone,
    expected: &[i64],
) {
    let near: Option<Vec<i64>> = values
        .clone()
        .zip(expected)
        .map(|(value, expected)| unit.near(value).map(|near| expected.wrapping_sub(near)))
        .collect();
    match near {
        Some(near) => columns.push_integers(unit, &near),
        None => {
            let bits: Vec<i64> = values.map(|value| value.to_bits().cast_signed()).collect();
            columns.push_integers(Unit::Bits, &bits);
        }
    }
}

/// How far each is above the one before.
fn rises(last: &[i64]) -> Vec<i64> {
    let before = std::iter::once(last.first()).chain(last.iter().map(Some));
    let pairs = last.iter().zip(before.flatten());
    pairs
        .map(|(last, before)| last.wrapping_sub(*before))
        .collect()
}

/// Reads the series that are wanted of a body with these keys.
pub(super) fn read(
    body: &[u8],
    keys: &[Key],
    wanted: impl Fn(usize) -> bool,
) -> Result<Vec<(usize, Vec<Point>)>, ChunkError> {
    let mut bytes = Bytes(body);
    let head = Head::read(&mut bytes, keys.len(), FIELDS)?;
    let all = [(0, head.times.len())];
    let partial: BTreeMap<usize, &Ranges> = head.partial.iter().map(|(n, r)| (*n, r)).collect();
    let ranges = |index: usize| partial.get(&index).map_or(all.as_slice(), |r| r.as_slice());
    let mut counts = Vec::with_capacity(keys.len() * FIELDS);
    for (index, (_, kind)) in keys.iter().enumerate() {
        let count = ranges(index).iter().map(|(from, to)| to - from).sum();
        let increases = if *kind == SeriesType::Counter {
            count
        } else {
            0
        };
        counts.extend([count, count, count, count, count, increases]);
    }
    let columns = column::read(&mut bytes, &counts, |column| wanted(column / FIELDS))?;
    if !bytes.0.is_empty() {
        return Err(ChunkError::Damaged("something follows its end"));
    }
    let mut columns = columns.into_iter().peekable();
    let mut found = Vec::new();
    for index in 0..keys.len() {
        let mut fields: Vec<Column> = Vec::with_capacity(FIELDS);
        while let Some((_, column)) = columns.next_if(|(column, _)| column / FIELDS == index) {
            fields.push(column);
        }
        if fields.is_empty() {
            continue;
        }
        let rows = ranges(index).iter().flat_map(|(from, to)| *from..*to);
        let times = rows.filter_map(|row| head.times.get(row).copied());
        found.push((index, points(times, &fields)?));
    }
    Ok(found)
}

fn points(times: impl Iterator<Item = i64>, fields: &[Column]) -> Result<Vec<Point>, ChunkError> {
    let [last, min, max, sum, count, increase @ ..] = fields else {
        return Err(ChunkError::Damaged("a column is missing"));
    };
    let unit = last.unit;
    if min.unit != unit || max.unit != unit || count.unit != INTEGERS {
        return Err(ChunkError::Damaged("a column has another unit"));
    }
    let expected: Vec<i64> = last
        .mantissas
        .iter()
        .zip(&count.mantissas)
        .map(|(last, count)| last.wrapping_mul(*count))
        .collect();
    let sums = near(unit, sum, &expected)?;
    let increases = match increase.first() {
        Some(increase) => near(unit, increase, &rises(&last.mantissas))?,
        None => Vec::new(),
    };
    let mut increases = increases.into_iter();
    let mut found = Vec::with_capacity(sums.len());
    let rows = times
        .zip(&last.mantissas)
        .zip(min.mantissas.iter().zip(&max.mantissas))
        .zip(count.mantissas.iter().zip(sums));
    for (((time, last), (min, max)), (count, sum)) in rows {
        found.push(Point {
            time: Timestamp(time),
            min: unit.value(last.wrapping_sub(*min)),
            max: unit.value(last.wrapping_sub(*max)),
            sum,
            count: u64::try_from(*count)
                .map_err(|_| ChunkError::Damaged("a count is below zero"))?,
            last: unit.value(*last),
            increase: increases.next(),
        });
    }
    Ok(found)
}

fn near(unit: Unit, column: &Column, expected: &[i64]) -> Result<Vec<f64>, ChunkError> {
    if column.unit == Unit::Bits {
        return Ok(column.values().collect());
    }
    if column.unit != unit {
        return Err(ChunkError::Damaged("a column has another unit"));
    }
    let pairs = expected.iter().zip(&column.mantissas);
    let values = pairs.map(|(expected, below)| unit.value(expected.wrapping_sub(*below)));
    Ok(values.collect())
}
