//! `nexusctl completion SHELL`

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{
    cli::Cli,
    fault::Outcome,
    output::{broken, stdout},
};

pub(crate) fn completion(shell: Shell) -> Outcome {
    use std::io::Write as _;

    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nexusctl", &mut script);
    let mut out = stdout();
    out.write_all(&script)
        .and_then(|()| out.flush())
        .map_err(broken)
}
