//! What packages hold besides the programs, made from the code: manual pages, completions, licences. No part of any
//! package itself, so that none of this weighs on the programs.
//!
//! ```text
//! OUT/man/PROGRAM[-COMMAND].SECTION     OUT/completions/{bash,zsh,fish}/FILE     OUT/licences/PROGRAM
//! ```
//!
//! And the pages in `docs/reference/`, which are kept in the repository: `--reference docs/reference`.

mod completions;
mod licences;
mod manual;
mod reference;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser};
use nexus_runtime::{
    command_line::{self, Ending},
    fault::{Doing as _, Outcome},
    settings::Key,
};

/// Makes what packages hold besides the programs.
#[derive(Debug, Parser)]
#[command(name = "nexus-packaging", version)]
struct Cli {
    /// The folder to put it in
    #[arg(value_name = "OUT", required_unless_present = "reference")]
    out: Option<PathBuf>,
    /// Writes the pages of the reference into this folder
    #[arg(long, value_name = "DIR")]
    reference: Option<PathBuf>,
}

/// A program as its package describes it.
struct Program {
    name: &'static str,
    /// Of the manual: 1 for everybody's commands, 8 for administrators' and daemons.
    section: &'static str,
    command: clap::Command,
    settings: Option<Settings>,
}

/// Of a program with a configuration file.
struct Settings {
    file: &'static str,
    env_prefix: &'static str,
    keys: &'static [Key],
}

fn programs() -> [Program; 3] {
    [
        Program {
            name: "nexus-agent",
            section: "8",
            command: nexus_agent::cli::command(),
            settings: Some(Settings {
                file: nexus_agent::config::FILE,
                env_prefix: nexus_agent::config::ENV_PREFIX,
                keys: nexus_agent::config::KEYS,
            }),
        },
        Program {
            name: "nexus-collector",
            section: "8",
            command: nexus_collector::command(),
            settings: Some(Settings {
                file: nexus_collector::config::FILE,
                env_prefix: nexus_collector::config::ENV_PREFIX,
                keys: nexus_collector::config::KEYS,
            }),
        },
        Program {
            name: "nexusctl",
            section: "1",
            command: nexusctl::cli::Cli::command(),
            settings: None,
        },
    ]
}

fn main() -> ExitCode {
    command_line::finish("nexus-packaging", run(std::env::args_os()))
}

fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), Ending> {
    let cli = Cli::try_parse_from(args).map_err(Ending::Clap)?;
    if let Some(folder) = cli.reference {
        reference::write(&folder)?;
    }
    let Some(out) = cli.out else { return Ok(()) };
    for program in programs() {
        manual::write(&program, &out.join("man"))?;
        completions::write(&program, &out.join("completions"))?;
        let licences = licences::of(program.name)?;
        write(&out.join("licences").join(program.name), licences)?;
    }
    Ok(())
}

/// With the folders above it.
fn write(path: &Path, content: impl AsRef<[u8]>) -> Outcome {
    let what = || format!("write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).doing(what())?;
    }
    fs::write(path, content).doing(what())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page_and_every_program_its_completions() {
        let out = tempfile::tempdir().unwrap();
        for program in programs() {
            manual::write(&program, &out.path().join("man")).unwrap();
            completions::write(&program, &out.path().join("completions")).unwrap();
        }
        for program in programs() {
            for command in program.command.get_subcommands() {
                let (name, command) = (program.name, command.get_name());
                let page = format!("man/{name}-{command}.{}", program.section);
                assert!(out.path().join(&page).exists(), "{page}");
                for file in [
                    format!("bash/{name}"),
                    format!("zsh/_{name}"),
                    format!("fish/{name}.fish"),
                ] {
                    let script = out.path().join("completions").join(&file);
                    let script = fs::read_to_string(script).unwrap();
                    assert!(script.contains(command), "{command} in {file}");
                }
            }
        }
        let read = |path: &str| fs::read_to_string(out.path().join(path)).unwrap();
        let page = read("man/nexusctl-token-create.1");
        assert!(page.contains("nexusctl\\-token\\-create"), "{page}");
        assert!(page.contains("How many nodes may join"), "{page}");
        let page = read("man/nexus-agent.8");
        assert!(page.contains("nexus\\-agent\\-enroll(8)"), "{page}");
        assert!(page.contains("nexus\\-agent.toml\\fR(5)"), "{page}");
        let page = read("man/nexus-agent.toml.5");
        for key in nexus_agent::config::KEYS {
            assert!(page.contains(key.name), "{} in {page}", key.name);
        }
        assert!(page.contains("NEXUS_AGENT_LOG_FORMAT"), "{page}");
        let sections = |page: &str| -> Vec<String> {
            let titles = page.lines().filter_map(|line| line.strip_prefix(".SH "));
            titles.map(|title| title.replace('"', "")).collect()
        };
        for program in programs() {
            let page = read(&format!("man/{}.{}", program.name, program.section));
            let titles = sections(&page);
            let last = ["EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO"];
            assert!(titles.ends_with(&last.map(str::to_owned)), "{titles:?}");
            assert_eq!(page.matches(".ie \\n(.g").count(), 1, "{page}");
        }
        let page = read("man/nexusctl.1");
        assert!(page.contains("\n\\fB130\\fR\n"), "{page}");
        for name in ["nexus-agent", "nexus-collector", "nexus-policy"] {
            let page = read(&format!("man/{name}.toml.5"));
            let titles = sections(&page);
            for title in ["KEYS", "FILES", "EXAMPLES", "SEE ALSO"] {
                assert!(titles.iter().any(|one| one == title), "{name}: {titles:?}");
            }
        }
        for file in ["bash/nexusctl", "zsh/_nexusctl", "fish/nexusctl.fish"] {
            assert!(
                read(&format!("completions/{file}")).contains("token"),
                "{file}"
            );
        }
        assert!(!out.path().join("man/nexusctl-help.1").exists());
    }
}
