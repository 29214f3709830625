//! Runs what the command line says.

use std::process::ExitCode;

fn main() -> ExitCode {
    twined::cli::run()
}
