use oci::layer::{Entry, EntryKind, TarWriter};
use oci::{ImageConfig, RootFs, media_type};

use super::*;

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = TarWriter::new(Vec::new());
    for (path, content) in files {
        let entry = match content.strip_prefix(b"-> ") {
            Some(target) => Entry::new(path.as_bytes(), EntryKind::Symlink { target }),
            None => Entry::new(path.as_bytes(), EntryKind::Regular { size_bytes: content.len() as u64 }),
        };
        let content = if matches!(entry.kind, EntryKind::Symlink { .. }) { &[][..] } else { content };
        tar.append_bytes(&entry, content).expect("tar");
    }
    tar.finish().expect("tar")
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids = layers.iter().map(|layer| oci::DiffId::of_uncompressed(Digest::of(layer))).collect();
    let rootfs = RootFs { diff_ids, ..RootFs::default() };
    ImageConfig { os: "linux".into(), architecture: "amd64".into(), rootfs, ..ImageConfig::default() }.to_json()
}

fn loaded(archive: &[u8]) -> Result<Vec<Loaded>, ImportError> {
    let dir = tempfile::tempdir().expect("temp dir");
    let store = Store::open(&dir.path().join("store")).expect("store");
    let outcome = load(&store, Source::Tar(&mut &archive[..]), None);
    assert_eq!(store.images().expect("images").is_empty(), outcome.is_err(), "names come last");
    outcome
}

#[track_caller]
fn refused(archive: &[u8], why: &str) {
    let error = loaded(archive).expect_err(why).to_string();
    assert!(error.contains(why), "{error}");
}

const LAYER: &[u8] = b"a layer";

#[test]
fn an_old_docker_archive_with_links_between_its_layers() {
    let config = config(&[LAYER, LAYER]);
    let list =
        br#"[{"Config":"abc.json","RepoTags":["app:1","r.example/app:2"],"Layers":["one/layer.tar","two/layer.tar"]}]"#;
    let files: &[(&str, &[u8])] = &[
        ("two/layer.tar", b"-> ../one/layer.tar"),
        ("manifest.json", list),
        ("./one/layer.tar", LAYER),
        ("abc.json", &config),
        ("repositories", b"{}"),
    ];
    let images = loaded(&tar(files)).expect("loads");
    let names: Vec<String> = images[0].names.iter().map(ImageRef::familiar).collect();
    assert_eq!((images.len(), names), (1, vec!["app:1".to_owned(), "r.example/app:2".to_owned()]));
    assert_eq!(images[0].id, Digest::of(&config));

    let names: Vec<String> = (0..2000).map(|number| format!("\"app:{number}\"")).collect();
    let many = format!(
        r#"[{{"Config":"abc.json","RepoTags":[{}],"Layers":["one/layer.tar","one/layer.tar"]}}]"#,
        names.join(",")
    );
    refused(&tar(&[files[2], ("manifest.json", many.as_bytes()), files[3]]), "lists 2000 names");
    refused(&tar(&files[..3]), "names `abc.json`, which it does not have");
    refused(&tar(&files[4..]), "docker's old format");
    refused(&tar(&[("two/layer.tar", b"-> ../../outside"), files[1], files[3]]), "names `one/layer.tar`");
    refused(&tar(&[files[0], files[1], ("one/layer.tar", b"another layer"), files[3]]), "holds the tar");
}

/// A layout with one image; `edit` may change what is in it.
fn layout(edit: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let config = config(&[LAYER]);
    let descriptor = |kind: &str, bytes: &[u8]| Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
    let manifest = oci::image::to_manifest_json(&oci::Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: descriptor(media_type::OCI_CONFIG, &config),
        layers: vec![descriptor(media_type::OCI_LAYER, LAYER)],
        subject: None,
        annotations: Default::default(),
    });
    let name = ImageRef::parse_normalized("app:1").expect("name");
    let index = oci::layout::image_index(&descriptor(media_type::OCI_MANIFEST, &manifest), &[name], None);
    let path = |bytes: &[u8]| oci::layout::blob_path(&Digest::of(bytes));
    let mut files = vec![
        ("index.json".to_owned(), oci::layout::index_json(&index)),
        (path(&manifest), manifest.clone()),
        (path(&config), config.clone()),
        (path(LAYER), LAYER.to_vec()),
    ];
    edit(&mut files);
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    tar(&files)
}

#[test]
fn a_layout_must_have_what_it_names() {
    let images = loaded(&layout(|_| ())).expect("loads");
    assert_eq!(images[0].names.len(), 1);
    assert_eq!(images[0].id, Digest::of(&config(&[LAYER])));
    for missing in 1..4 {
        refused(&layout(|files| drop(files.remove(missing))), "the archive is incomplete");
    }
    refused(&layout(|files| files[3].1 = b"another".to_vec()), "has other content than its name says");
    refused(&layout(|files| files[0].1 = b"{".to_vec()), "`index.json` in the archive is malformed");
    refused(&layout(|files| files[0].1 = vec![b' '; 5 << 20]), "larger than");
    refused(&layout(|files| files[0].1 = br#"{"schemaVersion":2,"manifests":[]}"#.to_vec()), "has no images");
    // Where a file lies does not matter, its bytes do; and no path leads anywhere.
    assert!(loaded(&layout(|files| files[3].0 = "../../etc/passwd".to_owned())).is_ok());
    refused(b"no tar at all, however long one looks at it", "no archive of images");
    refused(b"", "has no images");
    let archive = layout(|_| ());
    refused(&archive[..archive.len() / 2], "");
}
