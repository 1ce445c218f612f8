//! The fleet's certificate authority: a root, and an intermediate for each role.
//!
//! In its folder: `root.pem` (the root's certificate), `root.key` (its key; may be taken offline), and
//! `agents.pem`, `collectors.pem`, `operators.pem` (an intermediate's key and certificate), all 0600.
//! The folder appears whole or not at all, and nothing here ever overwrites a key of it.
//!
//! An intermediate has path length 0 and extended key usages of its own: TLS client (agents,
//! operators) or server and client (collectors), and a purpose that only its role has. webpki checks
//! the former and [`crate::admission`] the latter, so that no intermediate can issue for another role.
//! Leaves are dated back by [`limits::CLOCK_SKEW`] and never outlive their intermediate.

use std::{path::Path, time::Duration};

use nexus_proto::{ids::NodeId, limits, time::Timestamp};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::{
    NoRandomness,
    admission::{Admission, Refusal},
    certificate::{CertificateError, Claims, Root, Serial, pem},
    csr::{self, CsrError, PrivateKey},
    files::{self, FileError, NewFolder},
    leaf::{self, Leaf, LeafError},
    spiffe::{self, Role, SpiffeError, SpiffeId},
};

/// Life of the root.
pub const ROOT_LIFE: Duration = Duration::from_secs(3652 * 24 * 3600);
/// Life of the intermediates.
pub const INTERMEDIATE_LIFE: Duration = Duration::from_secs(3 * 365 * 24 * 3600);

/// The last second of the year 9999, after which X.509 has no dates (RFC 5280, 4.1.2.5).
const YEAR_9999: Timestamp = Timestamp(253_402_300_799_000);

const ROOT_FILE: &str = "root.pem";
const ROOT_KEY_FILE: &str = "root.key";

