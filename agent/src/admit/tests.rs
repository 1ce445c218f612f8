use nexus_pki::{
    merkle::Tree,
    policy::SignerPolicy,
    signing::{Signer, SigningKey},
};
use nexus_proto::{
    ids::{Incarnation, NodeId},
    job::{Action, Context},
};
use std::time::Duration;

use super::*;

pub(crate) const T: Timestamp = Timestamp(1_700_000_000_000);

/// An operator, a policy and one node.
pub(crate) struct Scene {
    pub(crate) key: SigningKey,
    pub(crate) policy: TrustedPolicy,
    pub(crate) freshness: wire::Envelope,
    pub(crate) own: Target,
}

impl Scene {
    pub(crate) fn new(created: Timestamp) -> Self {
        let key = SigningKey::generate().unwrap();
        let policy = SignerPolicy {
            version: 1,
            trust_domain: "fleet.test".to_owned(),
            threshold: 1,
            signers: vec![Signer {
                name: "ann".to_owned(),
                public_key: key.public_key(),
            }],
            created,
        };
        let policy = TrustedPolicy::first(policy.sign(&key).unwrap(), "fleet.test").unwrap();
        let freshness = policy.sign_freshness(&key, created);
        let own = Target {
            node: NodeId::random(),
            name: "web-1".to_owned(),
            incarnation: Incarnation::random(),
        };
        Self {
            key,
            policy,
            freshness,
            own,
        }
    }

    pub(crate) fn job(&self, now: Timestamp, argv: &[&str]) -> Job {
        let tree = Tree::sorted(vec![self.own.clone()]).unwrap();
        Job {
            id: JobId::random(),
            trust_domain: "fleet.test".to_owned(),
            targets_root: tree.root(),
            target_count: 1,
            action: Action::Command {
                argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
                context: Context::default(),
                stdin: bytes::Bytes::new(),
            },
            timeout: Duration::from_secs(30),
            kill_grace: Duration::from_secs(1),
            output_limit_bytes: 1 << 20,
            created: now,
            not_before: now,
            expires: now.after(Duration::from_secs(60)),
            policy_version: 1,
            request_id: "req-1".to_owned(),
            operator: "ann".to_owned(),
            idempotent: false,
        }
    }

    pub(crate) fn dispatch(&self, job: &Job) -> wire::Dispatch {
        let tree = Tree::sorted(vec![self.own.clone()]).unwrap();
        wire::Dispatch {
            job: Some(job::sign(&self.key, job).unwrap()),
            proof: tree.proof_of(self.own.node),
            ..wire::Dispatch::default()
        }
    }

    fn judge(
        &self,
        dispatch: &wire::Dispatch,
        change: impl FnOnce(&mut View<'_>),
    ) -> Result<Admitted, Box<Refused>> {
        self.judge_as(&self.own, dispatch, change)
    }

    fn judge_as(
        &self,
        own: &Target,
        dispatch: &wire::Dispatch,
        change: impl FnOnce(&mut View<'_>),
    ) -> Result<Admitted, Box<Refused>> {
        let freshness = self.policy.verify_freshness(&self.freshness, T).unwrap();
        let mut view = View {
            own,
            policy: &self.policy,
            freshness: Some(&freshness),
            now: T,
            horizon: Timestamp(0),
            since: Timestamp(0),
            active: 0,
            most: 16,
            room: true,
        };
        change(&mut view);
        admit(dispatch, &view, |_| false)
    }
}

#[test]
fn admits_what_is_signed_for_this_node() {
    let scene = Scene::new(T);
    let job = scene.job(T, &["true"]);
    let admitted = scene.judge(&scene.dispatch(&job), |_| {}).unwrap();
    assert_eq!((admitted.key, admitted.job), (RunKey::once(job.id), job));
}

#[test]
fn refuses_everything_else() {
    let scene = Scene::new(T);
    let other = Scene::new(T);
    let job = scene.job(T, &["true"]);
    let dispatch = scene.dispatch(&job);
    let day = Duration::from_secs(86_400);

    let refusal = |result: Result<Admitted, Box<Refused>>| result.unwrap_err().refusal;
    let forged = other.dispatch(&job);
    let refused = scene.judge(&forged, |_| {}).unwrap_err();
    assert!(matches!(refused.refusal, Refusal::Job(_)));
    assert_eq!(refused.key, Some(RunKey::once(job.id)));
    assert_eq!(refused.expires, None);

    let mut tampered = dispatch.clone();
    let envelope = tampered.job.as_mut().unwrap();
    let mut payload = envelope.payload.to_vec();
    *payload.last_mut().unwrap() ^= 1;
    envelope.payload = payload.into();
    assert!(matches!(
        refusal(scene.judge(&tampered, |_| {})),
        Refusal::Job(_)
    ));

    let renamed = Target {
        name: "web-2".to_owned(),
        ..scene.own.clone()
    };
    assert!(matches!(
        refusal(scene.judge_as(&renamed, &dispatch, |_| {})),
        Refusal::Target(_)
    ));
    let reborn = Target {
        incarnation: Incarnation::random(),
        ..scene.own.clone()
    };
    assert!(matches!(
        refusal(scene.judge_as(&reborn, &dispatch, |_| {})),
        Refusal::Target(_)
    ));
    let unproven = wire::Dispatch {
        proof: None,
        ..dispatch.clone()
    };
    assert!(matches!(
        refusal(scene.judge(&unproven, |_| {})),
        Refusal::NoProof
    ));

    let expired = |view: &mut View<'_>| view.now = T.after(Duration::from_secs(60));
    assert!(matches!(
        refusal(scene.judge(&dispatch, expired)),
        Refusal::Expired { .. }
    ));
    let forgotten = |view: &mut View<'_>| view.horizon = T.after(Duration::from_secs(60));
    assert!(matches!(
        refusal(scene.judge(&dispatch, forgotten)),
        Refusal::Expired { .. }
    ));
    let lost = |view: &mut View<'_>| view.since = T.before(Duration::from_secs(299));
    let refused = scene.judge(&dispatch, lost).unwrap_err();
    assert!(matches!(refused.refusal, Refusal::Forgotten { .. }));
    assert_eq!(refused.expires, Some(job.expires));
    scene
        .judge(&dispatch, |view| {
            view.since = T.before(Duration::from_secs(301))
        })
        .unwrap();
    let stale = |view: &mut View<'_>| view.now = T.after(day * 31);
    assert!(matches!(
        refusal(scene.judge(&dispatch, stale)),
        Refusal::Stale(_)
    ));
    let none = |view: &mut View<'_>| view.freshness = None;
    assert!(matches!(
        refusal(scene.judge(&dispatch, none)),
        Refusal::NoFreshness
    ));

    let newer = Job {
        policy_version: 2,
        ..job
    };
    let newer = scene.dispatch(&newer);
    assert!(matches!(
        refusal(scene.judge(&newer, |_| {})),
        Refusal::PolicyVersion { .. }
    ));
    assert!(matches!(
        refusal(scene.judge(&dispatch, |v| v.active = 16)),
        Refusal::Busy(16)
    ));
    assert!(matches!(
        refusal(scene.judge(&dispatch, |v| v.room = false)),
        Refusal::Full
    ));
    assert!(matches!(
        refusal(scene.judge(&wire::Dispatch::default(), |_| {})),
        Refusal::NoJob
    ));
}
