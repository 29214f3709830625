//! What a child prints, kept for the person: the last of it, so that no child fills the disk.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;

/// How much a file holds. There are two, the older of which goes when the newer is full: so the
/// last 8 MiB are always there, and never more than 16 MiB.
const FILE_BYTES: u64 = 8 * 1024 * 1024;

/// The files that keep a child's output.
#[derive(Debug)]
pub struct Output {
    newer: PathBuf,
    older: PathBuf,
    file: Option<File>,
    written: u64,
    limit: u64,
}

// === impl Output ===

impl Output {
    /// Nothing yet.
    pub fn new(newer: PathBuf, older: PathBuf) -> Self {
        let file = File::create(&newer).ok();
        Self { newer, older, file, written: 0, limit: FILE_BYTES }
    }

    /// Keeps all that comes, until there is no more.
    pub fn keep(&mut self, mut from: impl Read) {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => self.write(&buffer[..length]),
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// A full disk costs the text, and not the child, which would wait for ever for us to read.
    fn write(&mut self, bytes: &[u8]) {
        if self.written + bytes.len() as u64 > self.limit
            && fs::rename(&self.newer, &self.older).is_ok()
        {
            self.file = File::create(&self.newer).ok();
            self.written = 0;
        }
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.written += bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_is_kept_and_the_first_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (newer, older) = (folder.path().join("newer"), folder.path().join("older"));
        let mut output = Output { limit: 4, ..Output::new(newer.clone(), older.clone()) };

        output.keep(&b"ab"[..]);
        output.keep(&b"cd"[..]);
        assert_eq!(fs::read(&newer).unwrap(), b"abcd");
        assert!(!older.exists());

        output.keep(&b"efg"[..]);
        output.keep(&b"hi"[..]);
        assert_eq!(
            (fs::read(&newer).unwrap(), fs::read(&older).unwrap()),
            ("hi".into(), "efg".into())
        );
    }
}
