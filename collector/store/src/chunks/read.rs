//! Points of a node's series, from what of them still exists.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use nexus_proto::{ids::NodeId, time::Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    Key,
    file::{blob, number_of},
    keyset,
    raw::{Kind, Reports, Unpacker},
    roll::rolled_points,
    rolled::{Lines, Roller, window},
    schema::Resolution,
};
use crate::{StoreError, writer::chain};

/// Which points are wanted.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    pub node: NodeId,
    pub name: &'a str,
    /// Labels that a series must have.
    pub labels: &'a [(String, String)],
    pub from: Timestamp,
    pub to: Timestamp,
    /// How far apart points should be.
    pub step: Option<Duration>,
}

impl Ask<'_> {
    pub(crate) fn wants(&self, key: &Key) -> bool {
        key.0.name == self.name
            && self
                .labels
                .iter()
                .all(|(name, value)| key.0.label(name) == Some(value))
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

/// The points that were asked for. `head` are samples that came later than all that is in the file.
pub(crate) fn points(
    connection: &Connection,
    ask: &Ask<'_>,
    head: Samples,
) -> Result<Answer, StoreError> {
    // One transaction: chunks are replaced meanwhile.
    let read = connection.unchecked_transaction()?;
    let number = number_of(&read, ask.node)?;
    let resolution = match number {
        Some(number) => choose(&read, number, ask)?,
        None => by_step(ask.step),
    };
    let length = resolution.length();
    let span = (window(ask.from.as_ms(), length), ask.to.as_ms());
    let mut lines = Lines::new();
    let mut samples = Samples::new();
    let wants = |key: &Key| ask.wants(key);
    let mut reading = Reading::some(&wants, usize::MAX);
    // What is not rolled up yet is rolled up here.
    let mut after = i64::MIN;
    if let Some(number) = number {
        let of = (number, ask.node);
        if resolution != Resolution::Raw {
            rolled_points(&read, of, resolution, span, &mut reading, &mut lines)?;
            after = last_of(&read, number, resolution)?
                .map_or(i64::MIN, |last| last.saturating_add(length));
        }
        let span = (span.0.max(after), span.1);
        samples = raw_samples(&read, of, span, &mut reading)?;
    }
    for (key, values) in head {
        if ask.wants(&key) {
            let spans = |time: i64| time >= span.0.max(after) && time <= span.1;
            let values = values.into_iter().filter(|(time, _)| spans(*time));
            samples.entry(key).or_default().extend(values);
        }
    }
    for (key, mut values) in samples {
        in_order(&mut values);
        let line = lines.entry(key.clone()).or_default();
        if resolution == Resolution::Raw {
            let points = values.into_iter();
            line.extend(points.map(|(time, value)| Point::of_sample(time, value)));
            continue;
        }
        let mut roller = Roller::new(length, key.1, line.last().map(|point| point.last));
        for (time, value) in values {
            roller.add(time, value);
        }
        line.extend(roller.finish());
    }
    Ok(Answer {
        resolution,
        lines: lines
            .into_iter()
            .filter(|(_, points)| !points.is_empty())
            .map(|(key, points)| Line { key, points })
            .collect(),
    })
}

/// The coarsest points that are as near to each other as was asked for.
fn by_step(step: Option<Duration>) -> Resolution {
    let step = step.map_or(0, |step| step.as_millis());
    let coarsest = [Resolution::Hour, Resolution::Minute].into_iter();
    coarsest
        .filter(|resolution| u128::from(resolution.length().unsigned_abs()) <= step)
        .max()
        .unwrap_or(Resolution::Raw)
}

/// What was asked for, or what is coarser when only that reaches back far enough.
fn choose(connection: &Connection, node: i64, ask: &Ask<'_>) -> Result<Resolution, StoreError> {
    let wanted = by_step(ask.step);
    let first = |resolution: Resolution| {
        let sql = format!(
            "SELECT from_ms FROM {} WHERE node = ?1 AND to_ms >= ?2 ORDER BY to_ms LIMIT 1",
            resolution.table()
        );
        let mut select = connection.prepare_cached(&sql)?;
        let first = select.query_row(params![node, ask.from.as_ms()], |row| row.get(0));
        // What it has before the span is of no use.
        let first: Option<i64> = first.optional()?;
        Ok::<_, rusqlite::Error>(first.map(|first| first.max(ask.from.as_ms())))
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

/// The last point that was rolled up.
fn last_of(
    connection: &Connection,
    node: i64,
    resolution: Resolution,
) -> Result<Option<i64>, StoreError> {
    let sql = format!(
        "SELECT max(to_ms) FROM {} WHERE node = ?1",
        resolution.table()
    );
    let mut select = connection.prepare_cached(&sql)?;
    Ok(select.query_row([node], |row| row.get(0))?)
}

/// By time; of the same time the last.
pub(super) fn in_order(values: &mut Vec<(i64, f64)>) {
    let rising = |pair: &[(i64, f64)]| matches!(pair, [a, b] if a.0 < b.0);
    if !values.windows(2).all(rising) {
        values.sort_by_key(|(time, _)| *time);
        values.reverse();
        values.dedup_by_key(|(time, _)| *time);
        values.reverse();
    }
}

/// How chunks are read: which series of them, and how many values at most.
pub(super) struct Reading<'a> {
    wanted: &'a dyn Fn(&Key) -> bool,
    /// How many more there may be.
    left: usize,
    /// How many there may be.
    most: usize,
    /// One that is damaged is told of and passed over. Else it is an error.
    passes_over: bool,
}

impl<'a> Reading<'a> {
    /// Fails at what is damaged, and at more values than that.
    pub(super) fn some(wanted: &'a dyn Fn(&Key) -> bool, most: usize) -> Self {
        Self {
            wanted,
            left: most,
            most,
            passes_over: false,
        }
    }

    /// All that can be read.
    pub(super) fn all() -> Self {
        Self {
            wanted: &|_| true,
            left: usize::MAX,
            most: usize::MAX,
            passes_over: true,
        }
    }

    pub(super) fn wants(&self, key: &Key) -> bool {
        (self.wanted)(key)
    }

    /// Counts values that are about to be held.
    pub(super) fn count(&mut self, values: usize) -> Result<(), StoreError> {
        let left = self.left.checked_sub(values);
        self.left = left.ok_or(StoreError::TooMany(self.most))?;
        Ok(())
    }

    /// What was read of a chunk; `None` if it is damaged and can be passed over.
    pub(super) fn readable<T>(&self, read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error @ StoreError::Corrupt { .. }) if self.passes_over => {
                tracing::error!(error = chain(&error), "metrics are lost");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// What raw chunks have between two times, both included.
pub(super) fn raw_samples(
    connection: &Connection,
    (number, node): (i64, NodeId),
    (from, to): (i64, i64),
    reading: &mut Reading<'_>,
) -> Result<Samples, StoreError> {
    let mut samples = Samples::new();
    let mut keys = KeyLists::default();
    let mut unpacker = Unpacker::new()?;
    let mut chunks = connection.prepare_cached(
        "SELECT id, keyset, body FROM raw WHERE node = ?1 AND to_ms >= ?2 AND from_ms <= ?3 ORDER BY id",
    )?;
    let mut chunks = chunks.query(params![number, from, to])?;
    while let Some(row) = chunks.next()? {
        let list = keys.get(connection, row.get(1)?);
        let Some(keys) = reading.readable(list)? else {
            continue;
        };
        let wanted: Vec<bool> = keys.iter().map(|key| reading.wants(key)).collect();
        if !wanted.contains(&true) {
            continue;
        }
        let read = unpacker
            .unpack(Kind::Raw, blob(row, 2)?)
            .and_then(|body| {
                let wanted = |index: usize| wanted.get(index) == Some(&true);
                Reports::read(body, keys.len(), wanted)
            })
            .map_err(|e| {
                let id: i64 = row.get(0).unwrap_or_default();
                StoreError::corrupt(&format!("chunk {id} of raw metrics of node {node}"), e)
            });
        let Some(reports) = reading.readable(read)? else {
            continue;
        };
        for series in &reports.series {
            if let Some(key) = keys.get(series.index) {
                let found = reports.points(series);
                let found = found.filter(|(time, _)| (from..=to).contains(time));
                let values = samples.entry(key.clone()).or_default();
                let before = values.len();
                values.extend(found);
                reading.count(values.len() - before)?;
            }
        }
    }
    Ok(samples)
}

/// Key sets that were read already.
#[derive(Debug, Default)]
pub(super) struct KeyLists(HashMap<i64, Vec<Key>>);

impl KeyLists {
    pub(super) fn get(&mut self, connection: &Connection, id: i64) -> Result<&[Key], StoreError> {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.0.entry(id) {
            let list: Option<([u8; 32], Vec<u8>)> = connection
                .prepare_cached("SELECT hash, body FROM keysets WHERE id = ?1")?
                .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let what = || format!("list {id} of series");
            let (hash, body) = list.ok_or_else(|| StoreError::Corrupt {
                what: what(),
                source: None,
            })?;
            let keys = keyset::read(&body, Some(hash));
            vacant.insert(keys.map_err(|e| StoreError::corrupt(&what(), e))?);
        }
        Ok(self.0.get(&id).map(Vec::as_slice).unwrap_or_default())
    }
}
