//! One test binary for everything that needs no Python.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]

mod api_server;
mod cancellation;
mod dependency_rules;
mod emulator;
mod gauge;
mod local;
mod messages;
mod monitor;
mod outage;
mod pipeline;
mod program;
mod replicas;
mod runner_calls;
mod runner_contract;
mod runner_kubernetes;
mod runner_process;
mod serve;
mod sharing;
mod store_contract;
mod view;
mod web_page;
