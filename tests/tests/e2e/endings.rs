//! Agents that end, in their time or not: what becomes of their runs, their identity and their readings.

use std::{fs, path::Path};

use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
    process::{self, Process},
};
use serde_json::Value;

/// A job with a child in its group.
const GROUP: &str = "sleep 1000 & echo pid $!; echo pid $$; wait";
/// The same with one that has left it for a session of its own.
const FAMILY: &str = "setsid sleep 1001 & echo pid $!; sleep 1000 & echo pid $!; echo pid $$; wait";

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Starts this on all nodes; `nexusctl` and the processes that it names.
async fn start(fleet: &Fleet, script: &str) -> (Process, Vec<String>) {
    let log = fleet.dir().join("run.log");
    let args = ["run", "--yes", "--all", "--", "sh", "-c", script];
    let job = fleet.ctl.start(&args, &log).await.unwrap();
    let expected = script.matches("pid ").count();
    let pids = poll::until("the processes", SOON, || {
        let pids: Vec<_> = job
            .log_text()
            .lines()
            .filter_map(|line| line.split("pid ").nth(1).map(str::to_owned))
            .collect();
        std::future::ready((pids.len() == expected).then_some(pids))
    })
    .await
    .map_err(|fault| job.explain(fault))
    .unwrap();
    let running = "SELECT state FROM runs";
    fleet
        .eventually(running, |rows| rows[0]["state"] == "running")
        .await
        .unwrap();
    for pid in &pids {
        assert!(is_alive(pid), "{pid} of {pids:?}");
    }
    (job, pids)
}

fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("{key}: {row}"))
}

/// Waits until the collector has three readings more, and everything before them that the agent has numbered has come
/// once. Gives how many readings there are, and how many numbers of any lane were never used.
async fn every_reading_is_there(fleet: &Fleet) -> (u64, u64) {
    let readings = "SELECT count(*) AS n FROM metric_history
        WHERE node = 'alpha' AND name = 'node_time_seconds'";
    let start = number(&fleet.query(readings).await.unwrap()[0], "n");
    let lane = "SELECT l.seq, l.records, count(m.time) AS readings, count(DISTINCT m.time) AS times,
          (SELECT count(*) FROM gaps WHERE lane = 'metrics') AS gaps,
          (SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM gaps WHERE lane = 'metrics') AS unused
        FROM lanes l JOIN metric_history m ON m.node = 'alpha' AND m.name = 'node_time_seconds'
        WHERE l.node = 'alpha' AND l.lane = 'metrics'";
    let rows = fleet
        .eventually(lane, |rows| {
            if rows[0]["seq"].is_null() {
                return false;
            }
            let [seq, records, readings, times, gaps, unused] =
                ["seq", "records", "readings", "times", "gaps", "unused"]
                    .map(|key| number(&rows[0], key));
            readings >= start + 3
                && readings == times
                && readings + gaps == records
                && readings + unused == seq
        })
        .await
        .unwrap();
    // A number that was used is never in a gap: only those an unclean end left over are.
    let why = fleet
        .query("SELECT DISTINCT reason FROM gaps")
        .await
        .unwrap();
    assert!(
        why.iter().all(|row| row["reason"] == "unclean_start"),
        "{why:?}"
    );
    (number(&rows[0], "readings"), number(&rows[0], "unused"))
}

/// Waits until that many agents have begun on this node, and the newest is connected.
async fn begun(fleet: &Fleet, times: u64) -> Value {
    let sql = "SELECT count(*) AS n FROM events WHERE kind = 'agent_started'";
    fleet
        .eventually(sql, |rows| number(&rows[0], "n") == times)
        .await
        .unwrap();
    fleet.connected("alpha").await.unwrap()
}

#[tokio::test]
async fn a_run_whose_agent_was_killed_is_unknown_and_nothing_of_it_lives() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let (mut job, pids) = start(&fleet, FAMILY).await;
    fleet.agents[0].kill().await.unwrap();
    // Without this the rest would show nothing: somebody is left to be killed.
    assert!(pids.iter().any(|pid| is_alive(pid)), "{pids:?}");
    fleet.agents[0].start().await.unwrap();
    let status = job.wait().await.unwrap();
    let left: Vec<_> = pids.iter().filter(|pid| is_alive(pid)).collect();
    assert!(left.is_empty(), "{left:?} outlived the report");
    let said = job.log_text();
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("1 target: 1 unknown"), "{said}");
    let runs = fleet
        .query("SELECT state, reason, exit_code FROM runs")
        .await
        .unwrap();
    assert_eq!(runs[0]["state"], "unknown", "{runs:?}");
    assert!(
        runs[0]["reason"].as_str().unwrap().contains("agent"),
        "{runs:?}"
    );
    // It works on, and runs nothing of that again.
    let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let log = fleet.agents[0].log_text();
    assert_eq!(log.matches("run started").count(), 2, "{log}");
}

