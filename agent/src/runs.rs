//! The way of a dispatch through the agent: admission, ledger, execution, spool.
//!
//! Each run that was admitted has a task of its own. The order of writes is what the promises rest on:
//! RECEIVED, then STARTED in the ledger (fsynced) before the program is executed; the report in the
//! ledger before it is in the spool. At a start, a run that was started and not finished goes on where a helper kept
//! it, and is reported `unknown` otherwise, after what is left of it has been killed; one that was only received is
//! admitted again.
//!
//! A run is *active* from its admission until its report is stored. As many as the agent has credit for are
//! active at a time, but for those that were on their way when a connection broke: they are held until there
//! is a place.

mod execute;
pub(crate) mod report;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use nexus_pki::merkle::Target;
use nexus_proto::{
    agent::v1 as wire,
    ids::{JobId, Lane, NodeId, RunKey},
    record::{Body, RunOutcome},
    time::Timestamp,
};
use nexus_runtime::{clock::Clock, errors::chain, tasks::Tasks};
use prost::Message as _;
use tokio::sync::{Notify, Semaphore, watch};

use self::report::ended;
use crate::{
    admit::{self, Admitted, Refusal, View},
    exec::Executor,
    identity::Trust,
    ledger::{Ledger, LedgerError, Process, Stage},
    spool::{Spool, SpoolError},
    trouble::{Storing, Troubles},
};

/// Between tries to store what must not be lost, while the disk refuses.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Why runs are stopped at shutdown.
const STOPPED: &str = "the agent was stopped";

/// What runs are made of.
#[derive(Debug)]
pub struct Surroundings {
    /// This node, as jobs name it.
    pub own: Target,
    /// Who may sign.
    pub trust: Arc<Trust>,
    /// Where reports go.
    pub spool: Arc<Spool>,
    /// What executes jobs.
    pub executor: Arc<dyn Executor>,
    /// The folder for scripts.
    pub scripts: PathBuf,
    /// This machine's own policy.
    pub policy: PathBuf,
    /// The time.
    pub clock: Clock,
    /// Owner of the runs' tasks.
    pub tasks: Tasks,
    /// Who is told of a ledger or a spool that takes nothing.
    pub troubles: Arc<Troubles>,
    /// Programs that run at the same time.
    pub capacity: usize,
    /// The most output kept of a run, whatever its job says.
    pub output_limit_bytes: u64,
    /// The longest grace between TERM and KILL when the agent stops.
    pub stop_grace: Duration,
}

/// All runs of this agent.
#[derive(Debug, Clone)]
pub struct Runs(Arc<Shared>);

/// Why a run is to end before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Halt {
    /// Somebody cancelled it.
    Cancelled(String),
    /// The agent stops.
    Stopped,
}

/// For whom a run was begun and which process it became: by that is found what is left of it.
type Left = (NodeId, Option<Process>);
type Halts = watch::Receiver<Option<Halt>>;

#[derive(Debug)]
struct Shared {
    around: Surroundings,
    ledger: Mutex<Ledger>,
    active: Mutex<BTreeMap<RunKey, watch::Sender<Option<Halt>>>>,
    /// Places for programs.
    slots: Semaphore,
    stopping: AtomicBool,
    /// No credit was given since there is no room for results.
    full: AtomicBool,
    ended: Notify,
    ledger_keeps: Mutex<Storing>,
    spool_keeps: Mutex<Storing>,
}

impl Runs {
    /// Takes up where the agent before stopped.
    pub fn resume(ledger: Ledger, around: Surroundings) -> Self {
        let storing = |what| Mutex::new(Storing::new(what, Arc::clone(&around.troubles)));
        let shared = Shared {
            ledger: Mutex::new(ledger),
            active: Mutex::default(),
            slots: Semaphore::new(around.capacity),
            stopping: AtomicBool::new(false),
            full: AtomicBool::new(false),
            ended: Notify::new(),
            ledger_keeps: storing("jobs"),
            spool_keeps: storing("results"),
            around,
        };
        let runs = Self(Arc::new(shared));
        runs.acked(runs.0.around.spool.acked(Lane::Results));
        let known: Vec<_> = runs
            .0
            .ledger()
            .runs()
            .map(|(key, run)| (*key, run.clone()))
            .collect();
        for (key, run) in known {
            match run.stage {
                Stage::Received(dispatch) => match wire::Dispatch::decode(dispatch) {
                    Ok(dispatch) => runs.judge(&dispatch, true),
                    Err(error) => {
                        tracing::error!(job = %key.job, %error, "a dispatch is not readable")
                    }
                },
                Stage::Started { at, node, process } => {
                    let node = node.unwrap_or(runs.0.around.own.node);
                    runs.settle(key, run.expires, at, (node, process));
                }
                Stage::Finished { report, seq } => {
                    // The spool may have lost what it was given.
                    let kept = seq.is_some_and(|seq| runs.0.around.spool.holds_result(seq));
                    if !kept {
                        runs.spawn_spooling(key, report);
                    }
                }
                Stage::Acked(_) => {}
            }
        }
        runs
    }

