//! Run states become events.
