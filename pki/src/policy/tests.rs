use std::time::Duration;

use super::*;
use crate::{
    signing::SigningKey,
    testing::{DOMAIN, HOUR},
};

const NOW: Timestamp = Timestamp(1_790_000_000_000);

fn key() -> SigningKey {
    SigningKey::generate().unwrap()
}

fn policy(version: u64, threshold: u32, keys: &[&SigningKey]) -> SignerPolicy {
    SignerPolicy {
        version,
        trust_domain: DOMAIN.to_owned(),
        threshold,
        signers: keys
            .iter()
            .enumerate()
            .map(|(index, key)| Signer {
                name: format!("operator-{index}"),
                public_key: key.public_key(),
            })
            .collect(),
        created: NOW,
    }
}

fn first(key: &SigningKey) -> TrustedPolicy {
    TrustedPolicy::first(policy(1, 1, &[key]).sign(key).unwrap(), DOMAIN).unwrap()
}

#[test]
fn the_first_is_signed_by_those_it_names() {
    let (one, two) = (key(), key());
    let trusted = first(&one);
    assert_eq!(trusted.policy(), &policy(1, 1, &[&one]));
    let by_another = policy(1, 1, &[&one]).sign(&two).unwrap();
    assert!(matches!(
        TrustedPolicy::first(by_another, DOMAIN),
        Err(PolicyError::Signature { .. })
    ));
    assert!(matches!(
        TrustedPolicy::first(policy(2, 1, &[&one]).sign(&one).unwrap(), DOMAIN),
        Err(PolicyError::First(2))
    ));
    assert!(matches!(
        TrustedPolicy::first(policy(1, 1, &[&one]).sign(&one).unwrap(), "example.com"),
        Err(PolicyError::TrustDomain { .. })
    ));
    let half = policy(1, 2, &[&one, &two]).sign(&one).unwrap();
    assert!(TrustedPolicy::first(half.clone(), DOMAIN).is_err());
    let mut whole = half;
    dsse::add_signature(&two, &mut whole);
    TrustedPolicy::first(whole, DOMAIN).unwrap();
}

#[test]
fn the_pin_decides_what_a_node_believes_first() {
    let (one, two) = (key(), key());
    let trusted = first(&one);
    let again =
        TrustedPolicy::establish(trusted.envelope().clone(), &trusted.digest(), DOMAIN).unwrap();
    assert_eq!(again, trusted);
    let theirs = policy(1, 1, &[&two]).sign(&two).unwrap();
    assert!(matches!(
        TrustedPolicy::establish(theirs, &trusted.digest(), DOMAIN),
        Err(PolicyError::Pin { .. })
    ));
    let mut retyped = trusted.envelope().clone();
    retyped.payload_type = payload_type::JOB.to_owned();
    assert!(matches!(
        TrustedPolicy::establish(retyped, &trusted.digest(), DOMAIN),
        Err(PolicyError::Type(_))
    ));
    assert!(TrustedPolicy::establish(trusted.envelope().clone(), &trusted.digest(), "a").is_err());
}

#[test]
fn a_change_needs_the_old_signers_and_a_higher_version() {
    let (one, two, new) = (key(), key(), key());
    let mut start = policy(1, 2, &[&one, &two]).sign(&one).unwrap();
    dsse::add_signature(&two, &mut start);
    let held = TrustedPolicy::first(start, DOMAIN).unwrap();

    let next = policy(2, 1, &[&new]);
    let by_new = next.sign(&new).unwrap();
    assert!(matches!(
        held.update(by_new),
        Err(PolicyError::Signature { .. })
    ));
    let mut envelope = next.sign(&one).unwrap();
    assert!(held.update(envelope.clone()).is_err());
    dsse::add_signature(&one, &mut envelope);
    assert!(held.update(envelope.clone()).is_err());
    dsse::add_signature(&two, &mut envelope);
    let updated = held.update(envelope.clone()).unwrap();
    assert_eq!(updated.policy(), &next);

    // Neither again nor back.
    assert!(updated.update(envelope).is_err());
    let same = policy(2, 1, &[&new]).sign(&new).unwrap();
    assert!(matches!(
        updated.update(same),
        Err(PolicyError::Version { found: 2, held: 2 })
    ));
    let other_fleet = SignerPolicy {
        trust_domain: "example.com".to_owned(),
        ..policy(3, 1, &[&new])
    };
    assert!(matches!(
        updated.update(other_fleet.sign(&new).unwrap()),
        Err(PolicyError::TrustDomain { .. })
    ));
}

