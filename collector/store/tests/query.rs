//! SQL over a store: what it shows, and all that it refuses.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::{sync::Arc, time::Duration};

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
    _dir: tempfile::TempDir,
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
        _dir: dir,
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

#[tokio::test]
async fn all_but_one_read_only_statement_is_refused() {
    let world = world().await;
    let hostile = [
        "",
        "-- nothing",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE nodes",
        "ATTACH '/etc/passwd' AS p",
        "DETACH temp",
        "PRAGMA database_list",
        "PRAGMA writable_schema = 1",
        "SELECT * FROM pragma_database_list",
        "SELECT * FROM pragma_table_info('nodes')",
        "SELECT * FROM sqlite_master",
        "SELECT * FROM sqlite_schema",
        "SELECT * FROM temp.sqlite_schema",
        "SELECT * FROM sqlite_temp_master",
        "SELECT * FROM main.sqlite_master",
        "WITH nodes AS (SELECT * FROM temp.sqlite_schema) SELECT * FROM nodes",
        "SELECT load_extension('x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('/tmp/x', 'y')",
        "SELECT fts3_tokenizer('x')",
        "SELECT randomblob(1000000000)",
        "SELECT zeroblob(1000000000)",
        "SELECT sqlite_version()",
        "INSERT INTO nodes VALUES (1)",
        "DELETE FROM nodes",
        "UPDATE nodes SET name = 'x'",
        "CREATE TABLE t (a)",
        "CREATE TEMP TABLE t (a)",
        "CREATE TEMP VIEW v AS SELECT 1",
        "CREATE VIRTUAL TABLE t USING fts5(a)",
        "DROP VIEW nodes",
        "BEGIN",
        "COMMIT",
        "SAVEPOINT x",
        "VACUUM",
        "VACUUM INTO '/tmp/x.db'",
        "REINDEX",
        "ANALYZE",
        "EXPLAIN SELECT * FROM nodes",
        "EXPLAIN QUERY PLAN SELECT * FROM nodes",
        "SELECT * FROM nexus_newest",
        "SELECT * FROM nexus_permitted",
        "SELECT * FROM temp.nexus_permitted",
        "SELECT count(*) FROM sqlite_schema",
        "SELECT count(*) FROM pragma_database_list",
        "SELECT * FROM nope",
        "SELEC 1",
        "SELECT * FROM metric_history",
        "SELECT * FROM dbstat",
        "SELECT * FROM sqlite_dbpage",
        "SELECT * FROM bytecode('SELECT 1')",
    ];
    for sql in hostile {
        let why = world.refusal(sql).await;
        assert!(!why.contains('\n') && !why.is_empty(), "{sql}: {why:?}");
    }
    assert_eq!(
        world.refusal("SELECT\n  nope").await,
        "no such column: nope (line 2, column 3)"
    );
    assert_eq!(
        world.refusal("PRAGMA user_version").await,
        "PRAGMA is not allowed"
    );
}

#[tokio::test]
async fn tables_behind_the_views_cannot_be_named() {
    let world = world().await;
    // Shadowed by empty views, which may be read by nobody, or are not there at all.
    for table in [
        "chunks",
        "cursors",
        "meta",
        "inventory_packages",
        "node_history",
        "serials",
        "token_uses",
    ] {
        for sql in [
            format!("SELECT * FROM {table}"),
            format!("WITH packages AS (SELECT * FROM {table}) SELECT * FROM packages"),
            format!("WITH nodes AS (SELECT * FROM {table}) SELECT * FROM nodes"),
            format!("SELECT (SELECT count(*) FROM main.{table})"),
        ] {
            match world.rows(&sql, QueryOptions::default()).await {
                Ok(rows) => assert!(rows.is_empty(), "{sql}: {rows:?}"),
                Err(StoreError::Query(_)) => {}
                Err(error) => panic!("{sql}: {error}"),
            }
        }
    }
    // A view of a caller's own making under the name of ours still reads our view.
    let mine = QueryOptions {
        nodes: Some(vec![world.nodes[1]]),
        ..QueryOptions::default()
    };
    let sql = "WITH packages AS (SELECT name FROM nodes) SELECT * FROM packages";
    assert_eq!(world.rows(sql, mine).await.unwrap(), [[text("node-1")]]);
}

#[tokio::test]
async fn a_query_that_takes_much_memory_is_ended() {
    let world = world().await;
    let long = QueryOptions {
        timeout: Duration::from_secs(120),
        ..QueryOptions::default()
    };
    // While it runs, and while SQLite still makes a plan of it.
    let mut doubled = "WITH a0 AS (SELECT name FROM nodes)".to_owned();
    for level in 1..30 {
        let below = level - 1;
        doubled.push_str(&format!(
            ", a{level} AS (SELECT * FROM a{below} UNION ALL SELECT * FROM a{below})"
        ));
    }
    for hoard in [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
            SELECT i FROM n ORDER BY printf('%050000d', i)"
            .to_owned(),
        format!("{doubled} SELECT count(*) FROM a29"),
    ] {
        let error = world.rows(&hoard, long.clone()).await.unwrap_err();
        assert_eq!(error.to_string(), "the query needs too much memory");
    }
    assert_eq!(world.all("SELECT 1").await, [[Value::Integer(1)]]);
}

