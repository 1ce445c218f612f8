//! The programs a demo starts: each in a process group of its own, each with a log, all stopped by id.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use tokio::process::{Child, Command};

use super::folder::Folder;
use crate::{
    fault::{Context as _, Fault, Outcome},
    terminal,
};

/// Time for a program to end after TERM.
const GRACE: Duration = Duration::from_secs(10);
/// How often an ending program is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// The programs' files, beside our own.
pub(super) struct Binaries {
    collector: PathBuf,
    agent: PathBuf,
}

impl Binaries {
    pub(super) fn find() -> Outcome<Self> {
        let own = std::env::current_exe().doing("find our own program")?;
        let dir = own.parent().unwrap_or(Path::new("/")).to_owned();
        let find = |name: &str| {
            let path = dir.join(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(Fault::new(
                "demo",
                format!("there is no {} beside nexusctl", path.display()),
            )
            .hint("`cargo build --release` builds all programs"))
        };
        Ok(Self {
            collector: find("nexus-collector")?,
            agent: find("nexus-agent")?,
        })
    }

    pub(super) fn collector_command(&self, folder: &Folder) -> Command {
        let mut command = clean(&self.collector);
        command.arg("--config").arg(folder.collector_toml());
        command
    }

    pub(super) fn agent_command(&self, folder: &Folder, number: u32) -> Command {
        let mut command = clean(&self.agent);
        command.arg("--config").arg(folder.agent_toml(number));
        command.arg("--state-dir").arg(folder.agent_dir(number));
        command
    }
}

/// Settings of the caller's environment are not meant for the demo's programs.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["NEXUS_AGENT_", "NEXUS_COLLECTOR_"]
            .iter()
            .any(|prefix| text.starts_with(prefix));
        if ours || text == "NOTIFY_SOCKET" {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a program to its end and gives its standard output.
pub(super) async fn output_of(command: &mut Command) -> Outcome<String> {
    output_with(command, "").await
}

/// The same with something on its standard input.
pub(super) async fn output_with(command: &mut Command, input: &str) -> Outcome<String> {
    use tokio::io::AsyncWriteExt as _;

    let what = described(command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().doing(what.clone())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input says so by its exit status.
        drop(stdin.write_all(input.as_bytes()).await);
    }
    let output = child.wait_with_output().await.doing(what.clone())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing");
    Err(Fault::new(
        what,
        format!("{} ({said})", ending(output.status)),
    ))
}

fn described(command: &Command) -> String {
    let command = command.as_std();
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let verb = command.get_args().last().unwrap_or_default();
    format!("{} {}", program.to_string_lossy(), verb.to_string_lossy())
}

/// How a program ended, in words.
fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "it ended".to_owned(),
    }
}

struct Program {
    label: String,
    child: Child,
    pid: u32,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

/// Everything that runs.
pub(super) struct Programs {
    list: Vec<Program>,
    pids_file: PathBuf,
}

impl Programs {
    pub(super) fn new(pids_file: PathBuf) -> Self {
        Self {
            list: Vec::new(),
            pids_file,
        }
    }

