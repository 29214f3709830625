//! Paths that only this user can redirect.
//!
//! On a machine with several users, a path from another user can be a link that they change later.

use rustix::process::{getegid, geteuid};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a path is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    /// It cannot be read.
    #[error("failed to read `{}`", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// Other users can redirect it.
    #[error("other users of this machine can change `{}`", .0.display())]
    Shared(PathBuf),
}

/// Resolves all links of `path`, and checks that only root and this user can redirect the result.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, PathError> {
    let failed = |error| PathError::Read(path.to_owned(), error);
    let resolved = fs::canonicalize(path).map_err(failed)?;
    for part in resolved.ancestors() {
        let metadata = fs::symlink_metadata(part).map_err(failed)?;
        if !is_private(&metadata, part == resolved) {
            return Err(PathError::Shared(part.to_owned()));
        }
    }
    Ok(resolved)
}

/// A sticky folder, for example `/tmp`, lets other users add files, but not replace those of this
/// user. On many systems each user has a group of their own, which their files belong to.
fn is_private(metadata: &fs::Metadata, last: bool) -> bool {
    let mode = metadata.mode();
    let owner = [0, geteuid().as_raw()].contains(&metadata.uid());
    let sticky = !last && mode & 0o1000 != 0;
    let group = mode & 0o020 == 0 || [0, getegid().as_raw()].contains(&metadata.gid());
    owner && (sticky || (group && mode & 0o002 == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_are_resolved_before_the_check() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        symlink(&file, root.path().join("link")).unwrap();

        let resolved = resolve(&root.path().join("link")).unwrap();

        assert_eq!(resolved, fs::canonicalize(&file).unwrap());
        assert!(matches!(resolve(&root.path().join("none")), Err(PathError::Read(..))));
    }

    #[test]
    fn a_folder_that_other_users_can_write_is_named() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("shared");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        let mode = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();

        mode(0o777);
        let error = resolve(&folder.join("file")).unwrap_err();

        assert!(matches!(&error, PathError::Shared(part) if part.ends_with("shared")), "{error}");
        for private in [0o755, 0o775, 0o1777] {
            mode(private);
            resolve(&folder.join("file")).unwrap();
        }
        assert!(matches!(resolve(&folder), Err(PathError::Shared(_))), "sticky is not enough");
    }
}
