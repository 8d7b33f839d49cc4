//! Cache mounts: finding, emptying and seeding the persistent directories of a step.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cache::{CacheMount, MountRequest, Sharing, Store, UsageKind};
use rustix::fs::Mode;
use solver::OpError;
use tokio_util::sync::CancellationToken;

use crate::copy_out::copy_out;
use crate::owners;

/// One cache mount of a step.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Identity as the Dockerfile has it, with namespace.
    pub(super) id: String,
    pub(super) sharing: Sharing,
    pub(super) base: Base,
    /// For `du`.
    pub(super) description: String,
}

/// What a new cache directory begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Nothing; the directory has this owner, group and mode.
    Empty { uid: u32, gid: u32, mode: u32 },
    /// A directory of another result.
    Tree { identity: String, layers: Vec<PathBuf>, path: String },
}

impl Wanted {
    /// The store's name for it: caches that begin differently are different.
    pub(super) fn store_id(&self) -> String {
        match &self.base {
            Base::Empty { uid: 0, gid: 0, mode: 0o755 } => self.id.clone(),
            Base::Empty { uid, gid, mode } => format!("{}\0owner={uid}:{gid}:{mode:o}", self.id),
            Base::Tree { identity, path, .. } => format!("{}\0base={identity}:{path}", self.id),
        }
    }
}

/// Which caches a build has emptied already.
pub(super) type Resets = Mutex<HashSet<String>>;

/// Takes all caches of a step, by their store ids. Waits for locked ones; blocks.
///
/// They are taken in the order of their ids, whatever order the step names them in: so no two steps wait for each
/// other.
pub(super) fn take(
    store: &Store,
    wanted: &[Wanted],
    empty_first: Option<&Resets>,
    cancel: &CancellationToken,
) -> Result<BTreeMap<String, CacheMount>, OpError> {
    let by_id: BTreeMap<String, &Wanted> = wanted.iter().map(|wanted| (wanted.store_id(), wanted)).collect();
    let mut taken = BTreeMap::new();
    for (store_id, wanted) in by_id {
        if let Some(resets) = empty_first
            && resets.lock().unwrap_or_else(PoisonError::into_inner).insert(store_id.clone())
        {
            store.reset_cache_mount(&store_id)?;
        }
        let request = MountRequest {
            id: &store_id,
            sharing: wanted.sharing,
            kind: UsageKind::CacheMount,
            description: &wanted.description,
        };
        let Some(mut mount) = store.cache_mount_unless(&request, &|| cancel.is_cancelled())? else {
            return Err(OpError::cancelled());
        };
        if mount.is_new {
            lay_down(&wanted.base, &mount, cancel)?;
            mount.mark_ready();
        }
        taken.insert(store_id, mount);
    }
    Ok(taken)
}

fn lay_down(base: &Base, mount: &CacheMount, cancel: &CancellationToken) -> Result<(), OpError> {
    match base {
        Base::Empty { uid, gid, mode } => {
            let set = || {
                owners::chown(&mount.path, *uid, *gid)?;
                rustix::fs::chmod(&mount.path, Mode::from_raw_mode(*mode))
            };
            set().map_err(|errno| {
                OpError::environment(format!("cannot set the owner and mode of `{}`: {errno}", mount.path.display()))
            })
        }
        Base::Tree { layers, path, .. } => {
            // A cache begins with files; devices, pipes and sockets have no business in it.
            Ok(copy_out(layers, Path::new(path), &mount.path, false, &|| cancel.is_cancelled())?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(base: Base) -> Wanted {
        Wanted { id: "/root/.cache".to_owned(), sharing: Sharing::Shared, base, description: String::new() }
    }

    #[test]
    fn what_a_cache_begins_with_tells_it_apart() {
        let empty = |uid, mode| wanted(Base::Empty { uid, gid: 0, mode }).store_id();
        let tree = |identity: &str| {
            let base = Base::Tree { identity: identity.to_owned(), layers: Vec::new(), path: "/".to_owned() };
            wanted(base).store_id()
        };
        assert_eq!(empty(0, 0o755), "/root/.cache");
        let all = [empty(0, 0o755), empty(1, 0o755), empty(0, 0o700), tree("a"), tree("b")];
        let distinct: HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