#[tokio::test]
async fn no_function_outlasts_the_deadline() {
    let world = world().await;
    let short = QueryOptions {
        timeout: Duration::from_millis(500),
        ..QueryOptions::default()
    };
    let (long, most) = (
        "printf('%.*c', 8000000, 'a')",
        "printf('%.*c', 4000000, 'a') || 'b'",
    );
    for sql in [
        format!("SELECT instr({long}, {most})"),
        format!("SELECT length(replace({long}, {most}, 'x'))"),
        format!("SELECT length(trim({long}, printf('%.*c', 600000, 'b') || 'a'))"),
        format!("SELECT {long} LIKE '%{}b%'", "a".repeat(1000)),
        format!("SELECT {long} GLOB '*{}b*'", "[a-z]".repeat(200)),
        format!("SELECT {long} LIKE '%{}b'", "_a%".repeat(300)),
    ] {
        match world.rows(&sql, short.clone()).await {
            Ok(rows) => assert_eq!(rows.len(), 1),
            Err(StoreError::Deadline) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn functions_give_what_sqlite_gives() {
    let world = world().await;
    for (sql, expected) in [
        ("instr('äbc', 'c')", Value::Integer(3)),
        ("instr(x'0001ff', x'ff')", Value::Integer(3)),
        ("instr('abc', '')", Value::Integer(1)),
        ("instr('aabaabaac', 'aabaac')", Value::Integer(4)),
        ("instr('abc', 'd')", Value::Integer(0)),
        ("instr(NULL, 'd')", Value::Null),
        ("instr(12345, 34)", Value::Integer(3)),
        ("replace('aXbX', 'X', '--')", text("a--b--")),
        ("replace('aaa', 'aa', 'b')", text("ba")),
        ("replace('abc', '', 'x')", text("abc")),
        ("replace(1.5, '.', ',')", text("1,5")),
        ("trim('  a ')", text("a")),
        ("ltrim('xyxa', 'xy')", text("a")),
        ("rtrim('axyx', 'xy')", text("a")),
        ("trim('a', NULL)", Value::Null),
        ("'Web-1' LIKE 'web-_'", Value::Integer(1)),
        ("'a%b' LIKE 'a\\%b' ESCAPE '\\'", Value::Integer(1)),
        ("'axb' LIKE 'a\\%b' ESCAPE '\\'", Value::Integer(0)),
        ("'mississippi' LIKE '%iss%pi'", Value::Integer(1)),
        ("'mississippi' LIKE '%iss%pix'", Value::Integer(0)),
        ("'Ä' LIKE 'ä'", Value::Integer(0)),
        ("'' LIKE '%'", Value::Integer(1)),
        ("'abc' GLOB 'A*'", Value::Integer(0)),
        ("'abc' GLOB 'a?[a-d]'", Value::Integer(1)),
        ("'a]c' GLOB 'a[]x]c'", Value::Integer(1)),
        ("'abc' GLOB 'a[^b]c'", Value::Integer(0)),
        ("'a-c' GLOB 'a[b-]c'", Value::Integer(1)),
        ("'abc' GLOB 'a[bc'", Value::Integer(0)),
    ] {
        assert_eq!(
            world.all(&format!("SELECT {sql}")).await,
            [[expected]],
            "{sql}"
        );
    }
    let why = world.refusal("SELECT [a\nb] FROM nodes").await;
    assert_eq!(why, "no such column: a\\nb (line 1, column 8)");
}

#[tokio::test]
async fn a_runaway_ends_at_its_deadline_and_a_long_answer_at_its_limit() {
    let world = world().await;
    let short = QueryOptions {
        timeout: Duration::from_millis(200),
        ..QueryOptions::default()
    };
    for sql in [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "SELECT count(*) FROM packages a, packages b, packages c, packages d, packages e, packages f, packages g,
            packages h, packages i, packages j, packages k",
    ] {
        let error = world.rows(sql, short.clone()).await.unwrap_err();
        assert!(matches!(error, StoreError::Deadline), "{error}");
    }
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    let few = QueryOptions {
        limit: 1000,
        ..QueryOptions::default()
    };
    let mut stream = world.store.query(endless, few).await.unwrap();
    let mut count = 0;
    while let Some(batch) = stream.next().await {
        count += batch.unwrap().len();
    }
    assert_eq!((count, stream.truncated()), (1000, true));
    // A caller that leaves frees its place: more of them than places.
    for _ in 0..8 {
        drop(
            world
                .store
                .query(endless, QueryOptions::default())
                .await
                .unwrap(),
        );
    }
    assert_eq!(world.all("SELECT 1").await, [[Value::Integer(1)]]);
}
