//! A session's control stream, from Welcome to its end, with the uploads beside it.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nexus_proto::{
    agent::v1::{self as wire, GoodbyeReason, agent_frame, collector_frame::Kind},
    ids::{JobId, Lane},
};
use nexus_runtime::errors;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Surroundings,
    open::{Goodbye, Open},
    pace::Grants,
    successor::{self, Dial},
    upload,
};
use crate::identity::IdentityError;

/// How long the session that replaces this one may still take once the collector has let go of this one.
const HANDOVER: Duration = Duration::from_secs(10);

/// Why a session is over.
pub(super) enum End {
    /// The agent stops.
    Stopped,
    /// The collector ended it.
    Goodbye(Goodbye),
    /// The connection is gone.
    Lost(String),
}

/// Runs a session until it is over, or another one of this agent took over.
pub(super) async fn talk(
    around: &Surroundings,
    open: &mut Open,
    (dial, news): (&Dial, &mut watch::Receiver<Dial>),
    stop: &CancellationToken,
) -> Result<Box<(Open, Dial)>, End> {
    let lane = |lane| upload::run(around, open.id, lane, open.connection.channel.clone());
    let mut results = pin!(lane(Lane::Results));
    let mut inventory = pin!(lane(Lane::Inventory));
    let mut metrics = pin!(lane(Lane::Metrics));
    let handing_over = AtomicBool::new(false);
    let next = successor::prepare(
        around,
        (dial, news),
        &open.connection,
        &open.serial,
        &handing_over,
    );
    let mut next = Box::pin(next);
    let mut closed = pin!(open.connection.closed());
    let mut control = Control {
        around,
        grants: Grants::new(open.granted),
        waiting: VecDeque::new(),
    };
    if !around.troubles.text().is_empty() {
        control.health();
    }
    loop {
        control.grant();
        let ended = tokio::select! {
            // In the order of what matters most when several are ready.
            biased;
            () = stop.cancelled() => return Err(End::Stopped),
            frame = open.inbound.message() => match frame {
                Ok(Some(frame)) => match control.take(frame) {
                    Some(end) => end,
                    None => continue,
                },
                Ok(None) => End::Lost("the collector ended the session's call".to_owned()),
                Err(status) => End::Lost(status.message().to_owned()),
            },
            closed = closed.as_mut() => End::Lost(closed.to_string()),
            place = open.outbound.reserve(), if !control.waiting.is_empty() => match place {
                Ok(place) => {
                    if let Some(kind) = control.waiting.pop_front() {
                        place.send(wire::AgentFrame { kind: Some(kind) });
                    }
                    continue;
                }
                Err(_) => End::Lost("the session's call ended".to_owned()),
            },
            () = around.runs.ended() => continue,
            () = around.troubles.changed() => {
                control.health();
                continue;
            }
            next = next.as_mut() => return Ok(Box::new(next)),
            never = results.as_mut() => match never {},
            never = inventory.as_mut() => match never {},
            never = metrics.as_mut() => match never {},
        };
        // The collector lets go of this session as soon as it hears of the next one.
        let superseded = match &ended {
            End::Goodbye(goodbye) => goodbye.reason == GoodbyeReason::Superseded,
            End::Lost(_) => true,
            End::Stopped => false,
        };
        if superseded
            && handing_over.load(Ordering::Relaxed)
            && let Ok(next) = tokio::time::timeout(HANDOVER, next.as_mut()).await
        {
            return Ok(Box::new(next));
        }
        return Err(ended);
    }
}

struct Control<'a> {
    around: &'a Surroundings,
    grants: Grants,
    /// Frames to send. Each kind stands in it once at most.
    waiting: VecDeque<agent_frame::Kind>,
}

impl Control<'_> {
    /// Tells the collector when there is room for more jobs.
    fn grant(&mut self) {
        if let Some(dispatches) = self.grants.top_up(self.around.runs.credit()) {
            let waits = self.waiting.iter_mut().find_map(|kind| match kind {
                agent_frame::Kind::Credit(credit) => Some(credit),
                _ => None,
            });
            if let Some(credit) = waits {
                credit.dispatches = credit.dispatches.saturating_add(dispatches);
            } else {
                let credit = wire::DispatchCredit { dispatches };
                self.waiting.push_back(agent_frame::Kind::Credit(credit));
            }
        }
    }

    /// Tells what does not work, or that everything does again.
    fn health(&mut self) {
        let trouble = self.around.troubles.text();
        self.waiting
            .retain(|kind| !matches!(kind, agent_frame::Kind::Health(_)));
        self.waiting
            .push_back(agent_frame::Kind::Health(wire::Health { trouble }));
    }

    /// Does what a frame asks for; why the session is over, if it is.
    fn take(&mut self, frame: wire::CollectorFrame) -> Option<End> {
        let around = self.around;
        match frame.kind {
            Some(Kind::Dispatch(dispatch)) => {
                if !self.grants.used() {
                    let reason = "the collector sent a job that was not asked for";
                    return Some(End::Lost(reason.to_owned()));
                }
                around.runs.offer(&dispatch);
            }
            Some(Kind::Cancel(cancel)) => match JobId::from_wire(&cancel.job_id) {
                Ok(job) => around.runs.cancel(job, &cancel.reason),
                Err(error) => tracing::warn!(%error, "a cancellation names no job"),
            },
            Some(Kind::Trust(update)) => self.trust(*update),
            Some(Kind::Labels(labels)) => {
                tracing::debug!(labels = labels.labels.len(), "the node's labels changed");
            }
            Some(Kind::Section(section)) => around.wanted.ask(section.kinds),
            Some(Kind::Goodbye(goodbye)) => return Some(End::Goodbye(goodbye.into())),
            Some(Kind::Welcome(_)) => tracing::warn!("the collector said Welcome twice"),
            None => {
                tracing::debug!("the collector sent a frame of a kind this version does not know")
            }
        }
        None
    }

    fn trust(&mut self, update: wire::TrustUpdate) {
        let trust = &self.around.member.trust;
        let before = trust.state();
        match trust.update(self.around.folder.path(), update) {
            Ok(()) => {}
            Err(error @ IdentityError::File(_)) => {
                tracing::error!(error = %errors::chain(&error), "a change of the signer policy cannot be kept");
            }
            Err(error) => {
                let reason = errors::chain(&error).to_string();
                let now = self.around.clock.now();
                self.around.spool.complain(now, "trust_refused", &reason);
            }
        }
        let (policy_version, expires) = trust.state();
        if (policy_version, expires) == before {
            return;
        }
        tracing::info!(policy_version, fresh_until = %expires, "the signer policy is up to date");
        self.around.runs.trust_changed();
        let held = wire::TrustHeld {
            policy_version,
            freshness_expires_ms: expires.as_ms(),
        };
        self.waiting
            .retain(|kind| !matches!(kind, agent_frame::Kind::Trust(_)));
        self.waiting.push_back(agent_frame::Kind::Trust(held));
    }
}
