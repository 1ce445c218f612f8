//! The one writer thread of a shard's head: gather, append, commit, answer.
//!
//! The queue is bounded by entries and by bytes, as that of the other logs. Commits follow each other no faster
//! than `gather`, so that under load one commit carries the reports of many nodes; after a pause the first goes at
//! once. A report that is committed already counts as committed. One that continues a report which is not the last
//! of its node is refused with its upload, whose next stream then begins with a key frame.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use nexus_proto::ids::{Incarnation, NodeId};
use nexus_runtime::clock::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    Head,
    live::{Shared, Tail, hold},
};
use crate::{
    StoreError,
    entry::{Outcome, Reports},
    health::Health,
    rows::Newest,
    writer::{QueueDepth, chain, rest},
};

/// Appends that wait, or are being written.
const QUEUE: usize = 4096;
/// Kilobytes of them.
const QUEUE_KB: u32 = 64 * 1024;
/// Appends of one commit.
const GROUP: usize = 2048;
/// Rows that one transaction removes.
const TRIM_ROWS: usize = 64;

type Reply = oneshot::Sender<Result<Outcome, StoreError>>;

struct Append {
    reports: Reports,
    /// Room in the queue, and bytes.
    held: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    reply: Reply,
}

enum Command {
    Append(Append),
    Trim(i64),
    Turn(oneshot::Sender<()>),
}

