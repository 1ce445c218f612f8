//! An agent that is nobody and a helper that is root: what jobs may through it, and that they outlive the agent.

use std::{fs, os::unix::fs::chown};

use bytes::Bytes;
use nexus_agent::{
    exec::leftover,
    ledger::{Ledger, Process},
};
use nexus_proto::ids::{JobId, NodeId, RunKey};
use nexus_runtime::clock::Clock;
use nexus_tests::{
    fleet::{Fleet, SOON},
    helper::{AGENT, ANYTHING, Helper},
    poll,
    process::{self, Process as Started},
};
use serde_json::Value;

/// A fleet of one node, whose agent runs as nobody beside a helper.
struct Split {
    fleet: Fleet,
    helper: Helper,
}

impl Split {
    async fn new() -> Self {
        let mut fleet = Fleet::new(&[]).await.unwrap();
        let mut helper = Helper::new(fleet.dir()).unwrap();
        let mut agent = helper.agent("alpha", &["interval=1s"]).unwrap();
        let token = fleet.token(&[]).await.unwrap();
        agent.enroll(&token).await.unwrap();
        helper.start().await.unwrap();
        Helper::start_agent(&mut agent).await.unwrap();
        fleet.agents.push(agent);
        fleet.connected("alpha").await.unwrap();
        Self { fleet, helper }
    }

    /// The one run of a job.
    async fn run(&self, flags: &[&str], command: &[&str]) -> Value {
        let flags: Vec<_> = ["--all"].iter().chain(flags).copied().collect();
        let (said, document) = self.fleet.job(&flags, command).await.unwrap();
        let run = document["runs"][0].clone();
        assert!(run.is_object(), "{said:?}\n{}", self.logs());
        run
    }

    async fn start(&self, script: &str) -> Started {
        let log = self.fleet.dir().join("run.log");
        let args = ["run", "--yes", "--all", "--", "sh", "-c", script];
        let job = self.fleet.ctl.start(&args, &log).await.unwrap();
        let running = "SELECT node FROM runs WHERE state = 'running'";
        let begun = self
            .fleet
            .eventually(running, |rows| !rows.is_empty())
            .await;
        begun.unwrap_or_else(|fault| panic!("{fault}\n{}", self.logs()));
        job
    }

    async fn end_agent(&mut self, killed: bool) {
        let agent = &mut self.fleet.agents[0];
        if killed {
            agent.kill().await.unwrap();
        } else {
            agent.stop().await.unwrap();
        }
    }

    async fn start_agent(&mut self) {
        Helper::start_agent(&mut self.fleet.agents[0])
            .await
            .unwrap();
    }

    fn logs(&self) -> String {
        format!(
            "--- helper\n{}\n--- agent\n{}",
            self.helper.log_text(),
            self.fleet.agents[0].log_text()
        )
    }

    fn path(&self, name: &str) -> String {
        self.fleet.dir().join(name).display().to_string()
    }

    async fn appears(&self, name: &str) {
        let path = self.fleet.dir().join(name);
        let there = poll::until(name, SOON, || {
            std::future::ready(path.exists().then_some(()))
        });
        there
            .await
            .unwrap_or_else(|fault| panic!("{fault}\n{}", self.logs()));
    }
}

fn uid_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

