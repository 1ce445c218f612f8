//! Every command of a program: what `--help` says of it.

use std::fmt::Write as _;

use clap::Command;

use crate::Program;

pub(super) fn page(program: &Program) -> String {
    let mut command = program.command.clone().disable_help_subcommand(true);
    command.build();
    let mut out = format!(
        "# {}\n\nWhat `{0} --help` says, and the same of each command.\n",
        program.name
    );
    push(&command, program.name, &mut out);
    out
}

fn push(command: &Command, words: &str, out: &mut String) {
    let help = command.clone().bin_name(words).render_long_help();
    let help = help.to_string();
    let lines: Vec<_> = help.trim_end().lines().map(str::trim_end).collect();
    let _always_fits = write!(out, "\n## {words}\n\n```text\n{}\n```\n", lines.join("\n"));
    for beneath in command.get_subcommands() {
        if !beneath.is_hide_set() {
            push(beneath, &format!("{words} {}", beneath.get_name()), out);
        }
    }
}
