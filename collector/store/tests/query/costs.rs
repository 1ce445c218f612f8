//! What a query may take of time, memory and rows.

use std::time::Duration;

use nexus_store::{QueryOptions, StoreError, Value};

use crate::world;

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