fn network_of(pid: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    link.display().to_string()
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[tokio::test]
async fn a_job_is_root_has_a_network_and_neither_is_true_of_who_takes_it() {
    let split = Split::new().await;
    let agent = split.fleet.agents[0].id().unwrap();
    assert_eq!(uid_of(agent), AGENT);
    let script = "id -u; readlink /proc/self/ns/net; pwd";
    let ours = network_of("self");
    let run = split.run(&[], &["sh", "-c", script]).await;
    assert_eq!(run["state"], "succeeded", "{run}\n{}", split.logs());
    assert_eq!(run["stdout"], format!("0\n{ours}\n/\n"), "{run}");
    let run = split
        .run(&["--user", "nobody"], &["sh", "-c", script])
        .await;
    assert_eq!(run["stdout"], format!("65534\n{ours}\n/\n"), "{run}");
    let run = split.run(&["--user", "nobody"], &["id", "-G"]).await;
    assert_eq!(run["stdout"], "65534\n", "{run}");
    // The helper itself: another network, of which there is nothing but a loopback device that is down.
    let helper = split.helper.id().unwrap();
    assert_eq!(uid_of(helper), 0);
    assert_ne!(network_of(&helper.to_string()), ours);
    let devices = fs::read_to_string(format!("/proc/{helper}/net/dev")).unwrap();
    assert_eq!(devices.lines().skip(2).count(), 1, "{devices}");
    let routes = fs::read_to_string(format!("/proc/{helper}/net/route")).unwrap();
    assert_eq!(routes.lines().skip(1).count(), 0, "{routes}");
    for task in fs::read_dir(format!("/proc/{helper}/task")).unwrap() {
        let link = fs::read_link(task.unwrap().path().join("ns/net")).unwrap();
        assert_ne!(link.display().to_string(), ours);
    }
    let inside = format!("--net=/proc/{helper}/ns/net");
    let tried = std::process::Command::new("nsenter")
        .args([&inside, "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert!(said.contains("Network is unreachable"), "{said}");
}

#[tokio::test]
async fn the_local_policy_decides_and_says_why_not() {
    let split = Split::new().await;
    let rejected = async |flags: &[&str], command: &[&str], why: &str| {
        let run = split.run(flags, command).await;
        assert_eq!(run["state"], "rejected", "{run}\n{}", split.logs());
        let reason = run["reason"].as_str().unwrap();
        assert!(
            reason.contains("policy.toml") && reason.contains(why),
            "{reason}"
        );
    };
    let mark = split.path("mark");
    let touch = ["touch", mark.as_str()];
    let rule = "[[allow]]\nwho = \"*\"\nrun = \"/usr/bin/id\"\nas = \"root\"\n";
    split.helper.policy(rule).unwrap();
    let run = split.run(&[], &["/usr/bin/id", "-u"]).await;
    assert_eq!(
        (&run["state"], &run["stdout"]),
        (&"succeeded".into(), &"0\n".into()),
        "{run}"
    );
    rejected(&[], &touch, "has no rule that lets").await;
    rejected(&["--user", "nobody"], &["/usr/bin/id"], "as nobody").await;
    rejected(
        &["--env", "LD_PRELOAD=/x.so"],
        &["/usr/bin/id"],
        "environment",
    )
    .await;
    split.helper.policy("deny = \"everything\"\n").unwrap();
    rejected(&[], &["/usr/bin/id"], "denies everything").await;
    split.helper.policy("[[allow]]\nwhoever = \"*\"\n").unwrap();
    rejected(&[], &touch, "unknown key").await;
    split.helper.policy(ANYTHING).unwrap();
    let file = split.fleet.dir().join("policy.toml");
    let writable = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&file, writable).unwrap();
    rejected(&[], &touch, "others than root can write it").await;
    fs::remove_file(&file).unwrap();
    rejected(&[], &touch, "there is no local policy").await;
    assert!(!split.fleet.dir().join("mark").exists());
    split.helper.policy(ANYTHING).unwrap();
    let run = split.run(&[], &touch).await;
    assert_eq!(run["state"], "succeeded", "{run}");
}

#[tokio::test]
async fn a_job_goes_on_without_its_agent() {
    for (killed, ends_meanwhile) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut split = Split::new().await;
        let script = format!(
            "echo begun >> {0}; echo w-before; touch {1}; until [ -e {2} ]; do sleep 0.05; done;
             echo w-meanwhile; echo w-stderr >&2; touch {3}; until [ -e {4} ]; do sleep 0.05; done; echo w-after",
            split.path("times"),
            split.path("first"),
            split.path("gone"),
            split.path("second"),
            split.path("back"),
        );
        let mut job = split.start(&script).await;
        split.appears("first").await;
        split.end_agent(killed).await;
        fs::write(split.path("gone"), "").unwrap();
        split.appears("second").await;
        if ends_meanwhile {
            fs::write(split.path("back"), "").unwrap();
            let over = "run finished";
            poll::until(over, SOON, || {
                std::future::ready(split.helper.log_text().contains(over).then_some(()))
            })
            .await
            .unwrap();
        }
        split.start_agent().await;
        split.fleet.connected("alpha").await.unwrap();
        fs::write(split.path("back"), "").unwrap();
        let status = job.wait().await.unwrap();
        let said = job.log_text();
        let case = format!("killed: {killed}, ends meanwhile: {ends_meanwhile}");
        assert_eq!(status.code(), Some(0), "{case}: {said}\n{}", split.logs());
        assert!(said.contains("1 target: 1 succeeded"), "{case}: {said}");
        for line in ["w-before", "w-meanwhile", "w-stderr", "w-after"] {
            assert_eq!(said.matches(line).count(), 1, "{case}, {line}: {said}");
        }
        assert_eq!(fs::read_to_string(split.path("times")).unwrap(), "begun\n");
        // Nothing is left to be told of it.
        let run = split.run(&[], &["true"]).await;
        assert_eq!(run["state"], "succeeded", "{run}");
    }
}

#[tokio::test]
async fn a_run_whose_helper_was_killed_is_unknown_and_nothing_of_it_lives() {
    let mut split = Split::new().await;
    let pids = split.path("pids");
    let script = format!(
        "setsid sleep 1001 & echo $! >> {pids}; sleep 1000 & echo $! >> {pids}; echo $$ >> {pids}; touch {}; wait",
        split.path("begun")
    );
    let mut job = split.start(&script).await;
    split.appears("begun").await;
    let pids = fs::read_to_string(&pids).unwrap();
    let pids: Vec<_> = pids.lines().collect();
    assert!(
        pids.len() == 3 && pids.iter().all(|pid| is_alive(pid)),
        "{pids:?}"
    );
    split.helper.kill().await.unwrap();
    // Without this the rest would show nothing: somebody is left to be killed.
    assert!(pids.iter().any(|pid| is_alive(pid)), "{pids:?}");
    let state = split.fleet.query("SELECT state FROM runs").await.unwrap();
    assert_eq!(state[0]["state"], "running", "{state:?}");
    split.helper.start().await.unwrap();
    let status = job.wait().await.unwrap();
    let left: Vec<_> = pids.iter().filter(|pid| is_alive(pid)).collect();
    assert!(left.is_empty(), "{left:?} outlived the report");
    let said = job.log_text();
    assert_eq!(status.code(), Some(3), "{said}\n{}", split.logs());
    assert!(said.contains("1 target: 1 unknown"), "{said}");
    assert!(said.contains("the helper ended while it ran"), "{said}");
    let run = split.run(&[], &["true"]).await;
    assert_eq!(run["state"], "succeeded", "{run}\n{}", split.logs());
}

#[tokio::test]
async fn a_helper_that_is_stopped_ends_its_runs_and_says_so() {
    let mut split = Split::new().await;
    let mut job = split.start("sleep 1000").await;
    split.helper.stop().await.unwrap();
    let status = job.wait().await.unwrap();
    let said = job.log_text();
    assert_eq!(status.code(), Some(3), "{said}\n{}", split.logs());
    assert!(said.contains("1 target: 1 cancelled"), "{said}");
    assert!(said.contains("the helper was stopped"), "{said}");
    assert!(!split.helper.socket().exists());
    // Without one nothing runs, since its agent was told to use it.
    let run = split.run(&[], &["true"]).await;
    assert_eq!(run["state"], "failed", "{run}");
    let reason = run["reason"].as_str().unwrap();
    assert!(reason.contains("the helper cannot be reached"), "{reason}");
}

#[tokio::test]
async fn all_output_comes_through_and_a_run_can_be_ended() {
    let split = Split::new().await;
    let many = "head -c 6000000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero | tr '\\0' y >&2";
    let run = split.run(&[], &["sh", "-c", many]).await;
    assert_eq!(run["state"], "succeeded", "{}", split.logs());
    for (stream, letter, bytes) in [("stdout", 'x', 6_000_000), ("stderr", 'y', 300_000)] {
        let text = run[stream].as_str().unwrap();
        assert!(
            text.len() == bytes && text.chars().all(|c| c == letter),
            "{stream} {}",
            text.len()
        );
    }
    let run = split.run(&["--timeout", "1s"], &["sleep", "1000"]).await;
    assert_eq!(run["state"], "timed_out", "{run}");
    let run = split.run(&[], &["/no/such/program"]).await;
    assert_eq!(run["state"], "failed", "{run}");
    let script = format!(
        "trap 'echo w-stopped; exit 3' TERM; touch {}; sleep 1000 & wait",
        split.path("trapped")
    );
    let mut job = split.start(&script).await;
    split.appears("trapped").await;
    let jobs = split
        .fleet
        .query("SELECT job_id AS job FROM runs WHERE state = 'running'")
        .await
        .unwrap();
    let id = jobs[0]["job"].as_str().unwrap();
    split.fleet.ctl.ok(&["cancel", id]).await.unwrap();
    assert_eq!(job.wait().await.unwrap().code(), Some(3));
    let said = job.log_text();
    assert!(
        said.contains("1 cancelled") && said.contains("w-stopped"),
        "{said}"
    );
}

#[tokio::test]
async fn an_agent_that_had_no_helper_is_pinned_by_a_token_and_runs_nothing_from_before() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let mut helper = Helper::new(fleet.dir()).unwrap();
    let mut agent = helper.agent("alpha", &["interval=1s"]).unwrap();
    let token = fleet.token(&[]).await.unwrap();
    agent.enroll(&token).await.unwrap();
    // As if it had enrolled as its own user.
    fs::remove_dir_all(helper.state()).unwrap();
    helper.start().await.unwrap();
    Helper::start_agent(&mut agent).await.unwrap();
    let mut pin = agent.command().await.unwrap();
    fleet.agents.push(agent);
    fleet.connected("alpha").await.unwrap();
    let split = Split { fleet, helper };
    let run = split.run(&[], &["true"]).await;
    let reason = run["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("nexus-agent pin TOKEN"), "{run}");

    let token = split.fleet.token(&[]).await.unwrap();
    let output = process::run(pin.args(["pin", "-"]), token.as_bytes());
    let output = output.await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(
        said.contains("signed 5 minutes from now or later"),
        "{said}"
    );
    // The helper knew no job before the pin, and the agent may have.
    let run = split.run(&[], &["true"]).await;
    assert_eq!(run["state"], "rejected", "{run}");
    let reason = run["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("no longer known"), "{run}");
}

#[tokio::test]
async fn root_that_removes_an_agent_kills_nothing_the_agent_names() {
    let mut split = Split::new().await;
    split.end_agent(false).await;
    let mut victim = tokio::process::Command::new("setsid")
        .args(["sleep", "100"])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = victim.id().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start_ticks = stat.split(' ').nth(21).unwrap().parse().unwrap();
    let boot_id = leftover::boot_id().unwrap();
    // What an agent that was taken over would leave: runs of its own that are a process of root's.
    let agent = &split.fleet.agents[0];
    let now = Clock::system().now();
    let mut ledger = Ledger::open(&agent.dir().join("ledger"), true, now).unwrap();
    for _ in 0..8 {
        let process = Process {
            pid,
            start_ticks,
            boot_id: boot_id.clone(),
        };
        let run = RunKey::once(JobId::random());
        ledger.receive(run, now.after(SOON), Bytes::new()).unwrap();
        ledger.start(run, now, NodeId::random()).unwrap();
        ledger.process(run, process).unwrap();
    }
    drop(ledger);
    for entry in fs::read_dir(agent.dir().join("ledger")).unwrap() {
        chown(entry.unwrap().path(), Some(AGENT), Some(AGENT)).unwrap();
    }
    let mut leave = agent.command().await.unwrap();
    let output = process::run(leave.arg("leave"), b"").await.unwrap();
    assert!(victim.try_wait().unwrap().is_none(), "{output:?}");
    victim.kill().await.unwrap();
}
