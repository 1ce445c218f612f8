//! TERM under load: what is under way is finished within the deadline, and a second one ends it at once.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    time::{Duration, Instant},
};

use nexus_runtime::clock::Clock;
use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
    process::Process,
};

use super::interference::Interference;

/// A deadline, short enough to be waited for.
const DEADLINE: Duration = Duration::from_secs(4);
/// The same as a setting.
const SHUTDOWN: &str = "shutdown.timeout=4s";
/// From a deadline to the end of the process on a busy machine, with what an agent waits for acks.
const SLACK: Duration = Duration::from_secs(5);
/// What `at once` may take on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

fn now() -> Instant {
    Clock::system().instant()
}

async fn fleet(settings: &[&str]) -> Fleet {
    let mut fleet = Fleet::new(settings).await.unwrap();
    for name in NAMES {
        let settings = ["interval=1s", "exec.kill_grace=1s", SHUTDOWN];
        fleet.add(name, &settings).await.unwrap();
    }
    for name in NAMES {
        fleet.connected(name).await.unwrap();
    }
    fleet
}

/// Starts this everywhere, and waits until output of it has come.
async fn load(fleet: &Fleet, script: &str) -> Process {
    let log = fleet.dir().join("run.log");
    let args = ["run", "--yes", "--all", "--", "sh", "-c", script];
    let job = fleet.ctl.start(&args, &log).await.unwrap();
    for name in NAMES {
        poll::until(name, SOON, || {
            let begin = format!("{name}: ");
            let said = job.log_text();
            let came = said.lines().any(|line| line.starts_with(&begin));
            std::future::ready(came.then_some(()))
        })
        .await
        .unwrap();
    }
    job
}

/// A signal that was not handled, or the same as an exit code.
fn by_term(status: ExitStatus) -> bool {
    status.code() == Some(143) || status.signal() == Some(15)
}

/// One that nobody has waited for yet does not live.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[tokio::test]
async fn a_collector_drains_within_its_deadline() {
    let mut fleet = fleet(&[SHUTDOWN]).await;
    let go = fleet.dir().join("go");
    let script = format!(
        "i=0; while [ ! -e {} ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo last $i",
        go.display()
    );
    let mut job = load(&fleet, &script).await;
    let begun = now();
    fleet.collector.terminate();
    let status = fleet.collector.ended().await.unwrap();
    let took = now() - begun;
    println!("a collector under load drained in {took:?}");
    assert!(status.success(), "{status:?}");
    assert!(took < DEADLINE + AT_ONCE, "{took:?}");
    fleet.collector.start().await.unwrap();
    for name in NAMES {
        fleet.connected(name).await.unwrap();
    }
    std::fs::write(&go, "").unwrap();
    let status = job.wait().await.unwrap();
    let said = job.log_text();
    assert_eq!(status.code(), Some(0), "{said}");
    for name in NAMES {
        // Every line, once, in order.
        let begin = format!("{name}: ");
        let lines = said.lines().filter_map(|line| line.strip_prefix(&begin));
        let lines: Vec<_> = lines.collect();
        let (last, counted) = lines.split_last().unwrap();
        let expected: Vec<_> = (1..=counted.len()).map(|n| n.to_string()).collect();
        assert_eq!(counted, expected, "{name}");
        assert_eq!(*last, format!("last {}", counted.len()), "{name}");
    }
    let lanes = "SELECT node, lane, seq, records FROM lanes WHERE seq <> records";
    let lanes = fleet.query(lanes).await.unwrap();
    assert!(lanes.is_empty(), "{lanes:?}");
    let gaps = fleet.query("SELECT * FROM gaps").await.unwrap();
    assert!(gaps.is_empty(), "{gaps:?}");
}

#[tokio::test]
async fn a_collector_whose_disk_hangs_ends_at_its_deadline_or_at_once() {
    let mut fleet = fleet(&[SHUTDOWN]).await;
    for second in [false, true] {
        let program = fleet.collector.id().unwrap();
        // A program cannot end while it is held up here.
        let held_up = Duration::from_secs(2);
        let stuck = Interference::with(program, "fdatasync,fsync", "delay_enter=2000000").await;
        let mut asked = now();
        fleet.collector.terminate();
        if second {
            poll::until("draining", SOON, || {
                let log = fleet.collector.log_text();
                std::future::ready(log.contains("draining").then_some(()))
            })
            .await
            .unwrap();
            // How long it takes to say so is not how long it takes to end.
            asked = now();
            fleet.collector.terminate();
        }
        let status = fleet.collector.ended().await.unwrap();
        let took = now() - asked;
        println!("a disk that hangs, asked twice: {second}, ended in {took:?}");
        if second {
            assert!(by_term(status), "{status:?}");
            assert!(took < held_up + AT_ONCE, "{took:?}");
        } else {
            assert!(took > held_up + AT_ONCE, "it had nothing to do: {took:?}");
            assert!(took < DEADLINE + held_up + 2 * AT_ONCE, "{took:?}");
        }
        drop(stuck);
        std::fs::remove_file(fleet.collector.dir().with_extension("log")).unwrap();
        fleet.collector.start().await.unwrap();
        for name in NAMES {
            fleet.connected(name).await.unwrap();
        }
        let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
        assert_eq!(said.code, 0, "{said:?}");
    }
}

#[tokio::test]
async fn an_agent_ends_its_runs_within_its_deadline_or_at_once() {
    let mut fleet = fleet(&[]).await;
    for (second, state) in [(false, "cancelled"), (true, "unknown")] {
        let script = "trap '' TERM; echo pid $$; while :; do sleep 0.05; echo more; done";
        let mut job = load(&fleet, script).await;
        for agent in &mut fleet.agents {
            let begun = now();
            agent.terminate();
            poll::until("shutting down", SOON, || {
                let log = agent.log_text();
                std::future::ready(log.contains("shutting down").then_some(()))
            })
            .await
            .unwrap();
            let again = now();
            if second {
                agent.terminate();
            }
            let status = agent.ended().await.unwrap();
            let end = now();
            println!("asked twice: {second}, ended in {:?}", end - begun);
            if second {
                assert!(by_term(status), "{status:?}");
                assert!(end - again < AT_ONCE, "{:?}", end - again);
            } else {
                assert!(status.success(), "{status:?}");
                assert!(end - begun < DEADLINE + SLACK, "{:?}", end - begun);
            }
            std::fs::remove_file(agent.dir().with_extension("log")).unwrap();
            agent.start().await.unwrap();
        }
        let status = job.wait().await.unwrap();
        let said = job.log_text();
        assert_eq!(status.code(), Some(3), "{said}");
        let summary = format!("3 targets: 3 {state}");
        assert!(said.contains(&summary), "{said}");
        let pids = said.lines().filter_map(|line| line.split("pid ").nth(1));
        let left: Vec<_> = pids.filter(|pid| is_alive(pid)).collect();
        assert!(left.is_empty(), "{left:?} outlived the report");
        std::fs::remove_file(fleet.dir().join("run.log")).unwrap();
    }
}
