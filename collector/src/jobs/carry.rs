//! Carrying out what was decided about a job: first what must be durable, in one append per shard, then what is sent.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use nexus_proto::{
    agent::v1::collector_frame::Kind,
    ids::{NodeId, SessionId},
    time::Timestamp,
};
use nexus_store::entry::Entry;

use super::{
    active::Active,
    decide::Action,
    scheduler::{Scheduler, SchedulerError},
};
use crate::sessions::registry::Session;

/// What one shard is to write, and what is to be sent once the entry in the same place is in force.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    sends: Vec<Option<Dispatch>>,
}

impl Batch {
    fn put(&mut self, entry: Entry, send: Option<Dispatch>) {
        self.entries.push(entry);
        self.sends.push(send);
    }
}

/// A dispatch that took of a session's credit.
struct Dispatch {
    node: NodeId,
    live: Arc<Session>,
    again: bool,
}

impl Dispatch {
    /// It is not sent after all: nothing of its kind would be if the credit were gone each time a disk is full.
    fn give_back(&self) {
        self.live.add_dispatches(1);
    }
}

impl Scheduler {
    /// `true` when rows changed and the job should be looked at again.
    pub(super) async fn carry_out(
        &self,
        active: &mut Active,
        actions: Vec<Action>,
        now: Timestamp,
    ) -> Result<bool, SchedulerError> {
        let mut shards: BTreeMap<u16, Batch> = BTreeMap::new();
        let mut stops = Vec::new();
        let mut settled = 0_u64;
        for action in actions {
            if let Some((node, state, reason)) = active.ending(&action) {
                tracing::debug!(job = %active.row.id, %node, state = state.name(), reason, "settles a run");
                let batch = shards.entry(self.store.shard_of(node)).or_default();
                batch.put(active.settled(node, state, reason, now), None);
                settled += 1;
                continue;
            }
            match action {
                Action::Dispatch(node, session) | Action::Resend(node, session) => {
                    let Some(live) = self.registry.get(node).filter(|live| live.id == session)
                    else {
                        continue;
                    };
                    if !live.take_dispatch() {
                        active.starved = true;
                        continue;
                    }
                    let again = matches!(action, Action::Resend(..));
                    let send = Dispatch { node, live, again };
                    let batch = shards.entry(self.store.shard_of(node)).or_default();
                    batch.put(active.dispatched(node, session, now), Some(send));
                }
                Action::Stop(node, session) => stops.push((node, session)),
                Action::Cancel(_) | Action::Expire(_) | Action::Lose(_) | Action::End => {}
            }
        }
        let (job, request_id) = (active.row.id, active.row.request_id.clone());
        if settled > 0 {
            tracing::info!(%job, request_id, runs = settled, "settles runs that no node reports");
        }
        let sent = self.write_and_send(active, shards).await;
        let stopped = stops
            .into_iter()
            .filter(|(node, session)| self.stop(active, *node, *session))
            .count();
        if stopped > 0 {
            tracing::info!(%job, request_id, nodes = stopped, "told to stop");
        }
        sent.map(|()| settled > 0)
    }

    /// A shard's dispatches are sent as soon as they are in force.
    async fn write_and_send(
        &self,
        active: &mut Active,
        shards: BTreeMap<u16, Batch>,
    ) -> Result<(), SchedulerError> {
        let appends = shards.into_iter().map(|(shard, batch)| async move {
            let outcomes = self.store.append(shard, batch.entries).await;
            (batch.sends, outcomes)
        });
        let mut appends: FuturesUnordered<_> = appends.collect();
        let (mut failure, mut dispatched) = (None, 0_u64);
        while let Some((sends, outcomes)) = appends.next().await {
            match outcomes {
                Ok(outcomes) => {
                    for (send, outcome) in sends.into_iter().zip(outcomes) {
                        match send {
                            // Its node has ended it meanwhile.
                            Some(send) if outcome.refusal().is_some() => send.give_back(),
                            Some(send) => dispatched += u64::from(self.dispatch(active, &send)),
                            None => {}
                        }
                    }
                }
                // What of it is in the log is in force later, and is sent then as what got lost on its way.
                Err(error) => {
                    sends.iter().flatten().for_each(Dispatch::give_back);
                    failure = failure.or(Some(error));
                }
            }
        }
        if dispatched > 0 {
            tracing::info!(
                job = %active.row.id, request_id = active.row.request_id, nodes = dispatched,
                "dispatched"
            );
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Whether it is on its way.
    fn dispatch(&self, active: &mut Active, send: &Dispatch) -> bool {
        let Dispatch { node, live, again } = send;
        // Whether it got through shows by the node's report, or by its next session.
        active.sent_to.insert(*node, live.id);
        let Some(dispatch) = active.dispatch(*node) else {
            return false;
        };
        let queued = live.send(Kind::Dispatch(Box::new(dispatch)));
        if queued {
            self.metrics.dispatches.inc();
            tracing::debug!(job = %active.row.id, %node, session = %live.id, again, "dispatched");
        }
        queued
    }

    /// Whether the node is told.
    fn stop(&self, active: &mut Active, node: NodeId, session: SessionId) -> bool {
        let Some(live) = self.registry.get(node).filter(|live| live.id == session) else {
            return false;
        };
        let queued = live.send(Kind::Cancel(active.cancel()));
        if queued {
            active.cancel_sent_to.insert(node, session);
            tracing::debug!(job = %active.row.id, %node, "told to stop");
        }
        queued
    }
}
