//! What an enrolment gave, on disk and in memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nexus_pki::{
    certificate::Root,
    files,
    leaf::Leaf,
    merkle::Target,
    policy::{Freshness, TrustedPolicy},
    token::check_addresses,
};
use nexus_proto::{
    agent::v1 as wire,
    ids::{Incarnation, NodeId},
    limits,
    time::Timestamp,
};
use nexus_runtime::errors::chain;
use prost::Message as _;

use super::{IdentityError, enrol::check_name};

pub(super) const FOLDER: &str = "identity";
const NEW_FOLDER: &str = "identity.new";
const OLD_FOLDER: &str = "identity.old";

/// An enrolled agent.
#[derive(Debug)]
pub struct Member {
    /// Key and certificate.
    pub leaf: Leaf,
    /// The fleet's root.
    pub root: Root,
    /// The fleet's name, as the certificate says.
    pub trust_domain: String,
    /// This node, as the certificate says.
    pub node: NodeId,
    /// The name it was enrolled under: what jobs are signed for.
    pub name: String,
    /// Where collectors listen.
    pub addresses: Addresses,
    /// Who may sign jobs.
    pub trust: Arc<Trust>,
}

/// Where collectors listen: what a collector says is not signed, so it never replaces what an operator's token said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// As the token said.
    pub enrolled: Vec<String>,
    /// As a collector said last.
    pub told: Vec<String>,
}

impl Addresses {
    /// All of them, in the order in which they are tried.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        let mut all = self.told.clone();
        for address in &self.enrolled {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }
}

/// Of the addresses a collector says it has, those that can be any, and not more than anybody needs.
#[must_use]
pub fn told(addresses: Vec<String>) -> Vec<String> {
    let count = addresses.len();
    let mut good = addresses;
    good.retain(|address| check_addresses(std::slice::from_ref(address)).is_ok());
    good.truncate(limits::ADDRESSES);
    if good.len() < count {
        tracing::warn!(
            told = count,
            kept = good.len(),
            "the collector names addresses that are none, or too many"
        );
    }
    good
}

/// Who may sign jobs, and that they still may.
#[derive(Debug)]
pub struct Trust(Mutex<Held>);

#[derive(Debug)]
struct Held {
    policy: TrustedPolicy,
    freshness: Option<(wire::Envelope, Freshness)>,
    /// The newest time an operator has signed.
    newest: Timestamp,
}

impl Trust {
    /// Takes a policy with the newest statement about it. A statement that has run out is kept: it says since
    /// when.
    pub fn new(policy: TrustedPolicy, freshness: Option<wire::Envelope>) -> Self {
        let mut held = Held {
            newest: policy.policy().created,
            policy,
            freshness: None,
        };
        if let Some(envelope) = freshness {
            held.refresh(envelope).ok();
        }
        Self(Mutex::new(held))
    }

    /// The later of `wall` and the newest time an operator has signed.
    #[must_use]
    pub fn now(&self, wall: Timestamp) -> Timestamp {
        wall.max(self.held().newest)
    }

    /// Version of the policy, and until when it is known to be current.
    #[must_use]
    pub fn state(&self) -> (u64, Timestamp) {
        let held = self.held();
        let expires = held
            .freshness
            .as_ref()
            .map_or(Timestamp(0), |(_, freshness)| freshness.expires);
        (held.policy.version(), expires)
    }

    /// Both, as they were signed.
    #[must_use]
    pub fn documents(&self) -> wire::TrustUpdate {
        let held = self.held();
        wire::TrustUpdate {
            policy: Some(held.policy.envelope().clone()),
            freshness: held
                .freshness
                .as_ref()
                .map(|(envelope, _)| envelope.clone()),
        }
    }

    /// Looks at both, and at what [`Trust::now`] makes of `wall`.
    pub fn with<T>(
        &self,
        wall: Timestamp,
        look: impl FnOnce(&TrustedPolicy, Option<&Freshness>, Timestamp) -> T,
    ) -> T {
        let held = self.held();
        let freshness = held.freshness.as_ref().map(|(_, freshness)| freshness);
        look(&held.policy, freshness, wall.max(held.newest))
    }

