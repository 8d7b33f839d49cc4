//! Pushing: an image of the store, and all that it names, to registries. Spec: `spec/engine.md` §1.9 and §4.3.
//!
//! A [`Parcel`] says what an image consists of; a [`Pusher`] brings it to a repository, where what is there already is not
//! sent again. Blobs go first, at the same time; then the documents, each behind what it names; names come last. So a push
//! that is killed has named nothing, and the next one goes on from where it was. Layers may go while the build still runs
//! ([`EarlyTarget`]).

mod ahead;
mod early;
mod parcel;
mod reader;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use cache::Store;
use futures_util::future::try_join_all;
use oci::reference::DEFAULT_REGISTRY;
use oci::registry::{BlobReader, Client, Pushed, RegistryError};
use oci::{Descriptor, ImageRef};
use solver::{OpError, Step};
use tokio_util::sync::CancellationToken;

use crate::source::image::{ImageSource, observer};

pub(crate) use early::Early;
pub use early::EarlyTarget;
pub use parcel::{Blob, Document, Parcel};
pub(crate) use reader::open as open_blob;

/// Progress is reported once in so many bytes.
const PROGRESS_BYTES: u64 = 512 << 10;

/// Brings images of a store to registries. Cheap to clone.
#[derive(Clone)]
pub struct Pusher {
    /// Where the bytes are.
    pub store: Store,
    /// Fetches layers that are known and not here; its client is what everything is pushed through.
    pub images: Arc<ImageSource>,
    /// Stops everything.
    pub cancel: CancellationToken,
}

impl Pusher {
    /// Asks every registry whether it would take an image of that name, so that a refusal is known before the image is
    /// made.
    ///
    /// # Errors
    /// An [`OpError`] that says which would not, and what to do about it.
    pub async fn check(&self, names: &[ImageRef]) -> Result<(), OpError> {
        let client = self.images.client();
        let asked = by_repository(names).into_iter().map(async |(repository, _)| {
            client.check_push(&repository).await.map_err(|error| failure(&repository, &error))
        });
        match self.cancel.run_until_cancelled(try_join_all(asked)).await {
            Some(result) => result.map(drop),
            None => Err(OpError::cancelled()),
        }
    }

    /// Pushes under every one of `names`. A name without tag and digest means the digest alone.
    ///
    /// # Errors
    /// An [`OpError`] that says which registry did not take what, and what to do about it.
    pub async fn push(&self, parcel: &Parcel, names: &[ImageRef], step: &Step) -> Result<(), OpError> {
        let client = self.images.client().observed_by(observer(step));
        let work = async {
            for (repository, names) in by_repository(names) {
                self.push_blobs(&client, &repository, parcel, step).await?;
                push_documents(&client, &repository, &names, parcel, step).await?;
            }
            Ok(())
        };
        match self.cancel.run_until_cancelled(work).await {
            Some(result) => result,
            None => Err(OpError::cancelled()),
        }
    }

    /// All at once: the client limits what goes to one host at the same time.
    async fn push_blobs(
        &self,
        client: &Client,
        repository: &ImageRef,
        parcel: &Parcel,
        step: &Step,
    ) -> Result<(), OpError> {
        let blobs = parcel.blobs.iter().map(async |blob| {
            let pushed = self.push_blob(client, repository, blob, &|| step.clone()).await?;
            tell(&pushed, &blob.descriptor, step);
            Ok::<(), OpError>(())
        });
        try_join_all(blobs).await?;
        step.status("pushing layers", 0, 0, true);
        Ok(())
    }

    /// `shown` is asked for the step when there is something to show in it.
    async fn push_blob(
        &self,
        client: &Client,
        repository: &ImageRef,
        blob: &Blob,
        shown: &(dyn Fn() -> Step + Sync),
    ) -> Result<Pushed, OpError> {
        let descriptor = &blob.descriptor;
        // Whoever brings it to another repository of the registry is awaited: then it is mounted from there.
        let _turn = self.images.turn(repository.registry(), &descriptor.digest).await;
        let mounts = self.mounts(repository, blob)?;
        let sent = match self.send(client, repository, descriptor, &mounts, shown).await {
            // What came from a registry and can be had there again is not always here.
            Err(RegistryError::Local { .. }) if self.store.blob_path(&descriptor.digest).is_none() => {
                self.fetch(blob, &shown()).await?;
                self.send(client, repository, descriptor, &mounts, shown).await
            }
            sent => sent,
        };
        let pushed = sent.map_err(|error| failure(repository, &error))?;
        if let Some(diff_id) = &blob.diff_id {
            let place = repository.name_only().to_string();
            self.store.remember_remote(diff_id, descriptor, &place)?;
        }
        Ok(pushed)
    }