/// An authority that cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// There is one already.
    #[error("{0} already holds a certificate authority")]
    Exists(std::path::PathBuf),
    /// A file.
    #[error("the certificate authority's files")]
    File(#[from] FileError),
    /// An intermediate's file.
    #[error("the {role}s' intermediate")]
    Intermediate {
        /// Whose.
        role: Role,
        /// Why.
        #[source]
        source: LeafError,
    },
    /// The root's file.
    #[error("the root certificate")]
    Root(#[source] CertificateError),
    /// A certificate just made cannot be read.
    #[error("a certificate just issued")]
    Issued(#[source] CertificateError),
    /// A key or request.
    #[error("the key to certify")]
    Key(#[from] CsrError),
    /// A name.
    #[error("the name to certify")]
    Name(#[from] SpiffeError),
    /// The library refused to build a certificate.
    #[error("cannot build a certificate: {0}")]
    Build(String),
    /// The intermediate is too old to issue.
    #[error("the {role}s' intermediate is valid until {not_after}, it is {now}")]
    Expired {
        /// Whose.
        role: Role,
        /// Its end.
        not_after: Timestamp,
        /// The present.
        now: Timestamp,
    },
    /// What was issued would not be admitted: the files do not belong together.
    #[error("what the {role}s' intermediate issues would not be admitted")]
    Refused {
        /// Whose.
        role: Role,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// Dates that no certificate can have.
    #[error(
        "a certificate cannot be valid from {not_before} to {not_after}: set this machine's clock"
    )]
    Dates {
        /// The beginning.
        not_before: Timestamp,
        /// The end.
        not_after: Timestamp,
    },
    /// The system gave no random bytes.
    #[error("a serial number")]
    Random(#[from] NoRandomness),
    /// The new leaf does not fit its key.
    #[error("the new leaf")]
    Leaf(#[from] LeafError),
}

/// A certificate that was issued for someone's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The leaf, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// To whom.
    pub spiffe: SpiffeId,
    /// The leaf's serial number.
    pub serial: Serial,
    /// Valid from then.
    pub not_before: Timestamp,
    /// Valid until then.
    pub not_after: Timestamp,
}

impl Issued {
    /// The chain as messages carry it.
    #[must_use]
    pub fn chain_to_wire(&self) -> Vec<prost::bytes::Bytes> {
        leaf::chain_to_wire(&self.chain)
    }
}

/// How long leaves live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// Agents' leaves.
    pub agent: Duration,
    /// Collectors' leaves.
    pub collector: Duration,
    /// Operators' leaves.
    pub operator: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        Self {
            agent: limits::LEAF_LIFE,
            collector: limits::LEAF_LIFE,
            operator: limits::OPERATOR_LIFE,
        }
    }
}

/// The online half of the authority; the root's key is not needed to issue leaves.
#[derive(Debug)]
pub struct Authority {
    trust_domain: String,
    root: Root,
    admission: Admission,
    lives: Lives,
    agents: Intermediate,
    collectors: Intermediate,
    operators: Intermediate,
}

#[derive(Debug)]
struct Intermediate {
    role: Role,
    key: PrivateKey,
    certificate: CertificateDer<'static>,
    not_after: Timestamp,
}

impl Authority {
    /// Makes an authority in `dir`, which must be empty or not exist.
    pub fn create(dir: &Path, trust_domain: &str, now: Timestamp) -> Result<Self, AuthorityError> {
        spiffe::check_trust_domain(trust_domain)?;
        if Self::exists(dir) {
            return Err(AuthorityError::Exists(dir.to_owned()));
        }
        let new = NewFolder::begin(dir)?;

        let key = PrivateKey::generate()?;
        let not_before = now.before(limits::CLOCK_SKEW);
        let mut params = params("root", trust_domain, not_before, now.after(ROOT_LIFE))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = CA_USAGES.to_vec();
        let pair = key.pair()?;
        let certificate = params.self_signed(&pair).map_err(build)?;
        let root = Root::from_der(certificate.der()).map_err(AuthorityError::Root)?;
        let issuer = Issuer::new(params, pair);
        for role in Role::ALL {
            let (key, certificate) = new_intermediate(role, trust_domain, &issuer, now)?;
            let mut text = Zeroizing::new(pem("PRIVATE KEY", key.pkcs8()));
            text.push_str(&pem("CERTIFICATE", certificate.der()));
            files::write_private(new.filling(), &file_name(role), text.as_bytes())?;
        }
        let text = Zeroizing::new(pem("PRIVATE KEY", key.pkcs8()));
        files::write_private(new.filling(), ROOT_KEY_FILE, text.as_bytes())?;
        files::write_private(new.filling(), ROOT_FILE, root.to_pem().as_bytes())?;
        Self::open(new.filling(), trust_domain, now)?;
        new.finish()?;
        Self::open(dir, trust_domain, now)
    }

    /// Whether `dir` holds an authority.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        dir.join(ROOT_FILE).exists()
    }

    /// Opens the authority in `dir`; its root's key may be absent.
    pub fn open(dir: &Path, trust_domain: &str, now: Timestamp) -> Result<Self, AuthorityError> {
        Self::open_with(dir, None, trust_domain, now)
    }

    /// The same with a folder of credentials, which the service manager has made for this program: an intermediate that
    /// is there, as `nexus.agents.pem` and so on, is not looked for in `dir`.
    pub fn open_with(
        dir: &Path,
        credentials: Option<&Path>,
        trust_domain: &str,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        spiffe::check_trust_domain(trust_domain)?;
        let root = Self::read_root(dir)?;
        let open = |role| Intermediate::open(dir, credentials, role);
        let authority = Self {
            admission: Admission::new(&root, trust_domain),
            agents: open(Role::Agent)?,
            collectors: open(Role::Collector)?,
            operators: open(Role::Operator)?,
            trust_domain: trust_domain.to_owned(),
            lives: Lives::default(),
            root,
        };
        for role in Role::ALL {
            authority.try_out(role, now)?;
        }
        Ok(authority)
    }

    /// The root of the authority in `dir`.
    pub fn read_root(dir: &Path) -> Result<Root, AuthorityError> {
        Root::from_pem(&files::read_trusted(&dir.join(ROOT_FILE))?).map_err(AuthorityError::Root)
    }

    /// The same authority with other lives of leaves, each at least a second.
    #[must_use]
    pub fn with_lives(mut self, lives: Lives) -> Self {
        self.lives = lives;
        self
    }

    /// The root's certificate.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The fleet's name.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What admits the certificates issued here; clones share one deny list.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Certifies an agent's key. The request's names are discarded.
    pub fn issue_agent(
        &self,
        csr_der: &[u8],
        node: NodeId,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let key = csr::check(csr_der)?;
        self.issue(&key, SpiffeId::agent(&self.trust_domain, node)?, now)
    }

    /// Certifies an operator's key. The request's names are discarded.
    pub fn issue_operator(
        &self,
        csr_der: &[u8],
        name: &str,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let key = csr::check(csr_der)?;
        self.issue(&key, SpiffeId::operator(&self.trust_domain, name)?, now)
    }

    /// Makes a collector's key and certifies it.
    pub fn issue_collector(
        &self,
        region: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<Leaf, AuthorityError> {
        let key = PrivateKey::generate()?;
        let spiffe = SpiffeId::collector(&self.trust_domain, region, id)?;
        let issued = self.issue(&key.pair()?, spiffe, now)?;
        Ok(Leaf::new(key, issued.chain)?)
    }

    /// Fails now, and not at the first handshake, when the files do not belong together.
    fn try_out(&self, role: Role, now: Timestamp) -> Result<(), AuthorityError> {
        let spiffe = match role {
            Role::Agent => SpiffeId::agent(&self.trust_domain, NodeId::random())?,
            Role::Collector => SpiffeId::collector(&self.trust_domain, "try", "out")?,
            Role::Operator => SpiffeId::operator(&self.trust_domain, "try-out")?,
        };
        let key = PrivateKey::generate()?;
        self.issue(&key.pair()?, spiffe, now).map(|_| ())
    }

    fn issue(
        &self,
        key: &impl PublicKeyData,
        spiffe: SpiffeId,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let role = spiffe.role();
        let (intermediate, life) = match role {
            Role::Agent => (&self.agents, self.lives.agent),
            Role::Collector => (&self.collectors, self.lives.collector),
            Role::Operator => (&self.operators, self.lives.operator),
        };
        if intermediate.not_after <= now {
            return Err(AuthorityError::Expired {
                role,
                not_after: intermediate.not_after,
                now,
            });
        }
        let uri = spiffe.to_string();
        let mut params = params(
            role.name(),
            &self.trust_domain,
            now.before(limits::CLOCK_SKEW),
            now.after(life).min(intermediate.not_after),
        )?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes(role);
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(build)?)];
        let certificate = params
            .signed_by(key, &intermediate.issuer(&self.trust_domain)?)
            .map_err(build)?;
        let claims = Claims::of(certificate.der()).map_err(AuthorityError::Issued)?;
        let chain = vec![certificate.der().clone(), intermediate.certificate.clone()];
        self.admission
            .admit(&chain, &[role], now)
            .map_err(|source| AuthorityError::Refused { role, source })?;
        Ok(Issued {
            chain,
            spiffe,
            serial: claims.serial,
            not_before: claims.not_before,
            not_after: claims.not_after,
        })
    }
}

