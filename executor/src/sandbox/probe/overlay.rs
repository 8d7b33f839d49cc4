//! Whether layers can be merged where the store lies: tried, on a thread with mounts of its own.

use std::fs::{self, DirBuilder};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use crate::sandbox::error::SandboxError;
use crate::sandbox::isolation::Isolation;
use crate::sandbox::overlay::Overlay;
use crate::sys::namespace::unshare;

/// How layers are merged here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayFacts {
    /// Layers are given one by one (`lowerdir+`, Linux ≥ 6.5), so that there can be any number of them.
    pub one_by_one: bool,
}

/// Merges three layers below `directory` as a step of that tier would, writes to them and deletes from them; leaves
/// nothing. [`super::super::confine`] must have been called.
///
/// # Errors
/// [`SandboxError`]; what could not be done is the store's file system's, or the machine's.
pub fn try_overlay(directory: &Path, isolation: Isolation) -> Result<OverlayFacts, SandboxError> {
    let scratch = tempfile::Builder::new()
        .prefix(".rbuild-doctor-")
        .tempdir_in(directory)
        .map_err(SandboxError::io("create a directory in", directory))?;
    let root = scratch.path();
    for name in ["base", "middle", "upper", "work", "merged"] {
        let path = root.join(name);
        DirBuilder::new().create(&path).map_err(SandboxError::io("create", &path))?;
    }
    for file in ["base/deleted", "middle/kept"] {
        let path = root.join(file);
        fs::write(&path, "x").map_err(SandboxError::io("write", &path))?;
    }
    // A thread of its own, because it never comes back to the mounts of the others.
    std::thread::scope(|scope| {
        scope.spawn(|| try_in_namespace(root, isolation)).join().unwrap_or(Err(SandboxError::Lost))
    })
}

fn try_in_namespace(root: &Path, isolation: Isolation) -> Result<OverlayFacts, SandboxError> {
    unshare(UnshareFlags::NEWNS).map_err(SandboxError::setup("make a mount namespace"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(SandboxError::setup("make mounts private"))?;
    let (base, middle, upper, work) = (root.join("base"), root.join("middle"), root.join("upper"), root.join("work"));
    let overlay = Overlay {
        lower: vec![&base, &middle],
        upper: Some((&upper, &work)),
        user_xattrs: isolation.needs_user_xattrs(),
        devices: false,
    };
    let merged = root.join("merged");
    let one_by_one = match overlay.mount_new(&merged) {
        Err(Errno::NOSYS | Errno::OPNOTSUPP) => overlay.mount(&merged).map(|_| false)?,
        result => result.map(|_| true).map_err(|errno| SandboxError::Mount {
            what: "layers".to_owned(),
            target: merged.display().to_string(),
            errno,
        })?,
    };
    let deleted = merged.join("deleted");
    fs::remove_file(&deleted).map_err(SandboxError::io("remove", &deleted))?;
    let kept = merged.join("kept");
    fs::write(&kept, "y").map_err(SandboxError::io("write", &kept))?;
    Ok(OverlayFacts { one_by_one })
}
