//! The leaf a running program presents, replaceable at any moment.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    NamedGroup, SignatureScheme,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, ResolvesClientCert, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
    pki_types::ServerName,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::TlsError;
use crate::{certificate::Root, leaf::Leaf};

/// A leaf shared by all configurations that present it. Clones share it; [`LiveLeaf::replace`] makes
/// every later handshake present the new one.
#[derive(Clone)]
pub struct LiveLeaf(Arc<Shared>);

struct Shared {
    root: Root,
    current: RwLock<Current>,
    /// Counts replacements; a client's tickets belong to one count.
    generation: AtomicU64,
}

struct Current {
    leaf: Arc<Leaf>,
    bare: Arc<CertifiedKey>,
    with_root: Arc<CertifiedKey>,
}

impl Current {
    fn new(leaf: Leaf, root: &Root) -> Result<Self, TlsError> {
        let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&leaf.key().to_rustls())?;
        let chain = leaf.chain().to_vec();
        let mut longer = chain.clone();
        longer.push(root.der().clone());
        Ok(Self {
            bare: Arc::new(CertifiedKey::new(chain, Arc::clone(&key))),
            with_root: Arc::new(CertifiedKey::new(longer, key)),
            leaf: Arc::new(leaf),
        })
    }
}

impl LiveLeaf {
    /// Presents `leaf`, which was issued under `root`.
    pub fn new(leaf: Leaf, root: &Root) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(Shared {
            current: RwLock::new(Current::new(leaf, root)?),
            root: root.clone(),
            generation: AtomicU64::new(0),
        })))
    }

    /// Presents `leaf` from now on. Established connections keep what they have shown.
    pub fn replace(&self, leaf: Leaf) -> Result<(), TlsError> {
        let new = Current::new(leaf, &self.0.root)?;
        *self
            .0
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner) = new;
        self.0.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// What is presented now.
    #[must_use]
    pub fn current(&self) -> Arc<Leaf> {
        Arc::clone(&self.read(|current| Arc::clone(&current.leaf)))
    }

    /// For servers: the same leaf, presented with intermediate and root.
    #[must_use]
    pub fn with_root(&self) -> Present {
        Present(self.clone())
    }

    fn read<T>(&self, of: impl FnOnce(&Current) -> T) -> T {
        of(&self
            .0
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner))
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

impl fmt::Debug for LiveLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveLeaf({})", self.current().spiffe())
    }
}

impl ResolvesClientCert for LiveLeaf {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        schemes
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| self.read(|current| Arc::clone(&current.bare)))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A [`LiveLeaf`] as servers present it.
#[derive(Debug, Clone)]
pub struct Present(LiveLeaf);

impl ResolvesServerCert for Present {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read(|current| Arc::clone(&current.with_root)))
    }
}

/// A client's tickets, forgotten when its leaf is replaced: a session resumed with an older one would
/// be judged by the older leaf's dates.
pub(super) struct LeafSessions {
    leaf: LiveLeaf,
    size: usize,
    tickets: RwLock<(u64, Arc<ClientSessionMemoryCache>)>,
}

impl LeafSessions {
    pub(super) fn new(leaf: &LiveLeaf, size: usize) -> Self {
        Self {
            tickets: RwLock::new((
                leaf.generation(),
                Arc::new(ClientSessionMemoryCache::new(size)),
            )),
            leaf: leaf.clone(),
            size,
        }
    }

    fn tickets(&self) -> Arc<ClientSessionMemoryCache> {
        let generation = self.leaf.generation();
        {
            let kept = self.tickets.read().unwrap_or_else(PoisonError::into_inner);
            if kept.0 == generation {
                return Arc::clone(&kept.1);
            }
        }
        let mut kept = self.tickets.write().unwrap_or_else(PoisonError::into_inner);
        if kept.0 != generation {
            *kept = (
                generation,
                Arc::new(ClientSessionMemoryCache::new(self.size)),
            );
        }
        Arc::clone(&kept.1)
    }
}

impl fmt::Debug for LeafSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafSessions").finish_non_exhaustive()
    }
}

impl ClientSessionStore for LeafSessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.tickets().set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.tickets().kx_hint(server)
    }

    // TLS 1.2 is not spoken, so there is nothing to keep for it.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.tickets().insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tickets().take_tls13_ticket(server)
    }
}
