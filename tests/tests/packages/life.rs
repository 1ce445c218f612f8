//! A node from its installation to its purge, step by step on one machine.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _};

use nexus_runtime::clock::Clock;
use nexus_tests::{fleet::SOON, poll};
use serde_json::Value;

use super::{
    machine::Machine,
    node::{self, Before},
    package,
    scene::{AGENT, NAME, Scene},
};

const POLICY: &str = "/etc/nexus/policy.toml";
/// What an administrator wrote in the policy's place.
const OWN_POLICY: &str =
    "[[allow]]\nwho = \"*\"\nrun = [\"/usr/bin/id\", \"/bin/sh\"]\nas = \"root\"\n";
const INSTALL: &str = "apt-get install --yes --allow-downgrades";

/// What no package is to be blamed for, as patterns of `find -path`: the kernel's, systemd's and the package tools' own.
const OTHERS: [&str; 19] = [
    "/dev",
    "/proc",
    "/sys",
    "/run/systemd",
    "/run/log",
    "/run/utmp",
    "/tmp/systemd-private-*",
    "/var/tmp/systemd-private-*",
    "/var/log/journal",
    "/var/lib/systemd/timers",
    "/var/lib/dpkg/status*",
    "/var/lib/dpkg/lock*",
    "/var/lib/apt/extended_states",
    "/var/lib/apt/lists",
    "/var/cache/apt",
    "/var/log/apt",
    "/var/log/dpkg.log",
    // What a change of users leaves.
    "/etc/*-",
    "/etc/.pwd.lock",
];

#[tokio::test]
async fn a_node_is_installed_enrolled_upgraded_set_back_removed_and_purged() {
    let scene = Scene::new().await;
    let clock = Clock::system();
    let begun = clock.instant();
    let step = |name: &str| println!("{name}: after {:.1?}", begun.elapsed());
    scene.machine.bring("nexus-agent");
    let before = everything(&scene.machine).await;
    scene
        .machine
        .ok(&format!("{INSTALL} /root/nexus-agent.deb"))
        .await;
    node::waits_for_an_identity(&scene.machine).await;
    step("installed");
    // Every reading counts later on.
    let often = "/etc/nexus/agent.toml.d/often.toml";
    scene.machine.write(often, 0o644, "interval = \"1s\"\n");
    node::runs_once_it_is_enrolled(&scene).await;
    step("enrolled");
    does_what_the_policy_allows(&scene).await;
    step("has run jobs");
    is_upgraded_under_a_job(&scene, &clock).await;
    step("upgraded");
    survives_a_version_that_does_not_start(&scene).await;
    step("set back");
    is_not_removed_by_a_job_of_its_own(&scene).await;
    says_farewell_and_can_come_back(&scene).await;
    step("removed and installed again");
    leaves_nothing(&scene.machine, &before).await;
    step("purged");
}

/// As root, through the helper; and not what the machine's own policy does not allow.
async fn does_what_the_policy_allows(scene: &Scene) {
    node::runs_jobs_as_root(scene).await;
    scene.machine.write(POLICY, 0o644, OWN_POLICY);
    let run = scene.run(&["touch", "/root/mark"]).await;
    assert_eq!(run["state"], "rejected", "{run}");
    let reason = run["reason"].as_str().unwrap();
    let why =
        "the local policy /etc/nexus/policy.toml has no rule that lets admin run `touch` as root";
    assert!(reason.contains(why), "{reason}");
    assert!(!scene.machine.path("/root/mark").exists());
    let run = scene.run(&["/usr/bin/id", "-u"]).await;
    assert_eq!(run["stdout"], "0\n", "{run}");
}

/// With the cable pulled: what is spooled and what runs meanwhile must come home.
async fn is_upgraded_under_a_job(scene: &Scene, clock: &Clock) {
    let machine = &scene.machine;
    let before = Before::of(scene).await;
    scene.pull_cable(true);
    let pulled = clock.now();
    for _ in 0..3 {
        is_read(machine).await;
    }
    let upgraded = clock.now();
    let next = machine.path("/root/next.deb");
    package::later("nexus-agent", "+next", &next, |_| {}).await;
    machine.ok(&format!("{INSTALL} /root/next.deb")).await;
    before.agent_was_replaced(machine).await;
    assert_eq!(
        fs::read_to_string(machine.path(POLICY)).unwrap(),
        OWN_POLICY
    );
    machine.write("/root/go", 0o644, "");
    scene.pull_cable(false);
    before.comes_home(scene).await;
    spooled_came_home(scene, pulled.as_ms(), upgraded.as_ms()).await;
}

/// Waits for the next reading that the agent stores.
async fn is_read(machine: &Machine) {
    let size = || {
        let lane = machine.path("/var/lib/nexus/agent/spool/metrics");
        let files = fs::read_dir(lane).into_iter().flatten().flatten();
        let sizes = files.filter_map(|file| file.metadata().ok().map(|file| file.len()));
        sizes.sum::<u64>()
    };
    let before = size();
    let more = poll::until("a reading in the spool", SOON, || {
        std::future::ready((size() != before).then_some(()))
    });
    more.await.unwrap();
}

