//! What a copy reads from: a context, a root view or nothing, behind one type.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::fstat;

use super::{ContextDir, LastDir, LocalContext, Result, Stamp, content};
use crate::view::resolve::{Last, Resolved};
use crate::view::{DirView, Node, RootView, ViewError, Xattrs};

/// A tree that files are taken from.
#[derive(Clone, Debug)]
pub enum Source {
    /// `COPY --from=scratch`: an empty root.
    Empty,
    /// A stage, an image, a downloaded file or a git tree.
    View(RootView),
    /// A directory of the client.
    Context(LocalContext),
}

/// A directory of a [`Source`]. Cheap to clone.
#[derive(Clone, Debug)]
pub enum SourceDir {
    /// Of a root view.
    View(DirView),
    /// Of a context.
    Context(LocalContext, Arc<ContextDir>),
}

/// An entry of a [`SourceDir`].
#[derive(Clone, Debug)]
pub struct SourceEntry {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub node: Node,
}

/// What is known about the bytes of a file.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The state of the file that counts; `None` for root views, whose files nobody changes.
    pub stamp: Option<Stamp>,
    /// BLAKE3 that the bytes must have, when they went into a key.
    pub digest: Option<[u8; 32]>,
    /// Whether the stamp proves that the bytes are those of the digest, as long as it stays the same.
    pub is_proven: bool,
}

impl Claim {
    /// The digest of the bytes, if they need not be hashed again.
    pub fn proven_digest(&self) -> Option<[u8; 32]> {
        self.digest.filter(|_| self.is_proven)
    }
}

/// A file of a source, opened for reading, and what is known about what must come out.
#[derive(Debug)]
pub struct OpenedFile {
    /// At offset 0.
    pub file: File,
    /// What was known when it was opened.
    pub claim: Claim,
    /// Taken before it was opened.
    pub opened_at: SystemTime,
}

impl OpenedFile {
    /// Whether somebody else might have changed the file since it was opened.
    ///
    /// # Errors
    /// I/O errors.
    pub fn has_changed(&self) -> std::io::Result<bool> {
        match self.claim.stamp {
            None => Ok(false),
            Some(before) => Ok(Stamp::of_stat(&fstat(&self.file)?) != before),
        }
    }
}

impl Source {
    /// What messages call it.
    pub fn label(&self) -> &str {
        match self {
            Self::Empty => "scratch",
            Self::View(_) => "root",
            Self::Context(context) => context.name(),
        }
    }

    /// The top directory; `None` for an empty root.
    ///
    /// # Errors
    /// I/O errors.
    pub fn root(&self) -> Result<Option<SourceDir>> {
        Ok(match self {
            Self::Empty => None,
            Self::View(view) => Some(SourceDir::View(view.root().clone())),
            Self::Context(context) => Some(SourceDir::Context(context.clone(), context.top()?)),
        })
    }

    /// Where `path` leads; links are followed inside the source, a last one as `last` says.
    ///
    /// # Errors
    /// [`ViewError::TooManyLinks`] and I/O errors.
    pub fn resolve(&self, path: &Path, last: Last) -> Result<Resolved<Node>> {
        Ok(match self {
            Self::Empty => Resolved { path: path.to_owned(), node: None },
            Self::View(view) => crate::view::resolve::resolve(view, path, last)?,
            Self::Context(context) => crate::view::resolve::resolve(context, path, last)?,
        })
    }