#[test]
fn refuses_policies_that_lock_out_or_let_in() {
    let (one, two) = (key(), key());
    let twice_named = SignerPolicy {
        signers: vec![
            Signer {
                name: "a".to_owned(),
                public_key: one.public_key(),
            },
            Signer {
                name: "a".to_owned(),
                public_key: two.public_key(),
            },
        ],
        ..policy(1, 1, &[])
    };
    for bad in [
        policy(1, 0, &[&one]),
        policy(1, 2, &[&one]),
        policy(1, 1, &[]),
        policy(0, 1, &[&one]),
        policy(1, 2, &[&one, &one]),
        policy(1, 1, &[&one; SIGNERS + 1]),
        twice_named,
        SignerPolicy {
            trust_domain: "A".to_owned(),
            ..policy(1, 1, &[&one])
        },
    ] {
        assert!(bad.sign(&one).is_err(), "{bad:?}");
    }
}

#[test]
fn what_is_larger_than_any_policy_is_not_looked_at() {
    let one = key();
    let large = vec![0xff; limits::POLICY_BYTES + 1];
    let pin = sha256(&large);
    let envelope = dsse::sign(&one, payload_type::POLICY, large.into());
    for refused in [
        TrustedPolicy::establish(envelope.clone(), &pin, DOMAIN),
        TrustedPolicy::first(envelope.clone(), DOMAIN),
        first(&one).update(envelope),
    ] {
        assert!(
            matches!(refused, Err(PolicyError::TooLarge(_))),
            "{refused:?}"
        );
    }
    // The largest there can be is far from it.
    let keys: Vec<_> = (0..SIGNERS).map(|_| key()).collect();
    let mut largest = policy(1, 16, &keys.iter().collect::<Vec<_>>());
    for (number, signer) in largest.signers.iter_mut().enumerate() {
        signer.name = format!("{number:0>253}");
    }
    let payload = largest.sign(&keys[0]).unwrap().payload;
    assert!(
        payload.len() < limits::POLICY_BYTES / 2,
        "{}",
        payload.len()
    );
}

#[test]
fn freshness_runs_out() {
    let (one, two) = (key(), key());
    let trusted = first(&one);
    let statement = trusted.sign_freshness(&one, NOW);
    let end = NOW.after(limits::FRESHNESS_LIFE);
    let fresh = trusted.verify_freshness(&statement, NOW).unwrap();
    assert_eq!((fresh.issued, fresh.expires), (NOW, end));
    fresh.check(end.before(Duration::from_millis(1))).unwrap();
    assert!(matches!(fresh.check(end), Err(PolicyError::Stale { .. })));
    assert!(matches!(
        trusted.verify_freshness(&statement, end),
        Err(PolicyError::Stale { .. })
    ));
    // The node's clock may be the one that runs behind.
    trusted
        .verify_freshness(&statement, NOW.before(HOUR))
        .unwrap();
    assert!(matches!(
        trusted.verify_freshness(&trusted.sign_freshness(&two, NOW), NOW),
        Err(PolicyError::Signature { .. })
    ));
}

#[test]
fn freshness_is_about_one_policy_and_not_for_ever() {
    let one = key();
    let trusted = first(&one);
    let later = trusted
        .update(policy(2, 1, &[&one]).sign(&one).unwrap())
        .unwrap();
    assert!(matches!(
        later.verify_freshness(&trusted.sign_freshness(&one, NOW), NOW),
        Err(PolicyError::OtherPolicy { found: 1, held: 2 })
    ));
    let statement = |change: fn(&mut wire::PolicyFreshness)| {
        let mut statement = wire::PolicyFreshness {
            policy_version: 1,
            policy_digest: trusted.digest().to_vec().into(),
            issued_ms: NOW.as_ms(),
            expires_ms: NOW.after(HOUR).as_ms(),
            trust_domain: DOMAIN.to_owned(),
        };
        change(&mut statement);
        let payload = statement.encode_to_vec().into();
        trusted.verify_freshness(&dsse::sign(&one, payload_type::FRESHNESS, payload), NOW)
    };
    statement(|_| ()).unwrap();
    assert!(matches!(
        statement(|one| one.expires_ms = i64::MAX),
        Err(PolicyError::Life { .. })
    ));
    assert!(matches!(
        statement(|one| {
            one.issued_ms = NOW.after(25 * HOUR).as_ms();
            one.expires_ms = NOW.after(26 * HOUR).as_ms();
        }),
        Err(PolicyError::Future { .. })
    ));
    // Reading takes no clock, and bounds all that needs none.
    let early = trusted.sign_freshness(&one, NOW.after(25 * HOUR));
    let read = trusted.read_freshness(&early).unwrap();
    assert_eq!(read.issued, NOW.after(25 * HOUR));
    assert!(statement(|one| one.policy_digest = vec![0; 32].into()).is_err());
    assert!(statement(|one| one.trust_domain = "example.com".to_owned()).is_err());
}
