//! A session's control stream: Hello, judgement, Welcome, then frames both ways until one side ends it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use nexus_pki::admission::PeerIdentity;
use nexus_proto::{
    agent::v1::{self as wire, GoodbyeReason, collector_frame::Kind},
    ids::{NodeId, SessionId},
    operator::v1::AuditRow,
};
use nexus_runtime::errors;
use nexus_store::{
    StoreError,
    entry::{NodeHeld, NodeNoted, SessionClosed, SessionOpened},
};
use nexus_transport::Peer;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{
    Sessions,
    hello::{self, Hello, HelloError, Known, Verdict},
    registry::{End, Opening, Session},
};
use crate::pages::metrics::{ByReason, ByTransport};

/// The first frame of a call comes within this.
pub(crate) const FIRST_FRAME: Duration = Duration::from_secs(10);
/// Frames that wait for the stream.
pub(crate) const FRAMES: usize = 4;
/// How often it is tried to write down that a session ended.
const END_AGAIN: Duration = Duration::from_secs(5);
/// A refused agent comes back after this.
const RETRY_LATER: Duration = Duration::from_secs(60);

type Frames = mpsc::Sender<Result<wire::CollectorFrame, Status>>;

/// Who is on the other side.
pub(crate) struct Remote {
    pub(crate) node: NodeId,
    pub(crate) identity: PeerIdentity,
    pub(crate) peer: Peer,
}

/// Why there was no session, or is none any more.
struct Refused {
    reason: GoodbyeReason,
    message: String,
    /// For the counter: of a fixed set.
    label: &'static str,
}

impl Refused {
    fn new(reason: GoodbyeReason, label: &'static str, message: impl ToString) -> Self {
        Self {
            reason,
            message: message.to_string(),
            label,
        }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let text = errors::chain(&error).to_string();
        match error {
            // The writer has said so, once for all that wait for it.
            StoreError::Unwritable(_) | StoreError::Unapplied(_) => {
                tracing::debug!(error = text, "a session could not be opened");
            }
            _ => tracing::error!(error = text, "a session could not be opened"),
        }
        Self::new(GoodbyeReason::Overload, "store", text)
    }
}

impl From<HelloError> for Refused {
    fn from(error: HelloError) -> Self {
        Self::new(GoodbyeReason::Protocol, "hello", errors::chain(&error))
    }
}

/// Runs a session from its first frame to its end.
pub(crate) async fn run(
    sessions: Arc<Sessions>,
    remote: Remote,
    mut inbound: Streaming<wire::AgentFrame>,
    out: Frames,
) {
    let opened = match open(&sessions, &remote, &mut inbound).await {
        Ok(opened) => opened,
        Err(refused) => {
            let label = ByReason {
                reason: refused.label,
            };
            sessions
                .metrics
                .sessions_refused
                .get_or_create(&label)
                .inc();
            tracing::warn!(node = %remote.node, reason = refused.message, "refused a session");
            goodbye(&out, refused.reason, refused.message, RETRY_LATER).await;
            return;
        }
    };
    let Opened {
        session,
        frames,
        welcome,
    } = opened;
    let by_transport = ByTransport {
        transport: session.transport,
    };
    sessions.metrics.sessions.get_or_create(&by_transport).inc();
    sessions
        .metrics
        .sessions_opened
        .get_or_create(&by_transport)
        .inc();
    tracing::info!(
        node = %session.node, name = session.name, session = %session.id,
        transport = session.transport, key_exchange = session.key_exchange, remote = %session.peer.remote,
        "session opened"
    );
    let reason = talk(&sessions, &session, welcome, frames, &mut inbound, &out).await;
    sessions.metrics.sessions.get_or_create(&by_transport).dec();
    sessions.registry.remove(&session);
    let closed = SessionClosed {
        node: session.node.to_wire(),
        session: session.id.to_wire(),
        reason: reason.clone(),
        time_ms: sessions.clock.now().as_ms(),
    };
    record_end(&sessions, &session, closed).await;
    tracing::info!(node = %session.node, session = %session.id, reason, "session ended");
}

