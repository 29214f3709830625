//! The output of runs that are settled, kept for the person: `<run>.log`, of the last hundred.

use crate::event::RunId;
use crate::runner::process::folder::{Folder, absent_as_none, make_private, run_of};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// How many are kept: enough to find yesterday's, and at 16 MiB each no disk is filled.
const KEPT: usize = 100;

/// Moves a run's output to the folder of logs, and removes the oldest there. Safe to do again.
pub fn keep(logs: &Path, run: RunId, folder: &Folder) -> io::Result<()> {
    let (newer, older) = folder.outputs();
    make_private(logs)?;
    if older.exists() && newer.exists() {
        let mut all = OpenOptions::new().append(true).open(&older)?;
        io::copy(&mut File::open(&newer)?, &mut all)?;
        fs::remove_file(&newer)?;
    }
    let whole = if older.exists() { older } else { newer };
    absent_as_none(fs::rename(whole, logs.join(format!("{run}.log"))))?;
    prune(logs)
}

fn prune(logs: &Path) -> io::Result<()> {
    let mut kept: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(logs)? {
        let entry = entry?;
        let name = entry.file_name();
        // Only what we made is ours to remove.
        let ours = name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(run_of);
        if ours.is_some()
            && let Some(metadata) = absent_as_none(entry.metadata())?
        {
            kept.push((metadata.modified()?, entry.path()));
        }
    }
    kept.sort_unstable();
    let surplus = kept.len().saturating_sub(KEPT);
    for (_, path) in &kept[..surplus] {
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
    fn output_is_kept_whole_and_once() {
        let data = tempfile::tempdir().unwrap();
        let logs = data.path().join("logs");
        let folder = Folder::of(data.path(), run(1));
        fs::create_dir(folder.path()).unwrap();
        keep(&logs, run(1), &folder).unwrap();
        assert_eq!(fs::read_dir(&logs).unwrap().count(), 0);

        let (newer, older) = folder.outputs();
        fs::write(older, "one\n").unwrap();
        fs::write(newer, "two\n").unwrap();
        keep(&logs, run(1), &folder).unwrap();
        keep(&logs, run(1), &folder).unwrap();

        let log = logs.join(format!("{}.log", run(1)));
        assert_eq!(fs::read_to_string(log).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn the_oldest_go_and_what_is_not_ours_stays() {
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
