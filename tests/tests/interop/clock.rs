//! Time that passes, and clocks that are set: made with the faketime program and its library.

use std::{fs, process::Stdio};

use nexus_tests::{
    agent::Agent,
    fleet::{Fleet, SOON},
    poll, process,
    programs::Programs,
};

use super::fake_clock::FakeClock;

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
    let before = fs::read(demo.join("agent-1/identity/identity.pem")).unwrap();

    let mut second = Programs::built().await.unwrap().command("nexusctl");
    second.args(["demo", "--once", "--dir"]).arg(&demo);
    let output = process::run(&mut second, b"").await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("  2d"), "it is the same node: {shown}");
    let after = fs::read(demo.join("agent-1/identity/identity.pem")).unwrap();
    assert_ne!(before, after, "the certificate was reissued");
    let log = fs::read_to_string(demo.join("agent-1.log")).unwrap();
    assert!(log.contains("renewing it with the old key"), "{log}");
}

/// An agent whose wall clock can be set while it runs.
pub(super) fn going_by(fleet: &Fleet, clock: &FakeClock, name: &str) -> Agent {
    let agent = Agent::new(fleet.dir(), name, &["interval=1s"]);
    let env = clock.env();
    env.iter()
        .fold(agent, |agent, (name, value)| agent.env(name, value))
}

#[tokio::test]
async fn at_half_of_its_life_a_certificate_is_renewed_without_a_break() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let clock = FakeClock::in_folder(fleet.dir());
    let agent = going_by(&fleet, &clock, "alpha");
    fleet.join(agent).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    let identity = fleet.agents[0].dir().join("identity/identity.pem");
    let before = fs::read(&identity).unwrap();
    let go = fleet.dir().join("go");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.1; done; echo done",
        go.display()
    );
    let job = ["run", "--yes", "--all", "--", "sh", "-c", &script];
    let (said, ()) = tokio::join!(fleet.ctl.run(&job), async {
        fleet
            .eventually("SELECT * FROM runs WHERE state = 'running'", |rows| {
                rows.len() == 1
            })
            .await
            .unwrap();
        clock.set("+13h");
        // A step of the clock is noticed within a minute.
        poll::until("another certificate", 2 * SOON, || {
            let renewed = fs::read(&identity).unwrap() != before;
            std::future::ready(renewed.then_some(()))
        })
        .await
        .unwrap();
        poll::until("another session", SOON, || {
            let sessions = fleet.agents[0].log_text().matches("session opened").count();
            std::future::ready((sessions == 2).then_some(()))
        })
        .await
        .unwrap();
        fs::write(&go, "").unwrap();
    });
    let said = said.unwrap();
    assert_eq!(
        (said.code, said.out.as_str()),
        (0, "alpha: done\n"),
        "{said:?}"
    );
    let log = fleet.agents[0].log_text();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    let gaps = fleet.query("SELECT * FROM gaps").await.unwrap();
    assert!(gaps.is_empty(), "{gaps:?}");
    let serials = "SELECT count(*) AS n FROM identities WHERE role = 'agent'";
    let serials = fleet.query(serials).await.unwrap();
    assert_eq!(serials[0]["n"], 2, "{serials:?}");
}

#[tokio::test]
async fn a_session_survives_a_clock_that_jumps_and_a_new_one_says_by_how_much() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let clock = FakeClock::in_folder(fleet.dir());
    let agent = going_by(&fleet, &clock, "alpha");
    fleet.join(agent).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    for jump in ["+25h", "-25h"] {
        clock.set(jump);
        let lane = "SELECT seq FROM lanes WHERE lane = 'metrics'";
        let before = fleet.query(lane).await.unwrap()[0]["seq"].as_u64().unwrap();
        fleet
            .eventually(lane, |rows| rows[0]["seq"].as_u64().unwrap() > before + 3)
            .await
            .unwrap();
        assert_eq!(fleet.node("alpha").await.unwrap()["state"], "connected");
    }
    let log = fleet.agents[0].log_text();
    assert_eq!(log.matches("session opened").count(), 1, "{log}");

    // By a clock that is a day behind, the collector's certificate is not valid yet.
    fleet.collector.kill().await.unwrap();
    fleet.collector.start().await.unwrap();
    poll::until_ok("word of the clocks", SOON, || {
        let log = fleet.agents[0].log_text();
        let line = log
            .lines()
            .rev()
            .find(|line| line.contains("no session"))
            .unwrap_or_default();
        let said = line.contains("is valid from") && line.contains("this machine's clock says");
        std::future::ready(if said { Ok(()) } else { Err(log) })
    })
    .await
    .unwrap();
    clock.set("+0");
    fleet.connected("alpha").await.unwrap();
    let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
}
