//! Temporary things on the store's own file system: drafts of trees, scratch directories, trash.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};
use crate::store::Store;

/// `st_blocks` counts in these, whatever the file system's block size.
const STAT_BLOCK_BYTES: u64 = 512;

/// A directory that will become the tree of a layer.
///
/// `tree` and `work` lie on the store's file system, so that `tree` can be an overlay's upper directory and be renamed
/// into place. Dropped without a commit, both are removed.
#[derive(Debug)]
pub struct TreeDraft {
    root: Option<PathBuf>,
    path: PathBuf,
    size_bytes: Option<u64>,
}

impl TreeDraft {
    /// The future tree: empty, mode 0755.
    pub fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }

    /// Scratch space beside it, for overlay's `workdir`; made when first asked for.
    ///
    /// It stays with the layer, empty but for overlay's own directory: removing directories is the slowest of all
    /// operations where freed blocks are discarded at once, and this one is in the path of every step.
    pub fn work(&self) -> PathBuf {
        let work = self.path.join("work");
        // A failure shows when the directory is used.
        let _ = std::fs::create_dir(&work);
        work
    }

    /// Notes what the tree occupies on disk (the sum of `st_blocks` × 512 over all inodes, hard links once), when the
    /// caller has walked it anyway. Otherwise the store walks it when somebody asks for sizes.
    pub fn set_size_bytes(&mut self, size_bytes: u64) {
        self.size_bytes = Some(size_bytes);
    }

    /// The size as noted.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// The directory that holds `tree` and `work`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory has been renamed into place: nothing is left to remove.
    pub(crate) fn keep(mut self) {
        self.root = None;
    }
}

impl Drop for TreeDraft {
    fn drop(&mut self) {
        if let Some(root) = self.root.take() {
            remove_tree(&root);
        }
    }
}

impl Store {
    /// A new empty tree on the store's file system.
    pub fn new_tree(&self) -> Result<TreeDraft> {
        let path = self.session()?.fresh_path("draft");
        std::fs::create_dir(&path).during("create", &path)?;
        let draft = TreeDraft { root: Some(path.clone()), path, size_bytes: None };
        std::fs::create_dir(draft.tree()).during("create", &draft.tree())?;
        // Whatever the umask: the root of a layer is visible to everybody in the container.
        set_mode(&draft.tree(), 0o755)?;
        Ok(draft)
    }

    /// A private directory for scratch files of this process; removed when dropped, or by a later process after a
    /// crash.
    pub fn scratch_dir(&self) -> Result<tempfile::TempDir> {
        let session = self.session()?;
        let prefix = format!("{}scratch-", session.prefix());
        tempfile::Builder::new().prefix(&prefix).tempdir_in(session.bucket()).during("create", session.bucket())
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).during("change the mode of", path)
}

/// Removes a file or a directory with all its content, as far as the permissions of this process reach.
///
/// Never follows a symlink. What cannot be removed stays for a process with more rights: nothing depends on it.
pub(crate) fn remove_tree(path: &Path) {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return };
    if !metadata.is_dir() {
        let _ = std::fs::remove_file(path);
        return;
    }
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            // Overlayfs leaves directories of mode 0, and a layer may hold read-only ones.
            open_up(path);
            if let Err(error) = std::fs::remove_dir_all(path) {
                tracing::debug!(path = %path.display(), %error, "cannot remove");
            }
        }
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), %error, "cannot remove");
        }
        _ => {}
    }
}

fn open_up(dir: &Path) {
    let _ = std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// What a file or a directory with all its content occupies on disk, counted as `du -s` does.
///
/// What cannot be read counts nothing; a file with several names counts once.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
    let mut total = inode_bytes(&metadata);
    let mut seen = HashSet::new();
    let mut dirs = if metadata.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                dirs.push(entry.path());
            } else if metadata.nlink() > 1 && !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            total += inode_bytes(&metadata);
        }
    }
    total
}

/// What one inode occupies on disk.
pub(crate) fn inode_bytes(metadata: &Metadata) -> u64 {
    metadata.blocks() * STAT_BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::store;

    #[test]
    fn a_dropped_draft_leaves_nothing_even_with_a_locked_work_directory() {
        let (_dir, store) = store();
        let draft = store.new_tree().unwrap();
        let inner = draft.work().join("work");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("file"), "x").unwrap();
        set_mode(&inner, 0).unwrap();
        let path = draft.path().to_owned();
        drop(draft);
        assert!(!path.exists());
    }

    #[test]
    fn sizes_are_those_of_du() {
        let (_dir, store) = store();
        let scratch = store.scratch_dir().unwrap();
        std::fs::write(scratch.path().join("a"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(scratch.path().join("a"), scratch.path().join("b")).unwrap();
        std::fs::create_dir(scratch.path().join("d")).unwrap();
        std::os::unix::fs::symlink("a", scratch.path().join("d/l")).unwrap();
        assert_eq!(disk_bytes(scratch.path()), crate::testing::du(scratch.path()));
    }
}
