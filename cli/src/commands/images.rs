//! `rbuild images`, `tag`, `rmi`, `inspect` and `history` (`spec/cli.md` §6).

use cache::Store;
use oci::{Digest, ImageRef};
use serde_json::json;

use super::image::{Image, PlatformImage, all, find, size_bytes};
use super::table::Table;
use crate::args::{HistoryArgs, ImagesArgs, InspectArgs, RmiArgs, TagArgs};
use crate::failure::Failure;
use crate::request::platform;
use crate::ui;
use crate::ui::format::{ago, size_short};

/// Lists images, newest first.
pub(crate) fn images(store: &Store, args: &ImagesArgs, now: i64) -> Result<(), Failure> {
    let mut table = Table::new(if args.digests {
        &["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"]
    } else {
        &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
    });
    let mut text = String::new();
    for image in all(store)? {
        let (repository, tag) = names(image.stored.reference.as_ref());
        let wanted = args.repository.as_ref().is_none_or(|wanted| {
            *wanted == repository
                || *wanted == format!("{repository}:{tag}")
                || wanted.strip_suffix(":latest") == Some(&repository)
        });
        if !wanted {
            continue;
        }
        let id = if args.no_trunc { image.id().to_string() } else { image.id().short() };
        let digest = image.stored.target.digest.to_string();
        let size = size_short(size_bytes(store, image.platforms())?);
        let created_at = created_at(&image);
        if args.quiet {
            text.push_str(&format!("{id}\n"));
        } else if args.format == "json" {
            let platforms: Vec<String> = image.platforms().iter().map(|image| image.platform().to_string()).collect();
            let line = json!({"ID": id, "Repository": repository, "Tag": tag, "Digest": digest, "Platforms": platforms,
                "CreatedSince": ago(now - created_at), "CreatedAt": image.shown().config.created, "Size": size});
            text.push_str(&format!("{line}\n"));
        } else {
            let created = ago(now - created_at);
            let mut row = vec![repository, tag, id, created, size];
            if args.digests {
                row.insert(2, digest);
            }
            table.row(row);
        }
    }
    if !args.quiet && args.format == "table" {
        text = table.render();
    }
    Ok(ui::stdout(&text)?)
}

/// Gives an image another name.
pub(crate) fn tag(store: &Store, args: &TagArgs) -> Result<(), Failure> {
    let image = find(store, &args.source)?.swap_remove(0);
    Ok(store.tag(&crate::request::parse_tag(&args.target)?, &image.stored.target)?)
}

/// Removes names, and images without names.
pub(crate) fn rmi(store: &Store, args: &RmiArgs) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for text in &args.images {
        let images = match find(store, text) {
            Ok(images) => images,
            Err(failure) => {
                missing.push(failure);
                continue;
            }
        };
        let by_id = images.len() > 1;
        if by_id && !args.force {
            let names: Vec<String> =
                images.iter().map(|image| names(image.stored.reference.as_ref())).map(joined).collect();
            let message = format!("image `{text}` has several names: {}", names.join(", "));
            return Err(Failure::input(message).help("name one of them, or remove all with --force"));
        }
        for image in images {
            remove(store, &image)?;
        }
    }
    missing.into_iter().next().map_or(Ok(()), Err)
}

fn remove(store: &Store, image: &Image) -> Result<(), Failure> {
    let digest = &image.stored.target.digest;
    let mut text = String::new();
    match &image.stored.reference {
        Some(reference) => {
            store.untag(reference)?;
            text.push_str(&format!("Untagged: {}\n", reference.familiar()));
        }
        None => {
            store.remove_dangling(digest)?;
        }
    }
    let still_named = store.images()?.iter().any(|other| other.target.digest == *digest);
    if !still_named {
        text.push_str(&format!("Deleted: {}\n", image.id()));
    }
    Ok(ui::stdout(&text)?)
}

/// Prints images in docker's JSON shape. Of an index, the image of one platform is shown.
pub(crate) fn inspect(store: &Store, args: &InspectArgs) -> Result<(), Failure> {
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let mut documents = Vec::new();
    for text in &args.images {
        let image = find(store, text)?.swap_remove(0);
        let document = match &wanted {
            Some(wanted) => {
                let one = image.for_platform(wanted, text)?;
                inspected(store, &image, one, one.id())?
            }
            None => inspected(store, &image, image.shown(), image.id())?,
        };
        documents.push(document);
    }
    let text = serde_json::to_string_pretty(&documents)
        .map_err(|error| Failure::environment(format!("cannot write JSON: {error}")))?;
    Ok(ui::stdout(&format!("{text}\n"))?)
}

