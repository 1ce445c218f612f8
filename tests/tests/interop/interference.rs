//! Interference with the system calls of a running program: they fail, or take longer. Made with strace, which
//! can begin and end in mid-run; the program is the real one.

use std::process::{Child, Command, Stdio};

use nexus_tests::{fleet::SOON, poll};
use rustix::process::{Pid, Signal, kill_process};

/// What SQLite says to a disk.
pub(super) const DISK_WRITES: &str = "pwrite64,fsync,fdatasync,ftruncate";

pub(super) struct Interference {
    strace: Child,
    program: u32,
}

impl Interference {
    /// From now on these calls of this program have that done to them (`-e inject` of strace(1)).
    pub(super) async fn with(program: u32, calls: &str, what: &str) -> Self {
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null"])
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{what}")])
            .args(["-p", &program.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let interference = Self { strace, program };
        interference.until_traced(true).await;
        interference
    }

    /// No longer.
    pub(super) async fn end(self) {
        self.ask_to_end();
        self.until_traced(false).await;
    }

    fn ask_to_end(&self) {
        // It may have ended with the program.
        if let Some(pid) = i32::try_from(self.strace.id()).ok().and_then(Pid::from_raw) {
            let _gone = kill_process(pid, Signal::TERM);
        }
    }

    /// All threads, or none.
    async fn until_traced(&self, traced: bool) {
        let what = format!("a tracer: {traced}");
        poll::until(&what, SOON, || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.program));
            let mut states = tasks.into_iter().flatten().flatten().filter_map(|task| {
                let status = std::fs::read_to_string(task.path().join("status")).ok()?;
                let tracer = status.lines().find_map(|l| l.strip_prefix("TracerPid:"))?;
                Some(tracer.trim() != "0")
            });
            let all = states.all(|is| is == traced);
            std::future::ready(all.then_some(()))
        })
        .await
        .unwrap();
    }
}

impl Drop for Interference {
    fn drop(&mut self) {
        // The program is let go of with its tracer.
        drop(self.strace.kill());
        drop(self.strace.wait());
    }
}
