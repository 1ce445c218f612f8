//! The runs of the helper, each with a task of its own that needs no agent.
//!
//! The order of writes is the agent's own: STARTED in the ledger, fsynced, before the program is executed; the ending
//! in the ledger before the agent hears of it, and kept there until the agent says that it has it. A run that was
//! started and not finished when the helper begins is `unknown`, after what is left of it has been killed.

mod begin;

pub(super) use self::begin::Refused;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use nexus_proto::{
    agent::v1 as wire,
    helper::v1::Welcome,
    ids::{NodeId, RunKey},
    job::Job,
    limits,
    record::{Finished, RunOutcome},
    time::Timestamp,
};
use nexus_runtime::{clock::Clock, errors::chain, tasks::Tasks};
use prost::Message as _;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::{
    pin::{self, Pin, Pins},
    shelf::Shelf,
};
use crate::{
    exec::{Boxed, Piece, Plan, Sink, StartError, Starter, Stop, leftover, told},
    ledger::{Ledger, LedgerError, Process, Stage},
    local_policy,
    ration::Ration,
    runs::report::{ended, finished},
};

/// Between tries to store an ending.
const AGAIN: Duration = Duration::from_secs(1);
/// Runs that were asked for and not known: they must not begin while a request for them may still be on its way.
const SETTLED: usize = 1024;
/// So long after its job expired, an ending that no agent came for is kept.
const UNREPORTED: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the runs are made of.
#[derive(Debug)]
pub(super) struct Around {
    pub(super) pins: Pins,
    /// The local policy, and whose it must be.
    pub(super) policy: PathBuf,
    pub(super) policy_owner: u32,
    pub(super) starter: Starter,
    pub(super) scripts: PathBuf,
    pub(super) clock: Clock,
    pub(super) tasks: Tasks,
    /// The longest grace when a stop is hurried.
    pub(super) stop_grace: Duration,
}

/// All of them.
#[derive(Debug, Clone)]
pub(super) struct Works(Arc<Shared>);

/// One of them.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) key: RunKey,
    pub(super) shelf: Shelf,
    expires: Timestamp,
    stop: watch::Sender<Option<Stop>>,
}

#[derive(Debug)]
struct Shared {
    around: Around,
    ledger: Mutex<Ledger>,
    works: Mutex<BTreeMap<RunKey, Arc<Work>>>,
    settled: Mutex<VecDeque<(Instant, RunKey)>>,
    refusals: Mutex<Ration>,
    stopping: AtomicBool,
    ended: Notify,
}

impl Works {
    /// Takes up what the helper before this one left.
    pub(super) fn resume(ledger: Ledger, around: Around) -> Self {
        let works = Self(Arc::new(Shared {
            around,
            ledger: Mutex::new(ledger),
            works: Mutex::default(),
            settled: Mutex::default(),
            refusals: Mutex::default(),
            stopping: AtomicBool::new(false),
            ended: Notify::new(),
        }));
        let known: Vec<_> = works
            .0
            .ledger()
            .runs()
            .map(|(key, run)| (*key, run.clone()))
            .collect();
        let now = works.0.around.clock.now();
        for (key, run) in known {
            match run.stage {
                Stage::Finished { .. } if run.expires < now.before(UNREPORTED) => {
                    works.reported(&key);
                }
                Stage::Started { at, node, process } => {
                    works.settle(key, run.expires, at, (node, process));
                }
                Stage::Received(_) => works.settle(key, run.expires, now, (None, None)),
                Stage::Finished { .. } | Stage::Acked(_) => {}
            }
        }
        works
    }

    /// Takes newer signed documents, as far as they are signed by whom this helper believes; why not.
    pub(super) fn trust(&self, update: wire::TrustUpdate) -> Result<(), String> {
        let shared = &self.0;
        let pins = &shared.around.pins;
        // Not into the folder of a pin that is just being replaced.
        let held = pin::hold(pins.folder()).and_then(|held| Ok((held, pins.current()?)));
        let Ok((_held, pin)) = held else {
            // Which is said of every job.
            return Ok(());
        };
        let before = pin.trust.state();
        let updated = pin.trust.update(shared.around.pins.folder(), update);
        let updated = updated
            .map_err(|error| format!("its agent's signer policy is refused: {}", chain(&error)));
        if let Err(why) = &updated {
            shared.complain(why);
        }
        let (version, expires) = pin.trust.state();
        if (version, expires) != before {
            tracing::info!(policy_version = version, fresh_until = %expires, "the signer policy is up to date");
        }
        updated
    }

