//! What every daemon's command line has in common: where its configuration comes from, how its mistakes
//! read, how it ends.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{
    Args,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    fault::{Doing as _, Fault, Outcome},
    settings::{self, Key, Loaded, Sources, Strictness},
};

/// Flags that say where the configuration is, before or after the command.
#[derive(Debug, Clone, Default, Args)]
pub struct SourceArgs {
    /// The configuration file, instead of the one in /etc/nexus
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// The state folder: the same as --set state_dir=DIR
    #[arg(long, value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// Overrides a key of the configuration
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, global = true)]
    pub set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.trim().to_owned(), value.to_owned()))
        .ok_or_else(|| "expected KEY=VALUE".to_owned())
}

/// Of which program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// `nexus-agent`.
    pub name: &'static str,
    /// Its configuration file unless a flag names another.
    pub file: &'static str,
    /// What its variables of the environment begin with.
    pub env_prefix: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
    /// Those that hold at once when the configuration is read anew; the others take a restart.
    pub reloads: &'static [&'static str],
}

impl SourceArgs {
    /// Reads the configuration.
    pub fn load(&self, program: Program, strictness: Strictness) -> Outcome<Loaded> {
        let (file, required) = match &self.config {
            Some(path) => (path.as_path(), true),
            None => (Path::new(program.file), false),
        };
        let mut sources = Sources::new(program.env_prefix, file, required);
        sources.flags.clone_from(&self.set);
        if let Some(dir) = &self.state_dir {
            let dir = dir.to_string_lossy().into_owned();
            sources.flags.push(("state_dir".to_owned(), dir));
        }
        settings::load(program.keys, &sources, strictness).map_err(|faults| {
            let hint = format!(
                "`{} config --defaults` prints every key with its meaning",
                program.name
            );
            // A line each, and each as an error reads.
            let why = faults.to_string().replace('\n', "\nerror: configuration: ");
            Fault::new("configuration", why).hint(hint).usage()
        })
    }
}

/// Why a command came to no good end.
#[derive(Debug)]
pub enum Ending {
    /// It failed.
    Fault(Fault),
    /// It was not understood, or help was asked for.
    Clap(clap::Error),
}

impl From<Fault> for Ending {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// The process's exit code, once what there is to say is said.
#[must_use]
pub fn finish(program: &'static str, result: Result<(), Ending>) -> ExitCode {
    let fault = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Ending::Fault(fault)) => fault,
        Err(Ending::Clap(error)) => match Mistake::of(&error, program) {
            Some(mistake) => mistake.into_fault(),
            // Help and version are answers, unless nothing was asked.
            None => {
                let code = error.exit_code();
                let _closed = error.print();
                return ExitCode::from(u8::try_from(code).unwrap_or(2));
            }
        },
    };
    fault.report();
    ExitCode::from(fault.exit_code())
}

/// For people, on standard error.
pub fn say(text: &str) {
    let _closed = writeln!(io::stderr(), "{text}");
}

/// For programs, on standard output.
pub fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .doing("write to standard output")
}

/// What clap says of a command line, in our form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong, in one line.
    pub why: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
    /// The command it was said to: `nexusctl run`.
    pub command: String,
}

impl Mistake {
    /// `None` when help or the version was asked for, or nothing at all.
    #[must_use]
    pub fn of(error: &clap::Error, program: &str) -> Option<Self> {
        let kind = error.kind();
        if matches!(
            kind,
            ErrorKind::DisplayHelp
                | ErrorKind::DisplayVersion
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        ) {
            return None;
        }
        let rendered = error.render().to_string();
        let rendered = rendered.strip_prefix("error: ").unwrap_or(&rendered);
        Some(Self {
            why: first_paragraph(rendered),
            suggestion: suggestion(error),
            command: command(rendered, program),
        })
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        let help = format!("see `{} --help`", self.command);
        match &self.suggestion {
            Some(words) => format!("did you mean `{words}`? {help}"),
            None => help,
        }
    }

    fn into_fault(self) -> Fault {
        let hint = self.hint();
        Fault::new("command line", self.why).hint(hint).usage()
    }
}

/// The message ends at the first blank line; tips and the usage follow.
fn first_paragraph(rendered: &str) -> String {
    let mut why = String::new();
    for line in rendered.lines().take_while(|line| !line.trim().is_empty()) {
        let line = line.trim();
        let values = line.strip_prefix("[possible values: ");
        match values.and_then(|rest| rest.strip_suffix(']')) {
            Some(values) => {
                why.push_str(": it is one of ");
                why.push_str(values);
            }
            None => {
                why.push_str(match why.chars().last() {
                    None => "",
                    Some(':') => " ",
                    Some(_) => ", ",
                });
                why.push_str(line);
            }
        }
    }
    why
}

fn suggestion(error: &clap::Error) -> Option<String> {
    let kinds = [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
    ];
    kinds.into_iter().find_map(|kind| match error.get(kind)? {
        ContextValue::String(word) => Some(word.clone()),
        ContextValue::Strings(words) => words.first().cloned(),
        _ => None,
    })
}

/// `nexusctl run` out of `Usage: nexusctl run [OPTIONS] …`.
fn command(rendered: &str, program: &str) -> String {
    let usage = rendered
        .lines()
        .find_map(|line| line.trim().strip_prefix("Usage: "));
    let words = usage.unwrap_or(program).split_whitespace();
    let plain = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let words: Vec<_> = words
        .take_while(plain)
        .take_while(|word| !word.starts_with('-'))
        .collect();
    if words.is_empty() {
        program.to_owned()
    } else {
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use clap::{Parser, ValueEnum};

    use super::*;

    #[derive(Debug, Clone, ValueEnum)]
    enum Colour {
        Red,
        Green,
    }

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        sources: SourceArgs,
        #[arg(long)]
        colour: Option<Colour>,
    }

    fn said(words: &[&str]) -> (String, String) {
        let args = ["nexus-test"].iter().chain(words);
        let error = Cli::try_parse_from(args).unwrap_err();
        let mistake = Mistake::of(&error, "nexus-test").unwrap();
        (mistake.why.clone(), mistake.hint())
    }

    #[test]
    fn a_mistake_is_one_line_and_a_hint() {
        let (why, hint) = said(&["--sate-dir", "x"]);
        assert_eq!(why, "unexpected argument '--sate-dir' found");
        assert_eq!(hint, "did you mean `--state-dir`? see `nexus-test --help`");
        let (why, _) = said(&["--colour", "blue"]);
        assert_eq!(
            why,
            "invalid value 'blue' for '--colour <COLOUR>': it is one of red, green"
        );
        let (why, _) = said(&["--set", "shards"]);
        assert!(why.ends_with("expected KEY=VALUE"), "{why}");
        let help = Cli::try_parse_from(["nexus-test", "--help"]).unwrap_err();
        assert_eq!(Mistake::of(&help, "nexus-test"), None);
    }
}
