//! `statfs` with a deadline: it hangs, uninterruptibly, on a mount whose server is gone.
//!
//! Mounts are asked in turn on one thread; when one does not answer in time, that thread is left to
//! wait for it and the rest is asked on another, up to [`THREADS`]. A mount that did not answer
//! counts as failed, and is not asked again, until its call returns.

use std::{
    collections::BTreeSet,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// Threads at most, and so hanging mounts after which none is asked any more.
const THREADS: usize = 4;
/// A thread makes one system call after another, and nothing else.
const STACK_BYTES: usize = 64 * 1024;

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
    stuck: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Worker {
    requests: SyncSender<Vec<PathBuf>>,
    /// Answers it still owes.
    owed: usize,
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
            stuck: BTreeSet::new(),
        }
    }

    /// The space of each mount point, in the same order; `None` if it fails or hangs.
    pub(super) fn probe<'a>(
        &mut self,
        mountpoints: impl Iterator<Item = &'a str>,
    ) -> Vec<Option<Space>> {
        let mountpoints: Vec<_> = mountpoints.map(Path::new).collect();
        let mut spaces = vec![None; mountpoints.len()];
        let (sender, answers) = self.answers.take().unwrap_or_else(|| sync_channel(THREADS));
        while let Ok(late) = answers.try_recv() {
            self.settle(&late);
        }
        let mut open: Vec<usize> = (0..mountpoints.len())
            .filter(|index| {
                mountpoints
                    .get(*index)
                    .is_some_and(|path| !self.stuck.contains(*path))
            })
            .collect();
        while !open.is_empty() {
            let Some(worker) = self.idle_worker(&sender) else {
                break;
            };
            let batch = open
                .iter()
                .filter_map(|index| mountpoints.get(*index).map(|path| path.to_path_buf()));
            if self.send(worker, batch.collect()).is_none() {
                break;
            }
            let mut answered = 0;
            while answered < open.len() {
                let Ok(answer) = answers.recv_timeout(self.timeout) else {
                    break;
                };
                self.settle(&answer);
                if answer.worker == worker {
                    // A worker answers in the order of its batch.
                    if let Some(space) = open.get(answered).and_then(|i| spaces.get_mut(*i)) {
                        *space = answer.space;
                    }
                    answered += 1;
                }
            }
            let rest = open.split_off(answered.min(open.len()));
            let mut rest = rest.into_iter();
            if let Some(path) = rest.next().and_then(|index| mountpoints.get(index)) {
                tracing::warn!(mountpoint = %path.display(), "the mount does not answer");
                self.stuck.insert(path.to_path_buf());
            }
            open = rest.collect();
        }
        self.answers = Some((sender, answers));
        spaces
    }

    fn settle(&mut self, answer: &Answer) {
        if let Some(worker) = self.workers.get_mut(answer.worker) {
            worker.owed = worker.owed.saturating_sub(1);
        }
        if self.stuck.remove(&answer.path) {
            tracing::info!(mountpoint = %answer.path.display(), "the mount answers again");
        }
    }

    fn send(&mut self, worker: usize, batch: Vec<PathBuf>) -> Option<()> {
        let worker = self.workers.get_mut(worker)?;
        let owed = batch.len();
        worker.requests.try_send(batch).ok()?;
        worker.owed = owed;
        Some(())
    }

    fn idle_worker(&mut self, answers: &SyncSender<Answer>) -> Option<usize> {
        if let Some(idle) = self.workers.iter().position(|worker| worker.owed == 0) {
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
                self.workers.push(Worker { requests, owed: 0 });
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
        let mut prober = Prober::with(Duration::from_millis(50), ask);
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
}
