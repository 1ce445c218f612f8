//! A job's way while it runs: seen live, given a script, stopped, held, cut short.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
    process::Process,
};
use serde_json::Value;

/// Output kept of one run unless the job says otherwise.
const KEPT: usize = 64 << 20;

/// `nexusctl run` that goes on while the test does something else.
struct Job {
    process: Process,
    log: PathBuf,
}

impl Job {
    async fn start(fleet: &Fleet, flags: &[&str], script: &str) -> Self {
        let log = fleet.dir().join("run.log");
        let mut args = vec!["run", "--yes", "--all"];
        args.extend(flags);
        args.extend(["--", "sh", "-c", script]);
        let process = fleet.ctl.start(&args, &log).await.unwrap();
        Self { process, log }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has said so.
    async fn says(&self, what: &str) {
        poll::until_ok(what, SOON, || {
            let said = self.said();
            std::future::ready(if said.contains(what) {
                Ok(())
            } else {
                Err(said)
            })
        })
        .await
        .unwrap();
    }

    /// Its exit code and all it has said.
    async fn end(mut self) -> (Option<i32>, String) {
        let status = self.process.wait().await.unwrap();
        (status.code(), self.said())
    }
}

/// Waits until the only job's only run is in this state, and gives the job's id.
async fn run_is(fleet: &Fleet, state: &str) -> String {
    let rows = fleet
        .eventually("SELECT job_id, state FROM runs", |rows| {
            rows.len() == 1 && rows[0]["state"] == state
        })
        .await
        .unwrap();
    rows[0]["job_id"].as_str().unwrap().to_owned()
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Runs until the file is there.
fn until_there(gate: &Path) -> String {
    format!("while [ ! -e '{}' ]; do sleep 0.05; done", gate.display())
}

#[tokio::test]
async fn output_is_seen_while_the_command_still_runs() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let gate = fleet.dir().join("gate");
    let script = format!("echo first; {}; echo second", until_there(&gate));
    let job = Job::start(&fleet, &[], &script).await;
    job.says("first").await;
    run_is(&fleet, "running").await;
    assert!(!job.said().contains("second"), "{}", job.said());
    fs::write(&gate, "").unwrap();
    let (code, said) = job.end().await;
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("alpha"))
        .collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(
        lines[0].ends_with("first") && lines[1].ends_with("second"),
        "{said}"
    );
    assert!(said.contains("1 target: 1 succeeded"), "{said}");
}

#[tokio::test]
async fn a_script_runs_with_its_arguments_and_leaves_nothing() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let script = fleet.dir().join("script");
    fs::write(
        &script,
        "#!/bin/sh\necho \"$#: $1, $2\"; echo \"$WORD in $PWD\"; exit 4\n",
    )
    .unwrap();
    let path = script.to_str().unwrap();
    let flags = [
        "--all",
        "--script",
        path,
        "--env",
        "WORD=said",
        "--cwd",
        "/tmp",
    ];
    let (said, document) = fleet.job(&flags, &["a b", "c"]).await.unwrap();
    let run = &document["runs"][0];
    assert_eq!((said.code, &run["exit_code"]), (3, &4.into()), "{said:?}");
    assert_eq!(run["stdout"], "2: a b, c\nsaid in /tmp\n", "{document}");
    let scripts: Vec<_> = fs::read_dir(fleet.agents[0].dir().join("scripts"))
        .unwrap()
        .flatten()
        .collect();
    assert!(scripts.is_empty(), "{scripts:?}");

    fs::write(&script, "echo no interpreter\n").unwrap();
    let (said, _) = fleet.job(&["--all", "--script", path], &[]).await.unwrap();
    assert!(said.code == 1 && said.err.contains("#!"), "{said:?}");
    assert_eq!(fleet.query("SELECT * FROM jobs").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_timeout_asks_first() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let script = "trap 'echo asked; exit 5' TERM; sleep 1000 & echo $!; wait";
    let (said, document) = fleet
        .job(&["--all", "--timeout", "1s"], &["sh", "-c", script])
        .await
        .unwrap();
    let run = &document["runs"][0];
    assert_eq!(
        (said.code, &run["state"]),
        (3, &"timed_out".into()),
        "{said:?}"
    );
    assert_eq!(
        (&run["exit_code"], &run["signal"]),
        (&5.into(), &Value::Null),
        "{document}"
    );
    let (child, rest) = run["stdout"].as_str().unwrap().split_once('\n').unwrap();
    assert_eq!(rest, "asked\n", "{document}");
    assert!(!is_alive(child), "{child} outlived the report");
    // It was not waited for longer than it took.
    assert!(
        run["duration_seconds"].as_f64().unwrap() < 9.0,
        "{document}"
    );
}

#[tokio::test]
async fn a_running_job_is_cancelled_with_all_it_started() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let job = Job::start(&fleet, &[], "sleep 1000 & echo child $!; wait").await;
    job.says("child").await;
    let id = run_is(&fleet, "running").await;
    fleet
        .ctl
        .ok(&["cancel", &id, "--reason", "enough of it"])
        .await
        .unwrap();
    let (code, said) = job.end().await;
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("1 cancelled") && said.contains("enough of it"),
        "{said}"
    );
    let child = said.split("child ").nth(1).unwrap().lines().next().unwrap();
    assert!(!is_alive(child), "{child} outlived the report: {said}");
    run_is(&fleet, "cancelled").await;
    let jobs = fleet
        .query("SELECT state, cancelled FROM jobs")
        .await
        .unwrap();
    assert_eq!(jobs[0]["cancelled"], "enough of it", "{jobs:?}");
}

