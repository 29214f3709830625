//! What Google's clients ask for off line.
