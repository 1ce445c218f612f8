//! The live sessions: one a node, the newest.
//!
//! The registry is memory only. A session is in it from its Welcome until its stream ends, a newer one of
//! the same node takes over, or somebody ends it; whoever waits for nodes to come and go watches
//! [`Registry::changes`], which only hints that something did.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nexus_proto::{
    agent::v1 as wire,
    ids::{Incarnation, Lane, NodeId, SessionId},
    limits,
    time::Timestamp,
};
use nexus_transport::Peer;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Frames to an agent that wait for its stream.
pub(crate) const OUTBOX_FRAMES: usize = 64;

/// Why a session was ended from this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// As the agent is told.
    pub(crate) reason: wire::GoodbyeReason,
    /// In words.
    pub(crate) message: String,
    /// When the agent may come back.
    pub(crate) retry_after: Duration,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) name: String,
    pub(crate) transport: &'static str,
    pub(crate) key_exchange: String,
    pub(crate) peer: Peer,
    pub(crate) certificate_expires: Timestamp,
    outbox: mpsc::Sender<wire::CollectorFrame>,
    dispatch_credit: AtomicU32,
    trouble: Mutex<String>,
    end: watch::Sender<Option<End>>,
    ended: CancellationToken,
    /// What ends the upload of each lane.
    uploads: Mutex<BTreeMap<Lane, CancellationToken>>,
}

/// What is needed to make a session.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) id: SessionId,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) name: String,
    pub(crate) transport: &'static str,
    pub(crate) key_exchange: String,
    pub(crate) peer: Peer,
    pub(crate) certificate_expires: Timestamp,
    pub(crate) dispatch_credit: u32,
}

impl Session {
    /// A session and the frames that are to be written to its agent.
    pub(crate) fn new(opening: Opening) -> (Arc<Self>, mpsc::Receiver<wire::CollectorFrame>) {
        let (outbox, frames) = mpsc::channel(OUTBOX_FRAMES);
        let session = Self {
            id: opening.id,
            node: opening.node,
            incarnation: opening.incarnation,
            name: opening.name,
            transport: opening.transport,
            key_exchange: opening.key_exchange,
            peer: opening.peer,
            certificate_expires: opening.certificate_expires,
            outbox,
            dispatch_credit: AtomicU32::new(opening.dispatch_credit),
            trouble: Mutex::default(),
            end: watch::Sender::new(None),
            ended: CancellationToken::new(),
            uploads: Mutex::default(),
        };
        (Arc::new(session), frames)
    }

    /// What keeps the agent from its work, in its own words; empty: nothing.
    pub(crate) fn trouble(&self) -> String {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The agent said so; whether it says anything else than before.
    pub(crate) fn set_trouble(&self, text: &str) -> bool {
        let text: String = text.chars().take(limits::REASON_BYTES / 4).collect();
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *trouble != text;
        *trouble = text;
        changed
    }

    /// Queues a frame; `false` when the agent does not read, and so has to come back: what it missed is told to its
    /// next session.
    pub(crate) fn send(&self, kind: wire::collector_frame::Kind) -> bool {
        let frame = wire::CollectorFrame { kind: Some(kind) };
        let queued = self.outbox.try_send(frame).is_ok();
        if !queued {
            self.end(End {
                reason: wire::GoodbyeReason::Overload,
                message: "the agent does not read what it is sent".to_owned(),
                retry_after: Duration::ZERO,
            });
        }
        queued
    }

    /// Ends it; the first reason counts.
    pub(crate) fn end(&self, end: End) {
        self.end.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(end);
            }
            first
        });
        self.ended.cancel();
    }

    /// Resolves once it was ended from this side, with the reason.
    pub(crate) async fn end_asked(&self) -> End {
        self.ended.cancelled().await;
        let end = self.end.borrow().clone();
        end.unwrap_or(End {
            reason: wire::GoodbyeReason::Unspecified,
            message: String::new(),
            retry_after: Duration::ZERO,
        })
    }

    /// For a new upload of a lane, which takes the place of the one before: what resolves with its end, or with
    /// that of the session, whoever caused it.
    pub(crate) fn take_lane(&self, lane: Lane) -> CancellationToken {
        let token = self.ended.child_token();
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = uploads.insert(lane, token.clone()) {
            before.cancel();
        }
        token
    }

    /// Its stream is gone.
    pub(crate) fn close(&self) {
        self.ended.cancel();
    }

    /// Whether the agent takes a further dispatch.
    pub(crate) fn takes_dispatch(&self) -> bool {
        self.dispatch_credit.load(Ordering::Relaxed) > 0
    }

    /// Uses one dispatch of the agent's credit.
    pub(crate) fn take_dispatch(&self) -> bool {
        self.dispatch_credit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    }

    /// The agent can take more.
    pub(crate) fn add_dispatches(&self, more: u32) {
        let most = nexus_proto::limits::CONCURRENT_RUNS;
        let _always_some =
            self.dispatch_credit
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    Some(left.saturating_add(more).min(most))
                });
    }
}

