//! What one invocation carries with it: who asks, when, under which request id, and how to print.

use std::{future::Future, io::IsTerminal as _, path::PathBuf, time::Duration};

use nexus_proto::{limits, time::Timestamp};
use nexus_runtime::clock::Clock;
use uuid::Uuid;

use crate::{
    cli::{Cli, OutputArgs},
    connection::Collector,
    fault::{Exit, Fault, Outcome},
    output::Style,
    profile::Profile,
    terminal::{self, Paint, When},
    when,
};

/// One invocation.
pub(crate) struct Session {
    pub(crate) clock: Clock,
    pub(crate) request_id: String,
    pub(crate) color: When,
    pub(crate) verbose: bool,
    pub(crate) client_toml: PathBuf,
}

impl Session {
    pub(crate) fn new(cli: &Cli) -> Outcome<Self> {
        let client_toml = match &cli.config {
            Some(path) => path.clone(),
            None => crate::profile::default_path()?,
        };
        let session = Self {
            clock: Clock::system(),
            request_id: Uuid::new_v4().to_string(),
            color: cli.color,
            verbose: cli.verbose,
            client_toml,
        };
        session.log(&format!("request {}", session.request_id));
        Ok(session)
    }

    /// The same invocation with another client's configuration.
    pub(crate) fn with_client(&self, client_toml: PathBuf) -> Self {
        Self {
            clock: self.clock.clone(),
            request_id: self.request_id.clone(),
            color: self.color,
            verbose: self.verbose,
            client_toml,
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Says on standard error what is being done, if asked to.
    pub(crate) fn log(&self, text: &str) {
        if self.verbose {
            terminal::say(&format!(
                "{} nexusctl {text} request_id={}",
                self.now(),
                self.request_id
            ));
        }
    }

    /// The operator's keys and a connection, the certificate renewed when it is past its half-life.
    pub(crate) async fn connect(&self) -> Outcome<Collector> {
        Collector::connect(self, Profile::load(&self.client_toml)?).await
    }

    /// How rows are printed.
    pub(crate) fn style(&self, output: &OutputArgs) -> Style {
        Style {
            format: output.output,
            headers: !output.no_headers,
            paint: Paint::stdout(self.color),
            terminal: std::io::stdout().is_terminal(),
            now: self.now(),
            null: "<none>",
            name_prefix: String::new(),
            name_fields: vec![0],
        }
    }

    /// A TIME of the command line, as the wire has it.
    pub(crate) fn as_of(&self, time: Option<&str>) -> Outcome<Option<i64>> {
        let Some(text) = time else { return Ok(None) };
        let time = when::parse_time(text, self.now())
            .map_err(|why| Fault::usage("command line: --as-of", why))?;
        if time > self.now().after(limits::CLOCK_SKEW) {
            let why = format!("{time} lies ahead: nothing is known of it");
            return Err(Fault::usage("command line: --as-of", why));
        }
        Ok(Some(time.as_ms()))
    }
}

/// Ends `work` when it takes longer than `limit`, with exit code 124.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Outcome<T>>,
) -> Outcome<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let span = humantime::format_duration(limit);
            Err(Fault::new(what, format!("no answer within {span}")).exits(Exit::TimedOut))
        }
    }
}
