//! Image documents out of a planned config and solved layers.
//!
//! Pure: the same input gives the same bytes. Spec: `spec/engine.md` §1.5, §1.6 and §1.8; `spec/dockerfile.md` §9.2.

use std::collections::BTreeMap;

use oci::image::to_manifest_json;
use oci::{Descriptor, DiffId, Digest, HistoryEntry, ImageConfig, Manifest, Platform, media_type};

use crate::packer::PackedLayer;

/// What is known of an image before its documents are written.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// Config without `rootfs`, `created` and `history`.
    pub config: ImageConfig,
    /// All entries, oldest first; those of the base image have their times already.
    pub history: Vec<HistoryEntry>,
    /// How many leading entries of `history` are the base image's.
    pub n_base_history: usize,
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: Option<i64>,
    /// Layers of the base that are not to be pushed keep the media types and addresses that say so.
    pub keeps_nondistributable: bool,
}

/// One layer of the image, base layer first in lists.
#[derive(Clone, Debug)]
pub struct AssembledLayer {
    /// Digest of its tar.
    pub diff_id: DiffId,
    /// Seconds since the epoch at which it was made.
    pub created_at: i64,
    /// The blob that the manifest names.
    pub blob: Descriptor,
    /// The time that no time in it is later than, when it was written again for that.
    pub clamped_to: Option<i64>,
}

impl From<PackedLayer> for AssembledLayer {
    fn from(layer: PackedLayer) -> Self {
        let PackedLayer { diff_id, created_at, blob, clamped_to } = layer;
        Self { diff_id, created_at, blob, clamped_to }
    }
}

/// Annotations of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageAnnotations {
    /// In the manifest.
    pub manifest: BTreeMap<String, String>,
    /// In every descriptor of the manifest: in an index, and where a layout lists its images.
    pub descriptor: BTreeMap<String, String>,
}

/// The documents of one platform's image, ready to be stored.
#[derive(Clone, Debug)]
pub struct ImageDocuments {
    /// What it runs on.
    pub platform: Platform,

    /// The config's exact bytes; their digest is the image ID.
    pub config: Vec<u8>,
    /// The manifest's exact bytes.
    pub manifest: Vec<u8>,
    /// The manifest as parsed.
    pub parsed: Manifest,
    /// Annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

impl ImageDocuments {
    /// Digest of the config: the ID of the image.
    pub fn config_digest(&self) -> &Digest {
        &self.parsed.config.digest
    }

    /// A descriptor of the manifest, with the platform if that is known.
    pub fn descriptor(&self) -> Descriptor {
        let media_type = self.parsed.media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST);
        Descriptor {
            platform: Some(&self.platform).filter(|it| !it.os.is_empty() && !it.architecture.is_empty()).cloned(),
            annotations: self.annotations.clone(),
            ..Descriptor::new(media_type, Digest::of(&self.manifest), self.manifest.len() as u64)
        }
    }
}

/// Which family of media types a manifest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaTypes {
    /// `application/vnd.oci.…`
    Oci,
    /// `application/vnd.docker.…`, without annotations.
    Docker,
}

/// Writes config and manifest.
///
/// `layers` is base layer first. Their blobs have OCI media types; they are converted when `types` says so.
pub fn assemble(
    assembly: &Assembly,
    layers: &[AssembledLayer],
    types: MediaTypes,
    annotations: &ImageAnnotations,
) -> ImageDocuments {
    let config = config(assembly, layers);
    let platform = config.platform();
    let config = config.to_json();
    let (config_type, manifest_type) = match types {
        MediaTypes::Oci => (media_type::OCI_CONFIG, media_type::OCI_MANIFEST),
        MediaTypes::Docker => (media_type::DOCKER_CONFIG, media_type::DOCKER_MANIFEST),
    };
    let ImageAnnotations { manifest: in_manifest, descriptor } = match types {
        MediaTypes::Oci => annotations.clone(),
        MediaTypes::Docker => ImageAnnotations::default(),
    };
    let parsed = Manifest {
        schema_version: 2,
        media_type: Some(manifest_type.to_owned()),
        artifact_type: None,
        config: Descriptor::new(config_type, Digest::of(&config), config.len() as u64),
        layers: layers.iter().map(|layer| layer_descriptor(layer, types, assembly.keeps_nondistributable)).collect(),
        subject: None,
        annotations: in_manifest,
    };
    ImageDocuments { platform, config, manifest: to_manifest_json(&parsed), parsed, annotations: descriptor }
}

