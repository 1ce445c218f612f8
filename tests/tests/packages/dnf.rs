//! A node and a collector that dnf installs from a signed repository, upgrades, sets back and removes. The machine is a
//! Debian with dnf and rpm, which do here what they do on Fedora; one rpm stands for the rest of that.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nexus_runtime::clock::Clock;

use super::{
    collector,
    debian::Kind,
    machine::Machine,
    node::{self, Before},
    package::HERE,
    publisher::Publisher,
    rpm,
    scene::{AGENT, NAME, Scene},
};

const SETTINGS: &str = "/etc/nexus/agent.toml";
/// What an administrator wrote in their place.
const OWN_SETTINGS: &str = "interval = \"1s\"\n";
/// Where the machine has the repository.
const TREES: &str = "/srv/nexus";
/// What is added to the built packages' version.
const NEXT: &str = ".1";
const BROKEN: &str = ".2";
const VERSIONS: &str = "rpm --query --queryformat '%{NAME} %{VERSION}\\n'";

#[tokio::test]
async fn dnf_installs_upgrades_sets_back_and_removes() {
    let clock = Clock::system();
    let begun = clock.instant();
    let step = |name: &str| println!("by dnf {name}: after {:.1?}", begun.elapsed());
    let (scene, publisher) = tokio::join!(Scene::of(Kind::WithDnf), Publisher::new());
    step("booted");
    has_the_repository(&scene.machine, &publisher).await;
    step("has a repository");
    believes_only_what_was_signed(&scene.machine).await;
    step("refused what nobody signed");
    installs_a_node(&scene).await;
    step("installed a node");
    installs_a_collector(&scene.machine).await;
    step("installed a collector");
    upgrades_under_a_job(&scene, &publisher).await;
    step("upgraded");
    sets_back_what_does_not_start(&scene, &publisher).await;
    step("set back");
    removes_and_brings_back(&scene).await;
    step("removed and installed again");
}

/// As docs/install.md says it, but for where it is.
async fn has_the_repository(machine: &Machine, publisher: &Publisher) {
    publisher.publish(&machine.path(TREES)).await;
    let page = fs::read_to_string(Path::new(HERE).join("docs/install.md")).unwrap();
    let (_, text) = page
        .split_once("```ini\n# /etc/yum.repos.d/nexus.repo\n")
        .unwrap();
    let (text, _) = text.split_once("```").unwrap();
    let text = text.replace("https://packages.example.org", &format!("file://{TREES}"));
    assert!(text.contains("\ngpgcheck=1\nrepo_gpgcheck=1\n"), "{text}");
    machine.write("/etc/yum.repos.d/nexus.repo", 0o644, &text);
    let stand_in = rpm::stand_in(&machine.path("/root")).await;
    let stand_in = stand_in.file_name().unwrap().to_str().unwrap();
    machine.ok(&format!("rpm --install /root/{stand_in}")).await;
}

async fn believes_only_what_was_signed(machine: &Machine) {
    let package = rpm::built("nexus-agent");
    let package = Path::new("rpm").join(package.file_name().unwrap());
    let index = PathBuf::from("rpm/repodata/repomd.xml");
    for (file, why) in [
        (index, "Bad GPG signature"),
        (package, "incorrect checksum"),
    ] {
        let file = machine.path(TREES).join(file);
        let signed = fs::read(&file).unwrap();
        fs::write(&file, [&signed[..], b"\n"].concat()).unwrap();
        let said = machine.sh("dnf install --assumeyes nexus-agent").await;
        assert!(!said.well && said.text.contains(why), "{said:?}");
        fs::write(&file, signed).unwrap();
    }
    assert!(!machine.path("/usr/bin/nexus-agent").exists());
}

async fn installs_a_node(scene: &Scene) {
    let machine = &scene.machine;
    machine.ok("dnf install --assumeyes nexus-agent").await;
    assert_eq!(machine.ok("rpm --verify nexus-agent").await, "");
    let enabled = machine
        .ok("systemctl is-enabled nexus-agent.path nexus-agent-helper.socket")
        .await;
    assert_eq!(enabled, "enabled\nenabled\n");
    // Nothing was started so far: on Fedora, that is for whoever installs.
    let started = machine
        .ok("systemctl list-units --plain --no-legend 'nexus*'")
        .await;
    assert_eq!(started, "");
    node::waits_for_an_identity(machine).await;
    machine.write(SETTINGS, 0o644, OWN_SETTINGS);
    node::runs_once_it_is_enrolled(scene).await;
    node::runs_jobs_as_root(scene).await;
    // As an rpm of the machine's: its own user may read rpm's database.
    let listed = "SELECT version FROM packages WHERE name = 'nexus-agent' AND manager = 'rpm'";
    let listed = scene.fleet.eventually(listed, |rows| rows.len() == 1);
    listed.await.unwrap();
}

