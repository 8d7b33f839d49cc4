//! `rbuild inspect`: images in docker's JSON shape (`spec/cli.md` §6).

use cache::Store;
use oci::{Digest, ImageRef, attestation};
use serde_json::{Value, json};

use super::image::{Image, Other, PlatformImage, find, names, size_bytes};
use super::listing::{failure, parse};
use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::request::platform;
use crate::template::Zeros;
use crate::ui;

/// Prints images. Of an index, the image of one platform is shown. Those that are there are printed, also when others
/// are not.
pub(crate) fn inspect(store: &Store, args: &InspectArgs) -> Result<(), Failure> {
    if let Some(kind) = args.kind.as_deref().filter(|kind| *kind != "image") {
        return Err(Failure::usage(format!("there are no objects of the type `{kind}` here"))
            .help("rbuild has images: --type=image, or nothing"));
    }
    let template = args.format.as_deref().filter(|format| *format != "json").map(parse).transpose()?;
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let mut documents = Vec::new();
    let mut missing = Vec::new();
    for text in &args.images {
        let image = match find(store, text) {
            Ok(mut found) => found.swap_remove(0),
            Err(failure) => {
                missing.push(failure);
                continue;
            }
        };
        let one = match &wanted {
            Some(wanted) => image.for_platform(wanted, text)?,
            None => image.shown(),
        };
        let id = if wanted.is_some() { one.id() } else { image.id() };
        documents.push(document(store, &image, one, id)?);
    }
    let text = match (&template, args.format.is_some()) {
        (Some(template), _) => {
            let zeros = zeros();
            let lines = documents.iter().map(|document| Ok(template.render(document, &zeros)? + "\n"));
            lines.collect::<Result<String, _>>().map_err(|error| failure(&error))?
        }
        (None, true) => documents.iter().map(|document| format!("{document}\n")).collect(),
        (None, false) => format!("{:#}\n", Value::Array(documents)),
    };
    ui::stdout(&text)?;
    missing.into_iter().next().map_or(Ok(()), Err)
}

/// What is said of `image`, with the facts of `one` of its platforms.
fn document(store: &Store, image: &Image, one: &PlatformImage, id: &Digest) -> Result<Value, Failure> {
    let target = &image.stored.target;
    let named = store.images()?.into_iter().filter(|other| other.target.digest == target.digest);
    let mut references: Vec<ImageRef> = named.filter_map(|other| other.reference).collect();
    references.sort_by_cached_key(ImageRef::familiar);
    let tags: Vec<String> = references.iter().map(ImageRef::familiar).collect();
    let mut digests: Vec<String> =
        references.iter().map(|name| format!("{}@{}", names(Some(name)).0, target.digest)).collect();
    digests.dedup();
    let mut document = json!({
        "Id": id.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
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
    if let Some(version) = &one.config.os_version {
        document["OsVersion"] = json!(version);
    }
    if image.is_index() {
        let images = image.platforms().iter().map(|one| listed(store, one));
        let others = image.others().iter().map(|other| Ok(not_an_image(other)));
        document["Manifests"] = json!(images.chain(others).collect::<Result<Vec<_>, Failure>>()?);
    }
    Ok(document)
}

/// One image of an index, in the shape of docker's list of manifests.
fn listed(store: &Store, one: &PlatformImage) -> Result<Value, Failure> {
    Ok(json!({
        "ID": one.descriptor.digest,
        "Descriptor": one.descriptor,
        "Available": true,
        "Kind": "image",
        "Size": {"Total": size_bytes(store, std::slice::from_ref(one))?},
        "ImageData": {"Platform": one.platform()},
    }))
}

/// What else an index lists, in the same shape.
fn not_an_image(other: &Other) -> Value {
    let descriptor = &other.descriptor;
    let mut entry = json!({
        "ID": descriptor.digest,
        "Descriptor": descriptor,
        "Available": other.is_here,
        "Kind": "unknown",
        "Size": {"Total": descriptor.size_bytes},
    });
    if let Some(described) = attestation::described(descriptor) {
        entry["Kind"] = json!("attestation");
        entry["AttestationData"] = json!({"For": described});
    } else if attestation::is_image(descriptor) {
        entry["Kind"] = json!("image");
        entry["ImageData"] = json!({"Platform": descriptor.platform});
    }
    entry
}

/// What fields are that an image does not have.
fn zeros() -> Zeros {
    let texts = [
        "User",
        "WorkingDir",
        "StopSignal",
        "Variant",
        "OsVersion",
        "Hostname",
        "Domainname",
        "Image",
        "DockerVersion",
    ];
    let maps = ["ExposedPorts", "Volumes", "Labels"];
    let lists = ["Env", "Entrypoint", "Cmd", "OnBuild", "Shell"];
    let texts = texts.map(|name| (name, json!("")));
    let maps = maps.map(|name| (name, json!({})));
    let lists = lists.map(|name| (name, json!([])));
    let others = [("Healthcheck", Value::Null), ("ArgsEscaped", json!(false)), ("Manifests", json!([]))];
    texts.into_iter().chain(maps).chain(lists).chain(others).collect()
}