/// Until it is written: a node would be shown as connected for good if its session ended while the disk was full.
async fn record_end(sessions: &Sessions, session: &Session, closed: SessionClosed) {
    let stop = sessions.tasks.token();
    while let Err(error) = sessions
        .store
        .append_for(session.node, closed.clone())
        .await
    {
        tracing::debug!(node = %session.node, error = %errors::chain(&error), "the end of a session could not be kept yet");
        tokio::select! {
            // The next start ends all sessions there were.
            () = stop.cancelled() => return,
            () = tokio::time::sleep(END_AGAIN) => {}
        }
    }
}

struct Opened {
    session: Arc<Session>,
    frames: mpsc::Receiver<wire::CollectorFrame>,
    welcome: Vec<wire::CollectorFrame>,
}

async fn open(
    sessions: &Sessions,
    remote: &Remote,
    inbound: &mut Streaming<wire::AgentFrame>,
) -> Result<Opened, Refused> {
    let node = remote.node;
    let first = tokio::time::timeout(FIRST_FRAME, inbound.message())
        .await
        .map_err(|_| Refused::new(GoodbyeReason::Protocol, "silent", "no Hello came"))?
        .map_err(|status| Refused::new(GoodbyeReason::Protocol, "hello", status.message()))?
        .ok_or_else(|| Refused::from(HelloError::Missing))?;
    let hello = Hello::from_wire(first)?;
    if sessions.tasks.is_shutting_down() {
        return Err(Refused::new(
            GoodbyeReason::Shutdown,
            "shutdown",
            "the collector is shutting down",
        ));
    }
    if sessions.registry.len() >= sessions.limits.sessions {
        return Err(Refused::new(
            GoodbyeReason::Overload,
            "full",
            "the collector has all the sessions it takes",
        ));
    }
    let gate = sessions.registry.gate(node);
    let _one_at_a_time = gate.lock().await;
    let row = sessions.store.node(node)?.ok_or_else(|| {
        let text = format!("{node} is not enrolled here: enrol it again with a new token");
        Refused::new(GoodbyeReason::Revoked, "unknown", text)
    })?;
    let known = Known {
        incarnation: row.incarnation,
        counter: row.session_counter,
        quarantined: (row.state == "quarantined").then(|| row.state_reason.clone()),
        revoked: row.state == "revoked",
        newer_connection: sessions.registry.connected_after(node, remote.peer.since),
    };
    let release = match hello::judge(&hello, &known) {
        Verdict::Welcome { release } => release,
        Verdict::Quarantine(reason) => {
            quarantine(sessions, remote, &reason).await?;
            return Err(Refused::new(
                GoodbyeReason::Quarantined,
                "quarantined",
                reason,
            ));
        }
        Verdict::Quarantined(reason) => {
            return Err(Refused::new(
                GoodbyeReason::Quarantined,
                "quarantined",
                reason,
            ));
        }
        Verdict::Late => {
            return Err(Refused::new(
                GoodbyeReason::Superseded,
                "late",
                "its Hello came after that of a newer session",
            ));
        }
        Verdict::Revoked => {
            return Err(Refused::new(
                GoodbyeReason::Revoked,
                "revoked",
                row.state_reason,
            ));
        }
    };
    let id = SessionId::random();
    let (session, frames) = Session::new(Opening {
        id,
        node,
        incarnation: hello.incarnation,
        name: hello.name.clone(),
        transport: remote.peer.transport.name(),
        key_exchange: remote.peer.key_exchange.to_string(),
        peer: remote.peer.clone(),
        certificate_expires: remote.identity.not_after,
        dispatch_credit: hello.dispatch_credit,
    });
    let labels = row.labels.into_iter().collect();
    let welcome = welcome(sessions, &session, &hello, labels)?;
    // Last of what can fail: a session that is recorded as open is one.
    record(sessions, remote, &hello, id, release).await?;
    sessions.registry.insert(Arc::clone(&session));
    if sessions.tasks.is_shutting_down() {
        // All sessions were told while this one was on its way.
        session.end(crate::collector::shutdown_end());
    }
    Ok(Opened {
        session,
        frames,
        welcome,
    })
}

