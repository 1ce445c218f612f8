//! Signer policy: whose signatures count, and that this is still so.
//!
//! A policy lists signers and how many of them a change needs. The first one a node holds is pinned by
//! digest in its join token ([`TrustedPolicy::establish`]); each later one has a higher version and is
//! signed by the threshold of the one before ([`TrustedPolicy::update`]), so a collector can neither
//! change it nor go back. A freshness statement, signed by any one listed signer, bounds how long a
//! collector could hide a change: a node takes no job once it has run out (the timestamp role of TUF).

use std::{collections::BTreeSet, time::Duration};

use nexus_proto::{
    agent::v1 as wire,
    limits::{self, SIGNERS},
    time::Timestamp,
};
use prost::{Message as _, bytes::Bytes};

use crate::{
    dsse::{self, DsseError, VerifiedPayload, payload_type},
    sha256,
    signing::{Signer, SigningError, SigningKey},
    spiffe::{self, SpiffeError},
};

/// How far a signer's clock may be ahead. A node's own is within its certificate's dates, or it could
/// not have connected.
pub const CLOCK_DIFFERENCE: Duration = Duration::from_secs(24 * 3600);

/// A policy or freshness statement that is not to be believed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The signatures do not hold.
    #[error("the signatures of the {what}")]
    Signature {
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: DsseError,
    },
    /// No such message.
    #[error("the {what} is no valid message")]
    Encoding {
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// Larger than any policy.
    #[error("the signer policy has {0} bytes, at most {max} are allowed", max = limits::POLICY_BYTES)]
    TooLarge(usize),
    /// An envelope of another kind.
    #[error("the envelope holds `{0}` instead of a signer policy")]
    Type(String),
    /// Not what the token pins.
    #[error("the signer policy's SHA-256 is {found}, but {pinned} was pinned")]
    Pin {
        /// Of the policy.
        found: String,
        /// What was asked for.
        pinned: String,
    },
    /// Of another fleet.
    #[error("the {what} is of the trust domain `{found}`, this is `{expected}`")]
    TrustDomain {
        /// Which document.
        what: &'static str,
        /// The document's.
        found: String,
        /// Ours.
        expected: String,
    },
    /// Not newer.
    #[error("the signer policy has version {found}, but {held} is held already")]
    Version {
        /// Of the policy.
        found: u64,
        /// Ours.
        held: u64,
    },
    /// The first policy has version 1.
    #[error("the first signer policy has version {0} instead of 1")]
    First(u64),
    /// A threshold that cannot be met, or no signer.
    #[error(
        "the signer policy has {signers} signers (1 to {SIGNERS} are allowed) and a threshold of {threshold}"
    )]
    Threshold {
        /// How many are listed.
        signers: usize,
        /// How many a change needs.
        threshold: u32,
    },
    /// A key or name twice.
    #[error("the signer `{0}` or their key is listed twice")]
    Twice(String),
    /// A signer that is none.
    #[error("a signer of the policy")]
    Signer(#[from] SigningError),
    /// A trust domain that is none.
    #[error("the signer policy's trust domain")]
    Domain(#[source] SpiffeError),
    /// A statement about another policy.
    #[error(
        "the freshness statement is about version {found} of the signer policy, or one of other content; version {held} is held"
    )]
    OtherPolicy {
        /// The statement's version.
        found: u64,
        /// Ours.
        held: u64,
    },
    /// Nobody said lately that the policy still holds.
    #[error(
        "the signer policy's freshness ran out at {expires}, it is {now}: an operator renews it by `nexusctl login`"
    )]
    Stale {
        /// Its end.
        expires: Timestamp,
        /// The present.
        now: Timestamp,
    },
    /// Made later than anybody's clock.
    #[error(
        "the freshness statement was issued at {issued}, far after the present {now}: set the clock that is wrong"
    )]
    Future {
        /// When it says it was made.
        issued: Timestamp,
        /// The present.
        now: Timestamp,
    },
    /// Longer than any statement may hold.
    #[error("the freshness statement holds from {issued} to {expires}, longer than {max} days", max = limits::FRESHNESS_LIFE.as_secs() / 86_400)]
    Life {
        /// Its beginning.
        issued: Timestamp,
        /// Its end.
        expires: Timestamp,
    },
}

/// Who may sign, as a document. Not trusted by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerPolicy {
    /// Rises with every change, from 1.
    pub version: u64,
    /// The fleet.
    pub trust_domain: String,
    /// Signatures that a change needs.
    pub threshold: u32,
    /// Whose signatures count.
    pub signers: Vec<Signer>,
    /// When it was made, by its maker's clock.
    pub created: Timestamp,
}

