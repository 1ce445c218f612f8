//! Ending on a signal: the first INT or TERM asks, the second insists.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::tasks::{Tasks, spawn_detached};

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// INT: Ctrl-C.
    Interrupt,
    /// TERM: a service manager.
    Terminate,
}

impl Signal {
    /// As the kernel numbers it.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    /// What a shell reports for a process the signal ended: 130, 143.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// INT and TERM, caught from the moment this exists. INT is caught even if the process was started with it
/// ignored, as background children of scripts are.
#[derive(Debug)]
pub struct Signals {
    interrupt: Stream,
    terminate: Stream,
}

impl Signals {
    /// Catches both. Needs a tokio runtime with I/O enabled.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next one. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }

    /// From here on the first signal begins the shutdown of `tasks` and the second ends the process at once.
    pub fn govern(mut self, tasks: &Tasks) {
        let tasks = tasks.clone();
        spawn_detached("signals", async move {
            let first = self.next().await;
            tracing::info!(signal = ?first, "shutting down; a second signal ends it at once");
            tasks.begin_shutdown();
            let second = self.next().await;
            tracing::warn!(signal = ?second, "ending at once");
            std::process::exit(i32::from(second.exit_code()));
        });
    }
}
