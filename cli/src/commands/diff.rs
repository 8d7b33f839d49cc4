//! `rbuild diff`: what differs between two images, wherever they are.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cache::Store;
use executor::compare::{Aspect, Comparison, EntryFacts, FileChange, Kind, LayerPair, Side, compare};
use executor::sandbox::Confinement;
use executor::source::image::PullPolicy;
use executor::view::RootView;
use oci::{Descriptor, ImageConfig, ImageRef, Index, Manifest, Platform, attestation, media_type};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use solver::{Chain, OpError, Step};

use super::image::find;
use super::merge::{name, read_file};
use super::transfer::{Transfer, step, with_transfer};
use crate::args::DiffArgs;
use crate::failure::Failure;
use crate::request::platform;
use crate::ui;

/// Exit code for images that differ.
const DIFFERENT: u8 = 1;
/// Files that the text names; JSON has all.
const MAX_FILES: usize = 200;
/// Prefixes of files, as skopeo and BuildKit have them.
const FILE_SCHEMES: [&str; 4] = ["oci-layout://", "oci-archive:", "docker-archive:", "oci:"];

/// Where an image is.
enum From {
    Registry(ImageRef),
    Stored(Descriptor),
    File(PathBuf),
}

/// Compares two images; an exit code says whether they differ.
pub(crate) fn diff(store: &Store, args: &DiffArgs, confinement: &Confinement) -> Result<(), Failure> {
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let sources = [&args.a, &args.b].map(|text| Ok::<_, Failure>((text, from(store, text)?)));
    let [a, b] = sources;
    let (a, b) = (a?, b?);
    let (sides, comparison) = with_transfer(store, confinement, true, PullPolicy::Missing, None, async |transfer| {
        let mut sides = Vec::with_capacity(2);
        for (text, source) in [&a, &b] {
            let work = async |step: Step| find_side(transfer, text, source, wanted.as_ref(), &step).await;
            sides.push(step(&transfer.progress, format!("reading {text}"), work).await?);
        }
        let [a, b] = <[Side; 2]>::try_from(sides).map_err(|_| OpError::internal("two images were asked for"))?;
        let comparison = compared(&a, &b)?;
        Ok(([a, b], comparison))
    })?;
    let [a, b] = &sides;
    let text = if args.format == "json" {
        format!("{:#}\n", as_json(a, b, &comparison))
    } else {
        format!("A: {}  {}\nB: {}  {}\n{}", args.a, shown_side(a), args.b, shown_side(b), text(&comparison))
    };
    ui::stdout(&text)?;
    if comparison.is_equal() { Ok(()) } else { Err(Failure::Exit(DIFFERENT)) }
}

/// What a word means: an image of the store, a file or directory, else an image of a registry.
fn from(store: &Store, text: &str) -> Result<From, Failure> {
    if let Some(text) = text.strip_prefix("docker://") {
        return Ok(From::Registry(name(text)?));
    }
    if let Some(path) = FILE_SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)) {
        return Ok(From::File(path.into()));
    }
    match find(store, text) {
        Ok(mut found) => Ok(From::Stored(found.swap_remove(0).stored.target)),
        Err(_) if Path::new(text).exists() => Ok(From::File(text.into())),
        // Without a registry in it, it was meant to be here.
        Err(failure) if !text.contains(['/', '@']) => Err(failure),
        Err(_) => Ok(From::Registry(name(text)?)),
    }
}

/// Reads files: that takes its time, and other work may go on.
fn compared(a: &Side, b: &Side) -> Result<Comparison, OpError> {
    Ok(tokio::task::block_in_place(|| compare(a, b))?)
}

