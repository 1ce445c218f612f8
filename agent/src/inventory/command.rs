//! Programs that are asked, with a bound on how long and how much they answer.

use std::{
    io::{self, Read as _},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
    time::{ClockId, Timespec, clock_gettime},
};

use super::InventoryError;

/// The most a program may say.
const OUTPUT_BYTES: usize = 16 * 1024 * 1024;

/// What the program says on stdout. Blocks, for the timeout at most; then the program is killed.
pub(super) fn output(
    program: &'static str,
    arguments: &[&str],
    timeout: Duration,
) -> Result<String, InventoryError> {
    let run = |source| InventoryError::Run { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .env("SYSTEMD_COLORS", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(run)?;
    let deadline = monotonic() + timeout;
    let read = match child.stdout.take() {
        Some(stdout) => read_all(stdout, deadline).map_err(run)?,
        None => Err("its output is not to be had"),
    };
    let ended = read.and_then(|bytes| wait(&child, deadline).map(|()| bytes));
    let bytes = match ended {
        Ok(bytes) => bytes,
        Err(reason) => {
            child.kill().and_then(|()| child.wait()).map_err(run)?;
            return Err(InventoryError::Killed { program, reason });
        }
    };
    let status = child.wait().map_err(run)?;
    if !status.success() {
        return Err(InventoryError::Failed { program, status });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

const LATE: &str = "it takes too long";

fn read_all(
    mut stdout: ChildStdout,
    deadline: Duration,
) -> io::Result<Result<Vec<u8>, &'static str>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let Some(left) = left(deadline) else {
            return Ok(Err(LATE));
        };
        let mut wanted = [PollFd::new(&stdout, PollFlags::IN)];
        match poll(&mut wanted, Some(&left)) {
            Ok(0) => return Ok(Err(LATE)),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let read = stdout.read(&mut piece)?;
        let Some(piece) = piece.get(..read).filter(|piece| !piece.is_empty()) else {
            return Ok(Ok(bytes));
        };
        bytes.extend_from_slice(piece);
        if bytes.len() > OUTPUT_BYTES {
            return Ok(Err("it says too much"));
        }
    }
}

/// Until the program has ended, which may be after it closed its output.
fn wait(child: &Child, deadline: Duration) -> Result<(), &'static str> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // Kernels before 5.3 have no such descriptor: they are trusted to end what closed its output.
    let Some(Ok(pidfd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return Ok(());
    };
    loop {
        let left = left(deadline).ok_or(LATE)?;
        let mut wanted = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut wanted, Some(&left)) {
            Ok(0) => return Err(LATE),
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return Ok(()),
        }
    }
}

fn left(deadline: Duration) -> Option<Timespec> {
    let left = deadline.checked_sub(monotonic())?;
    Timespec::try_from(left).ok()
}

fn monotonic() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_output_status_and_deadline() {
        let long = Duration::from_secs(30);
        assert_eq!(output("echo", &["a b"], long).unwrap(), "a b\n");
        let lines = output("seq", &["100000"], long).unwrap().lines().count();
        assert_eq!(lines, 100_000);
        assert!(matches!(
            output("false", &[], long),
            Err(InventoryError::Failed { .. })
        ));
        assert!(matches!(
            output("no-such-program", &[], long),
            Err(InventoryError::Run { .. })
        ));
        let short = Duration::from_millis(50);
        assert!(matches!(
            output("sleep", &["60"], short),
            Err(InventoryError::Killed { .. })
        ));
        let quiet = ["-c", "exec >&-; exec sleep 60"];
        assert!(matches!(
            output("sh", &quiet, short),
            Err(InventoryError::Killed { .. })
        ));
        assert!(matches!(
            output("yes", &[], long),
            Err(InventoryError::Killed { .. })
        ));
    }
}
