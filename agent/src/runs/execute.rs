//! One admitted run: its wait for a time and a place, its program, its end.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use nexus_proto::{
    agent::v1 as wire,
    ids::RunKey,
    job::Job,
    record::{Body, Finished, Output, RunOutcome, Started},
    time::Timestamp,
};
use nexus_runtime::errors::chain;
use prost::Message as _;
use tokio::{sync::SemaphorePermit, time::timeout};

use super::{
    Halt, Halts, Left, STOPPED, STORE_AGAIN, Shared,
    report::{ended, finished},
};
use crate::{
    admit,
    exec::{
        End, Executing, Order, Piece, Plan, StartError, Stop, leftover, told,
        users::{self, PASSWD},
    },
    ledger::Stage,
    local_policy::{self, PolicyError},
    spool::SpoolError,
};

/// A step of the wall clock is noticed within this.
const LOOK: Duration = Duration::from_secs(10);

/// Why a run does not begin.
enum Why {
    Halted(Halt),
    Expired,
}

impl Shared {
    /// Takes an admitted run to its end; `unkept`: its dispatch, which is not in the ledger yet. `None`: the agent
    /// stopped before it began, and the next one takes it up.
    pub(super) async fn execute(
        &self,
        key: RunKey,
        job: &Job,
        unkept: Option<Bytes>,
        mut halts: Halts,
    ) -> Option<Finished> {
        let around = &self.around;
        let turn = match self.keep(key, job, unkept, &mut halts).await {
            Ok(()) => self.turn(job, &mut halts).await,
            Err(why) => Err(why),
        };
        let at = around.clock.now();
        let rejected = |reason| Some(ended(key, RunOutcome::Rejected, reason, at, at));
        let _place = match turn {
            Ok(place) => place,
            Err(Why::Halted(Halt::Stopped)) => return None,
            Err(Why::Halted(Halt::Cancelled(reason))) => {
                return Some(ended(key, RunOutcome::Cancelled, reason, at, at));
            }
            Err(Why::Expired) => {
                let text = format!("the job expired at {} before it could begin", job.expires);
                return rejected(text);
            }
        };
        // Who may sign may have changed while it was held.
        let dispatch = match self.still(&key, at) {
            Ok(dispatch) => dispatch,
            Err(reason) => return rejected(reason),
        };
        let judged = around.executor.judges();
        if !judged && let Err(reason) = self.allowed(job) {
            return rejected(reason);
        }
        let node = around.own.node;
        let started = self.ledger().start(key, at, node);
        if let Err(error) = &started {
            self.in_ledger(&started);
            let reason = format!("it cannot be promised to run once: {}", chain(error));
            return Some(ended(key, RunOutcome::FailedToStart, reason, at, at));
        }
        let plan = Plan {
            action: job.action.clone(),
            mark: leftover::mark(node, &key),
            job: key.job.to_string(),
            timeout: job.timeout,
            grace: job.kill_grace,
            output_limit_bytes: job.output_limit_bytes.min(around.output_limit_bytes),
            scripts: around.scripts.clone(),
            stop_grace: around.stop_grace,
        };
        let order = Order {
            run: key,
            dispatch,
            trust: around.trust.documents(),
            judged,
        };
        let stop = Box::pin(stop_of(halts.clone()));
        let execution = match around.executor.start(order, plan, stop).await {
            Ok(execution) => execution,
            Err(StartError::Stopped) => return None,
            Err(StartError::Refused(reason)) => return rejected(reason),
            Err(StartError::Cancelled(reason)) => {
                let now = around.clock.now();
                return Some(ended(key, RunOutcome::Cancelled, reason, at, now));
            }
            Err(StartError::Over(ending)) => {
                return Some(finished(key, *ending, at, around.clock.now()));
            }
            Err(error @ (StartError::Hangs(_) | StartError::Lost)) => {
                leftover::settle(&key, Some(node), None).await;
                let now = around.clock.now();
                let reason = chain(&error).to_string();
                return Some(ended(key, RunOutcome::Unknown, reason, at, now));
            }
            Err(error) => {
                let now = around.clock.now();
                let reason = chain(&error).to_string();
                return Some(ended(key, RunOutcome::FailedToStart, reason, at, now));
            }
        };
        let identity = execution.identity();
        tracing::info!(
            job = %key.job, request_id = job.request_id, pid = identity.pid,
            "run started"
        );
        let process = identity.process();
        let noted = self.ledger().process(key, process.clone());
        self.in_ledger(&noted);
        let start = Body::Started(Started {
            run: key,
            pid: identity.pid,
        });
        let stored = around.spool.append(at, start);
        self.in_spool(&stored);
        let left = (node, Some(process));
        self.follow(key, execution, at, left, halts).await
    }

