//! The load generator's agents are agents to the collector, and it counts what it says it counts.

use std::{collections::BTreeMap, fs, path::Path, sync::atomic::Ordering, time::Duration};

use nexus_pki::token::Token;
use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
    process::{self, Process},
    programs::Programs,
    swarm::{Params, Swarm, answers::Answers},
    usage,
};
use nexus_transport::Mode;
use rustix::process::{Pid, Signal, kill_process};
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

/// Six agents in three processes, none of which has joined yet.
async fn in_three(fleet: &Fleet, dir: &Path) -> Swarm {
    let token = fleet.token(&["--uses", "6"]).await.unwrap();
    let params = Params {
        agents: 6,
        processes: Some(3),
        token: Token::parse(&token).unwrap(),
        dir: dir.to_owned(),
        name: "swarm".to_owned(),
        transport: Mode::Quic,
        interval: Duration::from_secs(2),
        series: 20,
        packages: 5,
        answers: Answers {
            delay: Duration::ZERO,
            output: 0,
        },
        ramp: Duration::ZERO,
        seed: 1,
    };
    Swarm::new(params).await.unwrap()
}

async fn all_report(swarm: &Swarm) {
    poll::until_ok("six that report", SOON, || {
        swarm.check().unwrap();
        let reporting = swarm.tally().reporting();
        std::future::ready((reporting == 6).then_some(()).ok_or(reporting.to_string()))
    })
    .await
    .unwrap();
}

/// Whether it does something yet: one that nobody has waited for does not.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    state.flatten().is_some_and(|state| state != 'Z')
}

