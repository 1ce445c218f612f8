//! `nexus-bench` in short forms: it prints what it promises, keeps what it printed, and leaves nothing behind.

use std::{fs, path::Path, process::Output};

use nexus_tests::{fleet::SOON, poll, process, process::Process, programs::Programs};
use serde_json::Value;

/// A few agents that report every second.
const LOAD: [&str; 8] = [
    "--agents",
    "3",
    "--series",
    "20",
    "--packages",
    "5",
    "--interval",
    "1",
];

async fn bench(args: &[&str]) -> Output {
    let mut command = Programs::built().await.unwrap().command("nexus-bench");
    process::run(command.args(args), b"").await.unwrap()
}

/// What it prints when it succeeds.
async fn lines(args: &[&str]) -> Vec<Value> {
    let output = bench(args).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines = printed.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The one line of that figure, and of what else it says.
fn value(lines: &[Value], figure: &str, params: &[(&str, &str)]) -> f64 {
    let found = lines.iter().filter(|line| {
        let given = |(name, value): &(&str, &str)| line["params"][name] == *value;
        line["figure"] == figure && line["subject"] == "nexus" && params.iter().all(given)
    });
    let values: Vec<_> = found.map(|line| line["value"].as_f64().unwrap()).collect();
    assert_eq!(values.len(), 1, "{figure} {params:?} in {lines:#?}");
    values[0]
}

#[tokio::test]
async fn a_collector_that_is_killed_under_load_recovers_and_loses_nothing() {
    let lines = lines(&[&["recover", "--seconds", "2"], &LOAD[..]].concat()).await;
    let (ready, all) = (
        value(&lines, "seconds", &[]),
        value(&lines, "seconds_until_all_report", &[]),
    );
    assert!(0.0 < ready && ready <= all, "{lines:?}");
    assert_eq!(value(&lines, "lost", &[]), 0.0);
    assert!(value(&lines, "rebuild_seconds", &[]) > 0.0);
    for line in &lines {
        assert_eq!(line["params"]["agents"], 3, "{line}");
        assert!(
            line["params"]["log_bytes"].as_u64().unwrap() > 1000,
            "{line}"
        );
    }
}

#[tokio::test]
async fn questions_are_asked_at_the_shell_and_over_a_connection() {
    let lines = lines(&[&["query", "--times", "2"], &LOAD[..]].concat()).await;
    let shell = ("over", "nexusctl, with its start and handshake");
    for question in [
        "get nodes",
        "one node",
        "one series of one node",
        "packages by version",
    ] {
        let asked = value(&lines, "p95", &[("question", question), shell]);
        assert!(asked > 0.0, "{question}: {lines:?}");
    }
    for question in ["one node", "one series of one node", "packages by version"] {
        let asked = [("question", question), ("over", "a connection")];
        assert!(value(&lines, "p50", &asked) > 0.0, "{question}: {lines:?}");
    }
    assert!(value(&lines, "nodes_page_extra_rss", &[]) >= 0.0);
}

#[tokio::test]
async fn fleets_of_each_size_are_measured() {
    let args = [
        "growth",
        "--agents",
        "2,4",
        "--series",
        "20",
        "--interval",
        "1",
    ];
    let lines = lines(&[&args[..], &["--seconds", "2"]].concat()).await;
    for size in [2, 4] {
        let of: Vec<Value> = lines
            .iter()
            .filter(|line| line["params"]["agents"] == size)
            .cloned()
            .collect();
        for figure in [
            "connect_seconds",
            "samples_per_second",
            "rss",
            "seconds_after_kill",
        ] {
            assert!(value(&of, figure, &[]) > 0.0, "{figure}: {of:?}");
        }
        // Counted in hundredths of a second, of which so small a fleet may take none.
        assert!(value(&of, "cores", &[]) >= 0.0, "{of:?}");
    }
}

#[tokio::test]
async fn jobs_run_on_a_swarm_and_on_real_agents_where_peers_are_missing() {
    let cache = tempfile::tempdir().unwrap();
    let file = cache.path().join("file");
    fs::write(&file, "").unwrap();
    // Nothing can be installed beneath a file.
    let nowhere = file.to_str().unwrap();
    let args = [
        "fanout",
        "--times",
        "2",
        "--processes",
        "2",
        "--cache",
        nowhere,
    ];
    let output = bench(&[&args[..], &LOAD[..]].concat()).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("without Salt and Ansible: "), "{said}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for kind in ["agents", "targets"] {
        let of: Vec<_> = lines
            .iter()
            .filter(|line| line["params"].get(kind).is_some())
            .cloned()
            .collect();
        assert!(value(&of, "wall_seconds", &[]) > 0.0, "{of:?}");
        // Counted in hundredths of a second, of which two jobs may take none.
        assert!(value(&of, "cpu_seconds_per_target", &[]) >= 0.0, "{of:?}");
    }
}

#[tokio::test]
async fn all_keeps_what_was_printed_and_makes_the_page_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let only = [
        "all",
        "--quick",
        "--only",
        "connect",
        "--no-peers",
        "--out",
        out,
    ];
    let output = bench(&only).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let page = || fs::read_to_string(dir.path().join("performance.md")).unwrap();
    let first = page();
    for expected in [
        "## Budgets",
        "not measured",
        "## connect",
        "## The run",
        "| well |",
        "Linux ",
    ] {
        assert!(first.contains(expected), "{expected}: {first}");
    }
    let raw = fs::read_to_string(dir.path().join("performance/connect.jsonl")).unwrap();
    assert!(raw.lines().count() > 3, "{raw}");
    // The page follows from what was kept.
    fs::remove_file(dir.path().join("performance.md")).unwrap();
    lines(&["report", "--out", out]).await;
    assert_eq!(page(), first);

    let unknown = bench(&["all", "--only", "nothing", "--out", out]).await;
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(
        !unknown.status.success() && said.contains("no benchmark nothing"),
        "{said}"
    );
}

/// Command lines of processes with this in them.
fn mentioning(text: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(text)).collect()
}

#[tokio::test]
async fn a_signal_ends_everything_that_was_started() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().display().to_string();
    let mut command = Programs::built().await.unwrap().command("nexus-bench");
    command
        .args(["soak", "--seconds", "600", "--agents", "2"])
        .env("TMPDIR", dir.path());
    let mut running = Process::start(&mut command, &dir.path().join("log")).unwrap();
    poll::until("agents", SOON, || {
        let reporting = running.log_text().contains("report and run jobs");
        std::future::ready(reporting.then_some(()))
    })
    .await
    .unwrap();
    assert!(mentioning(&place).len() >= 3, "{:?}", mentioning(&place));
    let ended = running.stop().await.unwrap();
    assert_eq!(ended.code(), Some(143));
    poll::until_ok("their end", SOON, || {
        let left = mentioning(&place);
        std::future::ready(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })
    .await
    .unwrap();
    let folders = fs::read_dir(dir.path()).unwrap().flatten();
    let folders: Vec<_> = folders
        .map(|entry| entry.path())
        .filter(|path: &std::path::PathBuf| Path::is_dir(path))
        .collect();
    assert!(folders.is_empty(), "{folders:?}");
}
