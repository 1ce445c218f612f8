//! A Salt master with minions, all of them on loopback and in one folder.

use std::{fs, path::Path, time::Duration};

use tokio::{process::Command, time::timeout};

use super::venv::Venv;
use crate::{
    fault::{Fault, Outcome},
    poll, port,
    process::Process,
};

/// Until all minions have been accepted and answer.
const START: Duration = Duration::from_secs(120);
/// A command that should be done long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// It, running.
#[derive(Debug)]
pub struct Salt {
    venv: Venv,
    conf: String,
    minions: usize,
    _processes: Vec<Process>,
}

impl Salt {
    /// Starts them, and waits until all answer.
    pub async fn start(venv: &Venv, dir: &Path, minions: usize) -> Outcome<Self> {
        let (publish, ret) = (port::free()?, port::free()?);
        let master = format!(
            "interface: 127.0.0.1\npublish_port: {publish}\nret_port: {ret}\nauto_accept: True\nworker_threads: 5\n"
        );
        let mut processes = vec![start(venv, "salt-master", "master", dir, &master)?];
        for number in 1..=minions {
            let name = format!("node-{number}");
            let minion = format!(
                "id: {name}\nmaster: 127.0.0.1\nmaster_port: {ret}\npublish_port: {publish}\n\
                 acceptance_wait_time: 1\nmine_enabled: False\nenable_fqdns_grains: False\n"
            );
            let process = start(venv, "salt-minion", "minion", &dir.join(name), &minion)?;
            processes.push(process);
        }
        let salt = Self {
            venv: venv.clone(),
            conf: dir.display().to_string(),
            minions,
            _processes: processes,
        };
        let answer = || async {
            let answer = salt.call(&["-t", "5", "*", "test.ping"], "true").await;
            answer.map_err(|fault| fault.to_string())
        };
        poll::until_ok("all minions", START, answer).await?;
        Ok(salt)
    }

    /// `true` on all minions.
    pub async fn run_true(&self) -> Outcome {
        // A bare word would be read as YAML.
        self.call(&["*", "cmd.retcode", "/bin/true"], "0").await
    }

    /// All minions must give this answer.
    async fn call(&self, args: &[&str], expected: &str) -> Outcome {
        let mut command: Command = self.venv.program("salt");
        command.args(["-c", &self.conf, "--out=txt", "--static"]);
        let ended = timeout(PATIENCE, command.args(args).kill_on_drop(true).output()).await;
        let output = ended
            .map_err(|_| Fault::new("salt does not end"))?
            .map_err(Fault::io("salt"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let answers = said.lines().filter(|line| {
            let answer = line.split_once(": ").map(|(_, answer)| answer.trim());
            answer.is_some_and(|answer| answer.eq_ignore_ascii_case(expected))
        });
        if answers.count() == self.minions {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Fault::new(format!("salt: {said}{why}")))
    }
}

fn start(venv: &Venv, program: &str, file: &str, dir: &Path, more: &str) -> Outcome<Process> {
    fs::create_dir_all(dir).map_err(Fault::io(dir.display()))?;
    let text = format!(
        "root_dir: {}\npki_dir: pki\ncachedir: cache\nsock_dir: sock\nlog_file: log\npidfile: pid\n{more}",
        dir.display()
    );
    let config = dir.join(file);
    fs::write(&config, text).map_err(Fault::io(config.display()))?;
    let mut command = venv.program(program);
    command.arg("-c").arg(dir).args(["-l", "warning"]);
    Process::start(&mut command, &dir.join("out"))
}
