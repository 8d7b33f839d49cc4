//! Directories with copies of layers: made when a step first needs them, kept for the step that follows.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use super::super::error::SandboxError;
use crate::copy_out::copy_out;

/// Roots that are kept: as many stages as are usually built at once.
const MOST_KEPT: usize = 4;

/// A layer's tree, wherever it is renamed to: device and inode.
type TreeId = (u64, u64);

/// A directory that holds what a chain of layers holds.
pub(in crate::sandbox) struct Root {
    directory: TempDir,
    chain: Vec<TreeId>,
}

impl Root {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// The roots of one process that no step is using.
#[derive(Default)]
pub(in crate::sandbox) struct Roots {
    kept: Mutex<Vec<Root>>,
    has_warned: AtomicBool,
}

impl Roots {
    /// What is not protected, for the first step of a process.
    pub(super) fn warning(&self) -> Option<String> {
        const WARNING: &str = "steps are kept in a directory and nothing else: they see the processes and the network of \
                               this machine, and secrets lie in their roots (`rbuild doctor` says what is missing for more)";
        (!self.has_warned.swap(true, Ordering::Relaxed)).then(|| WARNING.to_owned())
    }

    /// A root with the layers `lower` (base first), made below `scratch` unless there is one.
    pub(super) fn take(
        &self,
        lower: &[PathBuf],
        scratch: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<Root, SandboxError> {
        let chain = lower.iter().map(|tree| tree_id(tree)).collect::<Result<Vec<_>, _>>()?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(position) = kept.iter().position(|root| root.chain == chain) {
            return Ok(kept.remove(position));
        }
        drop(kept);
        let directory = tempfile::Builder::new()
            .prefix("root-")
            .tempdir_in(scratch)
            .map_err(SandboxError::io("create a directory in", scratch))?;
        copy_out(lower, Path::new("/"), directory.path(), true, stop)?;
        Ok(Root { directory, chain })
    }

    /// Keeps a root in which a step has just written what is now in `upper`.
    pub(super) fn give_back(&self, mut root: Root, upper: &Path) {
        let Ok(id) = tree_id(upper) else { return };
        root.chain.push(id);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == MOST_KEPT {
            kept.remove(0);
        }
        kept.push(root);
    }
}

fn tree_id(tree: &Path) -> Result<TreeId, SandboxError> {
    let found = std::fs::metadata(tree).map_err(SandboxError::io("read", tree))?;
    Ok((found.dev(), found.ino()))
}
