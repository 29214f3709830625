//! Messages on the wire: Google Pub/Sub, and an emulator of it.
pub mod emulator;
