//! The collector's own certificate: made by its own authority, renewed with a new key at start when it is
//! past half of its life, and at half-life while it runs. Ports need no rebinding: new handshakes present
//! the new one.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nexus_pki::{
    authority::{Authority, AuthorityError},
    leaf::{Leaf, LeafError},
    tls::{LiveLeaf, TlsError},
};
use nexus_proto::time::Timestamp;
use nexus_runtime::{clock::Clock, errors};
use tokio_util::sync::CancellationToken;

use crate::folder::Instance;

/// After a failure.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// The longest sleep, so that a clock that was set is noticed.
const LOOK: Duration = Duration::from_secs(600);

/// The collector has no valid certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The authority.
    #[error("cannot issue this collector's certificate")]
    Authority(#[from] AuthorityError),
    /// Its file.
    #[error("cannot keep this collector's certificate")]
    Leaf(#[from] LeafError),
    /// TLS.
    #[error("cannot use this collector's certificate")]
    Tls(#[from] TlsError),
}

/// Keeps the certificate current.
pub(crate) struct Identity {
    authority: Arc<Authority>,
    instance: Instance,
    dir: PathBuf,
    live: LiveLeaf,
}

impl Identity {
    /// Loads the certificate, or makes a new one where it is missing, damaged, of another name or old.
    pub(crate) fn open(
        authority: Arc<Authority>,
        instance: Instance,
        dir: PathBuf,
        now: Timestamp,
    ) -> Result<Self, IdentityError> {
        let leaf = match Leaf::load(&dir) {
            Ok(leaf) if !is_due(&leaf, now) => leaf,
            Ok(_) => issue(&authority, &instance, &dir, now)?,
            Err(error) => {
                tracing::warn!(error = %errors::chain(&error), "this collector's certificate cannot be read; making a new one");
                issue(&authority, &instance, &dir, now)?
            }
        };
        let live = LiveLeaf::new(leaf, authority.root())?;
        Ok(Self {
            authority,
            instance,
            dir,
            live,
        })
    }

    /// What the ports present.
    pub(crate) fn live(&self) -> LiveLeaf {
        self.live.clone()
    }

    /// Renews at half-life until shutdown.
    pub(crate) async fn keep_current(
        self,
        clock: Clock,
        stop: CancellationToken,
    ) -> Result<(), IdentityError> {
        loop {
            let now = clock.now();
            let leaf = self.live.current();
            let pause = if is_due(&leaf, now) {
                match self.renew(now) {
                    Ok(()) => LOOK,
                    // The present one is good for as long again.
                    Err(error) => {
                        tracing::error!(error = %errors::chain(&error), "this collector's certificate was not renewed");
                        TRY_AGAIN
                    }
                }
            } else {
                half_life(&leaf)
                    .since(now)
                    .clamp(Duration::from_millis(100), LOOK)
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn renew(&self, now: Timestamp) -> Result<(), IdentityError> {
        let leaf = issue(&self.authority, &self.instance, &self.dir, now)?;
        tracing::info!(expires = %leaf.not_after(), "renewed this collector's certificate");
        Ok(self.live.replace(leaf)?)
    }
}

fn issue(
    authority: &Authority,
    instance: &Instance,
    dir: &std::path::Path,
    now: Timestamp,
) -> Result<Leaf, IdentityError> {
    let leaf = authority.issue_collector(&instance.region, &instance.id, now)?;
    leaf.save(dir)?;
    Ok(leaf)
}

fn half_life(leaf: &Leaf) -> Timestamp {
    let life = leaf.not_after().since(leaf.not_before());
    leaf.not_before().after(life / 2)
}

/// Past its half-life, or made in what is now the future.
fn is_due(leaf: &Leaf, now: Timestamp) -> bool {
    now >= half_life(leaf) || now < leaf.not_before()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    #[test]
    fn renews_past_half_life_and_when_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create(&dir.path().join("ca"), "fleet.test", NOW).unwrap();
        let ca = Arc::new(ca);
        let instance = Instance {
            format: 1,
            trust_domain: "fleet.test".to_owned(),
            region: "here".to_owned(),
            id: "one".to_owned(),
            created_ms: 0,
        };
        let open = |now| {
            let leaf = dir.path().join("leaf");
            Identity::open(Arc::clone(&ca), instance.clone(), leaf, now)
                .unwrap()
                .live()
                .current()
        };
        let first = open(NOW);
        assert_eq!(
            open(NOW.after(Duration::from_secs(3600))).serial(),
            first.serial()
        );
        let later = open(NOW.after(Duration::from_secs(13 * 3600)));
        assert_ne!(later.serial(), first.serial());
        assert_ne!(
            later.key().public_key().unwrap(),
            first.key().public_key().unwrap()
        );
        std::fs::write(dir.path().join("leaf/identity.pem"), "rubbish").unwrap();
        assert_ne!(
            open(NOW.after(Duration::from_secs(13 * 3600))).serial(),
            later.serial()
        );
    }
}
