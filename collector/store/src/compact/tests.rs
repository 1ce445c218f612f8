//! What becomes of a head's rows, whatever happens beside it.

use std::sync::Arc;

use nexus_proto::metrics::{Sample, SeriesKey, SeriesType, Snapshot};

use super::*;
use crate::{
    chunks::{self, Ask},
    db,
    entry::Reports,
    head::Head,
    metrics::{self, Metrics, Settings},
};

const NOW: Timestamp = Timestamp(1_700_006_400_000);

/// The metrics of a shard, and a writer of its head that tells nobody what it wrote.
struct World {
    dir: tempfile::TempDir,
    clock: Clock,
    metrics: Metrics,
    compaction: Compaction,
    head: Head,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        metrics::create(dir.path()).unwrap();
        Self::open(dir, Clock::fixed(NOW))
    }

    fn open(dir: tempfile::TempDir, clock: Clock) -> Self {
        let (metrics, compaction) = Metrics::open(
            dir.path(),
            clock.clone(),
            Settings::default(),
            KeyPool::new(),
        )
        .unwrap();
        Self {
            head: Head::open(&dir.path().join(metrics::HEAD)).unwrap(),
            dir,
            clock,
            metrics,
            compaction,
        }
    }

    fn reopen(self) -> Self {
        self.metrics.close();
        self.compaction.file.close();
        Self::open(self.dir, self.clock)
    }

    fn turn(&mut self) -> Result<(), StoreError> {
        self.compaction.turn(&self.clock, true)
    }

    /// The file of chunks, from outside.
    fn file(&self) -> Connection {
        db::open_writer(&self.dir.path().join(metrics::CHUNKS), &chunks::format()).unwrap()
    }

    fn raw_chunks(&self) -> u64 {
        self.metrics.totals().held[0].chunks
    }

    /// A report of a node as the only one of a row.
    fn append(&mut self, node: NodeId, incarnation: Incarnation, seq: u64) -> i64 {
        self.append_series(node, incarnation, seq, 1)
    }

    fn append_series(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        seq: u64,
        series: u64,
    ) -> i64 {
        let reports = vec![(seq, time(seq), snapshot(seq, series))];
        let reports = Reports::encode(node, incarnation, 1, reports);
        self.head.append(vec![reports.to_part()], NOW).unwrap()
    }

    /// What the writer does after a row was appended.
    fn note(&self, node: NodeId, row: i64) {
        let mut memory = hold(&self.compaction.memory);
        memory.note_row(node, row);
        memory.note_all(row);
    }

    fn times(&self, node: NodeId) -> Vec<Timestamp> {
        let ask = Ask {
            node,
            wanted: &|key| key.name == "level",
            most: usize::MAX,
            from: Timestamp(0),
            to: Timestamp(i64::MAX),
            step: None,
        };
        let lines = self.metrics.points(&ask).unwrap().lines;
        let points = lines.into_iter().flat_map(|line| line.points);
        points.map(|point| point.time).collect()
    }
}

fn time(seq: u64) -> Timestamp {
    Timestamp(NOW.as_ms() + i64::try_from(seq).unwrap() * 10_000)
}

/// The more series, the more bytes: all but the first are noise.
fn snapshot(seq: u64, series: u64) -> Snapshot {
    let noise = |number: u64| f64::from_bits((seq * series + number).wrapping_pow(11));
    let samples = (0..series).map(|number| Sample {
        key: Arc::new(match number {
            0 => SeriesKey::new("level", &[]),
            _ => SeriesKey::new("noise", &[("number", &number.to_string())]),
        }),
        kind: SeriesType::Gauge,
        value: match number {
            0 => f64::from(u32::try_from(seq).unwrap()),
            _ => noise(number),
        },
    });
    Snapshot {
        interval_ms: 10_000,
        samples: samples.collect(),
    }
}

#[test]
fn a_row_that_is_not_noted_yet_stays_in_the_head() {
    let mut world = World::new();
    let (one, other) = (NodeId::random(), NodeId::random());
    let life = Incarnation::random();
    let row = world.append(one, life, 1);
    world.note(one, row);
    // The writer is between its commit and its note of whose reports it has committed.
    let row = world.append(other, life, 1);
    world.turn().unwrap();
    assert_eq!(world.compaction.file.chunked().unwrap(), row - 1);
    world.note(other, row);
    assert_eq!(world.times(one), [time(1)]);
    assert_eq!(world.times(other), [time(1)]);
    world.turn().unwrap();
    assert_eq!(world.compaction.file.chunked().unwrap(), row);
    assert_eq!(world.times(other), [time(1)]);
}

#[test]
fn a_large_head_is_taken_in_parts() {
    let mut world = World::new();
    let (node, life) = (NodeId::random(), Incarnation::random());
    for seq in 1..=3 {
        let row = world.append(node, life, seq);
        world.note(node, row);
    }
    world.compaction.cut_bytes = 1;
    world.turn().unwrap();
    assert_eq!(world.raw_chunks(), 3, "a row each");
    assert_eq!(world.compaction.file.chunked().unwrap(), 3);
    assert_eq!(world.times(node), [time(1), time(2), time(3)]);
}

