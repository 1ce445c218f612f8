//! The connections of a port: how many, whose, and how to cut them.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nexus_pki::spiffe::SpiffeId;
use nexus_proto::limits;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    half_open::{Full, Half, HalfOpen, origin},
    knocks::Knocks,
    peer::TransportKind,
    tune::Windows,
};

/// What a port takes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one identity; a newer one ends the oldest.
    pub connections_per_identity: usize,
    /// Handshakes at the same time, of each transport. Once half are taken one address may have its
    /// [`limits::HANDSHAKE_SHARE`].
    pub handshakes: usize,
    /// Calls of one connection at the same time.
    pub calls: u32,
    /// How long calls may go on once shutdown has begun.
    pub drain: Duration,
    /// Windows of each connection.
    pub windows: Windows,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_identity: limits::CONNECTIONS_PER_AGENT,
            handshakes: 512,
            calls: limits::STREAMS,
            drain: Duration::from_secs(10),
            windows: Windows::collector(),
        }
    }
}

impl Limits {
    fn half_open(&self, patience: Duration) -> HalfOpen {
        let share = self.handshakes / limits::HANDSHAKE_SHARE;
        HalfOpen::new(self.handshakes, share, patience)
    }

    /// Connections without a certificate.
    fn anonymous(&self) -> usize {
        (self.connections / limits::ANONYMOUS_SHARE).max(1)
    }
}

/// What a port has seen, to be published.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections open now, over QUIC.
    pub open_quic: AtomicU64,
    /// Connections open now, over TCP.
    pub open_tcp: AtomicU64,
    /// Clients that wait for their handshakes now, over QUIC.
    pub waiting_quic: AtomicU64,
    /// Connections admitted, over QUIC.
    pub accepted_quic: AtomicU64,
    /// Connections admitted, over TCP.
    pub accepted_tcp: AtomicU64,
    /// Connections that admission refused after their handshake.
    pub not_admitted: AtomicU64,
    /// Handshakes that failed, refused certificates among them.
    pub handshakes_failed: AtomicU64,
    /// Connections turned away, and handshakes ended for newer ones, because a limit was reached.
    pub overload: AtomicU64,
    /// Calls begun.
    pub calls: AtomicU64,
    /// Streams refused for what they carried outside of their data.
    pub streams_refused: AtomicU64,
    /// Connections cut: by [`Connections::cut`], or for newer ones of the same identity or without one.
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
    quic: HalfOpen,
    tcp: HalfOpen,
    live: Mutex<Live>,
    /// Told when a connection without a certificate has ended.
    freed: Notify,
    refused: Option<mpsc::Sender<Refused>>,
    knocks: Knocks,
}

#[derive(Default)]
struct Live {
    next: u64,
    total: usize,
    // Ids rise with time: the first of a map is the oldest.
    by_identity: HashMap<SpiffeId, BTreeMap<u64, Arc<Cut>>>,
    anonymous: BTreeMap<u64, Anonymous>,
}

/// A connection without a certificate.
struct Anonymous {
    origin: IpAddr,
    since: Instant,
    cut: Arc<Cut>,
}

/// Ends one connection, with a reason.
#[derive(Default)]
pub(crate) struct Cut {
    token: CancellationToken,
    reason: OnceLock<String>,
}

