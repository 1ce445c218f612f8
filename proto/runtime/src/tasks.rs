//! Every task has a name, an owner, and a rule for what its end means.
//!
//! A [`Tasks`] is a group: a cancellation token its tasks watch, and the list of those still running. Groups
//! nest: shutting one down ends its own tasks and its children's, and an owner waits for both. An
//! *essential* task is one the program cannot do without: when it ends before shutdown began, the whole
//! program shuts down and [`Tasks::failure`] says why. Other tasks hand their result to whoever holds the
//! [`JoinHandle`].

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::errors;

/// Why the program cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{task} {what}")]
pub struct Failure {
    /// The essential task that ended.
    pub task: &'static str,
    /// How: `failed: …`, `ended early`, `panicked`.
    pub what: String,
}

/// A group of tasks. Clones are the same group.
#[derive(Clone)]
pub struct Tasks {
    /// From the program's group down to this one; a task belongs to all of them.
    groups: Arc<[Arc<Group>]>,
    own: Arc<Group>,
    program: Arc<Program>,
}

struct Program {
    token: CancellationToken,
    failure: OnceLock<Failure>,
    next: AtomicU64,
}

struct Group {
    token: CancellationToken,
    tracker: TaskTracker,
    running: Mutex<BTreeMap<u64, Running>>,
}

struct Running {
    name: &'static str,
    /// None for blocking work, which nothing can stop from outside, and until the task is spawned.
    abort: Option<AbortHandle>,
}

impl Group {
    fn new(token: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            token,
            tracker: TaskTracker::new(),
            running: Mutex::default(),
        })
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// The program's group.
    #[must_use]
    pub fn new() -> Self {
        let token = CancellationToken::new();
        let own = Group::new(token.clone());
        Self {
            groups: Arc::new([Arc::clone(&own)]),
            own,
            program: Arc::new(Program {
                token,
                failure: OnceLock::new(),
                next: AtomicU64::new(0),
            }),
        }
    }

    /// A group within this one, which can be shut down on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        let own = Group::new(self.own.token.child_token());
        let groups = self
            .groups
            .iter()
            .cloned()
            .chain([Arc::clone(&own)])
            .collect();
        Self {
            groups,
            own,
            program: Arc::clone(&self.program),
        }
    }

    /// Cancelled when this group should end. Tasks watch it; nothing stops them from outside until the
    /// deadline of [`Tasks::shutdown`] has passed.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.own.token.clone()
    }

    /// Whether the group should end.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.own.token.is_cancelled()
    }

    /// Resolves when the group should end.
    pub async fn shutdown_begun(&self) {
        self.own.token.cancelled().await;
    }

    /// Starts a task whose result is its holder's business. Must be called within a tokio runtime.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let entry = self.enter(name);
        let id = entry.id;
        // Boxed first: on its way through the runtime a future is copied from frame to frame, and a large one
        // would make the stack grow for good.
        let task = Box::pin(task);
        let handle = spawn_detached(name, async move {
            let _entry = entry;
            task.await
        });
        for group in self.groups.iter() {
            if let Some(running) = group.running().get_mut(&id) {
                running.abort = Some(handle.abort_handle());
            }
        }
        handle
    }

    /// Starts a task the program cannot do without.
    pub fn spawn_essential<F, E>(&self, name: &'static str, task: F) -> JoinHandle<()>
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let essential = Essential {
            task: name,
            program: Arc::clone(&self.program),
            token: self.own.token.clone(),
            ended: false,
        };
        self.spawn(name, async move {
            let mut essential = essential;
            let result = task.await;
            essential.ended = true;
            match result {
                Ok(()) if essential.token.is_cancelled() => {}
                Ok(()) => essential.fail("ended early".to_owned()),
                Err(error) => essential.fail(format!("failed: {}", errors::chain(&error))),
            }
        })
    }

    /// Starts work that blocks a thread. It cannot be cancelled: shutdown waits for it until its deadline.
    pub fn spawn_blocking<F, T>(&self, name: &'static str, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let entry = self.enter(name);
        #[expect(clippy::disallowed_methods, reason = "this is the task set")]
        tokio::task::spawn_blocking(move || {
            let _entry = entry;
            work()
        })
    }

    /// Tells the tasks of this group and its children to end, without waiting for them.
    pub fn begin_shutdown(&self) {
        self.own.token.cancel();
    }

    /// Tells them, waits until they have ended, and after `deadline` aborts those that have not. Returns the
    /// names of the latter.
    pub async fn shutdown(&self, deadline: Duration) -> Vec<&'static str> {
        self.begin_shutdown();
        self.own.tracker.close();
        if tokio::time::timeout(deadline, self.own.tracker.wait())
            .await
            .is_ok()
        {
            return Vec::new();
        }
        let left = self.own.running();
        left.values()
            .map(|running| {
                if let Some(abort) = &running.abort {
                    abort.abort();
                }
                running.name
            })
            .collect()
    }

    /// Why the program shuts down on its own account; `None` when it does not, or was asked to.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.program.failure.get().cloned()
    }

    /// Ends the whole program because of something no task reported.
    pub fn fail(&self, task: &'static str, what: impl Into<String>) {
        self.program.fail(task, what.into());
    }

    /// The names of the tasks that run now.
    #[must_use]
    pub fn running(&self) -> Vec<&'static str> {
        self.own
            .running()
            .values()
            .map(|running| running.name)
            .collect()
    }

    fn enter(&self, name: &'static str) -> Entry {
        let id = self.program.next.fetch_add(1, Ordering::Relaxed);
        for group in self.groups.iter() {
            group.running().insert(id, Running { name, abort: None });
        }
        Entry {
            id,
            tokens: self
                .groups
                .iter()
                .map(|group| group.tracker.token())
                .collect(),
            groups: Arc::clone(&self.groups),
        }
    }
}

