//! The signer policy as this machine believes it: whose signatures nodes obey.
//!
//! A policy is believed because this operator made it, because its digest came from another operator, or because
//! it follows, signed by its predecessor's signers, from one that was believed before. The collector only passes
//! it on. What this machine says of it, that it is still in force, is said only of the newest one there is, and
//! only by a clock that can be right.

use nexus_pki::{
    policy::{PolicyError, TrustedPolicy},
    sha256,
    signing::{PublicKey, SigningKey},
};
use nexus_proto::{
    agent::v1::Envelope,
    limits,
    operator::v1::{GetTrustRequest, Trust},
};

use crate::{
    connection::{Collector, fault},
    fault::{Fault, Outcome},
    profile::Profile,
    session::Session,
    skew::Skew,
    terminal,
};

/// What vouches for a policy this machine has not seen before.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Voucher {
    /// Its SHA-256, as another operator told it.
    Digest([u8; 32]),
    /// Whoever sits at the terminal.
    Person,
    /// The collector: it is this machine's own.
    Collector,
}

/// A fleet's policy at the first login of this machine. `made` is the one this login offered as the fleet's first.
pub(crate) async fn first_seen(
    answer: Envelope,
    made: Option<&TrustedPolicy>,
    own: &PublicKey,
    trust_domain: &str,
    voucher: Voucher,
) -> Outcome<TrustedPolicy> {
    let digest = sha256(&answer.payload);
    if let Some(made) = made.filter(|made| made.digest() == digest) {
        return Ok(made.clone());
    }
    let pin = match voucher {
        Voucher::Digest(pin) => pin,
        Voucher::Person | Voucher::Collector => digest,
    };
    let policy = TrustedPolicy::establish(answer, &pin, trust_domain)
        .map_err(|error| unbelievable(&error))?;
    // One that lists this machine's key alone was made by a login of this machine that was not finished.
    let own_alone = policy
        .signers()
        .iter()
        .all(|signer| signer.public_key == *own);
    if own_alone || !matches!(voucher, Voucher::Person) {
        return Ok(policy);
    }
    terminal::warn(
        "this fleet has a signer policy already, which this machine has not seen before",
    );
    show(&policy, own);
    if terminal::is_answered() && terminal::asked("Do the fleet's operators know it so?").await? {
        return Ok(policy);
    }
    Err(
        Fault::new("login", "nobody vouches for the signer policy the collector shows").hint(
            "`nexusctl config` of another operator prints policy_sha256; log in with a new code and --policy-sha256",
        ),
    )
}

/// The newer of the policy believed so far and the one the collector has.
pub(crate) fn newer(
    known: &TrustedPolicy,
    answer: Envelope,
    own: &PublicKey,
) -> Outcome<TrustedPolicy> {
    if known.digest() == sha256(&answer.payload) {
        return Ok(known.clone());
    }
    match known.update(answer) {
        Ok(policy) => {
            terminal::warn(&format!(
                "the signer policy changed since version {}",
                known.version()
            ));
            show(&policy, own);
            Ok(policy)
        }
        // A collector restored from a backup; it is told of ours.
        Err(PolicyError::Version { found, held }) if found < held => {
            terminal::warn(&format!(
                "the collector has version {found} of the signer policy, this machine knows version {held}"
            ));
            Ok(known.clone())
        }
        Err(error) => Err(unbelievable(&error)),
    }
}

/// Whether it is the policy another operator vouched for.
pub(crate) fn is_pinned(policy: &TrustedPolicy, pin: &[u8; 32]) -> Outcome {
    if policy.digest() == *pin {
        return Ok(());
    }
    let (found, pinned) = (nexus_pki::hex(&policy.digest()), nexus_pki::hex(pin));
    Err(unbelievable(&PolicyError::Pin { found, pinned }))
}

/// Version, digest and signers, for people to compare.
pub(crate) fn show(policy: &TrustedPolicy, own: &PublicKey) {
    terminal::say(&format!(
        "signer policy: version {}, SHA-256 {}",
        policy.version(),
        nexus_pki::hex(&policy.digest())
    ));
    for signer in policy.signers() {
        let key = signer.public_key.key_id();
        let note = if signer.public_key == *own {
            " (this machine)"
        } else {
            ""
        };
        terminal::say(&format!("signer: {}, key {key}{note}", signer.name));
    }
}

/// Whether the policy lists the key under this name.
pub(crate) fn lists(policy: &TrustedPolicy, name: &str, key: &PublicKey) -> bool {
    let mut signers = policy.signers().iter();
    signers.any(|signer| signer.name == name && signer.public_key == *key)
}

/// Learns what policy is in force by now, and keeps it.
pub(crate) async fn update(collector: &mut Collector) -> Outcome {
    let request = collector.request(GetTrustRequest {});
    let trust = collector
        .client
        .get_trust(request)
        .await
        .map_err(fault)?
        .into_inner();
    let Some(answer) = trust.policy else {
        return Ok(());
    };
    let own = collector.profile.signing_key()?.public_key();
    let policy = newer(&collector.profile.policy, answer, &own)?;
    if policy.digest() != collector.profile.policy.digest() {
        collector.profile.policy = policy;
        collector.profile.store_policy()?;
    }
    Ok(())
}

/// Says anew that the policy is current. Only a listed signer can; nothing fails when it cannot.
pub(crate) async fn refresh(
    session: &Session,
    profile: Profile,
    key: &SigningKey,
) -> Outcome<Profile> {
    let mut collector = Collector::plain(session, profile).await?;
    update(&mut collector).await?;
    let profile = &collector.profile;
    if !lists(&profile.policy, &profile.name, &key.public_key()) {
        return Ok(collector.profile);
    }
    let skew = Skew::ask(session, &mut collector).await?;
    if skew.exceeds(limits::CLOCK_SKEW) {
        terminal::warn(&format!(
            "{skew}: the signer policy was not said to be current; set the clock that is wrong and log in again"
        ));
        return Ok(collector.profile);
    }
    let policy = &collector.profile.policy;
    let trust = Trust {
        policy: Some(policy.envelope().clone()),
        freshness: Some(policy.sign_freshness(key, session.now())),
        ..Trust::default()
    };
    let request = collector.request(trust);
    collector.client.put_trust(request).await.map_err(fault)?;
    Ok(collector.profile)
}

fn unbelievable(error: &PolicyError) -> Fault {
    Fault::because("believe the collector's signer policy", error)
        .hint("find out who changed the signers before you trust this collector again")
}