    async fn send(
        &self,
        client: &Client,
        repository: &ImageRef,
        blob: &Descriptor,
        mounts: &[String],
        shown: &(dyn Fn() -> Step + Sync),
    ) -> Result<Pushed, RegistryError> {
        let open = || -> io::Result<BlobReader> {
            let path = self.store.blob_path(&blob.digest).ok_or(io::ErrorKind::NotFound)?;
            reader::open(&path)
        };
        let mut reported = 0;
        let progress = |sent_bytes: u64| {
            // Less than before is a new try.
            if sent_bytes < reported || sent_bytes >= reported + PROGRESS_BYTES {
                reported = sent_bytes;
                shown().status(blob.digest.to_string(), sent_bytes, blob.size_bytes, false);
            }
        };
        client.push_blob(repository, blob, &open, mounts, progress).await
    }

    /// Repositories of the same registry that have the blob.
    fn mounts(&self, repository: &ImageRef, blob: &Blob) -> Result<Vec<String>, OpError> {
        let Some(diff_id) = &blob.diff_id else { return Ok(Vec::new()) };
        let known = self.store.find_remotes(diff_id)?.into_iter();
        let same = known.filter(|(descriptor, _)| descriptor.digest == blob.descriptor.digest);
        let places = same.filter_map(|(_, place)| ImageRef::parse_normalized(&place).ok());
        let here = places.filter(|place| place.registry() == repository.registry());
        Ok(here.map(|place| place.repository().to_owned()).collect())
    }

    async fn fetch(&self, blob: &Blob, step: &Step) -> Result<(), OpError> {
        let digest = &blob.descriptor.digest;
        if let Some(diff_id) = &blob.diff_id {
            self.images.ensure_blob(diff_id, step, &self.cancel).await?;
        }
        if self.store.blob_path(digest).is_none() {
            return Err(OpError::environment(format!("the store has lost the blob {digest}"))
                .help("build or pull the image again"));
        }
        Ok(())
    }
}

/// Shows how a blob came to be where it is.
fn tell(pushed: &Pushed, blob: &Descriptor, step: &Step) {
    let id = blob.digest.to_string();
    match pushed {
        Pushed::Uploaded => step.status(id, blob.size_bytes, blob.size_bytes, true),
        Pushed::Existed => step.status(format!("{id} exists"), 0, 0, true),
        Pushed::Mounted { from } => step.status(format!("{id} mounted from {from}"), 0, 0, true),
    }
}

async fn push_documents(
    client: &Client,
    repository: &ImageRef,
    names: &[ImageRef],
    parcel: &Parcel,
    step: &Step,
) -> Result<(), OpError> {
    let Some((top, named)) = parcel.documents.split_last() else {
        return Err(OpError::internal("an image without documents was to be pushed"));
    };
    let put = async |target: ImageRef, document: &Document| {
        let Document { descriptor, bytes } = document;
        let put = client.push_manifest(&target, &descriptor.media_type, bytes.clone()).await;
        put.map(drop).map_err(|error| failure(&target, &error))
    };
    for document in named {
        put(repository.name_only().with_digest(document.descriptor.digest.clone()), document).await?;
    }
    for name in names {
        let shown = name.clone().with_digest(top.descriptor.digest.clone());
        let target = if name.is_name_only() { shown.clone() } else { name.clone() };
        put(target, top).await?;
        step.status(format!("pushing manifest for {shown}"), 0, 0, true);
    }
    Ok(())
}

/// Repositories without tags, each with the names in it, in the order of the names.
fn by_repository(names: &[ImageRef]) -> Vec<(ImageRef, Vec<ImageRef>)> {
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    let mut list: Vec<(ImageRef, Vec<ImageRef>)> = Vec::new();
    for name in names {
        let repository = name.name_only();
        let index = *groups.entry(repository.to_string()).or_insert(list.len());
        if index == list.len() {
            list.push((repository, Vec::new()));
        }
        list[index].1.push(name.clone());
    }
    list
}

fn failure(target: &ImageRef, error: &RegistryError) -> OpError {
    let failure = OpError::environment(format!("failed to push {}: {error}", target.familiar()));
    match error {
        RegistryError::Unauthorized { had_credentials, attempt, .. } => {
            let why = if *had_credentials { "the credentials were refused; " } else { "" };
            let failure = failure.help(format!("{why}log in: rbuild login {}", attempt.host));
            if target.registry() == DEFAULT_REGISTRY && target.repository().starts_with("library/") {
                return failure
                    .help("a name without a registry or an owner is one of Docker's own images: tag it with yours");
            }
            failure
        }
        error if error.is_unreachable() => failure.help("what has been sent stays there: push again to go on"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_grouped_by_repository_in_their_order() {
        let names: Vec<ImageRef> =
            ["b/x:1", "a:1", "b/x:2", "a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
                .iter()
                .map(|name| ImageRef::parse_normalized(name).unwrap())
                .collect();
        let groups = by_repository(&names);
        let shown: Vec<(String, usize)> =
            groups.iter().map(|(repository, names)| (repository.familiar(), names.len())).collect();
        assert_eq!(shown, [("b/x".to_owned(), 2), ("a".to_owned(), 2)]);
    }
}
