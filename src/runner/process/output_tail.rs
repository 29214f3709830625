//! The last lines that a child printed, as plain text for an event.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// How many lines: enough for a Python traceback with what led to it.
const LINES: usize = 80;
/// How many bytes are read: an event has a limited size.
const BYTES: u64 = 64 * 1024;

/// The last lines of two files, of which the older one may be missing, each with its line feed.
/// Control characters and escape sequences are removed; bytes that are not UTF-8 are replaced.
pub(super) fn output_tail(newer: &Path, older: &Path) -> Vec<String> {
    // An unreadable file must not hide the end of the run.
    let (mut text, mut truncated) = end_of(newer, BYTES).unwrap_or_default();
    let remaining = BYTES - text.len() as u64;
    if remaining > 0 && !truncated {
        let (mut before, before_truncated) = end_of(older, remaining).unwrap_or_default();
        before.append(&mut text);
        (text, truncated) = (before, before_truncated);
    }
    last_lines(&text, truncated)
}

/// At most `limit` bytes from the end of a file, and whether there were more.
fn end_of(path: &Path, limit: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(limit);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok((bytes, start > 0))
}

/// The last lines of a text. Where its beginning is `truncated`, its first line is left out.
fn last_lines(text: &[u8], truncated: bool) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let mut lines: Vec<&str> = text.lines().collect();
    if truncated && lines.len() > 1 {
        lines.remove(0);
    }
    let first = lines.len().saturating_sub(LINES);
    lines[first..].iter().map(|line| plain(line)).collect()
}

/// A line as a terminal without colours would show it, with its line feed.
fn plain(line: &str) -> String {
    // A progress bar returns to the start of its line: only its last state is visible.
    let shown = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
    let mut plain = String::with_capacity(shown.len() + 1);
    let mut characters = shown.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' && characters.next_if_eq(&'[').is_some() {
            // An escape sequence, up to the letter that ends it.
            while characters.next().is_some_and(|part| !matches!(part, '@'..='~')) {}
        } else if character == '\t' || !character.is_control() {
            plain.push(character);
        }
    }
    plain.push('\n');
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_last_eighty_lines() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let lines = last_lines(text.as_bytes(), false);
        assert_eq!(lines.len(), 80);
        assert_eq!((&*lines[0], &*lines[79]), ("line 20\n", "line 99\n"));
    }

    #[test]
    fn control_characters_and_escape_sequences_are_removed() {
        for (text, line) in [
            (&b"no line feed"[..], "no line feed\n"),
            (b"dos\r\n", "dos\n"),
            (b"a\tb\x00\x07c", "a\tbc\n"),
            (b"\x1b[1;31mred\x1b[0m", "red\n"),
            (b" 10%\r 50%\r100%", "100%\n"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}\n"),
            (b"\x1b", "\n"),
            (b"\x1b[31", "\n"),
        ] {
            assert_eq!(last_lines(text, false), [line]);
        }
        assert!(last_lines(b"", false).is_empty());
    }

    #[test]
    fn a_truncated_line_is_left_out_unless_it_is_the_only_one() {
        assert_eq!(last_lines(b"lf\nnext\n", true), ["next\n"]);
        assert_eq!(last_lines(b"lf", true), ["lf\n"]);
    }

    #[test]
    fn the_older_file_fills_up_the_tail() {
        let folder = tempfile::tempdir().unwrap();
        let (newer, older) = (folder.path().join("newer"), folder.path().join("older"));
        assert!(output_tail(&newer, &older).is_empty());

        std::fs::write(&older, "one\ntw").unwrap();
        std::fs::write(&newer, "o\nthree\n").unwrap();
        assert_eq!(output_tail(&newer, &older), ["one\n", "two\n", "three\n"]);

        let long = "x".repeat(1000) + "\n";
        std::fs::write(&newer, long.repeat(100)).unwrap();
        let lines = output_tail(&newer, &older);
        assert_eq!(lines.len(), 65);
        assert!(lines.iter().all(|line| *line == long));
    }
}
