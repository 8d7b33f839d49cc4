//! What a build has made, with all its documents: the image of one platform, or an index of several.
//!
//! Knows nothing of where it goes: a store, an archive and a registry all take [`BuiltImage::layers`], then
//! [`BuiltImage::documents`], and give names to [`BuiltImage::descriptor`]. Spec: `spec/engine.md` §1.6, §6.2.

use std::collections::BTreeMap;

use oci::image::to_manifest_json;
use oci::{Descriptor, Digest, Index, media_type};

use super::{Attestation, ImageDocuments, MediaTypes};

/// Annotations of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexAnnotations {
    /// In the index.
    pub index: BTreeMap<String, String>,
    /// In every descriptor of the index.
    pub descriptor: BTreeMap<String, String>,
}

/// One image, or an index of the images of several platforms.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// In the order in which the platforms were asked for; never empty.
    images: Vec<ImageDocuments>,
    /// What the index lists after the images.
    attestations: Vec<Attestation>,
    index: Option<IndexDocument>,
}

#[derive(Clone, Debug)]
struct IndexDocument {
    bytes: Vec<u8>,
    descriptor: Descriptor,
}

impl BuiltImage {
    /// The image of one platform, by itself.
    pub fn single(image: ImageDocuments) -> Self {
        Self { images: vec![image], attestations: Vec::new(), index: None }
    }

    /// An index of `images`, which keep their order; there may be only one. Docker's lists have no annotations.
    pub fn indexed(images: Vec<ImageDocuments>, types: MediaTypes, annotations: IndexAnnotations) -> Self {
        let (media_type, annotations) = match types {
            MediaTypes::Oci => (media_type::OCI_INDEX, annotations),
            MediaTypes::Docker => (media_type::DOCKER_LIST, IndexAnnotations::default()),
        };
        Self::listed(images, Vec::new(), media_type, annotations)
    }

    /// An index of `images` and of what is said about them, in these orders. There are no such lists of docker's.
    pub fn attested(
        images: Vec<ImageDocuments>,
        attestations: Vec<Attestation>,
        annotations: IndexAnnotations,
    ) -> Self {
        Self::listed(images, attestations, media_type::OCI_INDEX, annotations)
    }

    fn listed(
        images: Vec<ImageDocuments>,
        attestations: Vec<Attestation>,
        media_type: &str,
        annotations: IndexAnnotations,
    ) -> Self {
        let about = attestations.iter().map(|attestation| attestation.entry().clone());
        let bytes = to_manifest_json(&Index {
            schema_version: 2,
            media_type: Some(media_type.to_owned()),
            manifests: images.iter().map(ImageDocuments::descriptor).chain(about).collect(),
            annotations: annotations.index,
        });
        let descriptor = Descriptor {
            annotations: annotations.descriptor,
            ..Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64)
        };
        Self { images, attestations, index: Some(IndexDocument { bytes, descriptor }) }
    }

    /// The images, in the order in which the platforms were asked for.
    pub fn images(&self) -> &[ImageDocuments] {
        &self.images
    }

    /// The config, when there is no index: then its digest is the image ID.
    pub fn config_digest(&self) -> Option<&Digest> {
        match (&self.index, self.images.as_slice()) {
            (None, [image]) => Some(image.config_digest()),
            _ => None,
        }
    }

    /// Digest of the index, if there is one.
    pub fn index_digest(&self) -> Option<&Digest> {
        self.index.as_ref().map(|index| &index.descriptor.digest)
    }

    /// What names are given to: the index, or the manifest of the only image.
    pub fn descriptor(&self) -> Descriptor {
        match &self.index {
            Some(index) => index.descriptor.clone(),
            None => self.images[0].descriptor(),
        }
    }

    /// Configs, manifests, statements and the index, each before what names it. Equal ones of several platforms may come again.
    pub fn documents(&self) -> impl Iterator<Item = (Digest, &[u8])> {
        let of_images = self.images.iter().flat_map(|image| {
            let config = (image.config_digest().clone(), image.config.as_slice());
            [config, (image.descriptor().digest, image.manifest.as_slice())]
        });
        let index = self.index.iter().map(|index| (index.descriptor.digest.clone(), index.bytes.as_slice()));
        let about = self.attestations.iter().flat_map(Attestation::documents);
        of_images.chain(about).chain(index)
    }

    /// The layers of all images, base layers first; one that several have comes again.
    pub fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        self.images.iter().flat_map(|image| &image.parsed.layers)
    }
}

