//! The real program against a collector that answers by script: flags, formats, exit codes, and what it
//! sends.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

// `cfg(test)` tells the lints that helpers in there are test code too.
#[cfg(test)]
#[path = "cli/fake.rs"]
mod fake;
#[cfg(test)]
#[path = "cli/lies.rs"]
mod lies;
#[cfg(test)]
#[path = "cli/metrics.rs"]
mod metrics;
#[cfg(test)]
#[path = "cli/screen.rs"]
mod screen;
#[cfg(test)]
#[path = "cli/targets.rs"]
mod targets;
#[cfg(test)]
#[path = "cli/terminal.rs"]
mod terminal;
#[cfg(test)]
#[path = "cli/trust.rs"]
mod trust;
#[cfg(test)]
#[path = "cli/words.rs"]
mod words;

use fake::Fake;

const LIFE: Duration = Duration::from_secs(8 * 3600);

struct World {
    dir: TempDir,
    fake: Fake,
}

impl World {
    async fn new(life: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::start(&dir.path().join("pki"), life).await;
        Self { dir, fake }
    }

    async fn logged_in() -> Self {
        let world = Self::new(LIFE).await;
        let output = world.run(&["login", &world.fake.code()]).await;
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        world
    }

    fn client_toml(&self) -> PathBuf {
        self.dir.path().join("client/client.toml")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexusctl"));
        command
            .args(args)
            .env("NEXUSCTL_CONFIG", self.client_toml())
            .stdin(Stdio::null());
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().await.unwrap()
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[tokio::test]
async fn login_makes_private_keys_and_keeps_the_signing_key() {
    let world = World::logged_in().await;
    let operator = world.dir.path().join("client/operator");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&operator), 0o700);
    for file in operator.read_dir().unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
    let signing = std::fs::read(operator.join("signing.key")).unwrap();
    let identity = std::fs::read(operator.join("identity.pem")).unwrap();
    let again = world.run(&["login", &world.fake.code()]).await;
    assert_eq!(code(&again), 0, "{}", err(&again));
    assert_eq!(
        std::fs::read(operator.join("signing.key")).unwrap(),
        signing
    );
    assert_ne!(
        std::fs::read(operator.join("identity.pem")).unwrap(),
        identity
    );
    assert!(out(&again).is_empty());
    let config = world.run(&["config", "-o", "json"]).await;
    let config: Value = serde_json::from_str(&out(&config)).unwrap();
    assert_eq!(config["operator"], "admin");
    assert_eq!(world.fake.seen.lock().unwrap().freshness, 2);
    let left: Vec<_> = operator.parent().unwrap().read_dir().unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn a_certificate_past_half_its_life_is_renewed_by_use() {
    // Certificates are dated back by five minutes, so this one is past its half at once.
    let world = World::new(Duration::from_secs(60)).await;
    world.run(&["login", &world.fake.code()]).await;
    let output = world.run(&["get", "nodes", "-o", "name"]).await;
    assert_eq!(out(&output), "node/web-1\nnode/db-1\n", "{}", err(&output));
    assert!(world.fake.seen.lock().unwrap().renewals >= 1);
}

#[tokio::test]
async fn nodes_in_every_format() {
    let world = World::logged_in().await;
    let table = out(&world.run(&["get", "nodes"]).await);
    assert!(table.starts_with("NAME    STATE "), "{table}");
    assert_eq!(table.lines().count(), 3);
    let json = out(&world
        .run(&["get", "nodes", "-l", "role in (web)", "-o", "json"])
        .await);
    let nodes: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 1);
    for key in [
        "id",
        "name",
        "state",
        "labels",
        "os",
        "kernel",
        "arch",
        "agent_version",
        "transport",
        "key_exchange",
        "last_seen",
        "enrolled_at",
        "shard",
    ] {
        assert!(nodes[0].get(key).is_some(), "{key}");
    }
    assert!(nodes[0]["last_seen"].as_str().unwrap().ends_with('Z'));
    let missing = world.run(&["get", "node/nope"]).await;
    assert_eq!(
        (code(&missing), err(&missing).as_str()),
        (
            1,
            "error: node nope: there is no such node\nhint: `nexusctl get nodes` lists them\n"
        )
    );
    let seen = world.fake.seen.lock().unwrap();
    assert!(seen.request_ids.iter().all(|id| id.len() == 36));
}