/// What is said of `image`, with the facts of `one` of its platforms.
fn inspected(store: &Store, image: &Image, one: &PlatformImage, id: &Digest) -> Result<serde_json::Value, Failure> {
    let target = &image.stored.target;
    let named = store.images()?.into_iter().filter(|other| other.target.digest == target.digest);
    let references: Vec<ImageRef> = named.filter_map(|other| other.reference).collect();
    let tags: Vec<String> = references.iter().map(ImageRef::familiar).collect();
    let digests = references.iter().map(|name| format!("{}@{}", names(Some(name)).0, target.digest));
    let mut document = json!({
        "Id": id.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests.collect::<Vec<_>>(),
        "Parent": "",
        "Comment": one.config.history.last().map(|entry| entry.comment.clone()).unwrap_or_default(),
        "Created": one.config.created,
        "Author": one.config.author.clone().unwrap_or_default(),
        "Config": one.config.config,
        "Architecture": one.config.architecture,
        "Os": one.config.os,
        "Size": size_bytes(store, std::slice::from_ref(one))?,
        "RootFS": {"Type": one.config.rootfs.kind, "Layers": one.config.rootfs.diff_ids},
        "Metadata": {"LastTagTime": oci::time::format_rfc3339(image.stored.updated_at, 0)},
        "Descriptor": target,
    });
    if let Some(variant) = &one.config.variant {
        document["Variant"] = json!(variant);
    }
    if image.is_index() {
        let listed = image.platforms().iter().map(|one| listed(store, one)).collect::<Result<Vec<_>, _>>()?;
        document["Manifests"] = json!(listed);
    }
    Ok(document)
}

/// One image of an index, in the shape of docker's list of manifests.
fn listed(store: &Store, one: &PlatformImage) -> Result<serde_json::Value, Failure> {
    Ok(json!({
        "ID": one.descriptor.digest,
        "Descriptor": one.descriptor,
        "Available": true,
        "Kind": "image",
        "Size": {"Total": size_bytes(store, std::slice::from_ref(one))?},
        "ImageData": {"Platform": one.platform()},
    }))
}

/// Prints the history, newest first.
pub(crate) fn history(store: &Store, args: &HistoryArgs, now: i64) -> Result<(), Failure> {
    let whole = find(store, &args.image)?.swap_remove(0);
    let image = match &args.platform {
        Some(text) => whole.for_platform(&platform(text)?, &args.image)?,
        None => whole.shown(),
    };
    let mut layers = image.config.rootfs.diff_ids.iter().zip(&image.manifest.layers);
    let mut rows = Vec::new();
    for entry in &image.config.history {
        let layer = if entry.empty_layer { None } else { layers.next() };
        let bytes = match layer {
            Some((diff_id, blob)) => store.layer_for_diff_id(diff_id)?.tar_bytes.unwrap_or(blob.size_bytes),
            None => 0,
        };
        rows.push((entry, bytes));
    }
    let mut table = Table::new(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    let mut text = String::new();
    for (index, (entry, bytes)) in rows.iter().rev().enumerate() {
        let id = match index {
            0 if args.no_trunc => image.id().to_string(),
            0 => image.id().short(),
            _ => "<missing>".to_owned(),
        };
        let created = entry.created.as_deref().and_then(|time| oci::time::parse_rfc3339(time).ok());
        let created = created.map_or_else(|| "N/A".to_owned(), |(seconds, _)| ago(now - seconds));
        if args.quiet {
            text.push_str(&format!("{id}\n"));
        } else if args.format == "json" {
            let line = json!({"ID": id, "CreatedAt": entry.created, "CreatedSince": created, "CreatedBy": entry.created_by,
                "Size": size_short(*bytes), "Comment": entry.comment});
            text.push_str(&format!("{line}\n"));
        } else {
            let by = if args.no_trunc { entry.created_by.clone() } else { clipped(&entry.created_by, 45) };
            table.row(vec![id, created, by, size_short(*bytes), entry.comment.clone()]);
        }
    }
    if !args.quiet && args.format == "table" {
        text = table.render();
    }
    Ok(ui::stdout(&text)?)
}

/// Repository and tag as docker shows them.
fn names(reference: Option<&ImageRef>) -> (String, String) {
    let none = || "<none>".to_owned();
    let Some(reference) = reference else { return (none(), none()) };
    let familiar = reference.familiar();
    let tag = reference.tag().map_or_else(none, str::to_owned);
    let repository = familiar.strip_suffix(&format!(":{tag}")).map(str::to_owned).unwrap_or(familiar);
    (repository, tag)
}

fn joined((repository, tag): (String, String)) -> String {
    format!("{repository}:{tag}")
}

fn created_at(image: &Image) -> i64 {
    let time = image.shown().config.created.as_deref().and_then(|time| oci::time::parse_rfc3339(time).ok());
    time.map_or(image.stored.updated_at, |(seconds, _)| seconds)
}

fn clipped(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
