//! From a reference to the config of one platform's image.

use std::sync::Arc;

use oci::registry::{MAX_MANIFEST_SIZE, Notice, RegistryError, image_platforms, select_platform};
use oci::{Descriptor, Digest, ImageConfig, ImageRef, Index, Manifest, Platform, media_type};
use serde::de::DeserializeOwned;
use solver::{OpError, ResolvedImage, Step, Stream};

use super::{ImageSource, PullPolicy};
use crate::source::blocking;

/// Why one place does not have an image.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Store(#[from] cache::StoreError),
    /// A document that is not stored, where no registry may be asked.
    #[error("`{0}` is not stored")]
    Blob(Digest),
    /// BuildKit's words; who reads them is told the platforms besides.
    #[error("no match for platform in manifest: not found")]
    Platform { wanted: String, known: Vec<String> },
    #[error("`{digest}` is no usable {kind}: {reason}")]
    Document { digest: Digest, kind: &'static str, reason: String },
}

impl Missing {
    fn without_reference(&self) -> String {
        match self {
            Self::Registry(error) => error.without_reference(),
            other => other.to_string(),
        }
    }
}

/// Where documents may come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Store,
    Registry,
}

/// Places that were asked in vain, for the message.
#[derive(Default)]
struct Tried(Vec<String>);

impl ImageSource {
    /// Finds what `reference` names for `platform`: a named image of the store first, then the registry, then what the
    /// registry said last. Stores manifest and config, and notes where the layers are; names no image.
    ///
    /// # Errors
    /// `failed to resolve source metadata for REF: …`, with every place that was tried.
    pub async fn resolve(
        &self,
        reference: &ImageRef,
        platform: &Platform,
        step: &Step,
    ) -> Result<ResolvedImage, OpError> {
        let reference = &reference.clone().with_default_tag();
        let mut tried = Tried::default();
        let mut here_for_others = None;
        if self.policy != PullPolicy::Always {
            match self.named_here(reference).await? {
                None => tried.add("the local store", "no image of that name"),
                Some(top) => match self.read_image(reference, top, platform, Reach::Store).await {
                    Ok(image) => return Ok(image),
                    Err(reason) => {
                        tried.add("the local store", &answer(&reason).unwrap_or_else(|| reason.to_string()));
                        here_for_others = matches!(reason, Missing::Platform { .. }).then_some(reason);
                    }
                },
            }
        }
        let failure = match self.policy {
            PullPolicy::Never => None,
            PullPolicy::Missing | PullPolicy::Always => match self.ask_registry(reference, platform, step).await {
                Ok(image) => return Ok(image),
                Err(error) => {
                    let answer = answer(&error).unwrap_or_else(|| "it gave no usable image".to_owned());
                    tried.add(&format!("the registry {}", reference.registry()), &answer);
                    Some(error)
                }
            },
        };
        let is_unreachable = matches!(&failure, Some(Missing::Registry(error)) if error.is_unreachable());
        if self.policy != PullPolicy::Always && (failure.is_none() || is_unreachable) {
            match self.seen_last(reference, platform).await {
                Ok(image) => {
                    if let Some(failure) = &failure {
                        let why = failure.without_reference();
                        step.warn(format!("using {reference}@{} as seen last: {why}", image.top_digest));
                    }
                    return Ok(image);
                }
                Err(reason) => tried.add("what the registry said last", &reason),
            }
        }
        // An image that is here under that name is the one that was meant, whatever a registry says.
        let error = tried.into_error(reference, here_for_others.or(failure));
        // With `--pull`, what was seen last is not asked for, and may be all that can be had.
        if self.policy == PullPolicy::Always
            && is_unreachable
            && let Ok(image) = self.seen_last(reference, platform).await
        {
            let last = format!("{reference}@{}", image.top_digest);
            return Err(error.help(format!("without --pull, it is built on {last} as seen last")));
        }
        Err(error)
    }

    /// The image of that name in the store, or any stored manifest where the reference has a digest.
    async fn named_here(&self, reference: &ImageRef) -> Result<Option<Descriptor>, OpError> {
        let (store, reference) = (self.store.clone(), reference.clone());
        blocking(move || {
            let Some(digest) = reference.digest() else {
                return Ok(store.image(&reference)?.map(|image| image.target));
            };
            let Some(bytes) = store.read_blob(digest)? else { return Ok(None) };
            // Something else that has this digest is no image, which the registry may say better.
            let kind = media_type::of_manifest(&bytes).ok();
            Ok(kind.map(|kind| Descriptor::new(&kind, digest.clone(), bytes.len() as u64)))
        })
        .await
    }

