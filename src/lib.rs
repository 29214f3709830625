//! `twined`: the event handler and autoscaler of an Octue Twined service network.
//!
//! The path of a message, which is also the order in which to read the modules:
//!
//! ```text
//!           ┌──────────────────────── Pub/Sub topic ◄──────────────────────┐
//!           │ StreamingPull                                                │ publish
//!           ▼                                                              │
//!    subscriber ──Delivery──► pipeline ──Event──► EventLog.append          │
//!       ▲                        │                                         │
//!       │ ack / nack             └──Question──► Runner.launch / cancel     │
//!       └──────── Receipt ◄──────┘                  │                      │
//!                                              run states                  │
//!                                                   └────────► monitor ────┘
//!                                                     exception, heartbeat
//! ```

// The domain, without I/O.
pub mod event;
// The interfaces, each with its adapters.
pub mod pubsub;
pub mod store;
pub mod runner;
pub mod registry;
// The work.
pub mod dependencies;
pub mod cancellations;
mod notifications;
pub mod routing;
pub mod pipeline;
pub mod monitor;
mod http;
// The roots: they choose the adapters, and may use every module.
pub mod config;
mod daemon;
mod local;
mod serve;
pub mod cli;
// What the SDK needs.
mod sdk;
// Tools: they use no other module.
pub mod google;
mod request_guard;
pub mod tasks;
mod private_path;
mod telemetry;
mod chain;
mod retry;
mod dotenv;
mod locked_folder;
mod preflight;
