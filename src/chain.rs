//! Prints an error with all its causes.