    async fn ask_registry(
        &self,
        reference: &ImageRef,
        platform: &Platform,
        step: &Step,
    ) -> Result<ResolvedImage, Missing> {
        let client = self.client.observed_by(observer(step));
        let resolved = client.resolve(reference).await?;
        if let Some(bytes) = resolved.bytes {
            let store = self.store.clone();
            blocking(move || store.put_blob(&bytes)).await?;
        }
        let image = self.read_image(reference, resolved.descriptor.clone(), platform, Reach::Registry).await?;
        let (store, reference) = (self.store.clone(), reference.clone());
        blocking(move || store.remember_resolution(&reference, &resolved.descriptor)).await?;
        Ok(image)
    }

    async fn seen_last(&self, reference: &ImageRef, platform: &Platform) -> Result<ResolvedImage, String> {
        let (store, name) = (self.store.clone(), reference.clone());
        let top = blocking(move || store.find_resolution(&name)).await.map_err(|error| error.to_string())?;
        let top = top.ok_or_else(|| "it was never asked".to_owned())?;
        self.read_image(reference, top, platform, Reach::Store).await.map_err(|error| error.to_string())
    }

    /// Follows the documents from `top` to the config of the platform's image.
    async fn read_image(
        &self,
        reference: &ImageRef,
        top: Descriptor,
        platform: &Platform,
        reach: Reach,
    ) -> Result<ResolvedImage, Missing> {
        let bytes = self.document(reference, &top, reach).await?;
        let kind = media_type::of_manifest(&bytes).map_err(|error| unusable(&top, "manifest", &error))?;
        let (found, bytes) = if media_type::is_index(&kind) {
            let index: Index = parse(&top, "index", &bytes)?;
            let child = select_platform(&index, platform).cloned().ok_or_else(|| no_match(&index, platform))?;
            if media_type::is_index(&child.media_type) {
                return Err(unusable(&child, "manifest", &"it is an index inside of an index"));
            }
            let bytes = self.document(reference, &child, reach).await?;
            if media_type::of_manifest(&bytes).is_ok_and(|kind| media_type::is_index(&kind)) {
                return Err(unusable(&child, "manifest", &"it is an index inside of an index"));
            }
            (child, bytes)
        } else {
            (top.clone(), bytes)
        };
        let manifest: Manifest = parse(&found, "manifest", &bytes)?;
        let config = self.config(reference, &manifest.config, reach).await?;
        let (n_layers, n_diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if n_layers != n_diff_ids {
            let reason = format!("it has {n_layers} layers, and its config {n_diff_ids} diff IDs");
            return Err(unusable(&found, "manifest", &reason));
        }
        self.note_remotes(reference, &manifest, &config).await?;
        let named = config.platform().normalized();
        let is_named = !named.os.is_empty() && !named.architecture.is_empty();
        Ok(ResolvedImage {
            reference: reference.clone(),
            top_digest: top.digest,
            manifest: found.digest,
            platform: if is_named { named } else { platform.clone() },
            config,
        })
    }

    /// A manifest or index: from the store, else from the registry if that may be asked.
    async fn document(&self, reference: &ImageRef, descriptor: &Descriptor, reach: Reach) -> Result<Vec<u8>, Missing> {
        if let Some(bytes) = self.stored(&descriptor.digest, reach).await? {
            return Ok(bytes);
        }
        let bytes = self.client.fetch_manifest(reference, descriptor).await?;
        self.keep(bytes.into()).await
    }

    async fn config(
        &self,
        reference: &ImageRef,
        descriptor: &Descriptor,
        reach: Reach,
    ) -> Result<ImageConfig, Missing> {
        let bytes = match self.stored(&descriptor.digest, reach).await? {
            Some(bytes) => bytes,
            None => {
                let bytes = self.client.fetch_small_blob(reference, descriptor, MAX_MANIFEST_SIZE).await?;
                self.keep(bytes.into()).await?
            }
        };
        parse(descriptor, "image config", &bytes)
    }

    /// A stored document; an error when it is not there and nobody else may be asked.
    async fn stored(&self, digest: &Digest, reach: Reach) -> Result<Option<Vec<u8>>, Missing> {
        let (store, wanted) = (self.store.clone(), digest.clone());
        match blocking(move || store.read_blob(&wanted)).await? {
            None if reach == Reach::Store => Err(Missing::Blob(digest.clone())),
            found => Ok(found),
        }
    }

    async fn keep(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Missing> {
        let store = self.store.clone();
        Ok(blocking(move || store.put_blob(&bytes).map(|_| bytes)).await?)
    }

    /// Notes where the layers are to be had, for whoever needs them later.
    async fn note_remotes(
        &self,
        reference: &ImageRef,
        manifest: &Manifest,
        config: &ImageConfig,
    ) -> Result<(), Missing> {
        let (store, repository) = (self.store.clone(), reference.name_only().to_string());
        let layers: Vec<_> = config.rootfs.diff_ids.iter().cloned().zip(manifest.layers.iter().cloned()).collect();
        blocking(move || {
            for (diff_id, descriptor) in layers {
                let place = (descriptor, repository.clone());
                if !store.find_remotes(&diff_id)?.contains(&place) {
                    store.remember_remote(&diff_id, &place.0, &place.1)?;
                }
                // An image that was loaded has its blobs here already.
                if store.blob_path(&place.0.digest).is_some() {
                    store.remember_foreign_blob(&diff_id, &place.0)?;
                }
            }
            Ok(())
        })
        .await
    }
}

impl Tried {
    fn add(&mut self, place: &str, reason: &str) {
        self.0.push(format!("{place} ({reason})"));
    }

    /// The message has the decisive reason, and all places behind it.
    fn into_error(self, reference: &ImageRef, failure: Option<Missing>) -> OpError {
        let reason = match &failure {
            // The reference is in the sentence already.
            Some(failure) => failure.without_reference(),
            None => format!("{reference}: not found"),
        };
        let message = format!("failed to resolve source metadata for {reference}: {reason}");
        let is_inputs_fault = match &failure {
            None | Some(Missing::Platform { .. } | Missing::Document { .. } | Missing::Blob(_)) => true,
            Some(Missing::Registry(error)) => error.is_not_found() || error.is_unauthorized(),
            Some(Missing::Store(_)) => false,
        };
        let error = if is_inputs_fault { OpError::input(message) } else { OpError::environment(message) };
        let error = match &failure {
            Some(Missing::Platform { wanted, known }) => {
                error.help(format!("it is wanted for {wanted}, and there is one for {}", listed(known)))
            }
            _ => error,
        };
        let error = error.help(format!("tried {}", self.0.join(", ")));
        match &failure {
            Some(Missing::Registry(RegistryError::Unauthorized { had_credentials, attempt, .. })) => {
                let why = if *had_credentials { "the credentials were refused; " } else { "" };
                error.help(format!("{why}log in: rbuild login {}", attempt.host))
            }
            _ => error,
        }
    }
}

/// What a place answered, in a word; the message has the rest. `None` when it gave nothing that could be used.
fn answer(error: &Missing) -> Option<String> {
    match error {
        Missing::Registry(error) if error.is_not_found() => Some("it has no such image".to_owned()),
        Missing::Registry(error) if error.is_unauthorized() => Some("it denied access".to_owned()),
        Missing::Registry(error) if error.is_unreachable() => Some("it cannot be reached".to_owned()),
        Missing::Platform { known, .. } => Some(format!("it has the image for {}", listed(known))),
        _ => None,
    }
}

fn no_match(index: &Index, wanted: &Platform) -> Missing {
    let known = image_platforms(index).map(Platform::to_string).collect();
    Missing::Platform { wanted: wanted.to_string(), known }
}

/// `a, b and c`; images of an index that has none are for no platform.
fn listed(platforms: &[String]) -> String {
    match platforms {
        [] => "no platform".to_owned(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// Passes on what a person may want to see of the client's doings.
pub(crate) fn observer(step: &Step) -> oci::registry::Observer {
    let step = step.clone();
    Arc::new(move |notice| {
        let text = match notice {
            Notice::Retry { error, delay } => format!("{}, trying again in {delay:?}\n", error.without_reference()),
            Notice::Fallback { error, next_host } => format!("{}, trying {next_host}\n", error.without_reference()),
            Notice::Credentials { host, reason } => format!("cannot use the credentials for {host}: {reason}\n"),
            Notice::Token { .. } => return,
        };
        step.log(Stream::Stderr, text.into_bytes());
    })
}

fn parse<T: DeserializeOwned>(descriptor: &Descriptor, kind: &'static str, bytes: &[u8]) -> Result<T, Missing> {
    serde_json::from_slice(bytes).map_err(|error| unusable(descriptor, kind, &error))
}

fn unusable(descriptor: &Descriptor, kind: &'static str, reason: &dyn std::fmt::Display) -> Missing {
    Missing::Document { digest: descriptor.digest.clone(), kind, reason: reason.to_string() }
}
