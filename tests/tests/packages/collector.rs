//! A collector from its package, on a machine that is its own first node.

use nexus_tests::{fleet::SOON, poll};

use super::{
    machine::Machine,
    scene::{AGENT, Scene},
};

pub(super) const UNIT: &str = "nexus-collector.service";

#[tokio::test]
async fn a_collector_from_its_package_waits_for_init_then_serves() {
    // For its machine alone.
    let scene = Scene::new().await;
    let machine = &scene.machine;
    machine.bring("nexus-collector");
    machine.bring("nexus-agent");
    machine
        .ok("apt-get install --yes /root/nexus-collector.deb")
        .await;
    waits_for_init_then_serves(machine).await;
    let collector = machine.proc_status(UNIT).await;
    assert_eq!(collector("CapEff"), "0000000000000000");
    assert_eq!(collector("NoNewPrivs"), "1");
    let uid = machine.ok("id --user nexus-collector").await;
    assert!(
        collector("Uid").starts_with(uid.trim()),
        "{}",
        collector("Uid")
    );
    assert!(machine.exposure(UNIT).await <= 1.5);

    machine
        .ok("apt-get install --yes /root/nexus-agent.deb")
        .await;
    let token = machine
        .ok("nexusctl token create --address localhost:7460")
        .await;
    let token = token
        .split_whitespace()
        .find(|word| word.starts_with("nxt_"))
        .unwrap();
    machine.ok(&format!("nexus-agent enroll {token}")).await;
    machine.shows(AGENT, "ActiveState", "active").await;
    node_connected(machine).await;
    assert_eq!(
        machine
            .ok("nexusctl run --yes --all -- id -u 2>/dev/null")
            .await,
        "alpha: 0\n"
    );

    // An upgrade restarts it, and its nodes come back.
    let before = machine.show(UNIT, "MainPID").await;
    machine
        .ok("apt-get install --yes --reinstall /root/nexus-collector.deb")
        .await;
    machine.shows(UNIT, "ActiveState", "active").await;
    assert_ne!(machine.show(UNIT, "MainPID").await, before);
    node_connected(machine).await;

    machine
        .ok("apt-get purge --yes nexus-agent nexus-collector")
        .await;
    // But the operator's own.
    machine.ok("rm -r /root/.config/nexus").await;
    let left = machine
        .ok("find / -path /proc -prune -o -iname '*nexus*' -print")
        .await;
    assert_eq!(
        left.lines().filter(|path| !path.ends_with(".deb")).count(),
        0,
        "{left}"
    );
}

/// Where something tried to start it.
pub(super) async fn waits_for_init_then_serves(machine: &Machine) {
    assert_eq!(machine.show(UNIT, "ActiveState").await, "inactive");
    assert_eq!(machine.show(UNIT, "UnitFileState").await, "enabled");
    let status = machine.status(UNIT).await;
    let why = "ConditionPathExists=/var/lib/nexus/collector/instance.json was not met";
    assert!(status.contains(why), "{status}");
    let printed = machine.ok("nexus-collector init").await;
    let code = printed
        .lines()
        .find(|line| line.starts_with("nxo_"))
        .unwrap();
    machine.ok("systemctl start nexus-collector").await;
    machine.shows(UNIT, "ActiveState", "active").await;
    machine
        .ok(&format!("nexusctl login {code} --address localhost:7461"))
        .await;
}

async fn node_connected(machine: &Machine) {
    let connected = poll::until_ok("a node that is connected", SOON, || async {
        let nodes = machine.sh("nexusctl get nodes --no-headers").await.text;
        let there = nodes.starts_with("alpha ") && nodes.contains(" connected ");
        if there { Ok(()) } else { Err(nodes) }
    });
    connected.await.unwrap();
}
