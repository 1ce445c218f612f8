//! Who the agent is: its state folder, the life of that folder (the incarnation), and the identity an
//! enrolment gave it.
//!
//! ```text
//! DIR/lock          held by the one agent that uses the folder
//! DIR/incarnation   a UUID, made with the folder, never changed
//! DIR/session       how many sessions were begun; fsynced before each Hello
//! DIR/identity/     identity.pem (key and chain), root.pem, name, enrolled and addresses (of
//!                   collectors: as the token said, and as they themselves said last), policy, freshness
//! ```
//! Folders are 0700, files 0600. `identity/` is written beside its place and renamed, so it is there
//! whole or not at all; at a renewal `identity.pem` alone is replaced, atomically.

pub(crate) mod at_hand;
mod counter;
mod enrol;
mod member;
mod owner;
mod renew;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nexus_pki::{
    certificate::CertificateError,
    csr::CsrError,
    files::{self, FileError},
    leaf::LeafError,
    policy::PolicyError,
    renewal::RenewalError,
    tls::TlsError,
    token::TokenError,
};
use nexus_proto::ids::{IdError, Incarnation};
use nexus_transport::DialError;
use rustix::fs::{FlockOperation, OFlags};

pub(crate) use self::member::{place, replace, settle};
pub use self::{
    at_hand::FILE as TOKEN_FILE,
    enrol::{Enrolment, check_held, enrol, read_token},
    member::{Addresses, Member, Trust, told},
    owner::{as_owner, become_owner},
    renew::{RenewalClock, renew, renew_expired},
};

/// Whether an enrolment has come to its end here.
#[must_use]
pub fn is_there(dir: &Path) -> bool {
    dir.join(member::FOLDER).exists()
}

const LOCK: &str = "lock";
/// How often the lock is tried, and how long apart: two seconds in all.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(100);
const INCARNATION: &str = "incarnation";
const SESSION: &str = "session";

