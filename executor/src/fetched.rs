//! Files that were fetched, looked into before there is a plan: the Dockerfile of a remote context, the time of a source.
//!
//! Whoever made them may be hostile: no link leads out, and nothing is read beyond a limit.

use std::io::Read as _;
use std::path::Path;

use solver::OpError;

use crate::engine::blocking;
use crate::view::{NodeKind, RootView, ViewError};

/// A root that was fetched. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FetchedFiles {
    view: RootView,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The bytes of a file, or as many of its first as were asked for.
    File(Vec<u8>),
    /// Something that has no bytes.
    NoFile,
    /// Nothing.
    Nothing,
}

impl FetchedFiles {
    /// The files of a directory, which must not change.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn of_dir(dir: &Path) -> Result<Self, OpError> {
        Ok(Self { view: RootView::open(&[dir.to_owned()])? })
    }

    pub(crate) fn new(view: RootView) -> Self {
        Self { view }
    }

    /// Up to `most_bytes` of the file at `path`; links are followed inside of the files.
    ///
    /// # Errors
    /// Those of the file system; a link that leads round in a circle.
    pub fn read(&self, path: &Path, most_bytes: u64) -> Result<Found, OpError> {
        let resolved = self.view.resolve(path)?;
        if resolved.node.is_none() {
            return Ok(Found::Nothing);
        }
        let Some(file) = self.view.open_file(&resolved.path)? else { return Ok(Found::NoFile) };
        let mut bytes = Vec::new();
        let read = file.take(most_bytes).read_to_end(&mut bytes);
        read.map_err(|error| ViewError::io("read", resolved.path, error))?;
        Ok(Found::File(bytes))
    }

    /// When the newest regular file was modified, in seconds since 1970. `None` when there is no file with a time: zero
    /// is what files get whose server tells none.
    pub(crate) async fn newest_time(&self) -> Result<Option<i64>, OpError> {
        let view = self.view.clone();
        blocking(move || {
            let mut newest = None;
            let mut todo = vec![view.root().clone()];
            while let Some(dir) = todo.pop() {
                for (name, node) in dir.entries()? {
                    match node.kind {
                        NodeKind::File => newest = newest.max(Some(node.meta.mtime_s).filter(|time| *time != 0)),
                        NodeKind::Dir => todo.extend(dir.child_dir(&name)?),
                        _ => {}
                    }
                }
            }
            Ok(newest)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[tokio::test]
    async fn files_are_read_and_links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("sub/f"), "text").unwrap();
        for (target, link) in [("sub/f", "in"), ("/sub/f", "absolute"), ("../secret", "out"), ("loop", "loop")] {
            symlink(target, root.join(link)).unwrap();
        }
        let files = FetchedFiles::of_dir(&root).unwrap();
        let read = |path: &str| files.read(Path::new(path), 3);
        for path in ["sub/f", "/sub/f", "in", "absolute", "../sub/./f"] {
            assert_eq!(read(path).unwrap(), Found::File(b"tex".to_vec()), "{path}");
        }
        for (path, expected) in [("sub", Found::NoFile), ("nope", Found::Nothing), ("out", Found::Nothing)] {
            assert_eq!(read(path).unwrap(), expected, "{path}");
        }
        assert!(read("loop").is_err());
    }

    #[tokio::test]
    async fn the_newest_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let files = FetchedFiles::of_dir(dir.path()).unwrap();
        assert_eq!(files.newest_time().await.unwrap(), None);
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for (name, seconds) in [("none", 0), ("sub/new", 7), ("old", 5)] {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        }
        // Directories and links are newer than all of them.
        symlink("old", dir.path().join("link")).unwrap();
        assert_eq!(files.newest_time().await.unwrap(), Some(7));
    }
}
