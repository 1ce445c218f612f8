//! More than a collector can take: it takes less, agents keep what they have, and nothing is lost.

use std::{fs, path::Path};

use nexus_tests::{agent::Agent, fleet::Fleet, page, usage::resident_bytes};

use super::interference::{DISK_WRITES, Interference};

const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
/// Output of each agent, far more than may be in flight.
const OUTPUT: usize = 3 << 20;
/// What one upload may have in flight when commits are slow: an eighth of the largest record.
const LEAST_CREDIT: f64 = 131_072.0;
/// The collector's memory, whatever comes: 64 MiB of uploads being decoded, as much in the writers' queues, the
/// caches of its databases, and itself.
const RESIDENT: u64 = 256 << 20;

/// Seconds and number of commits so far.
fn commits(page: &str) -> (f64, f64) {
    let value = |name| page::value(page, name, &[]).unwrap();
    (
        value("nexus_commit_seconds_sum"),
        value("nexus_commit_seconds_count"),
    )
}

fn mean(before: (f64, f64), after: (f64, f64)) -> f64 {
    (after.0 - before.0) / (after.1 - before.1)
}

/// Bytes of files in a folder.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.len()));
    sizes.sum()
}

/// Results that wait at all agents.
fn held(agents: &[Agent]) -> u64 {
    let spools = agents.iter().map(|agent| agent.dir().join("spool/results"));
    spools.map(|dir| size(&dir)).sum()
}

/// What there was to see of it, at most.
#[derive(Debug, Default)]
struct Seen {
    resident_bytes: u64,
    held_bytes: u64,
    queued_bytes: f64,
}

impl Seen {
    fn note(&mut self, fleet: &Fleet, program: u32, page: &str) {
        self.resident_bytes = self.resident_bytes.max(resident_bytes(program));
        self.held_bytes = self.held_bytes.max(held(&fleet.agents));
        for (queue, bytes) in page::series(page, "nexus_queue_size_bytes") {
            self.queued_bytes = self.queued_bytes.max(bytes);
            let mut capacities = page::series(page, "nexus_queue_capacity_bytes");
            let (_, capacity) = capacities.find(|(of, _)| *of == queue).unwrap();
            assert!(bytes <= capacity, "{queue}: {bytes} of {capacity}");
        }
    }
}

#[tokio::test]
async fn a_slow_disk_makes_agents_wait_and_nothing_else() {
    let fleet = Fleet::with_agents(&NAMES).await.unwrap();
    let program = fleet.collector.id().unwrap();
    let script = format!("yes some words of output | head -c {OUTPUT}");
    let fresh = commits(&fleet.page("/metrics").await.unwrap());
    let args = ["run", "--yes", "-o", "json", "--all", "--", "sh", "-c"];
    let args: Vec<_> = args.into_iter().chain([script.as_str()]).collect();
    fleet.ctl.ok(&args).await.unwrap();
    let before = commits(&fleet.page("/metrics").await.unwrap());
    let usual = mean(fresh, before);

    // Each commit is dozens of writes and an fsync for the log, and as many for the projections.
    let slow = Interference::with(program, DISK_WRITES, "delay_exit=4000").await;
    let log = fleet.dir().join("run.log");
    let mut job = fleet.ctl.start(&args, &log).await.unwrap();
    let mut seen = Seen::default();
    let least = LEAST_CREDIT * f64::from(u8::try_from(NAMES.len()).unwrap());
    let mut slowed = 0.0;
    loop {
        let page = fleet.page("/metrics").await.unwrap();
        seen.note(&fleet, program, &page);
        let now = commits(&page);
        slowed = if now.1 > before.1 {
            mean(before, now)
        } else {
            slowed
        };
        let credit = page::value(&page, "nexus_upload_credit_bytes", &[("lane", "results")]);
        if credit.is_some_and(|credit| credit <= least) && slowed > 3.0 * usual {
            break;
        }
        job.check().unwrap();
    }
    println!("a commit took {usual:.3} s, and {slowed:.3} s when slow; {seen:?}");
    assert!(seen.resident_bytes < RESIDENT, "{seen:?}");
    assert!(seen.held_bytes > 1 << 20, "{seen:?}");
    assert!(seen.queued_bytes > 0.0, "{seen:?}");
    // Whoever only reads does not wait for those who write.
    fleet.node("alpha").await.unwrap();
    slow.end().await;

    let status = job.wait().await.unwrap();
    assert_eq!(status.code(), Some(0));
    let sql =
        "SELECT node, job_id, sum(length(data)) AS bytes FROM run_output GROUP BY node, job_id";
    let runs = fleet.query(sql).await.unwrap();
    assert!(runs.iter().all(|run| run["bytes"] == OUTPUT), "{runs:?}");
    assert_eq!(runs.len(), 2 * NAMES.len(), "{runs:?}");
    let lanes = "SELECT node, lane, seq, records FROM lanes WHERE seq <> records";
    let lanes = fleet.query(lanes).await.unwrap();
    assert!(lanes.is_empty(), "{lanes:?}");
    for agent in &fleet.agents {
        let log = agent.log_text();
        assert_eq!(log.matches("session opened").count(), 1, "{log}");
    }
}
