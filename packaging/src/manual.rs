//! Manual pages: one of each program and command, and one of each configuration file. They say what `--help` and
//! `config --defaults` say, since they are made of the same.

use std::path::Path;

use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};
use nexus_runtime::{
    fault::{Doing as _, Outcome},
    settings,
};

use crate::{Program, Settings};

const MANUAL: &str = "Nexus";

pub(crate) fn write(program: &Program, out: &Path) -> Outcome {
    // `nexusctl help run` is `nexusctl run --help`: no page of its own.
    let mut command = program.command.clone().disable_help_subcommand(true);
    command.build();
    if let Some(settings) = &program.settings {
        let page = settings_page(program, settings);
        crate::write(&out.join(format!("{}.toml.5", program.name)), page)?;
    }
    write_pages(program, &command, out)
}

/// Of a command and all beneath it.
fn write_pages(program: &Program, command: &Command, out: &Path) -> Outcome {
    for beneath in command.get_subcommands() {
        write_pages(program, beneath, out)?;
    }
    let man = Man::new(command.clone())
        .section(program.section)
        .source(source())
        .manual(MANUAL);
    let mut page = Vec::new();
    man.render(&mut page).doing("write a manual page")?;
    page.extend_from_slice(see_also(program, command).as_bytes());
    crate::write(&out.join(man.get_filename()), page)
}

fn see_also(program: &Program, command: &Command) -> String {
    let mut pages: Vec<(String, &str)> = Vec::new();
    if command.get_name() == program.name {
        if program.settings.is_some() {
            pages.push((format!("{}.toml", program.name), "5"));
        }
    } else {
        pages.push((program.name.to_owned(), program.section));
    }
    for other in crate::programs() {
        if other.name != program.name {
            pages.push((other.name.to_owned(), other.section));
        }
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (name, section) in pages {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.push(bold(name));
        line.push(roman(format!("({section})")));
    }
    roff.text(line);
    roff.to_roff()
}

fn source() -> String {
    format!("nexus {}", env!("CARGO_PKG_VERSION"))
}

fn settings_page(program: &Program, settings: &Settings) -> String {
    let title = format!("{}.toml", program.name);
    let mut roff = Roff::new();
    roff.control("TH", [title.as_str(), "5", "", &source(), MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!(
        "{title} - configuration of {}",
        program.name
    ))]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([italic(settings.file)]);
    roff.control("br", []);
    roff.text([italic(format!("{}.d/*.toml", settings.file))]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "A TOML file, and a folder of such files whose values come after it, in the order of their names. \
         A key that stands nowhere has its default. A variable of the environment goes before all files, and a \
         flag before everything.",
    )]);
    roff.control("PP", []);
    roff.text([
        bold(format!("{} check-config", program.name)),
        roman(" finds every mistake at once, with file, line and key; "),
        bold(format!("{} config", program.name)),
        roman(" prints what is in force."),
    ]);
    roff.control("SH", ["KEYS"]);
    for key in settings.keys {
        roff.control("TP", []);
        roff.text([bold(key.name), roman(" = "), italic(shown(key.default))]);
        roff.text([roman(settings::describe(key))]);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    roff.text([
        roman("Each key can be set by a variable: "),
        bold("log.format"),
        roman(" by "),
        bold(format!("{}_LOG_FORMAT", settings.env_prefix)),
        roman(". "),
        bold("NEXUS_LOG"),
        roman(" filters the log."),
    ]);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(program.name), roman(format!("({})", program.section))]);
    roff.render()
}

fn shown(default: &str) -> &str {
    if default.is_empty() { "\"\"" } else { default }
}
