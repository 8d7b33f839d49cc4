//! The recorded form of images and trees (`goldens/README.md`, "Comparing").

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::archive::{Entry, Image, Kind, Tree, apply_layer, hex, tree_of};
use crate::case::Spec;

/// Files up to this size are recorded as text when they are UTF-8.
const MAX_TEXT_BYTES: usize = 600;
/// What is recorded of the config's `config`.
const CONFIG_KEYS: [&str; 13] = [
    "Env",
    "Entrypoint",
    "Cmd",
    "WorkingDir",
    "User",
    "Labels",
    "ExposedPorts",
    "Volumes",
    "StopSignal",
    "Shell",
    "Healthcheck",
    "OnBuild",
    "ArgsEscaped",
];
/// What is recorded of an entry of the history.
const HISTORY_KEYS: [&str; 3] = ["created_by", "comment", "empty_layer"];

/// The images of one build; `known` are the base images by name.
pub fn images(images: &[Image], known: &[(String, Image)], spec: &Spec) -> Value {
    match images {
        [one] => image(one, known, spec),
        several => {
            let platforms: Map<_, _> =
                several.iter().map(|one| (one.platform.clone(), image(one, known, spec))).collect();
            json!({ "platforms": platforms })
        }
    }
}

/// The recorded form of an image, whose base is the longest of `known` that it starts with.
fn image(image: &Image, known: &[(String, Image)], spec: &Spec) -> Value {
    // The last of equals is taken: of names for one image the first counts.
    let bases = known.iter().rev().filter(|(_, base)| starts_with(image, base));
    let base = bases.max_by_key(|(_, base)| (base.layers.len(), list(&base.config["history"]).len()));
    let (name, base_layers, base_history) = match base {
        Some((name, base)) => (name.as_str(), base.layers.as_slice(), list(&base.config["history"]).len()),
        None => ("scratch", [].as_slice(), 0),
    };
    let base_tree = tree_of(base_layers);
    let mut tree = base_tree.clone();
    let mut layers = Vec::new();
    for layer in &image.layers[base_layers.len()..] {
        let carried = apply_layer(&mut tree, &layer.entries);
        let kept = layer.entries.iter().zip(carried).filter(|(_, carried)| !carried);
        layers.push(kept.map(|(entry, _)| Value::Object(shown(entry, spec, &entry.path, false))).collect::<Vec<_>>());
    }
    let (files, removed) = difference(&tree, &base_tree, spec);
    let mut config = config(&image.config);
    let mut history = self::history(image).split_off(base_history);
    if spec.records("created") {
        config.insert("created".to_owned(), image.config["created"].clone());
        let entries = history.iter_mut().zip(&list(&image.config["history"])[base_history..]);
        entries.for_each(|(shown, entry)| drop(shown.insert("created".to_owned(), entry["created"].clone())));
    }
    json!({
        "base": name, "config": config, "history": history, "layers": layers, "files": files, "removed": removed,
    })
}

fn starts_with(image: &Image, base: &Image) -> bool {
    let (own, of_base) = (list(&image.config["history"]), list(&base.config["history"]));
    let digests = |image: &Image| image.layers.iter().map(|layer| layer.digest.clone()).collect::<Vec<_>>();
    digests(image).starts_with(&digests(base)) && own.starts_with(of_base)
}

/// What is recorded of a config document: keys with null or empty values are not, nor are times.
pub fn config(config: &Value) -> Map<String, Value> {
    let mut fields = picked(&config["config"], &CONFIG_KEYS);
    fields.extend(picked(config, &["os", "architecture", "variant", "author"]));
    fields.retain(|_, value| !is_empty(value));
    fields
}

/// What is recorded of an image's history, first entry first; times are not.
pub fn history(image: &Image) -> Vec<Map<String, Value>> {
    list(&image.config["history"]).iter().map(|entry| picked(entry, &HISTORY_KEYS)).collect()
}

fn picked(value: &Value, keys: &[&str]) -> Map<String, Value> {
    keys.iter().filter_map(|key| value.get(key).map(|value| ((*key).to_owned(), value.clone()))).collect()
}

/// The recorded form of what the exporters of plain files wrote.
pub fn tree(tree: &Tree, busybox: &Image, spec: &Spec) -> Value {
    let base = if tree.contains_key("bin/busybox") { tree_of(&busybox.layers) } else { Tree::new() };
    let (files, removed) = difference(tree, &base, spec);
    json!({ "files": files, "removed": removed })
}

/// `tree` against `base`: new and changed entries, removed paths.
fn difference(tree: &Tree, base: &Tree, spec: &Spec) -> (Vec<Value>, Vec<String>) {
    let mut groups: BTreeMap<*const Entry, Vec<&str>> = BTreeMap::new();
    for (path, entry) in tree {
        groups.entry(Arc::as_ptr(entry)).or_default().push(path);
    }
    let mut files = Vec::new();
    for (path, entry) in tree {
        let unchanged = base.get(path).is_some_and(|old| old.same(entry));
        if path.is_empty() || (unchanged && !spec.times.contains(path)) {
            continue;
        }
        let mut fields = shown(entry, spec, path, true);
        let names = &groups[&Arc::as_ptr(entry)];
        if names.len() > 1 {
            fields.insert("hardlinks".to_owned(), json!(names));
        }
        files.push(Value::Object(fields));
    }
    (files, base.keys().filter(|path| !tree.contains_key(*path)).cloned().collect())
}

/// An entry as recorded, under the name `path`; with `text` in place of size and digest where it is wanted and possible.
fn shown(entry: &Entry, spec: &Spec, path: &str, as_text: bool) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
    put("path", json!(path));
    put("mode", json!(format!("{:04o}", entry.mode)));
    put("uid", json!(entry.uid));
    put("gid", json!(entry.gid));
    if !entry.xattrs.is_empty() {
        put("xattrs", json!(entry.xattrs));
    }
    if spec.times.iter().any(|timed| timed == path) {
        put("mtime", json!(entry.mtime));
    }
    put("type", json!(type_name(&entry.kind)));
    match &entry.kind {
        Kind::File(data) => match str::from_utf8(data) {
            Ok(text) if as_text && data.len() <= MAX_TEXT_BYTES => put("text", json!(text)),
            _ => {
                put("size", json!(data.len()));
                put("sha256", json!(hex(&Sha256::digest(data.as_slice()))));
            }
        },
        Kind::HardLink(target) | Kind::Symlink(target) => put("linkname", json!(target)),
        Kind::Device(_, major, minor) => {
            put("devmajor", json!(major));
            put("devminor", json!(minor));
        }
        Kind::Dir | Kind::Fifo => {}
    }
    fields
}

/// The word for a kind of entry.
pub fn type_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::File(_) => "file",
        Kind::HardLink(_) => "hardlink",
        Kind::Symlink(_) => "symlink",
        Kind::Dir => "dir",
        Kind::Fifo => "fifo",
        Kind::Device(name, ..) => name,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
