//! `statfs` with a deadline: it hangs, uninterruptibly, on a mount whose server is gone.
//!
//! Mounts are asked in turn on one thread; when one does not answer in time, that thread is left to
//! wait for it and the rest is asked on another, up to [`THREADS`]. All of that takes no longer than the
//! deadline, however many mounts are slow: what was not answered by then shows what it said the last time, and
//! answers that come later count for the next. A mount that has not answered for longer than that counts as
//! failed. None is asked again before its call has returned.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// Threads at most, and so hanging mounts after which none is asked any more.
const THREADS: usize = 4;
/// A thread makes one system call after another, and nothing else.
const STACK_BYTES: usize = 64 * 1024;
/// Answers that wait to be looked at.
const ANSWERS: usize = 64;
/// For so many probes an answer is shown while a newer one is on its way.
const AGE: u64 = 2;

/// What a filesystem says of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Space {
    pub(super) size_bytes: f64,
    pub(super) free_bytes: f64,
    pub(super) avail_bytes: f64,
    pub(super) files: f64,
    pub(super) files_free: f64,
}

type Ask = fn(&Path) -> Option<Space>;

#[derive(Debug)]
pub(super) struct Prober {
    timeout: Duration,
    ask: Ask,
    workers: Vec<Worker>,
    answers: Option<(SyncSender<Answer>, Receiver<Answer>)>,
    /// By mount point: at which probe it answered last, and what.
    known: BTreeMap<PathBuf, (u64, Option<Space>)>,
    round: u64,
    /// What does not answer and was said not to.
    silent: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Worker {
    requests: SyncSender<Vec<PathBuf>>,
    /// What it was sent and has not answered.
    owed: VecDeque<PathBuf>,
    /// Of that, what is asked elsewhere since its first does not answer: all but the first.
    forsaken: bool,
    /// It has answered nothing since the last probe.
    stalled: bool,
}

#[derive(Debug)]
struct Answer {
    worker: usize,
    path: PathBuf,
    space: Option<Space>,
}

impl Prober {
    pub(super) fn new(timeout: Duration) -> Self {
        Self::with(timeout, statfs)
    }

    fn with(timeout: Duration, ask: Ask) -> Self {
        Self {
            timeout,
            ask,
            workers: Vec::new(),
            answers: None,
            known: BTreeMap::new(),
            round: 0,
            silent: BTreeSet::new(),
        }
    }

    /// The space of each mount point, in the same order; `None` if it fails or hangs.
    pub(super) fn probe<'a>(
        &mut self,
        mountpoints: impl Iterator<Item = &'a str>,
    ) -> Vec<Option<Space>> {
        let mountpoints: Vec<_> = mountpoints.map(Path::new).collect();
        let (sender, answers) = self.answers.take().unwrap_or_else(|| sync_channel(ANSWERS));
        self.round += 1;
        while let Ok(late) = answers.try_recv() {
            self.settle(late, self.round - 1);
        }
        for number in 0..self.workers.len() {
            if self
                .workers
                .get(number)
                .is_some_and(|worker| worker.stalled)
            {
                self.forsake(number);
            }
        }
        let begun = Instant::now();
        let mut open: Vec<PathBuf> = mountpoints
            .iter()
            .filter(|path| !self.is_asked(path))
            .map(|path| path.to_path_buf())
            .collect();
        while !open.is_empty() {
            let Some(number) = self.send(open, &sender) else {
                break;
            };
            // Those that hang must not use up what all of them have.
            let patience = self.timeout / 4;
            while self.owes(number) {
                let left = self.timeout.saturating_sub(begun.elapsed());
                let Ok(answer) = answers.recv_timeout(patience.min(left)) else {
                    break;
                };
                self.settle(answer, self.round);
            }
            open = if begun.elapsed() < self.timeout {
                self.forsake(number)
            } else {
                Vec::new()
            };
        }
        self.answers = Some((sender, answers));
        for worker in &mut self.workers {
            worker.stalled = !worker.owed.is_empty();
        }
        let here: BTreeSet<&Path> = mountpoints.iter().copied().collect();
        self.known.retain(|path, _| here.contains(path.as_path()));
        self.silent.retain(|path| here.contains(path.as_path()));
        mountpoints.iter().map(|path| self.show(path)).collect()
    }

    fn show(&mut self, path: &Path) -> Option<Space> {
        let recent = |(answered, _): &&(u64, _)| self.round - answered <= AGE;
        if let Some((_, space)) = self.known.get(path).filter(recent) {
            return *space;
        }
        if self.silent.insert(path.to_owned()) {
            tracing::warn!(mountpoint = %path.display(), "the mount does not answer");
        }
        None
    }

    /// Whether a thread is at it, or will be as soon as what is before it has answered.
    fn is_asked(&self, path: &Path) -> bool {
        let waits_for = |worker: &Worker| {
            let depth = if worker.forsaken { 1 } else { usize::MAX };
            worker.owed.iter().take(depth).any(|owed| owed == path)
        };
        self.workers.iter().any(waits_for)
    }

    fn owes(&self, worker: usize) -> bool {
        self.workers
            .get(worker)
            .is_some_and(|worker| !worker.owed.is_empty())
    }

    fn settle(&mut self, answer: Answer, round: u64) {
        let Answer {
            worker,
            path,
            space,
        } = answer;
        if let Some(worker) = self.workers.get_mut(worker) {
            // In the order in which they were sent.
            worker.owed.pop_front();
            worker.forsaken &= !worker.owed.is_empty();
            worker.stalled = false;
        }
        self.known.insert(path.clone(), (round, space));
        if self.silent.remove(&path) {
            tracing::info!(mountpoint = %path.display(), "the mount answers again");
        }
    }

