//! Outlines: trees of layers that stay in their registry, made of what the layers' own lists say.
//!
//! A copy onto a base image asks of it which directories and links there are, whose they are, and perhaps the names of users.
//! eStargz layers have a list of all that, so such a build needs no byte of their files. An outline is a tree like any other,
//! but its files are empty; it is made by the same code, from a tar with the list's entries, lives as long as the process, and
//! is never in the store.
//!
//! A list counts when it has the digest that the image's manifest says. Whatever goes wrong, the layer itself is fetched.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::PoisonError;

use cache::{LayerInfo, Store, TreeDraft};
use futures_util::future::try_join_all;
use oci::layer::{FOOTER_BYTES, Listing, Place, TOC_DIGEST_ANNOTATION, toc_offset};
use oci::{Descriptor, Digest, ImageRef};
use solver::{Chain, OpError, Step};
use tokio_util::sync::CancellationToken;

use super::ImageSource;
use super::fetch::tree_error;
use crate::layer::{LowerView, NothingBelow, UnpackOptions, fix_up, unpack};
use crate::source::blocking;
use crate::view::Below;

/// So much of a blob's end is asked for at first: a list of some ten thousand files.
const TAIL_BYTES: u64 = 512 << 10;

/// Files whose content says who users are.
const ACCOUNTS: [&str; 2] = ["etc/passwd", "etc/group"];

/// Longer ones are none that anybody wrote.
const MOST_ACCOUNT_BYTES: u64 = 1 << 20;

/// A layer of which only a list is wanted.
struct Listed {
    blob: Descriptor,
    toc_digest: Digest,
    repository: ImageRef,
}

impl ImageSource {
    /// Trees that show which directories, links and users `chain` has, base first; files of some may be empty. `None` when
    /// layers have to be here for that.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn outlines(
        &self,
        chain: &Chain,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<Option<Vec<PathBuf>>, OpError> {
        let Some(layers) = self.with_lists(chain).await? else { return Ok(None) };
        let wanted = layers.iter().flat_map(|layer| layer.as_ref().err());
        let tars =
            async { cancel.run_until_cancelled(try_join_all(wanted.map(|listed| self.outline_tar(listed)))).await };
        let tars = match tars.await {
            None => return Err(OpError::cancelled()),
            Some(Ok(tars)) => tars,
            Some(Err(reason)) => {
                tracing::debug!(reason, "a layer is fetched whole");
                return Ok(None);
            }
        };
        for listed in layers.iter().filter_map(|layer| layer.as_ref().err()) {
            step.status(format!("list of {}", listed.blob.digest), 0, 0, true);
        }
        let (store, options) = (self.store.clone(), self.unpack);
        let made = blocking(move || unpack_all(&store, options, layers, tars));
        let (trees, drafts) = match made.await {
            Ok(made) => made,
            // What a list says may be nonsense that the layer itself is not.
            Err(error) => {
                tracing::debug!(error = %error.message, "a layer is fetched whole");
                return Ok(None);
            }
        };
        let mut outlines = self.outlines.lock().unwrap_or_else(PoisonError::into_inner);
        for (layer, draft) in chain.layers().iter().zip(drafts) {
            if let Some(draft) = draft {
                outlines.entry(layer.id.clone()).or_insert(draft);
            }
        }
        Ok(Some(trees))
    }

    /// For every layer its tree, or where its list is. `None` when some layer has neither, or all have trees.
    async fn with_lists(&self, chain: &Chain) -> Result<Option<Vec<Result<PathBuf, Listed>>>, OpError> {
        let (store, chain) = (self.store.clone(), chain.clone());
        let made: BTreeMap<_, _> = {
            let outlines = self.outlines.lock().unwrap_or_else(PoisonError::into_inner);
            outlines.iter().map(|(id, draft)| (id.clone(), draft.tree())).collect()
        };
        blocking(move || {
            let mut layers = Vec::with_capacity(chain.layers().len());
            let mut is_incomplete = false;
            for layer in chain.layers() {
                let info = crate::engine::known_layer(&store, layer)?;
                if let Some(tree) = &info.tree {
                    layers.push(Ok(tree.clone()));
                    continue;
                }
                is_incomplete = true;
                if let Some(tree) = made.get(&layer.id) {
                    layers.push(Ok(tree.clone()));
                } else if let Some(listed) = find_list(&store, &info)? {
                    layers.push(Err(listed));
                } else {
                    return Ok(None);
                }
            }
            Ok(is_incomplete.then_some(layers))
        })
        .await
    }

