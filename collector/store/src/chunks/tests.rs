//! Every value comes back, to the bit.

use std::sync::Arc;

use nexus_proto::{
    metrics::{SeriesKey, SeriesType},
    time::Timestamp,
};
use proptest::prelude::*;

use super::{
    Builder, Built, ChunkError, Key, keyset,
    raw::{Kind, Packer, Reports, Unpacker},
};

mod answer;
mod clocks;
mod damage;
mod file;
mod rollup;

type Report = (i64, u32, Vec<(Key, f64)>);

fn key(number: usize) -> Key {
    let key = SeriesKey::new("node_thing_total", &[("number", &number.to_string())]);
    let kinds = [SeriesType::Counter, SeriesType::Gauge, SeriesType::Untyped];
    (Arc::new(key), kinds[number % 3])
}

fn build(reports: &[Report]) -> Vec<Built> {
    let mut builder = Builder::new().unwrap();
    for (time, interval, samples) in reports {
        let samples = samples
            .iter()
            .map(|((key, kind), value)| (key, *kind, *value));
        builder
            .push(Timestamp(*time), Timestamp(0), *interval, samples)
            .unwrap();
    }
    builder.finish().unwrap()
}

fn read(built: &Built) -> Reports {
    let mut unpacker = Unpacker::new().unwrap();
    let body = unpacker.unpack(Kind::Raw, &built.body).unwrap();
    Reports::read(body, built.keys.len(), |_| true).unwrap()
}

/// Time, interval and values as bits, of each report that must be there.
type Plain = Vec<(i64, u32, Vec<(Key, u64)>)>;

fn expected(reports: &[Report]) -> Plain {
    let mut kept = std::collections::BTreeMap::new();
    for (time, interval, samples) in reports {
        let mut values: Vec<_> = samples
            .iter()
            .map(|(key, value)| (key.clone(), value.to_bits()))
            .collect();
        values.sort();
        kept.insert(*time, (*interval, values));
    }
    kept.into_iter()
        .map(|(time, (interval, values))| (time, interval, values))
        .collect()
}

fn found(built: &[Built]) -> Plain {
    let mut plain = Plain::new();
    for built in built {
        let reports = read(built);
        let start = plain.len();
        let rows = reports.times.iter().zip(&reports.intervals);
        plain.extend(rows.map(|(time, interval)| (*time, *interval, Vec::new())));
        for series in &reports.series {
            let rows = series.rows(reports.times.len());
            for (row, value) in rows.zip(series.column.values()) {
                let key = built.keys[series.index].clone();
                plain[start + row].2.push((key, value.to_bits()));
            }
        }
        let samples: usize = plain[start..].iter().map(|row| row.2.len()).sum();
        assert_eq!(samples, built.samples);
        assert_eq!(built.from.as_ms(), plain[start].0);
        assert_eq!(built.to.as_ms(), plain.last().unwrap().0);
    }
    for (_, _, values) in &mut plain {
        values.sort();
    }
    plain.sort();
    plain
}

fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => (-1000_i64..100_000).prop_map(|n| n as f64),
        4 => (0_i64..1_000_000).prop_map(|n| n as f64 / 100.0),
        2 => (0_i64..1_000_000).prop_map(|n| n as f64 * (1.0 / 1000.0)),
        2 => (0_i64..1_000_000_000).prop_map(|n| n as f64 / 1000.0 / 1000.0),
        1 => any::<u64>().prop_map(f64::from_bits),
        1 => prop::sample::select(vec![
            0.0, -0.0, f64::NAN, f64::from_bits(0x7ff0_0000_0000_0002), f64::INFINITY,
            f64::NEG_INFINITY, f64::MIN_POSITIVE, 9.3e18, 2.0_f64.powi(63), -(2.0_f64.powi(63)),
        ]),
    ]
}

/// Reports of a few series, of which some are away now and then and some stand still.
fn reports() -> impl Strategy<Value = Vec<Report>> {
    let series = prop::collection::vec(prop::collection::vec(value(), 1..4), 1..8);
    let times = prop::collection::vec((0_i64..40, 0_u32..3, any::<u16>(), any::<usize>()), 0..40);
    (series, times).prop_map(|(series, times)| {
        let keys: Vec<Key> = (0..series.len()).map(key).collect();
        let report = |(time, interval, mask, turn): (i64, u32, u16, usize)| {
            let mut samples: Vec<(Key, f64)> = keys
                .iter()
                .zip(&series)
                .enumerate()
                .filter(|(n, _)| mask > 30_000 || mask >> n & 1 == 1)
                .map(|(_, (key, values))| (key.clone(), values[turn % values.len()]))
                .collect();
            if mask % 7 == 0 {
                samples.reverse();
            }
            (time * 10_000 - 100, interval * 10_000, samples)
        };
        times.into_iter().map(report).collect()
    })
}

