//! One test binary for everything that needs no Python.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]

mod emulator;
mod runner_contract;
mod runner_process;
mod store_contract;
