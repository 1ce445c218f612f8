//! Who the operator is on this machine: `client.toml` and the folder `operator/` beside it.
//!
//! ```text
//! client.toml              addresses of the collector
//! operator/identity.pem    TLS key (P-256) and certificate chain
//! operator/root.pem        the fleet's root certificate, pinned at login
//! operator/signing.key     Ed25519 key that signs jobs and tokens
//! operator/policy.pb       the signer policy this machine trusts (a DSSE envelope)
//! operator/audit.json      head of the audit chain as last verified
//! operator.login-…/        the signing key of a login that was not finished
//! ```
//!
//! Keys are made here and never leave. Folders are 0700, files 0600, and each is replaced whole.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nexus_pki::{
    admission::Admission,
    certificate::Root,
    csr::{self, PrivateKey},
    files,
    leaf::Leaf,
    policy::TrustedPolicy,
    sha256,
    signing::SigningKey,
    spiffe::{Role, SpiffeId},
    tls::{self, KeyExchange, LiveLeaf},
};
use nexus_proto::{agent::v1::Envelope, operator::v1::OperatorCertificate, time::Timestamp};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::fault::{Context as _, Exit, Fault, Outcome};

const ROOT_FILE: &str = "root.pem";
const POLICY_FILE: &str = "policy.pb";
const LOGIN_HINT: &str =
    "`nexus-collector login-code` on the collector's host prints a code for `nexusctl login CODE`";

/// `client.toml`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientToml {
    pub(crate) addresses: Vec<String>,
}

impl ClientToml {
    /// Reads the file's text; why not, with the line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let lines = |end| text.bytes().take(end).filter(|byte| *byte == b'\n').count();
            let line = error.span().map(|span| lines(span.start) + 1);
            let place = line
                .map(|line| format!("line {line}: "))
                .unwrap_or_default();
            format!("{place}{}", error.message())
        })?;
        if config.addresses.is_empty() {
            return Err("`addresses` is empty".to_owned());
        }
        Ok(config)
    }
}

/// A logged-in operator.
#[derive(Clone)]
pub(crate) struct Profile {
    pub(crate) client_toml: PathBuf,
    pub(crate) addresses: Vec<String>,
    pub(crate) leaf: Arc<Leaf>,
    pub(crate) root: Root,
    pub(crate) name: String,
    pub(crate) trust_domain: String,
    pub(crate) policy: TrustedPolicy,
}

/// `$NEXUSCTL_CONFIG` is read with the command line; this is where it is otherwise.
pub(crate) fn default_path() -> Outcome<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME").filter(|dir| Path::new(dir).is_absolute());
    let home = || std::env::var_os("HOME").filter(|home| !home.is_empty());
    let base = base
        .map(PathBuf::from)
        .or_else(|| home().map(|home| Path::new(&home).join(".config")));
    base.map(|base| base.join("nexus").join("client.toml"))
        .ok_or_else(|| {
            Fault::new(
                "find client.toml",
                "neither NEXUSCTL_CONFIG nor HOME is set",
            )
        })
}

/// The folder of keys beside a `client.toml`.
pub(crate) fn folder(client_toml: &Path) -> PathBuf {
    client_toml
        .parent()
        .unwrap_or(Path::new(""))
        .join("operator")
}

