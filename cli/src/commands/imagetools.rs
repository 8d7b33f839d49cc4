//! `rbuild imagetools inspect`: what a registry has under a name, as buildx shows it (`spec/cli.md` §5.1).

use std::fmt::Write as _;

use cache::Store;
use executor::push::Document;
use executor::relay::Relay;
use executor::sandbox::Confinement;
use executor::source::image::PullPolicy;
use oci::{Descriptor, ImageRef, Index, Manifest, attestation, media_type};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use solver::{OpError, Step};

use super::listing::{failure, parse};
use super::transfer::{step, with_transfer};
use crate::args::ImagetoolsInspectArgs;
use crate::failure::Failure;
use crate::template::Zeros;
use crate::ui;

/// Annotation of a statement: what it says.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// How provenance begins.
const SLSA: &str = "https://slsa.dev/provenance/";
/// An SBOM.
const SPDX: &str = "https://spdx.dev/Document";

/// An image of a registry.
struct Inspected {
    name: ImageRef,
    top: Document,
    index: Option<Index>,
}

/// Prints an image of a registry.
pub(crate) fn inspect(store: &Store, args: &ImagetoolsInspectArgs, confinement: &Confinement) -> Result<(), Failure> {
    let name = super::merge::name(&args.name)?;
    let template = args.format.as_deref().map(parse).transpose()?;
    let (image, data) = with_transfer(store, confinement, true, PullPolicy::Always, None, async |transfer| {
        let work = async |step: Step| {
            let relay = transfer.relay();
            let top = relay.top(&name, &step).await?;
            let is_index = media_type::is_index(&top.descriptor.media_type);
            let index = if is_index { Some(document(&top)?) } else { None };
            let image = Inspected { name: name.clone(), top, index };
            let data = match &template {
                Some(_) => Some(image.data(&relay, &step).await?),
                None => None,
            };
            Ok((image, data))
        };
        step(&transfer.progress, format!("reading {}", name.familiar()), work).await
    })?;
    let text = match (template, data) {
        (Some(template), Some(data)) => template.render(&data, &zeros()).map_err(|error| failure(&error))? + "\n",
        _ if args.raw => String::from_utf8_lossy(&image.top.bytes).into_owned(),
        _ => image.text(),
    };
    Ok(ui::stdout(&text)?)
}

impl Inspected {
    fn text(&self) -> String {
        let Descriptor { media_type, digest, .. } = &self.top.descriptor;
        let mut text = format!("Name:      {}\nMediaType: {media_type}\nDigest:    {digest}\n", self.name);
        let Some(index) = &self.index else { return text };
        text.push_str("\nManifests:\n");
        for (number, entry) in index.manifests.iter().enumerate() {
            if number > 0 {
                text.push('\n');
            }
            self.push_entry(&mut text, entry);
        }
        text
    }

    fn push_entry(&self, text: &mut String, entry: &Descriptor) {
        let reference = self.name.name_only().with_digest(entry.digest.clone());
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(text, "  {key:<width$}{value}", width = if key == "Annotations:" { 0 } else { 11 });
        };
        line("Name:", &reference.to_string());
        line("MediaType:", &entry.media_type);
        if let Some(platform) = &entry.platform {
            line("Platform:", &platform.to_string());
            if let Some(version) = &platform.os_version {
                line("OSVersion:", version);
            }
            if !platform.os_features.is_empty() {
                line("OSFeatures:", &platform.os_features.join(", "));
            }
        }
        if !entry.urls.is_empty() {
            line("URLs:", &entry.urls.join(", "));
        }
        if !entry.annotations.is_empty() {
            line("Annotations:", "");
            for (key, value) in &entry.annotations {
                let _ = writeln!(text, "    {key}: {value}");
            }
        }
    }

    /// What templates see.
    async fn data(&self, relay: &Relay, step: &Step) -> Result<Value, OpError> {
        let mut manifest: Value = document(&self.top)?;
        if self.index.is_none() {
            manifest = json!(self.top.descriptor);
        }
        manifest["digest"] = json!(self.top.descriptor.digest);
        manifest["size"] = json!(self.top.descriptor.size_bytes);
        let (mut images, mut provenance, mut sboms) = (Map::new(), Map::new(), Map::new());
        for (key, entry, attestations) in self.images() {
            let image = self.fetch(relay, &entry, step).await?;
            let config = relay.config(&self.name, &image.bytes).await?;
            images.insert(key.clone(), from_slice(&entry, &config)?);
            for attestation in &attestations {
                let manifest: Manifest = document(&self.fetch(relay, attestation, step).await?)?;
                for statement in &manifest.layers {
                    let Some(kind) = statement.annotations.get(PREDICATE_TYPE) else { continue };
                    let bytes = relay.blob(&self.name, statement).await?;
                    let predicate = from_slice::<Value>(statement, &bytes)?["predicate"].take();
                    if kind.starts_with(SLSA) {
                        provenance.insert(key.clone(), json!({"SLSA": predicate}));
                    } else if kind == SPDX {
                        sboms.insert(key.clone(), json!({"SPDX": predicate}));
                    }
                }
            }
        }
        // What is for one platform alone needs no key.
        let is_one = images.len() <= 1;
        let shown = |map: Map<String, Value>| match is_one {
            true => map.into_iter().next().map_or_else(|| json!({}), |(_, value)| value),
            false => Value::Object(map),
        };
        Ok(json!({
            "Name": self.name.to_string(),
            "Manifest": manifest,
            "Image": shown(images),
            "Provenance": shown(provenance),
            "SBOM": shown(sboms),
        }))
    }

    /// The images by platform, each with what speaks about it.
    fn images(&self) -> Vec<(String, Descriptor, Vec<Descriptor>)> {
        let Some(index) = &self.index else {
            return vec![(String::new(), self.top.descriptor.clone(), Vec::new())];
        };
        let about = |image: &Descriptor| {
            let speaks = |entry: &&Descriptor| attestation::described(entry).as_ref() == Some(&image.digest);
            index.manifests.iter().filter(speaks).cloned().collect()
        };
        let key = |entry: &Descriptor| entry.platform.as_ref().map(ToString::to_string).unwrap_or_default();
        let images = index.manifests.iter().filter(|entry| attestation::is_image(entry));
        images.map(|entry| (key(entry), entry.clone(), about(entry))).collect()
    }

    async fn fetch(&self, relay: &Relay, entry: &Descriptor, step: &Step) -> Result<Document, OpError> {
        if entry.digest == self.top.descriptor.digest {
            return Ok(self.top.clone());
        }
        relay.top(&self.name.name_only().with_digest(entry.digest.clone()), step).await
    }
}

fn document<T: DeserializeOwned>(document: &Document) -> Result<T, OpError> {
    from_slice(&document.descriptor, &document.bytes)
}

fn from_slice<T: DeserializeOwned>(descriptor: &Descriptor, bytes: &[u8]) -> Result<T, OpError> {
    serde_json::from_slice(bytes)
        .map_err(|error| OpError::input(format!("{} is no usable image document: {error}", descriptor.digest)))
}

/// What images do not have.
fn zeros() -> Zeros {
    Zeros::from([("SLSA", Value::Null), ("SPDX", Value::Null), ("annotations", json!({})), ("Annotations", json!({}))])
}
