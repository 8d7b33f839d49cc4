//! `rbuild imagetools create` and `rbuild merge`: one image of several (`spec/cli.md` §5.1).

use std::path::{Path, PathBuf};

use cache::{Codec, Store};
use executor::import::{self, Source};
use executor::packer::Wanted;
use executor::push::{Document, Parcel};
use executor::relay::combine::{self, Ingredient, Place};
use executor::sandbox::Confinement;
use executor::source::image::PullPolicy;
use oci::combine::{Listed, distinct, for_platforms, index, one_a_platform};
use oci::{Descriptor, Digest, ImageRef, Index, Platform, attestation, media_type};
use serde_json::{Value, json};
use solver::{OpError, Step};

use super::image::find;
use super::transfer::{Transfer, step, with_transfer};
use crate::annotations::Annotations;
use crate::args::{ImagetoolsCreateArgs, MergeArgs};
use crate::failure::Failure;
use crate::output::DEFAULT_GZIP_LEVEL;
use crate::request::{parse_tag, platform};
use crate::ui;

/// Scheme of sources that are in a registry, whatever is here.
const REGISTRY_SCHEME: &str = "docker://";

/// Where a source is.
#[derive(Clone, Debug, PartialEq)]
enum From {
    /// In a registry.
    Registry(ImageRef),
    /// In the store.
    Stored(Descriptor, String),
    /// In an archive or a layout.
    File(PathBuf),
}

/// A name as people give it.
pub(super) fn name(text: &str) -> Result<ImageRef, Failure> {
    ImageRef::parse_normalized(text)
        .map(ImageRef::with_default_tag)
        .map_err(|error| Failure::usage(format!("invalid image name `{text}`: {error}")))
}

/// Makes an image of images in registries, in a registry.
pub(crate) fn create(store: &Store, args: &ImagetoolsCreateArgs, confinement: &Confinement) -> Result<(), Failure> {
    let tags = args.tags.iter().map(|tag| parse_tag(tag)).collect::<Result<Vec<_>, _>>()?;
    let sources = sources_of(args, &tags)?;
    if tags.is_empty() && !args.dry_run {
        return Err(Failure::usage("the result has no name").help("give it one: -t NAME; or look at it: --dry-run"));
    }
    let annotations = annotations(&args.annotations)?;
    let platforms = args.platforms.iter().map(|text| platform(text)).collect::<Result<Vec<_>, _>>()?;
    let is_quiet = args.dry_run || matches!(args.progress.as_str(), "quiet" | "none");
    let top = with_transfer(store, confinement, is_quiet, PullPolicy::Always, None, async |transfer| {
        let mut ingredients = Vec::new();
        for source in &sources {
            let work = async |step: Step| transfer.relay().ingredient(source, &step).await;
            ingredients.push(step(&transfer.progress, format!("reading {}", source.familiar()), work).await?);
        }
        let top = combined(&ingredients, &platforms, &annotations, args.prefer_index)?;
        if !args.dry_run {
            push(transfer, &ingredients, &top, &tags).await?;
        }
        Ok(top)
    })?;
    if args.dry_run {
        return Ok(ui::stdout(&String::from_utf8_lossy(&top.bytes))?);
    }
    write_metadata(args.metadata_file.as_deref(), &top.descriptor, &tags)
}

