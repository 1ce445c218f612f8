//! What a query may cost the collector.

use std::fs;

use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
    process::Process,
    programs::Programs,
};

const ENDLESS: &str =
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";

/// Queries that run in the collector now: each has a thread of that name.
fn running(fleet: &Fleet) -> usize {
    let tasks = format!("/proc/{}/task", fleet.collector.id().unwrap());
    let tasks = fs::read_dir(tasks).unwrap().flatten();
    let names = tasks.map(|task| fs::read_to_string(task.path().join("comm")));
    names
        .flatten()
        .filter(|name| name.trim() == "query")
        .count()
}

/// A client that waits for an answer that does not come.
async fn ask(fleet: &Fleet) -> Process {
    let mut command = Programs::built().await.unwrap().command("nexusctl");
    command.env("NEXUSCTL_CONFIG", fleet.ctl.config());
    let log = fleet.dir().join("query.log");
    let asking = Process::start(command.args(["query", ENDLESS]), &log).unwrap();
    poll::until("the query", SOON, || {
        std::future::ready((running(fleet) == 1).then_some(()))
    })
    .await
    .map_err(|fault| asking.explain(fault))
    .unwrap();
    asking
}

#[tokio::test]
async fn what_cannot_be_asked_is_told_with_what_can() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let schema = "\nhint: `nexusctl query --schema` lists tables and columns\n";
    for (sql, why, end) in [
        (
            "SELECT * FROM nods",
            "error: query: no such table: nods",
            schema,
        ),
        (
            "SELECT nme FROM nodes",
            "error: query: no such column: nme",
            schema,
        ),
        ("DELETE FROM nodes", "only one read-only SELECT", "\n"),
        (
            "UPDATE nodes SET name = 'a'",
            "only one read-only SELECT",
            "\n",
        ),
        (
            "INSERT INTO nodes VALUES (1)",
            "only one read-only SELECT",
            "\n",
        ),
        ("DROP VIEW nodes", "only one read-only SELECT", "\n"),
        ("SELECT 1; SELECT 2", "only one statement", "\n"),
    ] {
        let said = fleet.ctl.run(&["query", sql]).await.unwrap();
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{sql}: {said:?}");
        assert!(said.err.contains(why), "{sql}: {said:?}");
        assert!(said.err.ends_with(end), "{sql}: {said:?}");
    }
}

#[tokio::test]
async fn every_state_that_a_run_can_have_can_be_asked_for() {
    let fleet = Fleet::new(&[]).await.unwrap();
    for state in nexus_store::RunState::ALL {
        let wanted = format!("state={}", state.name());
        let args = ["get", "runs", "--field-selector", &wanted];
        fleet.ctl.ok(&args).await.unwrap();
    }
    let said = fleet
        .ctl
        .run(&["get", "runs", "--field-selector", "state=foo"])
        .await
        .unwrap();
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("it is one of pending, "), "{said:?}");
}

#[tokio::test]
async fn a_query_ends_with_whoever_asked_and_with_the_collector() {
    let mut fleet = Fleet::new(&["query.timeout=5m"]).await.unwrap();
    let mut first = ask(&fleet).await;
    first.kill().await.unwrap();
    poll::until("the query's end", SOON, || {
        std::future::ready((running(&fleet) == 0).then_some(()))
    })
    .await
    .unwrap();
    let _second = ask(&fleet).await;
    fleet.collector.stop().await.unwrap();
    let log = fleet.collector.log_text();
    assert!(!log.contains("abandoned"), "{log}");
}
