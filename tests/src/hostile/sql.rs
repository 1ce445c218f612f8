//! The one statement of a query, through the store as it runs.
//!
//! Whatever it says: no file of the store changes, it ends at its deadline, it gives no more rows than asked for,
//! nothing of a node that the caller may not see, and an error in one line.

use std::{
    fs,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use nexus_proto::{
    ids::{Incarnation, Lane, NodeId},
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    operator::v1::AuditRow,
    record::{Body, Cell, Event, Record, Row, Section},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{
    Layout, QueryOptions, Settings, Store, StoreError, Value,
    entry::{NodeEnrolled, Records, Reports},
};
use tokio::runtime::Runtime;

/// What a query may take here.
const TIMEOUT: Duration = Duration::from_millis(200);
/// By when it must have ended: its deadline, and whatever a busy machine adds.
const PATIENCE: Duration = Duration::from_secs(20);
const LIMIT: usize = 50;
/// In every text about the node that a caller may not see.
const SECRET: &str = "s3cr3t";

/// What statements are made of: a byte a word.
const WORDS: &[&str] = &[
    "SELECT",
    "*",
    "FROM",
    "nodes",
    "WHERE",
    "packages",
    "metrics",
    ",",
    "(",
    ")",
    "count(*)",
    "name",
    "AND",
    "=",
    "'web-1'",
    "1",
    "WITH",
    "AS",
    "x",
    "RECURSIVE",
    "UNION",
    "ALL",
    "JOIN",
    "ON",
    "labels",
    "key",
    "value",
    "node",
    "ORDER",
    "BY",
    "LIMIT",
    "GROUP",
    "HAVING",
    "OFFSET",
    "NULL",
    "NOT",
    "IN",
    "EXISTS",
    "LIKE",
    "'%'",
    "GLOB",
    "||",
    "+",
    "-",
    "<",
    ">",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "DISTINCT",
    "VALUES",
    "INSERT INTO",
    "DELETE FROM",
    "UPDATE",
    "SET",
    "DROP TABLE",
    "CREATE TABLE",
    "CREATE TEMP VIEW",
    "CREATE TRIGGER",
    "ATTACH",
    "DETACH",
    "PRAGMA",
    "VACUUM",
    "VACUUM INTO 'x'",
    "BEGIN",
    "COMMIT",
    "SAVEPOINT",
    "EXPLAIN",
    "QUERY PLAN",
    "REINDEX",
    "ANALYZE",
    ";",
    "--",
    "/*",
    "*/",
    "sqlite_schema",
    "sqlite_temp_schema",
    "main",
    "temp",
    ".",
    "pragma_table_info",
    "pragma_database_list",
    "nexus_permitted",
    "nexus_newest",
    "nexus_history",
    "node_history",
    "chunks",
    "meta",
    "cursors",
    "log",
    "metric_history",
    "runs",
    "run_output",
    "jobs",
    "events",
    "sections",
    "identities",
    "tokens",
    "audit",
    "shards",
    "operators",
    "collectors",
    "json_each",
    "json_tree",
    "json",
    "json_extract",
    "group_concat",
    "sum",
    "max",
    "min",
    "length",
    "substr",
    "replace",
    "hex",
    "printf",
    "'%100000s'",
    "'%.*c'",
    "char",
    "abs",
    "-9223372036854775808",
    "9223372036854775807",
    "1e308",
    "x'00ff'",
    "'[1,2,{\"a\":3}]'",
    "'$'",
    "OVER",
    "PARTITION",
    "ROWS",
    "PRECEDING",
    "UNBOUNDED",
    "lag",
    "row_number",
    "randomblob",
    "zeroblob",
    "load_extension",
    "writefile",
    "readfile",
    "fts3_tokenizer",
    "CAST",
    "TEXT",
    "INTEGER",
    "BLOB",
    "COLLATE",
    "NOCASE",
    "BETWEEN",
    "ISNULL",
    "RETURNING",
    "INDEXED",
    "LEFT",
    "NATURAL",
    "CROSS",
    "rowid",
    "nodes.rowid",
    "n(i)",
    "i",
    "i+1",
    "100000",
    "?1",
    ":a",
    "\"nodes\"",
    "[nodes]",
    "`nodes`",
    "strftime",
    "'%Y'",
    "date",
    "'now'",
    "->",
    "->>",
    "%",
    "/",
    "~",
    "<<",
    "MATERIALIZED",
    "EXCEPT",
    "INTERSECT",
    "FILTER",
    "WINDOW",
    "w",
    "IS",
    "instr",
    "format",
    "unhex",
    "quote",
    "like",
    "glob",
    "iif",
    "total",
];

struct World {
    runtime: Runtime,
    store: Store,
    seen: NodeId,
    dir: tempfile::TempDir,
    files: blake3::Hash,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let dir = super::record::folder();
        let store = dir.path().join("store");
        Store::create(&store, Layout::new(2)).expect("a store");
        let store = Store::open(&store, Clock::system(), Settings::default()).expect("a store");
        let seen = runtime.block_on(fill(&store));
        let files = digest(dir.path());
        World {
            runtime,
            store,
            seen,
            dir,
            files,
        }
    })
}

