//! What clap says of a command line, in our form: one `error:` line and a `hint:`.

use clap::error::{ContextKind, ContextValue, ErrorKind};

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
            crate::terminal::say(error.render().to_string().trim_end());
            Ok(Exit::Usage)
        }
        _ => Err(fault(error)),
    }
}

fn fault(error: &clap::Error) -> Fault {
    let rendered = error.render().to_string();
    let rendered = rendered.strip_prefix("error: ").unwrap_or(&rendered);
    // The message ends at the first blank line; tips and the usage follow.
    let mut why = String::new();
    for line in rendered.lines().take_while(|line| !line.trim().is_empty()) {
        let glue = if why.is_empty() || why.ends_with(':') {
            " "
        } else {
            ", "
        };
        why.push_str(if why.is_empty() { "" } else { glue });
        why.push_str(line.trim());
    }
    let program = usage_of(rendered);
    let help = format!("see `{program} --help`");
    let hint = match suggestion(error) {
        _ if program == "nexusctl run" && is_bare_word(error) => {
            "put the command after `--`: nexusctl run --all -- uname -r".to_owned()
        }
        Some(words) => format!("did you mean `{words}`? {help}"),
        None => help,
    };
    Fault::usage("command line", why).hint(hint)
}

/// An argument that is no flag: in `run` it is the beginning of the command.
fn is_bare_word(error: &clap::Error) -> bool {
    let unknown = error.kind() == ErrorKind::UnknownArgument;
    let word = error.get(ContextKind::InvalidArg);
    unknown && matches!(word, Some(ContextValue::String(word)) if !word.starts_with('-'))
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
fn usage_of(rendered: &str) -> String {
    let usage = rendered
        .lines()
        .find_map(|line| line.trim().strip_prefix("Usage: "));
    let words = usage.unwrap_or("nexusctl").split_whitespace();
    let plain = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let words: Vec<_> = words
        .take_while(plain)
        .take_while(|word| !word.starts_with('-'))
        .collect();
    if words.is_empty() {
        "nexusctl".to_owned()
    } else {
        words.join(" ")
    }
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
