//! Media types, as `spec/engine.md` §1.4 lists them, and the kind of a manifest whose media type is not to be trusted.

use serde::Deserialize;

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, plain tar.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, plain tar.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// OCI layer that stays where its `urls` point, uncompressed.
pub const OCI_NONDIST_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// OCI layer that stays where its `urls` point, gzip.
pub const OCI_NONDIST_LAYER_GZIP: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
/// OCI layer that stays where its `urls` point, zstd.
pub const OCI_NONDIST_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd";
/// Docker layer that stays where its `urls` point, uncompressed.
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// Docker layer that stays where its `urls` point, gzip.
pub const DOCKER_FOREIGN_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// Whether `media_type` names an index or manifest list.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether `media_type` names an image manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether `media_type` names a layer that stays where its `urls` point and is not pushed.
pub fn is_nondistributable(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

/// The type of the same bytes when they may be pushed; the type itself of everything but a layer that is not to be.
pub fn distributable(media_type: &str) -> &str {
    match media_type {
        OCI_NONDIST_LAYER | DOCKER_FOREIGN_LAYER => OCI_LAYER,
        OCI_NONDIST_LAYER_GZIP | DOCKER_FOREIGN_LAYER_GZIP => OCI_LAYER_GZIP,
        OCI_NONDIST_LAYER_ZSTD => OCI_LAYER_ZSTD,
        other => other,
    }
}

/// Bytes that are no manifest or index, or are both.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestKindError {
    /// No JSON object.
    #[error("manifest is not a JSON object: {reason}")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// It names `manifests` and also `config` or `layers`; tools would disagree about what it is.
    #[error("invalid ambiguous manifest and manifest list")]
    Ambiguous,
    /// Neither of them.
    #[error("manifest names neither `manifests` nor `config` and `layers`")]
    Neither,
    /// The media type inside contradicts the shape.
    #[error("mediaType in manifest does not match manifest contents: `{media_type}`")]
    Mismatch {
        /// The media type inside.
        media_type: String,
    },
    /// A Docker schema 1 manifest.
    #[error("manifest is in Docker schema 1, support for which has been removed")]
    Schema1,
}

/// The media type of a manifest or index, by its shape; what the document says of itself must agree.
///
/// # Errors
/// [`ManifestKindError`], one variant a reason.
///
/// Spec: `spec/engine.md` §4.4.
pub fn of_manifest(bytes: &[u8]) -> Result<String, ManifestKindError> {
    /// Presence is all that counts; `null` is absent, as in Go.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        schema_version: u32,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape =
        serde_json::from_slice(bytes).map_err(|error| ManifestKindError::Json { reason: error.to_string() })?;
    let looks_like_index = shape.manifests.is_some();
    let looks_like_manifest = shape.config.is_some() || shape.layers.is_some();
    let said = shape.media_type.filter(|text| !text.is_empty());
    if shape.schema_version == 1 || shape.fs_layers.is_some() {
        return Err(ManifestKindError::Schema1);
    }
    match (looks_like_index, looks_like_manifest, said) {
        (true, true, _) => Err(ManifestKindError::Ambiguous),
        (true, false, None) => Ok(OCI_INDEX.to_owned()),
        (false, true, None) => Ok(OCI_MANIFEST.to_owned()),
        (true, false, Some(said)) if is_index(&said) => Ok(said),
        (false, true, Some(said)) if is_manifest(&said) => Ok(said),
        // An index without entries may leave the list out.
        (false, false, Some(said)) if is_index(&said) => Ok(said),
        (false, false, _) => Err(ManifestKindError::Neither),
        (_, _, Some(media_type)) => Err(ManifestKindError::Mismatch { media_type }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_media_types() {
        let docker = format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{{}},"layers":[]}}"#);
        let list = format!(r#"{{"mediaType":"{DOCKER_LIST}","manifests":[]}}"#);
        let bare_index = format!(r#"{{"mediaType":"{OCI_INDEX}"}}"#);
        let cases = [
            (r#"{"schemaVersion":2,"config":{},"layers":[]}"#, Ok(OCI_MANIFEST)),
            (r#"{"config":{},"layers":null}"#, Ok(OCI_MANIFEST)),
            (r#"{"manifests":[],"mediaType":""}"#, Ok(OCI_INDEX)),
            (&docker, Ok(DOCKER_MANIFEST)),
            (&list, Ok(DOCKER_LIST)),
            (&bare_index, Ok(OCI_INDEX)),
            (r#"{"manifests":[],"layers":[]}"#, Err(ManifestKindError::Ambiguous)),
            (r#"{"schemaVersion":2}"#, Err(ManifestKindError::Neither)),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, Err(ManifestKindError::Schema1)),
        ];
        for (json, expected) in cases {
            assert_eq!(of_manifest(json.as_bytes()), expected.map(str::to_owned), "{json}");
        }
        let contradicting = format!(r#"{{"mediaType":"{OCI_INDEX}","layers":[]}}"#);
        assert!(matches!(of_manifest(contradicting.as_bytes()), Err(ManifestKindError::Mismatch { .. })));
        let contradicting = format!(r#"{{"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
        assert!(matches!(of_manifest(contradicting.as_bytes()), Err(ManifestKindError::Mismatch { .. })));
        assert!(matches!(of_manifest(b"{\"mediaType\":\"x\",\"layers\":[]}"), Err(ManifestKindError::Mismatch { .. })));
        assert!(matches!(of_manifest(b"[]"), Err(ManifestKindError::Json { .. })));
        assert!(matches!(of_manifest(b""), Err(ManifestKindError::Json { .. })));
    }
}
