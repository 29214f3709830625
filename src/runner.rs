//! The seam to what runs questions.
