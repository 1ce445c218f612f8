//! Whom the helper believes: what root has pinned, and what the signers pinned then have signed since.
//!
//! ```text
//! DIR/identity/pin        lines `KEY VALUE`: who this node is, of which fleet, and when that was pinned
//! DIR/identity/policy     the signer policy, freshness: the newest statement about it
//! ```
//! Only root writes there: `nexus-agent enroll` and `nexus-agent pin`, both by a join token that root was given. The
//! agent passes on newer policies; they are taken as the agent itself takes them from a collector, when the threshold
//! of the signers held before has signed them.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nexus_pki::{files, merkle::Target};
use nexus_proto::time::Timestamp;

use crate::identity::{self, IdentityError, Member, Trust};

const PIN: &str = "pin";

/// Who this node is, and who may sign for it.
#[derive(Debug)]
pub(crate) struct Pin {
    pub(crate) own: Target,
    pub(crate) trust: Trust,
}

/// Pins what an enrolment gave. The caller has verified it by a token.
pub(crate) fn store(
    folder: &Path,
    member: &Member,
    own: &Target,
    now: Timestamp,
) -> Result<(), IdentityError> {
    files::create_folder(folder)?;
    write(folder, own, &member.trust_domain, &member.trust, now)
}

pub(super) fn write(
    folder: &Path,
    own: &Target,
    trust_domain: &str,
    trust: &Trust,
    now: Timestamp,
) -> Result<(), IdentityError> {
    let text = format!(
        "node {}\nname {}\nincarnation {}\ntrust-domain {trust_domain}\npinned {now}\n",
        own.node, own.name, own.incarnation
    );
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
        let dir = identity::place(&self.folder)?;
        let path = dir.join(PIN);
        let text = files::read_private(&path)?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, pin)) = &*held
            && *known == text
        {
            return Ok(Arc::clone(pin));
        }
        let (own, trust_domain) =
            parse(&text).ok_or(IdentityError::Content { path, what: "pin" })?;
        let pin = Arc::new(Pin {
            own,
            trust: Trust::load(&dir, &trust_domain)?,
        });
        *held = Some((text, Arc::clone(&pin)));
        Ok(pin)
    }
}

fn parse(text: &[u8]) -> Option<(Target, String)> {
    let text = std::str::from_utf8(text).ok()?;
    let value = |key: &str| {
        let mut values = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == key).then_some(value)
        });
        values.next()
    };
    let own = Target {
        node: value("node")?.parse().ok()?,
        name: value("name")?.to_owned(),
        incarnation: value("incarnation")?.parse().ok()?,
    };
    Some((own, value("trust-domain")?.to_owned()))
}
