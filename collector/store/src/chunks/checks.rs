//! Bytes that may or may not be chunks, for the fuzz target.

use std::sync::Arc;

use nexus_proto::{
    metrics::{SeriesKey, SeriesType},
    time::Timestamp,
};

use super::{
    Builder, Built, ChunkError, Key, MINUTE_MS, Samples, keyset,
    raw::{Kind, Packer, Reports, Unpacker},
    rolled,
};

/// What a raw chunk of these series holds.
pub(crate) fn read_raw(chunk: &[u8], keys: &[Key]) -> Result<Samples, ChunkError> {
    let mut unpacker = Unpacker::new()?;
    let reports = Reports::read(unpacker.unpack(Kind::Raw, chunk)?, keys.len(), |_| true)?;
    let mut samples = Samples::new();
    for series in &reports.series {
        if let Some(key) = keys.get(series.index) {
            let values = samples.entry(key.clone()).or_default();
            values.extend(reports.points(series));
        }
    }
    Ok(samples)
}

pub(crate) fn check_raw(chunk: &[u8], series: usize) -> Result<(), ChunkError> {
    read_raw(chunk, &keys(series)).map(drop)
}

pub(crate) fn check_rollup(chunk: &[u8], series: usize) -> Result<(), ChunkError> {
    let mut unpacker = Unpacker::new()?;
    let body = unpacker.unpack(Kind::Rollup, chunk)?;
    rolled::read(body, &keys(series), |_| true).map(drop)
}

pub(crate) fn check_keys(list: &[u8]) -> Result<(), ChunkError> {
    keyset::read(list, None).map(drop)
}

/// `r`aw, `u`p or `k`eys.
pub(crate) fn seal(kind: char, body: &[u8]) -> Result<Vec<u8>, ChunkError> {
    match kind {
        'k' => keyset::pack(body),
        'u' => Packer::new()?.pack(Kind::Rollup, body),
        _ => Packer::new()?.pack(Kind::Raw, body),
    }
}

/// What `inside::chunks::examples` says.
pub(crate) fn examples() -> Result<Vec<(u8, Vec<u8>)>, ChunkError> {
    const SERIES: usize = 3;
    let keys = keys(SERIES);
    let mut builder = Builder::new()?;
    let mut lines = rolled::Lines::new();
    for (time, value) in (0..120_u32).map(|n| (i64::from(n) * 10_000, f64::from(n * n % 77) / 10.0))
    {
        let present = keys.iter().skip(usize::from(time < 300_000));
        let samples = present.map(|(key, kind)| (key, *kind, value));
        builder.push(Timestamp(time), Timestamp(time), 10_000, samples)?;
    }
    for (key, values) in keys.iter().zip([40, 60, 120]) {
        let mut roller = rolled::Roller::new(MINUTE_MS, key.1, None);
        for n in 0..values {
            roller.add(i64::from(n) * 10_000, f64::from(n * n % 31));
        }
        lines.insert(key.clone(), roller.finish());
    }
    let mut examples = Vec::new();
    let mut add = |choice: u8, kind: Kind, chunks: Vec<Built>| -> Result<(), ChunkError> {
        let choice = choice + 8 * 3;
        for built in chunks {
            let mut unpacker = Unpacker::new()?;
            let body = unpacker.unpack(kind, &built.body)?.to_vec();
            examples.extend([(choice, built.body), (choice + 1, body)]);
        }
        Ok(())
    };
    add(0, Kind::Raw, builder.finish()?)?;
    let built = rolled::build(&mut Packer::new()?, &lines, MINUTE_MS)?;
    add(2, Kind::Rollup, built)?;
    let list = keyset::write(&keys);
    examples.extend([(4, keyset::pack(&list)?), (5, list)]);
    Ok(examples)
}

fn keys(count: usize) -> Vec<Key> {
    let kinds = [SeriesType::Counter, SeriesType::Gauge];
    let kinds = kinds.iter().cycle().take(count).zip(0..);
    kinds
        .map(|(kind, number): (_, u32)| {
            let key = SeriesKey::new("a", &[("number", &number.to_string())]);
            (Arc::new(key), *kind)
        })
        .collect()
}
