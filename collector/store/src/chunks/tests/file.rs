//! What is written to the file is found in it, and nothing else is.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nexus_proto::{
    ids::{Incarnation, NodeId},
    metrics::{SeriesKey, SeriesType},
    time::Timestamp,
};

use crate::{
    StoreError,
    chunks::{
        Ask, Budget, Builder, Built, Cursor, Held, Keep, Key, MetricsFile, NodeBatch, Point,
        Resolution, Resume, Totals,
        read::{self, Samples},
    },
    db,
};

pub(super) const START: i64 = 1_700_006_400_000;

pub(super) struct World {
    _dir: tempfile::TempDir,
    pub(super) path: PathBuf,
    pub(super) file: MetricsFile,
}

impl World {
    pub(super) fn new(keep: Keep) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.db");
        Self {
            file: MetricsFile::open(&path, keep).unwrap(),
            _dir: dir,
            path,
        }
    }

    /// Writes the reports of one node, at this time by the collector's clock.
    pub(super) fn write(&mut self, node: NodeId, now: i64, reports: &[(i64, &[(Key, f64)])]) {
        let chunks = build(reports, now);
        let mut writing = self.file.begin(Timestamp(now)).unwrap();
        writing
            .add(&NodeBatch {
                node,
                received: Timestamp(now),
                resume: b"state",
                cursors: &[],
                chunks: &chunks,
            })
            .unwrap();
        writing.commit(now).unwrap();
    }

    pub(super) fn ask(&self, ask: &Ask<'_>, head: Samples) -> read::Answer {
        let reader = db::open_reader(&self.path).unwrap();
        read::points(&reader, ask, head).unwrap()
    }
}

pub(super) fn build(reports: &[(i64, &[(Key, f64)])], now: i64) -> Vec<Built> {
    let mut builder = Builder::new().unwrap();
    for (time, samples) in reports {
        let samples = samples
            .iter()
            .map(|((key, kind), value)| (key, *kind, *value));
        let (time, received) = (Timestamp(*time), Timestamp(now));
        builder.push(time, received, 10_000, samples).unwrap();
    }
    builder.finish().unwrap()
}

pub(super) fn series(name: &str, device: &str, kind: SeriesType) -> Key {
    (Arc::new(SeriesKey::new(name, &[("device", device)])), kind)
}

type Wanted = &'static dyn Fn(&SeriesKey) -> bool;

fn wanted(name: &'static str) -> Wanted {
    Box::leak(Box::new(move |key: &SeriesKey| key.name == name))
}