    /// Takes what the collector passes on and keeps it in `folder`. A policy stands whatever becomes of the statement
    /// that came with it: [`Trust::state`] shows what was taken.
    pub fn update(&self, folder: &Path, update: wire::TrustUpdate) -> Result<(), IdentityError> {
        let folder = folder.join(FOLDER);
        let mut held = self.held();
        if let Some(envelope) = update.policy
            && envelope.payload != held.policy.envelope().payload
        {
            let policy = held.policy.update(envelope)?;
            files::write_private(&folder, "policy", &policy.envelope().encode_to_vec())?;
            held.newest = held.newest.max(policy.policy().created);
            held.policy = policy;
            held.freshness = None;
        }
        if let Some(envelope) = update.freshness
            && held
                .freshness
                .as_ref()
                .is_none_or(|(known, _)| *known != envelope)
            && held.refresh(envelope)?
            && let Some((envelope, _)) = &held.freshness
        {
            files::write_private(&folder, "freshness", &envelope.encode_to_vec())?;
        }
        Ok(())
    }

    /// Reads what [`Trust::store`] has written.
    pub(crate) fn load(dir: &Path, trust_domain: &str) -> Result<Self, IdentityError> {
        let policy = envelope(dir, "policy")?;
        let freshness = passing(envelope(dir, "freshness"));
        Self::believed(policy, freshness, trust_domain)
    }

    /// Takes a policy that was verified before.
    fn believed(
        policy: wire::Envelope,
        freshness: Option<wire::Envelope>,
        trust_domain: &str,
    ) -> Result<Self, IdentityError> {
        let digest = nexus_pki::sha256(&policy.payload);
        let policy = TrustedPolicy::establish(policy, &digest, trust_domain)?;
        Ok(Self::new(policy, freshness))
    }

    /// Writes both into a folder.
    pub(crate) fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        let held = self.held();
        files::write_private(dir, "policy", &held.policy.envelope().encode_to_vec())?;
        if let Some((envelope, _)) = &held.freshness {
            files::write_private(dir, "freshness", &envelope.encode_to_vec())?;
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Takes a statement if it is newer than the one held. Whether it has run out is judged at use.
    fn refresh(&mut self, envelope: wire::Envelope) -> Result<bool, IdentityError> {
        let freshness = self.policy.read_freshness(&envelope)?;
        if self
            .freshness
            .as_ref()
            .is_some_and(|(_, held)| held.expires >= freshness.expires)
        {
            return Ok(false);
        }
        self.newest = self.newest.max(freshness.issued);
        self.freshness = Some((envelope, freshness));
        Ok(true)
    }
}

impl Member {
    /// Reads `folder`/identity.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let dir = place(folder)?;
        let leaf = Leaf::load(&dir)?;
        let path = dir.join("root.pem");
        let root = Root::from_pem(&files::read_private(&path)?).map_err(|_| {
            let what = "root certificate";
            IdentityError::Content { path, what }
        })?;
        let name = text(&dir, "name")?.trim().to_owned();
        check_name(&name)?;
        // Whatever became of what a collector said, the agent can ask anew.
        let addresses = match lines_of(&dir, "enrolled") {
            Ok(enrolled) => Addresses {
                enrolled,
                told: passing(lines_of(&dir, "addresses")).map_or_else(Vec::new, told),
            },
            // An identity of before there were two files.
            Err(IdentityError::File(error)) if error.is_missing() => Addresses {
                enrolled: lines_of(&dir, "addresses")?,
                told: Vec::new(),
            },
            Err(error) => return Err(error),
        };
        let policy = envelope(&dir, "policy")?;
        let freshness = passing(envelope(&dir, "freshness"));
        Self::assemble(leaf, root, name, addresses, policy, freshness)
    }

    /// Puts together what was verified when it was stored.
    pub(super) fn assemble(
        leaf: Leaf,
        root: Root,
        name: String,
        addresses: Addresses,
        policy: wire::Envelope,
        freshness: Option<wire::Envelope>,
    ) -> Result<Self, IdentityError> {
        let trust_domain = leaf.spiffe().trust_domain().to_owned();
        let node = leaf.spiffe().node().ok_or_else(|| {
            IdentityError::Answer(format!("{} is no agent's certificate", leaf.spiffe()))
        })?;
        let trust = Arc::new(Trust::believed(policy, freshness, &trust_domain)?);
        Ok(Self {
            leaf,
            root,
            trust_domain,
            node,
            name,
            addresses,
            trust,
        })
    }

    /// This node as a target of jobs.
    #[must_use]
    pub fn target(&self, incarnation: Incarnation) -> Target {
        Target {
            node: self.node,
            name: self.name.clone(),
            incarnation,
        }
    }

