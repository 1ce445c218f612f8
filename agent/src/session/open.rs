//! A connection becomes a session: Hello, Welcome.

use std::time::{Duration, Instant};

use nexus_pki::certificate::Serial;
use nexus_proto::{
    PROTOCOL,
    agent::v1::{
        self as wire, GoodbyeReason, agent_client::AgentClient, agent_frame, collector_frame::Kind,
    },
    ids::{IdError, Lane, SessionId},
    limits,
};
use nexus_transport::{Connection, DialError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Surroundings;
use crate::identity::IdentityError;

/// A collector that has not welcomed an agent by then is not going to.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a node that is not wanted waits before it asks again, at least.
const NOT_WANTED: Duration = Duration::from_secs(60);
/// Frames that wait for the stream.
const FRAMES: usize = 4;

/// A session the collector has welcomed.
pub(super) struct Open {
    pub(super) connection: Connection,
    pub(super) id: SessionId,
    pub(super) granted: u32,
    pub(super) resend: Vec<String>,
    pub(super) addresses: Vec<String>,
    pub(super) outbound: mpsc::Sender<wire::AgentFrame>,
    pub(super) inbound: Streaming<wire::CollectorFrame>,
    /// Of the certificate it was opened with.
    pub(super) serial: Serial,
    pub(super) since: Instant,
}

/// What a collector says when it ends a session, or does not begin one.
#[derive(Debug)]
pub(super) struct Goodbye {
    pub(super) reason: GoodbyeReason,
    pub(super) message: String,
    pub(super) retry_after: Duration,
}

impl Goodbye {
    /// How long to stay away, at least.
    pub(super) fn stay_away(&self) -> Duration {
        match self.reason {
            GoodbyeReason::Quarantined | GoodbyeReason::Revoked | GoodbyeReason::Protocol => {
                self.retry_after.max(NOT_WANTED)
            }
            _ => self.retry_after,
        }
    }
}

impl From<wire::Goodbye> for Goodbye {
    fn from(goodbye: wire::Goodbye) -> Self {
        Self {
            reason: goodbye.reason(),
            message: goodbye
                .message
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .take(limits::REASON_BYTES)
                .collect(),
            retry_after: Duration::from_millis(goodbye.retry_after_ms),
        }
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// No connection.
    #[error("no collector can be reached")]
    Dial(#[from] DialError),
    /// The agent's own state.
    #[error("the agent's state does not allow a session")]
    State(#[from] IdentityError),
    /// The call failed.
    #[error("the session's call failed: {}", .0.message())]
    Call(Status),
    /// It does not want this agent, or not now.
    #[error("the collector said goodbye: {}", .0.message)]
    Goodbye(Goodbye),
    /// Something else than Welcome.
    #[error("the collector's first frame is no Welcome")]
    NoWelcome,
    /// A Welcome that cannot be read.
    #[error("the Welcome's session id is not readable")]
    Id(#[from] IdError),
    /// A version this agent did not offer.
    #[error("the collector chose protocol {0}, which this agent does not speak")]
    Protocol(u32),
    /// No answer.
    #[error("the collector did not answer the Hello within {}s", WELCOME_TIMEOUT.as_secs())]
    Silent,
}

impl OpenError {
    /// How long the collector wants to be left alone.
    pub(super) fn stay_away(&self) -> Duration {
        match self {
            Self::Goodbye(goodbye) => goodbye.stay_away(),
            _ => Duration::ZERO,
        }
    }
}

/// Says Hello on a new connection.
pub(super) async fn open(around: &Surroundings, connection: Connection) -> Result<Open, OpenError> {
    let serial = around.live.current().serial().clone();
    let hello = hello(around)?;
    let granted = hello.dispatch_credit;
    let (outbound, frames) = mpsc::channel(FRAMES);
    // There is room for the first frame.
    let first = agent_frame::Kind::Hello(Box::new(hello));
    outbound
        .send(wire::AgentFrame { kind: Some(first) })
        .await
        .ok();
    let mut client = AgentClient::new(connection.channel.clone())
        .max_decoding_message_size(limits::COLLECTOR_FRAME_BYTES);
    let welcomed = async {
        let call = client.session(ReceiverStream::new(frames));
        let mut inbound = call.await.map_err(OpenError::Call)?.into_inner();
        let first = inbound.message().await.map_err(OpenError::Call)?;
        match first.and_then(|frame| frame.kind) {
            Some(Kind::Welcome(welcome)) => Ok((inbound, welcome)),
            Some(Kind::Goodbye(goodbye)) => Err(OpenError::Goodbye(goodbye.into())),
            _ => Err(OpenError::NoWelcome),
        }
    };
    let (inbound, welcome) = tokio::time::timeout(WELCOME_TIMEOUT, welcomed)
        .await
        .map_err(|_| OpenError::Silent)??;
    if !(PROTOCOL.0..=PROTOCOL.1).contains(&welcome.protocol) {
        return Err(OpenError::Protocol(welcome.protocol));
    }
    let id = SessionId::from_wire(&welcome.session_id)?;
    tracing::info!(
        session = %id, transport = %connection.transport, key_exchange = connection.key_exchange,
        remote = %connection.remote, collector_version = welcome.collector_version,
        "session opened"
    );
    Ok(Open {
        connection,
        id,
        granted,
        resend: welcome.resend_sections,
        addresses: welcome.addresses,
        outbound,
        inbound,
        serial,
        since: around.clock.instant(),
    })
}

fn hello(around: &Surroundings) -> Result<wire::Hello, IdentityError> {
    let lanes = Lane::ALL.iter().map(|lane| wire::LaneState {
        lane: lane.to_wire().into(),
        seq: around.spool.lowest(*lane),
    });
    let sections = around.spool.sections();
    let sections = sections.into_iter().map(|(kind, hash)| wire::SectionState {
        kind,
        hash: hash.to_vec().into(),
    });
    Ok(wire::Hello {
        protocol_min: PROTOCOL.0,
        protocol_max: PROTOCOL.1,
        incarnation: around.folder.incarnation().to_wire(),
        session_counter: around.folder.next_session()?,
        name: around.member.name.clone(),
        facts: Some(around.facts.clone()),
        lanes: lanes.collect(),
        sections: sections.collect(),
        policy_version: around.member.trust.state().0,
        clock_ms: around.clock.now().as_ms(),
        dispatch_credit: around.runs.credit(),
        boot_id: around.boot_id.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goodbye_is_one_line_and_says_how_long() {
        let said = |reason: GoodbyeReason, retry_after_ms| {
            let message = "no\nWATCHDOG=trigger\u{7f}".to_owned();
            Goodbye::from(wire::Goodbye {
                reason: reason.into(),
                message,
                retry_after_ms,
            })
        };
        let goodbye = said(GoodbyeReason::Quarantined, 5);
        assert_eq!(goodbye.message, "no WATCHDOG=trigger ");
        assert_eq!(OpenError::Goodbye(goodbye).stay_away(), NOT_WANTED);
        let busy = OpenError::Goodbye(said(GoodbyeReason::Overload, 7_000));
        assert_eq!(busy.stay_away(), Duration::from_secs(7));
        assert_eq!(OpenError::Silent.stay_away(), Duration::ZERO);
    }
}