/// The sources of the command line, files first, as in buildx; with `--append`, what the name stands for before them.
fn sources_of(args: &ImagetoolsCreateArgs, tags: &[ImageRef]) -> Result<Vec<ImageRef>, Failure> {
    let mut sources = Vec::new();
    if args.append {
        let tag = tags.first().ok_or_else(|| Failure::usage("--append needs the name to add to: -t NAME"))?;
        sources.push(tag.clone());
    }
    for file in &args.files {
        let bytes = std::fs::read(file)
            .map_err(|error| Failure::input(format!("cannot read `{}`: {error}", file.display())))?;
        for digest in digests_in(&bytes).ok_or_else(|| {
            Failure::input(format!("`{}` has no descriptor", file.display()))
                .help("expected JSON with `digest`, an index, or what --metadata-file has written")
        })? {
            sources.push(by_digest(&digest, tags)?);
        }
    }
    for text in &args.sources {
        if text.starts_with('{') {
            let digests = digests_in(text.as_bytes())
                .ok_or_else(|| Failure::usage(format!("`{text}` is no descriptor: expected JSON with `digest`")))?;
            for digest in digests {
                sources.push(by_digest(&digest, tags)?);
            }
        } else if text.starts_with("sha256:") {
            sources.push(by_digest(text, tags)?);
        } else {
            sources.push(name(text)?);
        }
    }
    if sources.is_empty() {
        return Err(Failure::usage("no sources specified").help("name images, or files with descriptors: -f FILE"));
    }
    Ok(sources)
}

/// The digests in a descriptor, an index, or a metadata file.
fn digests_in(bytes: &[u8]) -> Option<Vec<String>> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(list) = value["manifests"].as_array() {
        return list.iter().map(|entry| text(&entry["digest"])).collect();
    }
    let digest = [&value["digest"], &value["containerimage.descriptor"]["digest"], &value["containerimage.digest"]];
    digest.into_iter().find_map(text).map(|digest| vec![digest])
}

/// A digest in the repository of the result.
fn by_digest(text: &str, tags: &[ImageRef]) -> Result<ImageRef, Failure> {
    let digest: Digest = text.parse().map_err(|error| Failure::usage(format!("invalid source `{text}`: {error}")))?;
    let mut repositories = tags.iter().map(ImageRef::name_only);
    match repositories.next() {
        None => Err(Failure::usage(format!("`{text}` is in no repository"))
            .help("name the repository: REPOSITORY@sha256:…, or give the result a name with -t")),
        Some(first) if repositories.any(|other| other != first) => {
            Err(Failure::usage(format!("`{text}` may be in any of the repositories of the result"))
                .help("name the repository: REPOSITORY@sha256:…"))
        }
        Some(repository) => Ok(repository.with_digest(digest)),
    }
}

/// Annotations of the index and of its entries; others would change the images.
fn annotations(flags: &[String]) -> Result<Annotations, Failure> {
    // A key alone is the index's here, where builds mean the manifest.
    let flags: Vec<String> =
        flags.iter().map(|flag| if has_type(flag) { flag.clone() } else { format!("index:{flag}") }).collect();
    let annotations = Annotations::parse_flags(&flags)?;
    if annotations.has_manifest() {
        return Err(Failure::usage("annotations of type `manifest` would make other images of the sources")
            .help("types are index, index-descriptor and manifest-descriptor"));
    }
    Ok(annotations)
}

fn has_type(flag: &str) -> bool {
    let key = flag.split_once('=').map_or(flag, |(key, _)| key);
    key.split_once(':').is_some_and(|(kind, _)| kind.starts_with("index") || kind.starts_with("manifest"))
}

/// The document that the result is.
fn combined(
    ingredients: &[Ingredient],
    platforms: &[Platform],
    annotations: &Annotations,
    prefer_index: bool,
) -> Result<Document, OpError> {
    let is_index = |document: &Document| media_type::is_index(&document.descriptor.media_type);
    let is_plain = platforms.is_empty() && *annotations == Annotations::default();
    // One source that needs no change is copied as it is.
    if let ([one], true) = (ingredients, is_plain)
        && (is_index(&one.top) || !prefer_index)
    {
        return Ok(one.top.clone());
    }
    let mut entries =
        distinct(ingredients.iter().flat_map(|one| one.entries.clone()).collect()).map_err(combine::fault)?;
    if !platforms.is_empty() {
        entries = for_platforms(entries, platforms).map_err(combine::fault)?;
    }
    if let ([one], false) = (entries.as_slice(), prefer_index)
        && *annotations == Annotations::default()
    {
        return lone(one, ingredients);
    }
    Ok(combine::document(&annotated(entries, annotations)?))
}

