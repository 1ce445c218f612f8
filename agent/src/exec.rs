//! Running one admitted command or script.
//!
//! The program runs in a session and process group of its own, dies with the agent (PR_SET_PDEATHSIG),
//! and carries its run's name in `NEXUS_RUN`, by which a later start of the agent finds what is left of
//! it. Its output is read as it comes and handed on in pieces. When it has ended it stays a zombie until
//! its group has been dealt with, so that the group's number cannot meanwhile be another's.

mod capture;
mod child;
pub mod leftover;
mod process;
mod starter;
pub mod users;

use std::{fmt, io, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use nexus_proto::{
    agent::v1::TrustUpdate,
    ids::RunKey,
    job::Action,
    record::{OutputStream, RunOutcome},
    time::Timestamp,
};
use rustix::process::Signal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use self::{capture::Capture, process::Running};
pub use self::{
    process::{StartError, clean_scripts},
    starter::Starter,
};
use crate::ledger::Process;

/// How long what holds the output open after the program has ended may go on before it is killed.
const STRAYS: Duration = Duration::from_secs(1);
/// In the environment of every program a job runs: whose run it is.
pub const MARK: &str = "NEXUS_RUN";

/// What to run and within which bounds.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What.
    pub action: Action,
    /// The value of [`MARK`].
    pub mark: String,
    /// The job's id, for the program: `NEXUS_JOB`.
    pub job: String,
    /// From start to TERM.
    pub timeout: Duration,
    /// From TERM to KILL.
    pub grace: Duration,
    /// Output kept, both streams together.
    pub output_limit_bytes: u64,
    /// The folder for scripts.
    pub scripts: PathBuf,
    /// The longest grace when the stop is a hurried one.
    pub stop_grace: Duration,
}

/// Why something is to run: for an executor that believes nobody but those who signed it.
#[derive(Debug, Clone)]
pub struct Order {
    /// Which execution.
    pub run: RunKey,
    /// The encoded dispatch.
    pub dispatch: Bytes,
    /// Who may sign, as far as this agent knows.
    pub trust: TrustUpdate,
    /// What the executor said when it was asked whether it judges: nobody else has asked this machine's policy then.
    pub judged: bool,
}

/// Why a run is stopped before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// In words.
    pub reason: String,
    /// Whether it has to be quick, because the agent ends.
    pub hurried: bool,
}

/// Resolves with what a run's owner has to say about its end, once that is something.
pub(crate) async fn told<T: Clone>(mut said: watch::Receiver<Option<T>>) -> T {
    loop {
        if let Some(said) = said.borrow_and_update().clone() {
            return said;
        }
        if said.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which stream.
    pub stream: OutputStream,
    /// Bytes of it before this piece.
    pub offset: u64,
    /// At most 64 KiB.
    pub data: Bytes,
}

/// What takes pieces; `false`: there was no room and the piece is dropped.
pub trait Sink: Send {
    /// Takes one.
    fn take(&mut self, piece: Piece) -> bool;

    /// Whether the program is to wait before it writes more.
    fn is_full(&self) -> bool {
        false
    }

    /// Resolves when it is worth to ask again. Cancel-safe.
    fn room(&self) -> Boxed<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl<F: FnMut(Piece) -> bool + Send> Sink for F {
    fn take(&mut self, piece: Piece) -> bool {
        self(piece)
    }
}

/// The process a run became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Id of process, group and session.
    pub pid: u32,
    /// Ticks from boot to its start, as /proc/PID/stat says it.
    pub start_ticks: u64,
}

impl Identity {
    /// As the ledger keeps it.
    #[must_use]
    pub fn process(self) -> Process {
        Process {
            pid: self.pid,
            start_ticks: self.start_ticks,
            boot_id: leftover::boot_id().unwrap_or_default(),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Exited, Signaled, TimedOut or Cancelled.
    pub outcome: RunOutcome,
    /// When the program exited.
    pub exit_code: Option<i32>,
    /// When a signal ended it.
    pub signal: Option<i32>,
    /// For whom it was stopped.
    pub reason: String,
    /// Produced, kept or not: stdout, stderr.
    pub produced: [u64; 2],
    /// Of that, not kept.
    pub dropped: [u64; 2],
    /// When, if it was seen by somebody who says so.
    pub at: Option<Timestamp>,
}

/// How far an execution came before its executor let go of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It is over.
    Over(Ending),
    /// It goes on without this agent, which stops.
    GoesOn,
}

/// Makes ends of children visible, whoever started the agent: one that was started with SIGCHLD ignored would get no
/// exit status of any. Needs the runtime.
pub fn mind_children() -> std::io::Result<()> {
    // The handler stays when the listener is gone.
    signal(SignalKind::child()).map(drop)
}

/// A future behind a trait.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What executes the jobs of an agent: [`Starter`] as this process's user, [`crate::helper::Delegate`] as root.
pub trait Executor: fmt::Debug + Send + Sync {
    /// Starts a job's program. After [`StartError::Hangs`] nobody can tell whether it will have run for a moment.
    /// When `stop` resolves it is not waited for any longer.
    fn start(
        &self,
        order: Order,
        plan: Plan,
        stop: Boxed<'static, Stop>,
    ) -> Boxed<'_, Result<Box<dyn Executing>, StartError>>;

    /// Whether it asks this machine's policy itself.
    fn judges(&self) -> bool {
        false
    }

    /// Finds a run that an agent before this one has started; `None`: nobody knows of it, and it will not begin.
    fn attach(&self, _run: RunKey) -> Boxed<'_, Option<Box<dyn Executing>>> {
        Box::pin(std::future::ready(None))
    }

    /// The report of a run is durable.
    fn reported(&self, _run: RunKey) {}

    /// Who may sign has changed.
    fn trust(&self, _update: TrustUpdate) {}
}

/// What an [`Executor`] has started.
pub trait Executing: Send {
    /// Which process it is.
    fn identity(&self) -> Identity;
    /// Waits for its end, passing on its output. When `stop` resolves (with why), it is stopped.
    fn finish(
        self: Box<Self>,
        sink: Box<dyn Sink>,
        stop: Boxed<'static, Stop>,
    ) -> Boxed<'static, io::Result<End>>;
}

impl Executor for Starter {
    fn start(
        &self,
        _order: Order,
        plan: Plan,
        _stop: Boxed<'static, Stop>,
    ) -> Boxed<'_, Result<Box<dyn Executing>, StartError>> {
        self.start_plan(plan)
    }
}

