//! The Python that an SDK finds first: `PYTHONPATH` begins with the folder of these files.
//!
//! No file of the SDK is changed. A hook of Python's imports changes what it does: offline, without
//! the JSON schemas that it would download; and with a question that no argument holds.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file: its name and its text.
pub type File = (&'static str, &'static str);

const HOOK: File = ("twined_hook.py", include_str!("shim/twined_hook.py"));
const QUESTION: File = ("twined_question.py", include_str!("shim/twined_question.py"));

/// The shim of a machine without a network. What the last file imports comes before it.
const OFFLINE: [File; 3] =
    [HOOK, QUESTION, ("sitecustomize.py", include_str!("shim/sitecustomize.py"))];

/// The shim that is mounted beside a question. `start.py` puts its folder on the path of the command
/// that follows it, because Kubernetes cannot put anything before the `PYTHONPATH` of an image.
pub const MOUNTED: [File; 4] = [
    (START, include_str!("shim/mounted/start.py")),
    ("sitecustomize.py", include_str!("shim/mounted/sitecustomize.py")),
    HOOK,
    QUESTION,
];

/// The name of the file in [`MOUNTED`] that starts a command.
pub const START: &str = "start.py";

/// Writes the offline shim of this version into `folder`.
pub fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, text) in OFFLINE {
        // Processes of an earlier network may read the file now: replace it as a whole.
        let new = folder.join(format!("{name}.new"));
        fs::write(&new, text)?;
        fs::rename(new, folder.join(name))?;
    }
    Ok(())
}

/// Whether `folder` holds the offline shim of this version, and nobody else could have written it.
/// What is on `PYTHONPATH` runs in every Python that is started there.
pub fn is_own(folder: &Path) -> io::Result<bool> {
    let private = |path: &Path| {
        let metadata = fs::metadata(path)?;
        let owner = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
        io::Result::Ok(owner && metadata.mode() & 0o002 == 0)
    };
    let mut found = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Python keeps compiled files there, and trusts them by the time of their source.
        if entry.file_name() == "__pycache__" && private(&entry.path())? {
            continue;
        }
        let expected = OFFLINE.iter().find(|(name, _)| entry.file_name() == *name);
        let same = match expected {
            Some((_, text)) => fs::read(entry.path())? == text.as_bytes(),
            None => false,
        };
        if !same || !private(&entry.path())? {
            return Ok(false);
        }
        found += 1;
    }
    Ok(found == OFFLINE.len() && private(folder)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_shim_is_our_own_while_nobody_else_can_have_written_it() {
        let root = tempfile::tempdir().unwrap();
        let shim = root.path().join("shim");
        write(&shim).unwrap();
        fs::create_dir(shim.join("__pycache__")).unwrap();
        assert!(is_own(&shim).unwrap());

        let added = shim.join("usercustomize.py");
        fs::write(&added, "").unwrap();
        assert!(!is_own(&shim).unwrap());
        fs::remove_file(added).unwrap();

        let writable = |mode| fs::set_permissions(&shim, fs::Permissions::from_mode(mode));
        writable(0o777).unwrap();
        assert!(!is_own(&shim).unwrap());
        writable(0o775).unwrap();
        assert!(is_own(&shim).unwrap());

        fs::write(shim.join(OFFLINE[0].0), "import os").unwrap();
        assert!(!is_own(&shim).unwrap());
        fs::remove_file(shim.join(OFFLINE[0].0)).unwrap();
        assert!(!is_own(&shim).unwrap());
        assert!(is_own(&shim.join("nowhere")).is_err());
    }
}
