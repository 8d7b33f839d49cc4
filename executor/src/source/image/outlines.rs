//! Outlines: trees of layers that stay in their registry, made of what the layers' own lists say.
//!
//! A copy onto a base image asks of it which directories and links there are, whose they are, and perhaps the names of users.
//! eStargz layers have a list of all that, so such a build needs no byte of their files. An outline is a tree like any other,
//! but its files are empty; it is made by the same code, from a tar with the list's entries, lives as long as the process, and
//! is never in the store.
//!
//! Of a list, an outline has what the copy can reach: what is on the way to its destination, and below it.
//!
//! A list counts when it has the digest that the image's manifest says. Whatever goes wrong, the layer itself is fetched.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use cache::{LayerId, LayerInfo, Store, TreeDraft};
use futures_util::future::try_join_all;
use oci::layer::{FOOTER_BYTES, Listing, Place, TOC_DIGEST_ANNOTATION, toc_offset};
use oci::{Descriptor, Digest, ImageRef};
use solver::{Chain, OpError, Step};
use tokio_util::sync::CancellationToken;

use super::ImageSource;
use super::fetch::tree_error;
use super::reach::{Reach, leaves};
use crate::layer::{LowerView, NothingBelow, UnpackOptions, fix_up, unpack};
use crate::source::blocking;
use crate::view::Below;

/// So much of a blob's end is asked for at first: a list of some ten thousand files.
const TAIL_BYTES: u64 = 512 << 10;

/// Files whose content says who users are.
const ACCOUNTS: [&str; 2] = ["etc/passwd", "etc/group"];

/// Longer ones are none that anybody wrote.
const MOST_ACCOUNT_BYTES: u64 = 1 << 20;

/// A layer that is not here and has a list.
struct Listed {
    blob: Descriptor,
    toc_digest: Digest,
    repository: ImageRef,
}

/// What is in a layer, by its list.
pub(super) struct List {
    listing: Listing,
    /// Of files that say who users are.
    contents: BTreeMap<&'static str, Vec<u8>>,
}

/// What somebody wants to know of a root.
#[derive(Clone, Debug)]
pub enum Asked {
    /// What can be reached by absolute paths.
    Paths(Vec<String>),
    /// What lies below a tree that was made on top of it.
    Below(PathBuf),
}

/// What there is of a layer.
enum Form<L> {
    Tree(PathBuf),
    List(L),
}

