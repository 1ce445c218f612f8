//! The collector's state folder: what lies where, and whose folder it is.
//!
//! ```text
//! DIR/instance.json   which collector of which fleet this is; written last by `init`, so that a folder
//!                     with it is complete
//! DIR/pki/            the authority (pki/ca) and this collector's own leaf (pki/leaf)
//! DIR/keys/           the keys of QUIC's stateless resets and connection ids
//! DIR/codes/          one-time operator codes
//! DIR/shards/N/       a shard's log and projections
//! DIR/control/        the control log and its projections
//! DIR/audit.db        the audit chain
//! DIR/endpoints.json  where the running collector answers
//! ```
//! All folders have mode 0700, all files 0600.

use std::path::{Path, PathBuf};

use nexus_pki::files::{self, FileError};
use nexus_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of the folder's layout that this build writes.
const FORMAT: u32 = 1;
const INSTANCE: &str = "instance.json";
const ENDPOINTS: &str = "endpoints.json";

/// A state folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// A file of it.
    #[error("a file of the state folder")]
    File(#[from] FileError),
    /// A file that is not what it should be.
    #[error("{} is not valid", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// Written by a later version.
    #[error("{} has format {found}, this build knows {FORMAT}: it was written by a newer nexus-collector", path.display())]
    Newer { path: PathBuf, found: u32 },
}

/// Which collector of which fleet a folder belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// Of the folder's layout.
    pub(crate) format: u32,
    /// The fleet.
    pub(crate) trust_domain: String,
    /// Where this collector stands.
    pub(crate) region: String,
    /// Its name within the region.
    pub(crate) id: String,
    /// When `init` made it, in milliseconds since the epoch.
    pub(crate) created_ms: i64,
}

/// Where a running collector answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    /// `host:port`, UDP and TCP.
    pub(crate) agents: String,
    /// `https://host:port`.
    pub(crate) operators: String,
    /// `http://host:port`.
    pub(crate) metrics: String,
}

/// A state folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The certificate authority.
    pub(crate) fn authority(&self) -> PathBuf {
        self.0.join("pki").join("ca")
    }

    /// This collector's own key and chain.
    pub(crate) fn leaf(&self) -> PathBuf {
        self.0.join("pki").join("leaf")
    }

    /// Keys of QUIC's resets and connection ids.
    pub(crate) fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// One-time operator codes.
    pub(crate) fn codes(&self) -> PathBuf {
        self.0.join("codes")
    }

    /// Whether anything of a collector is in it, complete or not.
    pub(crate) fn is_used(&self) -> bool {
        self.0.join(INSTANCE).exists() || self.0.join("pki").exists()
    }

    /// Whose it is; `None` when `init` has not finished here.
    pub(crate) fn instance(&self) -> Result<Option<Instance>, FolderError> {
        let path = self.0.join(INSTANCE);
        let instance: Option<Instance> = read_json(&path)?;
        match instance {
            Some(instance) if instance.format > FORMAT => Err(FolderError::Newer {
                path,
                found: instance.format,
            }),
            other => Ok(other),
        }
    }

    /// Marks the folder as complete.
    pub(crate) fn set_instance(
        &self,
        trust_domain: &str,
        region: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<Instance, FolderError> {
        let instance = Instance {
            format: FORMAT,
            trust_domain: trust_domain.to_owned(),
            region: region.to_owned(),
            id: id.to_owned(),
            created_ms: now.as_ms(),
        };
        self.write_json(INSTANCE, &instance)?;
        Ok(instance)
    }

    /// Where the collector that runs on this folder, or ran last, answers.
    pub(crate) fn endpoints(&self) -> Result<Option<Endpoints>, FolderError> {
        read_json(&self.0.join(ENDPOINTS))
    }

    /// Tells where the ports are, once all of them are bound.
    pub(crate) fn set_endpoints(&self, endpoints: &Endpoints) -> Result<(), FolderError> {
        self.write_json(ENDPOINTS, endpoints)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), FolderError> {
        let mut text = serde_json::to_vec_pretty(value).map_err(|source| FolderError::Json {
            path: self.0.join(name),
            source,
        })?;
        text.push(b'\n');
        Ok(files::write_private(&self.0, name, &text)?)
    }
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, FolderError> {
    let bytes = match files::read_public(path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| FolderError::Json {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        assert!(!folder.is_used());
        assert_eq!(folder.instance().unwrap(), None);
        let made = folder
            .set_instance("fleet.test", "here", "one", Timestamp(5))
            .unwrap();
        assert_eq!(folder.instance().unwrap(), Some(made));
        assert!(folder.is_used());
    }

    #[test]
    fn refuses_a_newer_layout_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join(INSTANCE),
            r#"{"format":99,"trust_domain":"a","region":"b","id":"c","created_ms":0}"#,
        )
        .unwrap();
        let error = Folder::new(dir.path()).instance().unwrap_err();
        assert!(
            error.to_string().contains("newer nexus-collector"),
            "{error}"
        );
    }
}