impl Starter {
    /// Starts a program for whoever follows it.
    pub(crate) fn start_plan(
        &self,
        plan: Plan,
    ) -> Boxed<'_, Result<Box<dyn Executing>, StartError>> {
        Box::pin(async {
            let execution = self.start(plan).await?;
            Ok(Box::new(execution) as Box<dyn Executing>)
        })
    }
}

impl Executing for Execution {
    fn identity(&self) -> Identity {
        Self::identity(self)
    }

    fn finish(
        self: Box<Self>,
        sink: Box<dyn Sink>,
        stop: Boxed<'static, Stop>,
    ) -> Boxed<'static, io::Result<End>> {
        Box::pin(async move { Self::finish(*self, sink, stop).await.map(End::Over) })
    }
}

/// A program that runs. Dropping it without [`Execution::finish`] leaves the program to the next start.
#[derive(Debug)]
pub struct Execution {
    running: Running,
    plan: Arc<Plan>,
}

impl Execution {
    /// Which process it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.running.identity
    }

    /// Waits for its end, passing on its output. When `cancelled` resolves (with why), it is stopped.
    pub async fn finish(
        self,
        sink: Box<dyn Sink>,
        cancelled: impl Future<Output = Stop>,
    ) -> io::Result<Ending> {
        let Self { mut running, plan } = self;
        let begun = Instant::now();
        let mut capture = Capture::new(running.take_output(), plan.output_limit_bytes, sink);
        let stdin = running.feed();
        let mut stopped: Option<(RunOutcome, String)> = None;
        let mut flowing = true;
        {
            let mut deadline = begun.checked_add(plan.timeout).unwrap_or(begun);
            let mut pump = std::pin::pin!(capture.pump(true));
            let mut stdin = std::pin::pin!(stdin);
            let mut cancelled = std::pin::pin!(cancelled);
            let (mut feeding, mut killed) = (true, false);
            loop {
                tokio::select! {
                    () = running.exited() => break,
                    () = &mut pump, if flowing => flowing = false,
                    () = &mut stdin, if feeding => feeding = false,
                    stop = &mut cancelled, if stopped.is_none() => {
                        let grace = if stop.hurried { plan.grace.min(plan.stop_grace) } else { plan.grace };
                        stopped = Some((RunOutcome::Cancelled, stop.reason));
                        running.signal_group(Signal::TERM);
                        deadline = Instant::now() + grace;
                    }
                    () = sleep_until(deadline), if !killed => {
                        if stopped.is_none() {
                            let text = format!("ran longer than {:?}", plan.timeout);
                            stopped = Some((RunOutcome::TimedOut, text));
                            running.signal_group(Signal::TERM);
                            deadline = Instant::now() + plan.grace;
                        } else {
                            running.signal_group(Signal::KILL);
                            killed = true;
                        }
                    }
                }
            }
        }
        if stopped.is_some() {
            running.signal_group(Signal::KILL);
        }
        // What is left in the pipes is read whether there is room or not: nobody waits for it any more.
        if flowing && timeout(STRAYS, capture.pump(false)).await.is_err() {
            running.signal_group(Signal::KILL);
            // What left the group and still holds the pipe is not waited for.
            timeout(STRAYS, capture.pump(false)).await.ok();
        }
        capture.flush();
        let (exit_code, signal) = running.reap().await?;
        let (outcome, reason) = match stopped {
            Some((outcome, reason)) => (outcome, reason),
            None if exit_code.is_some() => (RunOutcome::Exited, String::new()),
            None => {
                let text = signal.map_or_else(String::new, |n| format!("ended by signal {n}"));
                (RunOutcome::Signaled, text)
            }
        };
        Ok(Ending {
            outcome,
            exit_code,
            signal,
            reason,
            produced: capture.produced(),
            dropped: capture.dropped(),
            at: None,
        })
    }
}

#[cfg(test)]
mod tests;