    /// Writes `folder`/identity whole.
    pub(super) fn store(&self, folder: &Path) -> Result<(), IdentityError> {
        replace(folder, |new| {
            self.leaf.save(new)?;
            files::write_private(new, "root.pem", self.root.to_pem().as_bytes())?;
            files::write_private(new, "name", format!("{}\n", self.name).as_bytes())?;
            let Addresses { enrolled, told } = &self.addresses;
            files::write_private(new, "enrolled", lines(enrolled).as_bytes())?;
            files::write_private(new, "addresses", lines(told).as_bytes())?;
            self.trust.store(new)
        })
    }

    /// Replaces key and certificate on disk.
    pub(super) fn store_leaf(folder: &Path, leaf: &Leaf) -> Result<(), IdentityError> {
        Ok(leaf.save(&folder.join(FOLDER))?)
    }

    /// Keeps what a collector says of its addresses.
    pub fn store_addresses(folder: &Path, told: &[String]) -> Result<(), IdentityError> {
        Ok(files::write_private(
            &folder.join(FOLDER),
            "addresses",
            lines(told).as_bytes(),
        )?)
    }
}

/// Where the identity is in a folder of state, which may be between the two renames of a replacement.
pub(crate) fn place(folder: &Path) -> Result<PathBuf, IdentityError> {
    let mut places = [FOLDER, OLD_FOLDER]
        .map(|name| folder.join(name))
        .into_iter();
    places
        .find(|dir| dir.exists())
        .ok_or_else(|| IdentityError::NotEnrolled(folder.to_owned()))
}

/// Undoes a replacement that a crash ended between its two renames. For whoever has the folder to themselves.
pub(crate) fn settle(folder: &Path) -> Result<(), IdentityError> {
    let (old, dir) = (folder.join(OLD_FOLDER), folder.join(FOLDER));
    if old.exists() && !dir.exists() {
        rename(&old, &dir)?;
    }
    Ok(())
}

/// Replaces the identity in a folder of state by what `fill` writes: whole, or not at all.
pub(crate) fn replace(
    folder: &Path,
    fill: impl FnOnce(&Path) -> Result<(), IdentityError>,
) -> Result<(), IdentityError> {
    let (new, old, dir) = (
        folder.join(NEW_FOLDER),
        folder.join(OLD_FOLDER),
        folder.join(FOLDER),
    );
    settle(folder)?;
    remove_all(&new)?;
    files::create_folder(&new)?;
    fill(&new)?;
    remove_all(&old)?;
    if dir.exists() {
        rename(&dir, &old)?;
    }
    rename(&new, &dir)?;
    sync(folder)?;
    remove_all(&old)
}

fn lines(addresses: &[String]) -> String {
    addresses
        .iter()
        .map(|address| format!("{address}\n"))
        .collect()
}

fn lines_of(dir: &Path, name: &str) -> Result<Vec<String>, IdentityError> {
    Ok(text(dir, name)?.lines().map(str::to_owned).collect())
}

/// What a collector passes on and would pass on again: without it the agent goes on as well as it can.
fn passing<T>(read: Result<T, IdentityError>) -> Option<T> {
    match read {
        Ok(found) => Some(found),
        Err(IdentityError::File(error)) if error.is_missing() => None,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "part of the identity cannot be used");
            None
        }
    }
}

fn text(dir: &Path, name: &str) -> Result<String, IdentityError> {
    let path = dir.join(name);
    let bytes = files::read_private(&path)?;
    String::from_utf8(bytes).map_err(|_| IdentityError::Content { path, what: "text" })
}

fn envelope(dir: &Path, name: &str) -> Result<wire::Envelope, IdentityError> {
    let path = dir.join(name);
    let bytes = files::read_private(&path)?;
    wire::Envelope::decode(bytes.as_slice()).map_err(|_| IdentityError::Content {
        path,
        what: "signed document",
    })
}

fn rename(from: &Path, to: &Path) -> Result<(), IdentityError> {
    let fail = |source| IdentityError::Io {
        action: "rename",
        path: from.to_owned(),
        source,
    };
    fs::rename(from, to).map_err(fail)
}

fn sync(folder: &Path) -> Result<(), IdentityError> {
    let fail = |source| IdentityError::Io {
        action: "fsync",
        path: folder.to_owned(),
        source,
    };
    fs::File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(fail)
}

fn remove_all(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(IdentityError::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