/// What goes wrong with identities.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another agent uses the folder.
    #[error("{} is in use by another agent", .0.display())]
    InUse(PathBuf),
    /// A file operation failed.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file could not be kept or read.
    #[error("cannot keep the agent's state")]
    File(#[from] FileError),
    /// A file does not hold what it should.
    #[error("{path} holds no {what}", path = path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// There is no identity.
    #[error("{} holds no identity: the agent is not enrolled", .0.display())]
    NotEnrolled(PathBuf),
    /// There is one already.
    #[error("the agent is already enrolled as {name} ({node})")]
    Enrolled {
        /// Under which name.
        name: String,
        /// Its id.
        node: String,
    },
    /// Nobody gave one, and none lies here.
    #[error("no join token was given, and there is none in {}", .0.display())]
    NoToken(PathBuf),
    /// Where one should be.
    #[error("cannot read a join token from {path}", path = path.display())]
    TokenFile {
        /// A file, or standard input.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The token.
    #[error("the join token is not acceptable")]
    Token(#[from] TokenError),
    /// The token is too old.
    #[error("the join token expired at {expires}, this machine's clock says {now}")]
    TokenExpired {
        /// When.
        expires: nexus_proto::time::Timestamp,
        /// By this clock.
        now: nexus_proto::time::Timestamp,
    },
    /// A name that cannot be a node's.
    #[error("`{0}` cannot be a node's name: letters, digits, `.`, `-` and `_`, at most 253")]
    Name(String),
    /// The collector could not be reached.
    #[error("cannot reach the collector")]
    Dial(#[from] DialError),
    /// The collector said no.
    #[error("the collector refused: {message}")]
    Refused {
        /// Its words.
        message: String,
        /// Its hint.
        hint: Option<String>,
    },
    /// The collector's answer is not what the token or the certificate promises.
    #[error("the collector's answer cannot be trusted: {0}")]
    Answer(String),
    /// A certificate of it.
    #[error("the collector's answer cannot be trusted")]
    Certificate(#[from] CertificateError),
    /// The leaf.
    #[error("the certificate and the key do not make an identity")]
    Leaf(#[from] LeafError),
    /// The signers.
    #[error("the signer policy is not acceptable")]
    Policy(#[from] PolicyError),
    /// An id.
    #[error("the collector's answer cannot be trusted")]
    Id(#[from] IdError),
    /// Neither its owner nor root looks at the folder.
    #[error("{} belongs to the user {owner}, and this is {own}", path.display())]
    Foreign {
        /// The state folder.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who looks.
        own: String,
    },
    /// Root cannot act as the folder's owner.
    #[error("cannot act as the owner of {}", path.display())]
    Owner {
        /// The state folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A key or a request.
    #[error("cannot make a key")]
    Csr(#[from] CsrError),
    /// TLS.
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    /// The proof for a late renewal.
    #[error("cannot prove the old identity")]
    Renewal(#[from] RenewalError),
    /// Too long offline.
    #[error(
        "the certificate expired at {expired}, this machine's clock says {now}: too late to renew it"
    )]
    ExpiredForGood {
        /// When.
        expired: nexus_proto::time::Timestamp,
        /// By this clock.
        now: nexus_proto::time::Timestamp,
    },
}

impl IdentityError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::ExpiredForGood { .. } => {
                "check the clock; if it is right, make a token with `nexusctl token create` and run `nexus-agent enroll TOKEN`"
            }
            Self::NotEnrolled(_) | Self::NoToken(_) => {
                "make a token with `nexusctl token create` and run `nexus-agent enroll TOKEN`"
            }
            Self::Enrolled { .. } => "to replace the identity, run the same command with --force",
            Self::InUse(_) => {
                "stop the other agent (the service: `systemctl stop nexus-agent`), or name another folder with --state-dir"
            }
            Self::Token(_) => {
                "copy it whole, from nxt_ to its end, as `nexusctl token create` printed it"
            }
            Self::TokenFile { .. } => {
                "make a token with `nexusctl token create`, and give it as it is, or as @FILE with the name of a file that holds it"
            }
            Self::TokenExpired { .. } => "check the clock, or ask for a new token",
            Self::Dial(_) => "see whether an address of the token can be reached on TCP from here",
            Self::Refused { hint, .. } => return hint.clone(),
            Self::Foreign { owner, .. } => return Some(format!("run it as root, or as {owner}")),
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// The agent's state folder, locked.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    incarnation: Incarnation,
    _lock: Lock,
}

impl StateFolder {
    /// Opens or makes it. A folder without an incarnation gets a new one.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        files::create_folder(path)?;
        let lock = lock(path)?;
        settle(path)?;
        let incarnation = match incarnation(path)? {
            Some(incarnation) => incarnation,
            None => {
                let new = Incarnation::random();
                files::write_private(path, INCARNATION, format!("{new}\n").as_bytes())?;
                new
            }
        };
        Ok(Self {
            path: path.to_owned(),
            incarnation,
            _lock: lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// This life of the folder.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// How many sessions were begun.
    pub fn sessions(&self) -> Result<u64, IdentityError> {
        counter::read(&self.path.join(SESSION)).map(|count| count.unwrap_or(0))
    }

    /// The number of the session that begins now, higher than any before. Durable on return.
    pub fn next_session(&self) -> Result<u64, IdentityError> {
        counter::next(&self.path, SESSION)
    }
}

/// The life of a state folder, if it has begun.
pub fn incarnation(folder: &Path) -> Result<Option<Incarnation>, IdentityError> {
    let path = folder.join(INCARNATION);
    let bytes = match files::read_public(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let text = String::from_utf8_lossy(&bytes);
    match text.trim().parse() {
        Ok(incarnation) => Ok(Some(incarnation)),
        Err(_) => Err(IdentityError::Content {
            path,
            what: "incarnation",
        }),
    }
}

/// Holds a folder for this process until dropped.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone frees it only when every copy is closed, and a child that another thread is just
        // starting holds one until it executes its program.
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::debug!(%error, "cannot unlock a folder");
        }
    }
}

/// A pipe in place of a lock would keep whoever opens it waiting.
const AT_ONCE: i32 = OFlags::NONBLOCK.bits().cast_signed();

/// Whether an agent has the folder. Changes nothing.
pub(crate) fn is_in_use(folder: &Path) -> Result<bool, IdentityError> {
    let path = folder.join(LOCK);
    let fail = |action, source| IdentityError::Io {
        action,
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(AT_ONCE)
        .open(&path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(fail("open", error)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(fail("lock", error.into())),
    }
}

/// Takes a folder for this process.
pub(crate) fn lock(folder: &Path) -> Result<Lock, IdentityError> {
    lock_by(folder, LOCK)
}

/// The same by another file there.
pub(crate) fn lock_by(folder: &Path, name: &str) -> Result<Lock, IdentityError> {
    let path = folder.join(name);
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(AT_ONCE)
        .open(&path);
    let file = file.map_err(|source| IdentityError::Io {
        action: "open",
        path: path.clone(),
        source,
    })?;
    for _ in 0..LOCK_ATTEMPTS {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(file)),
            // A child that an agent was starting when it was killed has a copy until it executes its program.
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::park_timeout(LOCK_PAUSE),
            Err(error) => {
                return Err(IdentityError::Io {
                    action: "lock",
                    path,
                    source: error.into(),
                });
            }
        }
    }
    Err(IdentityError::InUse(folder.to_owned()))
}

#[cfg(test)]
mod tests;