impl SignerPolicy {
    /// Signs it; further signatures by [`dsse::add_signature`].
    pub fn sign(&self, key: &SigningKey) -> Result<wire::Envelope, PolicyError> {
        self.check()?;
        let payload = wire::SignerPolicy {
            version: self.version,
            trust_domain: self.trust_domain.clone(),
            threshold: self.threshold,
            signers: self.signers.iter().map(Signer::to_wire).collect(),
            created_ms: self.created.as_ms(),
        };
        Ok(dsse::sign(
            key,
            payload_type::POLICY,
            payload.encode_to_vec().into(),
        ))
    }

    fn decode(payload: &Bytes) -> Result<Self, PolicyError> {
        check_size(payload)?;
        let policy = wire::SignerPolicy::decode(payload.clone()).map_err(|source| {
            PolicyError::Encoding {
                what: "signer policy",
                source,
            }
        })?;
        let policy = Self {
            version: policy.version,
            trust_domain: policy.trust_domain,
            threshold: policy.threshold,
            signers: policy
                .signers
                .iter()
                .take(SIGNERS + 1)
                .map(Signer::from_wire)
                .collect::<Result<_, _>>()?,
            created: Timestamp(policy.created_ms),
        };
        policy.check()?;
        Ok(policy)
    }

    fn check(&self) -> Result<(), PolicyError> {
        spiffe::check_trust_domain(&self.trust_domain).map_err(PolicyError::Domain)?;
        let reachable = usize::try_from(self.threshold).is_ok_and(|threshold| {
            (1..=self.signers.len().min(limits::SIGNATURES)).contains(&threshold)
        });
        if !reachable || self.signers.len() > SIGNERS {
            return Err(PolicyError::Threshold {
                signers: self.signers.len(),
                threshold: self.threshold,
            });
        }
        if self.version == 0 {
            return Err(PolicyError::First(0));
        }
        let (mut names, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for signer in &self.signers {
            if !names.insert(&signer.name) || !keys.insert(signer.public_key) {
                return Err(PolicyError::Twice(signer.name.clone()));
            }
        }
        Ok(())
    }
}

/// A policy that this program believes, with the envelope it came in.
#[derive(Debug, Clone, PartialEq)]
pub struct TrustedPolicy {
    policy: SignerPolicy,
    envelope: wire::Envelope,
    digest: [u8; 32],
}

impl TrustedPolicy {
    /// Believes a policy because its payload has the pinned SHA-256: that of a join token, or that of a
    /// policy this program believed before and has stored.
    pub fn establish(
        envelope: wire::Envelope,
        pin: &[u8; 32],
        trust_domain: &str,
    ) -> Result<Self, PolicyError> {
        if envelope.payload_type != payload_type::POLICY {
            return Err(PolicyError::Type(
                envelope.payload_type.escape_debug().take(80).collect(),
            ));
        }
        // Before anything is parsed.
        check_size(&envelope.payload)?;
        let found = sha256(&envelope.payload);
        if found != *pin {
            return Err(PolicyError::Pin {
                found: crate::hex(&found),
                pinned: crate::hex(pin),
            });
        }
        let policy = SignerPolicy::decode(&envelope.payload)?;
        Self::of(policy, envelope, trust_domain)
    }

    /// A fleet's first policy, as the first operator hands it in at login: version 1, signed by the
    /// threshold of its own signers, which proves that they have the keys.
    ///
    /// The signers are read before the signature holds, because nothing else could say who they are.
    /// What lets the policy in is the operator code that comes with it.
    pub fn first(envelope: wire::Envelope, trust_domain: &str) -> Result<Self, PolicyError> {
        if envelope.payload_type != payload_type::POLICY {
            return Err(PolicyError::Type(
                envelope.payload_type.escape_debug().take(80).collect(),
            ));
        }
        let policy = SignerPolicy::decode(&envelope.payload)?;
        if policy.version != 1 {
            return Err(PolicyError::First(policy.version));
        }
        verify(
            &envelope,
            "signer policy",
            &policy.signers,
            policy.threshold,
        )?;
        Self::of(policy, envelope, trust_domain)
    }

    /// The policy after this one: newer, and signed by this one's threshold.
    pub fn update(&self, envelope: wire::Envelope) -> Result<Self, PolicyError> {
        let verified = verify(
            &envelope,
            "signer policy",
            &self.policy.signers,
            self.policy.threshold,
        )?;
        let policy = SignerPolicy::decode(verified.payload())?;
        if policy.version <= self.policy.version {
            return Err(PolicyError::Version {
                found: policy.version,
                held: self.policy.version,
            });
        }
        Self::of(policy, envelope, &self.policy.trust_domain)
    }

    fn of(
        policy: SignerPolicy,
        envelope: wire::Envelope,
        trust_domain: &str,
    ) -> Result<Self, PolicyError> {
        check_trust_domain("signer policy", &policy.trust_domain, trust_domain)?;
        Ok(Self {
            digest: sha256(&envelope.payload),
            policy,
            envelope,
        })
    }

