//! The command line: `nexus-agent enroll | run | check-config | config | version`.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use nexus_runtime::{
    clock::Clock,
    log,
    settings::{self, Sources, Strictness},
};

use crate::{
    agent,
    config::{self, Config},
    fault::{Doing as _, Fault, Outcome},
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

#[derive(Debug, Args)]
struct SourceArgs {
    /// The configuration file [default: /etc/nexus/agent.toml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The state folder: the same as --set state_dir=DIR
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// Overrides a key of the configuration
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, global = true)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes this machine a node: its own key, and a certificate for it
    Enroll {
        /// A join token of `nexusctl token create`, @FILE with one, or - to read it from standard input
        #[arg(value_name = "TOKEN")]
        token: String,
        /// Replaces the identity that is there
        #[arg(long)]
        force: bool,
    },
    /// Runs the agent
    Run,
    /// Checks the configuration without doing anything
    CheckConfig,
    /// Prints the configuration in force, or all defaults
    Config {
        /// Prints every key with its default, unit and meaning
        #[arg(long)]
        defaults: bool,
    },
    /// Prints the version
    Version,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.trim().to_owned(), value.to_owned()))
        .ok_or_else(|| "expected KEY=VALUE".to_owned())
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    match run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ending::Fault(fault)) => {
            fault.report();
            ExitCode::from(fault.exit_code())
        }
        Err(Ending::Clap(error)) => {
            // Help and version count as success and go to standard output.
            let code = error.exit_code();
            let _closed = error.print();
            ExitCode::from(u8::try_from(code).unwrap_or(2))
        }
    }
}

enum Ending {
    Fault(Fault),
    Clap(clap::Error),
}

impl From<Fault> for Ending {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), Ending> {
    let cli = Cli::try_parse_from(args).map_err(Ending::Clap)?;
    match cli.command {
        Command::Version => {
            print(&format!("nexus-agent {}\n", env!("CARGO_PKG_VERSION")))?;
        }
        Command::Config { defaults: true } => {
            print(&settings::print_defaults(config::KEYS))?;
        }
        Command::Config { defaults: false } => {
            let loaded = load(&cli.sources, Strictness::Refuse)?;
            print(&loaded.settings.to_string())?;
        }
        Command::Enroll { token, force } => {
            let config = configure(&cli.sources, Strictness::Refuse)?;
            log::init(config.log_format, &log::ours_at(tracing::Level::WARN))
                .doing("set up the log")?;
            say(&agent::enroll(&config, &token, force, &Clock::system())?);
        }
        Command::Run => {
            // Config and binary are rolled out separately: what this version does not know does not stop it.
            let loaded = load(&cli.sources, Strictness::Warn)?;
            let config = Config::from_settings(&loaded.settings)?;
            log::init(config.log_format, &log::ours_at(tracing::Level::INFO))
                .doing("set up the log")?;
            for warning in &loaded.warnings {
                tracing::warn!("configuration: {warning}");
            }
            agent::run(&config, Clock::system())?;
        }
        Command::CheckConfig => {
            configure(&cli.sources, Strictness::Refuse)?;
            say("the configuration is valid");
        }
    }
    Ok(())
}

fn load(args: &SourceArgs, strictness: Strictness) -> Outcome<settings::Loaded> {
    let (file, required) = match &args.config {
        Some(path) => (path.as_path(), true),
        None => (Path::new(config::FILE), false),
    };
    let mut sources = Sources::new(config::ENV_PREFIX, file, required);
    sources.flags.clone_from(&args.set);
    if let Some(dir) = &args.state_dir {
        let dir = dir.to_string_lossy().into_owned();
        sources.flags.push(("state_dir".to_owned(), dir));
    }
    settings::load(config::KEYS, &sources, strictness).map_err(|faults| {
        Fault::new("configuration", faults)
            .hint("`nexus-agent config --defaults` prints every key with its meaning")
            .usage()
    })
}

fn configure(args: &SourceArgs, strictness: Strictness) -> Outcome<Config> {
    let loaded = load(args, strictness)?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}"));
    }
    Config::from_settings(&loaded.settings)
}

/// For people, on standard error.
fn say(text: &str) {
    let _closed = writeln!(io::stderr(), "{text}");
}

/// For programs, on standard output.
fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .doing("write to standard output")
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
