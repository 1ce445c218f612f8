//! A fleet in a temporary folder, and certificates that no authority of ours would issue.

use nexus_proto::{ids::NodeId, time::Timestamp};
use rustls_pki_types::UnixTime;

use crate::{authority::Authority, csr::new_csr, leaf::Leaf};

pub(crate) const DOMAIN: &str = "example.org";
pub(crate) const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

/// The wall clock, as rustls reads it during handshakes.
pub(crate) fn now() -> Timestamp {
    Timestamp(0).after(std::time::Duration::from_secs(UnixTime::now().as_secs()))
}

/// When the fleets of tests were made: long enough ago for leaves that have expired.
pub(crate) fn born() -> Timestamp {
    now().before(100 * 24 * HOUR)
}

pub(crate) struct Fleet {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) authority: Authority,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self::named(DOMAIN)
    }

    pub(crate) fn named(trust_domain: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), trust_domain, born()).unwrap();
        Self { dir, authority }
    }

    pub(crate) fn agent(&self, node: NodeId, now: Timestamp) -> Leaf {
        let (key, csr) = new_csr().unwrap();
        let issued = self.authority.issue_agent(&csr, node, now).unwrap();
        Leaf::new(key, issued.chain).unwrap()
    }

    pub(crate) fn operator(&self, name: &str, now: Timestamp) -> Leaf {
        let (key, csr) = new_csr().unwrap();
        let issued = self.authority.issue_operator(&csr, name, now).unwrap();
        Leaf::new(key, issued.chain).unwrap()
    }

    pub(crate) fn collector(&self, now: Timestamp) -> Leaf {
        self.authority.issue_collector("eu", "c1", now).unwrap()
    }
}
