//! Points of a node's series, from what of them still exists.
//!
//! Windows that are rolled up are read from the rollup. Those that are still to be, or are to be made anew, are rolled
//! up here, and so is what came after all chunks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use nexus_proto::{ids::NodeId, metrics::SeriesKey, time::Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    DAY_MS, Key, WINDOW_MS,
    file::number_of,
    reading::{KeyLists, Reading, in_order, raw_samples, rolled_points},
    roll::{last_before, renew},
    rolled::{Lines, Roller, window},
    schema::Resolution,
};
use crate::StoreError;

/// Spans that are read one by one; of more, all that is between them is read too.
const SPANS: usize = 16;

/// Which points are wanted.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    pub node: NodeId,
    /// Of which series.
    pub wanted: &'a dyn Fn(&SeriesKey) -> bool,
    pub from: Timestamp,
    pub to: Timestamp,
    /// How far apart points should be.
    pub step: Option<Duration>,
    /// How many values may be read for it.
    pub most: usize,
}

impl fmt::Debug for Ask<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, from, to, .. } = self;
        write!(f, "Ask({node}, {from} to {to}, {:?})", self.step)
    }
}

/// What there is of one series between two times.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Of a sample, or when the minute or hour begins.
    pub time: Timestamp,
    pub min: f64,
    pub max: f64,
    pub sum: f64,
    /// Values that are not NaN.
    pub count: u64,
    /// NaN too, if it was.
    pub last: f64,
    /// Of a counter in a minute or hour.
    pub increase: Option<f64>,
}

impl Point {
    pub(crate) fn of_sample(time: i64, value: f64) -> Self {
        Self {
            time: Timestamp(time),
            min: value,
            max: value,
            sum: value,
            count: u64::from(!value.is_nan()),
            last: value,
            increase: None,
        }
    }
}

/// The points of one series, in order of time.
#[derive(Debug)]
pub struct Line {
    pub key: Key,
    pub points: Vec<Point>,
}

/// What was found.
#[derive(Debug)]
pub struct Answer {
    pub resolution: Resolution,
    pub lines: Vec<Line>,
}

/// Samples by series, in the order in which they came.
pub(crate) type Samples = BTreeMap<Key, Vec<(i64, f64)>>;

/// Series, and between which times there is something of each.
pub type Known = BTreeMap<Arc<SeriesKey>, (Timestamp, Timestamp)>;

/// The points that were asked for. `head` are samples that came later than all that is in the file.
pub(crate) fn points(
    connection: &Connection,
    ask: &Ask<'_>,
    head: Samples,
) -> Result<Answer, StoreError> {
    // One transaction: chunks are replaced meanwhile.
    let read = connection.unchecked_transaction()?;
    // Numbers begin at 1.
    let number = number_of(&read, ask.node)?.unwrap_or(0);
    let resolution = choose(&read, number, ask)?;
    let wanted = |key: &Key| (ask.wanted)(&key.0);
    let mut source = Source {
        tx: &read,
        of: (number, ask.node),
        head,
        reading: Reading::some(&wanted, ask.most),
    };
    let span = (
        window(ask.from.as_ms(), resolution.length()),
        ask.to.as_ms(),
    );
    let lines = match resolution {
        Resolution::Raw => source.raw(span)?,
        Resolution::Minute => source.minutes(span)?,
        Resolution::Hour => source.hours(span)?,
    };
    Ok(Answer {
        resolution,
        lines: lines
            .into_iter()
            .filter(|(_, points)| !points.is_empty())
            .map(|(key, points)| Line { key, points })
            .collect(),
    })
}

/// Which of the series that are asked for are in chunks, whenever that was.
pub(crate) fn known(connection: &Connection, ask: &Ask<'_>) -> Result<Known, StoreError> {
    let read = connection.unchecked_transaction()?;
    let mut known = Known::new();
    let Some(number) = number_of(&read, ask.node)? else {
        return Ok(known);
    };
    for resolution in Resolution::ALL {
        let sql = format!(
            "SELECT keyset, min(from_ms), max(to_ms) FROM {} WHERE node = ?1 GROUP BY keyset",
            resolution.table()
        );
        let mut lists = read.prepare_cached(&sql)?;
        let mut lists = lists.query([number])?;
        while let Some(row) = lists.next()? {
            let span = (Timestamp(row.get(1)?), Timestamp(row.get(2)?));
            // One at a time: a node may have had many.
            let mut keys = KeyLists::default();
            let keys = keys.get(&read, row.get(0)?)?.iter();
            for (key, _) in keys.filter(|(key, _)| (ask.wanted)(key)) {
                widen(&mut known, key, span);
                if known.len() > ask.most {
                    return Err(StoreError::TooMany(ask.most));
                }
            }
        }
    }
    Ok(known)
}

pub(crate) fn widen(
    known: &mut Known,
    key: &Arc<SeriesKey>,
    (first, last): (Timestamp, Timestamp),
) {
    let span = known.entry(Arc::clone(key)).or_insert((first, last));
    *span = (span.0.min(first), span.1.max(last));
}

/// The coarsest points that a step of that length is made of.
fn by_step(step: Option<Duration>) -> Resolution {
    let step = step.map_or(0, |step| step.as_millis());
    let coarsest = [Resolution::Hour, Resolution::Minute].into_iter();
    coarsest
        .filter(|resolution| {
            let length = u128::from(resolution.length().unsigned_abs());
            length <= step && step.is_multiple_of(length)
        })
        .max()
        .unwrap_or(Resolution::Raw)
}

