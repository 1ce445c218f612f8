//! A helper's socket in the hands of whoever should not have it: other users, and an agent that was taken over.
//!
//! What speaks to the helper here is not the agent but this test, as the agent's user: it has the socket, and a key
//! that the helper's pin names, so that the helper's own judgement is all that stands between it and root.

use std::{fs, os::unix::net::UnixStream, time::Duration};

use bytes::Bytes;
use nexus_pki::{
    merkle::{Target, Tree},
    policy::{SignerPolicy, TrustedPolicy},
    signing::SigningKey,
};
use nexus_proto::{
    agent::v1 as agent,
    helper::v1::{self as wire, from_helper::Kind as Said, to_helper::Kind},
    ids::{Incarnation, NodeId, RunKey},
    job::Job,
};
use nexus_tests::helper::AGENT;

use super::helper_scene::{DOMAIN, Scene, frame, in_group, now, policy_of, start};

#[tokio::test]
async fn nobody_but_the_agent_is_served() {
    let scene = Scene::new().await;
    // Root is no exception; daemon is let in by the socket's group.
    for stranger in [0, 1] {
        let mut bytes = frame(Kind::Hello(wire::Hello {
            protocol_min: 1,
            protocol_max: 1,
            trust: None,
        }));
        bytes.extend(frame(start(&scene.dispatch(&scene.job()))));
        let said = scene.say(stranger, bytes);
        assert!(said.is_empty(), "{stranger}: {said:?}");
    }
    let log = scene.helper.log_text();
    assert!(log.contains("somebody else than the agent"), "{log}");
    assert!(!scene.mark().exists());
    // Who is in another group does not even reach it.
    let socket = scene.helper.socket();
    let refused = in_group(1, 1, || UnixStream::connect(&socket).unwrap_err().kind());
    assert_eq!(refused, std::io::ErrorKind::PermissionDenied);
    // What it refused to others, it does for the agent.
    scene.ran(&scene.start(&scene.dispatch(&scene.job())));
}

#[tokio::test]
async fn only_what_an_operator_signed_for_this_node_runs_and_only_once() {
    let scene = Scene::new().await;
    let good = scene.dispatch(&scene.job());

    let mut unsigned = good.clone();
    unsigned.job.as_mut().unwrap().signatures.clear();
    scene.refused(&scene.start(&unsigned), "signature");

    let stranger = SigningKey::generate().unwrap();
    let forged = scene.dispatch_by(&stranger, &scene.job());
    scene.refused(&scene.start(&forged), "signature");

    let mut changed = good.clone();
    let envelope = changed.job.as_mut().unwrap();
    let mut payload = envelope.payload.to_vec();
    let at = payload.windows(5).position(|w| w == b"touch").unwrap();
    payload[at] = b'T';
    envelope.payload = payload.into();
    scene.refused(&scene.start(&changed), "signature");

    let expired = Job {
        expires: now().before(Duration::from_millis(500)),
        ..scene.job()
    };
    scene.refused(&scene.start(&scene.dispatch(&expired)), "expired");

    let early = Job {
        not_before: now().after(Duration::from_secs(300)),
        ..scene.job()
    };
    scene.refused(
        &scene.start(&scene.dispatch(&early)),
        "may not begin before",
    );

    // Signed for another node, or another life of this one.
    for other in [
        Target {
            node: NodeId::random(),
            ..scene.own.clone()
        },
        Target {
            incarnation: Incarnation::random(),
            ..scene.own.clone()
        },
        Target {
            name: "beta".to_owned(),
            ..scene.own.clone()
        },
    ] {
        let tree = Tree::sorted(vec![other.clone()]).unwrap();
        let job = Job {
            targets_root: tree.root(),
            ..scene.job()
        };
        let foreign = agent::Dispatch {
            proof: tree.proof_of(other.node),
            ..scene.dispatch(&job)
        };
        scene.refused(&scene.start(&foreign), "not among the job's targets");
    }

    let again = agent::Dispatch {
        attempt: 1,
        ..good.clone()
    };
    scene.refused(&scene.start(&again), "another execution");

    let elsewhere = Job {
        trust_domain: "example.com".to_owned(),
        ..scene.job()
    };
    scene.refused(&scene.start(&scene.dispatch(&elsewhere)), "trust domain");

    let somebody = Job {
        operator: "bob".to_owned(),
        ..scene.job()
    };
    scene.refused(
        &scene.start(&scene.dispatch(&somebody)),
        "names the operator",
    );

    let said = scene.ask(Kind::Start(wire::Start {
        dispatch: Bytes::from_static(b"\xff\xff"),
    }));
    scene.refused(&said, "no valid message");

    scene.ran(&scene.start(&good));
    scene.refused(&scene.start(&good), "taken before");
}

