//! The Python files of the shim, whose folder comes first in `PYTHONPATH`.
//!
//! No file of the SDK is changed. An import hook patches it: to work offline, without the JSON
//! schemas that it would download, and to read a question that is too long for an argument.

use crate::private_path::{self, PathError};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A file: its name and its text.
pub(crate) type File = (&'static str, &'static str);

const HOOK: File = ("twined_hook.py", include_str!("shim/twined_hook.py"));
const QUESTION: File = ("twined_question.py", include_str!("shim/twined_question.py"));

/// The shim of a machine without the internet. The last file imports the others, so it is written
/// last.
const OFFLINE: [File; 3] =
    [HOOK, QUESTION, ("sitecustomize.py", include_str!("shim/sitecustomize.py"))];

/// The shim that is mounted beside a question. `start.py` puts its folder first in the `PYTHONPATH`
/// of the command in its arguments, because Kubernetes cannot prepend to the variable of an image.
pub(crate) const MOUNTED: [File; 4] = [
    (START, include_str!("shim/mounted/start.py")),
    ("sitecustomize.py", include_str!("shim/mounted/sitecustomize.py")),
    HOOK,
    QUESTION,
];

/// The name of the file in [`MOUNTED`] that starts a command.
pub(crate) const START: &str = "start.py";

/// Why the shim was not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// Its folder cannot be written.
    #[error("failed to write the shim to `{}`", folder.display())]
    Write {
        /// The folder.
        folder: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// Other users can change its folder.
    #[error("failed to find a private folder for the shim: set XDG_CACHE_HOME to one")]
    Private(#[source] PathError),
}

/// Writes the offline shim of this version into `folder`.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, text) in OFFLINE {
        // Replaced in one step, because processes of an earlier network may be reading it.
        let new = folder.join(format!("{name}.new"));
        fs::write(&new, text)?;
        fs::rename(new, folder.join(name))?;
    }
    Ok(())
}

/// Writes the offline shim of this version into a folder in `cache`, and returns that folder.
///
/// Every Python process runs the files of its `PYTHONPATH`. So they come from this program, never
/// from a network, and other users cannot write their folder.
pub(crate) fn install(cache: &Path) -> Result<PathBuf, InstallError> {
    // Other versions have folders of their own.
    let mut digest = blake3::Hasher::new();
    for (name, text) in OFFLINE {
        digest.update(name.as_bytes()).update(text.as_bytes());
    }
    let folder = cache.join(format!("shim-{}", &digest.finalize().to_hex()[..16]));
    let failed = |source| InstallError::Write { folder: folder.clone(), source };
    fs::create_dir_all(&folder).map_err(failed)?;
    let folder = private_path::resolve(&folder).map_err(InstallError::Private)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    write(&folder).map_err(failed)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_shim_is_this_programs_and_private() {
        let cache = tempfile::tempdir().unwrap();
        let folder = install(&cache.path().join("new")).unwrap();
        fs::write(folder.join(HOOK.0), "import os").unwrap();

        assert_eq!(install(&cache.path().join("new")).unwrap(), folder);

        for (name, text) in OFFLINE {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), text);
        }
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_shim_is_not_installed_in_a_shared_folder() {
        let cache = tempfile::tempdir().unwrap();
        fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(install(cache.path()), Err(InstallError::Private(_))));
    }
}
