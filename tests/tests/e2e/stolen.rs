//! A stolen collector cannot run code on a node, whatever it says.

use std::{fs, path::Path, time::Duration};

use nexus_pki::{
    job,
    merkle::{Target, Tree},
    policy::{SignerPolicy, TrustedPolicy},
    signing::{Signer, SigningKey},
};
use nexus_proto::{
    agent::v1::{self as wire, collector_frame::Kind},
    ids::{Incarnation, JobId, NodeId},
    job::{Action, Context, Job},
    record::RunOutcome,
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
    thief::Thief,
};

const TRUST_DOMAIN: &str = "nexus.internal";

/// A real agent in the hands of a thief, and a real operator's key, to know what a good job looks like.
struct Scene {
    fleet: Fleet,
    thief: Thief,
    operator: SigningKey,
    own: Target,
}

impl Scene {
    async fn new() -> Self {
        let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
        let node = fleet.node("alpha").await.unwrap();
        let text = |key: &str| node[key].as_str().unwrap().to_owned();
        let own = Target {
            node: text("id").parse().unwrap(),
            name: "alpha".to_owned(),
            incarnation: text("incarnation").parse().unwrap(),
        };
        let operator = SigningKey::load(&fleet.dir().join("operator")).unwrap();
        fleet.collector.kill().await.unwrap();
        let listen = fleet.collector.endpoints().agents.parse().unwrap();
        let thief = Thief::take_over(fleet.collector.dir(), TRUST_DOMAIN, listen).await;
        Self {
            thief: thief.unwrap(),
            fleet,
            operator,
            own,
        }
    }