#[tokio::test]
async fn what_ran_does_not_run_again_after_a_restart() {
    let mut scene = Scene::new().await;
    let good = scene.dispatch(&scene.job());
    scene.ran(&scene.start(&good));
    for killed in [true, false] {
        if killed {
            scene.helper.kill().await.unwrap();
        } else {
            scene.helper.stop().await.unwrap();
        }
        scene.helper.start().await.unwrap();
        scene.refused(&scene.start(&good), "taken before");
    }
    // Nor when the ledger is gone: then it is not known what ran.
    scene.helper.stop().await.unwrap();
    fs::remove_dir_all(scene.helper.state().join("ledger")).unwrap();
    scene.helper.start().await.unwrap();
    scene.refused(&scene.start(&good), "no longer known");
    scene.refused(
        &scene.start(&scene.dispatch(&scene.job())),
        "no longer known",
    );
}

#[tokio::test]
async fn a_run_that_was_given_up_does_not_begin() {
    let scene = Scene::new().await;
    let job = scene.job();
    let attach = Kind::Attach(wire::Attach {
        run: Some(RunKey::once(job.id).to_wire()),
    });
    let said = scene.ask(attach);
    assert!(matches!(said.last(), Some(Said::NotKnown(_))), "{said:?}");
    scene.refused(&scene.start(&scene.dispatch(&job)), "taken before");
}

#[tokio::test]
async fn signers_change_only_by_those_who_were_pinned() {
    let scene = Scene::new().await;
    let stranger = SigningKey::generate().unwrap();
    let usurped = policy_of(2, &stranger, now());
    let update = |envelope: agent::Envelope, by: &SigningKey, policy: &SignerPolicy| {
        let first = SignerPolicy {
            version: 1,
            ..policy.clone()
        };
        let trusted = TrustedPolicy::first(first.sign(by).unwrap(), DOMAIN).unwrap();
        agent::TrustUpdate {
            policy: Some(envelope),
            freshness: Some(trusted.sign_freshness(by, now())),
        }
    };
    let forged = update(usurped.sign(&stranger).unwrap(), &stranger, &usurped);
    let job = Job {
        policy_version: 2,
        ..scene.job()
    };
    let question = start(&scene.dispatch_by(&stranger, &job));
    scene.refused(&scene.ask_after(Some(forged), question), "signature");
    // Those who were pinned may, and then the old key counts no longer.
    let envelope = usurped.sign(&scene.key).unwrap();
    let next = scene.policy.update(envelope.clone()).unwrap();
    let handed_over = agent::TrustUpdate {
        policy: Some(envelope),
        freshness: Some(next.sign_freshness(&stranger, now())),
    };
    let question = start(&scene.dispatch_by(&stranger, &job));
    scene.ran(&scene.ask_after(Some(handed_over), question));
    scene.refused(&scene.start(&scene.dispatch(&scene.job())), "signature");
}

