//! The short form of `nexus-bench soak`.

use std::time::Duration;

use nexus_tests::soak::{self, Params, Victims};

async fn soak(victims: Victims) {
    let params = Params {
        span: Duration::from_secs(15),
        every: Duration::from_secs(2),
        agents: 3,
        victims,
        seed: 7,
    };
    let report = soak::run(&params, &|_| {}).await.unwrap();
    assert!(report.faults.is_empty(), "{report:#?}");
    assert!(
        report.kills > 3 && report.executions > 0 && report.acked > 0,
        "{report:#?}"
    );
}

#[tokio::test]
async fn a_collector_that_is_killed_again_and_again_loses_nothing() {
    soak(Victims::Collector).await;
}

#[tokio::test]
async fn agents_that_are_killed_too_run_nothing_twice() {
    soak(Victims::Both).await;
}
