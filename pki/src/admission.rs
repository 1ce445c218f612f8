//! Admission: the one function that turns a presented chain into an identity.
//!
//! It runs inside every TLS handshake, on both sides, and again on every connection that is
//! established, because a resumed session shows a chain that was verified in the past. A peer is
//! admitted when its leaf has exactly one name, a SPIFFE id of our trust domain; its role is among
//! those allowed; the chain leads over one intermediate to our root, within all dates and usages; the
//! intermediate and the leaf have the purpose of that very role; and neither id nor serial is denied.
//!
//! A [`Refusal`] says which of these failed, with what was found and what was wanted.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use nexus_proto::{limits, time::Timestamp};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::{
    authority::purpose,
    certificate::{CertificateError, Claims, Name, Root, Serial},
    spiffe::{Role, SpiffeError, SpiffeId},
};

/// Every key in a fleet's chains is P-256.
const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[webpki::aws_lc_rs::ECDSA_P256_SHA256];

/// Who a verified chain says the peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its one name.
    pub spiffe: SpiffeId,
    /// The role of the name and of the intermediate that issued it.
    pub role: Role,
    /// The leaf's serial number.
    pub serial: Serial,
    /// A session ends then at the latest.
    pub not_after: Timestamp,
}

/// Why a peer was not admitted. Its `Debug` is its `Display`: TLS libraries print causes with `Debug`.
#[derive(Clone, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The peer showed nothing.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// More than a chain of ours has.
    #[error("the peer presented {0} certificates, at most {max} are looked at", max = limits::CHAIN_CERTIFICATES)]
    TooManyCertificates(usize),
    /// The leaf cannot be read.
    #[error("the peer's certificate cannot be read: {0}")]
    Unreadable(CertificateError),
    /// No name.
    #[error("the peer's certificate has no URI as its subject alternative name")]
    NoName,
    /// A second name, whatever its kind.
    #[error("the peer's certificate has {0} subject alternative names instead of one SPIFFE id")]
    SeveralNames(usize),
    /// One name of another kind.
    #[error("the name in the peer's certificate is no URI")]
    OtherName,
    /// A URI that is no SPIFFE id of ours.
    #[error("the peer's name `{uri}` is no SPIFFE id of ours: {why}")]
    BadName {
        /// The URI.
        uri: String,
        /// What is wrong with it.
        why: SpiffeError,
    },
    /// Another fleet.
    #[error("the peer {spiffe} is not of the trust domain `{expected}`")]
    TrustDomain {
        /// Who it says it is.
        spiffe: SpiffeId,
        /// Ours.
        expected: String,
    },
    /// Not a role that may speak here.
    #[error("the peer {spiffe} has the role {role} by its name, but only {} may speak here", names(allowed), role = spiffe.role())]
    WrongRole {
        /// Who it says it is.
        spiffe: SpiffeId,
        /// Who may.
        allowed: Vec<Role>,
    },
    /// Too old, by our clock.
    #[error(
        "the certificate of {spiffe} expired at {not_after}, and this machine's clock says {now} ({} later): renew it, or set the clock that is wrong",
        span(now.since(*not_after))
    )]
    Expired {
        /// Who.
        spiffe: SpiffeId,
        /// Its end.
        not_after: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// Too new, by our clock.
    #[error(
        "the certificate of {spiffe} is valid from {not_before}, but this machine's clock says {now} ({} earlier): one of the two machines' clocks is wrong",
        span(not_before.since(*now))
    )]
    NotYetValid {
        /// Who.
        spiffe: SpiffeId,
        /// Its beginning.
        not_before: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// Does not chain to our root.
    #[error(
        "the certificate of {spiffe} was not issued under this fleet's root: enrol with this fleet, or check which collector answers at this address"
    )]
    ForeignCa {
        /// Who it says it is.
        spiffe: SpiffeId,
    },
    /// Issued by the intermediate of another role.
    #[error("the certificate of {spiffe} was not issued by the {role}s' intermediate", role = spiffe.role())]
    WrongIssuer {
        /// Who it says it is.
        spiffe: SpiffeId,
    },
    /// The chain leads to the root, but not over exactly one intermediate.
    #[error("the certificate of {spiffe} is {found} intermediates away from the root instead of 1")]
    Depth {
        /// Who it says it is.
        spiffe: SpiffeId,
        /// Intermediates on the way.
        found: usize,
    },
    /// A key usage that does not fit the role.
    #[error("the certificate of {spiffe} lacks the key usages of {role}s", role = spiffe.role())]
    WrongUsage {
        /// Who it says it is.
        spiffe: SpiffeId,
    },
    /// Denied by this fleet's operators.
    #[error("{spiffe} (certificate {serial}) was revoked")]
    Revoked {
        /// Who.
        spiffe: SpiffeId,
        /// Its certificate.
        serial: Serial,
    },
    /// The server does not present the root that was pinned.
    #[error(
        "the server does not present the root certificate with the pinned SHA-256 {pinned}: the token or code is of another fleet, or someone is in between"
    )]
    Pin {
        /// In hex.
        pinned: String,
    },
    /// The presented root has the right digest but is no usable root.
    #[error("the pinned root certificate cannot be used: {0}")]
    BadRoot(CertificateError),
    /// Anything else that is wrong with the chain.
    #[error("the certificate chain of {spiffe} is not valid: {why}")]
    Chain {
        /// Who it says it is.
        spiffe: SpiffeId,
        /// What webpki says.
        why: String,
    },
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What admits peers of one fleet. Clones share the deny list.
#[derive(Clone)]
pub struct Admission {
    trust_domain: Arc<str>,
    anchor: Arc<TrustAnchor<'static>>,
    root: Root,
    denied: Arc<RwLock<Denied>>,
}