    /// A job that would leave a file.
    fn job(&self, name: &str, targets: &Tree) -> Job {
        let now = Clock::system().now();
        Job {
            id: JobId::random(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            targets_root: targets.root(),
            target_count: targets.count(),
            action: Action::Command {
                argv: vec!["touch".to_owned(), self.marker(name)],
                context: Context::default(),
                stdin: Vec::new().into(),
            },
            timeout: Duration::from_secs(30),
            kill_grace: Duration::from_secs(1),
            output_limit_bytes: 1 << 20,
            created: now,
            not_before: now.before(Duration::from_secs(60)),
            expires: now.after(Duration::from_secs(60)),
            policy_version: 1,
            request_id: name.to_owned(),
            operator: "admin".to_owned(),
            idempotent: false,
        }
    }

    fn marker(&self, name: &str) -> String {
        self.fleet
            .dir()
            .join(format!("ran-{name}"))
            .display()
            .to_string()
    }

    fn targets(&self) -> Tree {
        Tree::sorted(vec![self.own.clone()]).unwrap()
    }

    fn dispatch(&self, job: wire::Envelope, targets: &Tree) -> wire::Dispatch {
        wire::Dispatch {
            job: Some(job),
            proof: targets.proof_of(self.own.node),
            ..wire::Dispatch::default()
        }
    }

    /// Offers it, waits for the agent's answer, and checks that nothing ran.
    async fn refused(&self, name: &str, id: JobId, dispatch: wire::Dispatch, because: &str) {
        self.thief
            .say(Kind::Dispatch(Box::new(dispatch)))
            .await
            .unwrap();
        let report = self.thief.report(id).await;
        let report = report
            .map_err(|fault| format!("{name}: {fault}\n{}", self.fleet.agents[0].log_text()))
            .unwrap();
        assert_eq!(report.outcome, RunOutcome::Rejected, "{name}: {report:?}");
        assert!(report.reason.contains(because), "{name}: {report:?}");
        assert!(!Path::new(&self.marker(name)).exists(), "{name} ran");
    }

    /// That the agent does run what an operator has signed: otherwise nothing above means anything.
    async fn runs_a_good_job(&self) -> (JobId, wire::Dispatch) {
        let targets = self.targets();
        let good = self.job("good", &targets);
        let dispatch = self.dispatch(job::sign(&self.operator, &good).unwrap(), &targets);
        self.thief
            .say(Kind::Dispatch(Box::new(dispatch.clone())))
            .await
            .unwrap();
        let report = self.thief.report(good.id).await.unwrap();
        assert_eq!(report.exit_code, Some(0), "{report:?}");
        assert!(Path::new(&self.marker("good")).exists());
        (good.id, dispatch)
    }
}

#[tokio::test]
async fn only_what_an_operator_signed_for_this_node_and_time_runs_and_only_once() {
    let scene = Scene::new().await;
    let targets = scene.targets();
    let sign = |job: &Job| job::sign(&scene.operator, job).unwrap();
    let make = |name: &str| scene.job(name, &targets);

    let of = make("unsigned");
    let mut envelope = sign(&of);
    envelope.signatures.clear();
    scene
        .refused(
            "unsigned",
            of.id,
            scene.dispatch(envelope, &targets),
            "signature",
        )
        .await;

    let of = make("stranger");
    let envelope = job::sign(&SigningKey::generate().unwrap(), &of).unwrap();
    scene
        .refused(
            "stranger",
            of.id,
            scene.dispatch(envelope, &targets),
            "signature",
        )
        .await;

    // A stranger's signature under the operator's name.
    let mut envelope = job::sign(&SigningKey::generate().unwrap(), &of).unwrap();
    envelope.signatures[0].key_id = scene.operator.key_id();
    let of = make("imposter");
    let mut forged = sign(&of);
    forged.signatures[0].sig = envelope.signatures[0].sig.clone();
    scene
        .refused(
            "imposter",
            of.id,
            scene.dispatch(forged, &targets),
            "signature",
        )
        .await;

    // Each bit of what is signed counts; the last one is the least suspicious.
    let of = make("altered");
    let mut envelope = sign(&of);
    let mut payload = envelope.payload.to_vec();
    *payload.last_mut().unwrap() ^= 1;
    envelope.payload = payload.into();
    scene
        .refused(
            "altered",
            of.id,
            scene.dispatch(envelope, &targets),
            "signature",
        )
        .await;

    let mut of = make("expired");
    of.not_before = Timestamp(1_700_000_000_000);
    of.created = of.not_before;
    of.expires = of.created.after(Duration::from_secs(60));
    scene
        .refused(
            "expired",
            of.id,
            scene.dispatch(sign(&of), &targets),
            "expired",
        )
        .await;

    let mut of = make("foreign");
    of.trust_domain = "elsewhere.example".to_owned();
    scene
        .refused(
            "foreign",
            of.id,
            scene.dispatch(sign(&of), &targets),
            "trust domain",
        )
        .await;

    let mut of = make("future-policy");
    of.policy_version = 2;
    scene
        .refused(
            "future-policy",
            of.id,
            scene.dispatch(sign(&of), &targets),
            "policy",
        )
        .await;

    // For others: another node, this one under another name, this one in another life.
    let (node, name, incarnation) = (
        scene.own.node,
        scene.own.name.clone(),
        scene.own.incarnation,
    );
    for (what, other) in [
        (
            "other-node",
            Target {
                node: NodeId::random(),
                name: name.clone(),
                incarnation,
            },
        ),
        (
            "other-name",
            Target {
                node,
                name: "beta".to_owned(),
                incarnation,
            },
        ),
        (
            "other-life",
            Target {
                node,
                name,
                incarnation: Incarnation::random(),
            },
        ),
    ] {
        let theirs = Tree::sorted(vec![other.clone()]).unwrap();
        let of = scene.job(what, &theirs);
        let dispatch = wire::Dispatch {
            job: Some(sign(&of)),
            proof: theirs.proof_of(other.node),
            ..wire::Dispatch::default()
        };
        scene.refused(what, of.id, dispatch, "target").await;
    }
    let of = make("no-proof");
    let dispatch = wire::Dispatch {
        proof: None,
        ..scene.dispatch(sign(&of), &targets)
    };
    scene.refused("no-proof", of.id, dispatch, "proof").await;

    // Once, and not again: neither the same dispatch nor the same job under another number.
    let (_, dispatch) = scene.runs_a_good_job().await;
    fs::remove_file(scene.marker("good")).unwrap();
    for (occurrence, step, attempt) in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)] {
        let again = wire::Dispatch {
            occurrence,
            step,
            attempt,
            ..dispatch.clone()
        };
        scene
            .thief
            .say(Kind::Dispatch(Box::new(again)))
            .await
            .unwrap();
    }
    let after = make("after");
    let dispatch = scene.dispatch(sign(&after), &targets);
    scene
        .thief
        .say(Kind::Dispatch(Box::new(dispatch)))
        .await
        .unwrap();
    assert_eq!(
        scene.thief.report(after.id).await.unwrap().exit_code,
        Some(0)
    );
    assert!(!Path::new(&scene.marker("good")).exists(), "a replay ran");
    let refusals = scene.thief.events();
    let refusals = refusals.iter().filter(|event| event.kind == "job_refused");
    assert!(refusals.count() >= 11, "{:?}", scene.thief.events());
}