async fn ended(pids: &[u32]) {
    poll::until_ok("their end", SOON, || {
        let left: Vec<_> = pids.iter().filter(|pid| runs(**pid)).collect();
        std::future::ready(left.is_empty().then_some(()).ok_or(format!("{left:?}")))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_swarm_of_several_processes_counts_as_one() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut swarm = in_three(&fleet, dir.path()).await;
    let processes = swarm.processes();
    assert_eq!(processes.len(), 3);
    let others = &processes[1..];
    assert!(others.iter().all(|pid| runs(*pid)), "{others:?}");

    swarm.enrol().await.unwrap();
    assert_eq!(swarm.tally().enrolled.load(Ordering::Relaxed), 6);
    swarm.start().await.unwrap();
    all_report(&swarm).await;
    assert_eq!(swarm.tally().connected.load(Ordering::Relaxed), 6);
    let nodes = "SELECT name FROM nodes WHERE state = 'connected' ORDER BY name";
    let nodes = fleet.query(nodes).await.unwrap();
    let names: Vec<_> = nodes
        .iter()
        .filter_map(|row| row["name"].as_str())
        .collect();
    let expected: Vec<_> = (1..=6).map(|number| format!("swarm-{number:05}")).collect();
    assert_eq!(names, expected);

    // From a mark on each has to report again.
    swarm.tally().mark();
    assert_eq!(swarm.tally().reporting(), 0);
    all_report(&swarm).await;

    let sum = "SELECT sum(records) AS n FROM lanes WHERE lane = 'metrics'";
    let counted = poll::until_ok("the same count on both sides", SOON, || async {
        let acked = swarm.tally().acked.load(Ordering::Relaxed);
        let rows = fleet.query(sum).await.map_err(|fault| fault.to_string())?;
        let stored = rows[0]["n"].as_u64().unwrap_or(0);
        if acked == stored {
            Ok(acked)
        } else {
            Err(format!("{acked} acknowledged, {stored} stored"))
        }
    });
    assert!(counted.await.unwrap() >= 12);
    let tally = swarm.tally().clone();
    assert!(tally.take_waits().quantile(100) > Duration::ZERO);
    assert_eq!(tally.failed.load(Ordering::Relaxed), 0);

    swarm.stop().await.unwrap();
    assert!(!others.iter().any(|pid| runs(*pid)), "{others:?}");
    assert_eq!(tally.connected.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_process_of_a_swarm_that_fails_is_named() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Where the fifth agent's folder would be.
    let place = dir.path().join("00005");
    fs::write(&place, "").unwrap();
    let swarm = in_three(&fleet, dir.path()).await;
    let fault = swarm.enrol().await.unwrap_err().to_string();
    let (who, why) = ("process 3 of 3 (agents 5 to 6)", "enrol swarm-00005: ");
    assert!(fault.starts_with(who) && fault.contains(why), "{fault}");
    let others = swarm.processes()[1..].to_vec();
    drop(swarm);
    ended(&others).await;

    fs::remove_file(&place).unwrap();
    let mut swarm = in_three(&fleet, dir.path()).await;
    swarm.enrol().await.unwrap();
    swarm.start().await.unwrap();
    all_report(&swarm).await;
    let others = swarm.processes()[1..].to_vec();
    let victim = Pid::from_raw(i32::try_from(others[0]).unwrap()).unwrap();
    kill_process(victim, Signal::KILL).unwrap();
    let fault = poll::until("its failure", SOON, || {
        std::future::ready(swarm.check().err().map(|fault| fault.to_string()))
    });
    let fault = fault.await.unwrap();
    let who = "process 2 of 3 (agents 3 to 4) ended: signal: 9";
    assert!(fault.starts_with(who), "{fault}");
    assert_eq!(swarm.tally().connected.load(Ordering::Relaxed), 4);
    let again = swarm.stop().await.unwrap_err().to_string();
    assert_eq!(again, fault);
    ended(&others).await;
}

#[tokio::test]
async fn more_processes_start_where_the_limit_of_open_files_asks_for_them() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let token = fleet.token(&["--uses", "6"]).await.unwrap();
    let programs = Programs::built().await.unwrap();
    // Enough for three agents beside what a process has anyway.
    let limited = |rest: &str| {
        let mut command = programs.command("nexus-swarm");
        let program = command.as_std().get_program().to_owned();
        command = tokio::process::Command::new("sh");
        let script = format!("ulimit -n 300; {rest}");
        command.args(["-c", &script, "sh"]).arg(program);
        command
    };
    let raised = process::run(&mut limited("ulimit -n 301"), b"").await;
    let may_raise_it = raised.unwrap().status.success();
    let mut command = limited("exec \"$@\"");
    command.args(["--token", "-", "--agents", "6", "--seconds", "2"]);
    command.args(["--interval", "1", "--series", "20", "--packages", "5"]);
    let output = process::run(&mut command, token.as_bytes()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let figures = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let figures: Vec<Value> = figures.collect();
    let processes = &figures[0]["params"]["processes"];
    assert_eq!(*processes, if may_raise_it { 1 } else { 2 }, "{said}");
    let reported = |figure: &&Value| figure["figure"] == "reporting_seconds";
    assert!(figures.iter().any(|figure| reported(&figure)), "{said}");
}

#[tokio::test]
async fn processes_of_a_swarm_end_with_the_first_one() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let token = fleet.token(&["--uses", "3"]).await.unwrap();
    let file = fleet.dir().join("token");
    fs::write(&file, token).unwrap();
    let mut command = Programs::built().await.unwrap().command("nexus-swarm");
    command.args(["--token", &format!("@{}", file.display())]);
    command.args(["--agents", "3", "--processes", "3", "--series", "20"]);
    command.arg("--dir").arg(fleet.dir().join("swarm"));
    let mut running = Process::start(&mut command, &fleet.dir().join("log")).unwrap();
    poll::until_ok("three agents", SOON, || {
        running.check().unwrap();
        let log = running.log_text();
        let there = log.contains("3 of 3 connected");
        std::future::ready(there.then_some(()).ok_or(log))
    })
    .await
    .unwrap();
    let processes = usage::family(running.id().unwrap());
    assert_eq!(processes.len(), 3, "{processes:?}");
    for pid in &processes {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!line.contains("nxt_"), "{line}");
    }
    running.kill().await.unwrap();
    ended(&processes).await;
}