#[tokio::test]
async fn a_job_that_waits_is_cancelled_and_never_runs() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet.agents[0].stop().await.unwrap();
    fleet.in_state("alpha", "disconnected").await.unwrap();
    let mark = fleet.dir().join("mark");
    let script = format!("touch '{}'", mark.display());
    let job = Job::start(&fleet, &["--expires", "10m"], &script).await;
    let id = run_is(&fleet, "pending").await;
    fleet.ctl.ok(&["cancel", &id]).await.unwrap();
    let (code, said) = job.end().await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("1 target: 1 cancelled"), "{said}");
    fleet.agents[0].start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
    // Whatever was sent to it came before this one.
    let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!mark.exists());
}

#[tokio::test]
async fn a_node_that_comes_back_in_time_runs_what_waited() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet.agents[0].stop().await.unwrap();
    fleet.in_state("alpha", "disconnected").await.unwrap();
    let job = Job::start(&fleet, &["--expires", "5m"], "echo here again").await;
    run_is(&fleet, "pending").await;
    fleet.agents[0].start().await.unwrap();
    let (code, said) = job.end().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("here again") && said.contains("1 succeeded"),
        "{said}"
    );
}

#[tokio::test]
async fn output_beyond_the_limit_is_dropped_and_counted() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let surplus = 1_000_000;
    let script = format!("yes {} | head -c {}", "x".repeat(1023), KEPT + surplus);
    let (said, document) = fleet.job(&["--all"], &["sh", "-c", &script]).await.unwrap();
    let run = &document["runs"][0];
    // Losing output is no failure of the command.
    assert_eq!(
        (said.code, &run["state"]),
        (0, &"succeeded".into()),
        "{}",
        said.err
    );
    assert_eq!(run["stdout"].as_str().unwrap().len(), KEPT);
    assert_eq!(run["stdout_bytes"], KEPT + surplus);
    assert_eq!(run["stdout_dropped_bytes"], surplus);
    let note = format!("alpha: {surplus} bytes of stdout were dropped");
    assert!(said.err.contains(&note), "{}", said.err);
}

#[tokio::test]
async fn one_of_two_fails_and_the_counts_add_up() {
    let fleet = Fleet::with_agents(&["alpha", "beta"]).await.unwrap();
    let beta = fleet.node("beta").await.unwrap();
    // A run's name begins with its node's id.
    let script = format!(
        "case $NEXUS_RUN in {}*) echo no >&2; exit 9;; esac; echo yes",
        beta["id"].as_str().unwrap()
    );
    let (said, document) = fleet.job(&["--all"], &["sh", "-c", &script]).await.unwrap();
    assert_eq!(said.code, 3, "{said:?}");
    assert!(
        said.err.contains("2 targets: 1 succeeded, 1 failed"),
        "{said:?}"
    );
    assert!(said.err.contains("beta: failed (exit code 9)"), "{said:?}");

    let mut keys: Vec<_> = document.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["counts", "job", "runs"]);
    let counts = document["counts"].as_object().unwrap();
    let expected = serde_json::json!({
        "succeeded": 1, "failed": 1, "timed_out": 0, "cancelled": 0,
        "expired": 0, "rejected": 0, "lost": 0, "unknown": 0
    });
    assert_eq!(&document["counts"], &expected);
    let sum: u64 = counts.values().filter_map(Value::as_u64).sum();
    let runs = document["runs"].as_array().unwrap();
    assert_eq!(sum, u64::try_from(runs.len()).unwrap());
    for (run, (node, state, code, out, err)) in runs.iter().zip([
        ("alpha", "succeeded", 0, "yes\n", ""),
        ("beta", "failed", 9, "", "no\n"),
    ]) {
        assert_eq!(run["node"], node, "{document}");
        assert_eq!(
            (&run["state"], &run["exit_code"]),
            (&state.into(), &code.into())
        );
        assert_eq!((&run["stdout"], &run["stderr"]), (&out.into(), &err.into()));
        assert_eq!(
            (&run["signal"], &run["stderr_bytes"]),
            (&Value::Null, &err.len().into())
        );
    }
    let (said, _) = fleet.job(&["--nodes", "beta"], &["false"]).await.unwrap();
    assert_eq!(said.code, 3, "{said:?}");
    let jobs = fleet.ctl.json(&["get", "jobs"]).await.unwrap();
    let succeeded = jobs.as_array().unwrap().iter();
    let succeeded: Vec<_> = succeeded.map(|job| &job["succeeded"]).collect();
    assert_eq!(succeeded, [&Value::from(0), &Value::from(1)], "{jobs}");

    // A run is named by its job and its node.
    let name = format!("run/{}/beta", document["job"].as_str().unwrap());
    let names = fleet.ctl.ok(&["get", "runs", "-o", "name"]).await.unwrap();
    assert_eq!(names.lines().count(), 3, "{names}");
    assert!(names.lines().any(|line| line == name), "{name}: {names}");
    let run = fleet.ctl.json(&["describe", &name]).await.unwrap();
    assert_eq!(
        (&run["node"], &run["exit_code"]),
        (&"beta".into(), &9.into())
    );
}