#[test]
fn a_full_disk_does_not_keep_what_would_make_room() {
    let mut world = World::new();
    let (node, life) = (NodeId::random(), Incarnation::random());
    let row = world.append_series(node, life, 1, 4000);
    world.note(node, row);
    world.turn().unwrap();
    // Minutes and hours are made in time.
    for hours in [24, 5] {
        world.clock.advance(Duration::from_secs(hours * 3600));
        world.turn().unwrap();
    }
    assert_eq!(world.raw_chunks(), 1);
    world.clock.advance(Duration::from_secs(2 * 86_400));
    let row = world.append_series(node, life, 2, 3000);
    world.note(node, row);
    let pages: i64 = world
        .file()
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap();
    world.compaction.file.bound_pages(pages);

    let error = world.turn().unwrap_err();
    assert!(error.is_full_disk(), "{error}");
    let told = world.metrics.failing(world.clock.instant()).unwrap();
    assert!(told.contains("the disk is full"), "{told}");
    assert_eq!(world.raw_chunks(), 0, "the old one is gone");
    world.turn().unwrap();
    assert_eq!(world.metrics.failing(world.clock.instant()), None);
    assert_eq!(world.raw_chunks(), 1);
}

#[test]
fn what_a_node_resumes_with_may_be_damaged() {
    let mut world = World::new();
    let (node, life) = (NodeId::random(), Incarnation::random());
    let (other, its) = (NodeId::random(), Incarnation::random());
    for (node, life) in [(node, life), (other, its)] {
        let row = world.append(node, life, 1);
        world.note(node, row);
    }
    world.turn().unwrap();
    let sql = "UPDATE nodes SET resume = ?2 WHERE node = ?1";
    let state: Vec<u8> = world
        .file()
        .query_row(
            "SELECT resume FROM nodes WHERE node = ?1",
            [node.as_bytes()],
            |row| row.get(0),
        )
        .unwrap();
    for at in 0..state.len() {
        let mut damaged = state.clone();
        damaged[at] ^= 0x10;
        if Newest::unpack(&damaged).is_ok() {
            // A bit of the form's that says nothing.
            assert!(at < 8, "{at}");
            continue;
        }
        world
            .file()
            .execute(sql, rusqlite::params![node.as_bytes(), damaged])
            .unwrap();
    }
    let mut world = world.reopen();
    assert_eq!(world.metrics.tail(node, life).seq, 1);
    assert!(world.metrics.newest(node).is_none() && world.metrics.newest(other).is_some());
    assert_eq!(world.times(node), [time(1)]);
    for (node, life) in [(node, life), (other, its)] {
        let row = world.append(node, life, 2);
        world.note(node, row);
    }
    world.turn().unwrap();
    assert_eq!(world.times(node), [time(1), time(2)]);
    let world = world.reopen();
    assert_eq!(world.metrics.tail(node, life).seq, 2);
    assert!(world.metrics.newest(node).is_some());
}

#[test]
fn a_head_that_is_older_than_its_chunks_takes_new_rows() {
    let mut world = World::new();
    let (node, life) = (NodeId::random(), Incarnation::random());
    for seq in 1..=2 {
        let row = world.append(node, life, seq);
        world.note(node, row);
    }
    world.turn().unwrap();
    // As a copy from before would be.
    let world = {
        world.metrics.close();
        world.compaction.file.close();
        let head = world.dir.path().join(metrics::HEAD);
        drop(world.head);
        for suffix in ["", "-wal", "-shm"] {
            let file = format!("{}{suffix}", head.display());
            drop(std::fs::remove_file(file));
        }
        World::open(world.dir, world.clock)
    };
    let report = Reports::encode(node, life, 9, vec![(3, time(3), snapshot(3, 1))]);
    let mut world = world;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .unwrap()
        .block_on(world.metrics.append(report))
        .unwrap();
    assert_eq!(world.times(node), [time(1), time(2), time(3)]);
    world.turn().unwrap();
    assert_eq!(world.times(node), [time(1), time(2), time(3)]);
    assert_eq!(world.compaction.file.chunked().unwrap(), 3);
}

#[test]
fn what_was_appended_twice_counts_once() {
    let mut world = World::new();
    let (node, life) = (NodeId::random(), Incarnation::random());
    // The first commit failed at its end, and stands.
    for seq in [1, 1, 2] {
        let row = world.append(node, life, seq);
        world.note(node, row);
    }
    let mut world = world.reopen();
    assert_eq!(world.metrics.tail(node, life).records, 2);
    world.turn().unwrap();
    assert_eq!(world.metrics.totals().replaced, 0);
    let world = world.reopen();
    assert_eq!(world.metrics.tail(node, life).records, 2);
    assert_eq!(world.times(node), [time(1), time(2)]);
}