impl Intermediate {
    fn open(dir: &Path, credentials: Option<&Path>, role: Role) -> Result<Self, AuthorityError> {
        let fail = |source| AuthorityError::Intermediate { role, source };
        let name = file_name(role);
        let credential = credentials.map(|folder| folder.join(format!("nexus.{name}")));
        let read = match credential.filter(|path| path.exists()) {
            Some(path) => files::read_credential(&path)
                .map_err(LeafError::from)
                .and_then(|text| leaf::parse_pem(Zeroizing::new(text))),
            None => leaf::read_pem(dir, &name),
        };
        let (key, chain) = read.map_err(fail)?;
        let [certificate] =
            <[_; 1]>::try_from(chain).map_err(|chain| fail(LeafError::Length(chain.len())))?;
        let claims = Claims::of(&certificate).map_err(|error| fail(error.into()))?;
        if claims.public_key != key.public_key()? {
            return Err(fail(LeafError::Mismatch));
        }
        Ok(Self {
            role,
            key,
            certificate,
            not_after: claims.not_after,
        })
    }

    /// An issuer is known by its subject and key alone, so the rest of its parameters does not matter.
    fn issuer(
        &self,
        trust_domain: &str,
    ) -> Result<Issuer<'static, rcgen::KeyPair>, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&ca_name(self.role), trust_domain);
        params.key_usages = CA_USAGES.to_vec();
        Ok(Issuer::new(params, self.key.pair()?))
    }
}