    /// The directory at `path`, without following links; `None` when there is none.
    ///
    /// # Errors
    /// I/O errors.
    pub fn dir(&self, path: &Path) -> Result<Option<SourceDir>> {
        let Some(mut dir) = self.root()? else { return Ok(None) };
        for name in crate::view::normal_components(path) {
            match dir.child_dir(&name)? {
                Some(child) => dir = child,
                None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }
}

impl SourceDir {
    /// Its entries, in byte order of their names.
    ///
    /// # Errors
    /// I/O errors.
    pub fn entries(&self) -> Result<Vec<SourceEntry>> {
        Ok(match self {
            Self::View(dir) => dir.entries()?.into_iter().map(|(name, node)| SourceEntry { name, node }).collect(),
            Self::Context(_, dir) => dir
                .entries()
                .iter()
                .map(|entry| SourceEntry { name: dir.name_of(entry).to_owned(), node: entry.node() })
                .collect(),
        })
    }

    /// What is called `name`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        Ok(match self {
            Self::View(dir) => dir.lookup(name)?,
            Self::Context(_, dir) => dir.entry(name).map(super::Entry::node),
        })
    }

    /// Its own metadata; `None` for the root of a view without layers.
    ///
    /// # Errors
    /// I/O errors.
    pub fn own_node(&self) -> Result<Option<Node>> {
        Ok(match self {
            Self::View(dir) => dir.metadata()?,
            Self::Context(_, dir) => Some(dir.own_node()),
        })
    }

    /// The directory called `name`; `None` when it is none.
    ///
    /// # Errors
    /// I/O errors.
    pub fn child_dir(&self, name: &OsStr) -> Result<Option<Self>> {
        Ok(match self {
            Self::View(dir) => dir.child_dir(name)?.map(Self::View),
            Self::Context(context, dir) => {
                context.child_dir(dir, name)?.map(|child| Self::Context(context.clone(), child))
            }
        })
    }

    /// Reads ahead everything below, where that can be done in parallel.
    ///
    /// # Errors
    /// I/O errors.
    pub fn read_below(&self) -> Result<()> {
        match self {
            Self::View(_) => Ok(()),
            Self::Context(context, dir) => Ok(context.read_below(dir)?),
        }
    }

    /// The stored target of the link `name`; empty when it is none.
    ///
    /// # Errors
    /// I/O errors.
    pub fn read_link(&self, name: &OsStr) -> Result<OsString> {
        Ok(match self {
            Self::View(dir) => dir.read_link(name)?.unwrap_or_default(),
            Self::Context(context, dir) => super::scan::read_link(context, dir, name)?,
        })
    }

    /// The xattrs that a copy keeps: all of a root view's, none of a context's (a transfer drops them).
    ///
    /// # Errors
    /// I/O errors.
    pub fn xattrs(&self, name: &OsStr) -> Result<Xattrs> {
        Ok(match self {
            Self::View(dir) => dir.xattrs(name)?.unwrap_or_default(),
            Self::Context(..) => Vec::new(),
        })
    }

    /// The value of `security.capability`, which is all that layers and keys see of xattrs.
    ///
    /// # Errors
    /// I/O errors.
    pub fn capability(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        Ok(match self {
            Self::View(dir) => dir.xattr(name, CAPABILITY_XATTR)?,
            Self::Context(..) => None,
        })
    }

    /// Opens the regular file `name`.
    ///
    /// # Errors
    /// [`super::ContextError::Changed`] when it is no longer what it was; I/O errors.
    pub fn open_file(&self, name: &OsStr) -> Result<OpenedFile> {
        let opened_at = SystemTime::now();
        let file = self.open_unchecked(name, &mut LastDir::default())?;
        let claim = self.check(name, &file)?;
        Ok(OpenedFile { file, claim, opened_at })
    }

    /// Opens the file `name`, for reading first and [checking](Self::check) then. `last` is of those before it.
    ///
    /// # Errors
    /// I/O errors.
    pub fn open_unchecked(&self, name: &OsStr, last: &mut LastDir) -> Result<File> {
        Ok(match self {
            Self::View(dir) => {
                let missing = || ViewError::io("open", dir.path().join(name), std::io::ErrorKind::NotFound);
                dir.open_file(name)?.ok_or_else(missing)?
            }
            Self::Context(context, dir) => context.open_file_next(dir, name, last)?,
        })
    }

    /// What is known about the bytes of `file`, which was opened as `name`: about those that were read until now as well.
    ///
    /// # Errors
    /// [`super::ContextError::Changed`] when it is no longer what it was; I/O errors.
    pub fn check(&self, name: &OsStr, file: &File) -> Result<Claim> {
        match self {
            Self::View(_) => Ok(Claim { stamp: None, digest: None, is_proven: true }),
            Self::Context(context, dir) => content::check(context, dir, name, file),
        }
    }

    /// Tells the digest of a file that was read before a key was made of it: all of its bytes, as they went into a layer,
    /// while its stamp did not change. `opened_at` is that of the first opening.
    pub fn learn(&self, name: &OsStr, digest: [u8; 32], opened_at: SystemTime) {
        match self {
            Self::View(_) => {}
            Self::Context(context, dir) => content::learn(context, dir, name, digest, opened_at),
        }
    }

    /// Its path in the source.
    pub fn path(&self) -> &Path {
        match self {
            Self::View(dir) => dir.path(),
            Self::Context(_, dir) => dir.path(),
        }
    }

    /// Path of `name` for messages, inside the source and without a leading slash.
    pub fn display_path(&self, name: &OsStr) -> std::path::PathBuf {
        let dir = self.path();
        dir.strip_prefix("/").unwrap_or(dir).join(name)
    }
}

/// The one xattr that layers hold.
pub const CAPABILITY_XATTR: &str = "security.capability";
