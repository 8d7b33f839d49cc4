//! Takes out of an upper directory what overlayfs copied there and nobody changed.
//!
//! Overlayfs copies a file up as soon as it is opened for writing or given an owner or mode, even when that changes
//! nothing: `chown -R app /app` on files that are app's already would double them in the image.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, statat, unlinkat};

use super::dir;
use super::error::{Result, TreeError, as_path};
use super::lower::LowerView;
use super::untouched::Untouched;
use super::walk::{LeafStep, Step, Walk};

/// Bytes that are compared at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Removes the files of `tree` that are copies of what shines through from below anyway: the same in kind, owner, mode,
/// time, xattrs and content. Directories stay, with the times that they had.
///
/// Only what overlayfs marked as a copy is looked at, so a tree of new files costs one system call a file. `here` is the
/// view of the tree by itself, `below` that of what lies below it.
///
/// Spec: the recorded layers of the reference builder, which leaves such files out.
///
/// # Errors
/// [`TreeError::Io`].
pub fn drop_unchanged(tree: &Path, here: &dyn LowerView, below: &dyn LowerView) -> Result<()> {
    let mut walk = Walk::new(tree, None)?;
    while let Some(step) = walk.next_step()? {
        let Step::Leaf(leaf) = step else { continue };
        if leaf.hides_below || !is_copy(&leaf)? || has_other_names(&leaf)? {
            continue;
        }
        let path = as_path(&leaf.path);
        if is_same(here, below, path).map_err(|error| TreeError::io("compare", path, error))? {
            remove(&leaf)?;
        }
    }
    Ok(())
}

/// Whether overlayfs may have copied it: whiteouts and special files it makes anew.
fn is_copy(leaf: &LeafStep) -> Result<bool> {
    match leaf.kind {
        FileType::RegularFile | FileType::Symlink => {
            dir::is_copied_up(&leaf.parent, leaf.name()).map_err(TreeError::io_at("read xattrs of", &leaf.path))
        }
        _ => Ok(false),
    }
}

/// A copy with a second name stays: without it that name would be a file of its own.
fn has_other_names(leaf: &LeafStep) -> Result<bool> {
    let stat =
        statat(&leaf.parent, leaf.name(), AtFlags::SYMLINK_NOFOLLOW).map_err(TreeError::io_at("stat", &leaf.path))?;
    Ok(stat.st_nlink > 1)
}

fn remove(leaf: &LeafStep) -> Result<()> {
    let untouched = Untouched::remember(leaf.parent.as_fd(), leaf.directory())?;
    unlinkat(&leaf.parent, leaf.name(), AtFlags::empty()).map_err(TreeError::io_at("remove", &leaf.path))?;
    untouched.restore()
}

/// Whether two views show the same file or link at `path`: kind, owner, mode, time, xattrs and content.
///
/// # Errors
/// One of them cannot be read.
pub(crate) fn is_same(here: &dyn LowerView, below: &dyn LowerView, path: &Path) -> io::Result<bool> {
    let (Some(meta), Some(meta_below)) = (here.metadata(path)?, below.metadata(path)?) else { return Ok(false) };
    if meta != meta_below {
        return Ok(false);
    }
    let (mut xattrs, mut xattrs_below) = (here.xattrs(path)?, below.xattrs(path)?);
    xattrs.sort();
    xattrs_below.sort();
    if xattrs != xattrs_below {
        return Ok(false);
    }
    if meta.kind == FileType::Symlink {
        return Ok(here.read_link(path)? == below.read_link(path)?);
    }
    match (here.open_file(path)?, below.open_file(path)?) {
        (Some(file), Some(file_below)) => is_same_content(file, file_below),
        _ => Ok(false),
    }
}

fn is_same_content(mut one: File, mut other: File) -> io::Result<bool> {
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut buffer, mut other_buffer) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        let n_bytes = one.read(&mut buffer)?;
        if n_bytes == 0 {
            return Ok(true);
        }
        match other.read_exact(&mut other_buffer[..n_bytes]) {
            Ok(()) if buffer[..n_bytes] == other_buffer[..n_bytes] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
