//! One writer thread a log: append, commit, apply, reply.
//!
//! The queue is bounded by entries and by bytes. The thread takes what has gathered, up to a bound, appends
//! it to the log as one row (durable), applies it to the projections in one transaction that also holds the
//! applied index, and only then answers. What is in the log and not applied, after a crash or a failed
//! disk, is applied before anything else: applying is deterministic and harmless to repeat.
//!
//! When the disk is full or fails, callers hear [`StoreError::Unwritable`], or [`StoreError::Unapplied`] when the
//! log has it already, and nothing is acknowledged; the next entry tries again.

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nexus_proto::time::Timestamp;
use nexus_runtime::clock::Clock;
use rusqlite::{Connection, ErrorCode, params};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    StoreError,
    db::{self, Format},
    entry::{Facts, Outcome},
    health::Health,
    log::Log,
};

/// Commands that wait.
const QUEUE: usize = 4096;
/// Kilobytes of entries that wait, or are being written.
const QUEUE_KB: u32 = 64 * 1024;
/// Commands of one commit.
const GROUP: usize = 1024;
/// Kilobytes of one commit, but for its last command.
const GROUP_KB: u32 = 8 * 1024;
/// Commits are so far apart, for each append that the last one carried and at most: one commit of many costs a fraction
/// of many of one, and who appends alone does not wait.
const GATHER_EACH: Duration = Duration::from_micros(500);
const GATHER: Duration = Duration::from_millis(25);

/// What follows from a log.
pub(crate) trait Projection: Send + 'static {
    /// The entries of its log.
    type Fact: Facts;
    /// Of its file. The first step makes a table `meta (key TEXT PRIMARY KEY, value INTEGER)`.
    fn format() -> Format;
    /// Statements that the connection keeps prepared.
    const STATEMENTS: usize;
    /// What is to be said before anything else, because the writer before may not have ended cleanly.
    fn resume(&self, _: &Connection, _: Timestamp) -> Result<Vec<Self::Fact>, StoreError> {
        Ok(Vec::new())
    }
    /// Leaves out what is applied already.
    fn trim(&mut self, rows: &Connection, facts: &mut [Self::Fact]) -> Result<(), StoreError>;
    /// Applies one fact. `alone`: within a savepoint `fact` of its own, to which it may go back; otherwise what fails
    /// takes all of its transaction with it, and is tried again alone.
    fn apply(
        &mut self,
        rows: &Connection,
        time: Timestamp,
        fact: &Self::Fact,
        alone: bool,
    ) -> Result<Outcome, StoreError>;
    /// The transaction is committed (memory may show it) or rolled back (memory must not).
    fn settle(&mut self, committed: bool);
}

/// How full a writer's queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepth {
    /// Appends that wait.
    pub entries: usize,
    /// Bytes of what waits or is being written, rounded up to KiB.
    pub bytes: usize,
    /// Appends that can wait.
    pub capacity: usize,
    /// Bytes that can wait.
    pub capacity_bytes: usize,
    /// Commits that failed.
    pub failures: u64,
}

type Reply = oneshot::Sender<Result<Vec<Outcome>, StoreError>>;

enum Command<F> {
    Append {
        facts: Vec<F>,
        weight: OwnedSemaphorePermit,
        reply: Reply,
    },
    Rebuild(oneshot::Sender<Result<(), StoreError>>),
    Turn(oneshot::Sender<()>),
}

