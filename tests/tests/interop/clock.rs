//! Time that passed while nobody looked, made with the faketime program.

use std::process::Stdio;

use nexus_tests::{process, programs::Programs};

/// Longer than every certificate of a demo lives, shorter than a late renewal may come.
const AGO: &str = "-2d";

#[tokio::test]
async fn a_demo_that_lay_for_two_days_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let demo = dir.path().join("demo");
    let nexusctl = Programs::built().await.unwrap().folder().join("nexusctl");
    let mut first = tokio::process::Command::new("faketime");
    first.stdin(Stdio::null()).args(["-f", AGO]).arg(&nexusctl);
    first.args(["demo", "--once", "--dir"]).arg(&demo);
    let output = process::run(&mut first, b"").await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let before = std::fs::read(demo.join("agent-1/identity/identity.pem")).unwrap();

    let mut second = Programs::built().await.unwrap().command("nexusctl");
    second.args(["demo", "--once", "--dir"]).arg(&demo);
    let output = process::run(&mut second, b"").await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("  2d"), "it is the same node: {shown}");
    let after = std::fs::read(demo.join("agent-1/identity/identity.pem")).unwrap();
    assert_ne!(before, after, "the certificate was reissued");
    let log = std::fs::read_to_string(demo.join("agent-1.log")).unwrap();
    assert!(log.contains("renewing it with the old key"), "{log}");
}
