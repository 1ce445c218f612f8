//! What becomes of a head's rows, whatever happens beside it.

use std::sync::Arc;

use nexus_proto::metrics::{Sample, SeriesKey, SeriesType, Snapshot};

use super::*;
use crate::{
    chunks::Ask,
    entry::Reports,
    head::Head,
    metrics::{self, Metrics, Settings},
};

const NOW: Timestamp = Timestamp(1_700_006_400_000);

/// The metrics of a shard, and a writer of its head that tells nobody what it wrote.
struct World {
    _dir: tempfile::TempDir,
    metrics: Metrics,
    compaction: Compaction,
    head: Head,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        metrics::create(folder).unwrap();
        let settings = Settings::default();
        let clock = Clock::fixed(NOW);
        let (metrics, compaction) = Metrics::open(folder, clock, settings, KeyPool::new()).unwrap();
        Self {
            head: Head::open(&folder.join(metrics::HEAD)).unwrap(),
            _dir: dir,
            metrics,
            compaction,
        }
    }

    /// A report of a node as the only one of a row.
    fn append(&mut self, node: NodeId, incarnation: Incarnation, seq: u64) -> i64 {
        let reports = vec![(seq, time(seq), snapshot(seq))];
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
            name: "level",
            labels: &[],
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

fn snapshot(seq: u64) -> Snapshot {
    Snapshot {
        interval_ms: 10_000,
        samples: vec![Sample {
            key: Arc::new(SeriesKey::new("level", &[])),
            kind: SeriesType::Gauge,
            value: f64::from(u32::try_from(seq).unwrap()),
        }],
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
    world.compaction.turn(NOW, true).unwrap();
    assert_eq!(world.compaction.file.chunked().unwrap(), row - 1);
    world.note(other, row);
    assert_eq!(world.times(one), [time(1)]);
    assert_eq!(world.times(other), [time(1)]);
    world.compaction.turn(NOW, true).unwrap();
    assert_eq!(world.compaction.file.chunked().unwrap(), row);
    assert_eq!(world.times(other), [time(1)]);
}
