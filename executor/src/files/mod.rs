//! File operations: COPY, ADD, WORKDIR's directories and inline files, performed without mounting anything.
//!
//! All actions of an operation are applied to a draft in memory, which knows the root below (a [`RootView`]) and what was
//! written to it so far. The draft then becomes a layer in one of two forms: a *tree*, which later steps can mount, or the
//! *tar* at once, in one pass over the sources. Both hold exactly the same entries.
//!
//! Read [`perform_file_op`] first, then `draft` (the model) and `copy` (the rules of destinations). Spec:
//! `spec/dockerfile.md` §2.9, §2.15–§2.23.

mod archive;
mod content;
mod copy;
mod draft;
mod make;
mod mode;
mod order;
mod owner;
mod read_ahead;
mod tar;
mod tree;

use std::path::Path;

use cache::ContentDigest;
use solver::{FileAction, FileOp, OpError};
use tokio_util::sync::CancellationToken;

pub use crate::context::source::Source;
pub use tar::EntrySink;

use crate::view::RootView;
use draft::Draft;
use order::Listing;
use owner::Owners;

/// What an operation works with, apart from what it does.
pub struct Setting<'a> {
    /// The root that is written to (input 0 of the vertex).
    pub root: &'a RootView,
    /// The inputs of the vertex, by index; the entry for the root is not read.
    pub inputs: &'a [Source],
    /// A directory for scratch files, on the same file system as the tree where there is one.
    pub scratch: &'a Path,
    /// The time of what has no time of its own: seconds since the epoch and nanoseconds.
    pub now: (i64, u32),
    /// Looked at between files.
    pub cancel: &'a CancellationToken,
}

/// Which form of the layer is wanted.
pub enum Form<'a> {
    /// A tree in overlayfs' format, written into this empty directory.
    Tree(&'a Path),
    /// The entries of the layer's tar, in order, without the end of the archive.
    Tar(&'a mut dyn EntrySink),
}

/// What an operation made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOutcome {
    /// What keys of later steps see of the layer; the same for both forms.
    pub content: ContentDigest,
}

/// Performs `op` and writes the layer.
///
/// Synchronous and CPU-bound; uses rayon's pool. Nothing is written before all actions have been found to be possible.
///
/// # Errors
/// With BuildKit's texts where it has some; paths in them are paths inside the root. After an error the form is
/// incomplete and must be thrown away.
pub fn perform_file_op(op: &FileOp, setting: &Setting<'_>, form: Form<'_>) -> Result<FileOutcome, OpError> {
    let mut draft = Draft::new(setting.root.clone())?;
    let mut owners = Owners::default();
    for action in &op.actions {
        setting.check_cancelled()?;
        match action {
            FileAction::Copy(action) => copy::copy(&mut draft, &mut owners, setting, action)?,
            FileAction::MakeDir(action) => make::make_dir(&mut draft, &mut owners, setting, action)?,
            FileAction::WriteFile(action) => make::write_file(&mut draft, &mut owners, setting, action)?,
        }
    }
    let listing = Listing::of(&draft)?;
    let files = match form {
        Form::Tree(upper) => tree::write(&draft, &listing, setting, upper)?,
        Form::Tar(sink) => tar::write(&draft, &listing, setting, sink)?,
    };
    Ok(FileOutcome { content: content::digest(&draft, &listing, &files) })
}

impl Setting<'_> {
    fn check_cancelled(&self) -> Result<(), OpError> {
        if self.cancel.is_cancelled() { Err(OpError::cancelled()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