async fn find_side(
    transfer: &Transfer<'_>,
    text: &str,
    source: &From,
    wanted: Option<&Platform>,
    step: &Step,
) -> Result<Side, OpError> {
    match source {
        From::Stored(target) => stored_side(transfer, text, target, wanted, step).await,
        From::File(path) => match read_file(transfer.store, path).await?.as_slice() {
            [one] => stored_side(transfer, text, one, wanted, step).await,
            several => Err(OpError::input(format!("`{text}` has {} images, and one is to be compared", several.len()))
                .help("load them, and name the one that is meant: rbuild load")),
        },
        From::Registry(reference) => {
            let host = Platform::host();
            let image = transfer.images.resolve(reference, wanted.unwrap_or(&host), step).await?;
            let manifest: Manifest = document(transfer.store, &image.manifest)?;
            unpacked(transfer, image.manifest, manifest, image.config, step).await
        }
    }
}

/// The image of a manifest or index of the store.
async fn stored_side(
    transfer: &Transfer<'_>,
    text: &str,
    target: &Descriptor,
    wanted: Option<&Platform>,
    step: &Step,
) -> Result<Side, OpError> {
    let store = transfer.store;
    let mut digest = target.digest.clone();
    if media_type::is_index(&target.media_type) {
        let index: Index = document(store, &digest)?;
        let host = Platform::host();
        let best = oci::registry::select_platform(&index, wanted.unwrap_or(&host));
        // Without a wish, the first one is as good as another.
        let first = || index.manifests.iter().find(|entry| attestation::is_image(entry)).filter(|_| wanted.is_none());
        let known: Vec<String> = oci::registry::image_platforms(&index).map(Platform::to_string).collect();
        let chosen = best.or_else(first);
        digest = chosen.map(|entry| entry.digest.clone()).ok_or_else(|| {
            let wanted = wanted.unwrap_or(&host);
            OpError::input(format!("`{text}` has no image for {wanted}: it has {}", known.join(", ")))
        })?;
    }
    let manifest: Manifest = document(store, &digest)?;
    let config: ImageConfig = document(store, &manifest.config.digest)?;
    if let Some(wanted) = wanted
        && wanted.match_rank(&config.platform().normalized()).is_none()
    {
        return Err(OpError::input(format!("`{text}` has no image for {wanted}: it has {}", config.platform())));
    }
    unpacked(transfer, digest, manifest, config, step).await
}

/// An image with its files at hand.
pub(super) async fn unpacked(
    transfer: &Transfer<'_>,
    digest: oci::Digest,
    manifest: Manifest,
    config: ImageConfig,
    step: &Step,
) -> Result<Side, OpError> {
    let layers = config.rootfs.diff_ids.iter().map(|diff_id| Ok(transfer.store.layer_for_diff_id(diff_id)?.layer));
    let chain = Chain::new(layers.collect::<Result<_, OpError>>()?);
    let trees = transfer.images.ensure_trees(&chain, step, &transfer.cancel).await?;
    Ok(Side { digest, manifest, config, root: RootView::open(&trees)? })
}

fn document<T: DeserializeOwned>(store: &Store, digest: &oci::Digest) -> Result<T, OpError> {
    let bytes = store.read_blob(digest)?;
    let bytes = bytes.ok_or_else(|| OpError::environment(format!("the store has lost the blob {digest}")))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| OpError::input(format!("{digest} is no usable image document: {error}")))
}

fn shown_side(side: &Side) -> String {
    format!("{} ({})", side.digest, side.config.platform().normalized())
}

fn as_json(a: &Side, b: &Side, comparison: &Comparison) -> Value {
    let side = |side: &Side| {
        json!({"manifest": side.digest, "config": side.manifest.config.digest,
            "platform": side.config.platform().normalized().to_string()})
    };
    json!({"equal": comparison.is_equal(), "a": side(a), "b": side(b), "config": comparison.config,
        "layers": comparison.layers, "history": comparison.history, "files": comparison.files})
}

