//! What the units let their processes do, found by trying.

use nexus_tests::fleet::SOON;
use nexus_tests::poll;

use super::scene::{AGENT, HELPER, Scene};

/// A service like the agent's in everything but what it runs.
const PROBE: &str = "nexus-probe.service";

/// Each of these must fail, and say this.
const FORBIDDEN: [(&str, &str, &str); 16] = [
    (
        "write in /etc, even what is its own",
        "echo x >/etc/nexus/own",
        "Read-only file system",
    ),
    (
        "write in /usr, even what is its own",
        "echo x >/usr/own",
        "Read-only file system",
    ),
    (
        "write in homes, even what is its own",
        "echo x >/root/own",
        "Read-only file system|denied",
    ),
    (
        "write in the helper's state",
        "echo x >/var/lib/nexus/helper/mark",
        "denied",
    ),
    (
        "read the helper's state",
        "cat /var/lib/nexus/helper/identity/pin",
        "denied",
    ),
    ("read passwords", "cat /etc/shadow", "denied"),
    ("signal others", "kill -9 1", "not permitted"),
    (
        "open a raw socket",
        "perl -MSocket -e 'socket(S, AF_INET, SOCK_RAW, 1) or die $!'",
        "not permitted",
    ),
    (
        "open a packet socket",
        "perl -e 'socket(S, 17, 3, 0) or die $!'",
        "not supported",
    ),
    (
        "make a user namespace",
        "unshare --user true",
        "not permitted",
    ),
    (
        "make a network namespace",
        "unshare --net true",
        "not permitted",
    ),
    (
        "mount",
        "mount -t tmpfs none /tmp",
        "not permitted|denied|superuser",
    ),
    (
        "become root by a program of root's",
        "su -c true",
        "ailure|denied|must be",
    ),
    ("set the clock", "date --set @0", "not permitted"),
    (
        "change kernel settings",
        "echo 1 >/proc/sys/net/ipv4/ip_forward",
        "Read-only file system|denied",
    ),
    (
        "change control groups",
        "mkdir /sys/fs/cgroup/systemd/x",
        "Read-only file system",
    ),
];

#[tokio::test]
async fn agent_and_helper_are_held_to_what_they_need() {
    let scene = Scene::with_node().await;
    let machine = &scene.machine;
    let run = scene.run(&["true"]).await;
    assert_eq!(run["state"], "succeeded", "{run}");

    let agent = machine.proc_status(AGENT).await;
    let uid = machine.ok("id --user nexus-agent").await;
    let uids: Vec<_> = agent("Uid").split_whitespace().map(str::to_owned).collect();
    assert_eq!(uids, [uid.trim(); 4]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(agent(set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (agent("NoNewPrivs"), agent("Seccomp")),
        ("1".to_owned(), "2".to_owned())
    );

    // The helper: root, whose network is nothing but a loopback device that is down.
    let helper = machine.proc_status(HELPER).await;
    assert!(helper("Uid").starts_with("0\t0\t0\t0"), "{}", helper("Uid"));
    let pid = machine.show(HELPER, "MainPID").await;
    let links = machine
        .ok(&format!("nsenter --target {pid} --net ip -oneline link"))
        .await;
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(
        links.contains("lo: <LOOPBACK> ") && links.contains("state DOWN"),
        "{links}"
    );
    let routes = machine
        .ok(&format!("nsenter --target {pid} --net ip route"))
        .await;
    assert_eq!(routes, "");

    assert!(machine.exposure(AGENT).await <= 2.0);
    // SECURITY.md says why it is what it is.
    assert!(machine.exposure(HELPER).await > 9.0);
    tries_what_is_forbidden(&scene, &agent("Seccomp_filters")).await;
}

/// As a service that has the agent's unit, and runs a script in its place.
async fn tries_what_is_forbidden(scene: &Scene, filters: &str) {
    let machine = &scene.machine;
    let mut script = String::from("#!/bin/sh\ncd /tmp\n");
    for (index, (_, attempt, _)) in FORBIDDEN.iter().enumerate() {
        script.push_str(&format!(
            "({attempt}) </dev/null >try.{index} 2>&1 && echo done >>try.{index}\n"
        ));
    }
    // What it needs, it may.
    script.push_str("echo mark >/var/lib/nexus/agent/probe && rm /var/lib/nexus/agent/probe && echo its own >own\n");
    script.push_str("for try in try.* own; do sed \"s/^/$try /\" $try; done\ncat /proc/self/status\necho over\n");
    machine.write("/usr/local/bin/probe", 0o755, &script);
    let own = "install --owner=nexus-agent /dev/null";
    machine
        .ok(&format!(
            "for folder in /etc/nexus /usr /root; do {own} $folder/own; done"
        ))
        .await;
    let unit = machine
        .ok("cat /usr/lib/systemd/system/nexus-agent.service")
        .await;
    let unit = unit
        .replace("Type=notify", "Type=oneshot")
        .replace("Restart=always\n", "")
        .replace("WatchdogSec=60s\n", "")
        .replace(
            "ExecStart=/usr/bin/nexus-agent run",
            "ExecStart=/usr/local/bin/probe",
        );
    machine.write(&format!("/etc/systemd/system/{PROBE}"), 0o644, &unit);
    machine
        .ok(&format!(
            "systemctl daemon-reload && systemctl start {PROBE}"
        ))
        .await;
    let log = poll::until("the probe's end", SOON, || async {
        let log = machine
            .ok(&format!(
                "journalctl --unit {PROBE} --no-pager --output cat"
            ))
            .await;
        log.contains("\nover\n").then_some(log)
    });
    let log = log.await.unwrap();
    assert!(log.contains("own its own\n"), "{log}");
    let same = format!("Seccomp_filters:\t{filters}\n");
    assert!(
        log.contains(&same),
        "another sandbox than the agent's, {same}: {log}"
    );
    let done = FORBIDDEN
        .iter()
        .enumerate()
        .filter_map(|(index, (what, _, says))| {
            let prefix = format!("try.{index} ");
            let said: Vec<_> = log
                .lines()
                .filter_map(|line| line.strip_prefix(&prefix))
                .collect();
            let said = said.join(" ");
            let refused = !said.contains("done") && says.split('|').any(|word| said.contains(word));
            (!refused).then(|| format!("{what}: {said}"))
        });
    let done: Vec<_> = done.collect();
    assert!(done.is_empty(), "{done:#?}");
}
