//! A real collector on ports of its own.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::{
    fault::{Fault, Outcome},
    poll, port,
    process::{self, Process},
    programs::Programs,
};

/// To bind all ports.
const START: Duration = Duration::from_secs(30);

/// Where a collector listens, and what it finds there.
#[derive(Debug, Clone)]
pub struct Place {
    /// A network namespace.
    pub namespace: Option<String>,
    /// The address.
    pub host: String,
    /// Variables of the environment.
    pub env: Vec<(String, String)>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            namespace: None,
            host: "127.0.0.1".to_owned(),
            env: Vec::new(),
        }
    }
}

/// A collector, running or stopped.
#[derive(Debug)]
pub struct Collector {
    place: Place,
    dir: PathBuf,
    settings: Vec<String>,
    process: Option<Process>,
    endpoints: Endpoints,
    code: String,
}

/// Where it is reached: `host:port` each.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// Of agents, UDP and TCP.
    pub agents: String,
    /// Of operators.
    pub operators: String,
    /// Of the pages.
    pub metrics: String,
}

impl Collector {
    /// Makes a new one in `dir` and starts it. `settings` are `KEY=VALUE`.
    pub async fn create(dir: &Path, settings: &[&str]) -> Outcome<Self> {
        Self::create_at(Place::default(), dir, settings).await
    }

    /// The same elsewhere than on loopback.
    pub async fn create_at(place: Place, dir: &Path, settings: &[&str]) -> Outcome<Self> {
        let address = || port::free().map(|port| format!("{}:{port}", place.host));
        let endpoints = Endpoints {
            agents: address()?,
            operators: address()?,
            metrics: address()?,
        };
        let mut collector = Self {
            place,
            dir: dir.join("collector"),
            settings: settings.iter().map(|text| (*text).to_owned()).collect(),
            process: None,
            endpoints,
            code: String::new(),
        };
        let output = process::run(collector.command().await?.arg("init"), b"").await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Fault::new(format!("init failed: {said}")));
        }
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        collector.code = printed.lines().last().unwrap_or_default().to_owned();
        collector.start().await?;
        Ok(collector)
    }

    /// The program with this collector's state folder and settings.
    pub async fn command(&self) -> Outcome<Command> {
        let programs = Programs::built().await?;
        let namespace = self.place.namespace.as_deref();
        let mut command = programs.command_within("nexus-collector", namespace);
        command.envs(self.place.env.iter().map(|(name, value)| (name, value)));
        command.arg("--config").arg(self.dir.with_extension("toml"));
        command.arg("--state-dir").arg(&self.dir);
        for (key, known) in [
            ("agents.listen", &self.endpoints.agents),
            ("operators.listen", &self.endpoints.operators),
            ("metrics.listen", &self.endpoints.metrics),
        ] {
            command.arg("--set").arg(format!("{key}={known}"));
        }
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        std::fs::write(self.dir.with_extension("toml"), "").map_err(Fault::io("configuration"))?;
        Ok(command)
    }

    /// Starts it, on the same ports every time.
    pub async fn start(&mut self) -> Outcome {
        let written = self.dir.join("endpoints.json");
        drop(std::fs::remove_file(&written));
        let log = self.dir.with_extension("log");
        let mut process = Process::start(self.command().await?.arg("serve"), &log)?;
        let endpoints = poll::until("the collector's endpoints", START, || {
            let ended = process.check().err();
            let read = std::fs::read(&written)
                .ok()
                .and_then(|text| Endpoints::parse(&text));
            std::future::ready(ended.map(Err).or(read.map(Ok)))
        })
        .await
        .map_err(|fault| fault.with_log(&log))??;
        self.endpoints = endpoints;
        self.process = Some(process);
        Ok(())
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
            None => Err(Fault::new("the collector was not started")),
        }
    }

    /// As if the machine lost power, short of its page cache.
    pub async fn kill(&mut self) -> Outcome {
        match self.process.take() {
            Some(mut process) => process.kill().await.map(drop),
            None => Ok(()),
        }
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::id)
    }

    /// The state folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it listens.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where it is reached.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The operator code `init` printed.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Its log so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default()
    }
}

impl Endpoints {
    fn parse(text: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let bare = |key: &str| {
            let url = value.get(key)?.as_str()?;
            Some(
                url.rsplit("//")
                    .next()
                    .unwrap_or(url)
                    .trim_end_matches('/')
                    .to_owned(),
            )
        };
        Some(Self {
            agents: bare("agents")?,
            operators: bare("operators")?,
            metrics: bare("metrics")?,
        })
    }
}
