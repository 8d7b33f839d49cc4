//! Attestation manifests: statements about an image, as documents that stand beside it in an index.
//!
//! Pure, and knows nothing of what statements say. Spec: `spec/engine.md` §1.15.

use std::collections::BTreeMap;

use oci::image::to_manifest_json;
use oci::{Descriptor, DiffId, Digest, ImageConfig, Manifest, RootFs, attestation, media_type};

/// Media type of a statement.
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
/// Annotation of a statement: what it says.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// What an attestation manifest is as an artifact.
const ARTIFACT_TYPE: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Media type and bytes of the config of what has none.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY_JSON: &[u8] = b"{}";
/// [`EMPTY_JSON`] in base64.
const EMPTY_DATA: &str = "e30=";

/// An in-toto statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// URI of what it says: `https://slsa.dev/provenance/v1`.
    pub predicate_type: String,
    /// Compact JSON.
    pub json: Vec<u8>,
}

/// How an attestation manifest looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttestationForm {
    /// An OCI artifact whose subject is the image.
    Artifact,
    /// An image for no platform, for registries that know nothing else.
    Image,
}

/// The statements about one image, with their documents.
#[derive(Clone, Debug)]
pub struct Attestation {
    entry: Descriptor,
    /// Statements and config, then the manifest that names them.
    documents: Vec<(Digest, Vec<u8>)>,
}

impl Attestation {
    /// Puts `statements` about the image with the manifest `image` into documents, in their order.
    pub fn new(image: &Descriptor, statements: Vec<Statement>, form: AttestationForm) -> Self {
        let layers: Vec<Descriptor> = statements.iter().map(layer).collect();
        let (config_type, config_json) = match form {
            AttestationForm::Artifact => (EMPTY_TYPE, EMPTY_JSON.to_vec()),
            AttestationForm::Image => (media_type::OCI_CONFIG, no_image(&layers)),
        };
        let mut config = Descriptor::new(config_type, Digest::of(&config_json), config_json.len() as u64);
        let is_artifact = form == AttestationForm::Artifact;
        config.data = is_artifact.then(|| EMPTY_DATA.to_owned());
        let subject = Descriptor::new(&image.media_type, image.digest.clone(), image.size_bytes);
        let manifest = to_manifest_json(&Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: is_artifact.then(|| ARTIFACT_TYPE.to_owned()),
            config: config.clone(),
            layers: layers.clone(),
            subject: is_artifact.then_some(subject),
            annotations: BTreeMap::new(),
        });
        let descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&manifest), manifest.len() as u64);
        let blobs = layers.into_iter().map(|layer| layer.digest).zip(statements.into_iter().map(|it| it.json));
        let others = [(config.digest, config_json), (descriptor.digest.clone(), manifest)];
        Self { entry: attestation::entry(&descriptor, &image.digest), documents: blobs.chain(others).collect() }
    }

    /// What the index lists.
    pub fn entry(&self) -> &Descriptor {
        &self.entry
    }

    /// All bytes with their digests, each before what names it.
    pub fn documents(&self) -> impl Iterator<Item = (Digest, &[u8])> {
        self.documents.iter().map(|(digest, bytes)| (digest.clone(), bytes.as_slice()))
    }
}

fn layer(statement: &Statement) -> Descriptor {
    let mut layer = Descriptor::new(STATEMENT_TYPE, Digest::of(&statement.json), statement.json.len() as u64);
    layer.annotations.insert(PREDICATE_TYPE.to_owned(), statement.predicate_type.clone());
    layer
}

/// The config of an image that nothing runs.
fn no_image(layers: &[Descriptor]) -> Vec<u8> {
    let diff_ids = layers.iter().map(|layer| DiffId::of_uncompressed(layer.digest.clone())).collect();
    let config = ImageConfig {
        architecture: "unknown".to_owned(),
        os: "unknown".to_owned(),
        rootfs: RootFs { diff_ids, ..RootFs::default() },
        ..ImageConfig::default()
    };
    config.to_json()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(form: AttestationForm) -> (Attestation, serde_json::Value) {
        let image = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(b"image"), 5);
        let statement =
            Statement { predicate_type: "https://spdx.dev/Document".to_owned(), json: b"{\"a\":1}".to_vec() };
        let made = Attestation::new(&image, vec![statement], form);
        let (_, manifest) = made.documents().last().expect("a manifest");
        let manifest = serde_json::from_slice(manifest).expect("JSON");
        (made, manifest)
    }

    #[test]
    fn both_forms_are_as_buildkit_writes_them() {
        let (artifact, manifest) = made(AttestationForm::Artifact);
        assert!(artifact.documents().all(|(digest, bytes)| digest == Digest::of(bytes)));
        assert_eq!(manifest["artifactType"], ARTIFACT_TYPE);
        assert_eq!(manifest["subject"]["digest"], Digest::of(b"image").to_string());
        assert_eq!((&manifest["config"]["data"], &manifest["config"]["size"]), (&"e30=".into(), &2.into()));
        assert_eq!(manifest["layers"][0]["annotations"][PREDICATE_TYPE], "https://spdx.dev/Document");
        assert_eq!(attestation::described(artifact.entry()), Some(Digest::of(b"image")));

        let (image, manifest) = made(AttestationForm::Image);
        assert!(manifest.get("artifactType").is_none() && manifest.get("subject").is_none());
        let (_, config) = image.documents().nth(1).expect("a config");
        let statement = Digest::of(b"{\"a\":1}");
        let expected = format!(
            r#"{{"architecture":"unknown","config":{{}},"os":"unknown","rootfs":{{"type":"layers","diff_ids":["{statement}"]}}}}"#
        );
        assert_eq!(String::from_utf8_lossy(config), expected);
    }
}