/// The only image that is left, which is a source itself.
fn lone(one: &Listed, ingredients: &[Ingredient]) -> Result<Document, OpError> {
    let tops = ingredients.iter().map(|ingredient| &ingredient.top);
    let found = tops.into_iter().find(|top| top.descriptor.digest == one.entry.digest);
    found.cloned().ok_or_else(|| {
        OpError::input(format!("{} is in an index, and cannot leave it with --prefer-index=false", one.entry.digest))
            .help("name it by its digest as the source")
    })
}

fn annotated(mut entries: Vec<Listed>, annotations: &Annotations) -> Result<Index, OpError> {
    let platforms: Vec<Platform> = entries
        .iter()
        .filter(|listed| attestation::is_image(&listed.entry))
        .filter_map(|listed| listed.entry.platform.as_ref().map(Platform::normalized))
        .collect();
    annotations.check(&platforms.iter().collect::<Vec<_>>(), true)?;
    for listed in entries.iter_mut().filter(|listed| attestation::is_image(&listed.entry)) {
        if let Some(platform) = listed.entry.platform.as_ref().map(Platform::normalized) {
            listed.entry.annotations.extend(annotations.of_image(&platform).descriptor);
        }
    }
    Ok(index(&entries, annotations.of_index().index))
}

async fn push(
    transfer: &Transfer<'_>,
    ingredients: &[Ingredient],
    top: &Document,
    tags: &[ImageRef],
) -> Result<(), OpError> {
    let repositories: Vec<ImageRef> = tags.iter().map(ImageRef::name_only).collect();
    let work = async |step: Step| {
        let parcel = transfer.relay().parcel(ingredients, top.clone(), &repositories, &step).await?;
        transfer.pusher().push(&parcel, tags, &step).await
    };
    let names: Vec<String> = tags.iter().map(ImageRef::familiar).collect();
    step(&transfer.progress, format!("pushing {}", names.join(", ")), work).await
}

fn write_metadata(file: Option<&Path>, top: &Descriptor, tags: &[ImageRef]) -> Result<(), Failure> {
    let Some(path) = file else { return Ok(()) };
    let names: Vec<String> = tags.iter().map(ToString::to_string).collect();
    let document = json!({
        "containerimage.descriptor": top,
        "containerimage.digest": top.digest,
        "image.name": names.join(","),
    });
    std::fs::write(path, format!("{document:#}"))
        .map_err(|error| Failure::environment(format!("cannot write `{}`: {error}", path.display())))
}

/// Makes one image of images for several platforms, wherever they are.
pub(crate) fn merge(store: &Store, args: &MergeArgs, confinement: &Confinement) -> Result<(), Failure> {
    let tags = args.tags.iter().map(|tag| parse_tag(tag)).collect::<Result<Vec<_>, _>>()?;
    let annotations = annotations(&args.annotations)?;
    let sources = args.sources.iter().map(|text| Ok((text, from(store, text, &tags)?)));
    let sources = sources.collect::<Result<Vec<_>, Failure>>()?;
    // What stays here keeps the form that it has.
    let wanted = Wanted {
        codec: if args.push { Codec::Gzip { level: DEFAULT_GZIP_LEVEL } } else { Codec::Plain },
        force: false,
        store_plain: args.push,
        may_stay_away: args.push,
    };
    let top = with_transfer(store, confinement, args.quiet, PullPolicy::Missing, None, async |transfer| {
        let mut ingredients = Vec::new();
        for (text, source) in &sources {
            let work = async |step: Step| ingredient(transfer, source, wanted, &step).await;
            ingredients.extend(step(&transfer.progress, format!("reading {text}"), work).await?);
        }
        let entries = ingredients.iter().flat_map(|one: &Ingredient| one.entries.clone()).collect();
        let entries = distinct(entries).and_then(one_a_platform).map_err(combine::fault)?;
        let top = combine::document(&annotated(entries, &annotations)?);
        if args.push {
            push(transfer, &ingredients, &top, &tags).await?;
        } else {
            keep(transfer, &ingredients, &top, &tags).await?;
        }
        Ok(top)
    })?;
    write_metadata(args.metadata_file.as_deref(), &top.descriptor, &tags)?;
    Ok(ui::stdout(&format!("{}\n", top.descriptor.digest))?)
}

