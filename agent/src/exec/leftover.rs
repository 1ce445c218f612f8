//! What is left of a run whose agent ended before it did.
//!
//! The program itself died with the agent; what it had started may live on. It is found by the session the
//! run had (its number is that of the recorded process, and no process of it can be older), and by the
//! run's mark in the environment, which follows those that made a session of their own. Each is
//! killed through a pidfd whose process was looked at again after the descriptor was taken, so that no
//! other process that got the number meanwhile is hit.

use std::{fs, io, time::Duration};

use nexus_proto::ids::{NodeId, RunKey};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::time::sleep;

use super::MARK;
use crate::ledger::Process;

const ROUNDS: u32 = 250;
const BETWEEN: Duration = Duration::from_millis(20);
/// Between tries to kill what will not die.
const AGAIN: Duration = Duration::from_secs(5);

/// Processes that would not die.
#[derive(Debug, thiserror::Error)]
#[error("processes {pids:?} of an earlier run cannot be killed")]
pub struct Unkillable {
    /// Which.
    pub pids: Vec<u32>,
    /// Only their own user, or root, could: trying again is no use.
    pub forbidden: bool,
}

/// The run's name in its programs' environment. Several agents may share a host, and one job may be for all of them.
pub(crate) fn mark(node: NodeId, key: &RunKey) -> String {
    format!(
        "{node}/{}/{}/{}/{}",
        key.job, key.occurrence, key.step, key.attempt
    )
}

/// Has nothing be left of a run that ended unseen, however long that takes. `node`: for whom it was begun; without it only
/// what stayed in its session is found.
pub(crate) async fn settle(key: &RunKey, node: Option<NodeId>, process: Option<&Process>) {
    let mark = node.map_or_else(|| "-".to_owned(), |node| mark(node, key));
    loop {
        match kill(&mark, process).await {
            Ok(0) => return,
            Ok(killed) => {
                tracing::warn!(job = %key.job, killed, "a run ended unseen, nothing of it is left");
                return;
            }
            Err(error) if error.forbidden => {
                tracing::error!(job = %key.job, %error, "a run became another user's, and goes on unseen");
                return;
            }
            Err(error) => {
                tracing::error!(job = %key.job, %error, "a run cannot be settled");
                sleep(AGAIN).await;
            }
        }
    }
}

/// Kills everything left of a run and waits until it is gone.
pub async fn kill(mark: &str, process: Option<&Process>) -> Result<usize, Unkillable> {
    let this_boot = boot_id().unwrap_or_default();
    let process = process.filter(|process| process.boot_id == this_boot);
    // A number is not given again while a session has it, so one that another process has now is a stranger's, and
    // the run's own session is empty.
    let process = process.filter(|process| {
        stat(process.pid).is_none_or(|stat| stat.start_ticks == process.start_ticks)
    });
    let mut seen = std::collections::BTreeSet::new();
    let mut forbidden = false;
    for _ in 0..ROUNDS {
        let members = members(mark, process);
        if members.is_empty() {
            return Ok(seen.len());
        }
        forbidden = true;
        for (pid, ticks) in members {
            let killed = kill_one(pid, ticks);
            forbidden &=
                matches!(&killed, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
            if let Err(error) = killed
                && seen.insert(pid)
            {
                tracing::warn!(pid, %error, "cannot kill what is left of a run");
            }
            seen.insert(pid);
        }
        sleep(BETWEEN).await;
    }
    let left = members(mark, process).into_iter();
    Err(Unkillable {
        pids: left.map(|(pid, _)| pid).collect(),
        forbidden,
    })
}

/// The id of this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Ticks from boot to the start of a process; `None` when there is none.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    stat(pid).map(|stat| stat.start_ticks)
}

pub(super) fn is_zombie(pid: u32) -> bool {
    stat(pid).is_none_or(|stat| stat.state == 'Z')
}

struct Stat {
    state: char,
    session: u32,
    start_ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name stands in parentheses and may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        session: fields.get(3)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

fn members(mark: &str, process: Option<&Process>) -> Vec<(u32, u64)> {
    let own = std::process::id();
    let mark = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Some(stat) = stat(pid).filter(|stat| stat.state != 'Z' && stat.state != 'X') else {
            continue;
        };
        let in_session = process.is_some_and(|process| {
            stat.session == process.pid && stat.start_ticks >= process.start_ticks
        });
        if pid != own && (in_session || carries(pid, &mark)) {
            found.push((pid, stat.start_ticks));
        }
    }
    found
}

fn carries(pid: u32, mark: &str) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ
        .split(|byte| *byte == 0)
        .any(|variable| variable == mark.as_bytes())
}

fn kill_one(pid: u32, ticks: u64) -> io::Result<()> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or(io::ErrorKind::InvalidInput)?;
    match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
        Ok(fd) => {
            if start_ticks(pid) == Some(ticks) {
                rustix::process::pidfd_send_signal(fd, Signal::KILL)?;
            }
            Ok(())
        }
        Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