async fn record(
    sessions: &Sessions,
    remote: &Remote,
    hello: &Hello,
    id: SessionId,
    release: bool,
) -> Result<(), Refused> {
    let node = remote.node;
    let now = sessions.clock.now();
    let opened = SessionOpened {
        node: node.to_wire(),
        session: id.to_wire(),
        counter: hello.counter,
        incarnation: hello.incarnation.to_wire(),
        name: hello.name.clone(),
        facts: Some(hello.facts.clone()),
        transport: remote.peer.transport.name().to_owned(),
        key_exchange: remote.peer.key_exchange.to_string(),
        address: remote.peer.remote.to_string(),
        rtt_us: remote.peer.rtt_us(),
        boot_id: hello.boot_id.clone(),
        certificate_expires_ms: remote.identity.not_after.as_ms(),
        time_ms: now.as_ms(),
    };
    let mut entries = Vec::new();
    if release {
        entries.push(
            NodeHeld {
                node: node.to_wire(),
                state: String::new(),
                reason: "its hello was consistent".to_owned(),
                time_ms: now.as_ms(),
            }
            .into(),
        );
    }
    entries.push(opened.into());
    let outcomes = sessions
        .store
        .append(sessions.store.shard_of(node), entries)
        .await?;
    match outcomes.iter().find_map(|outcome| outcome.refusal()) {
        Some(why) => Err(Refused::new(GoodbyeReason::Quarantined, "store", why)),
        None => Ok(()),
    }
}

/// Both holders of the identity lose their sessions, and the operator is told.
async fn quarantine(sessions: &Sessions, remote: &Remote, reason: &str) -> Result<(), Refused> {
    let node = remote.node;
    let time_ms = sessions.clock.now().as_ms();
    let held = NodeHeld {
        node: node.to_wire(),
        state: "quarantined".to_owned(),
        reason: reason.to_owned(),
        time_ms,
    };
    let noted = NodeNoted {
        node: node.to_wire(),
        kind: "quarantined".to_owned(),
        message: reason.to_owned(),
        time_ms,
    };
    let shard = sessions.store.shard_of(node);
    sessions
        .store
        .append(shard, vec![held.into(), noted.into()])
        .await?;
    let detail = serde_json::json!({ "reason": reason, "from": remote.peer.remote.ip() });
    let row = AuditRow {
        time_ms,
        actor: remote.identity.spiffe.to_string(),
        action: "session".to_owned(),
        subject: format!("nodes/{node}"),
        decision: "refused".to_owned(),
        detail: detail.to_string(),
        ..AuditRow::default()
    };
    sessions.store.audit(row).await?;
    let end = End {
        reason: GoodbyeReason::Quarantined,
        message: reason.to_owned(),
        retry_after: RETRY_LATER,
    };
    sessions.registry.end(node, end);
    Ok(())
}

fn welcome(
    sessions: &Sessions,
    session: &Session,
    hello: &Hello,
    labels: HashMap<String, String>,
) -> Result<Vec<wire::CollectorFrame>, StoreError> {
    let cursors = sessions.store.cursors(session.node, session.incarnation)?;
    let stored = sessions.store.sections(session.node)?;
    let stored = stored.into_iter().map(|row| (row.kind, row.hash)).collect();
    let welcome = wire::Welcome {
        protocol: hello.protocol,
        session_id: session.id.to_wire(),
        collector_version: env!("CARGO_PKG_VERSION").to_owned(),
        cursors: cursors
            .into_iter()
            .map(|(lane, seq)| wire::LaneState {
                lane: lane.to_wire().into(),
                seq,
            })
            .collect(),
        resend_sections: hello.sections_to_resend(&stored),
        labels,
        clock_ms: sessions.clock.now().as_ms(),
        transport: session.transport.to_owned(),
        key_exchange: session.key_exchange.clone(),
        addresses: sessions.addresses.agents(),
    };
    let mut frames = vec![frame(Kind::Welcome(Box::new(welcome)))];
    frames.extend(
        sessions
            .trust
            .current()
            .to_update()
            .map(|update| frame(Kind::Trust(Box::new(update)))),
    );
    Ok(frames)
}

