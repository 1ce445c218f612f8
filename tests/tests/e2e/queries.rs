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
