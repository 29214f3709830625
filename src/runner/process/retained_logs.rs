//! The output of settled runs, retained for people as `<run>.log`: that of the last hundred.

use crate::event::RunId;
use crate::runner::process::run_folder::{RunFolder, absent_as_none, make_private, run_from_name};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How many logs are retained: of 16 MiB each at most.
const MAX_LOGS: usize = 100;

/// Moves a run's output to the folder of logs, and removes the oldest logs. Idempotent.
pub(super) fn retain(logs: &Path, run: RunId, folder: &RunFolder) -> io::Result<()> {
    let (newer, older) = folder.outputs();
    make_private(logs)?;
    if older.exists() && newer.exists() {
        let mut all = OpenOptions::new().append(true).open(&older)?;
        io::copy(&mut File::open(&newer)?, &mut all)?;
        fs::remove_file(&newer)?;
    }
    let output = if older.exists() { older } else { newer };
    absent_as_none(fs::rename(output, logs.join(format!("{run}.log"))))?;
    prune(logs)
}

fn prune(logs: &Path) -> io::Result<()> {
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(logs)? {
        let entry = entry?;
        let name = entry.file_name();
        let run = name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(run_from_name);
        // Other files in the folder are not removed.
        if run.is_some()
            && let Some(metadata) = absent_as_none(entry.metadata())?
        {
            found.push((metadata.modified()?, entry.path()));
        }
    }
    found.sort_unstable();
    let surplus = found.len().saturating_sub(MAX_LOGS);
    for (_, path) in &found[..surplus] {
        absent_as_none(fs::remove_file(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};
    use uuid::Uuid;

    fn run(number: u128) -> RunId {
        RunId { question: Uuid::from_u128(number), retry: 0 }
    }

    #[test]
    fn all_output_is_retained_once() {
        let data = tempfile::tempdir().unwrap();
        let logs = data.path().join("logs");
        let folder = RunFolder::new(data.path(), run(1));
        fs::create_dir(folder.path()).unwrap();
        retain(&logs, run(1), &folder).unwrap();
        assert_eq!(fs::read_dir(&logs).unwrap().count(), 0);

        let (newer, older) = folder.outputs();
        fs::write(older, "one\n").unwrap();
        fs::write(newer, "two\n").unwrap();
        retain(&logs, run(1), &folder).unwrap();
        retain(&logs, run(1), &folder).unwrap();

        let log = logs.join(format!("{}.log", run(1)));
        assert_eq!(fs::read_to_string(log).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn the_oldest_logs_are_removed_and_other_files_stay() {
        let logs = tempfile::tempdir().unwrap();
        for number in 0..105 {
            let log = File::create(logs.path().join(format!("{}.log", run(number)))).unwrap();
            let age = Duration::from_secs(1000 + u64::try_from(number).unwrap());
            log.set_modified(UNIX_EPOCH + age).unwrap();
        }
        File::create(logs.path().join("notes.log")).unwrap();

        prune(logs.path()).unwrap();

        assert_eq!(fs::read_dir(logs.path()).unwrap().count(), 101);
        assert!(!logs.path().join(format!("{}.log", run(4))).exists());
        assert!(logs.path().join(format!("{}.log", run(5))).exists());
    }
}
