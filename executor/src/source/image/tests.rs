//! Against a registry on loopback that serves what the tests put there.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use cache::Layer;
use oci::registry::{ClientOptions, RetryPolicy};
use oci::{Descriptor, DiffId, Digest, ImageConfig, ImageRef, Index, Manifest, Platform, RootFs, media_type};
use solver::{Event, ResolvedImage};
use tokio_util::sync::CancellationToken;

use crate::layer::testing::for_anybody;
use crate::source::testing::{Reply, Server, silent, step, store};

use super::*;

/// A registry with one repository, `app`.
struct Registry(Server);

impl Registry {
    async fn start() -> Self {
        Self(Server::start().await)
    }

    fn reference(&self, tag: &str) -> ImageRef {
        ImageRef::parse_normalized(&format!("{}/app:{tag}", self.0.address)).unwrap()
    }

    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.0.route(&format!("/v2/app/blobs/{digest}"), [Reply::ok(bytes)]);
        digest
    }

    fn manifest(&self, names: &[&str], kind: &str, bytes: &[u8]) -> Descriptor {
        let digest = Digest::of(bytes);
        let reply = Reply::ok(bytes).header("content-type", kind).header("docker-content-digest", digest.to_string());
        for name in names.iter().map(|name| (*name).to_owned()).chain([digest.to_string()]) {
            self.0.route(&format!("/v2/app/manifests/{name}"), [reply.clone()]);
        }
        Descriptor::new(kind, digest, bytes.len() as u64)
    }

    /// An image of plain tars under `tags`; the descriptor is that of its manifest.
    fn image(&self, tags: &[&str], platform: &Platform, tars: &[Vec<u8>]) -> Descriptor {
        let diff_ids = tars.iter().map(|tar| DiffId::of_uncompressed(Digest::of(tar))).collect();
        self.image_with(tags, platform, tars, diff_ids)
    }

    fn image_with(&self, tags: &[&str], platform: &Platform, tars: &[Vec<u8>], diff_ids: Vec<DiffId>) -> Descriptor {
        let config = ImageConfig {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids },
            ..ImageConfig::default()
        };
        let config = config.to_json();
        let describe = |kind, bytes: &[u8]| Descriptor::new(kind, self.blob(bytes), bytes.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: describe(media_type::OCI_CONFIG, &config),
            layers: tars.iter().map(|tar| describe(media_type::OCI_LAYER, tar)).collect(),
            subject: None,
            annotations: Default::default(),
        };
        self.manifest(tags, media_type::OCI_MANIFEST, &serde_json::to_vec(&manifest).unwrap())
    }

    /// What was asked for since the last call, without host and protocol.
    fn seen(&self) -> Vec<String> {
        self.0.seen()
    }
}

fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

fn source(store: &Store, policy: PullPolicy) -> ImageSource {
    oci::registry::install_crypto_provider();
    let retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    let client = Client::new(ClientOptions { retry, ..ClientOptions::default() });
    ImageSource::new(store.clone(), client, policy, for_anybody())
}

