//! The driver around [`decide`]: keeps a view of each job that has not ended, asks what to do, writes it
//! down, then does it.
//!
//! A dispatch is durable before it is sent. A crash between the two leaves a run that is recorded as
//! dispatched and was not sent: it is sent again when the node's next session is seen, and the node's
//! ledger knows whether it had it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use nexus_pki::{
    job::SignedJobError,
    merkle::{MerkleError, Tree},
};
use nexus_proto::{
    agent::v1 as wire,
    agent::v1::collector_frame::Kind,
    ids::{JobId, NodeId, SessionId},
    job::{Job, JobError},
    time::Timestamp,
};
use nexus_runtime::{clock::Clock, errors, tasks::Tasks};
use nexus_store::{
    JobRow, RunRow, RunState, Store, StoreError,
    entry::{ControlEntry, Entry, JobEnded, RunDispatched, RunSettled},
};

use super::{
    decide::{self, Action, Link, Phase, Run, Terms},
    hints::{Changed, Hints},
    submit,
};
use crate::{
    pages::metrics::{ByState, Metrics},
    sessions::registry::{Registry, Session},
};

/// Hints that come in a burst are taken together.
const GATHER: Duration = Duration::from_millis(5);
/// Without a hint, and without a moment to wait for, everything is looked at this often.
const IDLE: Duration = Duration::from_secs(30);
/// After a failure of the store.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A job cannot be driven.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchedulerError {
    /// The store.
    #[error("the store")]
    Store(#[from] StoreError),
    /// A job's row that cannot be read.
    #[error("the job {job} as it is stored")]
    Job {
        job: JobId,
        #[source]
        source: JobError,
    },
    /// A job's targets that cannot be read.
    #[error("the targets of the job {job} as they are stored")]
    Targets {
        job: JobId,
        #[source]
        source: MerkleError,
    },
    /// Runs that are not there though they were made.
    #[error("the job {0} has fewer runs than targets")]
    Runs(JobId),
    /// A job's row that does not verify.
    #[error("a stored job")]
    Signed(#[from] SignedJobError),
}

/// What drives jobs.
pub(crate) struct Scheduler {
    pub(crate) store: Store,
    pub(crate) registry: Arc<Registry>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    pub(crate) grace: Duration,
}

/// Why there is a pass, besides what is said of single jobs.
#[derive(Debug, Clone, Copy, Default)]
struct Look {
    /// Time went by: every job there is, by its row.
    everything: bool,
    /// Nodes came or went: every job that is known.
    links: bool,
    /// Nodes take more: jobs that wait for that.
    credits: bool,
}

/// What one shard is to write, and what is to be sent once the entry in the same place is in force.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    sends: Vec<Option<Dispatch>>,
}

/// A dispatch that took of a session's credit.
struct Dispatch {
    action: Action,
    live: Arc<Session>,
}

impl Dispatch {
    /// It is not sent after all: nothing of its kind would be if the credit were gone each time a disk is full.
    fn give_back(&self) {
        self.live.add_dispatches(1);
    }
}

/// One job that has not ended.
struct Active {
    row: JobRow,
    tree: Tree,
    index: HashMap<NodeId, usize>,
    terms: Terms,
    sent_to: HashMap<NodeId, SessionId>,
    cancel_sent_to: HashMap<NodeId, SessionId>,
    wake: Option<Timestamp>,
    /// Whether a node that is there would be sent something if it took more.
    starved: bool,
    /// Whether all was done that its rows ask for. Runs that go on ask for nothing then until all have ended.
    at_rest: bool,
}