    /// Starts one with its standard error in a log.
    pub(super) fn start(&mut self, label: &str, command: &mut Command, log: &Path) -> Outcome {
        let what = format!("start {label}");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(log)
            .doing(format!("open {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let child = command
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .doing(what.clone())?;
        let pid = child
            .id()
            .ok_or_else(|| Fault::new(what, "it ended at once"))?;
        let (label, log) = (label.to_owned(), log.to_owned());
        self.list.push(Program {
            label,
            child,
            pid,
            log,
            ended: None,
        });
        let pids: String = self
            .list
            .iter()
            .map(|program| format!("{}\n", program.pid))
            .collect();
        fs::write(&self.pids_file, pids).doing(format!("write {}", self.pids_file.display()))
    }

    /// An error when one of them has ended.
    pub(super) fn check(&mut self) -> Outcome {
        for program in &mut self.list {
            if let Some(status) = look(program) {
                return Err(Fault::new(program.label.clone(), ending(status))
                    .hint(format!("its log ends: {}", last_line(&program.log))));
            }
        }
        Ok(())
    }

    /// Says once of each that has ended.
    pub(super) fn say_who_died(&mut self) {
        for program in &mut self.list {
            if program.ended.is_none()
                && let Some(status) = look(program)
            {
                terminal::warn(&format!(
                    "{} (process {}) died: {}; it stays down until you start it again; its log is {}",
                    program.label,
                    program.pid,
                    ending(status),
                    program.log.display()
                ));
            }
        }
    }

    /// Agents first, then the collector: TERM, and KILL for the whole group of one that does not end in
    /// time. Whoever asks again waits for nothing any more.
    pub(super) async fn stop(&mut self, again: impl Future<Output = ()>) {
        let (collectors, agents): (Vec<_>, Vec<_>) = self
            .list
            .drain(..)
            .partition(|program| program.label == "collector");
        let mut again = pin!(again);
        let mut at_once = false;
        for mut group in [agents, collectors] {
            if !at_once {
                at_once = end(&mut group, again.as_mut()).await;
            }
            for program in &mut group {
                if look(program).is_none() {
                    if !at_once {
                        terminal::warn(&format!("{} does not end; killing it", program.label));
                    }
                    if let Some(pid) = pid(program.pid) {
                        report(kill_process_group(pid, Signal::KILL), program.pid);
                    }
                    drop(program.child.wait().await);
                }
            }
        }
        if at_once {
            terminal::say("killed what still ran");
        }
        drop(fs::remove_file(&self.pids_file));
    }
}

/// TERM, and time to obey it; true when nobody wants to wait for that.
async fn end(group: &mut [Program], again: impl Future<Output = ()>) -> bool {
    for program in group.iter_mut() {
        if look(program).is_none() {
            send(program.pid, Signal::TERM);
        }
    }
    let all = async {
        for program in group {
            drop(program.child.wait().await);
        }
    };
    tokio::select! {
        () = all => false,
        () = tokio::time::sleep(GRACE) => false,
        () = again => true,
    }
}

fn look(program: &mut Program) -> Option<ExitStatus> {
    if program.ended.is_none() {
        program.ended = program.child.try_wait().ok().flatten();
    }
    program.ended
}

fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// A process that has ended meanwhile needs no signal.
fn send(number: u32, signal: Signal) {
    if let Some(pid) = pid(number) {
        report(kill_process(pid, signal), number);
    }
}

fn report(result: rustix::io::Result<()>, pid: u32) {
    if let Err(error) = result
        && error != rustix::io::Errno::SRCH
    {
        terminal::warn(&format!("process {pid} takes no signal: {error}"));
    }
}

/// Ends what a demo in this folder left running when it was killed. A process counts as ours only if its
/// command line names a configuration in this folder.
pub(super) async fn stop_leftovers(folder: &Folder) {
    let Ok(text) = fs::read_to_string(folder.pids_file()) else {
        return;
    };
    let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let ours: Vec<_> = pids
        .into_iter()
        .filter(|pid| is_ours(*pid, folder))
        .collect();
    if ours.is_empty() {
        return;
    }
    terminal::say("stopping programs an earlier demo left running");
    for pid in &ours {
        send(*pid, Signal::TERM);
    }
    let gone = async {
        let mut look = tokio::time::interval(LOOK);
        while ours.iter().any(|pid| is_ours(*pid, folder)) {
            look.tick().await;
        }
    };
    if tokio::time::timeout(GRACE, gone).await.is_err() {
        for pid in ours.iter().filter(|pid| is_ours(**pid, folder)) {
            send(*pid, Signal::KILL);
        }
    }
}

fn is_ours(number: u32, folder: &Folder) -> bool {
    let alive = pid(number).is_some_and(|pid| test_kill_process(pid).is_ok());
    let Ok(command) = fs::read(format!("/proc/{number}/cmdline")) else {
        return false;
    };
    let prefix = format!("{}/", folder.dir.display());
    alive
        && command
            .split(|byte| *byte == 0)
            .any(|word| word.starts_with(prefix.as_bytes()))
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("(empty)")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use nexus_runtime::clock::Clock;

    use super::*;

    #[tokio::test]
    async fn who_asks_again_waits_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mut programs = Programs::new(dir.path().join("pids"));
        let mut waits = Vec::new();
        for label in ["agent-1", "collector"] {
            let ready = dir.path().join(format!("{label}.ready"));
            // What is ignored stays ignored by the program that takes the shell's place.
            let script = format!("trap '' TERM; : > {}; exec sleep 600", ready.display());
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            let log = dir.path().join(format!("{label}.log"));
            programs.start(label, &mut command, &log).unwrap();
            waits.push(ready);
        }
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while !waits.iter().all(|ready| ready.exists()) {
            look.tick().await;
        }
        let pids: Vec<_> = programs.list.iter().map(|program| program.pid).collect();
        let clock = Clock::system();
        let begin = clock.instant();
        programs.stop(std::future::ready(())).await;
        assert!(clock.instant() - begin < GRACE);
        for pid in pids {
            let folder = Path::new("/proc").join(pid.to_string());
            assert!(!folder.exists(), "{} runs on", folder.display());
        }
    }
}