impl Cut {
    fn cut(&self, reason: &str) {
        self.reason.set(reason.to_owned()).ok();
        self.token.cancel();
    }

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
        let (counters, live, freed) = Default::default();
        Self(Arc::new(Inner {
            quic: limits.half_open(nexus_proto::limits::HANDSHAKE_PATIENCE_QUIC),
            tcp: limits.half_open(nexus_proto::limits::HANDSHAKE_PATIENCE_TCP),
            limits,
            counters,
            live,
            freed,
            refused,
            knocks: Knocks::default(),
        }))
    }

    /// What was seen.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn knocks(&self) -> &Knocks {
        &self.0.knocks
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
            cut.cut(reason);
            self.0.counters.cut.fetch_add(1, Ordering::Relaxed);
        }
        cuts.len()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// A place for a handshake, unless a limit is reached.
    pub(crate) fn begin(&self, transport: TransportKind, address: IpAddr) -> Result<Half, Full> {
        if self.live().total >= self.0.limits.connections {
            return Err(Full::Connections);
        }
        self.half_open(transport).begin(address, Instant::now())
    }

    /// Resolves when there may be a place for a handshake again.
    pub(crate) async fn freed(&self, transport: TransportKind) {
        self.half_open(transport).freed().await;
    }

    /// Whether strangers at `address` should first prove that it is theirs.
    pub(crate) fn is_crowded(&self, transport: TransportKind, address: IpAddr) -> bool {
        self.half_open(transport).is_crowded(address)
    }

    pub(crate) fn count_overload(&self) {
        self.0.counters.overload.fetch_add(1, Ordering::Relaxed);
    }

    fn half_open(&self, transport: TransportKind) -> &HalfOpen {
        match transport {
            TransportKind::Quic => &self.0.quic,
            TransportKind::Tcp => &self.0.tcp,
        }
    }

    /// A place for a connection whose certificate was admitted, if need be that of an older one of the same identity.
    pub(crate) fn identified(&self, identity: &SpiffeId) -> Option<Slot> {
        let mut live = self.live();
        let mut slot = self.slot(&mut live)?;
        slot.identity = Some(identity.clone());
        let own = live.by_identity.entry(identity.clone()).or_default();
        own.insert(slot.id, Arc::clone(&slot.cut));
        while own.len() > self.0.limits.connections_per_identity.max(1)
            && let Some((_, oldest)) = own.pop_first()
        {
            oldest.cut("newer connections of the same identity took its place");
            self.0.counters.cut.fetch_add(1, Ordering::Relaxed);
        }
        Some(slot)
    }

    /// Waits for a place for a connection without a certificate. They are few, so that however many there are,
    /// whoever has a certificate gets in.
    pub(crate) async fn anonymous(&self, address: IpAddr) -> Option<Slot> {
        loop {
            let freed = self.0.freed.notified();
            match self.try_anonymous(address, Instant::now()) {
                Ok(slot) => return slot,
                Err(until) => tokio::select! {
                    () = freed => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    /// A place, if there is one in all; the error says until when to wait for one of those kept for the anonymous.
    fn try_anonymous(&self, address: IpAddr, now: Instant) -> Result<Option<Slot>, Instant> {
        let origin = origin(address);
        let mut live = self.live();
        let own = || {
            live.anonymous
                .iter()
                .filter(|(_, one)| one.origin == origin)
        };
        let oldest = if own().count() >= limits::ANONYMOUS_CONNECTIONS {
            own().next()
        } else if live.anonymous.len() >= self.0.limits.anonymous() {
            live.anonymous.iter().next()
        } else {
            None
        };
        if let Some((&id, oldest)) = oldest {
            let until = oldest.since + limits::ANONYMOUS_PATIENCE;
            if now < until {
                return Err(until);
            }
            if let Some(oldest) = live.anonymous.remove(&id) {
                oldest.cut.cut("newer connections took its place");
                self.0.counters.cut.fetch_add(1, Ordering::Relaxed);
            }
        }
        let slot = self.slot(&mut live);
        if let Some(slot) = &slot {
            let one = Anonymous {
                origin,
                since: now,
                cut: Arc::clone(&slot.cut),
            };
            live.anonymous.insert(slot.id, one);
        }
        Ok(slot)
    }

    fn slot(&self, live: &mut Live) -> Option<Slot> {
        if live.total >= self.0.limits.connections {
            self.count_overload();
            return None;
        }
        live.total += 1;
        live.next += 1;
        Some(Slot {
            connections: self.clone(),
            id: live.next,
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
    identity: Option<SpiffeId>,
    pub(crate) cut: Arc<Cut>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut live = self.connections.live();
        live.total = live.total.saturating_sub(1);
        match &self.identity {
            Some(identity) => {
                if let Some(cuts) = live.by_identity.get_mut(identity) {
                    cuts.remove(&self.id);
                    if cuts.is_empty() {
                        live.by_identity.remove(identity);
                    }
                }
            }
            None => {
                live.anonymous.remove(&self.id);
                drop(live);
                self.connections.0.freed.notify_waiters();
            }
        }
    }
}
