//! Formats an error with all its causes.

use std::error::Error;
use std::fmt;

/// An error and its causes, joined by colons. Our own errors do not repeat the text of their
/// source.
#[derive(Clone, Copy)]
pub(crate) struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
