//! The driver around [`decide`]: keeps a view of each job that has not ended (`active`), asks what to do, writes it
//! down, then does it (`carry`).
//!
//! A dispatch is durable before it is sent. A crash between the two leaves a run that is recorded as
//! dispatched and was not sent: it is sent again when the node's next session is seen, and the node's
//! ledger knows whether it had it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use nexus_pki::{job::SignedJobError, merkle::MerkleError};
use nexus_proto::{
    ids::{JobId, NodeId},
    job::JobError,
    time::Timestamp,
};
use nexus_runtime::{clock::Clock, errors, tasks::Tasks};
use nexus_store::{
    JobRow, RunState, Store, StoreError,
    entry::{ControlEntry, JobEnded},
};

use super::{
    active::{self, Active},
    decide::{self, Action, Link, Run},
    hints::{Changed, Hints},
    submit,
};
use crate::{
    pages::metrics::{ByState, Metrics},
    sessions::registry::Registry,
};

/// Hints that come in a burst are taken together.
const GATHER: Duration = Duration::from_millis(5);
/// Without a hint, and without a moment to wait for, everything is looked at this often.
const IDLE: Duration = Duration::from_secs(30);
/// Between a pass that took long and the next, at most.
const BREATH: Duration = Duration::from_millis(100);
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
            let passed = self.pass(&mut jobs, hinted, look).await;
            if let Err(error) = &passed {
                tracing::error!(error = %errors::chain(error), "jobs could not be driven");
            }
            let failed = passed.is_err();
            let pause = match failed {
                true => AFTER_FAILURE,
                false => self.until_next(&jobs),
            };
            let took = self.clock.instant().saturating_duration_since(start);
            // Hints that a failed pass took are gone.
            look = Look {
                everything: failed,
                ..Look::default()
            };
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
            tokio::time::sleep(took.clamp(GATHER, BREATH)).await;
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
        let mut failure = None;
        for id in runs {
            let Some(active) = jobs.get_mut(&id).filter(|_| !ids.contains(&id)) else {
                continue;
            };
            match self.has_ended(active).await {
                Ok(true) => {
                    ids.insert(id);
                }
                Ok(false) => {}
                // One that cannot be read or driven does not keep the others.
                Err(error) => failure = failure.or(Some(error.into())),
            }
        }
        for id in ids {
            let Some(active) = jobs.get_mut(&id) else {
                continue;
            };
            match self.drive(active).await {
                Ok(true) => {
                    jobs.remove(&id);
                }
                Ok(false) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        self.metrics
            .jobs_active
            .set(i64::try_from(jobs.len()).unwrap_or(i64::MAX));
        failure.map_or(Ok(()), Err)
    }

    /// Whether all of a job's runs have. Looks on from the one that had not the last time.
    async fn has_ended(&self, active: &mut Active) -> Result<bool, StoreError> {
        let (job, from) = (active.row.id, active.open);
        let open = self.read("a run", move |store| store.open_run(job, from));
        let open = open.await?;
        active.open = open.unwrap_or(active::FIRST);
        Ok(open.is_none())
    }

    /// Takes a row's newest state over. A row that cannot be read is left alone: it would not become better.
    fn adopt(&self, jobs: &mut BTreeMap<JobId, Active>, row: JobRow) {
        if let Some(active) = jobs.get_mut(&row.id) {
            active.renew(row);
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
            let states = self
                .read("runs", move |store| store.run_states(job))
                .await?;
            let now = self.clock.now();
            if states.len() < active.tree.targets().len() {
                if std::mem::replace(&mut planned, true) {
                    return Err(SchedulerError::Runs(job));
                }
                let nodes: Vec<NodeId> = active.tree.targets().iter().map(|t| t.node).collect();
                submit::plan(&self.store, job, &nodes, &active.row.targets, now).await?;
                continue;
            }
            let runs: Vec<Run> = states
                .iter()
                .map(|(node, state)| active.run(*node, *state))
                .collect();
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
                self.end(active, &states, now).await?;
                return Ok(true);
            }
            if !self.carry_out(active, decision.actions, now).await? {
                active.at_rest = true;
                return Ok(false);
            }
        }
    }

    async fn end(
        &self,
        active: &Active,
        states: &[(NodeId, RunState)],
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let mut by_state: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (_, state) in states {
            *by_state.entry(state.name()).or_default() += 1;
        }
        for (state, count) in &by_state {
            let of = ByState { state };
            self.metrics.runs_ended.get_or_create(&of).inc_by(*count);
        }
        let named = |(state, count): (&str, u64)| (state.to_owned(), count);
        let counts: HashMap<String, u64> = by_state.into_iter().map(named).collect();
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