#[tokio::test]
async fn a_thief_cannot_make_itself_a_signer() {
    let scene = Scene::new().await;
    let thief = SigningKey::generate().unwrap();
    let targets = scene.targets();
    let policy = SignerPolicy {
        version: 2,
        trust_domain: TRUST_DOMAIN.to_owned(),
        threshold: 1,
        signers: vec![Signer {
            name: "admin".to_owned(),
            public_key: thief.public_key(),
        }],
        created: Clock::system().now(),
    };
    let envelope = policy.sign(&thief).unwrap();
    let pin = nexus_pki::sha256(&envelope.payload);
    let own = TrustedPolicy::establish(envelope.clone(), &pin, TRUST_DOMAIN).unwrap();
    let update = wire::TrustUpdate {
        policy: Some(envelope),
        freshness: Some(own.sign_freshness(&thief, Clock::system().now())),
    };
    scene
        .thief
        .say(Kind::Trust(Box::new(update)))
        .await
        .unwrap();
    for version in [1, 2] {
        let mut of = scene.job("usurped", &targets);
        of.policy_version = version;
        let envelope = job::sign(&thief, &of).unwrap();
        let dispatch = scene.dispatch(envelope, &targets);
        scene.refused("usurped", of.id, dispatch, "signature").await;
    }
    let events = scene.thief.events();
    assert!(
        events.iter().any(|event| event.kind == "trust_refused"),
        "{events:?}"
    );
    // And the true operator's jobs run as before.
    scene.runs_a_good_job().await;
}

#[tokio::test]
async fn more_jobs_than_an_agent_asked_for_end_the_session() {
    let scene = Scene::new().await;
    let targets = scene.targets();
    // Held until then, so that none makes room for the next.
    let later = Clock::system().now().after(Duration::from_secs(50));
    let more = async {
        for number in 0..100 {
            let mut of = scene.job(&format!("early-{number}"), &targets);
            of.not_before = later;
            let envelope = job::sign(&scene.operator, &of).unwrap();
            let dispatch = scene.dispatch(envelope, &targets);
            if scene
                .thief
                .say(Kind::Dispatch(Box::new(dispatch)))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    more.await;
    let agent = &scene.fleet.agents[0];
    poll::until_ok("the end of the session", SOON, || {
        let log = agent.log_text();
        let said = log.contains("the collector sent a job that was not asked for");
        std::future::ready(if said { Ok(()) } else { Err(log) })
    })
    .await
    .unwrap();
    // Neither is anything read that is larger than what a collector has to say.
    let labels = (0..30_000).map(|number| (format!("{number:0100}"), String::new()));
    let update = wire::LabelsUpdate {
        labels: labels.collect(),
    };
    poll::until_ok("the end of another session", SOON, || async {
        // It may be said to one that is over already.
        let said = scene.thief.say(Kind::Labels(update.clone())).await;
        let log = agent.log_text();
        match log.contains("decoded message length too large") {
            true => Ok(()),
            false => Err(format!("{said:?}: {log}")),
        }
    })
    .await
    .unwrap();
    let admitted = agent.log_text().matches("job admitted").count();
    assert!((4..=8).contains(&admitted), "{admitted} were taken");
    assert!(!agent.log_text().contains("as many as may be"));
}
