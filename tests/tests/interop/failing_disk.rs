//! Disks that turn read-only or fail under a collector: nothing is acknowledged that is not
//! stored, it shows, and what was stored is there afterwards.

use std::{fs, path::Path};

use nexus_tests::{
    ctl::Said,
    fleet::{Fleet, SOON},
    page, poll,
};
use serde_json::Value;

use super::{
    disk::{all_readings, readings},
    interference::{DISK_WRITES, Interference},
    mounts::Disk,
};

/// Waits until the collector says that it cannot work, and why.
async fn not_ready(fleet: &Fleet, why: &str) {
    poll::until_ok("word that nothing can be stored", SOON, || async {
        match fleet.page("/readyz").await {
            Ok(page) => Err(page),
            Err(fault) if fault.to_string().contains(why) => Ok(()),
            Err(fault) => Err(fault.to_string()),
        }
    })
    .await
    .unwrap();
    let page = fleet.page("/metrics").await.unwrap();
    let failed = page::series(&page, "nexus_commits_failed_total");
    assert!(failed.map(|(_, value)| value).sum::<f64>() > 0.0, "{page}");
}

async fn ready(fleet: &Fleet) {
    // What failed last and has had nothing to write since counts as failing for a minute.
    poll::until_ok("readiness", 2 * SOON, || async {
        let page = fleet.page("/readyz").await;
        page.map_err(|fault| fault.to_string())
    })
    .await
    .unwrap();
}

/// A job that leaves a mark each time it is executed.
async fn marks(fleet: &Fleet, mark: &Path, flags: &[&str]) -> (Said, Value) {
    let append = format!("echo ran >> {}", mark.display());
    fleet.job(flags, &["sh", "-c", &append]).await.unwrap()
}

fn times(mark: &Path) -> usize {
    fs::read_to_string(mark).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn a_collector_whose_disk_turns_read_only_acknowledges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::over(&dir.path().join("collector"));
    let mut fleet = Fleet::new_in(dir, &[]).await.unwrap();
    fleet.add("alpha", &["interval=1s"]).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    fleet
        .eventually("SELECT 1 FROM packages LIMIT 1", |rows| !rows.is_empty())
        .await
        .unwrap();
    disk.turn_read_only();
    not_ready(&fleet, "I/O error").await;
    let mark = fleet.dir().join("mark");
    let (said, _) = marks(&fleet, &mark, &["--all"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("I/O error"), "{said:?}");
    let before = readings(&fleet).await;
    fleet.collector.stop().await.unwrap();
    disk.repair();
    fleet.collector.start().await.unwrap();
    ready(&fleet).await;
    fleet.connected("alpha").await.unwrap();
    poll::until("what was spooled meanwhile", SOON, || async {
        (readings(&fleet).await > before + 3).then_some(())
    })
    .await
    .unwrap();
    let (said, _) = marks(&fleet, &mark, &["--all"]).await;
    assert_eq!((said.code, times(&mark)), (0, 1), "{said:?}");
    all_readings(&fleet).await;
}

#[tokio::test]
async fn a_collector_whose_disk_fails_for_a_while_goes_on_by_itself() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet
        .eventually("SELECT 1 FROM packages LIMIT 1", |rows| !rows.is_empty())
        .await
        .unwrap();
    let program = fleet.collector.id().unwrap();
    let fault = Interference::with(program, DISK_WRITES, "error=EIO").await;
    not_ready(&fleet, "I/O error").await;
    let mark = fleet.dir().join("mark");
    let (said, _) = marks(&fleet, &mark, &["--all"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("I/O error"), "{said:?}");
    let before = readings(&fleet).await;
    fault.end().await;
    ready(&fleet).await;
    poll::until("what was spooled meanwhile", SOON, || async {
        (readings(&fleet).await > before + 3).then_some(())
    })
    .await
    .unwrap();
    let (said, _) = marks(&fleet, &mark, &["--all"]).await;
    assert_eq!((said.code, times(&mark)), (0, 1), "{said:?}");
    all_readings(&fleet).await;
    let log = fleet.agents[0].log_text();
    assert_eq!(log.matches("session opened").count(), 1, "{log}");
}