fn config(assembly: &Assembly, layers: &[AssembledLayer]) -> ImageConfig {
    let history = history(assembly, layers);
    let epoch = assembly.epoch.map(rfc3339);
    let last = history.last().and_then(|entry| entry.created.clone());
    let mut config = assembly.config.clone();
    config.created = epoch.or(last);
    config.history = history;
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    config
}

/// Makes the number of entries with a layer equal to the number of layers, and gives every entry a time.
fn history(assembly: &Assembly, layers: &[AssembledLayer]) -> Vec<HistoryEntry> {
    let mut history = assembly.history.clone();
    let mut unassigned = layers.iter();
    for entry in history.iter_mut().filter(|entry| !entry.empty_layer) {
        match unassigned.next() {
            Some(layer) => {
                entry.created.get_or_insert_with(|| rfc3339(layer.created_at));
            }
            // An entry that claims a layer which does not exist.
            None => entry.empty_layer = true,
        }
    }
    for layer in unassigned {
        history.push(HistoryEntry {
            created: Some(rfc3339(layer.created_at)),
            comment: "buildkit.exporter.image.v0".to_owned(),
            ..HistoryEntry::default()
        });
    }
    fill_times(&mut history);
    if let Some(epoch) = assembly.epoch.map(rfc3339) {
        for entry in history.iter_mut().skip(assembly.n_base_history) {
            entry.created = Some(epoch.clone());
        }
    }
    history
}

/// Metadata entries take the time of the first new layer, later ones that of the entry before them.
fn fill_times(history: &mut [HistoryEntry]) {
    let first_gap = history.iter().position(|entry| entry.created.is_none());
    let Some(first_gap) = first_gap else { return };
    let after = history[first_gap..].iter().find_map(|entry| entry.created.clone());
    let before = history[..first_gap].iter().rev().find_map(|entry| entry.created.clone());
    let mut time = after.or(before);
    for entry in &mut history[first_gap..] {
        match &entry.created {
            Some(created) => time = Some(created.clone()),
            None => entry.created = time.clone(),
        }
    }
}

fn layer_descriptor(layer: &AssembledLayer, types: MediaTypes, keeps_nondistributable: bool) -> Descriptor {
    let blob = &layer.blob;
    let is_kept = keeps_nondistributable && media_type::is_nondistributable(&blob.media_type);
    let media_type = if is_kept { &*blob.media_type } else { media_type::distributable(&blob.media_type) };
    let media_type = match types {
        MediaTypes::Oci => oci_layer_type(media_type),
        MediaTypes::Docker => docker_layer_type(media_type),
    };
    let mut descriptor = Descriptor::new(media_type, blob.digest.clone(), blob.size_bytes);
    if is_kept {
        descriptor.urls = blob.urls.clone();
    }
    if types == MediaTypes::Oci {
        let own = blob.annotations.iter().filter(|(name, _)| !is_internal(name));
        descriptor.annotations.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    }
    if let (MediaTypes::Oci, Some(seconds)) = (types, layer.clamped_to) {
        descriptor.annotations.insert(CLAMPED_ANNOTATION.to_owned(), seconds.to_string());
    }
    descriptor
}

/// Notes of builders and stores that no image has.
fn is_internal(annotation: &str) -> bool {
    const PREFIXES: [&str; 3] =
        ["containerd.io/uncompressed", "containerd.io/distribution.source.", "buildkit/createdat"];
    PREFIXES.iter().any(|prefix| annotation.starts_with(prefix))
}

