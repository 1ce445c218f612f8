//! What is refused: all but a read of the views.

use nexus_store::{QueryOptions, StoreError};

use crate::{text, world};

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
