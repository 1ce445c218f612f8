//! The program on a terminal of its own.

use std::{io::Read as _, os::fd::OwnedFd, process::ExitStatus};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::process::Command;

/// What a terminal showed of a program, and how the program ended.
pub(crate) struct Shown {
    /// Both outputs as they came to the terminal, with what was typed and with `\n` for `\r\n`.
    pub(crate) text: String,
    pub(crate) status: ExitStatus,
}

impl Shown {
    /// Characters that make a terminal do something.
    pub(crate) fn controls(&self) -> Vec<char> {
        let acts = |c: &char| {
            (c.is_control() && !matches!(c, '\n' | '\t'))
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        self.text.chars().filter(acts).collect()
    }
}

/// Runs a command with a terminal as its three streams; `typed` waits in the terminal from the start.
pub(crate) async fn run(command: Command, typed: &str) -> Shown {
    run_as(command, typed, "xterm").await
}

/// The same on a terminal of this kind.
pub(crate) async fn run_as(mut command: Command, typed: &str, kind: &str) -> Shown {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(name)
        .unwrap();
    rustix::io::write(&master, typed.as_bytes()).unwrap();
    command
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap())
        .stderr(slave)
        .env("TERM", kind)
        // What is left of control characters is not the program's own.
        .env("NO_COLOR", "1");
    let mut child = command.spawn().unwrap();
    // The command holds copies of the terminal, which would never end otherwise.
    drop(command);
    let (tell, told) = tokio::sync::oneshot::channel();
    let reader = std::thread::spawn(move || tell.send(read_all(master)).unwrap());
    let status = child.wait().await.unwrap();
    let bytes = told.await.unwrap();
    reader.join().unwrap();
    let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
    Shown { text, status }
}

/// Everything until the last program has closed the terminal, which reads as EIO.
fn read_all(master: OwnedFd) -> Vec<u8> {
    let mut master = std::fs::File::from(master);
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count) = master.read(&mut buffer) {
        match buffer.get(..count) {
            Some(read) if count > 0 => bytes.extend_from_slice(read),
            _ => break,
        }
    }
    bytes
}
