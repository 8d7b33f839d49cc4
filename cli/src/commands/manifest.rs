//! `rbuild manifest inspect`: documents as they are (`spec/cli.md` §6).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cache::Store;
use executor::push::Document;
use executor::sandbox::Confinement;
use executor::source::image::PullPolicy;
use oci::{Descriptor, ImageRef, Index, media_type};
use serde_json::{Value, json};
use solver::{OpError, Step};

use super::transfer::{Transfer, step, with_transfer};
use crate::args::ManifestInspectArgs;
use crate::failure::Failure;
use crate::ui;

/// Prints what a name stands for here, else in its registry.
pub(crate) fn inspect(store: &Store, args: &ManifestInspectArgs, confinement: &Confinement) -> Result<(), Failure> {
    let name = ImageRef::parse_normalized(&args.name)
        .map(ImageRef::with_default_tag)
        .map_err(|error| Failure::usage(format!("invalid image name `{}`: {error}", args.name)))?;
    let insecure = args.insecure.then(|| name.registry().to_owned());
    let text = with_transfer(store, confinement, true, PullPolicy::Missing, insecure, async |transfer| {
        let work = async |step: Step| text(transfer, &name, args.verbose, &step).await;
        step(&transfer.progress, format!("reading {}", name.familiar()), work).await
    })?;
    Ok(ui::stdout(&text)?)
}

async fn text(transfer: &Transfer<'_>, name: &ImageRef, verbose: bool, step: &Step) -> Result<String, OpError> {
    let top = match stored(transfer.store, name)? {
        Some(top) => top,
        None => transfer.relay().top(name, step).await?,
    };
    if !verbose {
        let text = String::from_utf8_lossy(&top.bytes).into_owned();
        return Ok(if text.ends_with('\n') { text } else { text + "\n" });
    }
    if !media_type::is_index(&top.descriptor.media_type) {
        return Ok(format!("{:#}\n", described(name, &top.descriptor, &top)?));
    }
    let index: Index = parse(&top)?;
    let mut list = Vec::with_capacity(index.manifests.len());
    for entry in &index.manifests {
        let reference = name.name_only().with_digest(entry.digest.clone());
        let document = match transfer.store.read_blob(&entry.digest)? {
            Some(bytes) => Document { descriptor: entry.clone(), bytes: bytes.into() },
            None => transfer.relay().top(&reference, step).await?,
        };
        list.push(described(&reference, entry, &document)?);
    }
    Ok(format!("{:#}\n", Value::Array(list)))
}

/// What the store has under that name.
fn stored(store: &Store, name: &ImageRef) -> Result<Option<Document>, OpError> {
    let Some(image) = store.image(name)? else { return Ok(None) };
    let bytes = store.read_blob(&image.target.digest)?;
    Ok(bytes.map(|bytes| Document { descriptor: image.target, bytes: bytes.into() }))
}

/// One document in the shape of docker's `-v`.
fn described(reference: &ImageRef, entry: &Descriptor, document: &Document) -> Result<Value, OpError> {
    let parsed: Value = parse(document)?;
    let field = match document.descriptor.media_type.as_str() {
        media_type::DOCKER_MANIFEST => "SchemaV2Manifest",
        _ => "OCIManifest",
    };
    Ok(json!({
        "Ref": reference.to_string(),
        "Descriptor": entry,
        "Raw": STANDARD.encode(&document.bytes),
        field: parsed,
    }))
}

fn parse<T: serde::de::DeserializeOwned>(document: &Document) -> Result<T, OpError> {
    serde_json::from_slice(&document.bytes)
        .map_err(|error| OpError::input(format!("{} is no usable image document: {error}", document.descriptor.digest)))
}
