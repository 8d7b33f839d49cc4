//! Images of several sources on their way into one index.

use oci::combine::{CombineError, Listed};
use oci::image::to_manifest_json;
use oci::{Descriptor, Digest, ImageConfig, ImageRef, Index, media_type};
use solver::{OpError, Step};

use super::{Depth, Relay, parse};
use crate::push::{Document, Parcel};

/// Images that go into an index.
#[derive(Clone, Debug)]
pub struct Ingredient {
    /// What they are, each with its platform, and what an index lists besides.
    pub entries: Vec<Listed>,
    /// Where they are.
    pub place: Place,
    /// The manifest or index, with its exact bytes.
    pub top: Document,
}

/// Where the images of a source are.
#[derive(Clone, Debug)]
pub enum Place {
    /// In a repository of a registry.
    Repository(ImageRef),
    /// In the store.
    Here(Parcel),
}

impl Relay {
    /// What `reference` names in its registry.
    ///
    /// # Errors
    /// An [`OpError`] with the registry's answer, or about a document that is none.
    pub async fn ingredient(&self, reference: &ImageRef, step: &Step) -> Result<Ingredient, OpError> {
        let top = self.top(reference, step).await?;
        let entries = self.entries(&top, &reference.familiar(), Some(reference)).await?;
        Ok(Ingredient { entries, place: Place::Repository(reference.name_only()), top })
    }

    /// An image of the store that has been packed.
    ///
    /// # Errors
    /// A document that is none.
    pub async fn stored_ingredient(&self, parcel: Parcel, origin: &str) -> Result<Ingredient, OpError> {
        let top = parcel.documents.last().cloned().ok_or_else(|| OpError::internal("an image without documents"))?;
        let entries = self.entries(&top, origin, None).await?;
        Ok(Ingredient { entries, place: Place::Here(parcel), top })
    }

    /// What an index lists; of a manifest, itself, with the platform that its config says.
    async fn entries(&self, top: &Document, origin: &str, from: Option<&ImageRef>) -> Result<Vec<Listed>, OpError> {
        let origin = origin.to_owned();
        if media_type::is_index(&top.descriptor.media_type) {
            let index: Index = parse(&top.descriptor.digest, &top.bytes)?;
            return Ok(index.manifests.into_iter().map(|entry| Listed { entry, origin: origin.clone() }).collect());
        }
        let mut entry = top.descriptor.clone();
        let manifest: oci::Manifest = parse(&entry.digest, &top.bytes)?;
        if matches!(manifest.config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
            let bytes = match from {
                Some(reference) => self.config(reference, &top.bytes).await?,
                None => self.store.read_blob(&manifest.config.digest)?.unwrap_or_default().into(),
            };
            let config: ImageConfig = parse(&manifest.config.digest, &bytes)?;
            entry.platform = Some(config.platform().normalized()).filter(|platform| !platform.os.is_empty());
        } else {
            entry.artifact_type = manifest.artifact_type.or(Some(manifest.config.media_type));
        }
        Ok(vec![Listed { entry, origin }])
    }

    /// All that has to be in `repositories` (or, if there are none, here) before `top` can be named there, which stands last.
    ///
    /// # Errors
    /// An [`OpError`]: something cannot be read.
    pub async fn parcel(
        &self,
        ingredients: &[Ingredient],
        top: Document,
        repositories: &[ImageRef],
        step: &Step,
    ) -> Result<Parcel, OpError> {
        let wanted = digests(&top)?;
        let mut parcel = Parcel { blobs: Vec::new(), documents: Vec::new() };
        for Ingredient { entries, place, .. } in ingredients {
            let part = match place {
                Place::Here(part) => part.clone(),
                Place::Repository(from) => {
                    let is_there = !repositories.is_empty() && repositories.iter().all(|it| it.name_only() == *from);
                    let depth = if is_there { Depth::Documents } else { Depth::Blobs };
                    let entries = entries.iter().map(|listed| &listed.entry);
                    let entries: Vec<Descriptor> = entries.filter(|it| wanted.contains(&it.digest)).cloned().collect();
                    self.read_entries(from, &entries, depth, step).await?
                }
            };
            add(&mut parcel, part, &wanted);
        }
        // A lone manifest is the top itself.
        parcel.documents.retain(|document| document.descriptor.digest != top.descriptor.digest);
        self.store.put_blob(&top.bytes)?;
        parcel.documents.push(top);
        Ok(parcel)
    }
}

/// Adds what is wanted of a part, each once. Blobs are all taken: only manifests know which are whose.
fn add(parcel: &mut Parcel, part: Parcel, wanted: &[Digest]) {
    for blob in part.blobs {
        if !parcel.blobs.iter().any(|known| known.descriptor.digest == blob.descriptor.digest) {
            parcel.blobs.push(blob);
        }
    }
    for document in part.documents {
        let digest = &document.descriptor.digest;
        let is_new = !parcel.documents.iter().any(|known| known.descriptor.digest == *digest);
        if is_new && wanted.contains(digest) {
            parcel.documents.push(document);
        }
    }
}

/// The manifests that the top names, or is.
fn digests(top: &Document) -> Result<Vec<Digest>, OpError> {
    if !media_type::is_index(&top.descriptor.media_type) {
        return Ok(vec![top.descriptor.digest.clone()]);
    }
    let index: Index = parse(&top.descriptor.digest, &top.bytes)?;
    Ok(index.manifests.into_iter().map(|entry| entry.digest).collect())
}

/// The bytes of an index, as they are stored and sent.
pub fn document(index: &Index) -> Document {
    let bytes = to_manifest_json(index);
    let media_type = index.media_type.as_deref().unwrap_or(media_type::OCI_INDEX);
    let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
    Document { descriptor, bytes: bytes.into() }
}

/// Images that cannot be combined are the user's.
pub fn fault(error: CombineError) -> OpError {
    let failure = OpError::input(error.to_string());
    match error {
        CombineError::SamePlatform { .. } => failure.help("an index has one image a platform: leave one of them out"),
        CombineError::Nested { .. } => failure.help("name the inner one by its digest"),
        CombineError::NoPlatform { .. } | CombineError::Nothing => failure,
    }
}
