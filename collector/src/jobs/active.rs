//! A job that has not ended, as the scheduler has it in mind: what was signed, and what was sent to whom.
//!
//! Pure: it says what to decide by, what to write and what to send; who writes and sends is `carry`.

use std::{collections::HashMap, time::Duration};

use nexus_pki::merkle::Tree;
use nexus_proto::{
    agent::v1 as wire,
    ids::{NodeId, SessionId},
    job::Job,
    time::Timestamp,
};
use nexus_store::{
    JobRow, RunState,
    entry::{Entry, RunDispatched, RunSettled},
};
use uuid::Uuid;

use super::{
    decide::{Action, Phase, Run, Terms},
    scheduler::SchedulerError,
};

/// Where looking for a run that has not ended begins: the first shard, the first node.
pub(super) const FIRST: (u16, NodeId) = (0, NodeId(Uuid::nil()));

/// One job.
pub(super) struct Active {
    pub(super) row: JobRow,
    pub(super) tree: Tree,
    pub(super) terms: Terms,
    pub(super) sent_to: HashMap<NodeId, SessionId>,
    pub(super) cancel_sent_to: HashMap<NodeId, SessionId>,
    /// The shard and the node of the first run that was seen not to have ended: those before have.
    pub(super) open: (u16, NodeId),
    pub(super) wake: Option<Timestamp>,
    /// Whether a node that is there would be sent something if it took more.
    pub(super) starved: bool,
    /// Whether all was done that its rows ask for. Runs that go on ask for nothing then until all have ended.
    pub(super) at_rest: bool,
}

impl Active {
    pub(super) fn new(row: JobRow, grace: Duration) -> Result<Self, SchedulerError> {
        let id = row.id;
        // Its signature was verified when it was taken, and the agents verify it again.
        let job = Job::decode(&row.envelope.payload)
            .map_err(|source| SchedulerError::Job { job: id, source })?;
        let tree = Tree::from_wire(&row.targets)
            .map_err(|source| SchedulerError::Targets { job: id, source })?;
        Ok(Self {
            terms: Terms {
                not_before: job.not_before,
                expires: job.expires,
                longest: job.timeout.saturating_add(job.kill_grace),
                grace,
                cancelled: row.cancelled.is_some(),
            },
            row,
            tree,
            sent_to: HashMap::new(),
            cancel_sent_to: HashMap::new(),
            open: FIRST,
            wake: None,
            starved: false,
            at_rest: false,
        })
    }

    /// The row as it is now.
    pub(super) fn renew(&mut self, row: JobRow) {
        self.terms.cancelled = row.cancelled.is_some();
        self.row = row;
    }

    /// What is decided by.
    pub(super) fn run(&self, node: NodeId, state: RunState) -> Run {
        Run {
            node,
            phase: match state {
                RunState::Pending => Phase::Pending,
                RunState::Dispatched => Phase::Dispatched,
                RunState::Running => Phase::Running,
                RunState::Succeeded
                | RunState::Failed
                | RunState::TimedOut
                | RunState::Cancelled
                | RunState::Expired
                | RunState::Rejected
                | RunState::Lost
                | RunState::Unknown => Phase::Final,
            },
            sent_to: self.sent_to.get(&node).copied(),
            cancel_sent_to: self.cancel_sent_to.get(&node).copied(),
        }
    }

    /// How an action ends a run without its node's word, and why.
    pub(super) fn ending(&self, action: &Action) -> Option<(NodeId, RunState, String)> {
        let terms = &self.terms;
        match action {
            Action::Cancel(node) => {
                let reason = self.row.cancelled.clone().unwrap_or_default();
                Some((*node, RunState::Cancelled, reason))
            }
            Action::Expire(node) => {
                let reason = format!("the node was not reached before {}", terms.expires);
                Some((*node, RunState::Expired, reason))
            }
            Action::Lose(node) => {
                let reason = format!("no report came before {}", terms.lost_at());
                Some((*node, RunState::Lost, reason))
            }
            Action::Dispatch(..) | Action::Resend(..) | Action::Stop(..) | Action::End => None,
        }
    }

    /// To be written before a run is sent.
    pub(super) fn dispatched(&self, node: NodeId, session: SessionId, now: Timestamp) -> Entry {
        RunDispatched {
            job: self.row.id.to_wire(),
            node: node.to_wire(),
            session: session.to_wire(),
            time_ms: now.as_ms(),
        }
        .into()
    }

    /// To be written of a run that ends so.
    pub(super) fn settled(
        &self,
        node: NodeId,
        state: RunState,
        reason: String,
        now: Timestamp,
    ) -> Entry {
        RunSettled {
            job: self.row.id.to_wire(),
            node: node.to_wire(),
            state: state.name().to_owned(),
            reason,
            time_ms: now.as_ms(),
        }
        .into()
    }

    /// What a node is sent: the job, and the proof that it is meant. `None`: it is not.
    pub(super) fn dispatch(&self, node: NodeId) -> Option<wire::Dispatch> {
        Some(wire::Dispatch {
            job: Some(self.row.envelope.clone()),
            occurrence: 0,
            step: 0,
            attempt: 0,
            proof: Some(self.tree.proof_of(node)?),
        })
    }

    /// What a node is told that is to stop.
    pub(super) fn cancel(&self) -> wire::Cancel {
        wire::Cancel {
            job_id: self.row.id.to_wire(),
            reason: self.row.cancelled.clone().unwrap_or_default(),
        }
    }
}