proptest! {
    #[test]
    fn what_is_built_reads_the_same(reports in reports()) {
        let built = build(&reports);
        prop_assert_eq!(found(&built), expected(&reports));
        let replaced: usize = built.iter().map(|built| built.replaced).sum();
        prop_assert_eq!(replaced, reports.len() - expected(&reports).len());
    }

    #[test]
    fn columns_of_any_doubles_read_the_same(values in prop::collection::vec(value(), 1..50)) {
        let reports: Vec<Report> = (1..).zip(&values).map(|(n, v)| (n, 1, vec![(key(0), *v)])).collect();
        prop_assert_eq!(found(&build(&reports)), expected(&reports));
    }

    #[test]
    fn whatever_the_bytes_are_reading_ends(body in prop::collection::vec(any::<u8>(), 0..200), series in 0_usize..9) {
        let _either = Reports::read(&body, series, |_| true);
        let chunk = Packer::new().unwrap().pack(Kind::Raw, &body).unwrap();
        let mut unpacker = Unpacker::new().unwrap();
        prop_assert_eq!(unpacker.unpack(Kind::Raw, &chunk).unwrap(), &body);
        let _either = Unpacker::new().unwrap().unpack(Kind::Raw, &body).map(<[u8]>::len);
    }

    #[test]
    fn a_bit_that_fell_over_is_noticed(reports in reports(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        for built in build(&reports) {
            let before = read(&built);
            let mut chunk = built.body.clone();
            *at.get_mut(&mut chunk) ^= 1_u8 << bit;
            let mut unpacker = Unpacker::new().unwrap();
            // zstd has bits of its header that say nothing: then what is read is the same.
            if let Ok(body) = unpacker.unpack(Kind::Raw, &chunk) {
                let after = Reports::read(body, built.keys.len(), |_| true).unwrap();
                prop_assert_eq!(&after.times, &before.times);
            }
        }
    }
}

#[test]
fn a_list_of_series_reads_the_same_and_nothing_else_does() {
    let keys: Vec<Key> = (0..500).map(key).collect();
    let stored = keyset::pack(&keyset::write(&keys)).unwrap();
    assert_eq!(keyset::read(&stored, None).unwrap(), keys);
    assert!(stored.len() < 4000, "{}", stored.len());
    assert!(keyset::read(&stored[..stored.len() - 1], None).is_err());
    assert!(keyset::read(&[2, 0], None).is_err());
}

#[test]
fn times_at_the_ends_of_time_are_kept() {
    let times = [i64::MIN, -1, 0, 1_700_000_000_000, i64::MAX];
    let reports: Vec<Report> = times
        .iter()
        .map(|time| (*time, u32::MAX, vec![(key(1), 1.5)]))
        .collect();
    let built = build(&reports);
    assert_eq!(found(&built), expected(&reports));
}

#[test]
fn a_chunk_ends_at_its_limits() {
    let keys: Vec<Key> = (0..20_000).map(key).collect();
    let reports: Vec<Report> = (0..60)
        .map(|n| {
            (
                n,
                10,
                keys.iter().map(|key| (key.clone(), n as f64)).collect(),
            )
        })
        .collect();
    let built = build(&reports);
    assert_eq!(built.iter().map(|b| b.reports).collect::<Vec<_>>(), [52, 8]);
    assert_eq!(found(&built), expected(&reports));
    let many: Vec<Report> = (0..5000).map(|n| (n, 10, vec![(key(0), 0.0)])).collect();
    let built = build(&many);
    assert_eq!(
        built.iter().map(|b| b.reports).collect::<Vec<_>>(),
        [4096, 904]
    );
    assert!(built[0].body.len() < 60, "{}", built[0].body.len());
}

#[test]
fn a_small_chunk_that_claims_much_is_refused_before_memory_is_taken() {
    let mut body = Vec::new();
    super::bytes::put_size(&mut body, 4096);
    super::bytes::put_size(&mut body, 40_000);
    let refused = Reports::read(&body, 40_000, |_| true).unwrap_err();
    assert!(
        matches!(refused, ChunkError::TooMany { what: "values", .. }),
        "{refused}"
    );
    let mut chunk = vec![1, 0];
    super::bytes::put(&mut chunk, u64::MAX);
    let mut unpacker = Unpacker::new().unwrap();
    let refused = unpacker.unpack(Kind::Raw, &chunk).unwrap_err();
    assert!(
        matches!(refused, ChunkError::TooMany { what: "bytes", .. }),
        "{refused}"
    );
    assert!(matches!(
        unpacker.unpack(Kind::Raw, &[9, 0]),
        Err(ChunkError::Version(9))
    ));
}

#[test]
fn a_clock_that_is_ahead_is_counted() {
    let mut builder = Builder::new().unwrap();
    let (key, kind) = key(0);
    for ahead in [600_000, 600_001] {
        let samples = std::iter::once((&key, kind, 1.0));
        builder
            .push(Timestamp(5 + ahead), Timestamp(5), 10, samples)
            .unwrap();
    }
    let built = builder.finish().unwrap();
    assert_eq!((built[0].ahead, built[0].reports), (1, 2));
}
