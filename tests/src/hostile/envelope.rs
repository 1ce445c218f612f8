//! DSSE envelopes: jobs, signer policies, freshness statements, dispatches.
//!
//! Only what a listed signer signed, as that very kind of document, is believed; what was parsed keeps its
//! limits and comes back the same when it is encoded again.

use nexus_agent::admit::{View, admit};
use nexus_pki::{
    dsse::{self, payload_type},
    job, merkle,
    policy::{Freshness, TrustedPolicy},
    token,
};
use nexus_proto::{agent::v1 as wire, job::Job, limits, time::Timestamp};
use prost::{Message as _, bytes::Bytes};

use super::fixture::{DOMAIN, Input, NOW, ROOT, fleet};

const TYPES: [&str; 4] = [
    payload_type::JOB,
    payload_type::POLICY,
    payload_type::FRESHNESS,
    payload_type::JOIN_TOKEN,
];

pub(super) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    let fleet = fleet();
    let kind = TYPES.get(usize::from(choice / 8) % TYPES.len()).copied();
    let kind = kind.unwrap_or(payload_type::JOB);
    let payload = Bytes::copy_from_slice(rest);
    match choice % 8 {
        // As it comes.
        0 | 1 => {
            if let Ok(envelope) = wire::Envelope::decode(rest) {
                believed(&envelope);
            }
        }
        // Signed by who may, whatever it says.
        2 | 3 => {
            believed(&dsse::sign(&fleet.key, kind, payload));
        }
        // Signed by somebody else, and then by both.
        4 => {
            let mut envelope = dsse::sign(&fleet.stranger, kind, payload);
            assert!(!believed(&envelope), "signed by nobody who may");
            dsse::add_signature(&fleet.key, &mut envelope);
            believed(&envelope);
        }
        // One bit turned over after it was signed.
        5 => {
            let mut parts = Input(rest);
            let (at, bit) = (parts.word(), parts.byte() % 8);
            let mut envelope = dsse::sign(&fleet.key, kind, Bytes::copy_from_slice(parts.0));
            let mut bytes = envelope.payload.to_vec();
            let place = usize::from(at) % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << bit;
                envelope.payload = bytes.into();
                assert!(!believed(&envelope), "altered after it was signed");
            }
        }
        6 => dispatch(rest, true),
        _ => dispatch(rest, false),
    }
}

/// Asks everyone who believes envelopes; whether anybody did.
fn believed(envelope: &wire::Envelope) -> bool {
    let fleet = fleet();
    let policy = &fleet.policy;
    let mut by_anyone = false;
    if let Ok((job, payload)) = job::verify(envelope, policy, 1) {
        assert_eq!(envelope.payload_type, payload_type::JOB);
        assert_eq!(payload.payload(), &envelope.payload);
        check_job(&job);
        by_anyone = true;
    }
    assert!(
        job::verify(envelope, policy, 2).is_err(),
        "there is one signer only"
    );
    if let Ok(next) = policy.update(envelope.clone()) {
        assert_eq!(envelope.payload_type, payload_type::POLICY);
        assert!(next.version() > policy.version() && next.trust_domain() == DOMAIN);
        check_policy(&next);
        by_anyone = true;
    }
    if let Ok(freshness) = policy.verify_freshness(envelope, NOW) {
        assert_eq!(envelope.payload_type, payload_type::FRESHNESS);
        assert!(freshness.expires > NOW);
        assert!(freshness.expires <= freshness.issued.after(limits::FRESHNESS_LIFE));
        by_anyone = true;
    }
    if let Ok(token) = token::verify(envelope, policy, &ROOT, NOW) {
        assert_eq!(envelope.payload_type, payload_type::JOIN_TOKEN);
        assert!(token.expires > NOW && token.uses > 0);
        by_anyone = true;
    }
    if by_anyone {
        assert_signed(envelope);
    }
    // A first policy brings its own signers, and is let in for other reasons.
    if let Ok(first) = TrustedPolicy::first(envelope.clone(), DOMAIN) {
        assert_eq!(first.version(), 1);
        check_policy(&first);
    }
    by_anyone
}

/// Ed25519 is deterministic, so the one valid signature can be made again.
pub(super) fn assert_signed(envelope: &wire::Envelope) {
    let kind = TYPES.iter().find(|kind| **kind == envelope.payload_type);
    let kind = kind.expect("a kind of document of ours");
    let expected = dsse::sign(&fleet().key, kind, envelope.payload.clone());
    let found = envelope
        .signatures
        .iter()
        .any(|one| expected.signatures.contains(one));
    assert!(found, "believed without the signer's signature");
}

fn check_job(job: &Job) {
    let encoded = job.encode().expect("what was taken is within the limits");
    assert_eq!(&Job::decode(&encoded).expect("its own encoding"), job);
    assert!(job.expires > job.created && job.expires > job.not_before);
    assert!((1..=limits::RUN_OUTPUT_BYTES_MAX).contains(&job.output_limit_bytes));
}

fn check_policy(policy: &TrustedPolicy) {
    let threshold = usize::try_from(policy.policy().threshold).unwrap_or(usize::MAX);
    assert!((1..=policy.signers().len()).contains(&threshold));
    let again = TrustedPolicy::establish(policy.envelope().clone(), &policy.digest(), DOMAIN);
    assert_eq!(&again.expect("pinned by its own digest"), policy);
}

/// A dispatch whose job is signed anew, by who may or by a stranger, or travels as it is.
fn dispatch(bytes: &[u8], by_signer: bool) {
    let fleet = fleet();
    let Ok(mut dispatch) = wire::Dispatch::decode(bytes) else {
        return;
    };
    if let Some(job) = &mut dispatch.job {
        let key = if by_signer {
            &fleet.key
        } else {
            &fleet.stranger
        };
        *job = dsse::sign(key, payload_type::JOB, job.payload.clone());
    }
    let freshness = Freshness {
        issued: NOW,
        expires: NOW.after(limits::FRESHNESS_LIFE),
    };
    let view = View {
        own: &fleet.own,
        policy: &fleet.policy,
        freshness: Some(&freshness),
        now: NOW,
        horizon: Timestamp(i64::MIN),
        active: 0,
        since: Timestamp(i64::MIN),
        most: 1,
        room: true,
    };
    let Ok(admitted) = admit(&dispatch, &view, |_| false) else {
        return;
    };
    assert!(by_signer, "a stranger's job was admitted");
    check_job(&admitted.job);
    assert!(admitted.job.expires > NOW && admitted.job.policy_version <= fleet.policy.version());
    assert_eq!(admitted.key.job, admitted.job.id);
    let (root, count) = (&admitted.job.targets_root, admitted.job.target_count);
    let proof = dispatch
        .proof
        .as_ref()
        .expect("nothing is admitted without one");
    merkle::verify(root, count, &fleet.own, proof).expect("this node is a target");
    assert!(
        admit(&dispatch, &view, |_| true).is_err(),
        "a replay was admitted"
    );
}
