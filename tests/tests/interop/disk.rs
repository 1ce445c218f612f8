//! Disks that are full, on small file systems of their own: nothing is acknowledged that is not stored, it
//! shows, and all goes on by itself when there is room again.

use std::fs;

use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
};

use super::mounts::Small;

/// How many readings the collector has.
pub(super) async fn readings(fleet: &Fleet) -> usize {
    let sql = "SELECT time FROM metric_history WHERE node = 'alpha' AND name = 'node_time_seconds'";
    fleet.query(sql).await.unwrap().len()
}

/// Every record is there once, and every second has its reading.
pub(crate) async fn all_readings(fleet: &Fleet) {
    let lanes = "SELECT lane, seq, records FROM lanes WHERE seq <> records";
    let lanes = fleet.query(lanes).await.unwrap();
    assert!(lanes.is_empty(), "{lanes:?}");
    let gaps = fleet.query("SELECT * FROM gaps").await.unwrap();
    assert!(gaps.is_empty(), "{gaps:?}");
    let times = "SELECT value FROM metric_history WHERE node = 'alpha' AND name = 'node_time_seconds' ORDER BY time";
    let times = fleet.query(times).await.unwrap();
    let times: Vec<f64> = times
        .iter()
        .map(|row| row["value"].as_f64().unwrap())
        .collect();
    let holes: Vec<_> = times
        .windows(2)
        .filter(|pair| pair[1] - pair[0] > 1.9)
        .collect();
    assert!(holes.is_empty(), "{holes:?}");
}

#[tokio::test]
async fn a_collector_without_room_loses_nothing_and_recovers_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::over(&dir.path().join("collector"));
    let mut fleet = Fleet::new_in(dir, &[]).await.unwrap();
    fleet.add("alpha", &["interval=1s"]).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    fleet
        .eventually("SELECT 1 FROM packages LIMIT 1", |rows| !rows.is_empty())
        .await
        .unwrap();
    small.fill();
    poll::until_ok("word that nothing can be stored", SOON, || async {
        match fleet.page("/readyz").await {
            Ok(page) => Err(page),
            Err(fault) if fault.to_string().contains("full") => Ok(()),
            Err(fault) => Err(fault.to_string()),
        }
    })
    .await
    .unwrap();
    let said = fleet
        .ctl
        .run(&["run", "--yes", "--all", "--", "true"])
        .await
        .unwrap();
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("full"), "{said:?}");
    let page = fleet.page("/metrics").await.unwrap();
    let failed = page
        .lines()
        .filter(|line| line.starts_with("nexus_commits_failed_total{"));
    assert!(failed.clone().any(|line| !line.ends_with(" 0")), "{page}");
    let before = readings(&fleet).await;
    small.free();
    // What failed last and has had nothing to write since counts as failing for a minute.
    poll::until_ok("readiness", 2 * SOON, || async {
        fleet
            .page("/readyz")
            .await
            .map_err(|fault| fault.to_string())
    })
    .await
    .unwrap();
    poll::until("what was spooled meanwhile", SOON, || async {
        (readings(&fleet).await > before + 3).then_some(())
    })
    .await
    .unwrap();
    let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    all_readings(&fleet).await;
}

#[tokio::test]
async fn an_agent_without_room_says_so_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::over(&dir.path().join("alpha"));
    let mut fleet = Fleet::new_in(dir, &[]).await.unwrap();
    fleet.add("alpha", &["interval=1s"]).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    small.fill();
    poll::until_ok("the agent's complaint", SOON, || {
        let log = fleet.agents[0].log_text();
        let said = log.contains("metrics cannot be stored") && log.contains("No space left");
        std::future::ready(if said { Ok(()) } else { Err(log) })
    })
    .await
    .unwrap();
    poll::until_ok("the trouble in the node table", SOON, || async {
        let node = fleet
            .node("alpha")
            .await
            .map_err(|fault| fault.to_string())?;
        let reason = node["state_reason"].as_str().unwrap_or_default();
        if reason.contains("metrics: ") && reason.contains("No space left") {
            Ok(())
        } else {
            Err(node.to_string())
        }
    })
    .await
    .unwrap();
    let page = fleet.page("/metrics").await.unwrap();
    assert!(page.contains("nexus_nodes_in_trouble 1\n"), "{page}");
    // Its ledger may have room left in its last block, or not: it runs, or it does not, and it is known which.
    let ran = fleet.dir().join("ran");
    let append = format!("echo ran >> {}", ran.display());
    let (_, document) = fleet
        .job(&["--all", "--expires", "3s"], &["sh", "-c", &append])
        .await
        .unwrap();
    let state = document["runs"][0]["state"].as_str().unwrap().to_owned();
    let times = fs::read_to_string(&ran).unwrap_or_default().lines().count();
    assert_eq!(times, usize::from(state == "succeeded"), "{document}");
    // It comes back all the same, over a new connection and after a crash.
    fleet.collector.stop().await.unwrap();
    fleet.collector.start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
    fleet.agents[0].kill().await.unwrap();
    fleet.in_state("alpha", "disconnected").await.unwrap();
    fleet.agents[0].start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
    small.free();
    let sql = "SELECT message FROM events WHERE kind = 'spool_recovered'";
    let rows = fleet
        .eventually(sql, |rows| !rows.is_empty())
        .await
        .unwrap();
    assert!(
        rows[0]["message"].as_str().unwrap().contains("metrics"),
        "{rows:?}"
    );
    let (said, document) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{document}");
}

/// Readings that cannot be stored are gone; how a run ended is not.
#[tokio::test]
async fn a_run_that_ends_while_its_agents_disk_is_full_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::over(&dir.path().join("alpha"));
    let mut fleet = Fleet::new_in(dir, &[]).await.unwrap();
    fleet.add("alpha", &["interval=1s"]).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    let go = fleet.dir().join("go");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.05; done; exit 7",
        go.display()
    );
    let log = fleet.dir().join("run.log");
    let args = ["run", "--yes", "--all", "--", "sh", "-c", &script];
    let mut job = fleet.ctl.start(&args, &log).await.unwrap();
    fleet
        .eventually("SELECT 1 FROM runs WHERE state = 'running'", |rows| {
            !rows.is_empty()
        })
        .await
        .unwrap();
    small.fill();
    let says = async |words: &[&str]| {
        poll::until_ok("word of the agent", SOON, || {
            let log = fleet.agents[0].log_text();
            let said = words.iter().all(|word| log.contains(word));
            std::future::ready(if said { Ok(()) } else { Err(log) })
        })
        .await
        .unwrap();
    };
    says(&["metrics cannot be stored", "No space left"]).await;
    fs::write(&go, "").unwrap();
    says(&["run finished", "exit_code=7"]).await;
    small.free();
    let status = job.wait().await.unwrap();
    let said = job.log_text();
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("alpha: failed (exit code 7)"), "{said}");
}