#[tokio::test]
async fn views_keep_every_column() {
    let world = World::logged_in().await;
    let json = out(&world.run(&["get", "events", "-o", "json"]).await);
    let events: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(events[0]["extra"], "odd");
    assert_eq!(events[0]["time"], "2026-01-01T00:00:00.000Z");
    let unknown = world.run(&["get", "shards"]).await;
    assert_eq!(code(&unknown), 1);
}

#[tokio::test]
async fn queries() {
    let world = World::logged_in().await;
    let csv = out(&world.run(&["query", "SELECT 1", "-o", "csv"]).await);
    assert_eq!(csv, "name,value\n\"a,b\",\nc,d\n");
    let table = out(&world.run(&["query", "SELECT 1", "--no-headers"]).await);
    assert_eq!(table, "a,b   NULL\nc     d\n");
    let refused = world.run(&["query", "DROP TABLE nodes"]).await;
    assert_eq!(code(&refused), 5);
    assert_eq!(
        err(&refused),
        "error: query: only reading is allowed\nhint: see --schema\n"
    );
}

#[tokio::test]
async fn a_job_is_signed_streamed_and_summed_up() {
    let world = World::logged_in().await;
    let output = world.run(&["run", "--all", "--", "echo", "x"]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let text = out(&output);
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["db-1: hello", "db-1: world", "web-1: hello", "web-1: world"]
    );
    assert!(err(&output).contains("web-1: oops\n"));
    assert!(
        err(&output).contains("2 targets: 2 succeeded"),
        "{}",
        err(&output)
    );
    let seen = world.fake.seen.lock().unwrap();
    let (job, tree) = seen.job.as_ref().unwrap();
    assert_eq!(tree.count(), 2);
    assert!(seen.request_ids.contains(&job.request_id));
}

#[tokio::test]
async fn a_failure_is_exit_code_three_and_json_tells_all() {
    let world = World::logged_in().await;
    let output = world
        .run(&["run", "--all", "-o", "json", "--", "sh", "fail"])
        .await;
    assert_eq!(code(&output), 3);
    let document: Value = serde_json::from_str(&out(&output)).unwrap();
    let counts = document["counts"].as_object().unwrap();
    assert_eq!(counts.values().filter_map(Value::as_u64).sum::<u64>(), 2);
    let failed = &document["runs"][0];
    assert_eq!(
        (&failed["node"], &failed["state"]),
        (&"db-1".into(), &"failed".into())
    );
    assert_eq!(failed["exit_code"], 7);
    assert_eq!(failed["stdout"], "hello\nworld");
    assert_eq!(failed["stderr"], "oops\n");
    assert!(err(&output).contains("db-1: failed (exit code 7)"));
}

#[tokio::test]
async fn a_lost_stream_is_taken_up_again_without_repeating_output() {
    let world = World::logged_in().await;
    let output = world
        .run(&["run", "--nodes", "web-1", "--", "sh", "break"])
        .await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(out(&output), "web-1: hello\nweb-1: world\n");
    assert_eq!(world.fake.seen.lock().unwrap().watches, 2);
}

