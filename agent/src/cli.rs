//! The command line: `nexus-agent enroll | pin | run | helper | status | doctor | check-config | config | version`.

use std::{ffi::OsString, io::ErrorKind, path::Path, process::ExitCode};

use clap::{Parser, Subcommand};
use nexus_runtime::{
    clock::Clock,
    command_line::{self, Ending, Program, SourceArgs, print, say},
    fault::{Doing as _, Fault, Outcome},
    log,
    reload::Reload,
    settings::{self, Strictness},
};

use crate::{
    agent,
    config::{self, Config},
    doctor, helper,
    join::{self, Left},
    local_policy::{self, PolicyError},
    status,
};

const PROGRAM: Program = Program {
    name: "nexus-agent",
    file: config::FILE,
    env_prefix: config::ENV_PREFIX,
    keys: config::KEYS,
    reloads: config::RELOADS,
};

/// The Nexus agent: reports what this machine is and does, and runs operators' signed jobs on it.
#[derive(Debug, Parser)]
#[command(name = "nexus-agent", version, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    sources: SourceArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes this machine a node: its own key, and a certificate for it
    Enroll {
        /// A join token of `nexusctl token create`, @FILE with one, or - to read it from standard input; without one, the
        /// service manager's credential `nexus.enrol-token`, or else @/etc/nexus/enrol.token
        #[arg(value_name = "TOKEN")]
        token: Option<String>,
        /// Replaces the identity that is there
        #[arg(long)]
        force: bool,
        /// Does only what is left to do, nothing where all is done, so that it may be said at each start
        #[arg(long, conflicts_with = "force")]
        if_new: bool,
    },
    /// Has the helper believe whom the agent here believes; for an agent that enrolled before there was a helper
    Pin {
        /// A join token of `nexusctl token create`, which is not used up; @FILE, or - as for enroll
        #[arg(value_name = "TOKEN")]
        token: String,
    },
    /// Runs the agent
    Run,
    /// Runs the helper: as root and without a network, it runs jobs for an agent that is not root
    Helper,
    /// Says who this node is and what became of its session: exit code 0 when it has one, 1 when it has none
    Status,
    /// Tries all that a session and a job need and says in words what is wrong: exit code 0 when nothing keeps the agent
    /// from working, 1 when something does
    Doctor,
    /// Checks the configuration without doing anything
    CheckConfig,
    /// Prints the configuration in force, or all defaults
    Config {
        /// Prints every key with its default, unit and meaning
        #[arg(long)]
        defaults: bool,
    },
    /// Tells the collector that the agent is being removed from this machine
    Leave,
    /// Prints the version
    Version,
}

/// The command line, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    command_line::finish(PROGRAM.name, run(std::env::args_os()))
}

fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), Ending> {
    let cli = Cli::try_parse_from(args).map_err(Ending::Clap)?;
    match cli.command {
        Command::Version => {
            print(&format!("nexus-agent {}\n", env!("CARGO_PKG_VERSION")))?;
        }
        Command::Leave => {
            let config = configure(&cli.sources, Strictness::Warn)?;
            log::init(config.log_format, &log::ours_at(tracing::Level::ERROR))
                .doing("set up the log")?;
            agent::leave(&config, &Clock::system())?;
            say("the collector has been told");
        }
        Command::Config { defaults: true } => {
            print(&settings::print_defaults(config::KEYS))?;
        }
        Command::Config { defaults: false } => {
            let loaded = cli.sources.load(PROGRAM, Strictness::Refuse)?;
            print(&loaded.settings.to_string())?;
        }
        Command::Enroll {
            token,
            force,
            if_new,
        } => {
            let config = configure(&cli.sources, Strictness::Refuse)?;
            let left = if if_new {
                join::what_is_left(&config)
            } else {
                Left::Enrolment
            };
            if left == Left::Nothing {
                say("enrolled already");
                return Ok(());
            }
            log::init(config.log_format, &log::ours_at(tracing::Level::WARN))
                .doing("set up the log")?;
            let (token, clock) = (token.as_deref(), Clock::system());
            say(&if left == Left::Pin {
                join::pin(&config, token, &clock)?
            } else {
                join::enroll(&config, token, force, &clock)?
            });
        }
        Command::Pin { token } => {
            let config = configure(&cli.sources, Strictness::Refuse)?;
            log::init(config.log_format, &log::ours_at(tracing::Level::WARN))
                .doing("set up the log")?;
            say(&join::pin(&config, Some(&token), &Clock::system())?);
        }
        Command::Helper => {
            let (config, ..) = daemon(&cli.sources)?;
            let file = cli.sources.config.as_deref();
            let file = file.unwrap_or(Path::new(config::FILE));
            helper::run(&config, file, Clock::system())?;
        }
        Command::Run => {
            let (config, filter, reload) = daemon(&cli.sources)?;
            agent::run(&config, filter, reload, Clock::system())?;
        }
        Command::Status => {
            let config = configure(&cli.sources, Strictness::Warn)?;
            let (text, verdict) = status::report(&config, &Clock::system())?;
            print(&text)?;
            verdict?;
        }
        Command::Doctor => {
            // As the agent goes on with it: what it passes over is one of the things that are wrong.
            let loaded = cli.sources.load(PROGRAM, Strictness::Warn)?;
            let config = Config::from_settings(&loaded.settings)?;
            let found = doctor::examine(&config, &loaded.warnings, &Clock::system())?;
            let wrong = found.wrong();
            for finding in found {
                print(&format!("{finding}\n"))?;
            }
            if wrong > 0 {
                let why = match wrong {
                    1 => "one thing is wrong".to_owned(),
                    more => format!("{more} things are wrong"),
                };
                return Err(Fault::new("doctor", why).into());
            }
        }
        Command::CheckConfig => {
            let config = configure(&cli.sources, Strictness::Refuse)?;
            check_policy(&config)?;
            say("the configuration is valid");
        }
    }
    Ok(())
}

/// The settings of a program that stays, with its log set up. Config and binary are rolled out separately: what this
/// version does not know does not stop it.
fn daemon(args: &SourceArgs) -> Outcome<(Config, log::Filter, Reload)> {
    let loaded = args.load(PROGRAM, Strictness::Warn)?;
    let config = Config::from_settings(&loaded.settings)?;
    let filter = log::init(config.log_format, &config.log_filter).doing("set up the log")?;
    for warning in &loaded.warnings {
        tracing::warn!("configuration: {warning}");
    }
    let reload = Reload::new(PROGRAM, args, loaded.settings);
    Ok((config, filter, reload))
}

/// A machine without a helper needs no policy of its own.
fn check_policy(config: &Config) -> Outcome {
    match local_policy::load(&config.helper.policy, 0) {
        Ok(_) | Err(PolicyError::Missing(_)) => Ok(()),
        // Root alone may read it, and this is somebody else, as at a reload of the agent.
        Err(PolicyError::Read { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            say("warning: the local policy was not checked: only root can read it");
            Ok(())
        }
        Err(PolicyError::Faults(faults)) => Err(Fault::new("local policy", faults).usage()),
        Err(error) => Err(Fault::because("local policy", &error).usage()),
    }
}

fn configure(args: &SourceArgs, strictness: Strictness) -> Outcome<Config> {
    let loaded = args.load(PROGRAM, strictness)?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}"));
    }
    Config::from_settings(&loaded.settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn an_unknown_key_is_refused_by_a_check_and_passed_over_by_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, "name = \"db-1\"\nintervall = \"5s\"\n").unwrap();
        let args = SourceArgs {
            config: Some(file),
            state_dir: None,
            set: Vec::new(),
        };
        let fault = configure(&args, Strictness::Refuse).unwrap_err();
        assert!(fault.to_string().contains("agent.toml:2"), "{fault}");
        assert!(fault.to_string().contains("`interval`"), "{fault}");
        assert_eq!(fault.exit_code(), 2);
        let config = configure(&args, Strictness::Warn).unwrap();
        assert_eq!(config.name, "db-1");
    }
}