impl Profile {
    pub(crate) fn load(client_toml: &Path) -> Outcome<Self> {
        let what = format!("read {}", client_toml.display());
        let text = match fs::read_to_string(client_toml) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(
                    Fault::new(what, "you are not logged in: there is no such file").hint(format!(
                        "{LOGIN_HINT}; NEXUSCTL_CONFIG names another client.toml"
                    )),
                );
            }
            Err(error) => return Err(Fault::because(what, &error)),
        };
        let config = ClientToml::parse(&text).map_err(|why| Fault::new(what, why))?;
        let dir = folder(client_toml);
        let what = format!("read the keys in {}", dir.display());
        let leaf = Leaf::load(&dir)
            .map_err(|error| Fault::because(what.clone(), &error).hint(LOGIN_HINT))?;
        let root = files::read_trusted(&dir.join(ROOT_FILE)).doing(what.clone())?;
        let root = Root::from_pem(&root).doing(what.clone())?;
        let policy = files::read_trusted(&dir.join(POLICY_FILE)).doing(what.clone())?;
        let policy = Envelope::decode(policy.as_slice()).doing(what.clone())?;
        // Believed before, and only its owner could write it since.
        let pin = sha256(&policy.payload);
        let trust_domain = leaf.spiffe().trust_domain().to_owned();
        let policy = TrustedPolicy::establish(policy, &pin, &trust_domain).doing(what)?;
        Self::assemble(client_toml.to_owned(), config.addresses, leaf, root, policy)
    }

    /// From what a login gave.
    pub(crate) fn assemble(
        client_toml: PathBuf,
        addresses: Vec<String>,
        leaf: Leaf,
        root: Root,
        policy: TrustedPolicy,
    ) -> Outcome<Self> {
        let (name, trust_domain) = match leaf.spiffe() {
            SpiffeId::Operator { name, trust_domain } => (name.clone(), trust_domain.clone()),
            other => {
                return Err(Fault::new(
                    "read the identity",
                    format!("{other} is no operator"),
                ));
            }
        };
        let leaf = Arc::new(leaf);
        Ok(Self {
            client_toml,
            addresses,
            leaf,
            root,
            name,
            trust_domain,
            policy,
        })
    }

    /// Writes everything; a crash leaves either the old identity or the new one.
    pub(crate) fn store(&self, signing: &SigningKey) -> Outcome {
        let dir = folder(&self.client_toml);
        let what = format!("write {}", dir.display());
        let mut staging = dir.clone().into_os_string();
        staging.push(OsString::from(format!(".new-{}", std::process::id())));
        let staging = PathBuf::from(staging);
        remove_folder(&staging).doing(what.clone())?;
        let write = || -> Outcome {
            files::create_folder(&staging).doing(what.clone())?;
            self.leaf.save(&staging).doing(what.clone())?;
            signing.save(&staging).doing(what.clone())?;
            files::write_private(&staging, ROOT_FILE, self.root.to_pem().as_bytes())
                .doing(what.clone())?;
            files::write_private(
                &staging,
                POLICY_FILE,
                &self.policy.envelope().encode_to_vec(),
            )
            .doing(what.clone())?;
            // What is remembered of the audit chain outlives a login.
            for name in [crate::audit::HEAD_FILE] {
                if let Ok(kept) = fs::read(dir.join(name)) {
                    files::write_private(&staging, name, &kept).doing(what.clone())?;
                }
            }
            swap(&staging, &dir).doing(what.clone())?;
            self.write_client_toml()
        };
        let outcome = write();
        remove_folder(&staging).doing(what.clone())?;
        outcome
    }

    /// Writes `client.toml` alone.
    pub(crate) fn write_client_toml(&self) -> Outcome {
        let what = format!("write {}", self.client_toml.display());
        let config = ClientToml {
            addresses: self.addresses.clone(),
        };
        let text = toml::to_string(&config).doing(what.clone())?;
        let text =
            format!("# Written by `nexusctl login`; the keys are in operator/ beside it.\n{text}");
        let dir = self.client_toml.parent().unwrap_or(Path::new("."));
        let name = self
            .client_toml
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        files::write_private(dir, &name, text.as_bytes()).doing(what)
    }

    /// Writes the signer policy alone.
    pub(crate) fn store_policy(&self) -> Outcome {
        let dir = folder(&self.client_toml);
        let what = format!("write {}", dir.join(POLICY_FILE).display());
        files::write_private(&dir, POLICY_FILE, &self.policy.envelope().encode_to_vec()).doing(what)
    }

    /// The key that signs jobs and tokens.
    pub(crate) fn signing_key(&self) -> Outcome<SigningKey> {
        let dir = folder(&self.client_toml);
        SigningKey::load(&dir).doing(format!("read the signing key in {}", dir.display()))
    }

    /// How the collector is dialled: with our certificate, and no one but a collector of our fleet.
    pub(crate) fn tls(&self) -> Outcome<Arc<rustls::ClientConfig>> {
        let what = "prepare the connection";
        let leaf = LiveLeaf::new(Leaf::clone(&self.leaf), &self.root).doing(what)?;
        let admission = Admission::new(&self.root, &self.trust_domain);
        tls::operator_client(&leaf, &admission, KeyExchange::Auto).doing(what)
    }

    /// A certificate that has run out cannot be renewed.
    pub(crate) fn check_certificate(&self, now: Timestamp) -> Outcome {
        let end = self.leaf.not_after();
        if now < end {
            return Ok(());
        }
        Err(
            Fault::new("connect", format!("your certificate expired at {end}"))
                .hint(LOGIN_HINT)
                .exits(Exit::Denied),
        )
    }

    /// Past half of its life.
    pub(crate) fn wants_renewal(&self, now: Timestamp) -> bool {
        let (begin, end) = (self.leaf.not_before(), self.leaf.not_after());
        let half: Duration = end.since(begin) / 2;
        now >= begin.after(half)
    }

    /// A new TLS key and a request for its certificate.
    pub(crate) fn new_request(&self) -> Outcome<(PrivateKey, Vec<u8>)> {
        csr::new_csr().doing("make a key")
    }

    /// Takes and stores a renewed certificate.
    pub(crate) fn renewed(
        &mut self,
        key: PrivateKey,
        answer: &OperatorCertificate,
        now: Timestamp,
    ) -> Outcome {
        let what = "read the renewed certificate";
        let leaf = Leaf::from_wire(key, &answer.chain_der).doing(what)?;
        check_leaf(what, &leaf, &self.root, &self.trust_domain, &self.name, now)?;
        leaf.save(&folder(&self.client_toml))
            .doing("store the renewed certificate")?;
        self.leaf = Arc::new(leaf);
        Ok(())
    }
}

/// Jobs and tokens are signed under the certificate's name and trust domain: what the collector issued must
/// lead to the pinned root, be an operator's, and have the very name that was asked for.
pub(crate) fn check_leaf(
    what: &str,
    leaf: &Leaf,
    root: &Root,
    trust_domain: &str,
    name: &str,
    now: Timestamp,
) -> Outcome {
    // One made just now is in force, whatever a clock that is behind says; connections will tell.
    let now = now.max(leaf.not_before());
    let peer = Admission::new(root, trust_domain)
        .admit(leaf.chain(), &[Role::Operator], now)
        .doing(what)?;
    match peer.spiffe {
        SpiffeId::Operator { name: found, .. } if found == name => Ok(()),
        other => Err(Fault::new(
            what,
            format!("it names {other} instead of operator `{name}`"),
        )),
    }
}

/// Puts `staging` where `dir` is, in one step when the filesystem can exchange names.
fn swap(staging: &Path, dir: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};

    match renameat_with(CWD, staging, CWD, dir, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::NOENT) => fs::rename(staging, dir),
        Err(_) => {
            remove_folder(dir)?;
            fs::rename(staging, dir)
        }
    }
}

/// What is not there needs no removal.
pub(crate) fn remove_folder(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
