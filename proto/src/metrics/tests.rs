use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message as _;

use super::*;

type Given<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

fn snapshot(samples: &[Given<'_>]) -> Snapshot {
    Snapshot {
        interval_ms: 10_000,
        samples: samples
            .iter()
            .map(|(name, labels, value)| Sample {
                key: Arc::new(SeriesKey::new(name, labels)),
                kind: SeriesType::Counter,
                value: *value,
            })
            .collect(),
    }
}

fn by_key(snapshot: &Snapshot) -> BTreeMap<SeriesKey, (SeriesType, u64)> {
    let entries = snapshot.samples.iter();
    let map: BTreeMap<_, _> = entries
        .map(|s| ((*s.key).clone(), (s.kind, s.value.to_bits())))
        .collect();
    assert_eq!(
        map.len(),
        snapshot.samples.len(),
        "a series stands there twice"
    );
    map
}

#[test]
fn writes_keys_as_prometheus_does() {
    let key = SeriesKey::new("node_x", &[("b", "a\\b\"c\nd"), ("a", "ü")]);
    assert_eq!(key.to_string(), "node_x{a=\"ü\",b=\"a\\\\b\\\"c\\nd\"}");
    assert_eq!(SeriesKey::new("up", &[]).to_string(), "up");
    assert_eq!(key.label("a"), Some("ü"));
    assert!(key.check().is_ok());
    for bad in [
        SeriesKey::new("", &[]),
        SeriesKey::new("1a", &[]),
        SeriesKey::new("a", &[("a:b", "")]),
        SeriesKey::new("a", &[("a", ""), ("a", "")]),
        SeriesKey::new("a", &[("a", &"x".repeat(limits::SERIES_BYTES))]),
    ] {
        assert!(bad.check().is_err(), "{bad}");
    }
}

#[test]
fn sends_only_changes_and_few_bytes() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    let first = snapshot(&[
        ("cpu", &[("cpu", "0")], 102.0),
        ("cpu", &[("cpu", "1")], 2785.86),
        ("load", &[], 0.14),
        ("disk", &[], 567.0 * 0.001),
        ("nan", &[], f64::NAN),
    ]);
    let report = encoder.encode(&first);
    assert!(report.key_frame && report.define.len() == 5 && report.raw.len() == 1);
    assert_eq!(by_key(&decoder.decode(&report).unwrap()), by_key(&first));

    // Nothing changed: nothing is sent, not even the NaN again.
    let report = encoder.encode(&first);
    assert_eq!(report.encode_to_vec().len(), 3);
    assert_eq!(by_key(&decoder.decode(&report).unwrap()), by_key(&first));

    // More digits than before change the scale without naming the series again.
    let mut second = first.clone();
    second.samples[0].value = 102.01;
    second.samples[1].value = 2785.87;
    second.samples[3].value = 569.0 * 0.001;
    second.samples[4].value = 0.0;
    let report = encoder.encode(&second);
    assert_eq!(
        (report.ids.len(), report.define.len(), report.raw.len()),
        (4, 1, 0)
    );
    assert_eq!(report.define[0].name, "");
    assert_eq!(by_key(&decoder.decode(&report).unwrap()), by_key(&second));

    // A series that ended is retired, its id serves the next.
    let third = snapshot(&[("load", &[], 0.5), ("new", &[], -0.0)]);
    let report = encoder.encode(&third);
    assert_eq!((report.retire.len(), report.define.len()), (4, 1));
    assert!(report.define[0].id < 5);
    assert_eq!(by_key(&decoder.decode(&report).unwrap()), by_key(&third));

    // Another type is another series.
    let mut fourth = third.clone();
    fourth.samples[0].kind = SeriesType::Gauge;
    let report = encoder.encode(&fourth);
    assert_eq!((report.retire.len(), report.define.len()), (1, 1));
    assert_eq!(by_key(&decoder.decode(&report).unwrap()), by_key(&fourth));
}

#[test]
fn counts_a_repeated_series_once() {
    let twice = snapshot(&[("a", &[], 1.0), ("a", &[], 2.0)]);
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new();
    for _ in 0..3 {
        let decoded = decoder.decode(&encoder.encode(&twice)).unwrap();
        assert_eq!(decoded, snapshot(&[("a", &[], 1.0)]));
    }
}

#[test]
fn decoders_of_one_pool_share_keys() {
    let pool = KeyPool::new();
    let sent = snapshot(&[("a", &[("b", "c")], 1.0)]);
    let decode = || {
        let report = Encoder::new().encode(&sent);
        let mut samples = Decoder::pooled(pool.clone())
            .decode(&report)
            .unwrap()
            .samples;
        samples.remove(0).key
    };
    let (one, other) = (decode(), decode());
    assert!(Arc::ptr_eq(&one, &other));
    assert_eq!(pool.len(), 1);
}

#[test]
fn wants_a_key_frame_first_and_after_an_error() {
    let mut encoder = Encoder::new();
    let one = snapshot(&[("a", &[], 1.0)]);
    let key_frame = encoder.encode(&one);
    let change = encoder.encode(&snapshot(&[("a", &[], 2.0)]));
    assert_eq!(Decoder::new().decode(&change), Err(MetricError::NoKeyFrame));

    let mut decoder = Decoder::new();
    decoder.decode(&key_frame).unwrap();
    let mut bad = change.clone();
    bad.ids = vec![7];
    assert_eq!(decoder.decode(&bad), Err(MetricError::Undefined(7)));
    assert_eq!(decoder.decode(&change), Err(MetricError::NoKeyFrame));
    assert_eq!(decoder.decode(&key_frame), Ok(one.clone()));

    encoder.restart();
    assert_eq!(Decoder::new().decode(&encoder.encode(&one)), Ok(one));
}

