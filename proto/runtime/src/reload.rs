//! Reading the configuration anew while a program runs, when HUP asks for it: `systemctl reload`, or kill(1) under any
//! other supervisor.
//!
//! A configuration with a mistake in it changes nothing: the one in force stays, and log and service manager say which
//! file and key are wrong. That is stricter than a start, which has nothing better to go by. Of a configuration that
//! can be read, some keys hold at once; each other one that changed is named with the word that it needs a restart.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    command_line::{Program, SourceArgs},
    fault::{Fault, Outcome},
    service,
    settings::{Settings, Strictness},
};

/// What a running program reads anew.
#[derive(Debug)]
pub struct Reload {
    program: Program,
    sources: SourceArgs,
    settings: Settings,
}

/// What one reading came to.
#[derive(Debug, Default)]
pub struct Changes {
    /// Keys that hold now.
    pub taken: Vec<&'static str>,
    /// Keys that will hold after a restart.
    pub waiting: Vec<&'static str>,
}

/// HUP, caught from the moment this exists.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Catches it. Needs a tokio runtime with I/O enabled.
    pub fn catch() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }
}

impl Reload {
    /// Of a program that started with these settings.
    #[must_use]
    pub fn new(program: Program, sources: &SourceArgs, settings: Settings) -> Self {
        Self {
            program,
            sources: sources.clone(),
            settings,
        }
    }

    /// Reads anew at each HUP until `stop`. `apply` is given what was read, and uses what it can use at once, or says
    /// what is wrong with it; `tell` is given what the service manager is to show until the next time.
    pub async fn keep(
        mut self,
        mut hangups: Hangups,
        stop: CancellationToken,
        mut apply: impl FnMut(&Settings) -> Outcome,
        tell: impl Fn(Option<String>),
    ) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                hangup = hangups.0.recv() => if hangup.is_none() {
                    return;
                },
            }
            service::reloading();
            tell(self.once(&mut apply));
            service::ready();
        }
    }

    /// One reading; what there is to tell of it afterwards.
    fn once(&mut self, apply: &mut impl FnMut(&Settings) -> Outcome) -> Option<String> {
        match self.read(apply) {
            Ok(Changes { taken, waiting }) => {
                tracing::info!(changed = taken.join(" "), "the configuration was read anew");
                if waiting.is_empty() {
                    return None;
                }
                let keys = waiting.join(" ");
                tracing::warn!(
                    keys,
                    "these settings have changed and need a restart to take effect"
                );
                Some(format!("a restart is needed for {keys}"))
            }
            Err(fault) => {
                let why = fault.line();
                tracing::error!("the configuration in force stays: {why}");
                Some(format!("the configuration in force is an older one: {why}"))
            }
        }
    }

    fn read(&mut self, apply: &mut impl FnMut(&Settings) -> Outcome) -> Result<Changes, Fault> {
        let loaded = self.sources.load(self.program, Strictness::Refuse)?;
        for warning in &loaded.warnings {
            tracing::warn!("configuration: {warning}");
        }
        apply(&loaded.settings)?;
        let mut changes = Changes::default();
        for key in self.settings.differing(&loaded.settings) {
            match self.program.reloads.contains(&key) {
                true => changes.taken.push(key),
                false => changes.waiting.push(key),
            }
        }
        self.settings.take(&changes.taken, &loaded.settings);
        Ok(changes)
    }
}
