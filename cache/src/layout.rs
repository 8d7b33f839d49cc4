//! Where everything lies on disk. Format: `docs/formats/store-v1.md`.

use std::path::{Path, PathBuf};

use oci::{Digest, ImageRef};

use crate::error::{IoContext, Result};
use crate::id::LayerId;

/// The parts of a store. Each is a directory (or file) of its own, named with the version of its layout.
///
/// A change that older programs would misread gets a new number. Directories with unknown names belong to other
/// versions and are left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket {
    /// `blobs-v1/sha256/<hex>`: exact bytes, mode 0444, renamed into place once complete, never changed.
    Blobs,
    /// `trees-v1/<layer>/tree`: a layer's tree in overlayfs' own format; `layer.json` beside it says what it is, and
    /// `tar.json`, once known, the diff ID and length of its tar. `work` is what overlayfs left when it was written.
    Trees,
    /// `images-v1/<digest of the name>.json` and `images-v1/dangling-<hex>.json`: what images there are.
    Images,
    /// `pushes-v1/<digest of the name>.json`: images that are on their way to a registry, or were when it stopped.
    Pushes,
    /// `mounts-v1/<digest of the id>-<slot>/data`: the directories behind `RUN --mount=type=cache`.
    Mounts,
    /// `contexts-v1/<digest of the root's identity>.idx`: what the files of one local context contained last time.
    Contexts,
    /// `file-lists-v1/<selection digest>`: which files a copy or mount took, for explanations. Format:
    /// `docs/formats/file-list-v1.md`.
    FileLists,
    /// `builds-v1/<milliseconds>-<id>-<subject>.json`: what the last builds did. Format: `docs/formats/build-record-v1.md`.
    Builds,
    /// `locks-v1/<digest of the name>`: empty files that are flocked while something is worked on.
    Locks,
    /// `tmp-v1/<session>-…` and `tmp-v1/<session>.lock`: drafts, scratch and trash of one running process. The lock
    /// file is flocked as long as the process lives; without that, the rest is garbage.
    Temporary,
    /// `index-v1/<generation>.sqlite`: the database. The highest generation counts; a corrupt one is superseded.
    Index,
    /// `durable-v1`: up to which epoch everything has reached the disk.
    Durable,
    /// `style-v1`: how trees are written, one word.
    Style,
    /// `reserve-v1`: a little space to give up when the disk is full, so that pruning can still write its journal.
    Reserve,
}

impl Bucket {
    /// All of them.
    pub(crate) const ALL: [Self; 14] = [
        Self::Blobs,
        Self::Trees,
        Self::Images,
        Self::Pushes,
        Self::Mounts,
        Self::Contexts,
        Self::FileLists,
        Self::Builds,
        Self::Locks,
        Self::Temporary,
        Self::Index,
        Self::Durable,
        Self::Style,
        Self::Reserve,
    ];

    /// The buckets that are directories, made when a store is opened.
    pub(crate) const DIRECTORIES: [Self; 11] = [
        Self::Blobs,
        Self::Trees,
        Self::Images,
        Self::Pushes,
        Self::Mounts,
        Self::Contexts,
        Self::FileLists,
        Self::Builds,
        Self::Locks,
        Self::Temporary,
        Self::Index,
    ];

    /// The name inside the store's directory.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blobs => "blobs-v1",
            Self::Trees => "trees-v1",
            Self::Images => "images-v1",
            Self::Pushes => "pushes-v1",
            Self::Mounts => "mounts-v1",
            Self::Contexts => "contexts-v1",
            Self::FileLists => "file-lists-v1",
            Self::Builds => "builds-v1",
            Self::Locks => "locks-v1",
            Self::Temporary => "tmp-v1",
            Self::Index => "index-v1",
            Self::Durable => "durable-v1",
            Self::Style => "style-v1",
            Self::Reserve => "reserve-v1",
        }
    }
}

/// The paths of one store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    blobs: PathBuf,
}

impl Layout {
    /// The layout below `root`, which should be absolute.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), blobs: root.join(Bucket::Blobs.name()).join("sha256") }
    }

    /// The store's directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory (or file) of a bucket.
    pub(crate) fn bucket(&self, bucket: Bucket) -> PathBuf {
        self.root.join(bucket.name())
    }

    /// The directory that holds the blobs.
    pub(crate) fn blobs(&self) -> &Path {
        &self.blobs
    }

    /// Where the blob lies if it is stored.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// The directory of a layer: its tree and what is noted beside it.
    pub(crate) fn layer_dir(&self, id: &LayerId) -> PathBuf {
        self.bucket(Bucket::Trees).join(id.as_str())
    }

    /// The tree of a layer, if it has one.
    pub(crate) fn tree(&self, id: &LayerId) -> PathBuf {
        self.layer_dir(id).join("tree")
    }

    /// The file of a named image.
    pub(crate) fn image(&self, reference: &ImageRef) -> PathBuf {
        self.bucket(Bucket::Images).join(format!("{}.json", name_digest(&reference.to_string())))
    }

    /// The file of an image that is pushed under that name.
    pub(crate) fn push(&self, reference: &ImageRef) -> PathBuf {
        self.bucket(Bucket::Pushes).join(format!("{}.json", name_digest(&reference.to_string())))
    }

    /// The file of a dangling image.
    pub(crate) fn dangling(&self, target: &Digest) -> PathBuf {
        self.bucket(Bucket::Images).join(format!("dangling-{}.json", target.hex()))
    }

    /// Makes the directories that are missing.
    ///
    /// A root made here is closed to other users: trees hold set-user-ID programs and whatever the images hide.
    pub(crate) fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root).during("create", &self.root)?;
        let directories = Bucket::DIRECTORIES.map(|bucket| self.bucket(bucket));
        for path in directories.iter().chain([&self.blobs]) {
            match std::fs::create_dir(path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
                other => other.during("create", path)?,
            }
        }
        Ok(())
    }
}

/// A file name for arbitrary text: 32 hex digits of its BLAKE3 digest.
pub(crate) fn name_digest(text: &str) -> String {
    oci::digest::hex(&blake3::hash(text.as_bytes()).as_bytes()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_has_its_own_versioned_name() {
        let mut names: Vec<_> = Bucket::ALL.iter().map(|bucket| bucket.name()).collect();
        assert!(Bucket::DIRECTORIES.iter().all(|bucket| Bucket::ALL.contains(bucket)));
        assert!(names.iter().all(|name| name.ends_with("-v1")));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Bucket::ALL.len());
    }
}
