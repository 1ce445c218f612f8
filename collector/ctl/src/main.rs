//! `nexusctl`

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(nexusctl::main(std::env::args_os()))
}
