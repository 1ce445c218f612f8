//! What clap says of a command line, in our form: one `error:` line and a `hint:`.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use nexus_runtime::command_line::Mistake;

use crate::{
    fault::{Exit, Fault, Outcome},
    output,
};

/// Help and version are answers; anything else is a fault of exit code 2.
pub(crate) fn explain(error: &clap::Error) -> Outcome<Exit> {
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
            Some(mistake) => fault(error, &mistake),
            None => Fault::usage("command line", error),
        }),
    }
}

fn fault(error: &clap::Error, mistake: &Mistake) -> Fault {
    let hint = if mistake.command == "nexusctl run" && is_bare_word(error) {
        "put the command after `--`: nexusctl run --all -- uname -r".to_owned()
    } else {
        mistake.hint()
    };
    Fault::usage("command line", mistake.why.clone()).hint(hint)
}

/// An argument that is no flag: in `run` it is the beginning of the command.
fn is_bare_word(error: &clap::Error) -> bool {
    let unknown = error.kind() == ErrorKind::UnknownArgument;
    let word = error.get(ContextKind::InvalidArg);
    unknown && matches!(word, Some(ContextValue::String(word)) if !word.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::Cli;

    fn said(words: &[&str]) -> (String, Option<String>) {
        let args = ["nexusctl"].iter().chain(words);
        let fault = explain(&Cli::try_parse_from(args).unwrap_err()).unwrap_err();
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
}
