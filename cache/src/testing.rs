//! What the unit tests of this crate share.

use std::path::Path;
use std::time::Duration;

use oci::{ContainerConfig, Descriptor, DiffId, Digest, ImageConfig, ImageRef, Manifest, RootFs, media_type};

use crate::id::{ContentDigest, Key, LayerId};
use crate::records::NewRecord;
use crate::scratch::TreeDraft;
use crate::store::Store;

/// A new store below a temporary directory.
pub(crate) fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

pub(crate) fn content(seed: u8) -> ContentDigest {
    ContentDigest([seed; 32])
}

pub(crate) fn diff_id(seed: u8) -> DiffId {
    DiffId::of_uncompressed(Digest::from_sha256([seed; 32]))
}

pub(crate) fn reference(text: &str) -> ImageRef {
    text.parse().unwrap()
}

/// A draft with one file of that text.
pub(crate) fn tree_with(store: &Store, text: &str) -> TreeDraft {
    let draft = store.new_tree().unwrap();
    std::fs::write(draft.tree().join("file"), text).unwrap();
    draft
}

pub(crate) fn record(key: u8, layer: &LayerId, slot: &str) -> NewRecord {
    NewRecord {
        key: Key([key; 32]),
        layer: layer.clone(),
        explanation: None,
        name: format!("RUN step {key}"),
        slot: slot.to_owned(),
        cost: Duration::from_millis(u64::from(key)),
    }
}

/// Stores an image of one layer; the layer's diff ID is `diff_id(seed)`.
pub(crate) fn image(store: &Store, seed: u8) -> Descriptor {
    let config = ImageConfig {
        config: ContainerConfig::default(),
        rootfs: RootFs { diff_ids: vec![diff_id(seed)], ..RootFs::default() },
        ..ImageConfig::default()
    };
    let put = |media_type: &str, bytes: &[u8]| {
        Descriptor::new(media_type, store.put_blob(bytes).unwrap(), bytes.len() as u64)
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: put(media_type::OCI_CONFIG, &config.to_json()),
        layers: vec![put(media_type::OCI_LAYER_GZIP, &[seed; 100])],
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    put(media_type::OCI_MANIFEST, &oci::image::to_manifest_json(&manifest))
}

/// Asserts that the store is in order.
#[track_caller]
pub(crate) fn check(store: &Store) {
    let violations = store.check_invariants().unwrap();
    assert!(violations.is_empty(), "{violations:#?}");
}

/// What `du -s` says, in bytes.
pub(crate) fn du(path: &Path) -> u64 {
    let output = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}
