//! The Pub/Sub emulator over the wire.
//!
//! Streams and publishing go through Google's own client, and so does administration in `rest`. It
//! has no unary `Pull`, so that, and what needs a gRPC call by itself, goes through a generated
//! client.
#![expect(clippy::unwrap_used, reason = "a test's helpers are part of the test")]

mod filters;
mod names;
mod ordering;
mod pull;
mod refusals;
mod rest;
mod server;
mod streams;
mod world;
