//! Output to stdout and stderr. No other module prints.

use std::fmt::Write as _;
use std::io::{self, Write};

/// Writes one line to stderr. A closed stderr is no error.
pub(super) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes one line to stdout.
pub(super) fn answer(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Names and values, one pair a line, aligned.
pub(super) fn block(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "  {name:width$}  {value}");
    }
    text.truncate(text.trim_end().len());
    text
}

/// Escapes the control characters of untrusted text, which could steer the terminal. Line feeds and
/// tabs stay.
pub(super) fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => safe.push(character),
            _ if character.is_control() => safe.extend(character.escape_default()),
            _ => safe.push(character),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(safe("a\tb\n\x1b[31mred\r\u{9b}"), "a\tb\n\\u{1b}[31mred\\r\\u{9b}");
    }

    #[test]
    fn a_block_is_aligned() {
        let block = block(&[("a", "1".into()), ("long", "2".into())]);
        assert_eq!(block, "  a     1\n  long  2");
    }
}
