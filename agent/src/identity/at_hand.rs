//! A join token that was laid down on this machine for its enrolment: the service manager's credential, or else a file of
//! root's. What `nexus-agent enroll` without a token takes, and what `status` and `doctor` tell of.

use std::{
    io,
    path::{Path, PathBuf},
};

use nexus_pki::token::{JoinToken, Token};
use nexus_proto::time::Timestamp;
use nexus_runtime::{errors::chain, service};

use super::{IdentityError, enrol::read_token};

/// Where one may lie, for an unattended enrolment.
pub const FILE: &str = "/etc/nexus/enrol.token";
/// The same, of the service manager.
const CREDENTIAL: &str = "nexus.enrol-token";

/// What there is to tell of one that is there. It is a secret: nothing of it is told but what it says of itself.
#[derive(Debug)]
pub(crate) struct AtHand {
    pub(crate) standing: Standing,
    pub(crate) text: String,
    pub(crate) hint: String,
}

/// What can come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// An enrolment, as far as can be told from here.
    Good,
    /// Whoever looks may not see it.
    Hidden,
    /// Nothing.
    Bad,
}

/// Takes it.
pub(crate) fn take() -> Result<Token, IdentityError> {
    take_from(&place())
}

/// Looks at it; `None`: there is none.
pub(crate) fn look(now: Timestamp) -> Option<AtHand> {
    look_at(&place(), now)
}

fn place() -> PathBuf {
    let credential = service::credentials().map(|folder| folder.join(CREDENTIAL));
    let credential = credential.filter(|path| path.exists());
    credential.unwrap_or_else(|| Path::new(FILE).to_owned())
}

fn take_from(path: &Path) -> Result<Token, IdentityError> {
    read_token(&format!("@{}", path.display())).map_err(|error| match error {
        IdentityError::TokenFile { path, source } if source.kind() == io::ErrorKind::NotFound => {
            IdentityError::NoToken(path)
        }
        error => error,
    })
}

fn look_at(path: &Path, now: Timestamp) -> Option<AtHand> {
    let error = match take_from(path) {
        Ok(token) if now < token.claims().expires => return Some(good(path, token.claims())),
        Ok(token) => IdentityError::TokenExpired {
            expires: token.claims().expires,
            now,
        },
        Err(IdentityError::NoToken(_)) => return None,
        Err(error) => error,
    };
    Some(match &error {
        IdentityError::TokenFile { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            AtHand {
                standing: Standing::Hidden,
                text: chain(&error).to_string(),
                hint: "run it as root, whose alone a token is".to_owned(),
            }
        }
        _ => bad(path, &error),
    })
}

fn good(path: &Path, claims: &JoinToken) -> AtHand {
    let text = format!(
        "a join token for {} lies in {}, good until {}",
        claims.trust_domain,
        path.display(),
        claims.expires
    );
    let hint = "`nexus-agent enroll` as root joins with it; `journalctl -u nexus-agent-enroll` tells of attempts so far";
    AtHand {
        standing: Standing::Good,
        text,
        hint: hint.to_owned(),
    }
}

fn bad(path: &Path, error: &IdentityError) -> AtHand {
    let path = path.display();
    let text = match error {
        IdentityError::TokenFile { .. } => chain(error).to_string(),
        _ => format!("nobody can join with what lies in {path}: {}", chain(error)),
    };
    let hint = format!(
        "put there what `nexusctl token create` prints, whole and nothing else, or remove {path}"
    );
    AtHand {
        standing: Standing::Bad,
        text,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nexus_pki::{signing::SigningKey, token};
    use nexus_proto::ids::TokenId;

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn text() -> String {
        let claims = JoinToken {
            id: TokenId::random(),
            root_sha256: [1; 32],
            policy_digest: [2; 32],
            addresses: vec!["collector:7460".to_owned()],
            labels: std::collections::BTreeMap::new(),
            created: NOW,
            expires: NOW.after(Duration::from_secs(60)),
            uses: 1,
            trust_domain: "nexus.internal".to_owned(),
        };
        let key = SigningKey::generate().unwrap();
        token::create(&key, &claims).unwrap().to_string()
    }

    #[test]
    fn what_is_wrong_with_it_is_said_and_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("enrol.token");
        assert!(look_at(&path, NOW).is_none());
        let error = take_from(&path).unwrap_err();
        assert!(
            error.to_string().starts_with("no join token was given"),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("nexusctl token create"));

        let text = text();
        let late = NOW.after(Duration::from_secs(60));
        for (content, now, why) in [
            ("", NOW, "begins with `nxt_`"),
            ("https://example.org/a-secret", NOW, "begins with `nxt_`"),
            (text.get(..60).unwrap(), NOW, "part of it is missing"),
            (text.as_str(), late, "expired at"),
        ] {
            std::fs::write(&path, content).unwrap();
            let AtHand {
                standing,
                text,
                hint,
            } = look_at(&path, now).unwrap();
            assert_eq!(standing, Standing::Bad, "{text}");
            assert!(text.contains(why), "{text}");
            assert!(hint.contains("nexusctl token create"), "{hint}");
            assert!(content.is_empty() || !text.contains(content), "{text}");
        }
        std::fs::write(&path, format!("{text}\n")).unwrap();
        let seen = look_at(&path, NOW).unwrap();
        assert_eq!(seen.standing, Standing::Good, "{seen:?}");
        assert!(seen.text.contains("for nexus.internal"), "{seen:?}");
        assert!(seen.hint.contains("`nexus-agent enroll`"), "{seen:?}");
        assert!(!seen.text.contains(&text), "{seen:?}");

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let seen = look_at(&path, NOW).unwrap();
        assert!(seen.text.starts_with("cannot read"), "{seen:?}");
    }
}