/// All live sessions.
#[derive(Debug)]
pub(crate) struct Registry {
    sessions: Mutex<HashMap<NodeId, Arc<Session>>>,
    opening: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<()>>>>,
    /// When the connection of each node's newest session was taken in.
    connected: Mutex<HashMap<NodeId, Instant>>,
    changes: watch::Sender<u64>,
    credits: watch::Sender<u64>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            sessions: Mutex::default(),
            opening: Mutex::default(),
            connected: Mutex::default(),
            changes: watch::Sender::new(0),
            credits: watch::Sender::new(0),
        }
    }
}

impl Registry {
    /// Lets one Hello of a node be judged at a time: judging reads the row that welcoming writes.
    pub(crate) fn gate(&self, node: NodeId) -> Arc<tokio::sync::Mutex<()>> {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        // Gates nobody holds are forgotten now and then, so that the map follows the crowd.
        if opening.len() > 1024 {
            opening.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        Arc::clone(opening.entry(node).or_default())
    }

    /// Puts a session in, and ends the one it takes the place of.
    pub(crate) fn insert(&self, session: Arc<Session>) {
        let mut connected = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connected.insert(session.node, session.peer.since);
        drop(connected);
        let older = self.lock().insert(session.node, session);
        if let Some(older) = older {
            older.end(End {
                reason: wire::GoodbyeReason::Superseded,
                message: "a newer session of this agent took over".to_owned(),
                retry_after: Duration::ZERO,
            });
        }
        self.hint();
    }

    /// Takes a session out, unless a newer one stands there already.
    pub(crate) fn remove(&self, session: &Session) -> bool {
        session.close();
        let mut sessions = self.lock();
        let ours = sessions
            .get(&session.node)
            .is_some_and(|current| current.id == session.id);
        if ours {
            sessions.remove(&session.node);
        }
        drop(sessions);
        self.hint();
        ours
    }

    /// Whether the node's newest session, which may have ended, came by a connection taken in after `since`.
    pub(crate) fn connected_after(&self, node: NodeId, since: Instant) -> bool {
        let connected = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connected.get(&node).is_some_and(|newest| *newest > since)
    }

    /// A node's session.
    pub(crate) fn get(&self, node: NodeId) -> Option<Arc<Session>> {
        self.lock().get(&node).cloned()
    }

    /// Ends a node's session, if it has one.
    pub(crate) fn end(&self, node: NodeId, end: End) {
        if let Some(session) = self.get(node) {
            session.end(end);
        }
    }

    /// Ends them all.
    pub(crate) fn end_all(&self, end: &End) {
        for session in self.all() {
            session.end(end.clone());
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// All of them, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        self.lock().values().cloned().collect()
    }

    /// Changes when a session came or went.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Changes when an agent takes more.
    pub(crate) fn credits(&self) -> watch::Receiver<u64> {
        self.credits.subscribe()
    }

    /// An agent takes more.
    pub(crate) fn credited(&self) {
        self.credits
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn hint(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use nexus_transport::TransportKind;

    use super::*;

    fn opening(node: NodeId) -> Opening {
        Opening {
            id: SessionId::random(),
            node,
            incarnation: Incarnation::random(),
            name: "web-1".to_owned(),
            transport: "quic",
            key_exchange: "X25519".to_owned(),
            peer: Peer::played(
                None,
                TransportKind::Quic,
                "X25519",
                "127.0.0.1:1".parse().unwrap(),
            ),
            certificate_expires: Timestamp(1),
            dispatch_credit: 1,
        }
    }

    fn session(node: NodeId) -> Arc<Session> {
        Session::new(opening(node)).0
    }

    #[tokio::test]
    async fn the_newer_session_takes_over() {
        let registry = Registry::default();
        let node = NodeId::random();
        let (old, new) = (session(node), session(node));
        registry.insert(Arc::clone(&old));
        registry.insert(Arc::clone(&new));
        assert_eq!(
            old.end_asked().await.reason,
            wire::GoodbyeReason::Superseded
        );
        assert!(!registry.remove(&old), "the newer one must stay");
        assert_eq!(registry.get(node).unwrap().id, new.id);
        assert!(registry.remove(&new));
        assert!(registry.get(node).is_none());
    }

    #[tokio::test]
    async fn who_does_not_read_has_to_come_back() {
        let (session, frames) = Session::new(opening(NodeId::random()));
        let cancel = || wire::collector_frame::Kind::Cancel(wire::Cancel::default());
        for _ in 0..OUTBOX_FRAMES {
            assert!(session.send(cancel()));
        }
        assert!(!session.send(cancel()));
        assert_eq!(
            session.end_asked().await.reason,
            wire::GoodbyeReason::Overload
        );
        drop(frames);
    }

    #[test]
    fn dispatch_credit_runs_out_and_comes_back() {
        let session = session(NodeId::random());
        assert!(session.take_dispatch());
        assert!(!session.takes_dispatch() && !session.take_dispatch());
        session.add_dispatches(2);
        assert!(session.take_dispatch() && session.take_dispatch() && !session.take_dispatch());
    }
}
