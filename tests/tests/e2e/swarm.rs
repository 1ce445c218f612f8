//! The load generator's agents are agents to the collector, and it counts what it says it counts.

use std::collections::BTreeMap;

use nexus_tests::{fleet::Fleet, process, programs::Programs};
use serde_json::Value;

const AGENTS: u64 = 25;

async fn swarm(token: &str, args: &[&str]) -> BTreeMap<String, f64> {
    let mut command = Programs::built().await.unwrap().command("nexus-swarm");
    command.args(["--token", "-", "--interval", "1", "--series", "150"]);
    let output = process::run(command.args(args), token.as_bytes())
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let figures = lines.lines().map(|line| {
        let figure: Value = serde_json::from_str(line).unwrap();
        let name = figure["figure"].as_str().unwrap().to_owned();
        (name, figure["value"].as_f64().unwrap())
    });
    figures.collect()
}

#[tokio::test]
async fn what_a_swarm_counts_as_acknowledged_is_there() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let uses = AGENTS.to_string();
    let token = fleet.token(&["--uses", &uses]).await.unwrap();
    let dir = fleet.dir().join("swarm");
    let args = [
        "--agents",
        &uses,
        "--seconds",
        "6",
        "--dir",
        dir.to_str().unwrap(),
    ];
    let mut acked = 0.0;
    // The second time they are the same agents, and need no token any more.
    for transport in ["quic", "tcp"] {
        let mut args = args.to_vec();
        args.extend(["--transport", transport]);
        let figures = swarm(&token, &args).await;
        assert_eq!(figures["failed"], 0.0, "{figures:?}");
        assert!(figures["acked"] > 25.0, "{figures:?}");
        assert_eq!(
            figures["samples"],
            figures["reports"] * 150.0,
            "{figures:?}"
        );
        assert!(figures["reporting_seconds"] > 0.0, "{figures:?}");
        acked += figures["acked"];
        let rows = fleet
            .query("SELECT count(*) AS nodes, count(DISTINCT agent_version) AS versions FROM nodes")
            .await
            .unwrap();
        assert_eq!(rows[0]["nodes"], AGENTS, "{rows:?}");
        let packages = fleet
            .query("SELECT count(*) AS n FROM packages")
            .await
            .unwrap();
        assert_eq!(packages[0]["n"], AGENTS * 500, "{packages:?}");
    }
    let mut stored = 0.0;
    for number in 1..=AGENTS {
        let readings = format!(
            "SELECT count(*) AS n, count(DISTINCT time) AS different FROM metric_history
             WHERE node = 'swarm-{number:05}' AND name = 'node_time_seconds'"
        );
        let rows = fleet.query(&readings).await.unwrap();
        assert_eq!(rows[0]["n"], rows[0]["different"], "{rows:?}");
        stored += rows[0]["n"].as_f64().unwrap();
    }
    assert!(stored >= acked, "{stored} stored, {acked} acknowledged");
}

#[tokio::test]
async fn a_swarm_without_a_way_in_says_so() {
    let mut command = Programs::built().await.unwrap().command("nexus-swarm");
    let output = process::run(command.args(["--token", "-"]), b"nxt_rubbish")
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.starts_with("error: read the token: "), "{said}");
}
