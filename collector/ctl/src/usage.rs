//! What clap says of a command line, in our form: one `error:` line and a `hint:`.

use std::ffi::OsString;

use clap::{
    CommandFactory as _,
    error::{ContextKind, ContextValue, ErrorKind},
};
use nexus_runtime::command_line::Mistake;

use crate::{
    cli::Cli,
    fault::{Exit, Fault, Outcome},
    output,
};

/// Help and version are answers; anything else is a fault of exit code 2.
pub(crate) fn explain(error: &clap::Error, args: &[OsString]) -> Outcome<Exit> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::line(error.render().to_string().trim_end())?;
            Ok(Exit::Success)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let help = error.render().to_string();
            help.trim_end().lines().for_each(crate::terminal::say);
            Ok(Exit::Usage)
        }
        _ => Err(match Mistake::of(error, "nexusctl") {
            Some(mistake) => fault(error, mistake, args),
            None => Fault::usage("command line", error),
        }),
    }
}

fn fault(error: &clap::Error, mut mistake: Mistake, args: &[OsString]) -> Fault {
    // A value that is not understood comes without the usage of its command.
    if mistake.command == "nexusctl" {
        mistake.command = command(args);
    }
    let hint = if mistake.command == "nexusctl run" && is_bare_word(error) {
        "put the command after `--`: nexusctl run --all -- uname -r".to_owned()
    } else {
        mistake.hint()
    };
    Fault::usage("command line", mistake.why.clone()).hint(hint)
}

/// `nexusctl token create` out of a command line.
fn command(args: &[OsString]) -> String {
    let mut path = "nexusctl".to_owned();
    let root = Cli::command();
    let mut at = &root;
    let words = args.iter().skip(1).take_while(|word| *word != "--");
    for next in words.filter_map(|word| word.to_str()) {
        if let Some(found) = at.find_subcommand(next) {
            path = format!("{path} {next}");
            at = found;
        }
    }
    path
}

/// An argument that is no flag: in `run` it is the beginning of the command.
fn is_bare_word(error: &clap::Error) -> bool {
    let unknown = error.kind() == ErrorKind::UnknownArgument;
    let word = error.get(ContextKind::InvalidArg);
    unknown && matches!(word, Some(ContextValue::String(word)) if !word.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn said(words: &[&str]) -> (String, Option<String>) {
        let args = ["nexusctl"].iter().chain(words);
        let args: Vec<_> = args.map(OsString::from).collect();
        let fault = explain(&Cli::try_parse_from(&args).unwrap_err(), &args).unwrap_err();
        assert_eq!(fault.exit, Exit::Usage);
        (fault.to_string(), fault.hint)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_line_with_a_hint() {
        let (error, hint) = said(&["get", "nodes", "--limt", "3"]);
        assert_eq!(error, "command line: unexpected argument '--limt' found");
        assert_eq!(
            hint.unwrap(),
            "did you mean `--limit`? see `nexusctl get --help`"
        );

        let (error, hint) = said(&["quer"]);
        assert_eq!(error, "command line: unrecognized subcommand 'quer'");
        assert!(hint.unwrap().starts_with("did you mean `query`?"));

        let (_, hint) = said(&["run", "--all", "uname"]);
        assert!(hint.unwrap().starts_with("put the command after `--`"));
        let (error, _) = said(&["query"]);
        assert!(error.contains("were not provided: <SQL>"), "{error}");
        let (error, _) = said(&["run", "--all", "--timeout", "soon", "--", "true"]);
        assert!(error.contains("no span of time"), "{error}");
        assert!(!error.contains('\n'));
        let (error, _) = said(&["run", "--all", "--nodes", "a", "--", "true"]);
        assert!(error.contains("cannot be used with"), "{error}");
    }

    #[test]
    fn a_wrong_number_is_named_with_the_command_it_was_for() {
        let wrong = |words: &[&str], error: &str, command: &str| {
            let (said, hint) = said(words);
            assert!(said.ends_with(error), "{said}");
            assert_eq!(hint.unwrap(), format!("see `{command} --help`"));
        };
        let least = "`0` is no whole number from 1 to 4294967295";
        wrong(
            &["token", "create", "--uses", "0"],
            least,
            "nexusctl token create",
        );
        let words = "`x` is no whole number from 1 to 4294967295";
        wrong(&["get", "nodes", "--limit", "x"], words, "nexusctl get");
        let words = "`x` is no whole number from 1 to 1000";
        wrong(&["demo", "--agents", "x"], words, "nexusctl demo");
        let words = "`-1` is no whole number from 1 to 18446744073709551615";
        wrong(
            &["query", "SELECT 1", "--limit=-1"],
            words,
            "nexusctl query",
        );
    }
}
