//! The command line: `nexus-collector init | serve | check-config | config | login-code | version`.

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
    collector,
    config::{self, Config},
    fault::{Doing as _, Fault, Outcome},
    init,
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

#[derive(Debug, Args)]
struct SourceArgs {
    /// The configuration file [default: /etc/nexus/collector.toml]
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
    /// Makes a new collector's state folder and prints the first one-time operator code
    Init,
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
    let clock = Clock::system();
    match cli.command {
        Command::Version => {
            print(&format!("nexus-collector {}\n", env!("CARGO_PKG_VERSION")))?;
        }
        Command::Config { defaults: true } => {
            print(&settings::print_defaults(config::KEYS))?;
        }
        Command::Config { defaults: false } => {
            let loaded = load(&cli.sources)?;
            print(&loaded.settings.to_string())?;
        }
        Command::CheckConfig => {
            configure(&cli.sources)?;
            say("the configuration is valid");
        }
        Command::Init => {
            let config = configure(&cli.sources)?;
            let code = init::init(&config, clock.now())?;
            print(&format!("{code}\n"))?;
        }
        Command::LoginCode { name } => {
            let config = configure(&cli.sources)?;
            let code = init::login_code(&config, &name, clock.now())?;
            print(&format!("{code}\n"))?;
        }
        Command::Serve => {
            let config = configure(&cli.sources)?;
            log::init(config.log_format, &log::ours_at(tracing::Level::INFO))
                .doing("set up the log")?;
            collector::serve(config, clock)?;
        }
    }
    Ok(())
}

fn load(args: &SourceArgs) -> Outcome<settings::Loaded> {
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
    settings::load(config::KEYS, &sources, Strictness::Refuse).map_err(|faults| {
        Fault::new("configuration", faults)
            .hint("`nexus-collector config --defaults` prints every key with its meaning")
            .usage()
    })
}

fn configure(args: &SourceArgs) -> Outcome<Config> {
    let loaded = load(args)?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}"));
    }
    Config::from_settings(&loaded.settings)
}

/// For people, on standard error.
pub(crate) fn say(text: &str) {
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
