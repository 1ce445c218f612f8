//! README.md and docs/: every command in them is run, and prints what they say.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use nexus_tests::{
    handbook::{self, Block, DEBIAN_PAGES, Page, Runner},
    process::{self, Process},
    programs::Programs,
};
use tokio::process::Command;

const RUNNERS: [Runner; 2] = [Runner::Loopback, Runner::Fails];
/// Whom a page is run as where the test is root.
const NOBODY: u32 = 65534;

#[tokio::test]
async fn every_command_of_a_page_has_somebody_who_runs_it() {
    let ci = fs::read_to_string(handbook::root().join(".ci/run")).unwrap();
    for page in handbook::pages().unwrap() {
        for block in page.of(&[Runner::Ci]) {
            for line in block.text.lines() {
                let runs = |own: &str| {
                    own.trim_start()
                        .trim_start_matches("run ")
                        .starts_with(line)
                };
                assert!(ci.lines().any(runs), "{}:{}: {line}", page.name, block.line);
            }
        }
        let debian = page.of(&[Runner::Debian]).next().is_some();
        assert_eq!(
            debian,
            DEBIAN_PAGES.contains(&page.name.as_str()),
            "{}",
            page.name
        );
    }
}

#[tokio::test]
async fn pages_do_what_they_say() {
    let mut faults = String::new();
    for page in handbook::pages().unwrap() {
        if page.of(&RUNNERS).next().is_some()
            && let Err(fault) = run(&page).await
        {
            faults.push_str(&format!("{fault}\n"));
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

/// Its first command is run as it stands by CI, which looks at nothing but that the demo comes up.
#[tokio::test]
async fn the_readme_shows_a_real_demo() {
    let readme = handbook::page("README.md").unwrap();
    let first = readme.blocks.first().unwrap();
    assert!(first.text.ends_with("nexusctl demo\n"), "{}", first.text);
    let dir = tempfile::tempdir().unwrap();
    let mut demo = Programs::built().await.unwrap().command("nexusctl");
    demo.args(["demo", "--once", "--dir"]).arg(dir.path());
    let output = process::run(&mut demo, b"").await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    // Commands and headings: all else is this machine's.
    let told = first.output.as_deref().unwrap().lines();
    let told = told.filter(|line| line.starts_with("$ ") || !line.contains(char::is_lowercase));
    let told = Block {
        output: Some(told.collect::<Vec<_>>().join("\n")),
        ..first.clone()
    };
    assert_eq!(told.missing(&printed), None, "{printed}");
}

/// In a home of its own, which the programs lie beside: where they are built, others may not look.
async fn run(page: &Page) -> nexus_tests::fault::Outcome {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let outputs = dir.path().join("outputs");
    let bin = dir.path().join("bin");
    for folder in [&home, &outputs, &bin] {
        fs::create_dir(folder).unwrap();
    }
    let built = Programs::built().await?;
    for program in ["nexus-agent", "nexus-collector", "nexusctl"] {
        let (from, to) = (built.folder().join(program), bin.join(program));
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).unwrap();
        }
    }
    let script = dir.path().join("script");
    fs::write(&script, page.script(&RUNNERS, &outputs)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for folder in [&home, &outputs] {
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let mut command = apart(root, &script);
    command.current_dir(&home).env_clear();
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", bin.display()));
    command.env("HOME", &home).env("LANG", "C.UTF-8");
    let log = dir.path().join("log");
    let mut shell = Process::start(&mut command, &log)?;
    let ended = shell.wait().await;
    ended.map_err(|fault| fault.with_log(&log))?;
    page.check(&RUNNERS, &outputs)
        .map_err(|fault| fault.with_log(&log))
}

/// A shell with no network but its own loopback, so that a page may use the ports that programs have by default.
fn apart(root: bool, script: &Path) -> Command {
    let (uid, gid) = match root {
        true => (NOBODY, NOBODY),
        false => (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        ),
    };
    let become_user = match root {
        true => format!("setpriv --reuid={uid} --regid={gid} --clear-groups"),
        false => format!("unshare --user --map-user={uid} --map-group={gid}"),
    };
    let own = match root {
        true => "--net",
        false => "--map-root-user --net",
    };
    let text =
        format!("unshare {own} sh -c 'ip link set lo up && exec {become_user} bash \"$0\"' \"$0\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(text).arg(script);
    command
}
