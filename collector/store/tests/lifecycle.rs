//! A store on real files: what is appended is applied once, survives reopening, and follows from the log.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

#[cfg(test)]
#[path = "lifecycle/control.rs"]
mod control;
#[cfg(test)]
#[path = "lifecycle/files.rs"]
mod files;
#[cfg(test)]
#[path = "lifecycle/reports.rs"]
mod reports;

use std::sync::Arc;

use nexus_proto::{
    agent::v1::NodeFacts,
    ids::{Incarnation, Lane, NodeId},
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    record::{Body, Cell, Record, Row, Section},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{
    Layout, Settings, Store,
    entry::{NodeEnrolled, Outcome, Records, Reports},
};

fn snapshot(value: f64) -> Snapshot {
    let sample = |name: &str, labels: &[(&str, &str)], value| Sample {
        key: Arc::new(SeriesKey::new(name, labels)),
        kind: SeriesType::Gauge,
        value,
    };
    Snapshot {
        interval_ms: 10_000,
        samples: vec![
            sample("node_load1", &[], value),
            sample("node_cpu", &[("cpu", "0")], 2.0),
        ],
    }
}

fn record(seq: u64, body: Body) -> Record {
    Record {
        seq,
        time: Timestamp(1_000_000 + i64::try_from(seq).unwrap()),
        body,
    }
}

fn packages(names: &[&str]) -> Body {
    let rows = names
        .iter()
        .map(|name| Row(vec![(*name).to_owned().into(), Cell::Text("1".into())]))
        .collect();
    Body::Section(Section::new("packages", rows))
}

struct World {
    dir: tempfile::TempDir,
    clock: Clock,
    store: Store,
    node: NodeId,
    incarnation: Incarnation,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Store::create(dir.path(), Layout::new(2)).unwrap();
        let clock = Clock::fixed(Timestamp(2_000_000));
        let store = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap();
        let (node, incarnation) = (NodeId::random(), Incarnation::random());
        let enrolled = NodeEnrolled {
            node: node.to_wire(),
            name: "web-1".into(),
            incarnation: incarnation.to_wire(),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            facts: Some(NodeFacts {
                kernel: "6.1".into(),
                ..NodeFacts::default()
            }),
            certificate_expires_ms: 9_000_000,
            time_ms: 2_000_000,
        };
        assert_eq!(
            store.append_for(node, enrolled).await.unwrap(),
            Outcome::Applied
        );
        Self {
            dir,
            clock,
            store,
            node,
            incarnation,
        }
    }

    async fn report(&self, lane: Lane, records: Vec<Record>) -> Outcome {
        let (node, incarnation) = (self.node, self.incarnation);
        if lane == Lane::Metrics {
            let snapshots = records.into_iter().map(|record| match record.body {
                Body::Metrics(snapshot) => (record.seq, record.time, snapshot),
                other => panic!("{other:?}"),
            });
            let reports = Reports::encode(node, incarnation, 1, snapshots.collect());
            return self.store.append_reports(reports).await.unwrap();
        }
        self.store
            .append_for(
                node,
                Records {
                    node,
                    incarnation,
                    lane,
                    records,
                },
            )
            .await
            .unwrap()
    }

    fn reopen(self) -> Self {
        let Self {
            dir,
            clock,
            store,
            node,
            incarnation,
        } = self;
        drop(store);
        let store = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap();
        Self {
            dir,
            clock,
            store,
            node,
            incarnation,
        }
    }

    async fn same_when_rebuilt(&self) {
        for shard in 0..self.store.shards() {
            let digest = self.store.digest(shard).unwrap();
            self.store.rebuild_projections(shard).await.unwrap();
            assert_eq!(self.store.digest(shard).unwrap(), digest);
        }
    }
}