#[cfg(test)]
mod tests {
    use oci::{HistoryEntry, ImageConfig, Platform};

    use super::*;
    use crate::export::{Assembly, AttestationForm, ImageAnnotations, Statement, assemble};

    fn image(platform: &Platform, types: MediaTypes) -> ImageDocuments {
        let config = ImageConfig {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            ..ImageConfig::default()
        };
        let history = vec![HistoryEntry { empty_layer: true, ..HistoryEntry::default() }];
        let annotations = ImageAnnotations {
            descriptor: BTreeMap::from([("for".to_owned(), platform.architecture.clone())]),
            ..ImageAnnotations::default()
        };
        assemble(
            &Assembly { config, history, n_base_history: 0, epoch: None, keeps_nondistributable: false },
            &[],
            types,
            &annotations,
        )
    }

    fn platforms() -> [Platform; 2] {
        [Platform::new("linux", "arm", Some("v6")), Platform::new("linux", "amd64", None)]
    }

    #[test]
    fn an_index_lists_the_platforms_as_they_were_asked_for() {
        let images = platforms().map(|platform| image(&platform, MediaTypes::Oci));
        let annotations = IndexAnnotations {
            index: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            descriptor: BTreeMap::from([("c".to_owned(), "d".to_owned())]),
        };
        let built = BuiltImage::indexed(images.to_vec(), MediaTypes::Oci, annotations.clone());
        let documents: Vec<(Digest, &[u8])> = built.documents().collect();
        assert_eq!(documents.len(), 5);
        assert!(documents.iter().all(|(digest, bytes)| *digest == Digest::of(bytes)));
        let (digest, bytes) = documents.last().expect("the index comes last");
        assert_eq!((&built.descriptor().digest, built.index_digest()), (digest, Some(digest)));
        assert_eq!((built.descriptor().annotations, built.config_digest()), (annotations.descriptor, None));
        let index: Index = serde_json::from_slice(bytes).expect("an index");
        assert_eq!(index.annotations, annotations.index);
        let listed: Vec<_> =
            index.manifests.iter().map(|entry| (entry.platform.clone(), entry.digest.clone())).collect();
        let expected = images.each_ref().map(|image| (Some(image.platform.clone()), Digest::of(&image.manifest)));
        assert_eq!(listed, expected);
        assert_eq!(index.manifests[0].annotations["for"], "arm");
    }

    #[test]
    fn what_is_said_about_images_stands_behind_them() {
        let [platform, _] = platforms();
        let image = image(&platform, MediaTypes::Oci);
        let statement = Statement { predicate_type: "p".to_owned(), json: b"{}".to_vec() };
        let about = Attestation::new(&image.descriptor(), vec![statement], AttestationForm::Image);
        let entry = about.entry().clone();
        let built = BuiltImage::attested(vec![image.clone()], vec![about], IndexAnnotations::default());
        let documents: Vec<(Digest, &[u8])> = built.documents().collect();
        assert_eq!(documents.len(), 2 + 3 + 1);
        let (_, bytes) = documents.last().expect("the index comes last");
        let index: Index = serde_json::from_slice(bytes).expect("an index");
        assert_eq!(index.manifests, [image.descriptor(), entry]);
        assert!(built.config_digest().is_none(), "an image with attestations is an index");
    }

    #[test]
    fn a_lone_image_is_itself_unless_an_index_is_wanted() {
        let [platform, _] = platforms();
        let image = image(&platform, MediaTypes::Docker);
        let single = BuiltImage::single(image.clone());
        assert_eq!(single.config_digest(), Some(image.config_digest()));
        assert_eq!((single.descriptor(), single.index_digest()), (image.descriptor(), None));
        assert_eq!(single.documents().count(), 2);
        let indexed = BuiltImage::indexed(vec![image], MediaTypes::Docker, IndexAnnotations::default());
        assert_eq!(indexed.descriptor().media_type, media_type::DOCKER_LIST);
        assert!(indexed.config_digest().is_none());
    }
}