/// And the client beside it, which has the same nexusctl.
async fn installs_a_collector(machine: &Machine) {
    machine
        .ok("dnf install --assumeyes nexus-collector nexusctl")
        .await;
    machine.ok("systemctl start nexus-collector").await;
    collector::waits_for_init_then_serves(machine).await;
    let verified = machine.ok("rpm --verify nexus-collector nexusctl").await;
    assert_eq!(verified, "");
}

async fn upgrades_under_a_job(scene: &Scene, publisher: &Publisher) {
    let machine = &scene.machine;
    let before = Before::of(scene).await;
    let collector = machine.show(collector::UNIT, "MainPID").await;
    for name in rpm::ALL {
        rpm::later(name, NEXT, &publisher.dist(), |tree| {
            for changed in ["etc/nexus/agent.toml", "usr/bin/nexusctl"] {
                append(&tree.join(changed), "\n# new\n");
            }
        })
        .await;
    }
    publisher.publish(&machine.path(TREES)).await;
    // The collector's too: it has the same client.
    machine
        .ok("dnf upgrade --refresh --assumeyes nexus-agent nexusctl")
        .await;
    before.agent_was_replaced(machine).await;
    machine.write("/root/go", 0o644, "");
    before.comes_home(scene).await;
    let next = format!("{}{NEXT}", rpm::version("nexus-agent").await);
    let all = rpm::ALL.join(" ");
    let versions = machine.ok(&format!("{VERSIONS} {all}")).await;
    let expected = rpm::ALL.map(|name| format!("{name} {next}\n")).concat();
    assert_eq!(versions, expected);
    // What an administrator changed stays, and so does everything else as it was packed.
    assert_eq!(text(machine, SETTINGS), OWN_SETTINGS);
    assert!(text(machine, &format!("{SETTINGS}.rpmnew")).ends_with("# new\n"));
    let verified = machine.sh(&format!("rpm --verify {all}")).await.text;
    let lines: Vec<_> = verified.lines().collect();
    assert!(
        matches!(lines[..], [line] if line.ends_with(&format!(" c {SETTINGS}"))),
        "{verified}"
    );
    machine
        .shows(collector::UNIT, "ActiveState", "active")
        .await;
    assert_ne!(machine.show(collector::UNIT, "MainPID").await, collector);
    machine.ok("nexusctl get nodes").await;
}

/// If it is there.
fn append(path: &Path, more: &str) {
    if let Ok(mut bytes) = fs::read(path) {
        bytes.extend_from_slice(more.as_bytes());
        fs::write(path, bytes).unwrap();
    }
}

fn text(machine: &Machine, path: &str) -> String {
    fs::read_to_string(machine.path(path)).unwrap()
}

async fn sets_back_what_does_not_start(scene: &Scene, publisher: &Publisher) {
    let machine = &scene.machine;
    rpm::later("nexus-agent", BROKEN, &publisher.dist(), |tree| {
        let program = tree.join("usr/bin/nexus-agent");
        fs::write(&program, "#!/bin/sh\necho made to fail >&2\nexit 1\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    })
    .await;
    publisher.publish(&machine.path(TREES)).await;
    let said = machine.ok("dnf upgrade --refresh --assumeyes").await;
    for words in [
        "nexus-agent: nexus-agent.service does not start; `journalctl -u nexus-agent.service` says why.",
        "nexus-agent: back to what was there: dnf downgrade nexus-agent",
    ] {
        assert!(said.contains(words), "{said}");
    }
    scene.fleet.in_state(NAME, "disconnected").await.unwrap();
    machine.ok("dnf downgrade --assumeyes nexus-agent").await;
    let version = machine.ok(&format!("{VERSIONS} nexus-agent")).await;
    assert!(version.ends_with(&format!("{NEXT}\n")), "{version}");
    scene.connected().await;
    node::runs_jobs_as_root(scene).await;
}

async fn removes_and_brings_back(scene: &Scene) {
    let machine = &scene.machine;
    let node = scene.connected().await;
    machine
        .ok("dnf remove --assumeyes nexus-agent nexus-collector nexusctl")
        .await;
    node::has_left_its_state(scene, &node).await;
    let links = machine.ok("find /etc/systemd/system -name 'nexus*'").await;
    assert_eq!(links, "");
    // An rpm's settings go, and what an administrator changed stays under a name that counts no more.
    assert!(!machine.path(SETTINGS).exists());
    let saved = format!("{SETTINGS}.rpmsave");
    assert_eq!(text(machine, &saved), OWN_SETTINGS);
    let authority = "/var/lib/nexus/collector/instance.json";
    assert!(machine.path(authority).exists());

    let next = format!("nexus-agent-{}{NEXT}", rpm::version("nexus-agent").await);
    machine.ok(&format!("dnf install --assumeyes {next}")).await;
    machine
        .ok(&format!("mv {saved} {SETTINGS} && systemctl start {AGENT}"))
        .await;
    assert_eq!(scene.connected().await["id"], node["id"]);
}