    /// Whom it serves, and whether it would run anything.
    pub(super) fn welcome(&self, protocol: u32, refused: Option<String>) -> Welcome {
        let around = &self.0.around;
        let (node, unpinned) = match around.pins.current() {
            Ok(pin) => (pin.own.node.to_string(), None),
            Err(error) => (String::new(), Some(chain(&error).to_string())),
        };
        let refuses = unpinned.or(refused).or_else(|| {
            let policy = local_policy::load(&around.policy, around.policy_owner);
            policy.err().map(|error| chain(&error).to_string())
        });
        Welcome {
            protocol,
            node,
            refuses: refuses.unwrap_or_default(),
        }
    }

    /// Judges a dispatch and begins what it asks for.
    pub(super) fn start(&self, dispatch: Bytes) -> Result<Arc<Work>, Refused> {
        let begun = self.0.begin(dispatch);
        match begun {
            Ok((work, job, pin)) => {
                tracing::info!(
                    job = %work.key.job, request_id = job.request_id, operator = job.operator,
                    "job admitted"
                );
                let (shared, its) = (Arc::clone(&self.0), Arc::clone(&work));
                let tasks = &self.0.around.tasks;
                tasks.spawn(
                    "work",
                    async move { shared.carry_out(&its, &job, &pin).await },
                );
                Ok(work)
            }
            Err(refused) => {
                self.0
                    .complain(&format!("a job is refused: {}", refused.reason));
                Err(refused)
            }
        }
    }

    /// A run that was begun; `None`: it was not, or the agent has had its ending; it will not begin. Where a ledger was
    /// lost that may have held it, waits until nothing of it is alive.
    pub(super) async fn attach(&self, key: RunKey) -> Option<Arc<Work>> {
        if let Some(work) = self.0.find_or_settle(key) {
            return Some(work);
        }
        // What a run that ended well has left behind, it may have left on purpose.
        let whole = self.0.ledger().is_whole();
        if !whole {
            leftover::settle(&key, self.0.node(), None).await;
        }
        None
    }

    /// The agent has the ending.
    pub(super) fn reported(&self, key: &RunKey) {
        let now = self.0.around.clock.now();
        let noted = {
            let mut ledger = self.0.ledger();
            ledger.spooled(*key, 0).and_then(|()| ledger.acked(0, now))
        };
        if let Err(error) = noted {
            tracing::warn!(error = %chain(&error), "the ledger keeps what was reported");
        }
        self.0.works().remove(key);
    }

    /// Nobody follows a run any more.
    pub(super) fn unfollowed(&self, work: &Work) {
        // What is over and taken is in the ledger.
        if work.shelf.ended().is_some() && work.shelf.untaken() == [0, 0] {
            self.0.works().remove(&work.key);
        }
        self.0.ended.notify_waiters();
    }

    /// Has what a run's agent was told in the ledger too: by now more of its output may have been taken.
    pub(super) fn amend(&self, work: &Work, finished: &Finished) {
        let encoded = Bytes::from(finished.to_wire().encode_to_vec());
        let mut ledger = self.0.ledger();
        let known = match ledger.get(&work.key).map(|run| &run.stage) {
            Some(Stage::Finished { report, .. } | Stage::Acked(report)) => *report == encoded,
            _ => false,
        };
        if !known && let Err(error) = ledger.finish(work.key, work.expires, encoded) {
            tracing::warn!(error = %chain(&error), "the ledger says less of a run than its agent was told");
        }
    }

    /// Whether anything would be lost if the helper ended.
    pub(super) fn is_busy(&self) -> bool {
        let now = self.0.around.clock.instant();
        self.0
            .works()
            .values()
            .any(|work| match work.shelf.ended() {
                None => true,
                Some(at) => {
                    work.shelf.untaken() != [0, 0]
                        && now.saturating_duration_since(at) < limits::HELPER_KEEPS
                }
            })
    }