/// Identities and single certificates that are not admitted whatever their dates say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Denied {
    /// By name.
    pub identities: BTreeSet<SpiffeId>,
    /// By serial number.
    pub serials: BTreeSet<Serial>,
}

impl Admission {
    /// For the fleet with this root and trust domain.
    #[must_use]
    pub fn new(root: &Root, trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            anchor: Arc::new(root.anchor()),
            root: root.clone(),
            denied: Arc::default(),
        }
    }

    /// The fleet's root.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The fleet's name.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Replaces the deny list of this and all clones.
    pub fn set_denied(&self, denied: Denied) {
        *self.denied.write().unwrap_or_else(PoisonError::into_inner) = denied;
    }

    /// Denies an identity from now on, here and in all clones.
    pub fn deny(&self, spiffe: SpiffeId) {
        self.denied
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .identities
            .insert(spiffe);
    }

    /// Decides on a peer by the chain it presented, leaf first.
    pub fn admit(
        &self,
        chain: &[CertificateDer<'_>],
        allowed: &[Role],
        now: Timestamp,
    ) -> Result<PeerIdentity, Refusal> {
        self.admit_late(chain, allowed, now, Duration::ZERO)
    }

    /// Like [`Admission::admit`], for a leaf that may have expired up to `grace` ago. Only renewal with
    /// the old key uses it, with [`limits::RENEW_EXPIRED`].
    pub(crate) fn admit_late(
        &self,
        chain: &[CertificateDer<'_>],
        allowed: &[Role],
        now: Timestamp,
        grace: Duration,
    ) -> Result<PeerIdentity, Refusal> {
        let (leaf, others) = chain.split_first().ok_or(Refusal::NoCertificate)?;
        if chain.len() > limits::CHAIN_CERTIFICATES {
            return Err(Refusal::TooManyCertificates(chain.len()));
        }
        let claims = Claims::of(leaf).map_err(Refusal::Unreadable)?;
        let spiffe = self.name_of(&claims)?;
        let role = spiffe.role();
        if !allowed.contains(&role) {
            return Err(Refusal::WrongRole {
                spiffe,
                allowed: allowed.to_vec(),
            });
        }
        // The chain is judged at a moment within the leaf's dates, the dates by themselves: a foreign
        // certificate is called foreign even when it is also old.
        let moment = now.min(claims.not_after).max(claims.not_before);
        self.verify_chain(leaf, others, &claims, &spiffe, moment)?;
        if now > claims.not_after.after(grace) {
            return Err(Refusal::Expired {
                spiffe,
                not_after: claims.not_after,
                now,
            });
        }
        if now < claims.not_before {
            return Err(Refusal::NotYetValid {
                spiffe,
                not_before: claims.not_before,
                now,
            });
        }
        let denied = self.denied.read().unwrap_or_else(PoisonError::into_inner);
        if denied.identities.contains(&spiffe) || denied.serials.contains(&claims.serial) {
            return Err(Refusal::Revoked {
                spiffe,
                serial: claims.serial,
            });
        }
        Ok(PeerIdentity {
            spiffe,
            role,
            serial: claims.serial,
            not_after: claims.not_after,
        })
    }

    fn name_of(&self, claims: &Claims) -> Result<SpiffeId, Refusal> {
        let uri = match claims.names.as_slice() {
            [] => return Err(Refusal::NoName),
            [Name::Uri(uri)] => uri,
            [Name::Other] => return Err(Refusal::OtherName),
            several => return Err(Refusal::SeveralNames(several.len())),
        };
        let spiffe = SpiffeId::parse(uri).map_err(|why| Refusal::BadName {
            uri: uri.escape_debug().take(200).collect(),
            why,
        })?;
        if spiffe.trust_domain() != &*self.trust_domain {
            return Err(Refusal::TrustDomain {
                spiffe,
                expected: self.trust_domain.to_string(),
            });
        }
        Ok(spiffe)
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        claims: &Claims,
        spiffe: &SpiffeId,
        moment: Timestamp,
    ) -> Result<(), Refusal> {
        let role = spiffe.role();
        let refuse = |error| refusal_of_chain(spiffe, moment, error);
        let leaf = EndEntityCert::try_from(leaf).map_err(refuse)?;
        let moment = UnixTime::since_unix_epoch(moment.since(Timestamp(0)));
        let usages = match role {
            Role::Agent | Role::Operator => [Some(KeyUsage::client_auth()), None],
            // A collector serves agents and operators, and calls other collectors.
            Role::Collector => [Some(KeyUsage::server_auth()), Some(KeyUsage::client_auth())],
        };
        for usage in usages.into_iter().flatten() {
            let path = leaf
                .verify_for_usage(
                    ALGORITHMS,
                    std::slice::from_ref(&*self.anchor),
                    others,
                    moment,
                    usage,
                    None,
                    None,
                )
                .map_err(refuse)?;
            let mut intermediates = path.intermediate_certificates();
            let (Some(intermediate), None) = (intermediates.next(), intermediates.next()) else {
                return Err(Refusal::Depth {
                    spiffe: spiffe.clone(),
                    found: path.intermediate_certificates().count(),
                });
            };
            let issuer = Claims::of(&intermediate.der()).map_err(Refusal::Unreadable)?;
            // Exactly one purpose of ours: an intermediate for two roles would be one for none.
            if issuer.purposes != [purpose(role)] {
                return Err(Refusal::WrongIssuer {
                    spiffe: spiffe.clone(),
                });
            }
        }
        if claims.purposes != [purpose(role)] {
            return Err(Refusal::WrongUsage {
                spiffe: spiffe.clone(),
            });
        }
        Ok(())
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("trust_domain", &self.trust_domain)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

fn refusal_of_chain(spiffe: &SpiffeId, moment: Timestamp, error: webpki::Error) -> Refusal {
    let spiffe = spiffe.clone();
    match error {
        webpki::Error::UnknownIssuer => Refusal::ForeignCa { spiffe },
        // A signature that does not hold under the name of one of our issuers.
        webpki::Error::InvalidSignatureForPublicKey => Refusal::ForeignCa { spiffe },
        // The leaf is valid at `moment` by construction, so these are the intermediate's dates.
        webpki::Error::CertExpired { not_after, .. } => Refusal::Expired {
            spiffe,
            not_after: timestamp(not_after),
            now: moment,
        },
        webpki::Error::CertNotValidYet { not_before, .. } => Refusal::NotYetValid {
            spiffe,
            not_before: timestamp(not_before),
            now: moment,
        },
        webpki::Error::RequiredEkuNotFoundContext(_) => Refusal::WrongUsage { spiffe },
        other => Refusal::Chain {
            spiffe,
            why: other.to_string(),
        },
    }
}

fn timestamp(time: UnixTime) -> Timestamp {
    Timestamp(0).after(Duration::from_secs(time.as_secs()))
}

fn names(roles: &[Role]) -> String {
    let names: Vec<String> = roles.iter().map(|role| format!("{role}s")).collect();
    names.join(" and ")
}

/// A span in its two largest units.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests;
