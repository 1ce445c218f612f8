//! The agent's folder: whether it is there, whose it is, and whether there is room in it.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::Findings;
use crate::{config::Config, exec::users::shown};

/// Less than this, and results of jobs have no place.
const RESULTS_LEAST: u64 = 16 << 20;
const ENROL: &str = "make a token with `nexusctl token create` and run `nexus-agent enroll TOKEN`";

/// `false`: there is none, or it cannot be looked into.
pub(super) fn examine(config: &Config, found: &mut Findings) -> bool {
    let path = config.state_dir.as_path();
    let there = state(path, found);
    if there {
        permissions(path, found);
        disk(config, found);
    }
    there
}

fn state(path: &Path, found: &mut Findings) -> bool {
    let (what, place) = ("state", path.display());
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("{place} is not there: this machine is not enrolled");
            found.bad(what, text, ENROL);
            return false;
        }
        Err(error) => {
            let hint = "the folders above it must let the agent's user through: mode 0755";
            found.bad(what, format!("cannot look at {place}: {error}"), hint);
            return false;
        }
    };
    if !metadata.is_dir() {
        let hint = "move it away, or name another folder with state_dir";
        found.bad(what, format!("{place} is no folder"), hint);
        return false;
    }
    let own = shown(metadata.uid());
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let text = format!("{place} has mode {mode:04o}: others can look into it");
        found.bad(what, text, format!("chmod 0700 {place}"));
    } else {
        let text = format!("{place} belongs to the user {own}, mode {mode:04o}");
        found.good(what, text);
    }
    true
}

/// Whether all that is in there is the agent's own: what root has left there once, the agent cannot replace.
fn permissions(path: &Path, found: &mut Findings) {
    let what = "permissions";
    let own = rustix::process::geteuid().as_raw();
    match count_own(path, own) {
        Ok(count) => {
            let own = shown(own);
            let text = format!("all of the {count} files and folders in it are {own}'s");
            found.good(what, text);
        }
        Err(text) => {
            let hint = format!(
                "chown --recursive --no-dereference {own} {}",
                path.display()
            );
            found.bad(what, text, hint);
        }
    }
}

/// How many files and folders there are; an error at the first of somebody else.
fn count_own(folder: &Path, own: u32) -> Result<usize, String> {
    let (mut folders, mut count) = (vec![folder.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        let fail = |error: io::Error| format!("cannot look into {}: {error}", folder.display());
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            // A run's own folder goes with the run.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(fail(error)),
        };
        for entry in entries {
            let entry = entry.map_err(fail)?;
            // What is gone by now was a temporary file.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.uid() != own {
                return Err(format!(
                    "{} belongs to the user {}, and the agent is {}",
                    entry.path().display(),
                    shown(metadata.uid()),
                    shown(own)
                ));
            }
            count += 1;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(count)
}

/// Writes a file that has no name and goes at once. Some file systems say that they can be written until it is tried.
fn write(folder: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(folder);
    match file {
        Ok(mut file) => {
            file.write_all(&[0; 4096])?;
            file.sync_all()
        }
        // Not every kind of file system has such files.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Room for what the spool may come to hold.
fn disk(config: &Config, found: &mut Findings) {
    let (what, place) = ("disk", config.state_dir.display());
    let stat = match rustix::fs::statvfs(&config.state_dir) {
        Ok(stat) => stat,
        Err(error) => {
            let text = format!("cannot ask for the free space at {place}: {error}");
            found.bad(what, text, "see what is mounted there");
            return;
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let spool = &config.spool;
    let wanted = spool.results.bytes + spool.inventory.bytes + spool.metrics.bytes;
    let text = format!(
        "{} MiB free at {place}; the spool may take {} MiB",
        free >> 20,
        wanted >> 20
    );
    if let Err(error) = write(&config.state_dir) {
        let text = format!("cannot write in {place}: {error}; {} MiB free", free >> 20);
        let hint = match error.raw_os_error() {
            Some(libc::EROFS | libc::EIO) => {
                "see `dmesg` for what became of the disk; check it, and mount it for writing again"
            }
            _ => "make room on that file system: without any for results no job is taken",
        };
        found.bad(what, text, hint);
    } else if stat.f_favail == 0 && stat.f_files > 0 {
        let text = format!("no inode is free at {place}");
        found.bad(what, text, "delete files on that file system");
    } else if free < RESULTS_LEAST {
        let hint = "make room on that file system: without any for results no job is taken";
        found.bad(what, text, hint);
    } else if free < wanted {
        let hint = "make room on that file system, or give the spool less (spool.*_bytes)";
        found.doubt(what, text, hint);
    } else {
        found.good(what, text);
    }
}
