//! A machine that is given a token and the package, and told nothing else.

use std::{fs, path::Path};

use nexus_runtime::clock::Clock;
use nexus_tests::{fleet::SOON, poll};
use serde_json::Value;

use super::{
    package::HERE,
    scene::{AGENT, Scene},
};

/// What installing may take, in seconds, until the first job has been run.
const LIMIT: f64 = 60.0;

#[tokio::test]
async fn a_stock_machine_does_its_first_job_within_a_minute() {
    let mut scene = Scene::new().await;
    let machine = &scene.machine;
    let token = scene.fleet.token(&[]).await.unwrap();
    let example = Path::new(HERE).join("packaging/examples/cloud-init.yaml");
    let example = fs::read_to_string(example).unwrap();
    assert!(example.starts_with("#cloud-config\n"), "{example}");
    let example: Value = serde_yaml_ng::from_str(&example).unwrap();
    machine.bring("nexus-agent");

    let clock = Clock::system();
    let begun = clock.instant();
    // In the order of cloud-init: files first, then packages, then commands.
    for file in example["write_files"].as_array().unwrap() {
        let text = |key: &str| file[key].as_str().unwrap();
        assert_eq!(text("owner"), "root:root");
        let mode = u32::from_str_radix(text("permissions"), 8).unwrap();
        let content = text("content").replace("TOKEN", &token);
        machine.write(text("path"), mode, &content);
    }
    for package in example["packages"].as_array().unwrap() {
        let package = package.as_str().unwrap();
        machine
            .ok(&format!("apt-get install --yes /root/{package}.deb"))
            .await;
    }
    for command in example["runcmd"].as_array().into_iter().flatten() {
        machine.ok(command.as_str().unwrap()).await;
    }
    let installed = begun.elapsed().as_secs_f64();
    scene.connected().await;
    let connected = begun.elapsed().as_secs_f64();
    let run = scene.run(&["id", "-u"]).await;
    let ran = begun.elapsed().as_secs_f64();
    println!(
        "installed after {installed:.1} s, connected after {connected:.1} s, first job done after {ran:.1} s"
    );
    assert_eq!(
        (&run["state"], &run["stdout"]),
        (&"succeeded".into(), &"0\n".into()),
        "{run}"
    );
    assert!(ran < LIMIT, "{ran} s");

    // The token has served.
    assert!(!machine.path("/etc/nexus/enrol.token").exists());
    machine.shows(AGENT, "ActiveState", "active").await;
    assert_eq!(machine.ok("systemctl --failed --quiet").await, "");

    // And it is a node again when it starts again.
    let begun = clock.instant();
    scene.machine.reboot().await;
    let started = "SELECT time FROM events WHERE kind = 'agent_started'";
    scene
        .fleet
        .eventually(started, |rows| rows.len() == 2)
        .await
        .unwrap();
    scene.connected().await;
    let run = scene.run(&["id", "-u"]).await;
    assert_eq!(run["stdout"], "0\n", "{run}");
    println!(
        "a node again {:.1} s after a reboot",
        begun.elapsed().as_secs_f64()
    );
}

/// What keeps the helper from being told whom to believe may pass after the identity is there already.
#[tokio::test]
async fn an_enrolment_that_got_half_way_is_gone_on_with() {
    let scene = Scene::new().await;
    let machine = &scene.machine;
    machine.bring("nexus-agent");
    machine
        .ok("apt-get install --yes /root/nexus-agent.deb")
        .await;
    machine.write(
        "/run/systemd/system/nexus-agent-enroll.service.d/soon.conf",
        0o644,
        "[Service]\nRestartSec=1s\n",
    );
    machine
        .ok("systemctl daemon-reload && mkdir -p -m 0700 /var/lib/nexus/helper")
        .await;
    machine
        .ok("mkdir -m 0777 /var/lib/nexus/helper/scripts")
        .await;
    let token = scene.fleet.token(&[]).await.unwrap();
    machine.write("/etc/nexus/enrol.token", 0o600, &format!("{token}\n"));
    machine.ok("systemctl start nexus-agent").await;
    scene.connected().await;
    let journal = "journalctl --unit nexus-agent-enroll --no-pager --output cat";
    let why = "/var/lib/nexus/helper/scripts can be written by others than root";
    let tried = poll::until_ok("attempts to pin", SOON, || async {
        let log = machine.ok(journal).await;
        let attempts = log.matches(why).count();
        if attempts >= 2 { Ok(()) } else { Err(log) }
    });
    tried.await.unwrap();
    assert!(machine.path("/etc/nexus/enrol.token").exists());

    machine.ok("chmod 0700 /var/lib/nexus/helper/scripts").await;
    let unit = "nexus-agent-enroll.service";
    machine.shows(unit, "ActiveState", "active").await;
    assert_eq!(machine.show(unit, "Result").await, "success");
    assert!(!machine.path("/etc/nexus/enrol.token").exists());
    // The helper believes, from when nothing can have run without it.
    let run = scene.run(&["id", "-u"]).await;
    assert_eq!(run["state"], "rejected", "{run}");
    let reason = run["reason"].as_str().unwrap();
    assert!(reason.contains("signed"), "{run}");

    // Who begins anew with the folders gone has them made for the same user.
    machine.ok("systemctl stop nexus-agent").await;
    machine
        .ok("rm -r /var/lib/nexus/agent /var/lib/nexus/helper")
        .await;
    let said = scene.enrol().await;
    assert!(said.contains("pinned for the helper"), "{said}");
    let owner = machine.ok("stat --format %U:%a /var/lib/nexus/agent").await;
    assert_eq!(owner, "nexus-agent:700\n");
}