/// What was asked for, or what is coarser when only that reaches back far enough.
fn choose(connection: &Connection, node: i64, ask: &Ask<'_>) -> Result<Resolution, StoreError> {
    let wanted = by_step(ask.step);
    let from = ask.from.as_ms();
    let first = |resolution: Resolution| {
        let sql = format!(
            "SELECT from_ms, to_ms FROM {} WHERE node = ?1 AND to_ms >= ?2 ORDER BY to_ms LIMIT 1",
            resolution.table()
        );
        let mut select = connection.prepare_cached(&sql)?;
        // What is there from shortly before says that nothing of the span is gone: it only began with an outage.
        let first = select.query_row(params![node, from.saturating_sub(DAY_MS)], |row| {
            Ok((row.get(0)?, row.get(1)?))
        });
        let first: Option<(i64, i64)> = first.optional()?;
        let begins = |(first, last): (i64, i64)| if last < from { from } else { first.max(from) };
        Ok::<_, rusqlite::Error>(first.map(begins))
    };
    let mut begins = first(wanted)?;
    let mut chosen = wanted;
    for coarser in Resolution::ALL.into_iter().filter(|r| *r > wanted) {
        let earlier = first(coarser)?.filter(|earlier| {
            let next = earlier.saturating_add(coarser.length());
            *earlier <= ask.to.as_ms() && begins.is_none_or(|begins| next <= begins)
        });
        if earlier.is_some() {
            (chosen, begins) = (coarser, earlier);
        }
    }
    Ok(chosen)
}

/// Where points are made of.
struct Source<'a> {
    tx: &'a Connection,
    of: (i64, NodeId),
    head: Samples,
    reading: Reading<'a>,
}

impl Source<'_> {
    /// Samples between two times, both included, by time.
    fn samples(&mut self, (from, to): (i64, i64)) -> Result<Samples, StoreError> {
        let mut samples = raw_samples(self.tx, self.of, (from, to), &mut self.reading)?;
        for (key, values) in &self.head {
            let values = values.iter().copied();
            let mut values = values
                .filter(|(time, _)| (from..=to).contains(time))
                .peekable();
            if self.reading.wants(key) && values.peek().is_some() {
                samples.entry(key.clone()).or_default().extend(values);
            }
        }
        samples.values_mut().for_each(in_order);
        Ok(samples)
    }

    fn raw(&mut self, span: (i64, i64)) -> Result<Lines, StoreError> {
        let of_sample = |(time, value)| Point::of_sample(time, value);
        let samples = self.samples(span)?.into_iter();
        Ok(samples
            .map(|(key, values)| (key, values.into_iter().map(of_sample).collect()))
            .collect())
    }

    fn minutes(&mut self, span: (i64, i64)) -> Result<Lines, StoreError> {
        let mut lines = self.rolled(Resolution::Minute, span)?;
        for open in spans(&self.open(Resolution::Minute, span)?, WINDOW_MS, span) {
            let mut previous = last_before(self.tx, self.of, open.0, &mut self.reading)?;
            let made = self.samples(open)?.into_iter().map(|(key, values)| {
                let mut roller =
                    Roller::new(Resolution::Minute.length(), key.1, previous.remove(&key));
                for (time, value) in values {
                    roller.add(time, value);
                }
                (key, roller.finish())
            });
            renew(&mut lines, made.collect());
        }
        Ok(lines)
    }

    fn hours(&mut self, span: (i64, i64)) -> Result<Lines, StoreError> {
        let mut lines = self.rolled(Resolution::Hour, span)?;
        let mut open = self.open(Resolution::Hour, span)?;
        let minutes = self.open(Resolution::Minute, span)?.into_iter();
        open.extend(minutes.map(|start| window(start, DAY_MS)));
        for open in spans(&open, DAY_MS, span) {
            let made = self.minutes(open)?.into_iter().map(|(key, points)| {
                let mut roller = Roller::new(Resolution::Hour.length(), key.1, None);
                for point in points {
                    roller.add_point(point);
                }
                (key, roller.finish())
            });
            renew(&mut lines, made.collect());
        }
        Ok(lines)
    }

    fn rolled(&mut self, resolution: Resolution, span: (i64, i64)) -> Result<Lines, StoreError> {
        let mut lines = Lines::new();
        rolled_points(
            self.tx,
            self.of,
            resolution,
            span,
            &mut self.reading,
            &mut lines,
        )?;
        Ok(lines)
    }

    /// The windows that are still to be rolled up, by their beginnings.
    fn open(
        &self,
        resolution: Resolution,
        (from, to): (i64, i64),
    ) -> Result<BTreeSet<i64>, StoreError> {
        let length = resolution.window();
        let mut due = self.tx.prepare_cached(
            "SELECT window_ms FROM due WHERE node = ?1 AND resolution = ?2 AND window_ms BETWEEN ?3 AND ?4",
        )?;
        let span = params![self.of.0, resolution.number(), window(from, length), to];
        let due = due.query_map(span, |row| row.get(0))?;
        let mut open: BTreeSet<i64> = due.collect::<Result<_, _>>()?;
        let times = self.head.values().flatten().map(|(time, _)| *time);
        let times = times.filter(|time| (from..=to).contains(time));
        open.extend(times.map(|time| window(time, length)));
        Ok(open)
    }
}

/// What windows of a length come to, those next to each other as one, within a span.
fn spans(windows: &BTreeSet<i64>, length: i64, (from, to): (i64, i64)) -> Vec<(i64, i64)> {
    let mut spans: Vec<(i64, i64)> = Vec::new();
    for start in windows {
        let end = start.saturating_add(length - 1).min(to);
        match spans.last_mut() {
            Some(open) if open.1 >= start - 1 => open.1 = end,
            _ => spans.push(((*start).max(from), end)),
        }
    }
    match (spans.first(), spans.last()) {
        (Some(first), Some(last)) if spans.len() > SPANS => vec![(first.0, last.1)],
        _ => spans,
    }
}
