//! What systemd does with the agent's service besides starting it: hands it its token, has it read its settings anew, and
//! starts it again when it hangs.

use nexus_tests::{fleet::SOON, poll};

use super::{
    machine::Machine,
    scene::{AGENT, Scene},
};

const SETTINGS: &str = "/etc/nexus/agent.toml";

#[tokio::test]
async fn the_service_takes_its_token_from_systemd_is_reloaded_and_does_not_hang_for_long() {
    let scene = Scene::new().await;
    let machine = &scene.machine;
    let token = scene.fleet.token(&[]).await.unwrap();
    machine.write("/etc/credstore/nexus.enrol-token", 0o600, &token);
    machine.bring("nexus-agent");
    machine
        .ok("apt-get install --yes /root/nexus-agent.deb")
        .await;
    scene.connected().await;
    let agent = machine.show(AGENT, "MainPID").await;

    machine.write(SETTINGS, 0o644, "interval = \"1s\"\n");
    machine.ok("systemctl reload nexus-agent").await;
    logged(
        machine,
        "the configuration was read anew changed=\"interval\"",
    )
    .await;
    machine.write(SETTINGS, 0o644, "intervall = \"1s\"\n");
    let said = machine.sh("systemctl reload nexus-agent").await;
    assert!(!said.well, "{said:?}");
    logged(machine, "did you mean `interval`?").await;
    assert_eq!(machine.show(AGENT, "ActiveState").await, "active");
    assert_eq!(machine.show(AGENT, "MainPID").await, agent);

    let soon = "[Service]\nWatchdogSec=5s\n";
    machine.write(
        "/etc/systemd/system/nexus-agent.service.d/soon.conf",
        0o644,
        soon,
    );
    machine
        .ok("systemctl daemon-reload && systemctl restart nexus-agent")
        .await;
    let agent = machine.show(AGENT, "MainPID").await;
    machine.ok(&format!("kill -STOP {agent}")).await;
    logged(machine, "Watchdog timeout").await;
    machine.shows(AGENT, "ActiveState", "active").await;
    assert_ne!(machine.show(AGENT, "MainPID").await, agent);
    let run = scene.run(&["id", "-u"]).await;
    assert_eq!(run["stdout"], "0\n", "{run}");
}

/// Waits for this in the service's log.
async fn logged(machine: &Machine, words: &str) {
    let script = format!("journalctl --unit {AGENT} --no-pager --output cat");
    let wait = poll::until_ok(words, SOON, || async {
        let log = machine.ok(&script).await;
        if log.contains(words) {
            Ok(())
        } else {
            Err(log)
        }
    });
    wait.await.unwrap();
}