/// The way to the writer; it ends when this is closed.
pub(crate) struct HeadWriter {
    health: Arc<Health>,
    queue: Mutex<Option<SyncSender<Command>>>,
    room: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl HeadWriter {
    pub(crate) fn start(
        head: Head,
        memory: Shared,
        clock: Clock,
        gather: Duration,
    ) -> Result<Self, StoreError> {
        let health = Arc::<Health>::default();
        // Trims come from one place, one at a time, and so do turns.
        let (queue, commands) = sync_channel(QUEUE + 2);
        let path = head.path().to_owned();
        let core = Core {
            head,
            memory,
            clock,
            gather,
            last: None,
            health: Arc::clone(&health),
        };
        let thread = thread::Builder::new()
            .name("write-head".to_owned())
            .spawn(move || core.run(&commands))
            .map_err(StoreError::file("cannot start the writer of", &path))?;
        Ok(Self {
            health,
            queue: Mutex::new(Some(queue)),
            room: Arc::new(Semaphore::new(QUEUE)),
            bytes: Arc::new(Semaphore::new(
                usize::try_from(QUEUE_KB).unwrap_or(usize::MAX),
            )),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Appends; waits for room in the queue first.
    pub(crate) async fn append(&self, reports: Reports) -> Result<Outcome, StoreError> {
        let weight = u32::try_from(reports.weight() / 1024 + 1).unwrap_or(u32::MAX);
        if weight > QUEUE_KB {
            return Err(StoreError::Full("head"));
        }
        let closed = |_| StoreError::Closed;
        let room = Arc::clone(&self.room).acquire_owned().await;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(weight).await;
        let held = (room.map_err(closed)?, bytes.map_err(closed)?);
        let (reply, outcome) = oneshot::channel();
        self.send(Command::Append(Append {
            reports,
            held,
            reply,
        }))?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    /// Removes rows up to `to`, between commits.
    pub(crate) fn trim(&self, to: i64) -> Result<(), StoreError> {
        self.send(Command::Trim(to))
    }

    /// Resolves once the thread has been at its queue.
    pub(crate) async fn turn(&self) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        self.send(Command::Turn(reply))?;
        done.await.map_err(|_| StoreError::Closed)
    }

    fn send(&self, command: Command) -> Result<(), StoreError> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queue.as_ref().ok_or(StoreError::Closed)?;
        queue.try_send(command).map_err(|_| StoreError::Closed)
    }

    /// What waits, and how much can.
    pub(crate) fn depth(&self) -> QueueDepth {
        let all_kb = usize::try_from(QUEUE_KB).unwrap_or(usize::MAX);
        QueueDepth {
            entries: QUEUE.saturating_sub(self.room.available_permits()),
            bytes: all_kb.saturating_sub(self.bytes.available_permits()) * 1024,
            capacity: QUEUE,
            capacity_bytes: all_kb * 1024,
            failures: self.health.failures(),
        }
    }

    /// Why the last commit failed, if that was less than a minute before `now`.
    pub(crate) fn failing(&self, now: Instant) -> Option<String> {
        self.health.failing(now)
    }

    /// Takes no more, and waits until what was taken is answered.
    pub(crate) fn close(&self) {
        let queue = &self.queue;
        drop(queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = &self.thread;
        let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the writer of a head ended by a panic");
        }
    }
}

struct Core {
    head: Head,
    memory: Shared,
    clock: Clock,
    gather: Duration,
    /// When the last commit ended.
    last: Option<Instant>,
    health: Arc<Health>,
}

impl Core {
    fn run(mut self, commands: &Receiver<Command>) {
        let mut trim = None;
        loop {
            let first = match trim {
                None => commands.recv().map_err(|_| TryRecvError::Disconnected),
                Some(_) => commands.try_recv(),
            };
            let mut group = Vec::new();
            match first {
                Ok(first) => self.sort(first, &mut group, &mut trim),
                Err(TryRecvError::Empty) => {
                    self.trim(&mut trim);
                    continue;
                }
                Err(TryRecvError::Disconnected) => break,
            }
            if let Some(last) = self.last {
                // Nothing wakes it for each report that comes meanwhile.
                rest(&self.clock, last + self.gather);
            }
            while group.len() < GROUP
                && let Ok(command) = commands.try_recv()
            {
                self.sort(command, &mut group, &mut trim);
            }
            if !group.is_empty() {
                self.commit(group);
                self.last = Some(self.clock.instant());
            }
            self.trim(&mut trim);
        }
        self.head.close();
    }

    fn sort(&self, command: Command, group: &mut Vec<Append>, trim: &mut Option<i64>) {
        match command {
            Command::Append(append) => group.push(append),
            Command::Trim(to) => *trim = Some(to),
            Command::Turn(reply) => drop(reply.send(())),
        }
    }

    fn commit(&mut self, mut group: Vec<Append>) {
        let now = self.clock.now();
        let mut tails: HashMap<(NodeId, Incarnation), Tail> = HashMap::new();
        let mut outcomes = Vec::with_capacity(group.len());
        let mut parts = Vec::with_capacity(group.len());
        for append in &mut group {
            let reports = &mut append.reports;
            let of = (reports.node, reports.incarnation);
            let tail = tails
                .entry(of)
                .or_insert_with(|| hold(&self.memory).tail(of.0, of.1));
            reports.reports.retain(|report| report.seq > tail.seq);
            let (Some(first), Some(last)) = (reports.reports.first(), reports.reports.last())
            else {
                outcomes.push(Outcome::Committed(tail.seq));
                continue;
            };
            let base = first.base.unwrap_or_default();
            if base != 0 && (base, reports.stream) != (tail.seq, tail.stream) {
                reports.reports.clear();
                outcomes.push(Outcome::Refused(format!(
                    "the report after {base} is no key frame, and {} is the last that is committed",
                    tail.seq
                )));
                continue;
            }
            outcomes.push(Outcome::Committed(last.seq));
            *tail = Tail {
                stream: reports.stream,
                seq: last.seq,
                records: tail.records + u64::try_from(reports.reports.len()).unwrap_or_default(),
                received: now,
            };
            parts.push(reports.to_part());
        }
        let appended = if parts.is_empty() {
            Ok(None)
        } else {
            self.head.append(parts, now).map(Some)
        };
        match appended {
            Ok(index) => {
                if self.health.worked() {
                    tracing::info!(file = %self.head.path().display(), "commits work again");
                }
                if let Some(index) = index {
                    self.remember(&group, tails, index);
                }
                for (append, outcome) in group.into_iter().zip(outcomes) {
                    // A caller that stopped waiting learns nothing, and loses nothing.
                    drop(append.reply.send(Ok(outcome)));
                    drop(append.held);
                }
            }
            Err(error) => {
                let why = chain(&error);
                let path = self.head.path().display();
                // Whoever has something to store tries again soon, and often.
                if self.health.failed(self.clock.instant(), &why) {
                    tracing::error!(file = %path, error = why, "a commit failed");
                } else {
                    tracing::debug!(file = %path, error = why, "a commit failed again");
                }
                for append in group {
                    drop(append.reply.send(Err(StoreError::Unwritable(why.clone()))));
                }
            }
        }
    }

    fn remember(&self, group: &[Append], tails: HashMap<(NodeId, Incarnation), Tail>, index: i64) {
        let mut memory = hold(&self.memory);
        for append in group {
            let reports = &append.reports;
            let Some(last) = reports.reports.last() else {
                continue;
            };
            let tail = tails.get(&(reports.node, reports.incarnation));
            memory.set_newest(
                reports.node,
                Newest {
                    time: last.time,
                    received: tail.map_or(last.time, |tail| tail.received),
                    snapshot: Arc::clone(&last.snapshot),
                },
            );
            memory.note_row(reports.node, index);
        }
        for ((node, incarnation), tail) in tails {
            memory.set_tail(node, incarnation, tail);
        }
        memory.note_all(index);
    }

    /// Removes some rows: those who report wait for no more than that. A disk that cannot give room back now can later:
    /// the rows stay until they are trimmed with those after them.
    fn trim(&mut self, trim: &mut Option<i64>) {
        let Some(to) = *trim else { return };
        match self.head.trim(to, TRIM_ROWS) {
            Ok(true) => {}
            Ok(false) => *trim = None,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the head of metrics is not trimmed");
                *trim = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_trimmed_step_by_step() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let mut head = Head::open(&dir.path().join("head.db")).unwrap();
        let rows = i64::try_from(2 * TRIM_ROWS + 1).unwrap();
        for _ in 0..rows {
            head.append(Vec::new(), clock.now()).unwrap();
        }
        let mut core = Core {
            head,
            memory: Shared::default(),
            clock,
            gather: Duration::ZERO,
            last: None,
            health: Arc::default(),
        };
        let mut trim = Some(rows);
        for left in [Some(rows), Some(rows), None] {
            core.trim(&mut trim);
            assert_eq!(trim, left);
        }
    }
}
