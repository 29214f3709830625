//! Questions as child processes.
