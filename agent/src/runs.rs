//! The way of a dispatch through the agent: admission, ledger, execution, spool.
//!
//! Each run that was admitted has a task of its own. The order of writes is what the promises rest on:
//! RECEIVED, then STARTED in the ledger (fsynced) before the program is executed; the report in the
//! ledger before it is in the spool. At a start, a run that was started and not finished is reported
//! `unknown`, after what is left of it has been killed; one that was only received is admitted again.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use nexus_pki::{
    merkle::Target,
    policy::{Freshness, TrustedPolicy},
};
use nexus_proto::{
    agent::v1 as wire,
    ids::{JobId, Lane, RunKey},
    job::Job,
    metrics::{Decoder, Encoder},
    record::{Body, Finished, Output, Record, RunOutcome, Started},
    time::Timestamp,
};
use nexus_runtime::{clock::Clock, errors::chain, tasks::Tasks};
use prost::Message as _;
use tokio::sync::{Notify, watch};

use crate::{
    admit::{self, Admitted, Refusal, View},
    exec::{Ending, Execution, Piece, Plan, leftover},
    identity::Trust,
    ledger::{Ledger, Process, Stage},
    spool::{Spool, SpoolError},
};

/// Between tries to store what must not be lost, while the disk refuses.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Between tries to kill what will not die.
const KILL_AGAIN: Duration = Duration::from_secs(5);
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
    /// The folder for scripts.
    pub scripts: PathBuf,
    /// The time.
    pub clock: Clock,
    /// Owner of the runs' tasks.
    pub tasks: Tasks,
    /// Runs held and going on at the same time.
    pub capacity: usize,
    /// The most output kept of a run, whatever its job says.
    pub output_limit_bytes: u64,
    /// The longest grace between TERM and KILL when the agent stops.
    pub stop_grace: Duration,
}

/// All runs of this agent.
#[derive(Debug, Clone)]
pub struct Runs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    around: Surroundings,
    ledger: Mutex<Ledger>,
    active: Mutex<BTreeMap<RunKey, watch::Sender<Option<String>>>>,
    ended: Notify,
}

