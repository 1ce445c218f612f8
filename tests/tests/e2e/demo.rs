//! `nexusctl demo`: what a new user sees first.

use std::{fs, path::Path, process::Output};

use nexus_tests::{ctl::Ctl, fleet::SOON, poll, process, process::Process, programs::Programs};
use serde_json::Value;

async fn demo(dir: &Path, args: &[&str]) -> Output {
    let mut command = Programs::built().await.unwrap().command("nexusctl");
    command.arg("demo").arg("--dir").arg(dir).args(args);
    // It may touch nothing but its folder.
    command
        .env("HOME", "/nonexistent")
        .env_remove("XDG_CONFIG_HOME");
    process::run(&mut command, b"").await.unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn shows_this_host_and_keeps_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let demo_dir = dir.path().join("demo");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut incarnations = Vec::new();
    for _ in 0..2 {
        let shown = out(&demo(&demo_dir, &["--once"]).await);
        assert!(
            shown.contains(&format!("Linux {}", kernel.trim())),
            "{shown}"
        );
        assert!(shown.contains("node_load1{"), "{shown}");
        let line = format!(
            "export NEXUSCTL_CONFIG={}",
            demo_dir.join("client.toml").display()
        );
        assert!(shown.lines().any(|l| l == line), "{shown}");
        incarnations.push(fs::read(demo_dir.join("agent-1/incarnation")).unwrap());
    }
    assert_eq!(incarnations[0], incarnations[1]);
    let endpoints = fs::read(demo_dir.join("endpoints.json")).unwrap();
    let endpoints: Value = serde_json::from_slice(&endpoints).unwrap();
    assert!(
        endpoints["operators"]
            .as_str()
            .unwrap()
            .starts_with("https://")
    );
    assert!(
        endpoints["metrics"]
            .as_str()
            .unwrap()
            .starts_with("http://")
    );
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test]
async fn an_agent_that_is_killed_stays_down_and_the_same_line_starts_it() {
    let dir = tempfile::tempdir().unwrap();
    let demo_dir = dir.path().join("demo");
    let log = dir.path().join("log");
    let mut command = Programs::built().await.unwrap().command("nexusctl");
    command
        .arg("demo")
        .args(["--agents", "2", "--dir"])
        .arg(&demo_dir);
    let mut demo = Process::start(&mut command, &log).unwrap();
    poll::until("the demo's last line", SOON, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        std::future::ready(text.contains("export NEXUSCTL_CONFIG=").then_some(()))
    })
    .await
    .map_err(|fault| demo.explain(fault))
    .unwrap();
    let ctl = Ctl::new(&demo_dir);
    let states = async || {
        let nodes = ctl.json(&["get", "nodes"]).await.unwrap();
        let nodes = nodes.as_array().unwrap().clone();
        nodes
            .iter()
            .map(|node| node["state"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(states().await, ["connected", "connected"]);

    let (pid, line) = find(&demo_dir.join("agent-2"));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    poll::until("one node gone", SOON, async || {
        states()
            .await
            .contains(&"disconnected".to_owned())
            .then_some(())
    })
    .await
    .unwrap();
    poll::until("word of it", SOON, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        std::future::ready(text.contains("agent-2").then_some(()))
    })
    .await
    .map_err(|fault| demo.explain(fault))
    .unwrap();
    let mut again = tokio::process::Command::new(&line[0]);
    let mut again = Process::start(again.args(&line[1..]), &dir.path().join("again")).unwrap();
    poll::until("both nodes", SOON, async || {
        (states().await == ["connected", "connected"]).then_some(())
    })
    .await
    .map_err(|fault| again.explain(fault))
    .unwrap();
    assert!(again.stop().await.unwrap().success());
    demo.stop().await.unwrap();
}

#[tokio::test]
async fn int_and_term_end_it_with_all_its_programs() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let dir = tempfile::tempdir().unwrap();
        let demo_dir = dir.path().join("demo");
        let log = dir.path().join("log");
        let mut command = Programs::built().await.unwrap().command("nexusctl");
        command.args(["demo", "--dir"]).arg(&demo_dir);
        let mut demo = Process::start(&mut command, &log).unwrap();
        poll::until("the demo's last line", SOON, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            std::future::ready(text.contains("export NEXUSCTL_CONFIG=").then_some(()))
        })
        .await
        .map_err(|fault| demo.explain(fault))
        .unwrap();
        assert_eq!(running(&demo_dir), 3);
        // To the demo alone: its programs are its to end.
        let id = i32::try_from(demo.id().unwrap()).unwrap();
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
        poll::until("the demo's end", SOON, || {
            std::future::ready(demo.check().is_err().then_some(()))
        })
        .await
        .unwrap();
        assert_eq!(running(&demo_dir), 0, "after {signal:?}");
    }
}

/// How many processes have a command line that names something in this folder.
fn running(dir: &Path) -> usize {
    let dir = dir.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(dir)
        })
        .count()
}

/// The process whose command line names this folder.
fn find(dir: &Path) -> (i32, Vec<String>) {
    let dir = dir.to_str().unwrap();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line: Vec<_> = line
            .split(|byte| *byte == 0)
            .filter(|part| !part.is_empty())
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect();
        if line
            .first()
            .is_some_and(|program| program.ends_with("nexus-agent"))
            && line.iter().any(|part| part == dir)
        {
            return (pid, line);
        }
    }
    panic!("no agent in {dir}");
}
