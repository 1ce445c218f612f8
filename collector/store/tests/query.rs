//! SQL over a store: what it shows, and all that it refuses.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

#[cfg(test)]
#[path = "query/costs.rs"]
mod costs;
#[cfg(test)]
#[path = "query/functions.rs"]
mod functions;
#[cfg(test)]
#[path = "query/refusals.rs"]
mod refusals;
#[cfg(test)]
#[path = "query/turns.rs"]
mod turns;

use std::{path::PathBuf, sync::Arc, time::Duration};

use nexus_proto::{
    ids::{Incarnation, Lane, NodeId},
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    operator::v1::AuditRow,
    record::{Body, Cell, Record, Row, Section},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{
    Layout, QueryOptions, Settings, Store, StoreError, Value,
    entry::{LabelsSet, NodeEnrolled, Records, Reports},
};

const NODES: usize = 6;

struct World {
    dir: tempfile::TempDir,
    path: PathBuf,
    store: Store,
    nodes: Vec<NodeId>,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a ?#% folder");
    Store::create(&path, Layout::new(3)).unwrap();
    let store = Store::open(&path, Clock::system(), Settings::default()).unwrap();
    let mut nodes = Vec::new();
    for number in 0..NODES {
        let (node, incarnation) = (NodeId::random(), Incarnation::random());
        let enrolled = NodeEnrolled {
            node: node.to_wire(),
            name: format!("node-{number}"),
            incarnation: incarnation.to_wire(),
            labels: [("number".to_owned(), number.to_string())].into(),
            time_ms: 1000,
            ..NodeEnrolled::default()
        };
        store.append_for(node, enrolled).await.unwrap();
        let rows = vec![Row(vec![
            Cell::Text("bash".into()),
            Cell::Text(format!("5.{number}")),
        ])];
        let section = Body::Section(Section::new("packages", rows));
        let sample = Sample {
            key: Arc::new(SeriesKey::new("node_load1", &[("a", "b")])),
            kind: SeriesType::Gauge,
            value: f64::from(u32::try_from(number).unwrap()),
        };
        let snapshot = Snapshot {
            interval_ms: 10_000,
            samples: vec![sample],
        };
        let records = vec![Record {
            seq: 1,
            time: Timestamp(5000),
            body: section,
        }];
        let records = Records {
            node,
            incarnation,
            lane: Lane::Inventory,
            records,
        };
        store.append_for(node, records).await.unwrap();
        let reports = vec![(1, Timestamp(5000), snapshot)];
        let reports = Reports::encode(node, incarnation, 1, reports);
        store.append_reports(reports).await.unwrap();
        nodes.push(node);
    }
    store
        .audit(AuditRow {
            action: "Login".into(),
            ..AuditRow::default()
        })
        .await
        .unwrap();
    World {
        dir,
        path,
        store,
        nodes,
    }
}

impl World {
    async fn rows(&self, sql: &str, options: QueryOptions) -> Result<Vec<Vec<Value>>, StoreError> {
        let mut stream = self.store.query(sql, options).await?;
        let mut rows = Vec::new();
        while let Some(batch) = stream.next().await {
            rows.extend(batch?);
        }
        Ok(rows)
    }

    async fn all(&self, sql: &str) -> Vec<Vec<Value>> {
        self.rows(sql, QueryOptions::default())
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    async fn refusal(&self, sql: &str) -> String {
        match self
            .rows(
                sql,
                QueryOptions {
                    timeout: Duration::from_secs(5),
                    ..QueryOptions::default()
                },
            )
            .await
        {
            Ok(rows) => panic!("{sql} gave {rows:?}"),
            Err(error) => error.to_string(),
        }
    }
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

#[tokio::test]
async fn every_view_answers() {
    let world = world().await;
    for view in world.store.schema() {
        let mut sql = format!("SELECT * FROM {}", view.name);
        if view.name == "metric_history" {
            sql.push_str(" WHERE node = 'node-1' AND name = 'node_load1'");
        }
        let mut stream = world
            .store
            .query(&sql, QueryOptions::default())
            .await
            .unwrap();
        let columns: Vec<_> = view
            .columns
            .iter()
            .map(|column| column.name.clone())
            .collect();
        assert_eq!(stream.columns, columns, "{}", view.name);
        while let Some(batch) = stream.next().await {
            batch.unwrap();
        }
        for as_of in [0, 5_000_000_000_000] {
            let options = QueryOptions {
                as_of: Some(Timestamp(as_of)),
                ..QueryOptions::default()
            };
            world.rows(&sql, options).await.unwrap();
        }
    }
}

#[tokio::test]
async fn views_span_the_shards() {
    let world = world().await;
    assert_eq!(
        world
            .all("SELECT count(*), count(DISTINCT shard) > 1 FROM nodes")
            .await[0][0],
        Value::Integer(6)
    );
    assert_eq!(
        world
            .all("SELECT name, id, enrolled_at FROM nodes WHERE name = 'node-2'; -- done")
            .await,
        [[
            text("node-2"),
            text(&world.nodes[2].to_string()),
            text("1970-01-01T00:00:01.000Z")
        ]]
    );
    assert_eq!(
        world
            .all("SELECT node, version FROM packages WHERE name = 'bash' ORDER BY 1 LIMIT 1")
            .await,
        [[text("node-0"), text("5.0")]]
    );
    assert_eq!(
        world
            .all("SELECT value FROM metrics WHERE node = 'node-3' AND name = 'node_load1'")
            .await,
        [[Value::Real(3.0)]]
    );
    assert_eq!(
        world.all("SELECT sum(value) FROM metrics").await,
        [[Value::Real(15.0)]]
    );
    assert_eq!(
        world.all("SELECT value, labels, time FROM metric_history WHERE node = 'node-3' AND name = 'node_load1'").await,
        [[Value::Real(3.0), text(r#"{"a":"b"}"#), text("1970-01-01T00:00:05.000Z")]]
    );
    assert_eq!(
        world
            .all("SELECT node FROM labels WHERE key = 'number' AND value = '4'")
            .await,
        [[text("node-4")]]
    );
    assert_eq!(
        world.all("SELECT action FROM audit").await,
        [[text("Login")]]
    );
    assert_eq!(
        world.all("SELECT sum(nodes), sum(slots) FROM shards").await,
        [[Value::Integer(6), Value::Integer(4096)]]
    );
    let shards = world
        .all("SELECT count(*), min(applied_index) >= 0 FROM shards")
        .await;
    assert_eq!(shards, [[Value::Integer(3), Value::Integer(1)]]);
    assert_eq!(
        world.all("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT sum(i) FROM n").await,
        [[Value::Integer(45)]]
    );
}

#[tokio::test]
async fn the_past_and_the_permitted_nodes_alone_are_seen() {
    let world = world().await;
    let labels = LabelsSet {
        node: world.nodes[0].to_wire(),
        time_ms: 9000,
        ..LabelsSet::default()
    };
    world
        .store
        .append_for(world.nodes[0], labels)
        .await
        .unwrap();
    let labels = "SELECT labels FROM nodes WHERE name = 'node-0'";
    assert_eq!(world.all(labels).await, [[text("{}")]]);
    let then = |ms| QueryOptions {
        as_of: Some(Timestamp(ms)),
        ..QueryOptions::default()
    };
    assert_eq!(
        world.rows(labels, then(8999)).await.unwrap(),
        [[text(r#"{"number":"0"}"#)]]
    );
    assert!(world.rows(labels, then(999)).await.unwrap().is_empty());
    let mine = QueryOptions {
        nodes: Some(vec![world.nodes[1]]),
        ..QueryOptions::default()
    };
    for view in ["nodes", "packages", "package_versions", "metrics", "labels"] {
        let rows = world
            .rows(&format!("SELECT count(*) FROM {view}"), mine.clone())
            .await
            .unwrap();
        assert_eq!(rows, [[Value::Integer(1)]], "{view}");
    }
}

#[tokio::test]
async fn versions_are_counted_over_the_shards_and_for_whoever_asks() {
    let world = world().await;
    let report = |node: usize, seq, version: &str| {
        let row = |name: &str, arch: &str| {
            let cells = [name, version, arch].map(|cell| Cell::Text(cell.into()));
            Row(cells.to_vec())
        };
        let rows = vec![
            row("bash", "amd64"),
            row("libc6", "amd64"),
            row("libc6", "i386"),
        ];
        let node = world.nodes[node];
        let incarnation = Incarnation::from_wire(&[7; 16]).unwrap();
        let records = vec![Record {
            seq,
            time: Timestamp(5000),
            body: Body::Section(Section::new("packages", rows)),
        }];
        let records = Records {
            node,
            incarnation,
            lane: Lane::Inventory,
            records,
        };
        let store = world.store.clone();
        async move { store.append_for(node, records).await.unwrap() }
    };
    for node in 0..4 {
        report(node, 1, "1").await;
    }
    report(3, 2, "2").await;
    let row =
        |name: &str, version: &str, nodes| vec![text(name), text(version), Value::Integer(nodes)];
    let sql = "SELECT * FROM package_versions WHERE version IN ('1', '2') ORDER BY name, version";
    assert_eq!(
        world.all(sql).await,
        [
            row("bash", "1", 3),
            row("bash", "2", 1),
            row("libc6", "1", 3),
            row("libc6", "2", 1),
        ]
    );
    // Those the others keep.
    assert_eq!(
        world
            .all("SELECT * FROM package_versions WHERE name = 'bash' AND version LIKE '5.%'")
            .await
            .len(),
        2
    );
    let mine = QueryOptions {
        nodes: Some(vec![world.nodes[0], world.nodes[3]]),
        ..QueryOptions::default()
    };
    assert_eq!(
        world.rows(sql, mine).await.unwrap(),
        [
            row("bash", "1", 1),
            row("bash", "2", 1),
            row("libc6", "1", 1),
            row("libc6", "2", 1),
        ]
    );
    let then = |ms| QueryOptions {
        as_of: Some(Timestamp(ms)),
        ..QueryOptions::default()
    };
    assert!(world.rows(sql, then(1)).await.unwrap().is_empty());
    let now = world.rows(sql, then(i64::MAX)).await.unwrap();
    assert_eq!(now, world.all(sql).await);
    // The rows say the same.
    assert_eq!(
        world
            .all("SELECT version, count(*) FROM packages WHERE name = 'libc6' GROUP BY version")
            .await,
        [
            [text("1"), Value::Integer(6)],
            [text("2"), Value::Integer(2)]
        ]
    );
}
