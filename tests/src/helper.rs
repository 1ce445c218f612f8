//! A real helper, as root, for an agent of another user. Only root can start one.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use tokio::process::Command;

use crate::{
    agent::Agent,
    fault::{Fault, Outcome},
    poll,
    process::Process,
    programs::Programs,
};

/// Whom it serves: `nobody`, user and group.
pub const AGENT: u32 = 65_534;
/// Becomes that user.
const AS_AGENT: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];
/// What the package brings.
pub const ANYTHING: &str = "[[allow]]\nwho = \"*\"\nrun = \"*\"\nas = \"*\"\n";

/// A helper, running or stopped.
#[derive(Debug)]
pub struct Helper {
    dir: PathBuf,
    process: Option<Process>,
}

impl Helper {
    /// One in this folder, which lets others through to what is theirs.
    pub fn new(dir: &Path) -> Outcome<Self> {
        let open = |path: &Path| {
            fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(Fault::io("chmod"))
        };
        let run = dir.join("run");
        fs::create_dir_all(&run).map_err(Fault::io("make a folder"))?;
        open(dir)?;
        open(&run)?;
        let helper = Self {
            dir: dir.to_owned(),
            process: None,
        };
        helper.policy(ANYTHING)?;
        fs::write(dir.join("helper.toml"), "").map_err(Fault::io("configuration"))?;
        Ok(helper)
    }

    /// Settings of the agent beside it, and its own.
    #[must_use]
    pub fn settings(&self) -> Vec<String> {
        let path = |key: &str, path: PathBuf| format!("{key}={}", path.display());
        vec![
            "helper.use=always".to_owned(),
            "helper.user=nobody".to_owned(),
            path("helper.socket", self.socket()),
            path("helper.state_dir", self.state()),
            path("policy", self.dir.join("policy.toml")),
        ]
    }

    /// An agent of the user it serves, which has not enrolled yet.
    pub fn agent(&self, name: &str, more: &[&str]) -> Outcome<Agent> {
        let settings = self.settings();
        let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        settings.extend(more);
        let agent = Agent::new(&self.dir, name, &settings);
        fs::create_dir_all(agent.dir()).map_err(Fault::io("make a folder"))?;
        fs::set_permissions(agent.dir(), Permissions::from_mode(0o700))
            .map_err(Fault::io("chmod"))?;
        chown(agent.dir(), Some(AGENT), Some(AGENT)).map_err(Fault::io("chown"))?;
        Ok(agent)
    }

    /// Starts an agent as the user it serves.
    pub async fn start_agent(agent: &mut Agent) -> Outcome {
        agent.start_by(&AS_AGENT).await
    }

    /// Replaces the local policy.
    pub fn policy(&self, text: &str) -> Outcome {
        let path = self.dir.join("policy.toml");
        fs::write(&path, text).map_err(Fault::io("policy"))?;
        fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(Fault::io("chmod"))
    }

    /// The program with its settings.
    pub async fn command(&self) -> Outcome<Command> {
        let programs = Programs::built().await?;
        let mut command = programs.command("nexus-agent");
        command.arg("--config").arg(self.dir.join("helper.toml"));
        for setting in self.settings() {
            command.arg("--set").arg(setting);
        }
        command.arg("helper");
        Ok(command)
    }

    /// Starts it; it listens on return.
    pub async fn start(&mut self) -> Outcome {
        let mut command = self.command().await?;
        self.start_as(&mut command).await
    }

    /// Starts what becomes it; it listens on return.
    pub async fn start_as(&mut self, command: &mut Command) -> Outcome {
        let begun = self.log_text().matches("the helper is ready").count();
        self.process = Some(Process::start(command, &self.log())?);
        let deadline = crate::fleet::SOON;
        poll::until_ok("a helper that listens", deadline, || {
            let text = self.log_text();
            let ready = text.matches("the helper is ready").count() > begun;
            std::future::ready(if ready { Ok(()) } else { Err(text) })
        })
        .await
    }

    /// TERM and its end.
    pub async fn stop(&mut self) -> Outcome {
        match self.process.take() {
            Some(mut process) => process.stop().await.map(drop),
            None => Ok(()),
        }
    }

    /// KILL for its process alone.
    pub async fn kill(&mut self) -> Outcome {
        match self.process.take() {
            Some(mut process) => process.kill().await.map(drop),
            None => Ok(()),
        }
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> Outcome<std::process::ExitStatus> {
        match self.process.take() {
            Some(mut process) => process.wait().await,
            None => Err(Fault::new("the helper was not started")),
        }
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::id)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run").join("helper.sock")
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("helper")
    }

    /// Its log so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("helper.log")
    }
}
