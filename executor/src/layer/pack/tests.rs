use std::io::Read;

use oci::layer::{Entry, EntryKind, TarWriter, decompress};

use super::*;

fn sample(n_files: u64) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for number in 0..n_files {
        let text = format!("file {} {number} ", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(500);
        let path = format!("f{number}");
        let entry = Entry::new(path.as_bytes(), EntryKind::Regular { size_bytes: text.len() as u64 });
        writer.append_bytes(&entry, text.as_bytes()).expect("in memory");
    }
    writer.finish().expect("in memory")
}

fn pack(store: &Store, options: &PackOptions, tar: &[u8]) -> Packed {
    let mut sink = LayerSink::new(store, options, None).expect("starts");
    sink.write_all(tar).expect("takes");
    sink.finish().expect("packs")
}

const GZIP: Codec = Codec::Gzip { level: 4 };
const ZSTD: Codec = Codec::Zstd { level: 1 };

#[test]
fn blobs_land_in_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let tar = sample(300);
    let options = PackOptions { codecs: vec![GZIP, Codec::Plain, ZSTD, GZIP], ..PackOptions::default() };
    let packed = pack(&store, &options, &tar);
    assert_eq!((packed.diff_id.digest(), packed.tar_bytes), (&Digest::of(&tar), tar.len() as u64));
    assert_eq!(packed.blobs.iter().map(|(codec, _)| *codec).collect::<Vec<_>>(), options.codecs);
    for (codec, descriptor) in &packed.blobs {
        let blob = std::fs::read(store.blob_path(&descriptor.digest).expect("stored")).expect("reads");
        assert_eq!((Digest::of(&blob), blob.len() as u64), (descriptor.digest.clone(), descriptor.size_bytes));
        assert_eq!(descriptor.media_type, media_type_of(*codec));
        let mut raw = Vec::new();
        decompress(blob.as_slice()).expect("opens").1.read_to_end(&mut raw).expect("valid");
        assert!(raw == tar, "{codec:?}");
        assert_eq!(store.find_blob(&packed.diff_id, *codec).expect("asks").as_ref(), Some(descriptor));
    }
}

#[test]
fn without_wishes_only_the_diff_id_is_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let tar = sample(300);
    let packed = pack(&store, &PackOptions::default(), &tar);
    assert_eq!(packed.diff_id.digest(), &Digest::of(&tar));
    assert!(packed.blobs.is_empty() && store.blob_path(packed.diff_id.digest()).is_none());
}

#[test]
fn pieces_are_compressed_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let options = PackOptions { codecs: vec![GZIP], ..PackOptions::default() };
    let mut tar = sample(800);
    let first = pack(&store, &options, &tar);
    assert_eq!(first.n_known_pieces, 0);
    tar[6_000_000] ^= 1;
    let second = pack(&store, &options, &tar);
    assert!(second.n_new_pieces <= 2 && second.n_known_pieces >= 2, "{second:?}");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let fresh = pack(&Store::open(elsewhere.path()).expect("a store"), &options, &tar);
    assert_eq!(fresh.blobs, second.blobs);
}