/// Until the session ends; returns why it did.
async fn talk(
    sessions: &Sessions,
    session: &Session,
    welcome: Vec<wire::CollectorFrame>,
    mut frames: mpsc::Receiver<wire::CollectorFrame>,
    inbound: &mut Streaming<wire::AgentFrame>,
    out: &Frames,
) -> String {
    for frame in welcome {
        if out.send(Ok(frame)).await.is_err() {
            return "the agent is gone".to_owned();
        }
    }
    // By the monotonic clock from here on: a step of the wall clock ends no session.
    let left = session.certificate_expires.since(sessions.clock.now());
    let expiry = tokio::time::sleep(left);
    tokio::pin!(expiry);
    let mut trust = sessions.trust.changes();
    trust.mark_unchanged();
    loop {
        tokio::select! {
            end = session.end_asked() => {
                let reason = format!("{}: {}", end.reason.as_str_name(), end.message);
                goodbye(out, end.reason, end.message, end.retry_after).await;
                return reason;
            }
            () = &mut expiry => {
                let message = "the certificate of this session ran out".to_owned();
                goodbye(out, GoodbyeReason::Expired, message.clone(), Duration::ZERO).await;
                return message;
            }
            sent = forward(&mut frames, out) => {
                if !sent {
                    return "the agent is gone".to_owned();
                }
            }
            changed = trust.changed() => {
                if changed.is_err() {
                    return "the collector is shutting down".to_owned();
                }
                let update = trust.borrow_and_update().to_update();
                if let Some(update) = update {
                    session.send(Kind::Trust(Box::new(update)));
                }
            }
            frame = inbound.message() => match frame {
                Ok(Some(frame)) => {
                    if let Err(why) = take(sessions, session, frame) {
                        goodbye(out, GoodbyeReason::Protocol, why.to_owned(), RETRY_LATER).await;
                        return why.to_owned();
                    }
                }
                Ok(None) => return "the agent closed it".to_owned(),
                Err(status) => return format!("the connection ended: {}", status.message()),
            },
        }
    }
}

/// Hands on one frame. Nothing is taken from the queue before there is room for it.
async fn forward(frames: &mut mpsc::Receiver<wire::CollectorFrame>, out: &Frames) -> bool {
    let Ok(place) = out.reserve().await else {
        return false;
    };
    match frames.recv().await {
        Some(frame) => {
            place.send(Ok(frame));
            true
        }
        // The session itself holds a sender.
        None => std::future::pending().await,
    }
}

fn take(
    sessions: &Sessions,
    session: &Session,
    frame: wire::AgentFrame,
) -> Result<(), &'static str> {
    match frame.kind {
        Some(wire::agent_frame::Kind::Credit(credit)) => {
            session.add_dispatches(credit.dispatches);
            sessions.registry.credited();
            Ok(())
        }
        Some(wire::agent_frame::Kind::Trust(held)) => {
            tracing::debug!(node = %session.node, version = held.policy_version, "the agent holds the signer policy");
            Ok(())
        }
        Some(wire::agent_frame::Kind::Health(health)) => {
            if !session.set_trouble(&health.trouble) {
                tracing::debug!(node = %session.node, "the agent says of its trouble what it said before");
            } else if health.trouble.is_empty() {
                tracing::info!(node = %session.node, "the agent is out of trouble");
            } else {
                tracing::warn!(node = %session.node, trouble = health.trouble, "the agent is in trouble");
            }
            Ok(())
        }
        Some(wire::agent_frame::Kind::Hello(_)) => Err("a session has one Hello"),
        // A kind this version does not know.
        None => Ok(()),
    }
}

async fn goodbye(out: &Frames, reason: GoodbyeReason, message: String, retry_after: Duration) {
    let goodbye = wire::Goodbye {
        reason: reason.into(),
        message,
        retry_after_ms: u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX),
    };
    // An agent that reads nothing any more will find out by itself.
    let _gone = tokio::time::timeout(
        Duration::from_secs(1),
        out.send(Ok(frame(Kind::Goodbye(goodbye)))),
    )
    .await;
}

fn frame(kind: Kind) -> wire::CollectorFrame {
    wire::CollectorFrame { kind: Some(kind) }
}
