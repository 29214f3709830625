//! The tasks that live as long as the daemon.