/// Two nodes that have all there is to have; the id of the one that may be seen.
async fn fill(store: &Store) -> NodeId {
    let mut seen = NodeId::random();
    for name in [format!("web-{SECRET}"), "web-1".to_owned()] {
        let (node, incarnation) = (NodeId::random(), Incarnation::random());
        let enrolled = NodeEnrolled {
            node: node.to_wire(),
            name: name.clone(),
            incarnation: incarnation.to_wire(),
            labels: [("role".to_owned(), name.clone())].into(),
            time_ms: 1000,
            ..NodeEnrolled::default()
        };
        store.append_for(node, enrolled).await.expect("a node");
        let cells = vec![Cell::Text(name.clone()), Cell::Text("5.2".into())];
        let sample = Sample {
            key: Arc::new(SeriesKey::new("node_load1", &[("a", &name)])),
            kind: SeriesType::Gauge,
            value: 0.5,
        };
        let bodies = [
            (
                Lane::Inventory,
                Body::Section(Section::new("packages", vec![Row(cells)])),
            ),
            (
                Lane::Results,
                Body::Event(Event {
                    kind: "agent_started".to_owned(),
                    message: name,
                }),
            ),
        ];
        for (lane, body) in bodies {
            let time = Timestamp(5000);
            let records = Records {
                node,
                incarnation,
                lane,
                records: vec![Record { seq: 1, time, body }],
            };
            store.append_for(node, records).await.expect("a record");
        }
        let snapshot = Snapshot {
            interval_ms: 10_000,
            samples: vec![sample],
        };
        let reports = Reports::encode(node, incarnation, 1, vec![(1, Timestamp(5000), snapshot)]);
        store.append_reports(reports).await.expect("a report");
        seen = node;
    }
    let row = AuditRow {
        action: "Login".into(),
        ..AuditRow::default()
    };
    store.audit(row).await.expect("a row");
    seen
}

pub(super) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    let sql = if choice % 2 == 0 {
        String::from_utf8_lossy(rest).into_owned()
    } else {
        let word = |byte: &u8| WORDS.get(usize::from(*byte) % WORDS.len()).copied();
        let words: Vec<_> = rest.iter().take(300).filter_map(word).collect();
        words.join(" ")
    };
    let world = world();
    let restricted = choice % 4 < 2;
    let options = QueryOptions {
        as_of: (choice % 8 >= 4).then_some(Timestamp(6000)),
        limit: LIMIT,
        timeout: TIMEOUT,
        nodes: restricted.then(|| vec![world.seen]),
    };
    let clock = Clock::system();
    let started = clock.instant();
    let answer = world.runtime.block_on(ask(&world.store, &sql, options));
    let took = clock.instant().saturating_duration_since(started);
    assert!(took < PATIENCE, "{took:?} for {sql:?}");
    match answer {
        Ok((columns, rows)) => {
            assert!(rows.len() <= LIMIT && columns > 0);
            // A statement can spell it out itself.
            let spelt = sql.to_ascii_lowercase().contains(SECRET);
            for row in &rows {
                assert_eq!(row.len(), columns);
                let told = format!("{row:?}").contains(SECRET);
                assert!(!restricted || spelt || !told, "{sql:?} gave {row:?}");
            }
        }
        Err(StoreError::Query(why)) => {
            assert!(!why.is_empty() && !why.contains('\n'), "{sql:?}: {why:?}");
        }
        Err(StoreError::Deadline) => {}
        Err(error) => unreachable!("{sql:?}: {error:?}"),
    }
    assert_eq!(digest(world.dir.path()), world.files, "written by {sql:?}");
}

async fn ask(
    store: &Store,
    sql: &str,
    options: QueryOptions,
) -> Result<(usize, Vec<Vec<Value>>), StoreError> {
    let mut stream = store.query(sql, options).await?;
    let mut rows = Vec::new();
    while let Some(batch) = stream.next().await {
        rows.extend(batch?);
    }
    Ok((stream.columns.len(), rows))
}

/// Names and contents of all files but the index of the write-ahead log, where readers leave their marks.
fn digest(dir: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).expect("a folder");
        let mut paths: Vec<_> = entries
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        for path in paths {
            hasher.update(path.as_os_str().as_encoded_bytes());
            if path.is_dir() {
                folders.push(path);
            } else if !path.to_string_lossy().ends_with("-shm") {
                hasher.update(&fs::read(&path).expect("a file"));
            }
        }
    }
    hasher.finalize()
}