    /// Lets go of the output of runs that ended long ago and no agent came for. How they ended stays in the ledger, which
    /// counts that output as dropped.
    pub(super) fn let_go(&self) {
        let now = self.0.around.clock.instant();
        self.0.works().retain(|_, work| {
            work.shelf
                .ended()
                .is_none_or(|at| now.saturating_duration_since(at) < limits::HELPER_KEEPS)
        });
    }

    /// Begins nothing any more, stops all programs and waits for their ends.
    pub(super) async fn stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        loop {
            let ended = self.0.ended.notified();
            let running: Vec<_> = {
                let works = self.0.works();
                let running = works.values().filter(|work| work.shelf.ended().is_none());
                running.cloned().collect()
            };
            if running.is_empty() {
                return;
            }
            for work in running {
                work.stop(Stop {
                    reason: "the helper was stopped".to_owned(),
                    hurried: true,
                });
            }
            ended.await;
        }
    }

    /// Whether nothing was begun, by the ledger.
    pub(super) fn is_idle(&self) -> bool {
        self.0.ledger().runs().next().is_none()
    }

    /// How far the ledger knows a run to be.
    #[cfg(test)]
    pub(super) fn stage(&self, key: &RunKey) -> Option<Stage> {
        self.0.ledger().get(key).map(|run| run.stage.clone())
    }

    /// The ledger as it will be at some later time.
    #[cfg(test)]
    pub(super) fn forget(&self, then: Timestamp) -> Result<(), LedgerError> {
        self.0.ledger().compact(then)
    }

    /// Reports a run that ended unseen, once nothing of it is left. The pin may be for another node by now.
    fn settle(
        &self,
        key: RunKey,
        expires: Timestamp,
        at: Timestamp,
        (node, process): (Option<NodeId>, Option<Process>),
    ) {
        let work = Work::new(key, expires);
        self.0.works().insert(key, Arc::clone(&work));
        let shared = Arc::clone(&self.0);
        self.0.around.tasks.spawn("settle", async move {
            let node = node.or_else(|| shared.node());
            leftover::settle(&key, node, process.as_ref()).await;
            let now = shared.around.clock.now();
            let reason = "the helper ended while it ran".to_owned();
            shared
                .finish(&work, ended(key, RunOutcome::Unknown, reason, at, now))
                .await;
        });
    }
}

impl Work {
    fn new(key: RunKey, expires: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            key,
            shelf: Shelf::new(),
            expires,
            stop: watch::Sender::new(None),
        })
    }

    /// Has it end, if it has not.
    pub(super) fn stop(&self, stop: Stop) {
        self.stop.send_if_modified(|held| {
            let first = held.is_none();
            if first {
                *held = Some(stop);
            }
            first
        });
    }
}

impl Shared {
    async fn carry_out(self: Arc<Self>, work: &Arc<Work>, job: &Job, pin: &Pin) {
        let around = &self.around;
        let (key, at, node) = (work.key, around.clock.now(), pin.own.node);
        let over = |outcome, reason| ended(key, outcome, reason, at, around.clock.now());
        let plan = Plan {
            action: job.action.clone(),
            mark: leftover::mark(node, &key),
            job: key.job.to_string(),
            timeout: job.timeout,
            grace: job.kill_grace,
            output_limit_bytes: job.output_limit_bytes,
            scripts: around.scripts.clone(),
            stop_grace: around.stop_grace,
        };
        let ending = match around.starter.start(plan).await {
            Ok(execution) => {
                let identity = execution.identity();
                tracing::info!(job = %key.job, pid = identity.pid, "run started");
                let process = identity.process();
                let noted = self.ledger().process(key, process.clone());
                warn(&noted);
                work.shelf.begin(identity);
                let sink = Box::new(ShelfSink(Arc::clone(work)));
                match execution.finish(sink, told(work.stop.subscribe())).await {
                    Ok(ending) => finished(key, ending, at, around.clock.now()),
                    Err(error) => {
                        leftover::settle(&key, Some(node), Some(&process)).await;
                        let reason = format!("its end could not be seen: {error}");
                        over(RunOutcome::Unknown, reason)
                    }
                }
            }
            Err(error @ StartError::Hangs(_)) => {
                leftover::settle(&key, Some(node), None).await;
                over(RunOutcome::Unknown, chain(&error).to_string())
            }
            Err(error) => over(RunOutcome::FailedToStart, chain(&error).to_string()),
        };
        tracing::info!(
            job = %key.job, request_id = job.request_id, outcome = ?ending.outcome,
            exit_code = ending.exit_code, signal = ending.signal, reason = ending.reason,
            "run finished"
        );
        self.finish(work, ending).await;
    }