/// Readings from while the cable was pulled and the old version ran, and none that was given up.
async fn spooled_came_home(scene: &Scene, from_ms: i64, to_ms: i64) {
    let sql =
        "SELECT value FROM metric_history WHERE node = 'alpha' AND name = 'node_time_seconds'";
    let between = |rows: &[Value]| {
        let times = rows.iter().filter_map(|row| row["value"].as_f64());
        let times = times.map(|seconds| format!("{:.0}", seconds * 1000.0).parse::<i64>().unwrap());
        times.filter(|ms| (from_ms..to_ms).contains(ms)).count() >= 2
    };
    scene.fleet.eventually(sql, between).await.unwrap();
    let gaps = scene.fleet.query("SELECT * FROM gaps").await.unwrap();
    assert!(gaps.is_empty(), "{gaps:?}");
}

async fn survives_a_version_that_does_not_start(scene: &Scene) {
    let machine = &scene.machine;
    machine
        .ok("systemctl stop nexus-agent.service nexus-agent-helper.service")
        .await;
    let before = state(machine).await;
    let broken = machine.path("/root/broken.deb");
    package::later("nexus-agent", "+next2", &broken, |tree| {
        let program = tree.join("usr/bin/nexus-agent");
        fs::write(&program, "#!/bin/sh\necho made to fail >&2\nexit 1\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    })
    .await;
    let said = machine
        .sh(&format!("{INSTALL} /root/broken.deb"))
        .await
        .text;
    let next = format!("{}+next", package::version("nexus-agent").await);
    assert!(said.contains("does not start"), "{said}");
    let back = format!("apt install --allow-downgrades nexus-agent={next} ");
    assert!(said.contains(&back), "{said}");
    assert!(said.contains("journalctl -u nexus-agent.service"), "{said}");
    // It is tried again, and changes nothing.
    let tried = poll::until("further attempts", SOON, || async {
        let restarts = machine.show(AGENT, "NRestarts").await;
        (restarts.parse::<u32>().unwrap() >= 2).then_some(())
    });
    tried.await.unwrap();
    let log = machine
        .ok("journalctl --unit nexus-agent.service --no-pager")
        .await;
    assert!(log.contains("made to fail"), "{log}");
    scene.fleet.in_state(NAME, "disconnected").await.unwrap();
    machine.ok("systemctl stop nexus-agent.service").await;
    assert_eq!(state(machine).await, before);
    machine.ok(&format!("{INSTALL} /root/next.deb")).await;
    scene.connected().await;
    let run = scene.run(&["/usr/bin/id", "-u"]).await;
    assert_eq!(run["stdout"], "0\n", "{run}");
}

/// Which would end with the helper, in the middle of the removal.
async fn is_not_removed_by_a_job_of_its_own(scene: &Scene) {
    let machine = &scene.machine;
    let remove = "apt-get remove --yes nexus-agent 2>&1";
    let run = scene.run(&["/bin/sh", "-c", remove]).await;
    assert_eq!(run["state"], "failed", "{run}");
    let said = run["stdout"].as_str().unwrap();
    assert!(said.contains("have it run by `systemd-run`"), "{said}");
    assert_eq!(machine.ok("dpkg --audit").await, "");
    let status = "dpkg-query --show --showformat '${db:Status-Status}' nexus-agent";
    assert_eq!(machine.ok(status).await, "installed");
    assert_eq!(machine.show(AGENT, "ActiveState").await, "active");
}

async fn says_farewell_and_can_come_back(scene: &Scene) {
    let machine = &scene.machine;
    let node = scene.connected().await;
    machine.ok("apt-get remove --yes nexus-agent").await;
    node::has_left_its_state(scene, &node).await;
    assert_eq!(
        fs::read_to_string(machine.path(POLICY)).unwrap(),
        OWN_POLICY
    );
    machine
        .ok(&format!("{INSTALL} /root/nexus-agent.deb"))
        .await;
    assert_eq!(scene.connected().await["id"], node["id"]);
}

async fn leaves_nothing(machine: &Machine, before: &str) {
    machine.ok("apt-get purge --yes nexus-agent").await;
    machine
        .ok("rm /root/next.deb /root/broken.deb /root/go")
        .await;
    let after = everything(machine).await;
    let (before, after): (BTreeSet<_>, BTreeSet<_>) =
        (before.lines().collect(), after.lines().collect());
    let lost: Vec<_> = before.difference(&after).collect();
    let left: Vec<_> = after.difference(&before).collect();
    assert!(
        lost.is_empty() && left.is_empty(),
        "lost: {lost:#?}\nleft: {left:#?}"
    );
    // Nor where the lists do not look.
    let found = machine
        .ok("find / -path /proc -prune -o -iname '*nexus*' -print")
        .await;
    assert_eq!(found, "/root/nexus-agent.deb\n");
    let known = machine
        .sh("getent passwd nexus-agent || getent group nexus-agent")
        .await;
    assert!(!known.well, "{known:?}");
    let units = machine
        .ok("systemctl list-units --all --plain --no-legend 'nexus*'")
        .await;
    assert_eq!(units, "");
}

/// Every file of the machine: kind, mode, owner, where a link leads, contents.
async fn everything(machine: &Machine) -> String {
    let others: Vec<_> = OTHERS
        .iter()
        .map(|path| format!("-path '{path}'"))
        .collect();
    let prune = format!("find / \\( {} \\) -prune -o", others.join(" -o "));
    listed(machine, &prune).await
}

async fn state(machine: &Machine) -> String {
    listed(machine, "find /var/lib/nexus").await
}

async fn listed(machine: &Machine, find: &str) -> String {
    let kinds = "-printf '%y %m %u:%g %p %l\\n'";
    let digests = "-type f -exec sha256sum {} +";
    machine
        .ok(&format!("{find} {kinds} && {find} {digests}"))
        .await
}
