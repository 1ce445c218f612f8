//! Configuration of the daemons: every mistake at once, and samples that say what the programs do.

use std::{fs, path::Path};

use nexus_tests::{process, programs::Programs};

#[tokio::test]
async fn a_collector_reports_every_mistake_with_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("collector.toml");
    fs::write(
        &file,
        "shards = \"four\"\n\n[log]\nfromat = \"json\"\n[query]\ntimeout = 30\n",
    )
    .unwrap();
    for arguments in ["check-config", "serve"] {
        let mut command = Programs::built().await.unwrap().command("nexus-collector");
        command
            .arg("--config")
            .arg(&file)
            .arg("--state-dir")
            .arg(dir.path().join("state"));
        let output = process::run(command.arg(arguments), b"").await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        for mistake in [":1: shards", ":4: log.fromat", ":6: query.timeout"] {
            let place = format!("{}{mistake}", file.display());
            assert!(
                said.contains(&place),
                "{arguments}: {place} is missing: {said}"
            );
        }
    }
    assert!(!dir.path().join("state").exists());
}

#[tokio::test]
async fn the_sample_configurations_are_the_defaults_commented_out() {
    for (program, file) in [
        ("nexus-collector", "collector.toml"),
        ("nexus-agent", "agent.toml"),
    ] {
        let mut command = Programs::built().await.unwrap().command(program);
        let output = process::run(command.args(["config", "--defaults"]), b"")
            .await
            .unwrap();
        assert!(output.status.success());
        let defaults = String::from_utf8(output.stdout).unwrap();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");
        let sample = fs::read_to_string(Path::new(folder).join(file)).unwrap();
        // What a package installs changes nothing: a later default reaches every host that did not choose.
        let expected: String = defaults.lines().map(commented_out).collect();
        assert_eq!(sample, expected, "{file}");
    }
}

#[tokio::test]
async fn an_agent_refuses_a_check_and_only_warns_when_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    fs::write(&file, "intervall = \"5s\"\n[log]\nformat = \"xml\"\n").unwrap();
    let run = async |what: &str| {
        let mut command = Programs::built().await.unwrap().command("nexus-agent");
        command
            .arg("--config")
            .arg(&file)
            .arg("--state-dir")
            .arg(dir.path().join("state"));
        let output = process::run(command.arg(what), b"").await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = run("check-config").await;
    assert_eq!(code, Some(2), "{said}");
    for mistake in [":1: intervall", ":3: log.format"] {
        assert!(said.contains(mistake), "{said}");
    }
    // Both are passed over, and what then keeps it from running is told in full.
    let (code, said) = run("run").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("WARN") && said.contains(":1: intervall"),
        "{said}"
    );
    assert!(
        said.contains("error: run: ") && said.contains("not enrolled"),
        "{said}"
    );
    assert!(
        said.contains("hint: ") && said.contains("nexus-agent enroll"),
        "{said}"
    );
}

/// Keys become comments; sections and explanations stay as they are.
fn commented_out(line: &str) -> String {
    let is_key = !line.is_empty() && !line.starts_with(['#', '[']);
    format!("{}{line}\n", if is_key { "#" } else { "" })
}
