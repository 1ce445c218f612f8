//! The collector's program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nexus_collector::main()
}
