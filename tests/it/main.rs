//! One test binary for everything that needs no Python.

mod emulator;
mod store_contract;
