//! Images: what a reference names, which layers an image has, and the trees of those layers.
//!
//! Nothing is moved before it is needed: resolving reads documents only, and layers stay where they are until somebody
//! asks for their trees or blobs. Every document and blob is verified before it gets its name in the store.
//!
//! Spec: `spec/engine.md` §4.2.

mod fetch;
mod local_layout;
mod lost;
mod outlines;
mod pace;
mod reach;
mod resolve;
#[cfg(test)]
mod tests;
mod trees;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cache::remote::RemoteCache;
use cache::{LayerId, Store, TreeDraft};
use oci::registry::Client;
use solver::{Chain, ImageOp, OpError, Step};

pub(crate) use outlines::Asked;
pub(crate) use resolve::observer;

use super::blocking;
use crate::layer::UnpackOptions;
use outlines::List;
use reach::Reach;

/// Whom to ask first what a reference names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// The local store; the registry when it has no image of that name. Tags of a registry are asked for anew in every
    /// build; when it cannot be reached, what it said last counts.
    #[default]
    Missing,
    /// The registry, which must answer (`--pull`).
    Always,
    /// The local store and what a registry said before; no network.
    Never,
}

/// Finds images and brings their layers here.
pub struct ImageSource {
    store: Store,
    client: Client,
    policy: PullPolicy,
    unpack: UnpackOptions,
    /// Trees that this process has seen; leases keep them while it runs.
    trees: Mutex<HashMap<LayerId, PathBuf>>,
    /// Trees of layers that are not here, and what of them; removed with this.
    outlines: Mutex<HashMap<(LayerId, Reach), TreeDraft>>,
    /// What is in layers that are not here.
    lists: Mutex<HashMap<LayerId, Arc<List>>>,
    /// For layers that can be made again: does not try for long.
    hasty: Client,
    /// Places that layers may be fetched from.
    caches: Mutex<Vec<Arc<dyn RemoteCache>>>,
    lost: lost::Lost,
    turns: lost::Turns,
}

impl ImageSource {
    /// A source that pulls through `client` into `store`.
    pub fn new(store: Store, client: Client, policy: PullPolicy, unpack: UnpackOptions) -> Self {
        Self {
            store,
            hasty: client.clone(),
            client,
            policy,
            unpack,
            trees: Mutex::default(),
            outlines: Mutex::default(),
            lists: Mutex::default(),
            caches: Mutex::default(),
            lost: lost::Lost::default(),
            turns: lost::Turns::default(),
        }
    }

    /// The same, which pulls results of steps through `hasty`: one that soon gives up, because they can be made again.
    #[must_use]
    pub fn with_hasty_client(self, hasty: Client) -> Self {
        Self { hasty, ..self }
    }

    /// What it pulls through.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The layers of an image, base first. Moves nothing; layers may have no local form yet.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn chain(&self, image: &ImageOp, step: &Step) -> Result<Chain, OpError> {
        step.status(format!("resolve {}@{}", image.reference, image.manifest), 0, 0, true);
        let (store, diff_ids) = (self.store.clone(), image.diff_ids.clone());
        blocking(move || {
            let layers = diff_ids.iter().map(|diff_id| Ok(store.layer_for_diff_id(diff_id)?.layer));
            Ok(Chain::new(layers.collect::<Result<_, OpError>>()?))
        })
        .await
    }
}
