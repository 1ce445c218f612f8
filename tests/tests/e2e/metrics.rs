//! A metric of a node over time, as its operator sees it.

use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
};
use serde_json::Value;

async fn points(fleet: &Fleet, args: &[&str]) -> Vec<Value> {
    let mut all = vec!["metrics", "node/alpha"];
    all.extend(args);
    let points = fleet.ctl.json(&all).await.unwrap();
    points.as_array().unwrap().clone()
}

/// Waits until so many reports have come.
async fn reported(fleet: &Fleet, count: usize) {
    poll::until("reports", SOON, || async {
        let said = fleet
            .ctl
            .run(&["metrics", "node/alpha", "node_load1", "-o", "json"])
            .await
            .unwrap();
        let points: Value = serde_json::from_str(&said.out).unwrap_or_default();
        (points.as_array().map_or(0, Vec::len) >= count).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_metric_is_shown_over_time() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    reported(&fleet, 4).await;
    // What is told is what is stored, sample by sample.
    let told = points(&fleet, &["node_memory_MemTotal_bytes"]).await;
    let stored = fleet
        .query(
            "SELECT value, time FROM metric_history WHERE node = 'alpha' AND name = 'node_memory_MemTotal_bytes'",
        )
        .await
        .unwrap();
    let key = |point: &Value| (point["time"].to_string(), point["value"].to_string());
    let stored: Vec<_> = stored.iter().map(key).collect();
    for point in &told {
        assert!(stored.contains(&key(point)), "{point} is not in {stored:?}");
        assert_eq!(point["count"], 1);
        assert_eq!(point["node"], "alpha");
    }
    assert!(told.len() >= 4, "{told:?}");

    // Every series of a name, and those of a label.
    let all = points(&fleet, &["node_cpu_seconds_total", "--rate"]).await;
    let modes: std::collections::BTreeSet<_> = all
        .iter()
        .map(|point| point["labels"]["mode"].as_str().unwrap().to_owned())
        .collect();
    assert!(modes.contains("idle") && modes.len() > 4, "{modes:?}");
    let idle = points(
        &fleet,
        &["node_cpu_seconds_total{mode=idle,cpu=\"0\"}", "--rate"],
    )
    .await;
    assert!(idle.len() >= 4 && idle.iter().all(|point| point["labels"]["mode"] == "idle"));
    assert_eq!(idle[0]["increase"], Value::Null);
    for point in &idle[1..] {
        let rate = point["increase_per_second"].as_f64().unwrap();
        assert!((0.0..1.5).contains(&rate), "{point}");
    }

    // A step holds all samples of its time.
    let steps = points(&fleet, &["node_load1", "--step", "1h", "--range", "2h"]).await;
    let counts: u64 = steps
        .iter()
        .map(|point| point["count"].as_u64().unwrap())
        .sum();
    assert!(steps.len() <= 2 && counts >= 4, "{steps:?}");

    let chart = fleet
        .ctl
        .ok(&["metrics", "nodes", "alpha", "node_load1", "--range", "5m"])
        .await
        .unwrap();
    assert!(
        chart.starts_with("node_load1 on node/alpha\n") && chart.contains('*') && chart.is_ascii(),
        "{chart}"
    );
}

#[tokio::test]
async fn what_is_not_there_is_said_with_what_is() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    reported(&fleet, 1).await;
    for (args, why, hint) in [
        (
            &["node/nobody", "node_load1"][..],
            "find the node `nobody`: there is no such node",
            "get nodes",
        ),
        (
            &["node/alpha", "node_laod1"],
            "read metrics of alpha: it has no metric `node_laod1`",
            "it has node_load1",
        ),
        (
            &["node/alpha", "no"],
            "it has no metric `no`",
            "SELECT DISTINCT",
        ),
        (
            &["node/alpha", "node_cpu_seconds_total{mode=idel}"],
            "no series of node_cpu_seconds_total has these labels",
            "mode is one of idle, iowait",
        ),
        (
            &["node/alpha", "node_load1", "--from", "3d", "--to", "2d"],
            "node_load1 has no points from ",
            "it has points from ",
        ),
    ] {
        let mut all = vec!["metrics"];
        all.extend(args);
        let said = fleet.ctl.run(&all).await.unwrap();
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
        let lines: Vec<_> = said.err.lines().collect();
        assert!(
            lines[0].starts_with("error: ") && lines[0].contains(why),
            "{said:?}"
        );
        assert!(
            lines[1].starts_with("hint: ") && lines[1].contains(hint),
            "{said:?}"
        );
    }
}