    /// Says, as one of the signers, that this policy is in force at `now`.
    #[must_use]
    pub fn sign_freshness(&self, key: &SigningKey, now: Timestamp) -> wire::Envelope {
        let payload = wire::PolicyFreshness {
            policy_version: self.policy.version,
            policy_digest: self.digest.to_vec().into(),
            issued_ms: now.as_ms(),
            expires_ms: now.after(limits::FRESHNESS_LIFE).as_ms(),
            trust_domain: self.policy.trust_domain.clone(),
        };
        dsse::sign(key, payload_type::FRESHNESS, payload.encode_to_vec().into())
    }

    /// Checks a statement about this policy: as [`TrustedPolicy::read_freshness`], and not run out at `now`. One issued
    /// a little later than `now` is taken, since the signer's clock may be the right one; one issued much
    /// later is not, or a signer could stock up statements for the time after a change.
    pub fn verify_freshness(
        &self,
        envelope: &wire::Envelope,
        now: Timestamp,
    ) -> Result<Freshness, PolicyError> {
        let freshness = self.read_freshness(envelope)?;
        if freshness.issued > now.after(CLOCK_DIFFERENCE) {
            return Err(PolicyError::Future {
                issued: freshness.issued,
                now,
            });
        }
        freshness.check(now)?;
        Ok(freshness)
    }

    /// Reads a statement about this policy: signed by a listed signer, not longer than allowed. Whether it
    /// holds now is for [`Freshness::check`] to say.
    pub fn read_freshness(&self, envelope: &wire::Envelope) -> Result<Freshness, PolicyError> {
        let verified = dsse::verify(envelope, payload_type::FRESHNESS, &self.policy.signers, 1)
            .map_err(|source| PolicyError::Signature {
                what: "freshness statement",
                source,
            })?;
        let statement =
            wire::PolicyFreshness::decode(verified.payload().clone()).map_err(|source| {
                PolicyError::Encoding {
                    what: "freshness statement",
                    source,
                }
            })?;
        check_trust_domain(
            "freshness statement",
            &statement.trust_domain,
            &self.policy.trust_domain,
        )?;
        if statement.policy_version != self.policy.version
            || statement.policy_digest.as_ref() != self.digest
        {
            return Err(PolicyError::OtherPolicy {
                found: statement.policy_version,
                held: self.policy.version,
            });
        }
        let freshness = Freshness {
            issued: Timestamp(statement.issued_ms),
            expires: Timestamp(statement.expires_ms),
        };
        if freshness.expires > freshness.issued.after(limits::FRESHNESS_LIFE) {
            return Err(PolicyError::Life {
                issued: freshness.issued,
                expires: freshness.expires,
            });
        }
        Ok(freshness)
    }

    /// The document.
    #[must_use]
    pub fn policy(&self) -> &SignerPolicy {
        &self.policy
    }

    /// What to store and to hand on.
    #[must_use]
    pub fn envelope(&self) -> &wire::Envelope {
        &self.envelope
    }

    /// SHA-256 of the payload: what join tokens pin.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.policy.version
    }

    /// Whose signatures count.
    #[must_use]
    pub fn signers(&self) -> &[Signer] {
        &self.policy.signers
    }

    /// The fleet.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.policy.trust_domain
    }
}

/// How long a policy is known to be in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// When a signer said so, by that signer's clock.
    pub issued: Timestamp,
    /// Until when it holds.
    pub expires: Timestamp,
}

impl Freshness {
    /// Whether it still holds at `now`, which should be the later of the clock and the newest verified time.
    pub fn check(&self, now: Timestamp) -> Result<(), PolicyError> {
        if now < self.expires {
            Ok(())
        } else {
            Err(PolicyError::Stale {
                expires: self.expires,
                now,
            })
        }
    }
}

fn verify(
    envelope: &wire::Envelope,
    what: &'static str,
    signers: &[Signer],
    threshold: u32,
) -> Result<VerifiedPayload, PolicyError> {
    dsse::verify(envelope, payload_type::POLICY, signers, threshold)
        .map_err(|source| PolicyError::Signature { what, source })
}

fn check_size(payload: &Bytes) -> Result<(), PolicyError> {
    if payload.len() > limits::POLICY_BYTES {
        return Err(PolicyError::TooLarge(payload.len()));
    }
    Ok(())
}

fn check_trust_domain(what: &'static str, found: &str, expected: &str) -> Result<(), PolicyError> {
    if found == expected {
        Ok(())
    } else {
        Err(PolicyError::TrustDomain {
            what,
            found: found.escape_debug().take(100).collect(),
            expected: expected.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
