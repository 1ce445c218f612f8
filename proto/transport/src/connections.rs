//! The connections of a port: how many, whose, and how to cut them.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nexus_pki::spiffe::SpiffeId;
use nexus_proto::limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{peer::TransportKind, tune::Windows};

/// What a port takes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address; fleets behind one NAT need many.
    pub connections_per_address: usize,
    /// Handshakes at the same time.
    pub handshakes: usize,
    /// Calls of one connection at the same time.
    pub calls: u32,
    /// How long a connection without a certificate may last.
    pub anonymous_life: Duration,
    /// How long calls may go on once shutdown has begun.
    pub drain: Duration,
    /// Windows of each connection.
    pub windows: Windows,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_address: 20_000,
            handshakes: 512,
            calls: limits::STREAMS,
            anonymous_life: Duration::from_secs(60),
            drain: Duration::from_secs(10),
            windows: Windows::collector(),
        }
    }
}

/// What a port has seen, to be published.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections open now, over QUIC.
    pub open_quic: AtomicU64,
    /// Connections open now, over TCP.
    pub open_tcp: AtomicU64,
    /// Connections admitted, over QUIC.
    pub accepted_quic: AtomicU64,
    /// Connections admitted, over TCP.
    pub accepted_tcp: AtomicU64,
    /// Connections that admission refused after their handshake.
    pub not_admitted: AtomicU64,
    /// Handshakes that failed, refused certificates among them.
    pub handshakes_failed: AtomicU64,
    /// Connections turned away because a limit was reached.
    pub overload: AtomicU64,
    /// Calls begun.
    pub calls: AtomicU64,
    /// Streams refused for what they carried outside of their data.
    pub streams_refused: AtomicU64,
    /// Connections cut by [`Connections::cut`].
    pub cut: AtomicU64,
}

/// A peer whose certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Where it came from.
    pub remote: SocketAddr,
    /// Over which transport.
    pub transport: TransportKind,
    /// In words, for whoever can mend it.
    pub reason: String,
}

/// The connections of a port. Clones are the same.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    limits: Limits,
    counters: Counters,
    handshakes: Arc<Semaphore>,
    live: Mutex<Live>,
    refused: Option<mpsc::Sender<Refused>>,
}

#[derive(Default)]
struct Live {
    next: u64,
    total: usize,
    by_address: HashMap<IpAddr, usize>,
    by_identity: HashMap<SpiffeId, HashMap<u64, Arc<Cut>>>,
}

/// Ends one connection, with a reason.
#[derive(Default)]
pub(crate) struct Cut {
    token: CancellationToken,
    reason: OnceLock<String>,
}

impl Cut {
    /// Waits to be cut; why.
    pub(crate) async fn wait(&self) -> &str {
        self.token.cancelled().await;
        self.reason.get().map_or("", String::as_str)
    }
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::telling(limits, None)
    }

    /// The same, telling of every peer whose certificate is refused for as long as the queue has room.
    #[must_use]
    pub fn telling(limits: Limits, refused: Option<mpsc::Sender<Refused>>) -> Self {
        let handshakes = Arc::new(Semaphore::new(limits.handshakes));
        let (counters, live) = Default::default();
        Self(Arc::new(Inner {
            limits,
            counters,
            handshakes,
            live,
            refused,
        }))
    }

    /// What was seen.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn tell(&self, refused: Refused) {
        if let Some(queue) = &self.0.refused {
            // Counted, logged, and told to the peer all the same.
            queue.try_send(refused).ok();
        }
    }

    /// Ends every connection of an identity; how many there were.
    pub fn cut(&self, identity: &SpiffeId, reason: &str) -> usize {
        let live = self.live();
        let Some(cuts) = live.by_identity.get(identity) else {
            return 0;
        };
        for cut in cuts.values() {
            cut.reason.set(reason.to_owned()).ok();
            cut.token.cancel();
            self.0.counters.cut.fetch_add(1, Ordering::Relaxed);
        }
        cuts.len()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// A place for a connection and for its handshake; none when a limit is reached.
    pub(crate) fn begin(&self, address: IpAddr) -> Option<(Slot, OwnedSemaphorePermit)> {
        let slot = self.slot(address);
        let permit = Arc::clone(&self.0.handshakes).try_acquire_owned().ok();
        let both = slot.zip(permit);
        if both.is_none() {
            self.0.counters.overload.fetch_add(1, Ordering::Relaxed);
        }
        both
    }

    fn slot(&self, address: IpAddr) -> Option<Slot> {
        let address = address.to_canonical();
        let mut live = self.live();
        if live.total >= self.0.limits.connections {
            return None;
        }
        let of_address = live.by_address.entry(address).or_default();
        if *of_address >= self.0.limits.connections_per_address {
            return None;
        }
        *of_address += 1;
        live.total += 1;
        live.next += 1;
        let id = live.next;
        drop(live);
        Some(Slot {
            connections: self.clone(),
            id,
            address,
            identity: None,
            cut: Arc::default(),
        })
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection, given back when it ends.
pub(crate) struct Slot {
    connections: Connections,
    id: u64,
    address: IpAddr,
    identity: Option<SpiffeId>,
    pub(crate) cut: Arc<Cut>,
}

impl Slot {
    /// Lets the connection be cut by whose it is.
    pub(crate) fn identify(&mut self, identity: &SpiffeId) {
        let cut = Arc::clone(&self.cut);
        let mut live = self.connections.live();
        live.by_identity
            .entry(identity.clone())
            .or_default()
            .insert(self.id, cut);
        drop(live);
        self.identity = Some(identity.clone());
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut live = self.connections.live();
        live.total = live.total.saturating_sub(1);
        if let Some(count) = live.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                live.by_address.remove(&self.address);
            }
        }
        if let Some(identity) = &self.identity
            && let Some(cuts) = live.by_identity.get_mut(identity)
        {
            cuts.remove(&self.id);
            if cuts.is_empty() {
                live.by_identity.remove(identity);
            }
        }
    }
}
