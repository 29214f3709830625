//! One test binary for everything that needs no Python.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]

mod api_server;
mod dependency_rules;
mod emulator;
mod gauge;
mod helper;
mod local;
mod messages;
mod monitor;
mod outage;
mod pipeline;
mod program;
mod pubsub_google;
mod replicas;
mod runner_calls;
mod runner_contract;
mod runner_process;
mod serve;
mod sharing;
mod store_contract;
mod store_processes;
mod view;
mod web_page;