const CA_USAGES: [KeyUsagePurpose; 2] = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

fn new_intermediate(
    role: Role,
    trust_domain: &str,
    root: &Issuer<'_, rcgen::KeyPair>,
    now: Timestamp,
) -> Result<(PrivateKey, Certificate), AuthorityError> {
    let key = PrivateKey::generate()?;
    let mut params = params(
        &ca_name(role),
        trust_domain,
        now.before(limits::CLOCK_SKEW),
        now.after(INTERMEDIATE_LIFE),
    )?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = CA_USAGES.to_vec();
    params.extended_key_usages = purposes(role);
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key.pair()?, root).map_err(build)?;
    Ok((key, certificate))
}

/// The arc of our purposes under 2.25 (ITU-T X.667: anyone's, by a random number), followed by the role.
const PURPOSE_ARC: u64 = 0x4be1_7c93_5d2a_f086;

fn purpose_components(role: Role) -> Vec<u64> {
    let last = match role {
        Role::Agent => 1,
        Role::Collector => 2,
        Role::Operator => 3,
    };
    vec![2, 25, PURPOSE_ARC, last]
}

/// The DER content bytes of a role's purpose.
pub(crate) fn purpose(role: Role) -> Vec<u8> {
    let components = purpose_components(role);
    // X.690, 8.19: the first two arcs share a subidentifier; each is base 128, most significant first.
    let mut bytes = vec![2 * 40 + 25];
    for component in components.into_iter().skip(2) {
        let mut groups = Vec::new();
        let mut rest = component;
        loop {
            let more = if groups.is_empty() { 0 } else { 0x80 };
            groups.push(more | u8::try_from(rest & 0x7f).unwrap_or(0));
            rest >>= 7;
            if rest == 0 {
                break;
            }
        }
        bytes.extend(groups.into_iter().rev());
    }
    bytes
}

pub(crate) fn purposes(role: Role) -> Vec<ExtendedKeyUsagePurpose> {
    let mut purposes = match role {
        Role::Agent | Role::Operator => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Role::Collector => vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
    };
    purposes.push(ExtendedKeyUsagePurpose::Other(purpose_components(role)));
    purposes
}

fn params(
    name: &str,
    trust_domain: &str,
    not_before: Timestamp,
    not_after: Timestamp,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    // A clock that is wildly wrong must not reach the library, whose dates end with the year 9999.
    if not_before < Timestamp(0) || not_after > YEAR_9999 {
        return Err(AuthorityError::Dates {
            not_before,
            not_after,
        });
    }
    params.not_before = std::time::SystemTime::from(not_before).into();
    params.not_after = std::time::SystemTime::from(not_after).into();
    params.serial_number = Some(serial()?);
    params.distinguished_name = subject(name, trust_domain);
    Ok(params)
}

/// For readers of certificates only: identity is the URI.
fn subject(name: &str, trust_domain: &str) -> DistinguishedName {
    // RFC 5280's upper bound of these names is 64 characters.
    let fleet: String = trust_domain.chars().take(64).collect();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, DnValue::Utf8String(fleet));
    subject.push(
        DnType::CommonName,
        DnValue::Utf8String(format!("Nexus {name}")),
    );
    subject
}

/// 127 random bits, positive, without leading zeros (RFC 5280, 4.1.2.2).
fn serial() -> Result<SerialNumber, NoRandomness> {
    let mut bytes = crate::random::<16>()?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn ca_name(role: Role) -> String {
    format!("{role}s CA")
}

fn file_name(role: Role) -> String {
    format!("{role}s.pem")
}

fn build(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Build(error.to_string())
}

#[cfg(test)]
mod tests;