#[tokio::test]
async fn waiting_ends_at_its_time() {
    let world = World::logged_in().await;
    let args = [
        "run", "--nodes", "web-1", "--wait", "1s", "--", "sh", "hang",
    ];
    let output = world.run(&args).await;
    assert_eq!(code(&output), 124);
    assert_eq!(out(&output), "web-1: hel\n");
    assert!(
        err(&output).contains("1 target: 1 running"),
        "{}",
        err(&output)
    );
    let wait = world.seen_job().await;
    let output = world.run(&["wait", &wait, "--timeout", "1s"]).await;
    assert_eq!(code(&output), 124);
    let output = world.run(&["cancel", wait.get(..8).unwrap()]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(world.fake.seen.lock().unwrap().cancelled, 1);
}

#[tokio::test]
async fn an_interrupt_says_that_the_job_goes_on() {
    let world = World::logged_in().await;
    let child = world
        .command(&["run", "--nodes", "web-1", "--", "sh", "hang"])
        .spawn()
        .unwrap();
    world.until_watched().await;
    interrupt(&child);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(code(&output), 130);
    assert!(
        err(&output).contains("hint: the job goes on"),
        "{}",
        err(&output)
    );
    assert!(err(&output).contains("nexusctl cancel "));
}

#[tokio::test]
async fn tokens_are_signed_here_and_alone_on_stdout() {
    let world = World::logged_in().await;
    let args = [
        "token", "create", "--uses", "3", "--ttl", "1h", "--label", "role=web",
    ];
    let output = world.run(&args).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let text = out(&output);
    assert!(text.starts_with("nxt_") && text.lines().count() == 1);
    let seen = world.fake.seen.lock().unwrap();
    let token = &seen.tokens[0];
    assert_eq!((token.uses, token.labels["role"].as_str()), (3, "web"));
    assert_eq!(token.addresses, ["collector.example:7460"]);
}

#[tokio::test]
async fn the_audit_chain_is_remembered() {
    let world = World::logged_in().await;
    world.set_audit(&["a", "b"]);
    assert_eq!(code(&world.run(&["audit", "verify"]).await), 0);
    world.set_audit(&["a", "b", "c"]);
    let grown = world.run(&["audit", "verify", "-o", "json"]).await;
    let grown: Value = serde_json::from_str(&out(&grown)).unwrap();
    assert_eq!(
        (&grown["verified_rows"], &grown["previous_head_seq"]),
        (&3.into(), &2.into())
    );
    world.set_audit(&["a", "x", "c", "d"]);
    let rewritten = world.run(&["audit", "verify"]).await;
    assert_eq!(code(&rewritten), 1);
    assert!(
        err(&rewritten).starts_with("error: audit verify: "),
        "{}",
        err(&rewritten)
    );
    assert_eq!(code(&world.run(&["login", &world.fake.code()]).await), 0);
    assert_eq!(
        code(&world.run(&["audit", "verify"]).await),
        1,
        "a login forgets nothing"
    );
}

#[tokio::test]
async fn a_dead_collector_is_exit_code_four() {
    let world = World::logged_in().await;
    let text = std::fs::read_to_string(world.client_toml()).unwrap();
    let text = text.replace(&world.fake.address.port().to_string(), "1");
    std::fs::write(world.client_toml(), text).unwrap();
    let output = world.run(&["get", "nodes"]).await;
    assert_eq!(code(&output), 4);
    let lines = err(&output);
    assert!(
        lines.starts_with("error: connect to the collector at 127.0.0.1:1: "),
        "{lines}"
    );
    assert!(
        lines.contains("Connection refused") && lines.contains("\nhint: "),
        "{lines}"
    );
}

#[tokio::test]
async fn another_fleets_collector_is_not_believed() {
    let world = World::logged_in().await;
    let other = World::logged_in().await;
    let text = std::fs::read_to_string(world.client_toml()).unwrap();
    let (ours, theirs) = (world.fake.address.port(), other.fake.address.port());
    std::fs::write(
        world.client_toml(),
        text.replace(&ours.to_string(), &theirs.to_string()),
    )
    .unwrap();
    let output = world.run(&["get", "nodes"]).await;
    assert_eq!(code(&output), 4, "{}", err(&output));
    assert!(err(&output).contains("certificate"), "{}", err(&output));
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_error() {
    let world = World::logged_in().await;
    let mut child = world
        .command(&["get", "nodes", "-o", "jsonl"])
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((code(&output), err(&output).as_str()), (0, ""));
}

#[tokio::test]
async fn labels_need_overwrite() {
    let world = World::logged_in().await;
    let output = world.run(&["label", "node/web-1", "role=db"]).await;
    assert_eq!(code(&output), 1);
    assert_eq!(
        err(&output),
        "error: label node web-1: role is web already\n"
    );
    let output = world
        .run(&["label", "node/web-1", "role=db", "--overwrite"])
        .await;
    assert_eq!(code(&output), 0, "{}", err(&output));
}

fn interrupt(child: &Child) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

impl World {
    /// From now on the collector departs from the truth like this.
    fn lie(&self, change: impl FnOnce(&mut lies::Lies)) {
        change(&mut self.fake.seen.lock().unwrap().lies);
    }

    async fn seen_job(&self) -> String {
        self.fake
            .seen
            .lock()
            .unwrap()
            .job
            .as_ref()
            .unwrap()
            .0
            .id
            .to_string()
    }

    fn set_audit(&self, actions: &[&str]) {
        self.fake.seen.lock().unwrap().audit = fake::audit_rows(actions);
    }

    /// Until the program follows its job.
    async fn until_watched(&self) {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while self.fake.seen.lock().unwrap().watches == 0 {
            look.tick().await;
        }
    }
}