#[tokio::test]
async fn an_agent_that_is_stopped_ends_its_run_and_reports_it() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let (mut job, pids) = start(&fleet, GROUP).await;
    fleet.agents[0].stop().await.unwrap();
    let left: Vec<_> = pids.iter().filter(|pid| is_alive(pid)).collect();
    assert!(left.is_empty(), "{left:?} outlived the agent");
    // Its last word was the report: it need not come back for it.
    let status = job.wait().await.unwrap();
    let said = job.log_text();
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("1 target: 1 cancelled"), "{said}");
    assert!(said.contains("the agent was stopped"), "{said}");
    fleet.in_state("alpha", "disconnected").await.unwrap();
}

#[tokio::test]
async fn a_node_stays_the_same_over_restarts() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let before = fleet.node("alpha").await.unwrap();
    for (killed, lives) in [(false, 2), (true, 3)] {
        if killed {
            fleet.agents[0].kill().await.unwrap();
        } else {
            fleet.agents[0].stop().await.unwrap();
        }
        fleet.agents[0].start().await.unwrap();
        let after = begun(&fleet, lives).await;
        for key in [
            "id",
            "incarnation",
            "enrolled_at",
            "shard",
            "labels",
            "certificate_expires_at",
        ] {
            assert_eq!(after[key], before[key], "{key}, killed: {killed}");
        }
    }
    let nodes = fleet.query("SELECT id FROM nodes").await.unwrap();
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    let identities = "SELECT serial FROM identities WHERE role = 'agent'";
    assert_eq!(fleet.query(identities).await.unwrap().len(), 1);
}

#[tokio::test]
async fn no_reading_is_lost_or_doubled_by_restarts() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    assert_eq!(every_reading_is_there(&fleet).await.1, 0);
    fleet.agents[0].stop().await.unwrap();
    fleet.agents[0].start().await.unwrap();
    assert_eq!(every_reading_is_there(&fleet).await.1, 0);
}

#[tokio::test]
async fn a_killed_agent_sends_the_readings_it_had_not_sent_yet() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let (before, unused) = every_reading_is_there(&fleet).await;
    assert_eq!(unused, 0);
    fleet.collector.stop().await.unwrap();
    let waiting = readings_wait(&fleet, 4).await;
    fleet.agents[0].kill().await.unwrap();
    fleet.agents[0].start().await.unwrap();
    fleet.collector.start().await.unwrap();
    begun(&fleet, 2).await;
    // What a killed program has written is the kernel's.
    let (after, _) = every_reading_is_there(&fleet).await;
    assert!(after >= before + waiting, "{before}, {waiting}, {after}");
}

/// Waits until the spool has grown that many times, each time by a reading at least.
async fn readings_wait(fleet: &Fleet, times: u64) -> u64 {
    let lane = fleet.agents[0].dir().join("spool").join("metrics");
    let (mut size, mut grown) = (bytes(&lane), 0);
    poll::until("readings in the spool", SOON, || {
        let now = bytes(&lane);
        grown += u64::from(now > size);
        size = now;
        std::future::ready((grown >= times).then_some(grown))
    })
    .await
    .unwrap()
}

/// Of all segments in a folder.
fn bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().flatten();
    entries
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

/// Under the running agent and between two: what was in it is gone, what comes after it is not.
#[tokio::test]
async fn a_removed_spool_costs_what_was_in_it() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    begun(&fleet, 1).await;
    let spool = fleet.agents[0].dir().join("spool");
    fs::remove_dir_all(&spool).unwrap();
    let (said, document) = fleet.job(&["--all"], &["echo", "one"]).await.unwrap();
    assert_eq!(said.code, 0, "{document}");
    fleet.agents[0].kill().await.unwrap();
    drop(fs::remove_dir_all(&spool));
    fleet.agents[0].start().await.unwrap();
    // The first that the new spool holds, under numbers the collector has not seen.
    begun(&fleet, 2).await;
    let (said, document) = fleet.job(&["--all"], &["echo", "two"]).await.unwrap();
    assert_eq!(said.code, 0, "{document}");
    let gaps = "SELECT lane FROM gaps WHERE reason = 'unclean_start'";
    fleet
        .eventually(gaps, |rows| rows.len() >= 3)
        .await
        .unwrap();
    let readings = "SELECT count(*) AS n FROM metric_history
        WHERE node = 'alpha' AND name = 'node_time_seconds'";
    let before = number(&fleet.query(readings).await.unwrap()[0], "n");
    fleet
        .eventually(readings, |rows| number(&rows[0], "n") > before + 2)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_agent_that_is_removed_says_so_and_does_not_wait_for_a_collector_that_is_away() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    let leave = async |fleet: &Fleet| {
        let mut command = fleet.agents[0].command().await.unwrap();
        let output = process::run(command.arg("leave"), b"").await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    // Beside the one that runs it does nothing.
    let (told, said) = leave(&fleet).await;
    assert!(!told && said.starts_with("error: leave: "), "{said}");
    assert!(said.contains("in use"), "{said}");
    fleet.agents[0].stop().await.unwrap();
    let (told, said) = leave(&fleet).await;
    assert!(told, "{said}");
    let rows = fleet
        .query("SELECT count(*) AS n FROM events WHERE kind = 'agent_removed'")
        .await
        .unwrap();
    assert_eq!(number(&rows[0], "n"), 1);
    fleet.collector.stop().await.unwrap();
    let (told, said) = leave(&fleet).await;
    assert!(!told && said.contains("within five seconds"), "{said}");
}
