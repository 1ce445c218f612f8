//! A real agent with a state folder of its own.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
};

use rustix::process::Signal;
use tokio::process::Command;

use crate::{
    fault::{Fault, Outcome},
    process::{self, Process},
    programs::Programs,
};

/// An agent, running or stopped.
#[derive(Debug)]
pub struct Agent {
    dir: PathBuf,
    name: String,
    settings: Vec<String>,
    namespace: Option<String>,
    env: Vec<(String, String)>,
    process: Option<Process>,
}

impl Agent {
    /// One that has not enrolled yet. `settings` are `KEY=VALUE`; it knows nothing of a helper or a policy of this host.
    #[must_use]
    pub fn new(dir: &Path, name: &str, settings: &[&str]) -> Self {
        let policy = format!("policy={}", dir.join("policy.toml").display());
        let own = ["helper.use=never".to_owned(), policy];
        let settings = settings.iter().map(|text| (*text).to_owned());
        Self {
            dir: dir.join(name),
            name: name.to_owned(),
            settings: own.into_iter().chain(settings).collect(),
            namespace: None,
            env: Vec::new(),
            process: None,
        }
    }

    /// Runs it within a network namespace.
    #[must_use]
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Gives it a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Replaces a setting from the next start on.
    pub fn set(&mut self, key: &str, value: &str) {
        let prefix = format!("{key}=");
        self.settings
            .retain(|setting| !setting.starts_with(&prefix));
        self.settings.push(format!("{prefix}{value}"));
    }

    /// The program with this agent's folder and settings.
    pub async fn command(&self) -> Outcome<Command> {
        let config = self.dir.with_extension("toml");
        std::fs::write(&config, "").map_err(Fault::io("configuration"))?;
        let programs = Programs::built().await?;
        let mut command = programs.command_within("nexus-agent", self.namespace.as_deref());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.arg("--config").arg(config);
        command.arg("--state-dir").arg(&self.dir);
        command.arg("--set").arg(format!("name={}", self.name));
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        Ok(command)
    }

    /// Enrols; the error is what the agent said.
    pub async fn enroll(&self, token: &str) -> Outcome {
        let mut command = self.command().await?;
        let output = process::run(command.args(["enroll", "-"]), token.as_bytes()).await?;
        if output.status.success() {
            return Ok(());
        }
        Err(Fault::new(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    /// Starts it.
    pub async fn start(&mut self) -> Outcome {
        self.start_by(&[]).await
    }

    /// Starts it by another program, which is to become it: `strace -DD …`.
    pub async fn start_by(&mut self, starter: &[&str]) -> Outcome {
        let log = self.dir.with_extension("log");
        let mut command = self.command().await?;
        if let Some((program, args)) = starter.split_first() {
            let own = command.as_std();
            let mut outer = Command::new(program);
            outer.args(args).arg(own.get_program()).args(own.get_args());
            for (name, value) in own.get_envs() {
                match value {
                    Some(value) => outer.env(name, value),
                    None => outer.env_remove(name),
                };
            }
            command = outer;
        }
        self.process = Some(Process::start(command.arg("run"), &log)?);
        Ok(())
    }

    /// Whether it runs still, as far as is known.
    pub fn check(&mut self) -> Outcome {
        match &mut self.process {
            Some(process) => process.check(),
            None => Err(Fault::new(format!("{} was not started", self.name))),
        }
    }

    /// TERM and its end.
    pub async fn stop(&mut self) -> Outcome {
        match self.process.take() {
            Some(mut process) => process.stop().await.map(drop),
            None => Ok(()),
        }
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::TERM);
        }
    }

    /// Waits until it has ended; how it did.
    pub async fn ended(&mut self) -> Outcome<ExitStatus> {
        match self.process.take() {
            Some(mut process) => process.wait().await,
            None => Err(Fault::new(format!("{} was not started", self.name))),
        }
    }

    /// KILL for its process alone; jobs are in groups of their own.
    pub async fn kill(&mut self) -> Outcome {
        match self.process.take() {
            Some(mut process) => process.kill().await.map(drop),
            None => Ok(()),
        }
    }

    /// The state folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it asks to be called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::id)
    }

    /// Its log so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default()
    }
}
