//! The seam to what keeps every event.
