//! A service of a package that is told something new: settings while it runs, a token before there is anything else.

use nexus_tests::{fleet::SOON, poll};

use super::{
    machine::Machine,
    scene::{AGENT, NAME, Scene},
};

const DROP_IN: &str = "/etc/nexus/agent.toml.d/test.toml";

async fn says(machine: &Machine, part: &str) {
    let said = poll::until_ok(part, SOON, || async {
        let text = machine.show(AGENT, "StatusText").await;
        if text.contains(part) {
            Ok(())
        } else {
            Err(text)
        }
    });
    said.await.unwrap();
}

#[tokio::test]
async fn a_reload_takes_up_what_it_can_and_refuses_what_cannot_be_read() {
    let scene = Scene::with_node().await;
    let machine = &scene.machine;
    says(machine, "connected to ").await;
    let pid = machine.show(AGENT, "MainPID").await;
    machine.write(DROP_IN, 0o644, "interval = \"5s\"\nexec.concurrency = 2\n");
    machine.ok("systemctl reload nexus-agent").await;
    says(machine, "a restart is needed for exec.concurrency").await;
    machine.shows(AGENT, "ActiveState", "active").await;

    machine.write(DROP_IN, 0o644, "interval = \"5 parsecs\"\n");
    let refused = machine.sh("systemctl reload nexus-agent").await;
    assert!(!refused.well, "{}", refused.text);
    let place = format!("{DROP_IN}:1: interval");
    let journal = "journalctl --unit nexus-agent --no-pager --output cat";
    let log = machine.ok(journal).await;
    assert!(log.contains(&place), "{log}");
    // As under a supervisor that sends the signal and nothing else.
    machine
        .ok("systemctl kill --kill-whom=main --signal=HUP nexus-agent")
        .await;
    says(machine, "the configuration in force is an older one").await;
    says(machine, &place).await;
    machine.shows(AGENT, "ActiveState", "active").await;
    assert_eq!(machine.show(AGENT, "MainPID").await, pid);
    assert_eq!(scene.fleet.node(NAME).await.unwrap()["state"], "connected");
    machine.ok(&format!("rm {DROP_IN}")).await;
    machine.ok("systemctl reload nexus-agent").await;

    // What can be said of all that, by whoever may look.
    let status = machine.ok("nexus-agent status").await;
    assert!(status.contains("session      connected to "), "{status}");
    for user in ["root", "nexus-agent"] {
        let said = machine
            .sh(&format!("runuser -u {user} -- nexus-agent doctor"))
            .await;
        assert!(said.well, "{user}: {}", said.text);
        assert!(said.text.contains("pinned to this node"), "{}", said.text);
    }
    let said = machine.sh("runuser -u nobody -- nexus-agent doctor").await;
    assert!(!said.well, "{}", said.text);
    let word = "belongs to the user nexus-agent, and this is nobody";
    assert!(said.text.contains(word), "{}", said.text);
}

#[tokio::test]
async fn a_token_in_the_credential_store_enrols() {
    let scene = Scene::new().await;
    let token = scene.fleet.token(&[]).await.unwrap();
    let machine = &scene.machine;
    machine.bring("nexus-agent");
    machine.write("/etc/credstore/nexus.enrol-token", 0o600, &token);
    machine
        .ok("apt-get install --yes /root/nexus-agent.deb")
        .await;
    scene.connected().await;
    machine.shows(AGENT, "ActiveState", "active").await;
}
