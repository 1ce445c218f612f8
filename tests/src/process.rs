//! A program under test: its own process group, its log in a file, killed with its handle.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
};

use crate::fault::{Fault, Outcome};

/// A program that should be done long before.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program that runs until told otherwise.
#[derive(Debug)]
pub struct Process {
    child: Child,
    group: Option<Pid>,
    log: PathBuf,
}

impl Process {
    /// Starts it, appending what it writes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Outcome<Self> {
        let what = format!("start {command:?}");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(Fault::io(log.display()))?;
        let errors = file.try_clone().map_err(Fault::io(log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(Fault::io(what))?;
        let group = child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Self {
            child,
            group,
            log: log.to_owned(),
        })
    }

    /// Its process id; `None` once it has ended.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it has written so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// An error with the end of its log.
    #[must_use]
    pub fn explain(&self, fault: Fault) -> Fault {
        fault.with_log(&self.log)
    }

    /// Fails when it has ended.
    pub fn check(&mut self) -> Outcome {
        match self.child.try_wait().map_err(Fault::io("wait"))? {
            None => Ok(()),
            Some(status) => Err(Fault::new(format!("it ended: {status}")).with_log(&self.log)),
        }
    }

    /// TERM, and its end.
    pub async fn stop(&mut self) -> Outcome<ExitStatus> {
        self.signal(Signal::TERM);
        self.wait().await
    }

    /// KILL for the whole group, and its end.
    pub async fn kill(&mut self) -> Outcome<ExitStatus> {
        self.signal(Signal::KILL);
        self.wait().await
    }

    /// A signal to the program's group.
    pub fn signal(&self, signal: Signal) {
        if let (Some(group), Some(_)) = (self.group, self.child.id()) {
            // It may have ended in between.
            let _gone = kill_process_group(group, signal);
        }
    }

    /// Waits until it ends by itself.
    pub async fn wait(&mut self) -> Outcome<ExitStatus> {
        let log = self.log.clone();
        tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .map_err(|_| Fault::new("it does not end").with_log(&log))?
            .map_err(Fault::io("wait"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Runs a program to its end with this on its standard input.
pub async fn run(command: &mut Command, input: &[u8]) -> Outcome<Output> {
    let what = format!("{:?}", command.as_std());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Fault::io(&what))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program may end without reading its input.
        drop(stdin.write_all(input).await);
    }
    tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .map_err(|_| Fault::new(format!("{what} does not end")))?
        .map_err(Fault::io(what))
}
