//! Messages in the source, checked without running the code that writes them.

use std::fs;
use std::path::{Path, PathBuf};

/// A string literal that lacks the `\` at the end of a line carries the indentation of the next
/// line. `rustfmt` leaves two spaces in a row nowhere but in literals and comments.
#[test]
fn no_message_has_two_spaces_in_a_row() {
    let mut found = Vec::new();
    for path in sources(Path::new("src")) {
        // The tables and examples of the command line are aligned by spaces.
        if path.starts_with("src/cli") || path.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // Unit tests stand last, and quote the messages of others.
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in (1..).zip(code.lines()) {
            let line = line.trim();
            if !line.starts_with("//") && line.contains("  ") {
                found.push(format!("{}:{number}: {line}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "two spaces in a row:\n{}", found.join("\n"));
}

/// All files of Rust in a folder and in those below.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(self::sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
    sources
}
