//! Manual pages: one of each program and command, one of each configuration file, and one of the machine's own policy. They
//! say what `--help` and `config --defaults` say, since they are made of the same, and what those have no room for.

mod examples;
mod policy;
mod section;

use std::path::Path;

use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};
use nexus_runtime::{
    fault::{Doing as _, Fault, Outcome},
    settings::{self, Kind},
};
use nexusctl::fault::Exit;

use self::section::Files;
use crate::{Program, Settings};

const MANUAL: &str = "Nexus";
const AGENT: &str = "nexus-agent";

pub(crate) fn write(program: &Program, out: &Path) -> Outcome {
    // `nexusctl help run` is `nexusctl run --help`: no page of its own.
    let mut command = program.command.clone().disable_help_subcommand(true);
    command.build();
    if let Some(settings) = &program.settings {
        let page = settings_page(program, settings);
        crate::write(&out.join(format!("{}.toml.5", program.name)), page)?;
        if program.name == AGENT {
            let page = policy::page(settings);
            crate::write(&out.join(format!("{}.5", policy::NAME)), page)?;
        }
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
    page.extend_from_slice(further(program, command).as_bytes());
    crate::write(&out.join(man.get_filename()), page)
}

/// What comes after all that clap has to say of a command.
fn further(program: &Program, command: &Command) -> String {
    let mut roff = Roff::new();
    if command.get_name() == program.name {
        section::exit_status(&mut roff, &exit_codes(program));
        section::files(&mut roff, &files(program));
        section::examples(&mut roff, &examples::of_program(program.name));
    }
    section::see_also(&mut roff, &related(program, command));
    // The page begins with what it says of apostrophes.
    let page = roff.render();
    let begin = Roff::new().render();
    page.strip_prefix(&begin).unwrap_or(&page).to_owned()
}

fn exit_codes(program: &Program) -> Vec<(u8, &'static str)> {
    if program.settings.is_none() {
        return Exit::ALL.map(|exit| (exit.code(), meaning(exit))).into();
    }
    let fault = || Fault::new("", "");
    vec![
        (0, "What was asked for was done."),
        (
            fault().exit_code(),
            match program.name {
                AGENT => {
                    "It was not. Of `status`: the agent does not run or has no session. Of `doctor`: something keeps it from working."
                }
                _ => "It was not.",
            },
        ),
        (
            fault().usage().exit_code(),
            "The command line or the configuration has a mistake in it.",
        ),
    ]
}

fn meaning(exit: Exit) -> &'static str {
    match exit {
        Exit::Success => "Everything that was asked for was done.",
        Exit::Error => "Something failed.",
        Exit::Usage => "The command line cannot be meant.",
        Exit::Targets => "The job has ended, and not every target succeeded.",
        Exit::Unreachable => "No collector can be reached.",
        Exit::Denied => "The collector says no.",
        Exit::TimedOut => {
            "The time to wait (`--timeout`, and `--wait` of `run`) was over. A job goes on."
        }
        Exit::Interrupted => "Interrupted. A job goes on.",
    }
}

fn files(program: &Program) -> Files {
    let mut files = Files::new();
    let mut add = |path: &str, about: &str| files.push((path.to_owned(), about.to_owned()));
    match &program.settings {
        Some(settings) => {
            add(
                settings.file,
                &format!("The configuration; see {}.toml(5).", program.name),
            );
            add(&format!("{}.d/*.toml", settings.file), "More of it.");
            for key in settings.keys {
                if matches!(key.kind, Kind::Path) && !key.default.is_empty() {
                    add(key.default, &format!("`{}`: {}.", key.name, key.about));
                }
            }
        }
        None => {
            add(
                "~/.config/nexus/client.toml",
                "Where the collector is. `--config` and `NEXUSCTL_CONFIG` name another file.",
            );
            add(
                "~/.config/nexus/operator/",
                "Beside that file: the operator's keys and certificate, the fleet's root certificate and signer policy, and the \
                 audit chain as it was seen last. Nobody else may read it.",
            );
        }
    }
    if program.name == AGENT {
        add(
            nexus_agent::identity::TOKEN_FILE,
            "A join token with which the machine enrols by itself; it is deleted once it has served.",
        );
    }
    files
}

/// The pages that are worth a look beside a command's.
fn related(program: &Program, command: &Command) -> Vec<(String, &'static str)> {
    let mut pages = Vec::new();
    if command.get_name() != program.name {
        pages.push((program.name.to_owned(), program.section));
    } else if program.settings.is_some() {
        pages.push((format!("{}.toml", program.name), "5"));
    }
    if program.name == AGENT {
        pages.push((policy::NAME.to_owned(), "5"));
    }
    for other in crate::programs() {
        if other.name != program.name {
            pages.push((other.name.to_owned(), other.section));
        }
    }
    pages
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
        let term = vec![bold(key.name), roman(" = "), italic(shown(key.default))];
        section::entry(&mut roff, term, &settings::describe(key));
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
    let files = vec![
        (
            settings.file.to_owned(),
            "The configuration. `--config` names another file.".to_owned(),
        ),
        (
            format!("{}.d/*.toml", settings.file),
            "Files beside it whose values come after its own.".to_owned(),
        ),
    ];
    section::files(&mut roff, &files);
    section::examples(&mut roff, &examples::of_settings(program.name));
    let mut pages = vec![(program.name.to_owned(), program.section)];
    if program.name == AGENT {
        pages.push((policy::NAME.to_owned(), "5"));
    }
    section::see_also(&mut roff, &pages);
    roff.render()
}

fn shown(default: &str) -> &str {
    if default.is_empty() { "\"\"" } else { default }
}
