//! Random batches with records sent again, crashes between commit and apply, and what must hold after:
//! every record counts once, and the projections are what the log says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use nexus_proto::{
    ids::{Incarnation, Lane, NodeId},
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    record::{Body, Cell, Event, Record, Row, Section},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{
    Layout, QueryOptions, Settings, Store, StoreError, Value,
    entry::{Entry, NodeEnrolled, Outcome, Records, Reports},
};
use proptest::prelude::*;
use uuid::Uuid;

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// Records `first ..= first + count` of a lane of a node; some may have been sent before.
    Send {
        node: u8,
        lane: Lane,
        back: u64,
        count: u64,
        value: i64,
    },
    /// Time passes.
    Wait(u64),
    /// The projections are lost down to where they were at the last copy, as in a crash before apply.
    Crash,
    /// Stopped and started.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = prop_oneof![
        Just(Lane::Results),
        Just(Lane::Inventory),
        Just(Lane::Metrics)
    ];
    prop_oneof![
        12 => (0..3u8, lane, 0..4u64, 1..6u64, 0..5i64)
            .prop_map(|(node, lane, back, count, value)| Step::Send { node, lane, back, count, value }),
        2 => (1..900u64).prop_map(Step::Wait),
        1 => Just(Step::Crash),
        1 => Just(Step::Restart),
    ]
}

/// Nobody waits for others here.
fn eager() -> Settings {
    Settings {
        gather: std::time::Duration::ZERO,
        ..Settings::default()
    }
}

fn node(number: u8) -> (NodeId, Incarnation) {
    (
        NodeId(Uuid::from_u128(u128::from(number) + 1)),
        Incarnation(Uuid::from_u128(7)),
    )
}

fn body(lane: Lane, value: i64) -> Body {
    match lane {
        Lane::Results => Body::Event(Event {
            kind: "k".into(),
            message: value.to_string(),
        }),
        Lane::Inventory => {
            let rows = (0..value)
                .map(|n| {
                    // Of one name for several architectures, and in versions that come and go.
                    let text = |text: String| Cell::Text(text);
                    let version = if n == 0 { value } else { 1 };
                    Row(vec![
                        text(format!("package{}", n / 2)),
                        text(version.to_string()),
                        text(n.to_string()),
                    ])
                })
                .collect();
            Body::Section(Section::new("packages", rows))
        }
        Lane::Metrics => Body::Metrics(snapshot(value)),
    }
}

fn snapshot(value: i64) -> Snapshot {
    let key = Arc::new(SeriesKey::new("m", &[]));
    let value = f64::from(i32::try_from(value).unwrap());
    Snapshot {
        interval_ms: 10_000,
        samples: vec![Sample {
            key,
            kind: SeriesType::Gauge,
            value,
        }],
    }
}

