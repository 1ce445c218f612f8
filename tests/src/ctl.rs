//! `nexusctl` as users call it.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::Value;

use crate::{
    collector::Collector,
    fault::{Fault, Outcome},
    process::{self, Process},
    programs::Programs,
};

/// An operator's machine.
#[derive(Debug, Clone)]
pub struct Ctl {
    config: PathBuf,
    namespace: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Said {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ctl {
    /// With a client configuration in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            config: dir.join("client.toml"),
            namespace: None,
        }
    }

    /// Logged in with the code of the collector's `init`.
    pub async fn logged_in(dir: &Path, collector: &Collector) -> Outcome<Self> {
        let mut ctl = Self::new(dir);
        ctl.namespace.clone_from(&collector.place().namespace);
        let address = &collector.endpoints().operators;
        ctl.ok(&["login", collector.code(), "--address", address])
            .await?;
        Ok(ctl)
    }

    /// Runs it.
    pub async fn run(&self, args: &[&str]) -> Outcome<Said> {
        self.run_with(args, b"").await
    }

    /// Runs it with something on standard input.
    pub async fn run_with(&self, args: &[&str], input: &[u8]) -> Outcome<Said> {
        let programs = Programs::built().await?;
        let mut command = programs.command_within("nexusctl", self.namespace.as_deref());
        command.env("NEXUSCTL_CONFIG", &self.config).args(args);
        Ok(Said::of(&process::run(&mut command, input).await?))
    }

    /// Starts it and leaves it running; what it says, both outputs together, goes to `log`.
    pub async fn start(&self, args: &[&str], log: &Path) -> Outcome<Process> {
        let programs = Programs::built().await?;
        let mut command = programs.command_within("nexusctl", self.namespace.as_deref());
        command.env("NEXUSCTL_CONFIG", &self.config).args(args);
        Process::start(&mut command, log)
    }

    /// Its standard output, when it succeeds.
    pub async fn ok(&self, args: &[&str]) -> Outcome<String> {
        let said = self.run(args).await?;
        if said.code == 0 {
            return Ok(said.out);
        }
        Err(Fault::new(format!("nexusctl {args:?}: {said:?}")))
    }

    /// Its standard output as JSON, when it succeeds.
    pub async fn json(&self, args: &[&str]) -> Outcome<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let text = self.ok(&all).await?;
        serde_json::from_str(&text).map_err(|error| Fault::new(format!("{all:?}: {error}: {text}")))
    }

    /// The client configuration's path.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }
}

impl Said {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
