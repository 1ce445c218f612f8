//! Whom the helper believes: what root has pinned, and what the signers pinned then have signed since.
//!
//! ```text
//! DIR/identity/pin        lines `KEY VALUE`: who this node is, of which fleet, when that was pinned, and, where the agent
//!                         may have run jobs before, `since` when the helper runs what is signed
//! DIR/identity/policy     the signer policy, freshness: the newest statement about it
//! ```
//! Only root writes there: `nexus-agent enroll` and `nexus-agent pin`, both by a join token that root was given. The
//! agent passes on newer policies; they are taken as the agent itself takes them from a collector, when the threshold
//! of the signers held before has signed them.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nexus_pki::{files, merkle::Target};
use nexus_proto::time::Timestamp;

use crate::exec::users;
use crate::identity::{self, IdentityError, Lock, Member, Trust};

const PIN: &str = "pin";

/// Who this node is, and who may sign for it.
#[derive(Debug)]
pub(crate) struct Pin {
    pub(crate) own: Target,
    /// What was signed no later than this may have run before there was a helper.
    pub(crate) since: Timestamp,
    pub(crate) trust: Trust,
}

/// Pins what an enrolment gave. The caller has verified it by a token.
pub(crate) fn store(
    folder: &Path,
    member: &Member,
    own: &Target,
    when: (Timestamp, Option<Timestamp>),
) -> Result<(), IdentityError> {
    files::create_folder(folder)?;
    let _pins = hold(folder)?;
    write(folder, own, &member.trust_domain, &member.trust, when)
}

/// Keeps others from changing pin or policy meanwhile.
pub(super) fn hold(folder: &Path) -> Result<Lock, IdentityError> {
    identity::lock_by(folder, "pin.lock")
}

pub(super) fn write(
    folder: &Path,
    own: &Target,
    trust_domain: &str,
    trust: &Trust,
    (now, since): (Timestamp, Option<Timestamp>),
) -> Result<(), IdentityError> {
    let mut text = format!(
        "node {}\nname {}\nincarnation {}\ntrust-domain {trust_domain}\npinned {now}\n",
        own.node, own.name, own.incarnation
    );
    if let Some(since) = since {
        text.push_str(&format!("since {since}\n"));
    }
    identity::replace(folder, |new| {
        files::write_private(new, PIN, text.as_bytes())?;
        trust.store(new)
    })
}

/// The pin in force. It is read again when it was replaced.
#[derive(Debug)]
pub(super) struct Pins {
    folder: PathBuf,
    held: Mutex<Option<(Vec<u8>, Arc<Pin>)>>,
}

impl Pins {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            held: Mutex::new(None),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What holds now.
    pub(super) fn current(&self) -> Result<Arc<Pin>, IdentityError> {
        // While root replaces it, what was found a moment ago may be gone.
        self.read().or_else(|_| self.read())
    }

    fn read(&self) -> Result<Arc<Pin>, IdentityError> {
        let dir = identity::place(&self.folder)?;
        let path = dir.join(PIN);
        for place in [self.folder.as_path(), &dir, &path] {
            check_own(place)?;
        }
        let text = files::read_private(&path)?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, pin)) = &*held
            && *known == text
        {
            return Ok(Arc::clone(pin));
        }
        let (own, trust_domain, since) =
            parse(&text).ok_or(IdentityError::Content { path, what: "pin" })?;
        let pin = Arc::new(Pin {
            own,
            since,
            trust: Trust::load(&dir, &trust_domain)?,
        });
        *held = Some((text, Arc::clone(&pin)));
        Ok(pin)
    }
}

/// Who may write there could say whom the helper believes. The helper is root.
fn check_own(path: &Path) -> Result<(), IdentityError> {
    let own = rustix::process::geteuid().as_raw();
    let owner = std::fs::metadata(path).map(|metadata| metadata.uid());
    let owner = owner.map_err(|source| IdentityError::Io {
        action: "examine",
        path: path.to_owned(),
        source,
    })?;
    if owner == own {
        return Ok(());
    }
    Err(IdentityError::Foreign {
        path: path.to_owned(),
        owner: users::shown(owner),
        own: users::shown(own),
    })
}

fn parse(text: &[u8]) -> Option<(Target, String, Timestamp)> {
    let text = std::str::from_utf8(text).ok()?;
    let mut values = BTreeMap::new();
    for line in text.lines() {
        let (name, value) = line.split_once(' ')?;
        // Of two, nobody could say which counts.
        if values.insert(name, value).is_some() {
            return None;
        }
    }
    let value = |key: &str| values.get(key).copied();
    let since = match value("since") {
        Some(since) => since.parse().ok()?,
        None => Timestamp(i64::MIN),
    };
    let own = Target {
        node: value("node")?.parse().ok()?,
        name: value("name")?.to_owned(),
        incarnation: value("incarnation")?.parse().ok()?,
    };
    Some((own, value("trust-domain")?.to_owned(), since))
}