    /// How many more dispatches are taken now.
    #[must_use]
    pub fn credit(&self) -> u32 {
        let shared = &self.0;
        let room = shared.around.spool.takes_jobs();
        shared.full.store(!room, Ordering::Relaxed);
        if !room || shared.stopping.load(Ordering::Relaxed) {
            return 0;
        }
        let active = shared.active().len();
        u32::try_from(shared.around.capacity.saturating_sub(active)).unwrap_or(0)
    }

    /// Resolves when there may be more credit than the last time it did. For one waiter.
    pub async fn ended(&self) {
        self.0.ended.notified().await;
    }

    /// Judges a dispatch, and runs it or reports why not.
    pub fn offer(&self, dispatch: &wire::Dispatch) {
        if self.0.stopping.load(Ordering::Relaxed) {
            // Nothing was promised: the collector offers it in the next session.
            tracing::debug!("a job came too late");
            return;
        }
        self.judge(dispatch, false);
    }

    /// `again`: it was taken by the agent before this one.
    fn judge(&self, dispatch: &wire::Dispatch, again: bool) {
        let shared = &self.0;
        let wall = shared.around.clock.now();
        let decided = shared.view(wall, |mut view| {
            let ledger = shared.ledger();
            let active = shared.active();
            if !again {
                view.active = active.len();
                view.room = shared.around.spool.takes_jobs();
            }
            let taken = |key: &RunKey| {
                active.contains_key(key)
                    || ledger
                        .get(key)
                        .is_some_and(|run| !matches!(run.stage, Stage::Received(_)))
            };
            admit::admit(dispatch, &view, taken)
        });
        match decided {
            Ok(admitted) => self.begin(admitted, dispatch),
            Err(refused) => self.refuse(*refused, wall),
        }
    }

    /// Stops every run of a job.
    pub fn cancel(&self, job: JobId, reason: &str) {
        let reason: String = reason.chars().take(report::REASON_CHARS).collect();
        for (key, halt) in self.0.active().iter().filter(|(key, _)| key.job == job) {
            tracing::info!(job = %key.job, reason, "run cancelled");
            halt.send_replace(Some(Halt::Cancelled(reason.clone())));
        }
    }

    /// The collector has committed results up to `seq`.
    pub fn acked(&self, seq: u64) {
        let shared = &self.0;
        let now = shared.around.clock.now();
        let acked = shared.ledger().acked(seq, now);
        shared.in_ledger(&acked);
        if shared.full.load(Ordering::Relaxed) && shared.around.spool.takes_jobs() {
            shared.ended.notify_one();
        }
    }

