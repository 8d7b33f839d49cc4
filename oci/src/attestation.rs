//! Attestations: manifests in an index that say something about another manifest of it (SBOM, provenance).
//!
//! They are carried along with what they describe, and are never an image that something could run. This module knows how
//! they are marked; what they say is not its business.
//!
//! Spec: `spec/engine.md` §1.15.

use crate::digest::Digest;
use crate::image::Descriptor;
use crate::media_type::{is_index, is_manifest};
use crate::platform::Platform;

/// Annotation of an index entry: what the entry is, when it is no image.
pub const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Annotation of an index entry: digest of the manifest that the entry speaks about.
pub const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
/// The [`REFERENCE_TYPE`] of an attestation manifest.
pub const ATTESTATION_MANIFEST: &str = "attestation-manifest";

/// Whether an index entry speaks about another one.
pub fn is_attestation(entry: &Descriptor) -> bool {
    entry.annotations.get(REFERENCE_TYPE).is_some_and(|kind| kind == ATTESTATION_MANIFEST)
}

/// The manifest that an attestation speaks about; `None` for what is no attestation.
pub fn described(entry: &Descriptor) -> Option<Digest> {
    entry.annotations.get(REFERENCE_DIGEST).filter(|_| is_attestation(entry))?.parse().ok()
}

/// Whether an index entry is an image (or an index of images): no attestation, no artifact, no `unknown` platform.
pub fn is_image(entry: &Descriptor) -> bool {
    let is_document = is_manifest(&entry.media_type) || is_index(&entry.media_type);
    let is_unknown = entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
    is_document && !is_unknown && entry.artifact_type.is_none() && !entry.annotations.contains_key(REFERENCE_TYPE)
}

/// The index entry for the attestation manifest `manifest`, which speaks about `of`.
pub fn entry(manifest: &Descriptor, of: &Digest) -> Descriptor {
    let mut entry = manifest.clone();
    entry.platform = Some(Platform::new("unknown", "unknown", None));
    entry.annotations.insert(REFERENCE_TYPE.to_owned(), ATTESTATION_MANIFEST.to_owned());
    entry.annotations.insert(REFERENCE_DIGEST.to_owned(), of.to_string());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media_type::OCI_MANIFEST;

    #[test]
    fn attestations_are_told_from_images() {
        let image = Descriptor::new(OCI_MANIFEST, Digest::of(b"image"), 5);
        let attestation = entry(&Descriptor::new(OCI_MANIFEST, Digest::of(b"says"), 4), &image.digest);
        assert!(is_image(&image) && !is_attestation(&image));
        assert!(!is_image(&attestation) && is_attestation(&attestation));
        assert_eq!(described(&attestation), Some(image.digest.clone()));
        assert_eq!(described(&image), None);
        assert_eq!(attestation.platform.as_ref().map(ToString::to_string).as_deref(), Some("unknown/unknown"));
        let unmarked = Descriptor { annotations: Default::default(), ..attestation };
        assert!(!is_image(&unmarked));
    }
}
