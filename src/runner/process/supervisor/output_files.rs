//! The last output of a child, in files of a limited size.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;

/// The size of a file. There are two, and the older one is replaced when the newer one is full:
/// they hold the last 8 MiB at least, and 16 MiB at most.
const FILE_BYTES: u64 = 8 * 1024 * 1024;

/// The files of a child's output.
#[derive(Debug)]
pub(super) struct OutputFiles {
    newer: PathBuf,
    older: PathBuf,
    file: Option<File>,
    written: u64,
    limit: u64,
}

// === impl OutputFiles ===

impl OutputFiles {
    /// Creates the newer file.
    pub(super) fn new(newer: PathBuf, older: PathBuf) -> Self {
        let file = File::create(&newer).ok();
        Self { newer, older, file, written: 0, limit: FILE_BYTES }
    }

    /// Writes all output, until it ends.
    pub(super) fn write_all(&mut self, mut from: impl Read) {
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

    /// On a full disk the output is lost; the child goes on, as its output is still read.
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
    fn the_last_output_replaces_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let (newer, older) = (folder.path().join("newer"), folder.path().join("older"));
        let mut output = OutputFiles { limit: 4, ..OutputFiles::new(newer.clone(), older.clone()) };

        output.write_all(&b"ab"[..]);
        output.write_all(&b"cd"[..]);
        assert_eq!(fs::read(&newer).unwrap(), b"abcd");
        assert!(!older.exists());

        output.write_all(&b"efg"[..]);
        output.write_all(&b"hi"[..]);
        assert_eq!(
            (fs::read(&newer).unwrap(), fs::read(&older).unwrap()),
            ("hi".into(), "efg".into())
        );
    }
}
