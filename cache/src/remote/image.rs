//! The cache inside an image: which keys gave its layers, as a field of its config.

use std::time::Duration;

use oci::digest::hex;
use oci::{Descriptor, DiffId};
use serde::{Deserialize, Serialize};

use super::{Domain, Entry};
use crate::id::{ContentDigest, Key, parse_hex32};

/// The version of the document.
const VERSION: u32 = 1;

/// Which keys gave the layers of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageMetadata {
    /// One for each layer of the image, base first; `None` for those of its base image.
    pub layers: Vec<Option<ImageLayerEntry>>,
}

/// What an image says about one of its layers, beside what it says anyway.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageLayerEntry {
    /// All keys that are known to give it.
    pub keys: Vec<Key>,
    /// What keys see of it.
    pub content: ContentDigest,
    /// What it cost to make.
    pub cost: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    version: u32,
    domain: String,
    layers: Vec<Option<LayerDocument>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayerDocument {
    keys: Vec<String>,
    content: String,
    cost_ms: u64,
}

impl ImageMetadata {
    /// The field of the config.
    pub fn to_value(&self, domain: &Domain) -> serde_json::Value {
        let layer = |layer: &ImageLayerEntry| LayerDocument {
            keys: layer.keys.iter().map(|key| hex(&key.0)).collect(),
            content: hex(&layer.content.0),
            cost_ms: u64::try_from(layer.cost.as_millis()).unwrap_or(u64::MAX),
        };
        let layers = self.layers.iter().map(|entry| entry.as_ref().map(layer)).collect();
        let document = Document { version: VERSION, domain: domain.as_str().to_owned(), layers };
        serde_json::to_value(document).expect("a document has string keys and no failing serialisers")
    }

    /// Reads the field; `None` when it cannot be understood, or its keys were made by other rules.
    pub fn parse(value: &serde_json::Value, domain: &Domain) -> Option<Self> {
        let document = Document::deserialize(value).ok()?;
        if document.version != VERSION || document.domain != domain.as_str() {
            return None;
        }
        let layer = |layer: Option<LayerDocument>| {
            let LayerDocument { keys, content, cost_ms } = layer?;
            Some(ImageLayerEntry {
                keys: keys.iter().map(|key| parse_hex32(key).map(Key)).collect::<Option<_>>()?,
                content: ContentDigest(parse_hex32(&content)?),
                cost: Duration::from_millis(cost_ms),
            })
        };
        Some(Self { layers: document.layers.into_iter().map(layer).collect() })
    }

    /// The entries of an image whose config has these diff IDs and whose manifest these layers; none when the numbers do not
    /// agree.
    pub fn entries(&self, diff_ids: &[DiffId], blobs: &[Descriptor]) -> Vec<Entry> {
        if diff_ids.len() != blobs.len() || diff_ids.len() != self.layers.len() {
            return Vec::new();
        }
        let entry = |((layer, diff_id), blob): ((&Option<ImageLayerEntry>, &DiffId), &Descriptor)| {
            let ImageLayerEntry { keys, content, cost } = layer.clone()?;
            let blob = Descriptor::new(&blob.media_type, blob.digest.clone(), blob.size_bytes);
            let (codec, created_at, step) = (None, 0, String::new());
            Some(Entry { keys, content, diff_id: diff_id.clone(), blob, codec, cost, created_at, step })
        };
        self.layers.iter().zip(diff_ids).zip(blobs).filter_map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use oci::{Digest, media_type};

    use super::super::entry::tests::domain;
    use super::*;

    #[test]
    fn the_layers_of_an_image_become_entries() {
        let made = ImageLayerEntry {
            keys: vec![Key([1; 32]), Key([2; 32])],
            content: ContentDigest([3; 32]),
            cost: Duration::from_millis(40),
        };
        let metadata = ImageMetadata { layers: vec![None, Some(made.clone())] };
        let read = ImageMetadata::parse(&metadata.to_value(&domain()), &domain());
        assert_eq!(read.as_ref(), Some(&metadata));
        assert_eq!(ImageMetadata::parse(&metadata.to_value(&domain()), &Domain::of(&["x"])), None);
        assert_eq!(ImageMetadata::parse(&serde_json::json!({"version": 1}), &domain()), None);
        let diff_ids = [b"a", b"b"].map(|text| DiffId::of_uncompressed(Digest::of(text)));
        let blobs = [b"c", b"d"].map(|text| Descriptor::new(media_type::OCI_LAYER, Digest::of(text), 1));
        let entries = metadata.entries(&diff_ids, &blobs);
        assert_eq!(entries.len(), 1);
        assert_eq!((&entries[0].diff_id, &entries[0].blob), (&diff_ids[1], &blobs[1]));
        assert_eq!((&entries[0].keys, entries[0].content), (&made.keys, made.content));
        assert!(metadata.entries(&diff_ids[..1], &blobs[..1]).is_empty());
    }
}
