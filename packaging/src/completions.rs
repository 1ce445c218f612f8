//! Completions of a program for bash, zsh and fish, under the names those shells look for.

use std::path::Path;

use clap_complete::Shell;
use nexus_runtime::fault::Outcome;

use crate::Program;

pub(crate) fn write(program: &Program, out: &Path) -> Outcome {
    let name = program.name;
    let files = [
        (Shell::Bash, format!("bash/{name}")),
        (Shell::Zsh, format!("zsh/_{name}")),
        (Shell::Fish, format!("fish/{name}.fish")),
    ];
    for (shell, file) in files {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut program.command.clone(), name, &mut script);
        crate::write(&out.join(file), script)?;
    }
    Ok(())
}