    /// A tar of everything that the list of a layer says.
    async fn outline_tar(&self, listed: &Listed) -> Result<Vec<u8>, String> {
        let end = listed.blob.size_bytes.checked_sub(FOOTER_BYTES).ok_or("the layer is too short")?;
        let tail_at = listed.blob.size_bytes.saturating_sub(TAIL_BYTES);
        let tail = self.part(listed, tail_at, TAIL_BYTES).await?;
        let footer_at = (end - tail_at) as usize;
        let toc_at = toc_offset(&tail[footer_at..]).filter(|offset| *offset < end).ok_or("the layer has no list")?;
        let member = match toc_at.checked_sub(tail_at) {
            Some(skipped) => tail[skipped as usize..footer_at].to_vec(),
            None => {
                let before = self.part(listed, toc_at, tail_at - toc_at).await?;
                [&before[..], &tail[..footer_at]].concat()
            }
        };
        let listing = Listing::read(&member, &listed.toc_digest).map_err(|error| error.to_string())?;
        let mut contents = BTreeMap::new();
        for path in ACCOUNTS {
            if let Some(place) = listing.place(path) {
                contents.insert(path, self.content(listed, &place).await?);
            }
        }
        listing.outline(&contents).map_err(|error| error.to_string())
    }

    async fn content(&self, listed: &Listed, place: &Place) -> Result<Vec<u8>, String> {
        if place.most_bytes() > MOST_ACCOUNT_BYTES {
            return Err("the layer's list of users is too long".to_owned());
        }
        let bytes = self.part(listed, place.offset_bytes, place.most_bytes()).await?;
        place.read(&bytes).ok_or_else(|| "a file of the layer is not what the list says".to_owned())
    }

    async fn part(&self, listed: &Listed, first_byte: u64, len_bytes: u64) -> Result<bytes::Bytes, String> {
        let part = self.client.fetch_part(&listed.repository, &listed.blob, first_byte, len_bytes).await;
        part.map_err(|error| error.to_string())?.ok_or_else(|| "the registry does not give parts of layers".to_owned())
    }
}

/// Makes trees of the tars, each over those before it. Those that were made now come with their drafts.
fn unpack_all(
    store: &Store,
    options: UnpackOptions,
    layers: Vec<Result<PathBuf, Listed>>,
    tars: Vec<Vec<u8>>,
) -> Result<(Vec<PathBuf>, Vec<Option<TreeDraft>>), OpError> {
    let mut trees: Vec<PathBuf> = Vec::with_capacity(layers.len());
    let mut drafts = Vec::with_capacity(layers.len());
    let mut tars = tars.into_iter();
    for layer in layers {
        if let Ok(tree) = layer {
            trees.push(tree);
            drafts.push(None);
            continue;
        }
        let draft = store.new_tree()?;
        let unpacked =
            unpack(tars.next().unwrap_or_default().as_slice(), &draft.tree(), &options).map_err(tree_error)?;
        let below = Below::new(trees.clone());
        let lower: &dyn LowerView = if trees.is_empty() { &NothingBelow } else { &below };
        fix_up(&draft.tree(), lower, &unpacked).map_err(tree_error)?;
        trees.push(draft.tree());
        drafts.push(Some(draft));
    }
    Ok((trees, drafts))
}

/// Where the list of a layer is, if the layer is not here and has one.
fn find_list(store: &Store, info: &LayerInfo) -> Result<Option<Listed>, OpError> {
    let Some(diff_id) = info.diff_id.as_ref().filter(|_| !info.has_tar) else { return Ok(None) };
    if !store.find_blobs(diff_id)?.is_empty() {
        return Ok(None);
    }
    for (blob, repository) in store.find_remotes(diff_id)? {
        let toc_digest = blob.annotations.get(TOC_DIGEST_ANNOTATION).and_then(|digest| digest.parse().ok());
        if let (Some(toc_digest), Ok(repository)) = (toc_digest, ImageRef::parse_normalized(&repository)) {
            return Ok(Some(Listed { blob, toc_digest, repository }));
        }
    }
    Ok(None)
}
