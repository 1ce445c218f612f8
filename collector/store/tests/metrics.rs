//! Metric reports on their way: from memory and the head into chunks, across restarts.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::sync::Arc;

use nexus_proto::{
    ids::{Incarnation, Lane, NodeId},
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{
    Layout, Settings, Store,
    entry::{NodeEnrolled, Outcome, Reports},
};

const NODES: u64 = 5;
const START: i64 = 1_700_000_000_000;

struct World {
    dir: tempfile::TempDir,
    clock: Clock,
    store: Store,
    nodes: Vec<(NodeId, Incarnation)>,
    seq: u64,
}

fn open(dir: &tempfile::TempDir, clock: &Clock) -> Store {
    let settings = Settings {
        gather: std::time::Duration::ZERO,
        ..Settings::default()
    };
    Store::open(dir.path(), clock.clone(), settings).unwrap()
}

/// A counter that rises, a gauge that stays, a series that comes and goes, and a double that is no decimal.
fn snapshot(node: u64, seq: u64) -> Snapshot {
    let number = |n: u64| f64::from(u32::try_from(n).unwrap());
    let mut values = vec![
        ("total", SeriesType::Counter, number(seq * 7 + node)),
        ("level", SeriesType::Gauge, number(node)),
        ("ratio", SeriesType::Gauge, number(seq).sqrt()),
    ];
    if seq.is_multiple_of(3) {
        values.push(("now_and_then", SeriesType::Gauge, f64::NAN));
    }
    let samples = values.into_iter().map(|(name, kind, value)| Sample {
        key: Arc::new(SeriesKey::new(name, &[("node", &node.to_string())])),
        kind,
        value,
    });
    Snapshot {
        interval_ms: 10_000,
        samples: samples.collect(),
    }
}

fn time_of(seq: u64) -> Timestamp {
    Timestamp(START + i64::try_from(seq).unwrap() * 10_000)
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Store::create(dir.path(), Layout::new(2)).unwrap();
        let clock = Clock::fixed(Timestamp(START));
        let store = open(&dir, &clock);
        let mut nodes = Vec::new();
        for number in 0..NODES {
            let (node, incarnation) = (NodeId::random(), Incarnation::random());
            let enrolled = NodeEnrolled {
                node: node.to_wire(),
                name: format!("node-{number}"),
                incarnation: incarnation.to_wire(),
                ..NodeEnrolled::default()
            };
            store.append_for(node, enrolled).await.unwrap();
            nodes.push((node, incarnation));
        }
        Self {
            dir,
            clock,
            store,
            nodes,
            seq: 0,
        }
    }

    /// So many reports of every node, as one stream each.
    async fn report(&mut self, count: u64) {
        let seqs = self.seq + 1..=self.seq + count;
        self.seq += count;
        for (number, (node, incarnation)) in (0..).zip(&self.nodes) {
            let reports = seqs
                .clone()
                .map(|seq| (seq, time_of(seq), snapshot(number, seq)));
            let reports = Reports::encode(*node, *incarnation, self.seq, reports.collect());
            let outcome = self.store.append_reports(reports).await.unwrap();
            assert_eq!(outcome, Outcome::Committed(self.seq));
        }
    }

    fn reopen(&mut self) {
        self.store.close();
        // The folder is free once the store is gone.
        let elsewhere = tempfile::tempdir().unwrap();
        Store::create(elsewhere.path(), Layout::new(1)).unwrap();
        self.store = open(&elsewhere, &self.clock);
        self.store = open(&self.dir, &self.clock);
    }

    /// Everything that was reported is there once, to the bit, wherever it stands now.
    fn check(&self) {
        for (number, (node, incarnation)) in (0..).zip(&self.nodes) {
            for name in ["total", "level", "ratio", "now_and_then"] {
                let all = (1..=self.seq).filter_map(|seq| {
                    let snapshot = snapshot(number, seq);
                    let sample = snapshot.find(name, &[("node", &number.to_string())])?;
                    Some((time_of(seq), sample.value.to_bits()))
                });
                let points = self
                    .store
                    .history(*node, name, Timestamp(0), Timestamp(i64::MAX))
                    .unwrap();
                let points: Vec<_> = points
                    .into_iter()
                    .map(|point| (point.time, point.value.to_bits()))
                    .collect();
                assert_eq!(points, all.collect::<Vec<_>>(), "{name} of node {number}");
            }
            let newest = self.store.newest(*node).unwrap();
            assert_eq!(newest.time, time_of(self.seq));
            let cursors = self.store.cursors(*node, *incarnation).unwrap();
            assert!(cursors.contains(&(Lane::Metrics, self.seq)));
        }
    }

    /// Rows of the heads.
    #[expect(
        clippy::disallowed_methods,
        reason = "the file is looked at from outside"
    )]
    fn rows(&self) -> i64 {
        (0..2)
            .map(|shard| {
                let path = self.dir.path().join(format!("shards/{shard}/head.db"));
                let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
                let db = rusqlite::Connection::open_with_flags(path, flags).unwrap();
                db.query_row("SELECT count(*) FROM head", [], |row| row.get::<_, i64>(0))
                    .unwrap()
            })
            .sum()
    }

    fn samples(&self) -> u64 {
        let held = self.store.metrics_held();
        held.iter().map(|totals| totals.held[0].samples).sum()
    }
}

