//! Google Pub/Sub in one process.
