//! What is answered of a metric over time.

use nexus_proto::{
    ids::Incarnation,
    metrics::{Sample, Snapshot},
};
use nexus_runtime::clock::Clock;
use nexus_store::{Layout, Settings, entry::Reports};

use super::*;

#[test]
fn a_long_series_comes_in_pieces() {
    let point = MetricPoint::default();
    let series = |count| MetricSeries {
        labels: Vec::new(),
        points: vec![point; count],
    };
    let most = limits::METRIC_POINTS_A_MESSAGE;
    for (points, expected) in [
        (0, vec![0]),
        (1, vec![1]),
        (most, vec![most]),
        (2 * most + 1, vec![most, most, 1]),
    ] {
        let lengths: Vec<_> = pieces(series(points)).map(|p| p.points.len()).collect();
        assert_eq!(lengths, expected);
    }
}

#[test]
fn names_are_offered_that_are_alike() {
    let names = ["node_load1", "node_load15", "node_load5", "up"];
    let names = names.map(str::to_owned).into();
    assert_eq!(closest("node_lod1", &names).first(), Some(&"node_load1"));
    assert!(closest("xyz", &names).is_empty());
}

const START: i64 = 1_700_006_400_000;

struct World {
    _dir: tempfile::TempDir,
    clock: Clock,
    store: Store,
    node: NodeId,
    life: Incarnation,
    seq: u64,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Store::create(dir.path(), Layout::new(1)).unwrap();
        let clock = Clock::fixed(Timestamp(START));
        let settings = Settings {
            gather: Duration::ZERO,
            ..Settings::default()
        };
        Self {
            store: Store::open(dir.path(), clock.clone(), settings).unwrap(),
            _dir: dir,
            clock,
            node: NodeId::random(),
            life: Incarnation::random(),
            seq: 0,
        }
    }

    /// A value every ten seconds from now on.
    async fn report(&mut self, kind: SeriesType, values: &[f64]) {
        let snapshots = values.iter().map(|value| {
            self.seq += 1;
            let key = |device| Arc::new(SeriesKey::new("m", &[("device", device)]));
            let sample = |device| Sample {
                key: key(device),
                kind,
                value: *value,
            };
            self.clock.advance(Duration::from_secs(10));
            let snapshot = Snapshot {
                interval_ms: 10_000,
                samples: vec![sample("a"), sample("b")],
            };
            (self.seq, self.clock.now(), snapshot)
        });
        let snapshots = snapshots.collect();
        let reports = Reports::encode(self.node, self.life, self.seq, snapshots);
        self.store.append_reports(reports).await.unwrap();
    }

    fn read(&self, step_ms: u64, device: &str) -> Found {
        let request = ReadMetricsRequest {
            node: String::new(),
            name: "m".to_owned(),
            matchers: vec![LabelMatcher {
                label: "device".to_owned(),
                value: device.to_owned(),
                unequal: false,
            }],
            from_ms: START,
            to_ms: self.clock.now().as_ms(),
            step_ms,
        };
        read(
            &self.store,
            self.node,
            &Asked::new("test", request).unwrap(),
        )
        .unwrap()
    }
}

#[tokio::test]
async fn an_answer_says_how_far_its_points_are_apart() {
    let mut world = World::new();
    world.report(SeriesType::Counter, &[1.0; 60]).await;
    world.store.compact_metrics().await.unwrap();
    world.report(SeriesType::Counter, &[2.0; 6]).await;
    for (asked, told, count) in [(0, 0, 66), (90_000, 90_000, 8), (60_000, 60_000, 12)] {
        let found = world.read(asked, "a");
        let Found::Series {
            step_ms, series, ..
        } = found
        else {
            panic!("nothing is found");
        };
        assert_eq!(
            (step_ms, series.len(), series[0].points.len()),
            (told, 1, count)
        );
    }
    // When samples are gone, there are minutes, whatever is asked for.
    for hours in [6, 60] {
        world.clock.advance(Duration::from_secs(hours * 3600));
        world.store.compact_metrics().await.unwrap();
    }
    assert_eq!(world.store.metrics_held()[0].held[0].chunks, 0);
    for (asked, told) in [
        (0, 60_000),
        (1000, 60_000),
        (90_000, 120_000),
        (300_000, 300_000),
    ] {
        let Found::Series { step_ms, .. } = world.read(asked, "a") else {
            panic!("nothing is found");
        };
        assert_eq!(step_ms, told);
    }
}

#[tokio::test]
async fn a_series_that_changed_its_type_is_one() {
    let mut world = World::new();
    world.report(SeriesType::Untyped, &[1.0, 2.0]).await;
    world.report(SeriesType::Counter, &[3.0, 5.0]).await;
    world.report(SeriesType::Untyped, &[6.0]).await;
    world.report(SeriesType::Counter, &[7.0]).await;
    let Found::Series { kind, series, .. } = world.read(0, "b") else {
        panic!("nothing is found");
    };
    let values: Vec<_> = series[0].points.iter().map(|point| point.last).collect();
    assert_eq!((series.len(), kind), (1, SeriesType::Counter));
    assert_eq!(values, [1.0, 2.0, 3.0, 5.0, 6.0, 7.0]);
}

#[tokio::test]
async fn what_is_not_there_is_told_with_what_is() {
    let mut world = World::new();
    world.report(SeriesType::Gauge, &[1.0; 3]).await;
    let Found::NoMatch(keys) = world.read(0, "c") else {
        panic!("it is there");
    };
    assert_eq!(keys.len(), 2);
    world.store.compact_metrics().await.unwrap();
    assert!(matches!(world.read(0, "c"), Found::NoMatch(keys) if keys.len() == 2));
    let first = Timestamp(START).after(Duration::from_secs(10));
    let elsewhere = Asked {
        name: "m".to_owned(),
        matchers: Vec::new(),
        from: Timestamp(0),
        to: Timestamp(1),
        step_ms: 0,
    };
    let found = read(&world.store, world.node, &elsewhere).unwrap();
    let last = world.clock.now();
    assert!(matches!(found, Found::Elsewhere { first: a, last: b } if (a, b) == (first, last)));
    let unknown = Asked {
        name: "n".to_owned(),
        ..elsewhere
    };
    let found = read(&world.store, world.node, &unknown).unwrap();
    assert!(matches!(found, Found::Unknown(names) if names.contains("m")));
}
