//! What `nexus-agent doctor` says of what only root can make wrong: networks, disks, clocks, owners, helpers. Needs what
//! those modules name.

use std::{fs, os::unix::fs::chown};

use nexus_pki::{policy::SignerPolicy, signing::SigningKey};
use nexus_tests::{
    agent::Agent,
    doctor::Examined,
    fleet::Fleet,
    helper::{AGENT, ANYTHING, Helper},
    process,
};
use prost::Message as _;
use tokio::process::Command;

use super::{
    cable::Cable,
    clock::going_by,
    fake_clock::FakeClock,
    helper_scene::{now, policy_of},
    mounts::{Disk, Small},
    network::{FALLBACK, on},
};

/// Neither root nor the agent's user.
const STRANGER: u32 = 65_533;

async fn examined(agent: &Agent, flags: &[&str]) -> Examined {
    let mut command = agent.command().await.unwrap();
    Examined::by(command.args(flags)).await.unwrap()
}

/// The same command as another user.
fn by_user(uid: u32, command: &Command) -> Command {
    let own = command.as_std();
    let mut outer = Command::new("setpriv");
    outer
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .arg("--clear-groups")
        .arg(own.get_program())
        .args(own.get_args());
    outer
}

#[tokio::test]
async fn udp_that_does_not_come_through_matters_where_nothing_else_may_be_used() {
    let cable = Cable::straight();
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    cable.block_udp(true);
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]).within(&cable.there);
    fleet.join(agent).await.unwrap();
    on(&fleet, "tcp", FALLBACK).await;
    let said = examined(&fleet.agents[0], &[]).await;
    said.says(
        "udp",
        "warning",
        &["no answer within 5s", "firewall", "TCP is used"],
    );
    said.says("tcp", "ok", &["a handshake with"]);
    said.says("session", "ok", &["over tcp"]);
    assert_eq!(said.code, Some(0), "{said:#?}");

    let said = examined(&fleet.agents[0], &["--set", "transport=quic"]).await;
    said.says("udp", "error", &["no answer within 5s"]);
    assert_eq!((said.of("tcp"), said.code), ("", Some(1)), "{said:#?}");
}

#[tokio::test]
async fn clocks_and_certificates_that_ran_out_are_named_with_both_times() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let clock = FakeClock::in_folder(fleet.dir());
    let agent = going_by(&fleet, &clock, "alpha");
    fleet.join(agent).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    fleet.agents[0].stop().await.unwrap();
    for (offset, what, words) in [
        ("-25h", "clock", "an operator has signed something at"),
        ("-25h", "certificate", "it is valid from"),
        ("+25h", "certificate", "renews it, until"),
        ("+31d", "signers", "no job runs"),
        ("+60d", "certificate", "too late to renew it"),
    ] {
        clock.set(offset);
        let said = examined(&fleet.agents[0], &[]).await;
        said.says(what, "error", &[words]);
        assert_eq!(said.code, Some(1), "{said:#?}");
        for transport in ["udp", "tcp"] {
            said.says(transport, "error", &["compare the clocks"]);
        }
    }
    clock.set("+20h");
    let said = examined(&fleet.agents[0], &[]).await;
    said.says("certificate", "warning", &["should have been renewed"]);
}