#[tokio::test]
async fn reports_are_all_there_on_their_way_into_chunks_and_after() {
    let mut world = World::new().await;
    world.report(4).await;
    world.check();
    assert_eq!(world.samples(), 0);
    world.store.compact_metrics().await.unwrap();
    world.check();
    assert_eq!(world.samples(), NODES * (4 * 3 + 1));
    world.report(3).await;
    world.check();
    world.reopen();
    world.check();
    // What comes now goes on where chunks and head end.
    world.report(2).await;
    world.check();
    world.store.compact_metrics().await.unwrap();
    world.check();
    world.reopen();
    world.check();
    assert_eq!(world.rows(), 0);
    assert_eq!(world.samples(), NODES * (9 * 3 + 3));
    world.report(1).await;
    world.check();
    assert!(world.rows() > 0);
}

#[tokio::test]
async fn reports_wait_as_long_as_is_set() {
    let mut world = World::new().await;
    world.report(2).await;
    world.clock.advance(std::time::Duration::from_secs(601));
    let clock = Clock::system();
    let begun = clock.instant();
    while world.samples() == 0 {
        let waited = clock.instant() - begun;
        assert!(waited.as_secs() < 60, "no chunks are made");
        tokio::task::yield_now().await;
    }
    world.check();
}

#[tokio::test]
async fn history_of_a_time_has_the_samples_that_are_kept_of_it() {
    let mut world = World::new().await;
    world.report(6).await;
    for hours in [0, 6, 60] {
        world
            .clock
            .advance(std::time::Duration::from_secs(hours * 3600));
        world.store.compact_metrics().await.unwrap();
    }
    assert_eq!(world.samples(), 0);
    let (node, life) = world.nodes[0];
    world.clock.advance(std::time::Duration::from_secs(7));
    let now = world.clock.now();
    let reports = Reports::encode(node, life, 99, vec![(7, now, snapshot(0, 7))]);
    world.store.append_reports(reports).await.unwrap();
    let minute = |time: i64| Timestamp(time / 60_000 * 60_000);
    let old = [minute(START), minute(START + 60_000)];
    let text = now.to_string();
    let day = text.get(..10).unwrap();
    for (bound, times) in [
        (String::new(), vec![old[0], old[1], minute(now.as_ms())]),
        (format!("AND time >= '{now}'"), vec![now]),
        (
            format!("AND time > '{day}' AND time < '{day}T99'"),
            vec![now],
        ),
        (format!("AND time < '{day}'"), old.to_vec()),
        (format!("AND time = '{now}'"), vec![now]),
    ] {
        let sql = format!(
            "SELECT time FROM metric_history WHERE node = 'node-0' AND name = 'level' {bound} ORDER BY time"
        );
        let mut answer = world
            .store
            .query(&sql, nexus_store::QueryOptions::default())
            .await
            .unwrap();
        let mut found = Vec::new();
        while let Some(rows) = answer.next().await {
            found.extend(rows.unwrap());
        }
        let expected = times
            .into_iter()
            .map(|time| vec![nexus_store::Value::Text(time.to_string())]);
        assert_eq!(found, expected.collect::<Vec<_>>(), "{bound}");
    }
}
