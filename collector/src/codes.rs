//! One-time operator codes: `DIR/codes/ID.json`, one file a code, with the hash of its secret.
//!
//! A code is spent by removing its file, durably, before anything is granted for it; a crash in between
//! costs the code, never a second use. Attempts in vain are limited for all codes together, since a code's id is
//! no secret and its secret has 256 bits: the limit only keeps the log short, and who has a good code never meets it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nexus_pki::{
    files::{self, FileError},
    hex,
    operator_code::{self, OperatorCode},
};
use nexus_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

/// How long a code can be used.
pub(crate) const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Attempts in vain, all together, within [`ATTEMPT_WINDOW`].
const ATTEMPTS: usize = 20;
const ATTEMPT_WINDOW: Duration = Duration::from_secs(60);

/// A code that lets nobody in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodeError {
    /// Not known, spent, expired or a wrong secret: which of them is nobody's business but the log's.
    #[error("the operator code is not valid: it is unknown, was used already, or expired")]
    Invalid(&'static str),
    /// Too many attempts.
    #[error("too many attempts to log in; try again in a minute")]
    TooMany,
    /// The folder of the codes.
    #[error("the folder of operator codes")]
    File(#[from] FileError),
    /// The folder of the codes.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write the code")]
    Json(#[from] serde_json::Error),
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    name: String,
    secret_sha256: String,
    expires_ms: i64,
}

/// Keeps what is needed to recognise `code`, and clears away those that have expired.
pub(crate) fn keep(dir: &Path, code: &OperatorCode, now: Timestamp) -> Result<(), CodeError> {
    files::create_folder(dir)?;
    remove_expired(dir, now);
    let stored = Stored {
        name: code.name.clone(),
        secret_sha256: hex(&code.secret_hash()),
        expires_ms: code.expires.as_ms(),
    };
    let bytes = serde_json::to_vec(&stored)?;
    Ok(files::write_private(dir, &file_name(&code.id), &bytes)?)
}

/// Takes codes, each once.
#[derive(Debug)]
pub(crate) struct Codes {
    dir: PathBuf,
    attempts: Mutex<Vec<Instant>>,
}

impl Codes {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            attempts: Mutex::default(),
        }
    }

    /// Spends a code, and tells whose it was. After this the code is gone, whatever comes next.
    pub(crate) fn spend(
        &self,
        id: &[u8],
        secret: &[u8],
        now: Timestamp,
        instant: Instant,
    ) -> Result<String, CodeError> {
        let spent = self.try_to_spend(id, secret, now);
        if matches!(spent, Err(CodeError::Invalid(_))) {
            self.count_attempt(instant)?;
        }
        spent
    }

    fn try_to_spend(&self, id: &[u8], secret: &[u8], now: Timestamp) -> Result<String, CodeError> {
        let id: [u8; 16] = id
            .try_into()
            .map_err(|_| CodeError::Invalid("its id has another length"))?;
        let name = file_name(&id);
        let path = self.dir.join(&name);
        let bytes = match files::read_private(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => {
                return Err(CodeError::Invalid("there is no such code, or it was spent"));
            }
            Err(error) => return Err(error.into()),
        };
        let stored: Stored =
            serde_json::from_slice(&bytes).map_err(|_| CodeError::Invalid("its file is broken"))?;
        let kept = unhex(&stored.secret_sha256).ok_or(CodeError::Invalid("its file is broken"))?;
        if !operator_code::secret_matches(secret, &kept) {
            return Err(CodeError::Invalid("its secret is another"));
        }
        self.remove(&path)?;
        if now >= Timestamp(stored.expires_ms) {
            return Err(CodeError::Invalid("it has expired"));
        }
        Ok(stored.name)
    }

    /// Exactly one caller can remove a file.
    fn remove(&self, path: &Path) -> Result<(), CodeError> {
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CodeError::Invalid("it was spent a moment ago"));
            }
            Err(source) => return Err(fail("remove", path, source)),
        }
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| fail("sync the folder", &self.dir, source))
    }

    fn count_attempt(&self, instant: Instant) -> Result<(), CodeError> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.retain(|at| instant.saturating_duration_since(*at) < ATTEMPT_WINDOW);
        if attempts.len() >= ATTEMPTS {
            return Err(CodeError::TooMany);
        }
        attempts.push(instant);
        Ok(())
    }
}

fn fail(action: &'static str, path: &Path, source: io::Error) -> CodeError {
    CodeError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn file_name(id: &[u8; 16]) -> String {
    format!("{}.json", hex(id))
}

/// Best effort: an expired code is refused whether its file is there or not.
fn remove_expired(dir: &Path, now: Timestamp) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let expired = files::read_private(&entry.path())
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok())
            .is_some_and(|stored| now >= Timestamp(stored.expires_ms));
        if expired && let Err(error) = fs::remove_file(entry.path()) {
            tracing::debug!(path = %entry.path().display(), %error, "cannot remove an expired code");
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text
        .chars()
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()?;
    digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(high * 16 + low).ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use nexus_runtime::clock::Clock;

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn code(dir: &Path) -> OperatorCode {
        let code = OperatorCode::generate(
            "admin",
            "fleet.test",
            [7; 32],
            vec!["localhost:7461".to_owned()],
            NOW.after(LIFE),
        )
        .unwrap();
        keep(dir, &code, NOW).unwrap();
        code
    }

    #[test]
    fn a_code_can_be_spent_once() {
        let dir = tempfile::tempdir().unwrap();
        let instant = Clock::system().instant();
        let code = code(dir.path());
        let codes = Codes::new(dir.path().to_owned());
        let wrong = codes.spend(&code.id, &[0; 32], NOW, instant);
        assert!(matches!(wrong, Err(CodeError::Invalid(_))), "{wrong:?}");
        let name = codes
            .spend(&code.id, code.secret.as_slice(), NOW, instant)
            .unwrap();
        assert_eq!(name, "admin");
        let again = codes.spend(&code.id, code.secret.as_slice(), NOW, instant);
        assert!(matches!(again, Err(CodeError::Invalid(_))), "{again:?}");
    }

    #[test]
    fn an_expired_code_is_refused_and_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let instant = Clock::system().instant();
        let late = NOW.after(LIFE);
        let first = code(dir.path());
        let codes = Codes::new(dir.path().to_owned());
        assert!(
            codes
                .spend(&first.id, first.secret.as_slice(), late, instant)
                .is_err()
        );
        let second = code(dir.path());
        remove_expired(dir.path(), late);
        assert!(!dir.path().join(file_name(&second.id)).exists());
    }

    #[test]
    fn attempts_are_limited_and_allowed_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let start = Clock::system().instant();
        let codes = Codes::new(dir.path().to_owned());
        for _ in 0..ATTEMPTS {
            let refused = codes.spend(&[1; 16], &[1; 32], NOW, start);
            assert!(matches!(refused, Err(CodeError::Invalid(_))));
        }
        let refused = codes.spend(&[1; 16], &[1; 32], NOW, start);
        assert!(matches!(refused, Err(CodeError::TooMany)));
        // Nobody locks out whose code is good.
        let code = code(dir.path());
        assert!(
            codes
                .spend(&code.id, code.secret.as_slice(), NOW, start)
                .is_ok()
        );
        let later = codes.spend(&[1; 16], &[1; 32], NOW, start + ATTEMPT_WINDOW);
        assert!(matches!(later, Err(CodeError::Invalid(_))));
    }
}