impl ImageSource {
    /// Trees that show which directories, links and users `chain` has, base first; files of some may be empty. Of layers
    /// that are elsewhere they have what is `asked` for. `None` when layers have to be here for that.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn outlines(
        &self,
        chain: &Chain,
        asked: Asked,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<Option<Vec<PathBuf>>, OpError> {
        let Some(layers) = self.with_lists(chain).await? else { return Ok(None) };
        let lists = try_join_all(layers.iter().map(async |layer| match layer {
            Form::Tree(tree) => Ok::<_, String>(Form::Tree(tree.clone())),
            Form::List((id, listed)) => Ok(Form::List((id.clone(), self.list(id, listed.as_ref(), step).await?))),
        }));
        let lists: Vec<Form<(LayerId, Arc<List>)>> = match cancel.run_until_cancelled(lists).await {
            None => return Err(OpError::cancelled()),
            Some(Ok(lists)) => lists,
            Some(Err(reason)) => return whole(&reason),
        };
        let made: HashMap<(LayerId, Reach), PathBuf> = {
            let outlines = self.outlines.lock().unwrap_or_else(PoisonError::into_inner);
            outlines.iter().map(|(key, draft)| (key.clone(), draft.tree())).collect()
        };
        let (store, options) = (self.store.clone(), self.unpack);
        let unpacked = blocking(move || {
            let reach = reach_of(&asked, &lists);
            let (trees, drafts) = unpack_all(&store, options, &lists, &reach, &made)?;
            Ok::<_, OpError>((reach, trees, drafts))
        });
        let (reach, trees, drafts) = match unpacked.await {
            Ok(made) => made,
            // What a list says may be nonsense that the layer itself is not.
            Err(error) => return whole(&error.message),
        };
        let mut outlines = self.outlines.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, draft) in drafts {
            outlines.entry((id, reach.clone())).or_insert(draft);
        }
        Ok(Some(trees))
    }

    /// For every layer its tree, or where its list is unless it is known. `None` when some layer has neither, or all have trees.
    async fn with_lists(&self, chain: &Chain) -> Result<Option<Vec<Form<(LayerId, Option<Listed>)>>>, OpError> {
        let (store, chain) = (self.store.clone(), chain.clone());
        let known: HashSet<LayerId> = {
            let lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
            lists.keys().cloned().collect()
        };
        blocking(move || {
            let mut layers = Vec::with_capacity(chain.layers().len());
            for layer in chain.layers() {
                let info = crate::engine::known_layer(&store, layer)?;
                layers.push(match &info.tree {
                    Some(tree) => Form::Tree(tree.clone()),
                    None if known.contains(&layer.id) => Form::List((layer.id.clone(), None)),
                    None => match find_list(&store, &info)? {
                        Some(listed) => Form::List((layer.id.clone(), Some(listed))),
                        None => return Ok(None),
                    },
                });
            }
            let is_incomplete = layers.iter().any(|layer| matches!(layer, Form::List(_)));
            Ok(is_incomplete.then_some(layers))
        })
        .await
    }

    /// The list of a layer, which is fetched once.
    async fn list(&self, id: &LayerId, listed: Option<&Listed>, step: &Step) -> Result<Arc<List>, String> {
        let known = self.lists.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if let Some(list) = known {
            return Ok(list);
        }
        let listed = listed.ok_or("the list of the layer is gone")?;
        let list = Arc::new(self.fetch_list(listed).await?);
        step.status(format!("list of {}", listed.blob.digest), 0, 0, true);
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), list.clone());
        Ok(list)
    }

    async fn fetch_list(&self, listed: &Listed) -> Result<List, String> {
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
        Ok(List { listing, contents })
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

/// What is asked for of a root, with what says who its users are.
fn reach_of(asked: &Asked, layers: &[Form<(LayerId, Arc<List>)>]) -> Reach {
    let paths = match asked {
        Asked::Paths(paths) => Some(Cow::Borrowed(paths)),
        Asked::Below(tree) => leaves(tree).map(Cow::Owned),
    };
    let Some(paths) = paths else { return Reach::everything() };
    let mut reach = Reach::of(paths.iter().map(String::as_str).chain(ACCOUNTS));
    // Each layer may have links that lead to those of others.
    loop {
        let before = reach.clone();
        for layer in layers {
            match layer {
                Form::Tree(tree) => match reach.links_of(tree) {
                    Some(links) => reach.follow(links.iter().map(|(link, target)| (link.as_str(), target.as_str()))),
                    None => return Reach::everything(),
                },
                Form::List((_, list)) => reach.follow(list.listing.links()),
            }
        }
        if reach == before {
            return reach;
        }
    }
}

/// Trees that were made now, by their layers.
type Drafts = Vec<(LayerId, TreeDraft)>;

/// Makes trees of what lists say and is within reach, each over those before it.
fn unpack_all(
    store: &Store,
    options: UnpackOptions,
    layers: &[Form<(LayerId, Arc<List>)>],
    reach: &Reach,
    made: &HashMap<(LayerId, Reach), PathBuf>,
) -> Result<(Vec<PathBuf>, Drafts), OpError> {
    let mut trees: Vec<PathBuf> = Vec::with_capacity(layers.len());
    let mut drafts: Drafts = Vec::new();
    for layer in layers {
        let (id, list) = match layer {
            Form::Tree(tree) => {
                trees.push(tree.clone());
                continue;
            }
            Form::List(list) => list,
        };
        if let Some(tree) = made.get(&(id.clone(), reach.clone())) {
            trees.push(tree.clone());
            continue;
        }
        let tar = list.listing.outline(&list.contents, &|path| reach.has(path));
        let tar = tar.map_err(|error| OpError::environment(error.to_string()))?;
        let draft = store.new_tree()?;
        let unpacked = unpack(tar.as_slice(), &draft.tree(), &options).map_err(tree_error)?;
        let below = Below::new(trees.clone());
        let lower: &dyn LowerView = if trees.is_empty() { &NothingBelow } else { &below };
        fix_up(&draft.tree(), lower, &unpacked).map_err(tree_error)?;
        trees.push(draft.tree());
        drafts.push((id.clone(), draft));
    }
    Ok((trees, drafts))
}

/// Nothing less than the layers will do.
fn whole<T>(reason: &str) -> Result<Option<T>, OpError> {
    tracing::debug!(reason, "layers are fetched whole");
    Ok(None)
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