#[tokio::test]
async fn disks_that_are_full_or_read_only_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::over(&dir.path().join("alpha"));
    let disk = Disk::over(&dir.path().join("beta"));
    let mut fleet = Fleet::new_in(dir, &[]).await.unwrap();
    fleet.add("alpha", &[]).await.unwrap();
    fleet.add("beta", &[]).await.unwrap();
    fleet.connected("beta").await.unwrap();
    let said = examined(&fleet.agents[0], &[]).await;
    said.says("disk", "warning", &["MiB free", "spool.*_bytes"]);
    small.fill();
    let said = examined(&fleet.agents[0], &[]).await;
    said.says(
        "disk",
        "error",
        &["No space left on device", "0 MiB free", "make room"],
    );
    assert_eq!(said.code, Some(1), "{said:#?}");
    small.free();

    disk.turn_read_only();
    let said = examined(&fleet.agents[1], &[]).await;
    said.says("disk", "error", &["Read-only file system", "dmesg"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
}

#[tokio::test]
async fn a_helper_is_looked_at_as_the_agent_meets_it() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let mut helper = Helper::new(fleet.dir()).unwrap();
    let mut agent = helper.agent("alpha", &["interval=1s"]).unwrap();
    agent
        .enroll(&fleet.token(&[]).await.unwrap())
        .await
        .unwrap();
    helper.start().await.unwrap();
    Helper::start_agent(&mut agent).await.unwrap();
    fleet.agents.push(agent);
    fleet.connected("alpha").await.unwrap();
    let agent = &fleet.agents[0];

    // Root sees what the agent's user sees.
    let mut as_agent = by_user(AGENT, &agent.command().await.unwrap());
    for said in [
        examined(agent, &[]).await,
        Examined::by(&mut as_agent).await.unwrap(),
    ] {
        assert_eq!(
            (said.code, said.complaints()),
            (Some(0), vec![]),
            "{said:#?}"
        );
        said.says("state", "ok", &["the user nobody"]);
        said.says("helper", "ok", &["it answers at", "pinned to this node"]);
        said.says("policy", "ok", &["has one rule"]);
    }
    // Anybody else is told who to be.
    let mut as_stranger = by_user(STRANGER, &agent.command().await.unwrap());
    let said = Examined::by(&mut as_stranger).await.unwrap();
    said.says(
        "state",
        "error",
        &[
            "the user nobody",
            "number 65533",
            "run it as root, or as nobody",
        ],
    );
    assert_eq!((said.findings.len(), said.code), (1, Some(1)), "{said:#?}");
    let mut status = by_user(STRANGER, &agent.command().await.unwrap());
    let output = process::run(status.arg("status"), b"").await.unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        err.contains("belongs to the user nobody") && err.contains("hint: run it as root"),
        "{err}"
    );

    // What root has left in the folder.
    let spool = agent.dir().join("spool/results");
    chown(&spool, Some(0), Some(0)).unwrap();
    let said = examined(agent, &[]).await;
    said.says(
        "permissions",
        "error",
        &["spool/results belongs to the user root", "chown"],
    );
    chown(&spool, Some(AGENT), Some(AGENT)).unwrap();

    helper.policy("[[allow]]\nwho = 7\n").unwrap();
    let said = examined(agent, &[]).await;
    said.says(
        "helper",
        "error",
        &["refuses every job", "policy.toml:2", "check-config"],
    );
    said.says("policy", "error", &["policy.toml:2"]);
    helper.policy(ANYTHING).unwrap();

    let pin = helper.state().join("identity/pin");
    let text = fs::read_to_string(&pin).unwrap();
    let node = text.lines().next().unwrap();
    let other = "node 00000000-0000-4000-8000-000000000001";
    fs::write(&pin, text.replace(node, other)).unwrap();
    let said = examined(agent, &[]).await;
    said.says(
        "helper",
        "error",
        &["pinned to another node", "nexus-agent pin TOKEN"],
    );
    // One whose signers went on without it: it believes those it was told of last.
    let key = SigningKey::generate().unwrap();
    let domain = text
        .lines()
        .find_map(|line| line.strip_prefix("trust-domain "));
    let policy = SignerPolicy {
        trust_domain: domain.unwrap().to_owned(),
        ..policy_of(9, &key, now())
    };
    let envelope = policy.sign(&key).unwrap().encode_to_vec();
    fs::write(helper.state().join("identity/policy"), envelope).unwrap();
    fs::write(&pin, &text).unwrap();
    let said = examined(agent, &[]).await;
    said.says(
        "helper",
        "error",
        &[
            "refuses every job: its agent's signer policy is refused",
            "nexus-agent pin TOKEN",
        ],
    );
    fs::remove_dir_all(helper.state().join("identity")).unwrap();
    let said = examined(agent, &[]).await;
    said.says(
        "helper",
        "error",
        &["refuses every job", "nexus-agent pin TOKEN"],
    );

    // It serves another user; it does not run; somebody else's socket is in its place.
    let said = examined(agent, &["--set", "helper.user=daemon"]).await;
    said.says(
        "helper",
        "error",
        &["the user daemon", "folder is nobody's", "helper.user"],
    );
    helper.kill().await.unwrap();
    let said = examined(agent, &[]).await;
    said.says(
        "helper",
        "error",
        &[
            "Connection refused",
            "systemctl status nexus-agent-helper.socket",
        ],
    );
    chown(helper.socket(), Some(STRANGER), None).unwrap();
    let said = examined(agent, &[]).await;
    said.says(
        "helper",
        "error",
        &["number 65533, not to root", "remove it"],
    );
    fs::remove_file(helper.socket()).unwrap();
    let said = examined(agent, &[]).await;
    said.says(
        "helper",
        "error",
        &["helper.use is `always`: every job fails"],
    );
}