    /// Takes no more jobs, stops all runs and waits for their reports to be stored. What has not begun yet is
    /// taken up by the next start.
    pub async fn stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        loop {
            let ended = self.0.ended.notified();
            {
                let active = self.0.active();
                if active.is_empty() {
                    return;
                }
                for halt in active.values() {
                    halt.send_replace(Some(Halt::Stopped));
                }
            }
            ended.await;
        }
    }

    fn begin(&self, admitted: Admitted, dispatch: &wire::Dispatch) {
        let Admitted { key, job } = admitted;
        let encoded = Bytes::from(dispatch.encode_to_vec());
        let received = self.0.ledger().receive(key, job.expires, encoded.clone());
        let unkept = (!self.0.in_ledger(&received)).then_some(encoded);
        tracing::info!(
            job = %key.job, request_id = job.request_id, operator = job.operator,
            "job admitted"
        );
        let halts = self.0.activate(key);
        let runs = self.clone();
        self.0.around.tasks.spawn("run", async move {
            if let Some(report) = runs.0.execute(key, &job, unkept, halts).await {
                tracing::info!(
                    job = %key.job, request_id = job.request_id, outcome = ?report.outcome,
                    exit_code = report.exit_code, signal = report.signal, reason = report.reason,
                    "run finished"
                );
                runs.0.report(key, job.expires, report).await;
            }
            runs.0.done(&key);
        });
    }

    fn refuse(&self, refused: admit::Refused, now: Timestamp) {
        let shared = &self.0;
        let spool = &shared.around.spool;
        let reason = chain(&refused.refusal).to_string();
        let Some(key) = refused.key else {
            spool.complain(now, "job_refused", &format!("job refused: {reason}"));
            return;
        };
        // A run that was taken has its own report, and its own alone.
        if shared.active().contains_key(&key) {
            return;
        }
        let known = shared.ledger().get(&key).cloned();
        let expires = match known.map(|run| (run.stage, run.expires)) {
            // The collector may have lost it.
            Some((Stage::Acked(report), _)) => {
                if matches!(refused.refusal, Refusal::Replay) && spool.takes_jobs() {
                    self.spawn_spooling(key, report);
                }
                return;
            }
            // It was taken by the agent before this one, and its time passed meanwhile.
            Some((Stage::Received(_), expires)) => Some(expires),
            Some(_) => return,
            None => refused.expires,
        };
        let request = &refused.request_id;
        let message = format!("job {} {request} refused: {reason}", key.job);
        spool.complain(now, "job_refused", &message);
        let report = ended(key, RunOutcome::Rejected, reason, now, now);
        if let Some(expires) = expires {
            // It is over, and stays over when it is offered again.
            let _halts = shared.activate(key);
            let shared = Arc::clone(shared);
            self.0.around.tasks.spawn("report", async move {
                shared.report(key, expires, report).await;
                shared.done(&key);
            });
        } else if spool.takes_jobs() {
            // Of a job that nobody signed nothing is remembered: it must not stand in the way of a real one.
            let stored = spool.append(now, Body::Finished(report));
            shared.in_spool(&stored);
        }
    }

    /// Who may sign has changed.
    pub fn trust_changed(&self) {
        let around = &self.0.around;
        around.executor.trust(around.trust.documents());
    }

    /// Takes up a run that was begun by the agent before this one, or reports that nobody saw its end, once nothing of it is left.
    fn settle(&self, key: RunKey, expires: Timestamp, at: Timestamp, left: Left) {
        let halts = self.0.activate(key);
        let shared = Arc::clone(&self.0);
        self.0.around.tasks.spawn("settle", async move {
            if let Some(report) = shared.take_up(key, at, left, halts).await {
                shared.report(key, expires, report).await;
            }
            shared.done(&key);
        });
    }

    fn spawn_spooling(&self, key: RunKey, report: Bytes) {
        let shared = Arc::clone(&self.0);
        self.0.around.tasks.spawn(
            "report",
            async move { shared.spool_report(key, report).await },
        );
    }
}

impl Shared {
    /// What a dispatch is judged by, as if there were room for all.
    fn view<T>(&self, wall: Timestamp, judge: impl FnOnce(View<'_>) -> T) -> T {
        let around = &self.around;
        let (horizon, since) = {
            let ledger = self.ledger();
            (ledger.horizon(), ledger.since())
        };
        around.trust.with(wall, |policy, freshness, now| {
            judge(View {
                own: &around.own,
                policy,
                freshness,
                now,
                horizon,
                since,
                active: 0,
                // What was granted on a connection that broke may come over the next one as well.
                most: around.capacity * 2,
                room: true,
            })
        })
    }

    fn activate(&self, key: RunKey) -> Halts {
        let (halt, halts) = watch::channel(None);
        self.active().insert(key, halt);
        halts
    }

    fn done(&self, key: &RunKey) {
        self.active().remove(key);
        self.ended.notify_one();
        self.ended.notify_waiters();
    }

    /// Whether the ledger took it; says so when that changes.
    fn in_ledger<T>(&self, kept: &Result<T, LedgerError>) -> bool {
        self.note(&self.ledger_keeps, kept)
    }

    /// Whether the spool took it; says so when that changes.
    fn in_spool<T>(&self, kept: &Result<T, SpoolError>) -> bool {
        self.note(&self.spool_keeps, kept)
    }

    fn note<T, E: std::error::Error>(&self, keeps: &Mutex<Storing>, kept: &Result<T, E>) -> bool {
        let now = self.around.clock.now();
        let mut keeps = keeps.lock().unwrap_or_else(PoisonError::into_inner);
        keeps.note(kept, now, &self.around.spool)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> MutexGuard<'_, BTreeMap<RunKey, watch::Sender<Option<Halt>>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