/// What a word means: a digest in the result's repository, a file, an image of the store, else one of a registry.
fn from(store: &Store, text: &str, tags: &[ImageRef]) -> Result<From, Failure> {
    if let Some(text) = text.strip_prefix(REGISTRY_SCHEME) {
        return Ok(From::Registry(name(text)?));
    }
    if let Ok(mut found) = find(store, text) {
        return Ok(From::Stored(found.swap_remove(0).stored.target, text.to_owned()));
    }
    if text.starts_with("sha256:") {
        return Ok(From::Registry(by_digest(text, tags)?));
    }
    let path = text.strip_prefix("oci-layout://").unwrap_or(text);
    if Path::new(path).exists() {
        return Ok(From::File(path.into()));
    }
    Ok(From::Registry(name(text)?))
}

async fn ingredient(
    transfer: &Transfer<'_>,
    source: &From,
    wanted: Wanted,
    step: &Step,
) -> Result<Vec<Ingredient>, OpError> {
    let relay = transfer.relay();
    let targets = match source {
        From::Registry(reference) => return Ok(vec![relay.ingredient(reference, step).await?]),
        From::Stored(target, origin) => vec![(target.clone(), origin.clone())],
        From::File(path) => {
            let origin = path.display().to_string();
            read_file(transfer.store, path).await?.into_iter().map(|target| (target, origin.clone())).collect()
        }
    };
    let mut ingredients = Vec::with_capacity(targets.len());
    for (target, origin) in targets {
        let parcel = Parcel::of_stored(&transfer.packer(), transfer.store, &target, wanted).await?;
        ingredients.push(relay.stored_ingredient(parcel, &origin).await?);
    }
    Ok(ingredients)
}

/// Reads an archive or a layout into the store, without giving names.
pub(super) async fn read_file(store: &Store, path: &Path) -> Result<Vec<Descriptor>, OpError> {
    let (store, path) = (store.clone(), path.to_owned());
    let read = move || {
        if path.is_dir() {
            return import::read(&store, Source::Directory(&path), None);
        }
        let open = |source| import::ImportError::Io { operation: "open", path: path.clone(), source };
        let mut file = std::fs::File::open(&path).map_err(open)?;
        import::read(&store, Source::Tar(&mut file), None)
    };
    let loaded = match tokio::task::spawn_blocking(read).await {
        Ok(loaded) => loaded?,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => return Err(OpError::cancelled()),
    };
    Ok(loaded.into_iter().map(|image| image.target).collect())
}

/// Names the result here. Layers of registries come here first; those that were built here stay as they are.
async fn keep(
    transfer: &Transfer<'_>,
    ingredients: &[Ingredient],
    top: &Document,
    tags: &[ImageRef],
) -> Result<(), OpError> {
    let work = async |step: Step| {
        let relay = transfer.relay();
        let remote: Vec<Ingredient> =
            ingredients.iter().filter(|one| matches!(one.place, Place::Repository(_))).cloned().collect();
        let parcel = relay.parcel(&remote, top.clone(), &[], &step).await?;
        relay.ensure_here(&parcel, &step).await?;
        for document in ingredients.iter().filter_map(|one| match &one.place {
            Place::Here(parcel) => Some(&parcel.documents),
            Place::Repository(_) => None,
        }) {
            for document in document {
                transfer.store.put_blob(&document.bytes)?;
            }
        }
        for tag in tags {
            transfer.store.tag(tag, &top.descriptor)?;
        }
        Ok(())
    };
    step(&transfer.progress, "naming the result".to_owned(), work).await
}