impl Program {
    fn fail(&self, task: &'static str, what: String) {
        let failure = Failure { task, what };
        tracing::error!(%failure, "the program cannot go on");
        // Only the first is the cause; what follows is its effect.
        let _first_kept = self.failure.set(failure);
        self.token.cancel();
    }
}

/// A task's place in its groups, for as long as its future lives: also when it panics or is aborted.
struct Entry {
    id: u64,
    groups: Arc<[Arc<Group>]>,
    /// Dropped after the entries are gone, so that a group without tasks has no names.
    #[expect(dead_code, reason = "held, not read")]
    tokens: Vec<tokio_util::task::task_tracker::TaskTrackerToken>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        for group in self.groups.iter() {
            group.running().remove(&self.id);
        }
    }
}

struct Essential {
    task: &'static str,
    program: Arc<Program>,
    token: CancellationToken,
    ended: bool,
}

impl Essential {
    fn fail(&self, what: String) {
        self.program.fail(self.task, what);
    }
}

impl Drop for Essential {
    fn drop(&mut self) {
        if !self.ended && !self.token.is_cancelled() {
            self.fail("panicked or was aborted".to_owned());
        }
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("running", &self.running())
            .field("shutting_down", &self.is_shutting_down())
            .finish()
    }
}

/// Starts a task that nothing waits for at shutdown: what a connection drives for as long as it lives. For
/// libraries whose owner ends such tasks by dropping or closing something else.
pub fn spawn_detached<F>(name: &'static str, task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where tasks get their names"
    )]
    tokio::spawn(task.instrument(tracing::trace_span!("task", name)))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn shutdown_waits_for_tasks_that_watch_the_token() {
        let tasks = Tasks::new();
        let token = tasks.token();
        let handle = tasks.spawn("watcher", async move {
            token.cancelled().await;
            7
        });
        assert_eq!(tasks.running(), ["watcher"]);
        assert_eq!(tasks.shutdown(LONG).await, Vec::<&str>::new());
        assert_eq!(handle.await.unwrap(), 7);
        assert_eq!(tasks.failure(), None);
        assert!(tasks.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_names_and_aborts_what_is_left() {
        let tasks = Tasks::new();
        let handle = tasks.spawn("deaf", std::future::pending::<()>());
        assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, ["deaf"]);
        assert!(handle.await.unwrap_err().is_cancelled());
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn a_child_ends_alone_and_a_parent_ends_its_children() {
        let tasks = Tasks::new();
        let (one, two) = (tasks.child(), tasks.child());
        for (group, name) in [(&one, "one"), (&two, "two")] {
            let token = group.token();
            group.spawn(name, async move { token.cancelled().await });
        }
        assert_eq!(tasks.running(), ["one", "two"]);
        assert!(one.shutdown(LONG).await.is_empty());
        assert_eq!(tasks.running(), ["two"]);
        assert!(!tasks.is_shutting_down() && !two.is_shutting_down());
        assert!(tasks.shutdown(LONG).await.is_empty());
        assert!(two.is_shutting_down());
    }

    #[tokio::test]
    async fn an_essential_task_that_fails_ends_the_program() {
        let tasks = Tasks::new();
        tasks
            .child()
            .spawn_essential("writer", async { Err(io::Error::other("disk gone")) });
        tasks.shutdown_begun().await;
        let failure = tasks.failure().unwrap();
        assert_eq!(failure.to_string(), "writer failed: disk gone");
        tasks.spawn_essential("late", async { Err(io::Error::other("as an effect")) });
        assert!(tasks.shutdown(LONG).await.is_empty());
        assert_eq!(tasks.failure(), Some(failure));
    }

    #[tokio::test]
    async fn an_essential_task_may_end_only_after_shutdown_began() {
        let tasks = Tasks::new();
        tasks.spawn_essential("server", async { Ok::<_, io::Error>(()) });
        tasks.shutdown_begun().await;
        assert_eq!(tasks.failure().unwrap().what, "ended early");

        let tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn_essential("server", async move {
            token.cancelled().await;
            Ok::<_, io::Error>(())
        });
        assert!(tasks.shutdown(LONG).await.is_empty());
        assert_eq!(tasks.failure(), None);
    }

    #[tokio::test]
    async fn a_panic_of_an_essential_task_ends_the_program() {
        let tasks = Tasks::new();
        let handle = tasks.spawn_essential("parser", async {
            if true {
                panic!("on purpose");
            }
            Ok::<_, io::Error>(())
        });
        tasks.shutdown_begun().await;
        assert_eq!(tasks.failure().unwrap().what, "panicked or was aborted");
        assert!(handle.await.unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn blocking_work_is_waited_for() {
        let tasks = Tasks::new();
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let handle = tasks.spawn_blocking("statvfs", move || told.recv());
        assert_eq!(tasks.shutdown(Duration::from_millis(10)).await, ["statvfs"]);
        tell.send(3).unwrap();
        assert_eq!(handle.await.unwrap(), Ok(3));
        assert!(tasks.shutdown(LONG).await.is_empty());
    }
}