    /// Has the ending in the ledger, and then tells it. Should the helper end before its output was taken, that is lost.
    async fn finish(&self, work: &Work, ending: Finished) {
        let [stdout, stderr] = work.shelf.untaken();
        let mut durable = ending.clone();
        durable.stdout_dropped_bytes += stdout;
        durable.stderr_dropped_bytes += stderr;
        let encoded = Bytes::from(durable.to_wire().encode_to_vec());
        loop {
            let kept = self
                .ledger()
                .finish(work.key, work.expires, encoded.clone());
            match kept {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(job = %work.key.job, error = %chain(&error), "an ending cannot be stored");
                    sleep(AGAIN).await;
                }
            }
        }
        work.shelf.end(ending, self.around.clock.instant());
        self.ended.notify_waiters();
    }

    fn find_or_settle(&self, key: RunKey) -> Option<Arc<Work>> {
        let mut works = self.works();
        if let Some(work) = works.get(&key) {
            return Some(Arc::clone(work));
        }
        let run = self.ledger().get(&key).cloned();
        let now = self.around.clock.instant();
        match run.map(|run| (run.stage, run.expires)) {
            Some((Stage::Finished { report, .. } | Stage::Acked(report), expires)) => {
                let work = Work::new(key, expires);
                work.shelf
                    .end(kept(key, report, self.around.clock.now()), now);
                works.insert(key, Arc::clone(&work));
                Some(work)
            }
            // In the ledger and not among the works: only within `begin`.
            Some(_) => None,
            None => {
                let mut settled = self.settled();
                let old =
                    |at: Instant| now.saturating_duration_since(at) > 4 * limits::HELPER_HELLO;
                while settled.len() >= SETTLED || settled.front().is_some_and(|(at, _)| old(*at)) {
                    settled.pop_front();
                }
                settled.push_back((now, key));
                None
            }
        }
    }

    /// Whom it serves, if anybody.
    fn node(&self) -> Option<NodeId> {
        self.around.pins.current().map(|pin| pin.own.node).ok()
    }

    /// Anybody with a socket to the helper could fill the log.
    fn complain(&self, what: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(withheld) = refusals.take(self.around.clock.now()) {
            tracing::warn!(withheld, "{what}");
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn works(&self) -> MutexGuard<'_, BTreeMap<RunKey, Arc<Work>>> {
        self.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settled(&self) -> MutexGuard<'_, VecDeque<(Instant, RunKey)>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ShelfSink(Arc<Work>);

impl Sink for ShelfSink {
    fn take(&mut self, piece: Piece) -> bool {
        self.0.shelf.put(piece)
    }

    fn is_full(&self) -> bool {
        self.0.shelf.is_full()
    }

    fn room(&self) -> Boxed<'_, ()> {
        Box::pin(self.0.shelf.room())
    }
}

/// An ending as the ledger has it.
fn kept(key: RunKey, report: Bytes, now: Timestamp) -> Finished {
    let decoded = wire::RunFinished::decode(report).map_err(|error| error.to_string());
    let decoded = decoded
        .and_then(|finished| Finished::from_wire(finished).map_err(|error| error.to_string()));
    decoded.unwrap_or_else(|error| {
        let reason = format!("its ending is not readable: {error}");
        ended(key, RunOutcome::Unknown, reason, now, now)
    })
}

fn warn(noted: &Result<(), LedgerError>) {
    if let Err(error) = noted {
        tracing::warn!(error = %chain(error), "the ledger does not know a run's process");
    }
}
