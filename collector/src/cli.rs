//! The command line: `nexus-collector init | serve | check-config | config | login-code | version`.

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use nexus_runtime::{
    clock::Clock,
    command_line::{self, Ending, Program, SourceArgs, print, say},
    fault::{Doing as _, Outcome},
    log,
    reload::Reload,
    settings::{self, Settings, Strictness},
};

use crate::{
    collector,
    config::{self, Config},
    init, owner,
};

const PROGRAM: Program = Program {
    name: "nexus-collector",
    file: config::FILE,
    env_prefix: config::ENV_PREFIX,
    keys: config::KEYS,
    reloads: config::RELOADS,
};

/// The Nexus collector: lets agents in, keeps what they report, runs operators' signed jobs on them.
#[derive(Debug, Parser)]
#[command(name = "nexus-collector", version, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    sources: SourceArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a new collector's state folder and prints the first one-time operator code
    Init {
        /// Does nothing where there is one, so that it may be said at each start
        #[arg(long)]
        if_new: bool,
        /// Prints no code, for where what is printed ends up in a log: `login-code` makes one when it is wanted
        #[arg(long)]
        no_code: bool,
    },
    /// Runs the collector
    Serve,
    /// Checks the configuration without doing anything
    CheckConfig,
    /// Prints the configuration in force, or all defaults
    Config {
        /// Prints every key with its default, unit and meaning
        #[arg(long)]
        defaults: bool,
    },
    /// Prints a new one-time operator code; a running collector takes it at once
    LoginCode {
        /// Whom it lets in
        #[arg(long, default_value = "admin")]
        name: String,
    },
    /// Prints the version
    Version,
}

/// The command line, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    command_line::finish(PROGRAM.name, run(std::env::args_os()))
}

fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), Ending> {
    let cli = Cli::try_parse_from(args).map_err(Ending::Clap)?;
    let clock = Clock::system();
    match cli.command {
        Command::Version => {
            print(&format!("nexus-collector {}\n", env!("CARGO_PKG_VERSION")))?;
        }
        Command::Config { defaults: true } => {
            print(&settings::print_defaults(config::KEYS))?;
        }
        Command::Config { defaults: false } => {
            let loaded = cli.sources.load(PROGRAM, Strictness::Refuse)?;
            print(&loaded.settings.to_string())?;
        }
        Command::CheckConfig => {
            configure(&cli.sources)?;
            say("the configuration is valid");
        }
        Command::Init { if_new, no_code } => {
            let config = configure(&cli.sources)?;
            owner::become_owner(&config.state_dir)?;
            if if_new && init::is_done(&config) {
                say("initialised already");
                return Ok(());
            }
            if no_code {
                init::create(&config, clock.now())?;
                return Ok(());
            }
            let code = init::init(&config, clock.now())?;
            print(&format!("{code}\n"))?;
        }
        Command::LoginCode { name } => {
            let config = configure(&cli.sources)?;
            owner::become_owner(&config.state_dir)?;
            let code = init::login_code(&config, &name, clock.now())?;
            print(&format!("{code}\n"))?;
        }
        Command::Serve => {
            let (config, settings) = configured(&cli.sources)?;
            owner::become_owner(&config.state_dir)?;
            let filter =
                log::init(config.log_format, &config.log_filter).doing("set up the log")?;
            let reload = Reload::new(PROGRAM, &cli.sources, settings);
            collector::serve(config, filter, reload, clock)?;
        }
    }
    Ok(())
}

fn configure(args: &SourceArgs) -> Outcome<Config> {
    configured(args).map(|(config, _)| config)
}

fn configured(args: &SourceArgs) -> Outcome<(Config, Settings)> {
    let loaded = args.load(PROGRAM, Strictness::Refuse)?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}"));
    }
    let config = Config::from_settings(&loaded.settings)?;
    Ok((config, loaded.settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_stand_before_or_after_the_command() {
        let before = Cli::try_parse_from(["x", "--state-dir", "/s", "init"]).unwrap();
        let after = Cli::try_parse_from(["x", "init", "--set", "shards=2", "--state-dir", "/s"]);
        assert_eq!(before.sources.state_dir, after.unwrap().sources.state_dir);
        assert!(Cli::try_parse_from(["x", "init", "--set", "shards"]).is_err());
    }

    #[test]
    fn an_unknown_key_is_refused_with_a_hint() {
        let args = SourceArgs {
            config: None,
            state_dir: None,
            set: vec![("agents.listne".to_owned(), "x".to_owned())],
        };
        let fault = configure(&args).unwrap_err();
        assert!(fault.to_string().contains("agents.listne"), "{fault}");
        assert_eq!(fault.exit_code(), 2);
    }
}
