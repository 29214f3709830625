//! The seam to what knows which revisions exist.