/// Says of a layer that its times were clamped, and to what. Spec: `spec/engine.md` §1.8.
const CLAMPED_ANNOTATION: &str = "buildkit/rewritten-timestamp";

fn oci_layer_type(media_type: &str) -> &str {
    match media_type {
        media_type::DOCKER_LAYER => media_type::OCI_LAYER,
        media_type::DOCKER_LAYER_GZIP => media_type::OCI_LAYER_GZIP,
        media_type::DOCKER_LAYER_ZSTD => media_type::OCI_LAYER_ZSTD,
        media_type::DOCKER_FOREIGN_LAYER => media_type::OCI_NONDIST_LAYER,
        media_type::DOCKER_FOREIGN_LAYER_GZIP => media_type::OCI_NONDIST_LAYER_GZIP,
        other => other,
    }
}

fn docker_layer_type(media_type: &str) -> &str {
    match media_type {
        media_type::OCI_LAYER => media_type::DOCKER_LAYER,
        media_type::OCI_LAYER_GZIP => media_type::DOCKER_LAYER_GZIP,
        media_type::OCI_LAYER_ZSTD => media_type::DOCKER_LAYER_ZSTD,
        media_type::OCI_NONDIST_LAYER => media_type::DOCKER_FOREIGN_LAYER,
        media_type::OCI_NONDIST_LAYER_GZIP => media_type::DOCKER_FOREIGN_LAYER_GZIP,
        other => other,
    }
}