/// The differences for people; one line if there are none.
pub(super) fn text(comparison: &Comparison) -> String {
    let mut text = String::new();
    if comparison.is_equal() {
        let is_same = comparison.layers.iter().all(|layer| layer.is_same_blob);
        let note = if is_same { "" } else { "; layers are compressed in other ways" };
        return format!("no differences{note}\n");
    }
    if !comparison.config.is_empty() {
        text.push_str("config:\n");
        for change in &comparison.config {
            let side = |value: &Option<Value>| value.as_ref().map_or_else(|| "nothing".to_owned(), Value::to_string);
            let _ = writeln!(text, "  {}: {} -> {}", change.field, side(&change.a), side(&change.b));
        }
    }
    if comparison.layers.iter().any(|layer| !layer.is_equal) {
        text.push_str("layers:\n");
        for (number, layer) in comparison.layers.iter().enumerate() {
            let _ = writeln!(text, "  {} {}", number + 1, layer_line(layer));
        }
    }
    if !comparison.history.is_empty() {
        text.push_str("history:\n");
        for change in &comparison.history {
            let side = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
            let _ = writeln!(
                text,
                "  {}: {}\n  {:width$}  -> {}",
                change.number + 1,
                side(&change.a),
                "",
                side(&change.b),
                width = (change.number + 1).to_string().len()
            );
        }
    }
    if !comparison.files.is_empty() {
        text.push_str("files:\n");
        for change in comparison.files.iter().take(MAX_FILES) {
            let _ = writeln!(text, "  {}", file_line(change));
        }
        if let Some(more @ 1..) = comparison.files.len().checked_sub(MAX_FILES) {
            let _ = writeln!(text, "  and {more} more: --format json lists all");
        }
    }
    text
}

fn layer_line(layer: &LayerPair) -> String {
    let short = |id: &oci::DiffId| id.digest().short();
    let what = match (&layer.a, &layer.b) {
        (Some(a), Some(_)) if layer.is_equal => format!("= {}", short(a)),
        (Some(a), Some(b)) => format!("! {} -> {}", short(a), short(b)),
        (Some(a), None) => format!("- {}", short(a)),
        (None, Some(b)) => format!("+ {}", short(b)),
        (None, None) => String::new(),
    };
    let by = layer.created_by.as_deref().unwrap_or_default().replace('\n', " ");
    format!("{what}  {}", by.chars().take(80).collect::<String>()).trim_end().to_owned()
}

fn file_line(change: &FileChange) -> String {
    match (&change.a, &change.b) {
        (Some(a), None) => format!("- {}  {}", change.path, facts(a)),
        (None, Some(b)) => format!("+ {}  {}", change.path, facts(b)),
        (Some(a), Some(b)) => {
            let aspects: Vec<String> = change.differs.iter().map(|aspect| aspect_text(*aspect, a, b)).collect();
            format!("! {}  {}", change.path, aspects.join(", "))
        }
        (None, None) => change.path.clone(),
    }
}

fn facts(entry: &EntryFacts) -> String {
    let EntryFacts { mode, uid, gid, size, target, .. } = entry;
    let rest = match (kind(entry.kind), target) {
        (kind, Some(target)) => format!("{kind} -> {target}"),
        ("file", None) => format!("file {size}B"),
        (kind, None) => kind.to_owned(),
    };
    format!("{rest} {mode} {uid}:{gid}")
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Link => "link",
        Kind::Special => "special file",
    }
}

fn aspect_text(aspect: Aspect, a: &EntryFacts, b: &EntryFacts) -> String {
    let time = |entry: &EntryFacts| oci::time::format_rfc3339(entry.mtime, 0);
    let target = |entry: &EntryFacts| entry.target.clone().unwrap_or_default();
    match aspect {
        Aspect::Kind => format!("{} -> {}", kind(a.kind), kind(b.kind)),
        Aspect::Content => "content".to_owned(),
        Aspect::Size => format!("size {}B -> {}B", a.size, b.size),
        Aspect::Mode => format!("mode {} -> {}", a.mode, b.mode),
        Aspect::Owner => format!("owner {}:{} -> {}:{}", a.uid, a.gid, b.uid, b.gid),
        Aspect::Target => format!("target {} -> {}", target(a), target(b)),
        Aspect::Device => "device number".to_owned(),
        Aspect::Xattrs => "extended attributes".to_owned(),
        Aspect::Mtime => format!("time {} -> {}", time(a), time(b)),
    }
}
