//! The agent's program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nexus_agent::cli::main()
}
