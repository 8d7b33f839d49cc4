//! What can be wrong with a store, and what is done about it.

use oci::Digest;

use crate::id::LayerId;

/// Something that was found, and whether it is in order by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was wrong.
    pub problem: Problem,
    /// Whether it has been repaired.
    pub is_repaired: bool,
}

/// Something that was not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The database is corrupt.
    #[error("the index is corrupt")]
    Index,
    /// A blob has no file.
    #[error("blob `{0}` has lost its file")]
    LostBlob(Digest),
    /// A blob's bytes have another digest, or cannot be read.
    #[error("blob `{0}` is corrupt")]
    CorruptBlob(Digest),
    /// A layer's tree is missing or has lost its description.
    #[error("layer `{0}` has lost its tree")]
    LostTree(LayerId),
    /// A layer's tree is not what its diff ID says.
    #[error("the tree of layer `{id}` is corrupt: its tar is `{got}`, not `{expected}`")]
    CorruptTree {
        /// The layer.
        id: LayerId,
        /// Its diff ID.
        expected: Digest,
        /// What its tree gives.
        got: Digest,
    },
    /// A file that nothing refers to.
    #[error("`{0}` belongs to nothing")]
    Stray(String),
    /// Layers that are nowhere to be had, and their records.
    #[error("{0} layers have lost every form")]
    FormlessLayers(usize),
    /// The index of a context cannot be read.
    #[error("`{0}` is no index of a context")]
    BrokenContext(String),
    /// Files of processes that were killed.
    #[error("{0} killed processes have left files")]
    Leftovers(usize),
    /// A generation of the index that another has replaced.
    #[error("`{0}` is an index that another has replaced")]
    OldIndex(String),
    /// Files of images cannot be read.
    #[error("{0} files of images cannot be read")]
    BrokenImages(usize),
    /// Something that an image is made of is neither stored nor known to be in a registry.
    #[error("image `{name}` is incomplete: {what} `{digest}` is not in the store")]
    IncompleteImage {
        /// Its name; `<none>` for one without.
        name: String,
        /// `manifest`, `config` or `layer`.
        what: &'static str,
        /// Digest of what is missing; a layer's diff ID.
        digest: Digest,
    },
}

impl Problem {
    /// One word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::LostBlob(_) => "lost-blob",
            Self::CorruptBlob(_) => "corrupt-blob",
            Self::LostTree(_) => "lost-tree",
            Self::CorruptTree { .. } => "corrupt-tree",
            Self::Stray(_) => "stray",
            Self::FormlessLayers(_) => "formless-layers",
            Self::BrokenContext(_) => "broken-context",
            Self::Leftovers(_) => "leftovers",
            Self::OldIndex(_) => "old-index",
            Self::BrokenImages(_) => "broken-images",
            Self::IncompleteImage { .. } => "incomplete-image",
        }
    }

    /// What a repair does about it; `None` when only the user can do something.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Index => "made again from the files of the store",
            Self::LostBlob(_) | Self::LostTree(_) => "forgotten: it is made or fetched again when it is needed",
            Self::CorruptBlob(_) | Self::CorruptTree { .. } => "removed: it is made or fetched again when it is needed",
            Self::FormlessLayers(_) => "forgotten: their steps run again",
            Self::BrokenContext(_) => "removed: the files are read again",
            Self::Stray(_) | Self::Leftovers(_) | Self::OldIndex(_) | Self::BrokenImages(_) => "removed",
            Self::IncompleteImage { .. } => return None,
        })
    }
}
