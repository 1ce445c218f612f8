//! Values of the series that are wanted, out of chunks.

use std::collections::{BTreeMap, HashMap};

use nexus_proto::ids::NodeId;
use rusqlite::{Connection, OptionalExtension as _};

use super::{
    ChunkError, Key, Point, Samples,
    file::blob,
    keyset,
    raw::{Kind, Reports, Unpacker},
    rolled::{self, Lines},
    schema::Resolution,
};
use crate::{StoreError, writer::chain};

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
    of: (i64, NodeId),
    span: (i64, i64),
    reading: &mut Reading<'_>,
) -> Result<Samples, StoreError> {
    let form = Form {
        kind: Kind::Raw,
        order: "id",
        read: |body, keys, wanted| {
            let reports = Reports::read(body, keys.len(), wanted)?;
            let series = reports.series.iter();
            Ok(series
                .map(|series| (series.index, reports.points(series).collect()))
                .collect())
        },
        time: |(time, _)| *time,
    };
    let mut samples = Samples::new();
    add(
        connection,
        of,
        Resolution::Raw,
        span,
        reading,
        &form,
        &mut samples,
    )?;
    Ok(samples)
}

/// Adds the points of minutes or hours between two times, both included, to what is there, by time.
pub(super) fn rolled_points(
    connection: &Connection,
    of: (i64, NodeId),
    resolution: Resolution,
    span: (i64, i64),
    reading: &mut Reading<'_>,
    lines: &mut Lines,
) -> Result<(), StoreError> {
    let form = Form {
        kind: Kind::Rollup,
        order: "to_ms",
        read: |body, keys, wanted| rolled::read(body, keys, wanted),
        time: |point: &Point| point.time.as_ms(),
    };
    add(connection, of, resolution, span, reading, &form, lines)
}

/// Values by the place of their series in a key set.
type Found<T> = Vec<(usize, Vec<T>)>;
/// Reads the series that are wanted of a body with these keys.
type Read<T> = fn(&[u8], &[Key], &dyn Fn(usize) -> bool) -> Result<Found<T>, ChunkError>;

/// How chunks of one kind are read.
struct Form<T> {
    kind: Kind,
    /// The column they are taken in the order of.
    order: &'static str,
    read: Read<T>,
    time: fn(&T) -> i64,
}

/// Adds what chunks have between two times, both included.
fn add<T>(
    connection: &Connection,
    (number, node): (i64, NodeId),
    resolution: Resolution,
    (from, to): (i64, i64),
    reading: &mut Reading<'_>,
    form: &Form<T>,
    values: &mut BTreeMap<Key, Vec<T>>,
) -> Result<(), StoreError> {
    let mut keys = KeyLists::default();
    let mut unpacker = Unpacker::new()?;
    let table = resolution.table();
    let sql = format!(
        "SELECT id, keyset, body FROM {table} WHERE node = ?1 AND to_ms >= ?2 AND from_ms <= ?3
         ORDER BY {}",
        form.order
    );
    let mut chunks = connection.prepare_cached(&sql)?;
    let mut chunks = chunks.query([number, from, to])?;
    while let Some(row) = chunks.next()? {
        let list = keys.get(connection, row.get(1)?);
        let Some(keys) = reading.readable(list)? else {
            continue;
        };
        let wanted: Vec<bool> = keys.iter().map(|key| reading.wants(key)).collect();
        if !wanted.contains(&true) {
            continue;
        }
        let wanted = |index: usize| wanted.get(index) == Some(&true);
        let read = unpacker
            .unpack(form.kind, blob(row, 2)?)
            .and_then(|body| (form.read)(body, keys, &wanted))
            .map_err(|e| {
                let id: i64 = row.get(0).unwrap_or_default();
                StoreError::corrupt(
                    &format!("chunk {id} of {table} in the metrics of node {node}"),
                    e,
                )
            });
        for (index, found) in reading.readable(read)?.into_iter().flatten() {
            if let Some(key) = keys.get(index) {
                let spans = |value: &T| (from..=to).contains(&(form.time)(value));
                let line = values.entry(key.clone()).or_default();
                let before = line.len();
                line.extend(found.into_iter().filter(spans));
                reading.count(line.len() - before)?;
            }
        }
    }
    Ok(())
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