    /// Takes up a run that the agent before this one has begun. `None`: the agent stopped, and the next one does.
    pub(super) async fn take_up(
        &self,
        key: RunKey,
        at: Timestamp,
        left: Left,
        halts: Halts,
    ) -> Option<Finished> {
        let mut stopping = halts.clone();
        let attached = tokio::select! {
            biased;
            attached = self.around.executor.attach(key) => attached,
            _ = stopping.wait_for(|halt| *halt == Some(Halt::Stopped)) => return None,
        };
        if let Some(execution) = attached {
            tracing::info!(job = %key.job, "a run went on without the agent");
            return self.follow(key, execution, at, left, halts).await;
        }
        let (node, process) = &left;
        leftover::settle(&key, Some(*node), process.as_ref()).await;
        let now = self.around.clock.now();
        let reason = "the agent ended while it ran".to_owned();
        Some(ended(key, RunOutcome::Unknown, reason, at, now))
    }

    /// Keeps what a program writes until it has ended.
    async fn follow(
        &self,
        key: RunKey,
        execution: Box<dyn Executing>,
        at: Timestamp,
        left: Left,
        halts: Halts,
    ) -> Option<Finished> {
        let around = &self.around;
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
        let ending = execution
            .finish(Box::new(sink), Box::pin(stop_of(halts)))
            .await;
        match ending {
            Ok(End::Over(ending)) => Some(finished(key, ending, at, around.clock.now())),
            Ok(End::GoesOn) => {
                tracing::info!(job = %key.job, "a run goes on without the agent");
                None
            }
            Err(error) => {
                let reason = format!("its end could not be seen: {error}");
                let (node, process) = &left;
                leftover::settle(&key, Some(*node), process.as_ref()).await;
                let now = around.clock.now();
                Some(ended(key, RunOutcome::Unknown, reason, at, now))
            }
        }
    }

    /// Puts a dispatch into the ledger as soon as the disk takes it.
    async fn keep(
        &self,
        key: RunKey,
        job: &Job,
        unkept: Option<Bytes>,
        halts: &mut Halts,
    ) -> Result<(), Why> {
        let Some(dispatch) = unkept else {
            return Ok(());
        };
        loop {
            self.may_wait(job, halts)?;
            timeout(STORE_AGAIN, halts.changed()).await.ok();
            let received = self.ledger().receive(key, job.expires, dispatch.clone());
            if self.in_ledger(&received) {
                return Ok(());
            }
        }
    }

    /// Waits until a job may begin and there is a place for it.
    async fn turn(&self, job: &Job, halts: &mut Halts) -> Result<SemaphorePermit<'_>, Why> {
        let mut place = std::pin::pin!(self.slots.acquire());
        loop {
            let now = self.may_wait(job, halts)?;
            let early = now < job.not_before;
            let until = if early { job.not_before } else { job.expires };
            let step = until.since(now).min(LOOK);
            tokio::select! {
                biased;
                Ok(place) = place.as_mut(), if !early => return Ok(place),
                _ = timeout(step, halts.changed()) => {}
            }
        }
    }

    /// What counts as now, unless there is nothing to wait for any more.
    fn may_wait(&self, job: &Job, halts: &mut Halts) -> Result<Timestamp, Why> {
        if let Some(halt) = halts.borrow_and_update().clone() {
            return Err(Why::Halted(halt));
        }
        let now = self.around.trust.now(self.around.clock.now());
        if now >= job.expires {
            return Err(Why::Expired);
        }
        Ok(now)
    }

    /// Whether this machine's policy lets the job run as the agent's own user, or whom it names. A helper asks it
    /// itself; without one it counts where there is one.
    fn allowed(&self, job: &Job) -> Result<(), String> {
        let policy = match local_policy::load(&self.around.policy, 0) {
            Ok(policy) => policy,
            Err(PolicyError::Missing(_)) => return Ok(()),
            Err(error) => return Err(chain(&error).to_string()),
        };
        let own = || {
            let uid = rustix::process::geteuid().as_raw();
            let known = users::by_uid(Path::new(PASSWD), uid).unwrap_or(None);
            known.map_or_else(|| uid.to_string(), |user| user.name)
        };
        let user = job.action.context().user.clone().unwrap_or_else(own);
        policy.judge(job, &user)
    }

    /// Judges a held dispatch once more, by what holds now, and gives it back; or the reason why not.
    fn still(&self, key: &RunKey, wall: Timestamp) -> Result<Bytes, String> {
        let held = match self.ledger().get(key).map(|run| run.stage.clone()) {
            Some(Stage::Received(dispatch)) => dispatch,
            _ => return Err("the ledger no longer holds it".to_owned()),
        };
        let dispatch = wire::Dispatch::decode(held.clone()).map_err(|error| error.to_string())?;
        self.view(wall, |view| admit::admit(&dispatch, &view, |_| false))
            .map(|_| held)
            .map_err(|refused| chain(&refused.refusal).to_string())
    }
}

/// Resolves with the reason when the run is to be stopped.
async fn stop_of(halts: Halts) -> Stop {
    let halt = told(halts).await;
    let hurried = halt == Halt::Stopped;
    let reason = match halt {
        Halt::Cancelled(reason) => reason,
        Halt::Stopped => STOPPED.to_owned(),
    };
    Stop { reason, hurried }
}