/// The way to a writer. Clones lead to the same one; it ends when the last is gone.
pub(crate) struct Writer<F> {
    name: &'static str,
    health: Arc<Health>,
    queue: Mutex<Option<mpsc::Sender<Command<F>>>>,
    bytes: Arc<Semaphore>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl<F: Facts> Writer<F> {
    /// Opens a log and its projections, applies what is not applied yet, appends `first`, starts the thread.
    pub(crate) fn start<P: Projection<Fact = F>>(
        name: &'static str,
        folder: &Path,
        clock: Clock,
        projection: P,
        mut first: Vec<F>,
    ) -> Result<Self, StoreError> {
        let now = clock.now();
        let mut core = Core::open(folder, clock, projection)?;
        first.extend(core.projection.resume(&core.rows, now)?);
        if !first.is_empty() {
            core.write(first)?;
        }
        let health = Arc::clone(&core.health);
        let (queue, mut commands) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name(format!("write-{name}"))
            .spawn(move || {
                while let Some(command) = commands.blocking_recv() {
                    core.gather();
                    core.serve(command, &mut commands);
                }
                db::finish(&core.rows);
            })
            .map_err(StoreError::file("cannot start the writer of", folder))?;
        Ok(Self {
            name,
            health,
            queue: Mutex::new(Some(queue)),
            bytes: Arc::new(Semaphore::new(
                usize::try_from(QUEUE_KB).unwrap_or(usize::MAX),
            )),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Appends and applies; waits for room in the queue first.
    pub(crate) async fn append(&self, facts: Vec<F>) -> Result<Vec<Outcome>, StoreError> {
        let weight: usize = facts.iter().map(Facts::weight).sum::<usize>() / 1024 + 1;
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        if weight > QUEUE_KB {
            return Err(StoreError::Full(self.name));
        }
        let weight = Arc::clone(&self.bytes)
            .acquire_many_owned(weight)
            .await
            .map_err(|_| StoreError::Closed)?;
        let (reply, outcome) = oneshot::channel();
        self.send(Command::Append {
            facts,
            weight,
            reply,
        })
        .await?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    /// What waits in the queue, and how much it can hold.
    pub(crate) fn depth(&self) -> QueueDepth {
        let queue = self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let free_kb = self.bytes.available_permits();
        let all_kb = usize::try_from(QUEUE_KB).unwrap_or(usize::MAX);
        QueueDepth {
            entries: queue.map_or(0, |queue| QUEUE.saturating_sub(queue.capacity())),
            bytes: all_kb.saturating_sub(free_kb).saturating_mul(1024),
            capacity: QUEUE,
            capacity_bytes: all_kb.saturating_mul(1024),
            failures: self.health.failures(),
        }
    }

    /// Why the last commit failed, if that was less than a minute before `now`.
    pub(crate) fn failing(&self, now: Instant) -> Option<String> {
        self.health.failing(now)
    }

    /// Makes the projections anew from the log.
    pub(crate) async fn rebuild(&self) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        self.send(Command::Rebuild(reply)).await?;
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Resolves once the thread has been at its queue.
    pub(crate) async fn turn(&self) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        self.send(Command::Turn(reply)).await?;
        done.await.map_err(|_| StoreError::Closed)
    }

    async fn send(&self, command: Command<F>) -> Result<(), StoreError> {
        let queue = self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let queue = queue.ok_or(StoreError::Closed)?;
        queue.send(command).await.map_err(|_| StoreError::Closed)
    }

    /// Takes no more, and waits until what was taken is answered.
    pub(crate) fn close(&self) {
        drop(
            self.queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(log = self.name, "a writer ended by a panic");
        }
    }
}

/// What the thread owns.
struct Core<P> {
    log: Log,
    rows: Connection,
    path: PathBuf,
    applied: i64,
    clock: Clock,
    projection: P,
    health: Arc<Health>,
    /// No commit begins earlier.
    gathers_until: Option<Instant>,
}

impl<P: Projection> Core<P> {
    fn open(folder: &Path, clock: Clock, projection: P) -> Result<Self, StoreError> {
        db::make_folder(folder)?;
        let log = Log::open(&folder.join("log.db"))?;
        let path = folder.join("state.db");
        let rows = match db::open_writer(&path, &P::format()) {
            Err(StoreError::Sqlite { source, .. }) if is_damage(&source.0) => {
                tracing::error!(file = %path.display(), "the projections are damaged and are rebuilt from the log");
                set_aside(&path)?;
                db::open_writer(&path, &P::format())?
            }
            opened => opened?,
        };
        rows.set_prepared_statement_cache_capacity(P::STATEMENTS);
        let applied = rows
            .query_row(
                "SELECT coalesce(max(value), 0) FROM meta WHERE key = 'applied'",
                [],
                |row| row.get(0),
            )
            .map_err(StoreError::sqlite("cannot read", &path))?;
        if applied > log.index() {
            return Err(StoreError::Corrupt {
                what: format!(
                    "{} ends at row {}, before row {applied} that is applied: the log",
                    folder.join("log.db").display(),
                    log.index()
                ),
                source: None,
            });
        }
        let mut core = Self {
            log,
            rows,
            path,
            applied,
            clock,
            projection,
            health: Arc::default(),
            gathers_until: None,
        };
        core.catch_up()?;
        Ok(core)
    }

    /// Lets others come, while many do.
    fn gather(&self) {
        if let Some(until) = self.gathers_until {
            rest(&self.clock, until);
        }
    }

    fn serve(&mut self, first: Command<P::Fact>, queue: &mut mpsc::Receiver<Command<P::Fact>>) {
        let mut next = Some(first);
        let mut group: Vec<(usize, OwnedSemaphorePermit, Reply)> = Vec::new();
        let mut facts = Vec::new();
        let mut weight = 0;
        while let Some(command) = next.take() {
            match command {
                Command::Append {
                    facts: more,
                    weight: permit,
                    reply,
                } => {
                    weight += permit.num_permits();
                    group.push((more.len(), permit, reply));
                    facts.extend(more);
                }
                Command::Rebuild(reply) => {
                    drop(reply.send(self.rebuild()));
                }
                Command::Turn(reply) => drop(reply.send(())),
            }
            if group.len() < GROUP && weight < usize::try_from(GROUP_KB).unwrap_or(usize::MAX) {
                next = queue.try_recv().ok();
            }
        }
        if group.is_empty() {
            return;
        }
        let written = self.write(facts);
        self.gathers_until = Some(self.clock.instant() + pause_after(group.len()));
        match written {
            Ok(outcomes) => {
                if self.health.worked() {
                    tracing::info!(file = %self.path.display(), "commits work again");
                }
                let mut outcomes = outcomes.into_iter();
                for (count, permit, reply) in group {
                    // A caller that stopped waiting learns nothing, and loses nothing.
                    drop(reply.send(Ok(outcomes.by_ref().take(count).collect())));
                    drop(permit);
                }
            }
            Err(error) => {
                let why = chain(&error);
                // Whoever has something to store tries again soon, and often.
                if self.health.failed(self.clock.instant(), &why) {
                    tracing::error!(file = %self.path.display(), error = why, "a commit failed");
                } else {
                    tracing::debug!(file = %self.path.display(), error = why, "a commit failed again");
                }
                let logged = matches!(error, StoreError::Unapplied(_));
                for (_, _, reply) in group {
                    let why = why.clone();
                    drop(reply.send(Err(if logged {
                        StoreError::Unapplied(why)
                    } else {
                        StoreError::Unwritable(why)
                    })));
                }
            }
        }
    }

    fn write(&mut self, mut facts: Vec<P::Fact>) -> Result<Vec<Outcome>, StoreError> {
        self.catch_up()?;
        self.projection.trim(&self.rows, &mut facts)?;
        let time = self.clock.now();
        let index = self.log.append(&facts, time).map_err(StoreError::sqlite(
            "cannot append to the log beside",
            &self.path,
        ))?;
        self.apply(index, time, &facts)
            .map_err(|error| StoreError::Unapplied(chain(&error)))
    }

    fn catch_up(&mut self) -> Result<(), StoreError> {
        while self.applied < self.log.index() {
            let index = self.applied + 1;
            let row = self.log.read(index)?.ok_or_else(|| StoreError::Corrupt {
                what: format!(
                    "the log of {}: row {index} is gone; it",
                    self.path.display()
                ),
                source: None,
            })?;
            self.apply(row.index, row.time, &row.facts)?;
        }
        Ok(())
    }

    fn apply(
        &mut self,
        index: i64,
        time: Timestamp,
        facts: &[P::Fact],
    ) -> Result<Vec<Outcome>, StoreError> {
        match self.transact(index, time, facts, false) {
            // Savepoints cost as much as what is done within them: only where one is to blame each has its own.
            Err(error) if !is_fatal(&error) => self.transact(index, time, facts, true),
            applied => applied,
        }
    }

    fn transact(
        &mut self,
        index: i64,
        time: Timestamp,
        facts: &[P::Fact],
        alone: bool,
    ) -> Result<Vec<Outcome>, StoreError> {
        self.batch("BEGIN IMMEDIATE")?;
        let applied = self.apply_within(index, time, facts, alone);
        let applied = applied.and_then(|outcomes| {
            self.batch("COMMIT")?;
            Ok(outcomes)
        });
        if applied.is_ok() {
            self.applied = index;
        } else if !self.rows.is_autocommit() {
            self.batch("ROLLBACK")?;
        }
        self.projection.settle(applied.is_ok());
        applied
    }

    fn apply_within(
        &mut self,
        index: i64,
        time: Timestamp,
        facts: &[P::Fact],
        alone: bool,
    ) -> Result<Vec<Outcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(facts.len());
        for fact in facts {
            outcomes.push(if alone {
                self.apply_alone(index, time, fact)?
            } else {
                self.projection.apply(&self.rows, time, fact, false)?
            });
        }
        self.rows
            .prepare_cached("INSERT INTO meta (key, value) VALUES ('applied', ?1) ON CONFLICT DO UPDATE SET value = ?1")
            .and_then(|mut set| set.execute(params![index]))
            .map_err(StoreError::sqlite("cannot write to", &self.path))?;
        Ok(outcomes)
    }

    /// What only this entry is to blame for does not stop those after it.
    fn apply_alone(
        &mut self,
        index: i64,
        time: Timestamp,
        fact: &P::Fact,
    ) -> Result<Outcome, StoreError> {
        self.batch("SAVEPOINT fact")?;
        let outcome = match self.projection.apply(&self.rows, time, fact, true) {
            Err(error) if !is_fatal(&error) => {
                self.batch("ROLLBACK TO fact")?;
                tracing::error!(index, error = %chain(&error), "an entry cannot be applied");
                Outcome::Refused(chain(&error))
            }
            outcome => outcome?,
        };
        self.batch("RELEASE fact")?;
        Ok(outcome)
    }

    fn rebuild(&mut self) -> Result<(), StoreError> {
        let empty = || -> rusqlite::Result<()> {
            let names: Vec<String> = self
                .rows
                .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")?
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let deletes: String = names
                .iter()
                .map(|name| format!("DELETE FROM \"{name}\";"))
                .collect();
            self.rows
                .execute_batch(&format!("BEGIN IMMEDIATE; {deletes} COMMIT;"))
        };
        empty().map_err(StoreError::sqlite("cannot empty", &self.path))?;
        self.applied = 0;
        self.catch_up()
    }

    fn batch(&self, sql: &'static str) -> Result<(), StoreError> {
        self.rows
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map(drop)
            .map_err(StoreError::sqlite("cannot write to", &self.path))
    }
}

/// How far the next commit is after one that carried so many appends.
fn pause_after(appends: usize) -> Duration {
    let others = u32::try_from(appends).unwrap_or(u32::MAX).saturating_sub(1);
    GATHER_EACH.saturating_mul(others).min(GATHER)
}

/// Sleeps until then, unless that is past. A wait of no time at all is none: the system's own may take it for one
/// without an end.
pub(crate) fn rest(clock: &Clock, until: Instant) {
    let rest = until.saturating_duration_since(clock.instant());
    if !rest.is_zero() {
        thread::park_timeout(rest);
    }
}

/// Whether the disk or the file, not the entry, is at fault.
pub(crate) fn is_fatal(error: &StoreError) -> bool {
    match error {
        StoreError::Sqlite { source, .. } | StoreError::Statement(source) => matches!(
            source.0.sqlite_error_code(),
            Some(
                ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::ReadOnly
                    | ErrorCode::CannotOpen
                    | ErrorCode::OutOfMemory
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
                    | ErrorCode::FileLockingProtocolFailed
            )
        ),
        StoreError::File { .. } => true,
        _ => false,
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn set_aside(path: &Path) -> Result<(), StoreError> {
    for suffix in ["", "-wal", "-shm"] {
        let from = PathBuf::from(format!("{}{suffix}", path.display()));
        if from.exists() {
            let to = PathBuf::from(format!("{}.damaged{suffix}", path.display()));
            std::fs::rename(&from, &to).map_err(StoreError::file("cannot set aside", &from))?;
        }
    }
    Ok(())
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
