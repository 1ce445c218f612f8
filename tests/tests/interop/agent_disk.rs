//! An agent's disk that turns read-only, fails, or cannot keep what it took: nothing is executed that could not be
//! noted, it shows in the node table, and all goes on when the disk works again.

use std::{fs, path::Path};

use nexus_tests::{
    ctl::Said,
    fleet::{Fleet, SOON},
    poll,
};
use serde_json::Value;

use super::{interference::Interference, mounts::Disk};

/// A job that leaves a mark each time it is executed.
async fn marks(fleet: &Fleet, mark: &Path, flags: &[&str]) -> (Said, Value) {
    let append = format!("echo ran >> {}", mark.display());
    fleet.job(flags, &["sh", "-c", &append]).await.unwrap()
}

fn times(mark: &Path) -> usize {
    fs::read_to_string(mark).unwrap_or_default().lines().count()
}

/// Waits until the node table says what keeps the agent from its work.
async fn in_trouble(fleet: &Fleet, why: &[&str]) {
    poll::until_ok("the trouble in the node table", SOON, || async {
        let node = fleet.node("alpha").await;
        let node = node.map_err(|fault| fault.to_string())?;
        let reason = node["state_reason"].as_str().unwrap_or_default();
        if why.iter().all(|word| reason.contains(word)) {
            Ok(())
        } else {
            Err(format!("{node}\n{}", fleet.agents[0].log_text()))
        }
    })
    .await
    .unwrap();
    let page = fleet.page("/metrics").await.unwrap();
    assert!(page.contains("nexus_nodes_in_trouble 1\n"), "{page}");
}

/// Every seq is a record or within a gap.
async fn accounted_for(fleet: &Fleet) {
    let sql =
        "SELECT lane, seq, records, (SELECT coalesce(sum(g.last_seq - g.first_seq), 0) FROM gaps g
         WHERE g.node_id = l.node_id AND g.lane = l.lane) AS missing FROM lanes l";
    for row in fleet.query(sql).await.unwrap() {
        let number = |key: &str| row[key].as_u64().unwrap();
        assert_eq!(
            number("records") + number("missing"),
            number("seq"),
            "{row}"
        );
    }
}

async fn in_no_trouble(fleet: &Fleet) {
    poll::until_ok("an agent without trouble", SOON, || async {
        let node = fleet.node("alpha").await;
        let node = node.map_err(|fault| fault.to_string())?;
        if node["state_reason"].as_str().is_none_or(str::is_empty) {
            Ok(())
        } else {
            Err(node.to_string())
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_agent_whose_disk_turns_read_only_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::over(&dir.path().join("alpha"));
    let mut fleet = Fleet::new_in(dir, &["jobs.grace=3s"]).await.unwrap();
    let settings = ["interval=1s", "shutdown.timeout=1s"];
    fleet.add("alpha", &settings).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    let mark = fleet.dir().join("mark");
    let (said, _) = marks(&fleet, &mark, &["--all"]).await;
    assert_eq!((said.code, times(&mark)), (0, 1), "{said:?}");
    disk.turn_read_only();
    in_trouble(&fleet, &["metrics: ", "Read-only file system"]).await;
    // Without a ledger nothing is executed.
    let (said, document) = marks(
        &fleet,
        &mark,
        &["--all", "--expires", "3s", "--timeout", "1s"],
    )
    .await;
    assert_eq!((said.code, times(&mark)), (3, 1), "{document}");
    fleet.agents[0].stop().await.ok();
    disk.repair();
    fleet.agents[0].start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
    in_no_trouble(&fleet).await;
    let (said, _) = marks(&fleet, &mark, &["--all"]).await;
    assert_eq!((said.code, times(&mark)), (0, 2), "{said:?}");
    accounted_for(&fleet).await;
}

#[tokio::test]
async fn an_agent_that_cannot_fsync_runs_nothing_and_goes_on_by_itself() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let mark = fleet.dir().join("mark");
    let program = fleet.agents[0].id().unwrap();
    let fault = Interference::with(program, "fsync,fdatasync", "error=EIO").await;
    let flags = ["--all", "--expires", "5m"];
    let (ran, ()) = tokio::join!(marks(&fleet, &mark, &flags), async {
        in_trouble(&fleet, &["jobs: ", "Input/output error"]).await;
        assert_eq!(times(&mark), 0, "it was executed and not noted");
        fault.end().await;
    });
    assert_eq!((ran.0.code, times(&mark)), (0, 1), "{:?}", ran.0);
    in_no_trouble(&fleet).await;
    accounted_for(&fleet).await;
    let gaps = fleet.query("SELECT * FROM gaps").await.unwrap();
    assert!(gaps.is_empty(), "{gaps:?}");
    let log = fleet.agents[0].log_text();
    assert_eq!(log.matches("session opened").count(), 1, "{log}");
}
