//! Takes out of an upper directory what overlayfs copied there and nobody changed.
//!
//! Overlayfs copies a file up as soon as it is opened for writing or given an owner or mode, even when that changes
//! nothing: `chown -R app /app` on files that are app's already would double them in the image.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, statat, unlinkat};

use super::dir;
use super::error::{Result, TreeError, as_path};
use super::lower::LowerView;
use super::untouched::Untouched;
use super::walk::{LeafStep, Step, Walk, last_component};

/// Bytes that are compared at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Removes what is in `tree` as a copy of what shines through from below anyway: files that are the same in kind, owner, mode,
/// time, xattrs and content, and then directories that have nothing in them and are the same but for their time.
/// Other directories keep the times that they had.
///
/// Such a directory is no entry of the layer's tar ([`super::write_tree`]), only its tree would have it: put on other layers,
/// where nothing of that name shines through, the tree would then show more than the tar, and a tar may well be that of
/// two layers.
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
    drop_empty_dirs(tree, here, below)
}

/// Removes the directories of `tree` that have nothing in them and are as below, their times aside.
fn drop_empty_dirs(tree: &Path, here: &dyn LowerView, below: &dyn LowerView) -> Result<()> {
    let root = dir::open_tree(tree).map_err(|error| TreeError::io("open", tree, error))?;
    if dir::own_xattrs(&root).map_err(|error| TreeError::io("read xattrs of", tree, error))?.is_opaque {
        return Ok(());
    }
    let mut walk = Walk::new(tree, Some(below))?;
    let (mut candidates, mut opaque) = (Vec::new(), Vec::<Vec<u8>>::new());
    while let Some(step) = walk.next_step()? {
        let Step::Dir(dir) = step else { continue };
        // Nothing shines through there.
        if dir.is_opaque || opaque.iter().any(|above| is_in(&dir.path, above)) {
            opaque.extend(dir.is_opaque.then_some(dir.path));
        } else if !dir.is_changed {
            candidates.push(dir.path);
        }
    }
    // What is in a directory before it: that may be all that it has.
    for path in candidates.iter().rev() {
        let whole = as_path(path);
        let xattrs = |view: &dyn LowerView| {
            let mut xattrs = view.xattrs(whole).map_err(|error| TreeError::io("read xattrs of", whole, error))?;
            xattrs.sort();
            Ok::<_, TreeError>(xattrs)
        };
        let (parent, name) = (whole.parent().unwrap_or(Path::new("")), last_component(path));
        let at = |operation| TreeError::io_at(operation, path);
        let fd = dir::open_dir(&root, path).map_err(at("open"))?;
        if !dir::list(&fd).map_err(at("list"))?.is_empty() || xattrs(here)? != xattrs(below)? {
            continue;
        }
        let parent_name = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent_fd = dir::open_dir(&root, parent_name.as_os_str().as_bytes()).map_err(at("open the parent of"))?;
        let untouched = Untouched::remember(parent_fd.as_fd(), parent.as_os_str().as_bytes())?;
        unlinkat(&parent_fd, name, AtFlags::REMOVEDIR).map_err(at("remove"))?;
        untouched.restore()?;
    }
    Ok(())
}

/// Whether `path` is below the directory `above`.
fn is_in(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.first() == Some(&b'/'))
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
