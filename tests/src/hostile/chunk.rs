//! Chunks of compacted metrics as they stand on disk.
//!
//! Whatever the bytes are, reading ends, with what they hold or a reason, and within the memory that limits allow;
//! what is built of any reports reads the same, to the bit.

use std::{collections::BTreeMap, sync::Arc};

use nexus_proto::{
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    time::Timestamp,
};
use nexus_store::inside::chunks;

use super::fixture::{Input, NOW};

pub(super) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    let series = usize::from(choice / 8);
    let sealed = |kind| chunks::sealed(kind, rest).expect("compressed");
    match choice % 8 {
        0 => drop(chunks::raw_chunk(rest, series)),
        1 => drop(chunks::raw_chunk(&sealed('r'), series)),
        2 => drop(chunks::rollup_chunk(rest, series)),
        3 => drop(chunks::rollup_chunk(&sealed('u'), series)),
        4 => drop(chunks::key_list(rest)),
        5 => drop(chunks::key_list(&sealed('k'))),
        _ => built(rest),
    }
}

/// Reports, each with its time as a step from the one before, then values: a byte says which series, and how its eight
/// bytes are meant.
fn built(bytes: &[u8]) {
    let keys: Vec<Arc<SeriesKey>> = (0..16)
        .map(|n| Arc::new(SeriesKey::new("a", &[("n", &format!("{n:02}"))])))
        .collect();
    let mut parts = Input(bytes);
    let mut reports: chunks::Reports = Vec::new();
    let mut time = NOW.as_ms();
    while !parts.is_empty() && reports.len() < 200 {
        let step = i64::from(parts.byte());
        time += (step - 10) * 1000;
        let interval_ms = u32::from(parts.byte());
        let mut values: BTreeMap<u8, f64> = BTreeMap::new();
        for _ in 0..parts.byte() % 17 {
            let form = parts.byte();
            values.insert(form % 16, value(form / 16, parts.take(8)));
        }
        let samples = values.into_iter().filter_map(|(number, value)| {
            Some(Sample {
                key: Arc::clone(keys.get(usize::from(number))?),
                kind: SeriesType::Counter,
                value,
            })
        });
        let snapshot = Snapshot {
            interval_ms,
            samples: samples.collect(),
        };
        reports.push((Timestamp(time), Arc::new(snapshot)));
    }
    let mut expected: BTreeMap<Arc<SeriesKey>, BTreeMap<Timestamp, u64>> = BTreeMap::new();
    let last: BTreeMap<Timestamp, &Arc<Snapshot>> = reports
        .iter()
        .map(|(time, snapshot)| (*time, snapshot))
        .collect();
    for (time, snapshot) in last {
        for sample in &snapshot.samples {
            let line = expected.entry(Arc::clone(&sample.key)).or_default();
            line.insert(time, sample.value.to_bits());
        }
    }
    let found = chunks::build_and_read(&reports).expect("what was just built");
    let found: BTreeMap<Arc<SeriesKey>, BTreeMap<Timestamp, u64>> = found
        .into_iter()
        .map(|(key, _, values)| {
            let values = values
                .into_iter()
                .map(|(time, value)| (time, value.to_bits()));
            (key, values.collect())
        })
        .filter(|(_, values): &(_, BTreeMap<_, _>)| !values.is_empty())
        .collect();
    assert_eq!(found, expected);
}

/// As bits, or small numbers of some digits.
#[expect(clippy::cast_precision_loss, reason = "any double will do")]
fn value(form: u8, bytes: &[u8]) -> f64 {
    let mut eight = [0; 8];
    for (place, byte) in eight.iter_mut().zip(bytes) {
        *place = *byte;
    }
    let small = i64::from_le_bytes(eight) >> 40;
    match form % 4 {
        0 => f64::from_le_bytes(eight),
        1 => small as f64,
        2 => small as f64 / 100.0,
        _ => small as f64 / 1000.0 / 1000.0,
    }
}