impl Scheduler {
    /// Drives all jobs until shutdown. Failures of the store are logged and tried again.
    pub(crate) async fn run(self) -> Result<(), SchedulerError> {
        let mut jobs: BTreeMap<JobId, Active> = BTreeMap::new();
        let mut links = self.registry.changes();
        let mut credits = self.registry.credits();
        let token = self.tasks.token();
        let mut look = Look {
            everything: true,
            ..Look::default()
        };
        loop {
            let hinted = self.hints.take();
            let start = self.clock.instant();
            let pause = match self.pass(&mut jobs, hinted, look).await {
                Ok(()) => self.until_next(&jobs),
                Err(error) => {
                    tracing::error!(error = %errors::chain(&error), "jobs could not be driven");
                    AFTER_FAILURE
                }
            };
            let took = self.clock.instant().saturating_duration_since(start);
            look = Look::default();
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = self.hints.wait() => {}
                changed = links.changed() => match changed {
                    Ok(()) => look.links = true,
                    Err(_) => return Ok(()),
                },
                changed = credits.changed() => match changed {
                    Ok(()) => look.credits = true,
                    Err(_) => return Ok(()),
                },
                () = tokio::time::sleep(pause) => look.everything = true,
            }
            // A crowd of hints is taken together; large jobs are looked at less often than small ones.
            tokio::time::sleep(took.clamp(GATHER, IDLE)).await;
            look.links |= links.has_changed().unwrap_or_default();
            look.credits |= credits.has_changed().unwrap_or_default();
            links.mark_unchanged();
            credits.mark_unchanged();
        }
    }

    fn until_next(&self, jobs: &BTreeMap<JobId, Active>) -> Duration {
        let now = self.clock.now();
        jobs.values()
            .filter_map(|active| active.wake)
            .map(|wake| wake.since(now))
            .min()
            .map_or(IDLE, |span| span.clamp(Duration::from_millis(1), IDLE))
    }

    /// Looks at jobs and does what is to be done about them.
    async fn pass(
        &self,
        jobs: &mut BTreeMap<JobId, Active>,
        hinted: Changed,
        look: Look,
    ) -> Result<(), SchedulerError> {
        let Changed { rows, runs } = hinted;
        let mut ids = BTreeSet::new();
        if look.everything {
            let active = self.read("active jobs", Store::active_jobs).await?;
            let live: BTreeSet<JobId> = active.iter().map(|row| row.id).collect();
            jobs.retain(|id, _| live.contains(id));
            for row in active {
                self.adopt(jobs, row);
            }
        } else {
            let unknown = runs.iter().filter(|id| !jobs.contains_key(id));
            for id in rows.union(&unknown.copied().collect()).copied() {
                match self.read("a job", move |store| store.job(id)).await? {
                    Some(row) if row.ended.is_none() => {
                        self.adopt(jobs, row);
                        ids.insert(id);
                    }
                    _ => {
                        jobs.remove(&id);
                    }
                }
            }
        }
        let asked = |active: &Active| {
            look.everything || look.links || look.credits && active.starved || !active.at_rest
        };
        ids.extend(
            jobs.iter()
                .filter(|(_, active)| asked(active))
                .map(|(id, _)| *id),
        );
        for id in runs {
            if jobs.contains_key(&id) && !ids.contains(&id) && self.has_ended(id).await? {
                ids.insert(id);
            }
        }
        let mut failure = None;
        for id in ids {
            let Some(active) = jobs.get_mut(&id) else {
                continue;
            };
            match self.drive(active).await {
                Ok(true) => {
                    jobs.remove(&id);
                }
                Ok(false) => {}
                // One that cannot be driven does not keep the others.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        self.metrics
            .jobs_active
            .set(i64::try_from(jobs.len()).unwrap_or(i64::MAX));
        failure.map_or(Ok(()), Err)
    }

    /// Whether all of a job's runs have.
    async fn has_ended(&self, job: JobId) -> Result<bool, StoreError> {
        let counts = self
            .read("run counts", move |store| store.run_counts(job))
            .await?;
        Ok(counts.keys().all(|state| state.is_final()))
    }

    /// Takes a row's newest state over. A row that cannot be read is left alone: it would not become better.
    fn adopt(&self, jobs: &mut BTreeMap<JobId, Active>, row: JobRow) {
        if let Some(active) = jobs.get_mut(&row.id) {
            active.terms.cancelled = row.cancelled.is_some();
            active.row = row;
            return;
        }
        match Active::new(row, self.grace) {
            Ok(active) => {
                tracing::info!(
                    job = %active.row.id, request_id = active.row.request_id,
                    targets = active.tree.count(), "driving a job"
                );
                jobs.insert(active.row.id, active);
            }
            Err(error) => {
                tracing::error!(error = %errors::chain(&error), "a stored job cannot be driven")
            }
        }
    }

    /// Does what is to be done about one job now; `true` once it has ended.
    async fn drive(&self, active: &mut Active) -> Result<bool, SchedulerError> {
        let mut planned = false;
        active.at_rest = false;
        loop {
            let job = active.row.id;
            let rows = self.read("runs", move |store| store.runs(job)).await?;
            let now = self.clock.now();
            if rows.len() < active.tree.targets().len() {
                if std::mem::replace(&mut planned, true) {
                    return Err(SchedulerError::Runs(job));
                }
                let nodes: Vec<NodeId> = active.tree.targets().iter().map(|t| t.node).collect();
                submit::plan(&self.store, job, &nodes, &active.row.targets, now).await?;
                continue;
            }
            let runs: Vec<Run> = rows.iter().map(|row| active.run(row)).collect();
            let link = |node| {
                self.registry.get(node).map(|session| Link {
                    session: session.id,
                    takes: session.takes_dispatch(),
                })
            };
            let decision = decide::decide(&active.terms, &runs, link, now);
            active.wake = decision.wake;
            active.starved = decision.starved;
            if decision.actions.is_empty() {
                active.at_rest = true;
                return Ok(false);
            }
            if decision.actions.contains(&Action::End) {
                self.end(active, &rows, now).await?;
                return Ok(true);
            }
            if !self.act(active, decision.actions, now).await? {
                active.at_rest = true;
                return Ok(false);
            }
        }
    }

    /// Carries actions out: first what must be durable, in one append per shard, then what is sent.
    /// `true` when rows changed and the job should be looked at again.
    async fn act(
        &self,
        active: &mut Active,
        actions: Vec<Action>,
        now: Timestamp,
    ) -> Result<bool, SchedulerError> {
        let mut shards: BTreeMap<u16, Batch> = BTreeMap::new();
        let mut stops = Vec::new();
        let mut settled = false;
        let mut put = |node: NodeId, entry: Entry, send: Option<Dispatch>| {
            let batch = shards.entry(self.store.shard_of(node)).or_default();
            batch.entries.push(entry);
            batch.sends.push(send);
        };
        for action in actions {
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
                    let entry = dispatched(active.row.id, node, session, now);
                    put(node, entry, Some(Dispatch { action, live }));
                }
                Action::Stop(..) => stops.push(action),
                Action::Cancel(node) => {
                    let reason = active.row.cancelled.clone().unwrap_or_default();
                    put(
                        node,
                        self.settled(active, node, RunState::Cancelled, reason, now),
                        None,
                    );
                    settled = true;
                }
                Action::Expire(node) => {
                    let reason =
                        format!("the node was not reached before {}", active.terms.expires);
                    put(
                        node,
                        self.settled(active, node, RunState::Expired, reason, now),
                        None,
                    );
                    settled = true;
                }
                Action::Lose(node) => {
                    let reason = format!("no report came before {}", active.terms.lost_at());
                    put(
                        node,
                        self.settled(active, node, RunState::Lost, reason, now),
                        None,
                    );
                    settled = true;
                }
                Action::End => {}
            }
        }
        let appends = shards.into_iter().map(|(shard, batch)| async move {
            let outcomes = self.store.append(shard, batch.entries).await;
            (batch.sends, outcomes)
        });
        let mut failure = None;
        for (sends, outcomes) in futures_util::future::join_all(appends).await {
            match outcomes {
                Ok(outcomes) => {
                    for (send, outcome) in sends.into_iter().zip(outcomes) {
                        match send {
                            // Its node has ended it meanwhile.
                            Some(send) if outcome.refusal().is_some() => send.give_back(),
                            Some(send) => self.send(active, &send.action),
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
        for action in stops {
            self.send(active, &action);
        }
        failure.map_or(Ok(settled), |error| Err(error.into()))
    }

    fn send(&self, active: &mut Active, action: &Action) {
        let job = active.row.id;
        match action {
            Action::Dispatch(node, session) | Action::Resend(node, session) => {
                // Whether it got through shows by the node's report, or by its next session.
                active.sent_to.insert(*node, *session);
                let Some(live) = self.registry.get(*node).filter(|live| live.id == *session) else {
                    return;
                };
                let Some(dispatch) = active.dispatch(*node) else {
                    return;
                };
                if live.send(Kind::Dispatch(Box::new(dispatch))) {
                    self.metrics.dispatches.inc();
                    tracing::info!(
                        %job, %node, %session, request_id = active.row.request_id,
                        again = matches!(action, Action::Resend(..)), "dispatched"
                    );
                }
            }
            Action::Stop(node, session) => {
                let Some(live) = self.registry.get(*node).filter(|live| live.id == *session) else {
                    return;
                };
                let cancel = wire::Cancel {
                    job_id: job.to_wire(),
                    reason: active.row.cancelled.clone().unwrap_or_default(),
                };
                if live.send(Kind::Cancel(cancel)) {
                    active.cancel_sent_to.insert(*node, *session);
                    tracing::info!(%job, %node, request_id = active.row.request_id, "told to stop");
                }
            }
            Action::Cancel(_) | Action::Expire(_) | Action::Lose(_) | Action::End => {}
        }
    }

    fn settled(
        &self,
        active: &Active,
        node: NodeId,
        state: RunState,
        reason: String,
        now: Timestamp,
    ) -> Entry {
        tracing::info!(
            job = %active.row.id, %node, state = state.name(), reason,
            request_id = active.row.request_id, "settled a run"
        );
        RunSettled {
            job: active.row.id.to_wire(),
            node: node.to_wire(),
            state: state.name().to_owned(),
            reason,
            time_ms: now.as_ms(),
        }
        .into()
    }

    async fn end(
        &self,
        active: &Active,
        rows: &[RunRow],
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let mut counts: HashMap<String, u64> = HashMap::new();
        for row in rows {
            *counts.entry(row.state.name().to_owned()).or_default() += 1;
            let by_state = ByState {
                state: row.state.name(),
            };
            self.metrics.runs_ended.get_or_create(&by_state).inc();
        }
        tracing::info!(job = %active.row.id, request_id = active.row.request_id, ?counts, "the job has ended");
        let ended = ControlEntry::JobEnded(JobEnded {
            job: active.row.id.to_wire(),
            counts,
            time_ms: now.as_ms(),
        });
        self.store.control_append(vec![ended]).await?;
        Ok(())
    }

    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        crate::reads::read(&self.tasks, &self.store, what, read).await
    }
}

fn dispatched(job: JobId, node: NodeId, session: SessionId, now: Timestamp) -> Entry {
    RunDispatched {
        job: job.to_wire(),
        node: node.to_wire(),
        session: session.to_wire(),
        time_ms: now.as_ms(),
    }
    .into()
}

impl Active {
    fn new(row: JobRow, grace: Duration) -> Result<Self, SchedulerError> {
        let id = row.id;
        // Its signature was verified when it was taken, and the agents verify it again.
        let job = Job::decode(&row.envelope.payload)
            .map_err(|source| SchedulerError::Job { job: id, source })?;
        let tree = Tree::from_wire(&row.targets)
            .map_err(|source| SchedulerError::Targets { job: id, source })?;
        let index = tree
            .targets()
            .iter()
            .enumerate()
            .map(|(index, target)| (target.node, index))
            .collect();
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
            index,
            sent_to: HashMap::new(),
            cancel_sent_to: HashMap::new(),
            wake: None,
            starved: false,
            at_rest: false,
        })
    }

    fn run(&self, row: &RunRow) -> Run {
        Run {
            node: row.node,
            phase: match row.state {
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
            sent_to: self.sent_to.get(&row.node).copied(),
            cancel_sent_to: self.cancel_sent_to.get(&row.node).copied(),
        }
    }

    fn dispatch(&self, node: NodeId) -> Option<wire::Dispatch> {
        let proof = self.tree.proof(*self.index.get(&node)?)?;
        Some(wire::Dispatch {
            job: Some(self.row.envelope.clone()),
            occurrence: 0,
            step: 0,
            attempt: 0,
            proof: Some(proof),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Collector, until, welcomed};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_dispatch_that_cannot_be_recorded_costs_no_credit() {
        let collector = Collector::start();
        let mut admin = collector.log_in().await;
        let token = admin.token(1).await;
        let mut agent = collector.enrol(&token, "web-1").await.unwrap();
        let mut link = agent.connect(&collector).await;
        welcomed(&mut link).await;
        let session = collector.registry.get(agent.node).unwrap();
        while session.take_dispatch() {}
        let job = admin.job(&[&agent], Duration::from_secs(60));
        admin.client.submit_job(job).await.unwrap();
        let scheduler = Scheduler {
            store: collector.store.clone(),
            registry: Arc::clone(&collector.registry),
            hints: Arc::default(),
            clock: collector.clock.clone(),
            metrics: Metrics::default(),
            tasks: Tasks::new(),
            grace: Duration::from_secs(1),
        };
        let mut jobs = BTreeMap::new();
        let look = Look {
            everything: true,
            ..Look::default()
        };
        let pass = scheduler.pass(&mut jobs, Changed::default(), look).await;
        assert!(pass.is_ok() && jobs.len() == 1);

        // Nothing can be written any more, and only now there is credit.
        collector.store.close();
        session.add_dispatches(1);
        let pass = scheduler.pass(&mut jobs, Changed::default(), look).await;
        assert!(matches!(pass, Err(SchedulerError::Store(_))), "{pass:?}");
        // The collector's own scheduler may be trying at this moment.
        until("the credit is back", || session.takes_dispatch()).await;
    }
}