#[test]
fn refuses_what_is_beyond_its_limits() {
    let def = |id, name: &str| wire::SeriesDef {
        id,
        name: name.to_owned(),
        ..Default::default()
    };
    let refuse = |report: wire::MetricReport| {
        let report = wire::MetricReport {
            key_frame: true,
            ..report
        };
        Decoder::new().decode(&report).unwrap_err()
    };
    let report = |define| wire::MetricReport {
        define,
        ..Default::default()
    };
    let beyond = u32::try_from(limits::SERIES).unwrap();
    assert_eq!(
        refuse(report(vec![def(beyond, "a")])),
        MetricError::TooMany { id: beyond }
    );
    assert_eq!(
        refuse(report(vec![def(0, "a"), def(0, "b")])),
        MetricError::Redefined(0)
    );
    assert_eq!(
        refuse(report(vec![def(0, "a"), def(1, "a")])),
        MetricError::Duplicate("a".to_owned())
    );
    let scaled = wire::SeriesDef {
        scale: 10,
        ..def(0, "a")
    };
    assert_eq!(refuse(report(vec![scaled])), MetricError::Scale(10));
    let labelled = wire::SeriesDef {
        labels: vec!["a".to_owned()],
        ..def(0, "a")
    };
    assert!(matches!(
        refuse(report(vec![labelled])),
        MetricError::Uneven { .. }
    ));
    let uneven = wire::MetricReport {
        ids: vec![0],
        ..report(vec![def(0, "a")])
    };
    assert!(matches!(refuse(uneven), MetricError::Uneven { .. }));
    let unordered = wire::MetricReport {
        ids: vec![0, 0],
        deltas: vec![1, 1],
        ..report(vec![def(0, "a")])
    };
    assert_eq!(refuse(unordered), MetricError::Unordered(0));
}

#[test]
fn a_quiet_host_costs_little() {
    // 210 series, of which 90 change in every report as those of a real host do.
    let keys: Vec<_> = (0..210)
        .map(|i| {
            let device = format!("device{}", i % 7);
            let name = format!("node_some_metric_{}_total", i / 7);
            Arc::new(SeriesKey::new(&name, &[("device", &device)]))
        })
        .collect();
    let mut encoder = Encoder::new();
    let mut bytes = 0;
    for round in 0_u32..361 {
        let samples = keys.iter().zip(0_u32..).map(|(key, i)| Sample {
            key: Arc::clone(key),
            kind: SeriesType::Counter,
            value: match i % 7 {
                0..3 => f64::from(i) * 1e6 + f64::from(round * (i + 1) * 10) / 100.0,
                _ => f64::from(i) * 4096.0,
            },
        });
        let snapshot = Snapshot {
            interval_ms: 10_000,
            samples: samples.collect(),
        };
        bytes += encoder.encode(&snapshot).encode_to_vec().len();
    }
    // An hour of reports with two key frames.
    assert!(bytes / 60 < 5_000, "{} bytes a minute", bytes / 60);
}

fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        any::<i64>().prop_map(|n| n as f64),
        (0_u32..1_000_000).prop_map(|n| f64::from(n) / 100.0),
        (0_u32..1_000_000).prop_map(|n| f64::from(n) * 0.001),
        (0_u32..4_000_000_000).prop_map(|n| f64::from(n) / 1e3 / 1e3),
        (0_u32..10).prop_map(f64::from),
        Just(-0.0),
        Just(f64::INFINITY),
    ]
}

proptest! {
    #[test]
    fn every_value_comes_back_bit_for_bit(
        rounds in proptest::collection::vec(
            (proptest::collection::btree_map(0_u8..12, value(), 0..10), 0_u8..8, any::<bool>()),
            1..30,
        )
    ) {
        let keys: Vec<_> = (0..12)
            .map(|i| Arc::new(SeriesKey::new(&format!("s{}", i / 3), &[("i", &i.to_string())])))
            .collect();
        let mut encoder = Encoder::new();
        let mut decoder = Decoder::new();
        for (values, restart, gauge) in rounds {
            if restart == 1 {
                // One that begins here goes on as one that was there from the beginning.
                let mut other = Decoder::new();
                other.take(&decoder.key_frame(1)).unwrap();
                prop_assert_eq!(other.snapshot(1), decoder.snapshot(1));
                decoder = other;
            }
            if restart == 0 {
                encoder.restart();
            }
            let kind = if gauge { SeriesType::Gauge } else { SeriesType::Counter };
            let samples = values.iter().map(|(i, value)| Sample {
                key: Arc::clone(&keys[usize::from(*i)]),
                kind,
                value: *value,
            });
            let sent = Snapshot { interval_ms: 1, samples: samples.collect() };
            let encoded = encoder.encode(&sent).encode_to_vec();
            let report = wire::MetricReport::decode(encoded.as_slice()).unwrap();
            prop_assert_eq!(by_key(&decoder.decode(&report).unwrap()), by_key(&sent));
        }
    }

    #[test]
    fn no_report_makes_the_decoder_panic(
        ids in proptest::collection::vec(any::<u32>(), 0..6),
        deltas in proptest::collection::vec(any::<i64>(), 0..6),
        define in proptest::collection::vec((0_u32..4, "[a-b]{0,2}", 0_u32..12), 0..6),
        retire in proptest::collection::vec(0_u32..4, 0..3),
        key_frame in any::<bool>(),
    ) {
        let define = define
            .into_iter()
            .map(|(id, name, scale)| wire::SeriesDef { id, name, scale, ..Default::default() })
            .collect();
        let report = wire::MetricReport { key_frame, define, retire, ids, deltas, ..Default::default() };
        let mut decoder = Decoder::new();
        let _first = decoder.decode(&report);
        let _second = decoder.decode(&report);
    }
}
