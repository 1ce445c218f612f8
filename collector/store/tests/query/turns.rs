//! Connections are used by one query after another: none sees or meets what another left.

use std::{fs, path::Path, time::Duration};

use nexus_proto::{ids::NodeId, time::Timestamp};
use nexus_store::{QueryOptions, StoreError, Value, entry::LabelsSet};
use rusqlite::OpenFlags;

use crate::{World, text, world};

fn of(nodes: &[NodeId]) -> QueryOptions {
    QueryOptions {
        nodes: Some(nodes.to_vec()),
        ..QueryOptions::default()
    }
}

async fn count(world: &World, sql: &str, options: QueryOptions) -> i64 {
    let rows = world.rows(sql, options).await.unwrap();
    match rows[0][0] {
        Value::Integer(count) => count,
        ref other => panic!("{sql}: {other:?}"),
    }
}

/// How often files beneath a folder whose name ends so are open in this process.
fn opened(dir: &Path, name: &str) -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let files = open.filter_map(|one| fs::read_link(one.path()).ok());
    let ours = files.filter(|file| file.starts_with(dir));
    ours.filter(|file| file.to_string_lossy().ends_with(name))
        .count()
}

#[tokio::test]
async fn each_caller_sees_its_own_nodes_whoever_came_before() {
    let world = world().await;
    let seen = [
        "SELECT count(*) FROM nodes",
        "SELECT count(*) FROM packages",
        "SELECT count(*) FROM package_versions",
        "SELECT count(*) FROM labels",
        "SELECT count(*) FROM metrics",
        "SELECT count(*) FROM metrics WHERE name = 'node_load1'",
        "SELECT count(*) FROM nodes n JOIN metrics m ON m.node_id = n.id JOIN metrics o ON o.node = n.name",
        "SELECT count(*) FROM nodes n JOIN metric_history h ON h.node = n.name AND h.name = 'node_load1'",
        "SELECT count(*) FROM lanes WHERE lane = 'metrics' AND seq = 1",
        "SELECT count(*) FROM nodes WHERE last_seen > '1971'",
    ];
    let (all, mine, yours) = (
        QueryOptions::default(),
        of(&world.nodes[1..2]),
        of(&world.nodes[2..5]),
    );
    for turn in [&all, &mine, &yours, &all, &yours, &mine, &of(&[]), &all] {
        for sql in seen {
            let expected = turn.nodes.as_ref().map_or(world.nodes.len(), Vec::len);
            let expected = i64::try_from(expected).unwrap();
            assert_eq!(count(&world, sql, turn.clone()).await, expected, "{sql}");
        }
        // Nor by asking for one of the others.
        let other = world.nodes[5];
        for sql in [
            "SELECT count(*) FROM metrics WHERE node = 'node-5'".to_owned(),
            format!("SELECT count(*) FROM metrics WHERE node_id = '{other}'"),
            format!(
                "SELECT count(*) FROM metric_history WHERE node_id = '{other}' AND name = 'node_load1'"
            ),
            format!("SELECT count(*) FROM nodes WHERE id = '{other}'"),
        ] {
            let expected = i64::from(turn.nodes.is_none());
            assert_eq!(count(&world, &sql, turn.clone()).await, expected, "{sql}");
        }
        for sql in [
            "SELECT * FROM nexus_permitted",
            "SELECT * FROM nexus_newest",
            "DELETE FROM nexus_permitted",
            "CREATE TEMP VIEW mine AS SELECT 1",
        ] {
            let refused = world.rows(sql, turn.clone()).await.unwrap_err();
            assert!(matches!(refused, StoreError::Query(_)), "{sql}: {refused}");
        }
    }
}

#[tokio::test]
async fn the_past_is_seen_by_whoever_asked_for_it() {
    let world = world().await;
    let labels = LabelsSet {
        node: world.nodes[0].to_wire(),
        time_ms: 9000,
        ..LabelsSet::default()
    };
    let sql = "SELECT labels FROM nodes WHERE name = 'node-0'";
    let before = text(r#"{"number":"0"}"#);
    assert_eq!(world.all(sql).await, [[before.clone()]]);
    world
        .store
        .append_for(world.nodes[0], labels)
        .await
        .unwrap();
    let then = QueryOptions {
        as_of: Some(Timestamp(8999)),
        ..QueryOptions::default()
    };
    for _ in 0..2 {
        assert_eq!(world.all(sql).await, [[text("{}")]]);
        let past = world.rows(sql, then.clone()).await.unwrap();
        assert_eq!(past, [[before.clone()]]);
    }
}

#[tokio::test]
async fn a_query_has_its_own_deadline_and_its_own_refusal() {
    let world = world().await;
    let soon = QueryOptions {
        timeout: Duration::from_millis(100),
        ..QueryOptions::default()
    };
    let counting =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000)
        SELECT count(*) FROM n";
    for _ in 0..3 {
        world.rows("SELECT 1", soon.clone()).await.unwrap();
        assert_eq!(world.all(counting).await, [[Value::Integer(400_000)]]);
        let refused = world.refusal("PRAGMA user_version").await;
        assert_eq!(refused, "PRAGMA is not allowed");
        assert_eq!(
            world.refusal("SELECT nope").await,
            "no such column: nope (line 1, column 8)"
        );
    }
}

#[tokio::test]
async fn connections_wait_in_bounded_number_and_go_with_the_store() {
    let world = world().await;
    let (dir, store) = (world.dir.path(), &world.store);
    let file = "audit.db";
    let without = opened(dir, file);
    for _ in 0..5 {
        world.all("SELECT count(*) FROM nodes").await;
        assert_eq!(opened(dir, file), without + 1, "one serves them all");
    }
    // Longer than what waits for a reader, so that they run at the same time, as many as may.
    let long = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) SELECT i FROM n";
    for _ in 0..3 {
        let mut answers = Vec::new();
        for _ in 0..4 {
            let answer = store.query(long, QueryOptions::default()).await.unwrap();
            answers.push(answer);
        }
        for mut answer in answers {
            while let Some(batch) = answer.next().await {
                batch.unwrap();
            }
        }
        assert_eq!(opened(dir, file), without + 4);
    }
    let World {
        dir: folder, store, ..
    } = world;
    drop(store);
    assert_eq!(opened(folder.path(), ""), 0);
}

#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "it looks at a file from outside the store"
)]
async fn a_connection_that_waits_keeps_no_snapshot() {
    let world = world().await;
    world.all("SELECT * FROM nodes JOIN packages").await;
    for node in &world.nodes {
        let labels = LabelsSet {
            node: node.to_wire(),
            ..LabelsSet::default()
        };
        world.store.append_for(*node, labels).await.unwrap();
    }
    for shard in 0..world.store.shards() {
        let path = world.path.join(format!("shards/{shard}/state.db"));
        let outside =
            rusqlite::Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        let left: (i64, i64) = outside
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(left, (0, 0), "the WAL cannot be cleared away");
    }
    assert_eq!(
        world.all("SELECT DISTINCT labels FROM nodes").await,
        [[text("{}")]]
    );
}