fn time_of(seq: u64) -> Timestamp {
    Timestamp(i64::try_from(seq).unwrap())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

async fn count(store: &Store, sql: &str) -> i64 {
    let mut stream = store.query(sql, QueryOptions::default()).await.unwrap();
    match stream.next().await.unwrap().unwrap()[0][0] {
        Value::Integer(count) => count,
        ref other => panic!("{sql}: {other:?}"),
    }
}

async fn play(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let (path, saved) = (dir.path().join("store"), dir.path().join("saved"));
    Store::create(&path, Layout::new(1)).unwrap();
    let clock = Clock::fixed(Timestamp(1_000_000_000));
    let mut store = Store::open(&path, clock.clone(), eager()).unwrap();
    for number in 0..3 {
        let (id, incarnation) = node(number);
        let enrolled = NodeEnrolled {
            node: id.to_wire(),
            name: format!("node-{number}"),
            incarnation: incarnation.to_wire(),
            ..NodeEnrolled::default()
        };
        store.append_for(id, enrolled).await.unwrap();
    }
    drop(store);
    copy(&path.join("shards/0"), &saved);
    store = Store::open(&path, clock.clone(), eager()).unwrap();

    let mut sent: BTreeMap<(u8, Lane), u64> = BTreeMap::new();
    let mut streams = 0;
    for step in steps {
        match step {
            Step::Send {
                node: number,
                lane,
                back,
                count,
                value,
            } => {
                let last = sent.entry((number, lane)).or_default();
                let first = (*last + 1).saturating_sub(back).max(1);
                let (node, incarnation) = node(number);
                if lane == Lane::Metrics {
                    let before = *last;
                    *last = before.max(first + count - 1);
                    let mut stream = |from: u64| {
                        streams += 1;
                        let seqs = from..first + count;
                        let reports = seqs.map(|seq| (seq, time_of(seq), snapshot(value)));
                        Reports::encode(node, incarnation, streams, reports.collect())
                    };
                    // The same again in the same commit.
                    let all = stream(first);
                    let outcomes =
                        tokio::join!(store.append_reports(all.clone()), store.append_reports(all));
                    let overlaps = first <= before && before < *last;
                    for outcome in [outcomes.0.unwrap(), outcomes.1.unwrap()] {
                        if overlaps {
                            // What is new continues what was not taken from this stream.
                            assert!(outcome.refusal().is_some(), "{outcome:?}");
                        } else {
                            assert_eq!(outcome, Outcome::Committed(*last));
                        }
                    }
                    let rest = store.append_reports(stream(before + 1)).await;
                    assert_eq!(rest.unwrap(), Outcome::Committed(*last));
                    continue;
                }
                let records = (first..first + count).map(|seq| Record {
                    seq,
                    time: time_of(seq),
                    body: body(lane, value),
                });
                let records = Records {
                    node,
                    incarnation,
                    lane,
                    records: records.collect(),
                };
                // The same again in the same commit.
                let entries: Vec<Entry> = vec![records.clone().into(), records.into()];
                *last = (*last).max(first + count - 1);
                let outcome = store.append(0, entries).await.unwrap();
                assert_eq!(outcome, vec![Outcome::Committed(*last); 2]);
            }
            Step::Wait(seconds) => clock.advance(std::time::Duration::from_secs(seconds)),
            Step::Crash => {
                drop(store);
                for name in ["state.db", "state.db-wal", "state.db-shm"] {
                    drop(fs::remove_file(path.join("shards/0").join(name)));
                    if saved.join(name).exists() {
                        fs::copy(saved.join(name), path.join("shards/0").join(name)).unwrap();
                    }
                }
                store = Store::open(&path, clock.clone(), eager()).unwrap();
            }
            Step::Restart => {
                drop(store);
                store = Store::open(&path, clock.clone(), eager()).unwrap();
            }
        }
    }

    for (&(number, lane), &last) in &sent {
        let (node, incarnation) = node(number);
        let cursors = store.cursors(node, incarnation).unwrap();
        assert!(cursors.contains(&(lane, last)));
        if lane == Lane::Metrics {
            let points = store
                .history(node, "m", Timestamp(0), Timestamp(i64::MAX))
                .unwrap();
            let times: Vec<i64> = points.iter().map(|point| point.time.as_ms()).collect();
            assert_eq!(
                times,
                (1..=i64::try_from(last).unwrap()).collect::<Vec<_>>()
            );
        }
    }
    let events: u64 = sent
        .iter()
        .filter(|((_, lane), _)| *lane == Lane::Results)
        .map(|(_, last)| last)
        .sum();
    assert_eq!(
        count(&store, "SELECT count(*) FROM events").await,
        i64::try_from(events).unwrap()
    );

    let counted = "SELECT name, version, nodes FROM package_versions";
    let rows = "SELECT name, version, count(DISTINCT node_id) FROM packages GROUP BY name, version";
    for (one, other) in [(counted, rows), (rows, counted)] {
        let sql = format!("SELECT count(*) FROM ({one} EXCEPT {other})");
        assert_eq!(count(&store, &sql).await, 0, "{one}");
    }

    let digest = store.digest(0).unwrap();
    store.rebuild_projections(0).await.unwrap();
    assert_eq!(store.digest(0).unwrap(), digest);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_projections_follow_from_the_log(steps in prop::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(play(steps));
    }
}

async fn small() -> (tempfile::TempDir, Clock, [u8; 32]) {
    let dir = tempfile::tempdir().unwrap();
    Store::create(dir.path(), Layout::new(1)).unwrap();
    let clock = Clock::fixed(Timestamp(1_000));
    let store = Store::open(dir.path(), clock.clone(), eager()).unwrap();
    let (id, incarnation) = node(0);
    for seq in 1..=5 {
        let records = vec![Record {
            seq,
            time: Timestamp(1),
            body: body(Lane::Results, 1),
        }];
        store
            .append_for(
                id,
                Records {
                    node: id,
                    incarnation,
                    lane: Lane::Results,
                    records,
                },
            )
            .await
            .unwrap();
    }
    store.rebuild_projections(0).await.unwrap();
    let digest = store.digest(0).unwrap();
    (dir, clock, digest)
}

#[tokio::test]
async fn damaged_projections_are_rebuilt() {
    let (dir, clock, _) = small().await;
    let shard = dir.path().join("shards/0");
    fs::write(shard.join("state.db"), vec![7; 64 * 1024]).unwrap();
    drop(fs::remove_file(shard.join("state.db-wal")));
    let store = Store::open(dir.path(), clock, eager()).unwrap();
    let (id, incarnation) = node(0);
    assert_eq!(
        store.cursors(id, incarnation).unwrap()[0],
        (Lane::Results, 5)
    );
    assert!(shard.join("state.db.damaged").exists());
}

#[tokio::test]
async fn a_changed_log_is_noticed() {
    let (dir, clock, _) = small().await;
    let log = dir.path().join("shards/0/log.db");
    let mut bytes = fs::read(&log).unwrap();
    // The chain's context is unknown to whoever writes by hand; any byte of a row will do.
    let at = bytes.len() - 30;
    bytes[at] ^= 1;
    fs::write(&log, bytes).unwrap();
    assert!(matches!(
        Store::open(dir.path(), clock, eager()),
        Err(StoreError::Corrupt { .. })
    ));
}

#[tokio::test]
async fn a_newer_format_and_another_file_are_refused_and_left_alone() {
    for (offset, value) in [(60, 99u32), (68, 0x1234_5678)] {
        let (dir, clock, _) = small().await;
        let state = dir.path().join("shards/0/state.db");
        let mut bytes = fs::read(&state).unwrap();
        bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
        fs::write(&state, &bytes).unwrap();
        let error = Store::open(dir.path(), clock, eager()).unwrap_err();
        assert!(
            matches!(error, StoreError::Newer { .. } | StoreError::Foreign { .. }),
            "{error}"
        );
        assert_eq!(fs::read(&state).unwrap(), bytes);
    }
}

/// Not a benchmark: says what order of magnitude a commit is in, and fails when it is another.
#[tokio::test(flavor = "multi_thread")]
async fn many_reports_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    Store::create(dir.path(), Layout::new(1)).unwrap();
    let clock = Clock::system();
    let store = Store::open(dir.path(), clock.clone(), eager()).unwrap();
    let begun = clock.instant();
    let mut tasks = tokio::task::JoinSet::new();
    let (agents, reports, series) = (64u128, 20u64, 60usize);
    for agent in 0..agents {
        let store = store.clone();
        tasks.spawn(async move {
            let (node, incarnation) = (
                NodeId(Uuid::from_u128(agent)),
                Incarnation(Uuid::from_u128(7)),
            );
            let keys: Vec<_> = (0..series)
                .map(|n| {
                    Arc::new(SeriesKey::new(
                        "node_cpu_seconds_total",
                        &[("cpu", n.to_string().as_str())],
                    ))
                })
                .collect();
            for seq in 1..=reports {
                let samples = keys.iter().map(|key| Sample {
                    key: Arc::clone(key),
                    kind: SeriesType::Counter,
                    value: f64::from(u32::try_from(seq).unwrap()) * 0.01,
                });
                let snapshot = Snapshot {
                    interval_ms: 10_000,
                    samples: samples.collect(),
                };
                let reports =
                    Reports::encode(node, incarnation, seq, vec![(seq, time_of(seq), snapshot)]);
                store.append_reports(reports).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let took = clock.instant() - begun;
    let total = u64::try_from(agents).unwrap() * reports;
    let log = fs::metadata(dir.path().join("shards/0/head.db"))
        .unwrap()
        .len()
        + fs::metadata(dir.path().join("shards/0/head.db-wal"))
            .unwrap()
            .len();
    println!(
        "{total} durable reports of {series} samples in {took:?}: {:.0} reports/s, {:.2} bytes a sample in the log",
        u32::try_from(total).map(f64::from).unwrap() / took.as_secs_f64(),
        f64::from(u32::try_from(log).unwrap()) / f64::from(u32::try_from(total).unwrap() * 60)
    );
    let index = count(&store, "SELECT max(applied_index) FROM shards").await;
    assert!(
        u64::try_from(index).unwrap() < total,
        "{index} commits for {total} reports"
    );
}
