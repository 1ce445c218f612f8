//! What the host is and has, in sections: the kinds and columns of [`nexus_proto::inventory::SCHEMA`].
//!
//! [`Inventory::poll`] is called every few seconds and returns at once. The looking is done on threads
//! of its own, for a file can hang as well as a program: one thread for files, one for the kernel's
//! word, one for what takes a package manager or systemd. A thread that hangs is waited for, never
//! started again. Each kind has a cheap sign of change (times and inodes of the files it is read from, or
//! what the kernel says) and is read anew only when the sign differs; a section is handed out only
//! when its hash differs from the one handed out before. A kind that keeps changing is told once a minute at most
//! (`pace`), as it is then.

mod accounts;
mod addresses;
mod command;
mod files;
mod hardware;
mod interfaces;
mod mounts;
mod netlink;
mod os;
mod pace;
mod packages;
mod sockets;
mod units;
mod virtualization;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nexus_proto::{inventory, record::Section};

pub use self::os::facts;
use self::worker::{Source, Worker};

/// Where to look.
#[derive(Debug, Clone)]
pub struct InventoryConfig {
    /// The folder files such as `/etc/passwd` are found below.
    pub root: PathBuf,
    /// `/proc`.
    pub procfs: PathBuf,
    /// `/sys`.
    pub sysfs: PathBuf,
    /// A program that runs longer (`systemctl`, `rpm`) is killed.
    pub command_timeout: Duration,
    /// Polls for which a thread may be silent before its sections are reported as unreadable.
    pub silent_polls: u32,
}

impl Default for InventoryConfig {
    fn default() -> Self {
        Self {
            root: "/".into(),
            procfs: "/proc".into(),
            sysfs: "/sys".into(),
            command_timeout: Duration::from_secs(30),
            silent_polls: 20,
        }
    }
}

/// Why a section cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// A file or folder cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {status}")]
    Failed {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// A program took too long or said too much, and was killed.
    #[error("{program} was killed: {reason}")]
    Killed {
        /// Which.
        program: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// The kernel does not tell by netlink.
    #[error("cannot ask the kernel for {what}")]
    Netlink {
        /// What it was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More than one section may hold.
    #[error("{what} {size}, more than {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        size: usize,
        /// How many are allowed.
        limit: usize,
    },
}

/// Watches one host's inventory.
#[derive(Debug)]
pub struct Inventory {
    workers: Vec<Worker>,
    resend: Vec<String>,
}

impl Inventory {
    /// An inventory of the host that these paths show. `known` are hashes of sections by kind that need
    /// not be handed out again: those that are stored or on their way.
    #[must_use]
    pub fn new(config: &InventoryConfig, known: &BTreeMap<String, [u8; 32]>) -> Self {
        let start = |name, sources: Vec<Source>| Worker::new(name, config.clone(), sources, known);
        Self {
            workers: vec![
                start(
                    "inventory-file",
                    vec![
                        os::SOURCE,
                        accounts::USERS,
                        accounts::GROUPS,
                        packages::SOURCE,
                    ],
                ),
                start(
                    "inventory-kern",
                    vec![
                        hardware::SOURCE,
                        mounts::SOURCE,
                        interfaces::SOURCE,
                        addresses::SOURCE,
                        sockets::SOURCE,
                    ],
                ),
                start("inventory-unit", vec![units::SOURCE]),
            ],
            resend: Vec::new(),
        }
    }

    /// Sections that changed, as found since the last call, and starts the next look. Never waits: what
    /// is found now comes with the next call, so call it every five to ten seconds.
    pub fn poll(&mut self) -> Vec<Section> {
        let resend = std::mem::take(&mut self.resend);
        let mut found = Vec::new();
        for worker in &mut self.workers {
            found.append(&mut worker.poll(&resend));
        }
        found
    }

    /// Hands these kinds out again though they did not change: the collector asked for them.
    pub fn resend(&mut self, kinds: &[String]) {
        self.resend.extend_from_slice(kinds);
    }
}

/// Kinds the collector asked for, until somebody looks. There are no more than kinds exist.
#[derive(Debug, Default)]
pub struct Wanted(Mutex<BTreeSet<&'static str>>);

impl Wanted {
    /// The collector asks. A kind this version does not know is none it can send.
    pub fn ask(&self, kinds: Vec<String>) {
        let known = kinds.iter().filter_map(|kind| inventory::kind(kind));
        self.lock().extend(known.map(|known| known.name));
    }

    /// What was asked for since the last time.
    pub fn take(&self) -> Vec<String> {
        let kinds = std::mem::take(&mut *self.lock());
        kinds.into_iter().map(str::to_owned).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
