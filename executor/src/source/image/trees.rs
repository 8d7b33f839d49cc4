//! Trees of the layers of a chain, made when somebody needs to look inside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::PoisonError;

use cache::{Layer, LayerId, LayerInfo, Store};
use futures_util::{StreamExt as _, stream};
use oci::{DiffId, Digest};
use solver::{Chain, OpError, Step};
use tokio_util::sync::CancellationToken;

use super::ImageSource;
use super::fetch::{UnpackedDraft, tree_error};
use crate::layer::{NothingBelow, fix_up};
use crate::source::blocking;
use crate::view::Below;

/// Layers that are unpacked at once. Each keeps a decompressor, a hasher and the disk busy.
const UNPACKED_AT_ONCE: usize = 4;

impl ImageSource {
    /// The trees of all layers of `chain`, base first, one a layer. Missing ones are pulled and unpacked, each by one
    /// process only.
    ///
    /// # Errors
    /// An [`OpError`] with every repository that was tried, or with what is wrong with a layer.
    pub async fn ensure_trees(
        &self,
        chain: &Chain,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<Vec<PathBuf>, OpError> {
        let (trees, missing) = self.find_trees(chain).await?;
        if missing.is_empty() {
            return Ok(trees.into_iter().flatten().collect());
        }
        // In the order of names, so that two builds with the same layers in another order do not wait for each other.
        let mut locks = Vec::with_capacity(missing.len());
        for id in missing {
            locks.push(self.lock(format!("tree-{id}"), cancel).await?);
        }
        let (trees, missing) = self.find_trees(chain).await?;
        let layers: BTreeMap<&LayerId, &Layer> = chain.layers().iter().map(|layer| (&layer.id, layer)).collect();
        // All are tried: of layers that can be made again, whoever does that wants to know every one that has to be.
        let unpacked: Vec<Result<_, OpError>> = stream::iter(missing)
            .map(|id| {
                let layer = layers[&id].clone();
                async move { Ok((id, self.unpack_layer(&layer, step, cancel).await?)) }
            })
            .buffer_unordered(UNPACKED_AT_ONCE)
            .collect()
            .await;
        let unpacked: BTreeMap<LayerId, UnpackedDraft> = unpacked.into_iter().collect::<Result<_, _>>()?;
        let (store, chain) = (self.store.clone(), chain.clone());
        let trees = blocking(move || attach(&store, &chain, trees, unpacked)).await?;
        drop(locks);
        Ok(trees)
    }

    async fn unpack_layer(
        &self,
        layer: &Layer,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<UnpackedDraft, OpError> {
        let (store, id) = (self.store.clone(), layer.id.clone());
        let info = blocking(move || store.layer(&id)).await?.ok_or_else(|| gone(&layer.id))?;
        let diff_id = info.diff_id.ok_or_else(|| gone(&layer.id))?;
        self.unpacked(&diff_id, step, cancel).await
    }

    /// The trees there are, base first, and the layers that have none, in the order of their names.
    async fn find_trees(&self, chain: &Chain) -> Result<(Vec<Option<PathBuf>>, BTreeSet<LayerId>), OpError> {
        let known: Vec<Option<PathBuf>> = {
            let trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
            chain.layers().iter().map(|layer| trees.get(&layer.id).cloned()).collect()
        };
        if known.iter().all(Option::is_some) {
            return Ok((known, BTreeSet::new()));
        }
        let (store, looked_at) = (self.store.clone(), chain.clone());
        let found = blocking(move || find(&store, &looked_at, known)).await?;
        let mut missing = BTreeSet::new();
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = found.into_iter().zip(chain.layers()).map(|(found, layer)| match found {
            // A tree that fits this chain only must not be taken for that of another one.
            Some(Tree { path, fits_all }) => {
                if fits_all {
                    trees.insert(layer.id.clone(), path.clone());
                }
                Some(path)
            }
            None => {
                missing.insert(layer.id.clone());
                None
            }
        });
        Ok((paths.collect(), missing))
    }
}

struct Tree {
    path: PathBuf,
    /// Whether it is the tree of its layer on top of whatever lies below.
    fits_all: bool,
}

fn find(store: &Store, chain: &Chain, known: Vec<Option<PathBuf>>) -> Result<Vec<Option<Tree>>, OpError> {
    let mut trees = Vec::with_capacity(known.len());
    for (idx, (layer, known)) in chain.layers().iter().zip(known).enumerate() {
        let own = match known {
            Some(path) => Some(path),
            None => store.layer(&layer.id)?.ok_or_else(|| gone(&layer.id))?.tree,
        };
        let tree = match own {
            Some(path) => Some(Tree { path, fits_all: true }),
            None => in_this_stack(store, chain, idx)?.tree.map(|path| Tree { path, fits_all: false }),
        };
        trees.push(tree);
    }
    Ok(trees)
}

/// The stand-in for layer `idx` of `chain`, under which its tree is kept when that depends on the layers below: when
/// the layer takes their directories for granted, or links to their files.
fn in_this_stack(store: &Store, chain: &Chain, idx: usize) -> Result<LayerInfo, OpError> {
    let names: Vec<&str> = chain.layers()[..=idx].iter().map(|layer| layer.id.as_str()).collect();
    let stack = DiffId::of_uncompressed(Digest::of(format!("rbuild stack v1 {}", names.join(" ")).as_bytes()));
    Ok(store.layer_for_diff_id(&stack)?)
}

/// Completes the unpacked trees from the base up, because each may need to look at those below.
fn attach(
    store: &Store,
    chain: &Chain,
    trees: Vec<Option<PathBuf>>,
    mut unpacked: BTreeMap<LayerId, UnpackedDraft>,
) -> Result<Vec<PathBuf>, OpError> {
    let mut complete: Vec<PathBuf> = Vec::with_capacity(trees.len());
    // A layer may lie in a chain twice (empty ones do); it is unpacked once.
    let mut made: BTreeMap<LayerId, PathBuf> = BTreeMap::new();
    for (idx, (layer, tree)) in chain.layers().iter().zip(trees).enumerate() {
        if let Some(tree) = tree.or_else(|| made.get(&layer.id).cloned()) {
            complete.push(tree);
            continue;
        }
        let UnpackedDraft { draft, unpacked } = unpacked.remove(&layer.id).ok_or_else(|| gone(&layer.id))?;
        if complete.is_empty() {
            fix_up(&draft.tree(), &NothingBelow, &unpacked).map_err(tree_error)?;
        } else {
            fix_up(&draft.tree(), &Below::new(complete.clone()), &unpacked).map_err(tree_error)?;
        }
        let id = match unpacked.is_self_contained() {
            true => layer.id.clone(),
            false => in_this_stack(store, chain, idx)?.layer.id,
        };
        let path = store.attach_tree(&id, draft)?;
        made.insert(layer.id.clone(), path.clone());
        complete.push(path);
    }
    Ok(complete)
}

fn gone(id: &LayerId) -> OpError {
    OpError::environment(format!("layer `{id}` has vanished from the store")).help("build again")
}