impl Runs {
    /// Takes up where the agent before stopped.
    pub fn resume(ledger: Ledger, around: Surroundings) -> Self {
        let shared = Shared {
            around,
            ledger: Mutex::new(ledger),
            active: Mutex::default(),
            ended: Notify::new(),
        };
        let runs = Self(Arc::new(shared));
        let spooled = runs.0.around.spool.acked(Lane::Results);
        let now = runs.0.around.clock.now();
        if let Err(error) = runs.0.ledger().acked(spooled, now) {
            tracing::error!(error = %chain(&error), "the ledger cannot be written");
        }
        let known: Vec<_> = runs
            .0
            .ledger()
            .runs()
            .map(|(key, run)| (*key, run.clone()))
            .collect();
        for (key, run) in known {
            match run.stage {
                Stage::Received(dispatch) => match wire::Dispatch::decode(dispatch) {
                    Ok(dispatch) => runs.offer(dispatch),
                    Err(error) => {
                        tracing::error!(job = %key.job, %error, "a dispatch is not readable")
                    }
                },
                Stage::Started { at, process } => runs.settle(key, run.expires, at, process),
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
        let active = self.0.active().len();
        u32::try_from(self.0.around.capacity.saturating_sub(active)).unwrap_or(0)
    }

    /// Resolves when a run has ended since the last time it did. For one waiter.
    pub async fn ended(&self) {
        self.0.ended.notified().await;
    }

    /// Judges a dispatch, and runs it or reports why not.
    pub fn offer(&self, dispatch: wire::Dispatch) {
        let shared = &self.0;
        let around = &shared.around;
        let wall = around.clock.now();
        let decided = around.trust.with(|policy, freshness| {
            let ledger = shared.ledger();
            let active = shared.active();
            let view = View {
                own: &around.own,
                policy,
                freshness,
                now: wall.max(newest(policy, freshness)),
                horizon: ledger.horizon(),
                active: active.len(),
                capacity: around.capacity,
                room: around.spool.takes_jobs(),
            };
            let taken = |key: &RunKey| {
                active.contains_key(key)
                    || ledger
                        .get(key)
                        .is_some_and(|run| !matches!(run.stage, Stage::Received(_)))
            };
            admit::admit(&dispatch, &view, taken)
        });
        match decided {
            Ok(admitted) => self.begin(admitted, &dispatch),
            Err(refused) => self.refuse(refused, wall),
        }
    }

    /// Stops every run of a job.
    pub fn cancel(&self, job: JobId, reason: &str) {
        for (key, cancel) in self.0.active().iter().filter(|(key, _)| key.job == job) {
            tracing::info!(job = %key.job, reason, "run cancelled");
            cancel.send_replace(Some(reason.to_owned()));
        }
    }

    /// The collector has committed results up to `seq`.
    pub fn acked(&self, seq: u64) {
        let now = self.0.around.clock.now();
        if let Err(error) = self.0.ledger().acked(seq, now) {
            tracing::error!(error = %chain(&error), "the ledger cannot be written");
        }
    }

    /// Stops all runs and waits for their reports to be stored.
    pub async fn stop(&self) {
        loop {
            let ended = self.0.ended.notified();
            {
                let active = self.0.active();
                if active.is_empty() {
                    return;
                }
                for cancel in active.values() {
                    cancel.send_replace(Some(STOPPED.to_owned()));
                }
            }
            ended.await;
        }
    }

    fn begin(&self, admitted: Admitted, dispatch: &wire::Dispatch) {
        let Admitted { key, job } = admitted;
        let received = self
            .0
            .ledger()
            .receive(key, job.expires, dispatch.encode_to_vec().into());
        if let Err(error) = received {
            // Nothing was promised: the collector offers it again.
            tracing::error!(job = %key.job, request_id = job.request_id, error = %chain(&error), "a job cannot be taken");
            return;
        }
        tracing::info!(
            job = %key.job, request_id = job.request_id, operator = job.operator,
            "job admitted"
        );
        let (cancel, cancelled) = watch::channel(None);
        self.0.active().insert(key, cancel);
        let runs = self.clone();
        self.0.around.tasks.spawn("run", async move {
            let report = runs.0.execute(key, &job, cancelled).await;
            tracing::info!(
                job = %key.job, request_id = job.request_id, outcome = ?report.outcome,
                exit_code = report.exit_code, signal = report.signal, reason = report.reason,
                "run finished"
            );
            runs.0.report(key, job.expires, report).await;
            runs.0.active().remove(&key);
            runs.0.ended.notify_one();
            runs.0.ended.notify_waiters();
        });
    }

    fn refuse(&self, refused: admit::Refused, now: Timestamp) {
        let reason = chain(&refused.refusal).to_string();
        let job = refused
            .key
            .map(|key| key.job.to_string())
            .unwrap_or_default();
        tracing::warn!(job, request_id = refused.request_id, reason, "job refused");
        let spool = &self.0.around.spool;
        if let Err(error) = spool.event(now, "job_refused", &format!("job {job}: {reason}")) {
            tracing::error!(error = %chain(&error), "an event cannot be stored");
        }
        let Some(key) = refused.key else {
            return;
        };
        if self.0.active().contains_key(&key) {
            return;
        }
        let known = self.0.ledger().get(&key).map(|run| run.stage.clone());
        match known {
            // A run that was taken has its own report, and its own alone; the collector may have lost it.
            Some(Stage::Acked(report)) if matches!(refused.refusal, Refusal::Replay) => {
                self.spawn_spooling(key, report);
                return;
            }
            Some(Stage::Received(_)) => {}
            Some(_) => return,
            None => {}
        }
        let report = ended(key, RunOutcome::Rejected, reason, now, now);
        if let Some(Stage::Received(_)) = known {
            // It was taken by the agent before this one, and its time passed meanwhile.
            let shared = Arc::clone(&self.0);
            self.0.around.tasks.spawn(
                "report",
                async move { shared.report(key, now, report).await },
            );
        } else if let Err(error) = spool.append(now, Body::Finished(report)) {
            tracing::error!(error = %chain(&error), "a refusal cannot be stored");
        }
    }

    /// Reports a run whose end nobody saw, once nothing of it is left.
    fn settle(&self, key: RunKey, expires: Timestamp, at: Timestamp, process: Option<Process>) {
        let (cancel, _) = watch::channel(None);
        self.0.active().insert(key, cancel);
        let runs = self.clone();
        self.0.around.tasks.spawn("settle", async move {
            let shared = &runs.0;
            let mark = shared.mark(&key);
            loop {
                match leftover::kill(&mark, process.as_ref()).await {
                    Ok(killed) => {
                        tracing::warn!(job = %key.job, killed, "a run was cut short by the agent's end");
                        break;
                    }
                    Err(error) => {
                        tracing::error!(job = %key.job, %error, "a run cannot be settled");
                        tokio::time::sleep(KILL_AGAIN).await;
                    }
                }
            }
            let now = shared.around.clock.now();
            let reason = "the agent ended while it ran".to_owned();
            shared.report(key, expires, ended(key, RunOutcome::Unknown, reason, at, now)).await;
            shared.active().remove(&key);
            shared.ended.notify_one();
            shared.ended.notify_waiters();
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

/// The newest time an operator has signed.
fn newest(policy: &TrustedPolicy, freshness: Option<&Freshness>) -> Timestamp {
    let created = policy.policy().created;
    freshness.map_or(created, |freshness| created.max(freshness.issued))
}

impl Shared {
    async fn execute(
        &self,
        key: RunKey,
        job: &Job,
        cancelled: watch::Receiver<Option<String>>,
    ) -> Finished {
        let around = &self.around;
        let mut waiting = cancelled.clone();
        if let Some(reason) = self.wait_for(job.not_before, &mut waiting).await {
            let now = around.clock.now();
            return ended(key, RunOutcome::Cancelled, reason, now, now);
        }
        let at = around.clock.now();
        if around.trust.now(at) >= job.expires {
            let reason = format!("the job expired at {} before it could begin", job.expires);
            return ended(key, RunOutcome::Rejected, reason, at, at);
        }
        let started = self.ledger().start(key, at);
        if let Err(error) = started {
            let reason = format!("it cannot be promised to run once: {}", chain(&error));
            return ended(key, RunOutcome::FailedToStart, reason, at, at);
        }
        let plan = Plan {
            action: job.action.clone(),
            mark: self.mark(&key),
            job: key.job.to_string(),
            timeout: job.timeout,
            grace: job.kill_grace,
            output_limit_bytes: job.output_limit_bytes.min(around.output_limit_bytes),
            scripts: around.scripts.clone(),
            stop_grace: around.stop_grace,
        };
        let execution = match Execution::start(plan).await {
            Ok(execution) => execution,
            Err(error) => {
                let now = around.clock.now();
                let reason = chain(&error).to_string();
                return ended(key, RunOutcome::FailedToStart, reason, at, now);
            }
        };
        let identity = execution.identity();
        tracing::info!(
            job = %key.job, request_id = job.request_id, pid = identity.pid,
            "run started"
        );
        let process = Process {
            pid: identity.pid,
            start_ticks: identity.start_ticks,
            boot_id: leftover::boot_id().unwrap_or_default(),
        };
        if let Err(error) = self.ledger().process(key, process) {
            tracing::error!(error = %chain(&error), "the ledger cannot be written");
        }
        let start = Body::Started(Started {
            run: key,
            pid: identity.pid,
        });
        if let Err(error) = around.spool.append(at, start) {
            tracing::error!(error = %chain(&error), "the start of a run cannot be stored");
        }
        let (spool, clock) = (Arc::clone(&around.spool), around.clock.clone());
        let sink = move |piece: Piece| {
            let Piece {
                stream,
                offset,
                data,
            } = piece;
            let output = Output {
                run: key,
                stream,
                offset,
                data,
            };
            match spool.append(clock.now(), Body::Output(output)) {
                Ok(_) => true,
                Err(SpoolError::Full(_)) => false,
                Err(error) => {
                    tracing::error!(error = %chain(&error), "output cannot be stored");
                    false
                }
            }
        };
        let ending = execution.finish(sink, stop_of(cancelled)).await;
        let now = around.clock.now();
        match ending {
            Ok(ending) => finished(key, ending, at, now),
            Err(error) => {
                let reason = format!("its end could not be seen: {error}");
                ended(key, RunOutcome::Unknown, reason, at, now)
            }
        }
    }

    /// Waits until a job may begin; the reason when it was cancelled before.
    async fn wait_for(
        &self,
        not_before: Timestamp,
        cancelled: &mut watch::Receiver<Option<String>>,
    ) -> Option<String> {
        loop {
            if let Some(reason) = cancelled.borrow_and_update().clone() {
                return Some(reason);
            }
            let now = self.around.trust.now(self.around.clock.now());
            if now >= not_before {
                return None;
            }
            // In steps, since the wall clock may be set meanwhile.
            let step = not_before.since(now).min(Duration::from_secs(10));
            tokio::time::timeout(step, cancelled.changed()).await.ok();
        }
    }

    /// Makes a report durable: in the ledger, then in the spool.
    async fn report(&self, key: RunKey, expires: Timestamp, report: Finished) {
        let time = report.finished;
        let record = Record {
            seq: 0,
            time,
            body: Body::Finished(report),
        };
        let encoded = record.encode(&mut Encoder::new());
        loop {
            let stored = self.ledger().finish(key, expires, encoded.clone());
            match stored {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(error = %chain(&error), "a report waits for the ledger");
                    tokio::time::sleep(STORE_AGAIN).await;
                }
            }
        }
        self.spool_report(key, encoded).await;
    }

    async fn spool_report(&self, key: RunKey, encoded: Bytes) {
        let record = match Record::decode(encoded, &mut Decoder::new()) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(job = %key.job, error = %chain(&error), "a report in the ledger is not readable");
                return;
            }
        };
        let seq = loop {
            match self.around.spool.append(record.time, record.body.clone()) {
                Ok(seq) => break seq,
                Err(error) => {
                    tracing::error!(error = %chain(&error), "a report waits for the spool");
                    tokio::time::sleep(STORE_AGAIN).await;
                }
            }
        };
        if let Err(error) = self.ledger().spooled(key, seq) {
            tracing::error!(error = %chain(&error), "the ledger cannot be written");
        }
    }

    /// The run's name in its programs' environment: several agents may share a host.
    fn mark(&self, key: &RunKey) -> String {
        let node = self.around.own.node;
        format!(
            "{node}/{}/{}/{}/{}",
            key.job, key.occurrence, key.step, key.attempt
        )
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> MutexGuard<'_, BTreeMap<RunKey, watch::Sender<Option<String>>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves with the reason when the run is to be stopped.
async fn stop_of(mut cancelled: watch::Receiver<Option<String>>) -> crate::exec::Stop {
    loop {
        if let Some(reason) = cancelled.borrow_and_update().clone() {
            let hurried = reason == STOPPED;
            return crate::exec::Stop { reason, hurried };
        }
        if cancelled.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn ended(
    run: RunKey,
    outcome: RunOutcome,
    mut reason: String,
    started: Timestamp,
    finished: Timestamp,
) -> Finished {
    let limit = nexus_proto::limits::REASON_BYTES / 4;
    if reason.len() > limit {
        reason = reason.chars().take(limit / 4).collect();
    }
    Finished {
        run,
        outcome,
        exit_code: None,
        signal: None,
        reason,
        stdout_bytes: 0,
        stderr_bytes: 0,
        stdout_dropped_bytes: 0,
        stderr_dropped_bytes: 0,
        started,
        finished,
    }
}

fn finished(run: RunKey, ending: Ending, started: Timestamp, finished: Timestamp) -> Finished {
    let [stdout_bytes, stderr_bytes] = ending.produced;
    let [stdout_dropped_bytes, stderr_dropped_bytes] = ending.dropped;
    Finished {
        exit_code: ending.exit_code,
        signal: ending.signal,
        stdout_bytes,
        stderr_bytes,
        stdout_dropped_bytes,
        stderr_dropped_bytes,
        ..ended(run, ending.outcome, ending.reason, started, finished)
    }
}

#[cfg(test)]
mod tests;