    /// What a thread has before it behind a mount that does not answer: it is asked elsewhere.
    fn forsake(&mut self, worker: usize) -> Vec<PathBuf> {
        let Some(worker) = self.workers.get_mut(worker) else {
            return Vec::new();
        };
        worker.forsaken = !worker.owed.is_empty();
        worker.owed.iter().skip(1).cloned().collect()
    }

    /// Sends a batch to an idle thread, whose number is returned.
    fn send(&mut self, batch: Vec<PathBuf>, answers: &SyncSender<Answer>) -> Option<usize> {
        let number = self.idle_worker(answers)?;
        let worker = self.workers.get_mut(number)?;
        worker.requests.try_send(batch.clone()).ok()?;
        worker.owed = batch.into();
        Some(number)
    }

    fn idle_worker(&mut self, answers: &SyncSender<Answer>) -> Option<usize> {
        if let Some(idle) = self
            .workers
            .iter()
            .position(|worker| worker.owed.is_empty())
        {
            return Some(idle);
        }
        let number = self.workers.len();
        if number == THREADS {
            return None;
        }
        let (requests, batches) = sync_channel::<Vec<PathBuf>>(1);
        let (answers, ask) = (answers.clone(), self.ask);
        let run = move || {
            for path in batches.iter().flatten() {
                let space = ask(&path);
                if answers
                    .send(Answer {
                        worker: number,
                        path,
                        space,
                    })
                    .is_err()
                {
                    return;
                }
            }
        };
        let builder = thread::Builder::new()
            .name("statfs".to_owned())
            .stack_size(STACK_BYTES);
        match builder.spawn(run) {
            Ok(_ends_with_its_channel) => {
                self.workers.push(Worker {
                    requests,
                    owed: VecDeque::new(),
                    forsaken: false,
                    stalled: false,
                });
                Some(number)
            }
            Err(error) => {
                tracing::warn!(%error, "no thread to ask filesystems for their size");
                None
            }
        }
    }
}

fn statfs(path: &Path) -> Option<Space> {
    let stat = rustix::fs::statfs(path.as_os_str().as_bytes()).ok()?;
    #[expect(clippy::cast_precision_loss, reason = "samples are doubles")]
    let space = {
        let block = stat.f_bsize as f64;
        Space {
            size_bytes: stat.f_blocks as f64 * block,
            free_bytes: stat.f_bfree as f64 * block,
            avail_bytes: stat.f_bavail as f64 * block,
            files: stat.f_files as f64,
            files_free: stat.f_ffree as f64,
        }
    };
    Some(space)
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    static HELD: (Mutex<bool>, Condvar) = (Mutex::new(true), Condvar::new());

    fn ask(path: &Path) -> Option<Space> {
        let number = path.to_str()?.trim_start_matches("/hangs").parse().ok()?;
        if path.starts_with("/hangs1") || path.starts_with("/hangs2") {
            let mut held = HELD.0.lock().unwrap();
            while *held {
                held = HELD.1.wait(held).unwrap();
            }
        }
        let space = Space {
            size_bytes: number,
            free_bytes: 0.0,
            avail_bytes: 0.0,
            files: 0.0,
            files_free: 0.0,
        };
        Some(space)
    }

    #[test]
    fn a_hanging_mount_costs_only_itself() {
        let mut prober = Prober::with(Duration::from_secs(2), ask);
        let paths = ["3", "/hangs1", "4", "/hangs2", "5", "none"];
        let sizes = |prober: &mut Prober| -> Vec<_> {
            let spaces = prober.probe(paths.iter().copied());
            spaces
                .into_iter()
                .map(|space| space.map(|space| space.size_bytes))
                .collect()
        };
        let stuck = [Some(3.0), None, Some(4.0), None, Some(5.0), None];
        assert_eq!(sizes(&mut prober), stuck);
        for _ in 0..5 {
            assert_eq!(sizes(&mut prober), stuck);
        }
        assert_eq!(prober.workers.len(), 3);

        *HELD.0.lock().unwrap() = false;
        HELD.1.notify_all();
        let all = [Some(3.0), Some(1.0), Some(4.0), Some(2.0), Some(5.0), None];
        // Bounded by the test harness alone: an answer is on its way.
        while sizes(&mut prober) != all {}
        assert!(prober.workers.len() <= THREADS);
    }

    /// Takes its time, and answers.
    fn slowly(_: &Path) -> Option<Space> {
        let (held, never) = (Mutex::new(()), Condvar::new());
        let held = held.lock().unwrap();
        drop(
            never
                .wait_timeout(held, Duration::from_millis(100))
                .unwrap(),
        );
        statfs(Path::new("/"))
    }

    #[test]
    fn many_slow_mounts_cost_no_more_than_one() {
        let mut prober = Prober::with(Duration::from_millis(400), slowly);
        let paths: Vec<_> = (0..20).map(|number| format!("/slow/{number}")).collect();
        let begun = Instant::now();
        let mut seen = BTreeSet::new();
        let mut probe = || {
            let spaces = prober.probe(paths.iter().map(String::as_str));
            let shown = (0..).zip(spaces).filter(|(_, space)| space.is_some());
            seen.extend(shown.map(|(number, _)| number));
            seen.len()
        };
        assert!((1..20).contains(&probe()));
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "all would take 4 s"
        );
        // Each of them is shown in its turn.
        while probe() < 20 {}
    }
}