/// A tar of files, parents not included.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(u32::from_str_radix(content, 8).unwrap());
            header.set_size(0);
            builder.append_data(&mut header, path, std::io::empty()).unwrap();
        } else {
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn op(image: &ResolvedImage) -> ImageOp {
    ImageOp {
        reference: image.reference.clone(),
        platform: image.platform.clone(),
        manifest: image.manifest.clone(),
        diff_ids: image.config.rootfs.diff_ids.clone(),
    }
}

async fn trees(source: &ImageSource, image: &ResolvedImage) -> Result<Vec<PathBuf>, OpError> {
    let chain = source.chain(&op(image), &silent()).await?;
    source.ensure_trees(&chain, &silent(), &CancellationToken::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn resolving_reads_documents_only_and_names_nothing() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    let layer = tar(&[("f", "hello")]);
    registry.image(&["1"], &amd64(), std::slice::from_ref(&layer));
    let image =
        source(&store, PullPolicy::Missing).resolve(&registry.reference("1"), &amd64(), &silent()).await.unwrap();
    assert_eq!(image.platform, amd64());
    assert_eq!(image.manifest, image.top_digest);
    let blob = format!("GET /v2/app/blobs/{}", Digest::of(&layer));
    assert!(!registry.seen().contains(&blob), "no layer is moved");
    assert!(store.images().unwrap().is_empty());
    let remotes = store.find_remotes(&image.config.rootfs.diff_ids[0]).unwrap();
    assert_eq!(remotes[0].1, registry.reference("1").name_only().to_string());
    // All documents are here by now.
    source(&store, PullPolicy::Missing).resolve(&registry.reference("1"), &amd64(), &silent()).await.unwrap();
    assert_eq!(registry.seen(), ["HEAD /v2/app/manifests/1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_followed_to_the_platform() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    let arm64 = Platform::new("linux", "arm64", None);
    let manifests = [amd64(), arm64.clone()].map(|platform| {
        let image = registry.image(&[], &platform, &[tar(&[("arch", &platform.architecture)])]);
        Descriptor { platform: Some(platform), ..image }
    });
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests: manifests.to_vec(),
        annotations: Default::default(),
    };
    let top = registry.manifest(&["1"], media_type::OCI_INDEX, &serde_json::to_vec(&index).unwrap());
    let source = source(&store, PullPolicy::Missing);
    let image = source.resolve(&registry.reference("1"), &arm64, &silent()).await.unwrap();
    assert_eq!((image.top_digest, image.manifest), (top.digest.clone(), manifests[1].digest.clone()));
    let s390x = Platform::new("linux", "s390x", None);
    let error = source.resolve(&registry.reference("1"), &s390x, &silent()).await.unwrap_err();
    let reference = registry.reference("1");
    let expected =
        format!("failed to resolve source metadata for {reference}: no match for platform in manifest: not found");
    assert_eq!((error.message, error.tier), (expected.clone(), solver::Tier::Input));
    let wanted = "it is wanted for linux/s390x, and there is one for linux/amd64 and linux/arm64";
    assert_eq!(error.help[0], wanted);
    // An image of the store that lacks the platform is the reason, whatever the registry says.
    store.tag(&reference, &top).unwrap();
    drop(registry);
    let error = source.resolve(&reference, &s390x, &silent()).await.unwrap_err();
    assert_eq!((error.message, error.tier), (expected, solver::Tier::Input));
    assert_eq!(error.help[0], wanted);
    assert!(error.help[1].contains("the local store (it has the image for linux/amd64 and linux/arm64), "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_the_store_needs_no_network() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    let target = registry.image(&["1"], &amd64(), &[tar(&[("f", "hello")])]);
    let reference = registry.reference("1");
    let missing = source(&store, PullPolicy::Missing);
    let resolved = missing.resolve(&reference, &amd64(), &silent()).await.unwrap();
    store.tag(&reference, &target).unwrap();
    registry.seen();
    let found = missing.resolve(&reference, &amd64(), &silent()).await.unwrap();
    assert_eq!(found.manifest, resolved.manifest);
    let by_digest = reference.clone().with_digest(target.digest.clone());
    missing.resolve(&by_digest, &amd64(), &silent()).await.unwrap();
    assert_eq!(registry.seen(), [""; 0]);
    source(&store, PullPolicy::Always).resolve(&reference, &amd64(), &silent()).await.unwrap();
    assert_eq!(registry.seen(), ["HEAD /v2/app/manifests/1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_what_was_seen_last_counts() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    registry.image(&["1"], &amd64(), &[tar(&[("f", "hello")])]);
    let reference = registry.reference("1");
    let online = source(&store, PullPolicy::Missing).resolve(&reference, &amd64(), &silent()).await.unwrap();
    drop(registry);
    let (step, events) = step();
    let offline = source(&store, PullPolicy::Missing).resolve(&reference, &amd64(), &step).await.unwrap();
    assert_eq!(offline.manifest, online.manifest);
    assert!(events.try_iter().any(|event| matches!(event, Event::Warning { .. })));
    let never = source(&store, PullPolicy::Never).resolve(&reference, &amd64(), &silent()).await.unwrap();
    assert_eq!(never.manifest, online.manifest);
    let error = source(&store, PullPolicy::Always).resolve(&reference, &amd64(), &silent()).await.unwrap_err();
    assert_eq!(error.tier, solver::Tier::Environment);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image_names_every_place() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    let reference = registry.reference("nowhere");
    let error = source(&store, PullPolicy::Missing).resolve(&reference, &amd64(), &silent()).await.unwrap_err();
    assert_eq!(error.message, format!("failed to resolve source metadata for {reference}: {reference}: not found"));
    assert_eq!(error.tier, solver::Tier::Input);
    let places = error.help.join("\n");
    assert!(places.contains("tried the local store (no image of that name)"), "{places}");
    assert!(places.contains(&format!("the registry {} (it has no such image)", reference.registry())), "{places}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_are_pulled_once_by_all_processes_together() {
    let (registry, (dir, store)) = (Registry::start().await, store());
    let tars = [tar(&[("a", "1"), ("b", "1")]), tar(&[("b", "2")]), tar(&[(".wh.a", ""), ("c", "3")])];
    registry.image(&["1"], &amd64(), &tars);
    let other_store = Store::open(dir.path()).unwrap();
    let (ours, theirs) = (source(&store, PullPolicy::Missing), source(&other_store, PullPolicy::Missing));
    let image = ours.resolve(&registry.reference("1"), &amd64(), &silent()).await.unwrap();
    registry.seen();
    let (a, b) = tokio::join!(trees(&ours, &image), trees(&theirs, &image));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b);
    assert_eq!(std::fs::read_to_string(a[0].join("b")).unwrap(), "1");
    assert_eq!(std::fs::read_to_string(a[1].join("b")).unwrap(), "2");
    let mut seen = registry.seen();
    seen.sort();
    let mut blobs: Vec<_> = tars.iter().map(|tar| format!("GET /v2/app/blobs/{}", Digest::of(tar))).collect();
    blobs.sort();
    assert_eq!(seen, blobs);
    // From now on the trees are known without asking anybody.
    assert_eq!(trees(&ours, &image).await.unwrap(), a);
    assert_eq!(registry.seen(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_blob_is_unpacked_without_a_registry() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    registry.image(&["1"], &amd64(), &[tar(&[("a", "1")])]);
    let source = source(&store, PullPolicy::Missing);
    let image = source.resolve(&registry.reference("1"), &amd64(), &silent()).await.unwrap();
    let diff_id = &image.config.rootfs.diff_ids[0];
    let blob = source.ensure_blob(diff_id, &silent(), &CancellationToken::new()).await.unwrap();
    assert!(store.blob_path(&blob.digest).is_some());
    drop(registry);
    let trees = trees(&source, &image).await.unwrap();
    assert_eq!(std::fs::read_to_string(trees[0].join("a")).unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_its_config_says_is_refused() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    let wrong = DiffId::of_uncompressed(Digest::of(b"something else"));
    registry.image_with(&["1"], &amd64(), &[tar(&[("a", "1")])], vec![wrong.clone()]);
    let source = source(&store, PullPolicy::Missing);
    let image = source.resolve(&registry.reference("1"), &amd64(), &silent()).await.unwrap();
    let error = trees(&source, &image).await.unwrap_err();
    assert!(error.message.contains("does not match its config"), "{}", error.message);
    assert_eq!(store.layer_for_diff_id(&wrong).unwrap().tree, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_and_a_config_that_disagree_are_refused() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    registry.image_with(&["1"], &amd64(), &[tar(&[("a", "1")])], Vec::new());
    let source = source(&store, PullPolicy::Missing);
    let error = source.resolve(&registry.reference("1"), &amd64(), &silent()).await.unwrap_err();
    assert!(error.message.contains("it has 1 layers, and its config 0 diff IDs"), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_pulled_names_the_repository() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    registry.image(&["1"], &amd64(), &[tar(&[("a", "1")])]);
    let source = source(&store, PullPolicy::Missing);
    let image = source.resolve(&registry.reference("1"), &amd64(), &silent()).await.unwrap();
    registry.0.route(&format!("/v2/app/blobs/{}", image.config.rootfs.diff_ids[0]), [Reply::status(404)]);
    let error = trees(&source, &image).await.unwrap_err();
    assert!(error.message.contains(&registry.reference("1").name_only().to_string()), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_took_its_directories_from_below_belongs_to_its_stack() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    // The upper layer has a file in a directory that it does not describe.
    let upper = tar(&[("d/f", "x")]);
    registry.image(&["open"], &amd64(), &[tar(&[("d/", "777")]), upper.clone()]);
    registry.image(&["shut"], &amd64(), &[tar(&[("d/", "700")]), upper]);
    let source = source(&store, PullPolicy::Missing);
    for (tag, mode) in [("open", 0o777), ("shut", 0o700), ("open", 0o777)] {
        let image = source.resolve(&registry.reference(tag), &amd64(), &silent()).await.unwrap();
        let trees = trees(&source, &image).await.unwrap();
        assert_eq!(trees[1].join("d").metadata().unwrap().mode() & 0o7777, mode, "{tag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_occurs_twice_is_unpacked_once() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    let empty = tar(&[]);
    registry.image(&["1"], &amd64(), &[empty.clone(), tar(&[("a", "1")]), empty]);
    let source = source(&store, PullPolicy::Missing);
    let image = source.resolve(&registry.reference("1"), &amd64(), &silent()).await.unwrap();
    let trees = trees(&source, &image).await.unwrap();
    assert_eq!(trees.len(), 3);
    assert_eq!(trees[0], trees[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_ends_and_leaves_nothing() {
    let (registry, (_dir, store)) = (Registry::start().await, store());
    registry.image(&["1"], &amd64(), &[tar(&[("a", "1")])]);
    let source = Arc::new(source(&store, PullPolicy::Missing));
    let image = source.resolve(&registry.reference("1"), &amd64(), &silent()).await.unwrap();
    let chain = source.chain(&op(&image), &silent()).await.unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let error = source.ensure_trees(&chain, &silent(), &cancel).await.unwrap_err();
    assert_eq!(error.tier, solver::Tier::Cancelled);
    let Layer { id, .. } = &chain.layers()[0];
    assert_eq!(store.layer(id).unwrap().unwrap().tree, None);
}