fn rfc3339(seconds: i64) -> String {
    oci::time::format_rfc3339(seconds, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(created_by: &str, created: Option<&str>, empty_layer: bool) -> HistoryEntry {
        let created = created.map(str::to_owned);
        HistoryEntry { created, created_by: created_by.to_owned(), empty_layer, ..HistoryEntry::default() }
    }

    fn layer(name: &str, created_at: i64) -> AssembledLayer {
        let digest = Digest::of(name.as_bytes());
        let blob = Descriptor::new(media_type::OCI_LAYER_GZIP, digest.clone(), 1);
        AssembledLayer { diff_id: DiffId::of_uncompressed(digest), created_at, blob, clamped_to: None }
    }

    fn assembly(history: Vec<HistoryEntry>, n_base_history: usize, epoch: Option<i64>) -> Assembly {
        Assembly { config: ImageConfig::default(), history, n_base_history, epoch, keeps_nondistributable: false }
    }

    fn times(assembly: &Assembly, layers: &[AssembledLayer]) -> Vec<String> {
        history(assembly, layers).into_iter().map(|entry| entry.created.unwrap_or_default()).collect()
    }

    #[test]
    fn metadata_takes_the_time_of_the_first_new_layer_then_of_the_entry_before() {
        let base = entry("base", Some("2020-01-01T00:00:00Z"), false);
        let history = vec![base, entry("ENV", None, true), entry("RUN", None, false), entry("CMD", None, true)];
        let layers = [layer("base", 0), layer("run", 1_700_000_000)];
        let run = "2023-11-14T22:13:20Z";
        assert_eq!(times(&assembly(history, 1, None), &layers), ["2020-01-01T00:00:00Z", run, run, run]);
    }

    #[test]
    fn the_epoch_is_the_time_of_new_entries_and_leaves_the_base_alone() {
        let base = entry("base", Some("2024-01-01T00:00:00Z"), false);
        let history = vec![base, entry("RUN", None, false), entry("CMD", None, true)];
        let layers = [layer("base", 0), layer("run", 1_700_000_000)];
        let assembly = assembly(history, 1, Some(1_000_000_000));
        let epoch = "2001-09-09T01:46:40Z";
        assert_eq!(times(&assembly, &layers), ["2024-01-01T00:00:00Z", epoch, epoch]);
        assert_eq!(config(&assembly, &layers).created.as_deref(), Some(epoch));
    }

    #[test]
    fn the_epoch_counts_without_new_layers_on_an_older_base() {
        let history = vec![entry("base", Some("1970-01-01T00:00:00Z"), false), entry("LABEL", None, true)];
        let assembly = assembly(history, 1, Some(1_000_000_000));
        let epoch = "2001-09-09T01:46:40Z";
        assert_eq!(times(&assembly, &[layer("base", 0)]), ["1970-01-01T00:00:00Z", epoch]);
        assert_eq!(config(&assembly, &[layer("base", 0)]).created.as_deref(), Some(epoch));
    }

    #[test]
    fn entries_and_layers_are_made_to_agree() {
        let claims_too_much = assembly(vec![entry("a", None, false), entry("b", None, false)], 0, None);
        let normal = history(&claims_too_much, &[layer("a", 0)]);
        assert_eq!(normal.iter().map(|entry| entry.empty_layer).collect::<Vec<_>>(), [false, true]);
        let says_too_little = assembly(Vec::new(), 0, None);
        let normal = history(&says_too_little, &[layer("a", 0)]);
        assert_eq!(normal.len(), 1);
        assert_eq!(normal[0].comment, "buildkit.exporter.image.v0");
    }

    #[test]
    fn docker_types_have_no_annotations() {
        let some = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let annotations = ImageAnnotations { manifest: some.clone(), descriptor: some.clone() };
        let one = assembly(vec![entry("a", None, false)], 0, None);
        let docker = assemble(&one, &[layer("a", 0)], MediaTypes::Docker, &annotations);
        assert!(docker.parsed.annotations.is_empty() && docker.descriptor().annotations.is_empty());
        assert_eq!(docker.parsed.layers[0].media_type, media_type::DOCKER_LAYER_GZIP);
        let oci = assemble(&one, &[layer("a", 0)], MediaTypes::Oci, &annotations);
        assert_eq!((oci.parsed.annotations.clone(), oci.descriptor().annotations), (some.clone(), some));
    }

    #[test]
    fn layers_that_stay_elsewhere_become_ordinary_ones_unless_asked_to_stay() {
        let foreign = |media_type: &str| {
            let mut layer = layer("a", 0);
            layer.blob.media_type = media_type.to_owned();
            layer.blob.urls = vec!["https://elsewhere.example/a".to_owned()];
            layer
        };
        let of = |layer: &AssembledLayer, types, keeps_nondistributable| {
            let assembly = Assembly { keeps_nondistributable, ..assembly(vec![entry("a", None, false)], 1, None) };
            let layers = assemble(&assembly, std::slice::from_ref(layer), types, &ImageAnnotations::default());
            (layers.parsed.layers[0].media_type.clone(), layers.parsed.layers[0].urls.len())
        };
        for media_type in [media_type::OCI_NONDIST_LAYER_GZIP, media_type::DOCKER_FOREIGN_LAYER_GZIP] {
            let layer = foreign(media_type);
            for (types, ordinary, kept) in [
                (MediaTypes::Oci, media_type::OCI_LAYER_GZIP, media_type::OCI_NONDIST_LAYER_GZIP),
                (MediaTypes::Docker, media_type::DOCKER_LAYER_GZIP, media_type::DOCKER_FOREIGN_LAYER_GZIP),
            ] {
                assert_eq!(of(&layer, types, false), (ordinary.to_owned(), 0));
                assert_eq!(of(&layer, types, true), (kept.to_owned(), 1));
            }
        }
        assert_eq!(of(&layer("a", 0), MediaTypes::Oci, true), (media_type::OCI_LAYER_GZIP.to_owned(), 0));
    }

    #[test]
    fn layers_with_clamped_times_say_so() {
        let one = assembly(vec![entry("a", None, false)], 0, Some(5));
        let clamped = AssembledLayer { clamped_to: Some(5), ..layer("a", 0) };
        let layer_of =
            |types| assemble(&one, std::slice::from_ref(&clamped), types, &ImageAnnotations::default()).parsed.layers;
        assert_eq!(layer_of(MediaTypes::Oci)[0].annotations["buildkit/rewritten-timestamp"], "5");
        assert!(layer_of(MediaTypes::Docker)[0].annotations.is_empty());
    }
}
