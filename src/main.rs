//! Parses the command line and runs it.

use std::process::ExitCode;
use twined::runner::process;

fn main() -> ExitCode {
    // Before anything else: one of these is in memory for each run.
    if let Some(folder) = process::supervisor_folder(std::env::args_os()) {
        return process::supervise(&folder);
    }
    ExitCode::SUCCESS
}