pub(super) fn all_of(node: NodeId, name: &'static str) -> Ask<'static> {
    Ask {
        node,
        wanted: wanted(name),
        most: usize::MAX,
        from: Timestamp(i64::MIN),
        to: Timestamp(i64::MAX),
        step: None,
    }
}

fn plain(points: &[Point]) -> Vec<(i64, f64)> {
    points
        .iter()
        .map(|point| (point.time.as_ms(), point.last))
        .collect()
}

#[test]
fn points_come_in_order_from_chunks_and_head_and_the_last_that_came_wins() {
    let mut world = World::new(Keep::default());
    let node = NodeId::random();
    let (sda, sdb) = (
        series("disk", "sda", SeriesType::Counter),
        series("disk", "sdb", SeriesType::Counter),
    );
    let other = series("load", "", SeriesType::Gauge);
    let at = |n: i64| START + n * 10_000;
    world.write(
        node,
        at(9),
        &[
            (at(3), &[(sda.clone(), 3.0), (other.clone(), 0.5)]),
            (at(1), &[(sda.clone(), 1.0), (sdb.clone(), 11.0)]),
            (at(5), &[(sda.clone(), 5.0)]),
        ],
    );
    world.write(
        node,
        at(10),
        &[
            (at(2), &[(sda.clone(), 2.0)]),
            (at(5), &[(sda.clone(), 5.5)]),
        ],
    );
    world.write(NodeId::random(), at(10), &[(at(4), &[(sda.clone(), 4.0)])]);
    let head: Samples = [(sda.clone(), vec![(at(6), 6.0), (at(2), 2.5)])].into();
    let answer = world.ask(&all_of(node, "disk"), head.clone());
    assert_eq!(answer.resolution, Resolution::Raw);
    let found: Vec<_> = answer
        .lines
        .iter()
        .map(|line| (&line.key, plain(&line.points)))
        .collect();
    let values = [(1, 1.0), (2, 2.5), (3, 3.0), (5, 5.5), (6, 6.0)];
    let values: Vec<(i64, f64)> = values.iter().map(|(n, value)| (at(*n), *value)).collect();
    assert_eq!(found, [(&sda, values), (&sdb, vec![(at(1), 11.0)])]);

    let some = Ask {
        wanted: &|key| key.name == "disk" && key.label("device") == Some("sda"),
        from: Timestamp(at(2)),
        to: Timestamp(at(3)),
        ..all_of(node, "disk")
    };
    let answer = world.ask(&some, head);
    assert_eq!(plain(&answer.lines[0].points), [(at(2), 2.5), (at(3), 3.0)]);
    assert_eq!(answer.lines.len(), 1);
    assert!(
        world
            .ask(&all_of(NodeId::random(), "disk"), Samples::new())
            .lines
            .is_empty()
    );
    let totals = world.file.totals().unwrap();
    assert_eq!((totals.held[0].chunks, totals.held[0].samples), (3, 8));
    assert_eq!(totals.held[0].oldest, Some(Timestamp(at(9))));
}

#[test]
fn what_is_not_committed_never_was() {
    let mut world = World::new(Keep::default());
    let (node, key) = (NodeId::random(), series("a", "b", SeriesType::Gauge));
    let chunks = build(&[(START, &[(key.clone(), 1.0)])], START);
    let incarnation = Incarnation::random();
    let cursors = [Cursor {
        incarnation,
        seq: 7,
        records: 6,
    }];
    let batch = NodeBatch {
        node,
        received: Timestamp(START),
        resume: b"one",
        cursors: &cursors,
        chunks: &chunks,
    };
    let mut writing = world.file.begin(Timestamp(START)).unwrap();
    writing.add(&batch).unwrap();
    drop(writing);
    assert_eq!(world.file.chunked().unwrap(), 0);
    assert_eq!(world.file.totals().unwrap().held[0].chunks, 0);
    world.file.resumes(|resume| panic!("{resume:?}")).unwrap();

    let mut writing = world.file.begin(Timestamp(START)).unwrap();
    writing.add(&batch).unwrap();
    writing.commit(42).unwrap();
    let answer = world.ask(&all_of(node, "a"), Samples::new());
    assert_eq!(plain(&answer.lines[0].points), [(START, 1.0)]);
    let mut found = Vec::new();
    let path = world.path.clone();
    world.file.close();
    let file = MetricsFile::open(&path, Keep::default()).unwrap();
    file.resumes(|resume| {
        found.push(resume);
        Ok(())
    })
    .unwrap();
    let resume = Resume {
        node,
        received: Timestamp(START),
        state: b"one".to_vec(),
        cursors: cursors.to_vec(),
    };
    assert_eq!(found, [resume]);
    assert_eq!(file.chunked().unwrap(), 42);
}

#[test]
fn a_node_that_is_forgotten_leaves_nothing() {
    let mut world = World::new(Keep::default());
    let (one, other) = (NodeId::random(), NodeId::random());
    let (common, own) = (
        series("a", "b", SeriesType::Gauge),
        series("own", "b", SeriesType::Gauge),
    );
    world.write(one, START, &[(START, &[(common.clone(), 1.0), (own, 2.0)])]);
    world.write(other, START, &[(START, &[(common.clone(), 1.0)])]);
    let rows = |world: &World, table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        let connection = &world.file.connection;
        connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(rows(&world, "keysets"), 2);
    world.file.forget(one, Timestamp(START)).unwrap();
    for table in ["nodes", "raw", "keysets", "due"] {
        assert_eq!(rows(&world, table), 1, "{table}");
    }
    assert_eq!(
        world.ask(&all_of(other, "a"), Samples::new()).lines.len(),
        1
    );
    world.file.forget(other, Timestamp(START)).unwrap();
    assert_eq!(world.file.totals().unwrap().held, [Held::default(); 3]);
    // A list that is gone is made again.
    world.write(one, START, &[(START, &[(common, 1.0)])]);
    assert_eq!(world.ask(&all_of(one, "a"), Samples::new()).lines.len(), 1);
}

/// Writes so many reports of some series that nothing makes small, each into a chunk of its own.
fn fill(world: &mut World, reports: i64) -> NodeId {
    let node = NodeId::random();
    for n in 0..reports {
        let noise = |m: i64| f64::from_bits((n * 300 + m + 1).unsigned_abs().wrapping_pow(11));
        let samples: Vec<(Key, f64)> = (0..300)
            .map(|m| (series("noise", &m.to_string(), SeriesType::Gauge), noise(m)))
            .collect();
        let at = START + n * 5_000;
        world.write(node, at, &[(at, &samples)]);
    }
    node
}

fn run_to_the_end(world: &mut World, now: i64) -> usize {
    let budget = Budget {
        windows: 2,
        chunks: 7,
        pages: 20,
    };
    let mut steps = 0;
    while world.file.step(Timestamp(now), budget).unwrap().worked() {
        steps += 1;
    }
    steps
}

#[test]
fn what_is_too_old_goes_in_steps_and_the_file_shrinks() {
    let span = Duration::from_secs(300);
    let mut world = World::new(Keep {
        raw: span,
        minutes: span,
        hours: span,
        bytes: u64::MAX,
    });
    let node = fill(&mut world, 300);
    let before = world.file.totals().unwrap();
    let now = START + 300 * 5_000;
    let steps = run_to_the_end(&mut world, now);
    assert!(steps > 240 / 7, "{steps}");
    let after = world.file.totals().unwrap();
    assert_eq!((before.held[0].chunks, after.held[0].chunks), (300, 60));
    assert_eq!(after.held[0].oldest, Some(Timestamp(START + 240 * 5_000)));
    assert!(after.held[0].bytes * 4 < before.held[0].bytes, "{after:?}");
    let first = Ask {
        from: Timestamp(now - 100_000),
        ..all_of(node, "noise")
    };
    assert_eq!(world.ask(&first, Samples::new()).lines[0].points.len(), 20);
    // What was about to go was rolled up before.
    let minutes = Ask {
        step: Some(Duration::from_secs(60)),
        ..all_of(node, "noise")
    };
    assert_eq!(
        world.ask(&minutes, Samples::new()).lines[0].points.len(),
        25
    );
    run_to_the_end(&mut world, now + 301_000);
    run_to_the_end(&mut world, now + 603_000);
    let end = world.file.totals().unwrap();
    assert_eq!(end.held.map(|held| held.chunks), [0, 0, 0]);
    let all = |totals: Totals| totals.bytes + totals.free_bytes;
    assert!(
        all(end) <= 300 * 4096 && end.bytes < 80_000,
        "{before:?} {end:?}"
    );
}

#[test]
fn a_file_beyond_its_bound_loses_the_oldest() {
    let bytes = 600 << 10;
    let mut world = World::new(Keep {
        bytes,
        ..Keep::default()
    });
    fill(&mut world, 300);
    assert!(world.file.totals().unwrap().bytes > 2 * bytes);
    run_to_the_end(&mut world, START + 300 * 5_000);
    let after = world.file.totals().unwrap();
    assert!(
        after.bytes <= bytes && after.held[0].chunks > 50,
        "{after:?}"
    );
    assert!(
        after.held[0].oldest > Some(Timestamp(START + 100 * 5_000)),
        "{after:?}"
    );
}

#[test]
fn a_damaged_chunk_is_named() {
    let mut world = World::new(Keep::default());
    let (node, key) = (NodeId::random(), series("a", "b", SeriesType::Gauge));
    world.write(node, START, &[(START, &[(key, 1.0)])]);
    let connection = &world.file.connection;
    connection
        .execute("UPDATE raw SET body = x'010007'", [])
        .unwrap();
    let reader = db::open_reader(&world.path).unwrap();
    let error = read::points(&reader, &all_of(node, "a"), Samples::new()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }));
    let said = error.to_string();
    assert_eq!(
        said,
        format!("chunk 1 of raw in the metrics of node {node} is damaged")
    );
}