#[tokio::test]
async fn without_a_pin_nothing_runs_until_root_makes_one() {
    let mut scene = Scene::without_pin();
    scene.helper.start().await.unwrap();
    let good = scene.dispatch(&scene.job());
    scene.refused(
        &scene.start(&good),
        "run `nexus-agent enroll TOKEN` as root",
    );
    // At once: the helper need not be started anew.
    scene.pin();
    scene.ran(&scene.start(&good));
    // What was signed before the agent had a helper may have run already.
    scene.pin_since(Some(now()));
    scene.refused(
        &scene.start(&scene.dispatch(&scene.job())),
        "no longer known",
    );
    // One that others can read or write counts for nothing, whatever the folders around it.
    scene.pin();
    let identity = scene.helper.state().join("identity");
    for path in [identity.join("pin"), identity, scene.helper.state()] {
        std::os::unix::fs::chown(&path, Some(AGENT), None).unwrap();
        scene.refused(
            &scene.start(&scene.dispatch(&scene.job())),
            "whom to believe",
        );
    }
    // And a helper does not start there.
    scene.helper.stop().await.unwrap();
    let mut command = scene.helper.command().await.unwrap();
    let output = command.output().await.unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("can be written by others than root"),
        "{said}"
    );
}

#[tokio::test]
async fn rubbish_on_the_socket_is_no_harm() {
    let scene = Scene::new().await;
    let hello = || {
        frame(Kind::Hello(wire::Hello {
            protocol_min: 1,
            protocol_max: 1,
            trust: None,
        }))
    };
    let after_hello = |kind| [hello(), frame(kind)].concat();
    let taken = Kind::Taken(wire::Taken { refused: false });
    for bytes in [
        b"\xff\xff\xff\xff".to_vec(),
        b"\0\0\0\x03\xff\xff\xff".to_vec(),
        frame(taken.clone()),
        after_hello(taken),
        after_hello(Kind::Reported(wire::Reported {})),
        after_hello(Kind::Attach(wire::Attach { run: None })),
        [hello(), hello()].concat(),
    ] {
        let said = scene.say(AGENT, bytes.clone());
        assert!(
            said.iter().all(|kind| matches!(kind, Said::Welcome(_))),
            "{bytes:?}: {said:?}"
        );
    }
    let said = scene.say(
        AGENT,
        frame(Kind::Hello(wire::Hello {
            protocol_min: 2,
            protocol_max: 9,
            trust: None,
        })),
    );
    scene.refused(&said, "upgrade the older one");
    scene.ran(&scene.start(&scene.dispatch(&scene.job())));
}

#[tokio::test]
async fn a_helper_that_would_have_a_network_does_not_start() {
    let scene = Scene::without_pin();
    let own = scene.helper.command().await.unwrap();
    let own = own.as_std();
    let output = std::process::Command::new("setpriv")
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--"])
        .arg(own.get_program())
        .args(own.get_args())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot leave the network"), "{said}");
    assert!(
        said.contains("hint: the helper needs CAP_SYS_ADMIN"),
        "{said}"
    );
    // Nor does one that is not root, or whose settings somebody else can write.
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(own.get_program())
        .args(own.get_args())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("was not started as root"), "{said}");
    let config = scene.dir.path().join("helper.toml");
    std::os::unix::fs::chown(&config, Some(AGENT), None).unwrap();
    let output = std::process::Command::new(own.get_program())
        .args(own.get_args())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("can be written by others than root"),
        "{said}"
    );
    assert!(!scene.helper.socket().exists());
}

/// As a service manager starts it: with a socket, and only when somebody knocks.
#[tokio::test]
async fn a_helper_with_a_passed_socket_ends_when_nobody_needs_it() {
    let mut scene = Scene::without_pin();
    scene.pin();
    let own = scene.helper.command().await.unwrap();
    let mut command = tokio::process::Command::new("python3");
    let pass = "import os, socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); os.chmod(sys.argv[1], 0o666)
os.dup2(s.fileno(), 3); os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')
os.execv(sys.argv[2], sys.argv[2:])";
    command.args(["-c", pass]).arg(scene.helper.socket());
    command
        .arg(own.as_std().get_program())
        .args(own.as_std().get_args());
    scene.helper.start_as(&mut command).await.unwrap();
    scene.ran(&scene.start(&scene.dispatch(&scene.job())));
    let status = scene.helper.ended().await.unwrap();
    let log = scene.helper.log_text();
    assert!(status.success(), "{log}");
    assert!(log.contains("nobody needs the helper"), "{log}");
    // The socket is its service manager's.
    assert!(scene.helper.socket().exists());
}
