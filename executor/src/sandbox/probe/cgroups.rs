//! Control groups: which kind, which controllers, and whether this process may make groups.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::sandbox::cgroup::Hierarchy;

/// How control groups are organised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupLayout {
    /// There are none.
    None,
    /// Version 2.
    Unified,
    /// Version 1.
    Legacy,
    /// Version 1 with an empty tree of version 2 beside it.
    Hybrid,
}

/// Control groups as this process finds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFacts {
    /// Which kind.
    pub layout: CgroupLayout,
    /// Controllers that groups of ours can have.
    pub controllers: Vec<String>,
    /// Where groups would be made; `None` when there is no such place.
    pub directory: Option<PathBuf>,
    /// Whether they can be.
    pub writable: bool,
}

/// Looks; nothing is made.
pub fn cgroup_facts() -> CgroupFacts {
    let hierarchy = Hierarchy::of_this_process();
    let unified = hierarchy.unified_directory();
    match &hierarchy {
        Hierarchy::None => CgroupFacts {
            layout: if unified.is_some() { CgroupLayout::Unified } else { CgroupLayout::None },
            controllers: Vec::new(),
            writable: unified.as_deref().is_some_and(is_writable),
            directory: unified,
        },
        Hierarchy::Unified { .. } => {
            let controllers = unified.as_deref().map(|own| own.join("cgroup.controllers"));
            let controllers = controllers.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
            CgroupFacts {
                layout: CgroupLayout::Unified,
                controllers: controllers.split_whitespace().map(str::to_owned).collect(),
                writable: unified.as_deref().is_some_and(is_writable),
                directory: unified,
            }
        }
        Hierarchy::Legacy { trees } => {
            let directory = trees.iter().map(|(_, mount, _)| mount.clone()).next();
            CgroupFacts {
                layout: if unified.is_some() { CgroupLayout::Hybrid } else { CgroupLayout::Legacy },
                controllers: trees.iter().flat_map(|(names, ..)| names.iter().cloned()).collect(),
                writable: trees.iter().all(|(_, mount, own)| {
                    is_writable(&mount.join(own.strip_prefix("/").unwrap_or(own))) || is_writable(mount)
                }),
                directory,
            }
        }
    }
}

fn is_writable(directory: &Path) -> bool {
    rustix::fs::access(directory, Access::WRITE_OK).is_ok()
}
