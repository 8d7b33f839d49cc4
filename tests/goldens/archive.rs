//! Reads OCI archives and flattens layers to the tree that unpacking them gives.

use std::collections::BTreeMap;
use std::io::Read;
use std::rc::Rc;

use serde_json::Value;

/// Name of the entry that empties its directory.
const OPAQUE: &str = ".wh..wh..opq";
/// Prefix of entries that remove what they name.
const WHITEOUT: &str = ".wh.";
/// Where PAX headers keep extended attributes.
const XATTR: &str = "SCHILY.xattr.";

/// One image of an archive.
pub(crate) struct Image {
    /// `os/architecture[/variant]`.
    pub(crate) platform: String,
    /// The config document.
    pub(crate) config: Value,
    /// Base layer first.
    pub(crate) layers: Vec<Layer>,
}

/// One layer.
#[derive(Clone)]
pub(crate) struct Layer {
    /// Digest of its tar: archives are written uncompressed.
    pub(crate) digest: String,
    /// In the order of the tar.
    pub(crate) entries: Rc<Vec<Rc<Entry>>>,
}

/// One entry of a layer or of a flattened tree.
#[derive(Clone)]
pub(crate) struct Entry {
    /// Without a slash in front; empty for the root.
    pub(crate) path: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u64,
    /// Group.
    pub(crate) gid: u64,
    /// Extended attributes, values in hex.
    pub(crate) xattrs: BTreeMap<String, String>,
    /// As written; a fraction may follow the seconds.
    pub(crate) mtime: String,
}

/// The kinds of entries with what is theirs alone.
#[derive(Clone, PartialEq)]
pub(crate) enum Kind {
    /// A regular file.
    File(Rc<Vec<u8>>),
    /// Another name of an entry before it.
    HardLink(String),
    /// A symbolic link.
    Symlink(String),
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
    /// A device: `char` or `block`, major, minor.
    Device(&'static str, u32, u32),
}

impl Entry {
    /// Whether both are the same apart from their times.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.path == other.path
            && self.kind == other.kind
            && (self.mode, self.uid, self.gid) == (other.mode, other.uid, other.gid)
            && self.xattrs == other.xattrs
    }
}

/// What unpacking gives: path → entry. Names of one hard-linked file share their entry.
pub(crate) type Tree = BTreeMap<String, Rc<Entry>>;

/// The images of an OCI archive, attestations left out. Layers that are among `known` are not read again.
pub(crate) fn read_images(archive: &[u8], known: &[Layer]) -> Result<Vec<Image>, String> {
    let mut blobs = BTreeMap::new();
    let mut tar = tar::Archive::new(archive);
    for entry in tar.entries().map_err(text)? {
        let mut entry = entry.map_err(text)?;
        let path = entry.path().map_err(text)?.to_string_lossy().into_owned();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).map_err(text)?;
        blobs.insert(path, data);
    }
    let index = json(blobs.get("index.json").ok_or("the archive has no index.json")?)?;
    let mut manifests = Vec::new();
    collect_manifests(&index, &blobs, &mut manifests)?;
    manifests.iter().map(|manifest| read_image(manifest, &blobs, known)).collect()
}

/// Digest of the first document that an archive's index names.
pub(crate) fn first_digest(archive: &[u8]) -> Result<String, String> {
    let mut tar = tar::Archive::new(archive);
    for entry in tar.entries().map_err(text)? {
        let mut entry = entry.map_err(text)?;
        if entry.path().map_err(text)?.as_os_str() == "index.json" {
            let mut data = Vec::new();
            entry.read_to_end(&mut data).map_err(text)?;
            return Ok(string(&json(&data)?["manifests"][0]["digest"]));
        }
    }
    Err("the archive has no index.json".to_owned())
}

fn collect_manifests(index: &Value, blobs: &BTreeMap<String, Vec<u8>>, found: &mut Vec<Value>) -> Result<(), String> {
    for descriptor in list(&index["manifests"]) {
        let document = json(blob(blobs, &string(&descriptor["digest"]))?)?;
        if document.get("manifests").is_some() {
            collect_manifests(&document, blobs, found)?;
        } else if descriptor["platform"]["os"] != "unknown" {
            found.push(document);
        }
    }
    Ok(())
}

fn read_image(manifest: &Value, blobs: &BTreeMap<String, Vec<u8>>, known: &[Layer]) -> Result<Image, String> {
    let config = json(blob(blobs, &string(&manifest["config"]["digest"]))?)?;
    let mut layers = Vec::new();
    for descriptor in list(&manifest["layers"]) {
        let digest = string(&descriptor["digest"]);
        let layer = match known.iter().find(|layer| layer.digest == digest) {
            Some(layer) => layer.clone(),
            None => Layer { entries: Rc::new(read_layer(blob(blobs, &digest)?)?), digest },
        };
        layers.push(layer);
    }
    let parts = ["os", "architecture", "variant"].map(|key| string(&config[key]));
    let platform = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    Ok(Image { platform, config, layers })
}

fn blob<'a>(blobs: &'a BTreeMap<String, Vec<u8>>, digest: &str) -> Result<&'a [u8], String> {
    let path = format!("blobs/{}", digest.replace(':', "/"));
    blobs.get(&path).map(Vec::as_slice).ok_or_else(|| format!("the archive has no {path}"))
}

/// The entries of an uncompressed layer tar.
pub(crate) fn read_layer(data: &[u8]) -> Result<Vec<Rc<Entry>>, String> {
    let mut tar = tar::Archive::new(data);
    tar.entries().map_err(text)?.map(|entry| read_entry(entry.map_err(text)?).map(Rc::new)).collect()
}

fn read_entry(mut entry: tar::Entry<'_, &[u8]>) -> Result<Entry, String> {
    let path = normal(&String::from_utf8_lossy(&entry.path_bytes()));
    let mut xattrs = BTreeMap::new();
    let mut mtime = entry.header().mtime().map_err(text)?.to_string();
    if let Some(extensions) = entry.pax_extensions().map_err(text)? {
        for extension in extensions {
            let extension = extension.map_err(text)?;
            let key = extension.key().map_err(text)?;
            if let Some(name) = key.strip_prefix(XATTR) {
                xattrs.insert(name.to_owned(), hex(extension.value_bytes()));
            } else if key == "mtime" {
                mtime = String::from_utf8_lossy(extension.value_bytes()).into_owned();
            }
        }
    }
    let header = entry.header();
    let link = |entry: &tar::Entry<'_, &[u8]>| {
        entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned()).unwrap_or_default()
    };
    let device = |name| -> Result<Kind, String> {
        let major = header.device_major().map_err(text)?.unwrap_or_default();
        Ok(Kind::Device(name, major, header.device_minor().map_err(text)?.unwrap_or_default()))
    };
    let (mode, uid, gid) =
        (header.mode().map_err(text)? & 0o7777, header.uid().map_err(text)?, header.gid().map_err(text)?);
    let kind = match header.entry_type() {
        tar::EntryType::Link => Kind::HardLink(link(&entry)),
        tar::EntryType::Symlink => Kind::Symlink(link(&entry)),
        tar::EntryType::Char => device("char")?,
        tar::EntryType::Block => device("block")?,
        tar::EntryType::Directory => Kind::Dir,
        tar::EntryType::Fifo => Kind::Fifo,
        _ => {
            let mut data = Vec::new();
            entry.read_to_end(&mut data).map_err(text)?;
            Kind::File(Rc::new(data))
        }
    };
    Ok(Entry { path, kind, mode, uid, gid, xattrs, mtime })
}

/// Applies one layer to `tree`. Tells for each entry whether it is a directory that only came along: it was there
/// before, unchanged.
pub(crate) fn apply_layer(tree: &mut Tree, entries: &[Rc<Entry>]) -> Vec<bool> {
    for entry in entries {
        let (head, name) = split(&entry.path);
        if name == OPAQUE {
            remove_below(tree, head);
        } else if let Some(name) = name.strip_prefix(WHITEOUT) {
            let path = join(head, name);
            tree.remove(&path);
            remove_below(tree, &path);
        }
    }
    entries.iter().map(|entry| apply_entry(tree, entry)).collect()
}

fn apply_entry(tree: &mut Tree, entry: &Rc<Entry>) -> bool {
    if is_whiteout(&entry.path) {
        return false;
    }
    let old = tree.get(&entry.path);
    let is_dir = entry.kind == Kind::Dir;
    let carried = is_dir && old.is_some_and(|old| old.same(entry));
    if !is_dir && old.is_some_and(|old| old.kind == Kind::Dir) {
        remove_below(tree, &entry.path);
    }
    let kept = match &entry.kind {
        Kind::HardLink(target) => tree.get(&normal(target)).unwrap_or(entry).clone(),
        _ => entry.clone(),
    };
    tree.insert(entry.path.clone(), kept);
    carried
}

/// The tree of a stack of layers, base layer first.
pub(crate) fn tree_of(layers: &[Layer]) -> Tree {
    let mut tree = Tree::new();
    for layer in layers {
        apply_layer(&mut tree, &layer.entries);
    }
    tree
}

/// Whether the last part of a path marks a removal.
pub(crate) fn is_whiteout(path: &str) -> bool {
    split(path).1.starts_with(WHITEOUT)
}

fn remove_below(tree: &mut Tree, dir: &str) {
    let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
    tree.retain(|path, _| !path.starts_with(&prefix));
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(head: &str, name: &str) -> String {
    if head.is_empty() { name.to_owned() } else { format!("{head}/{name}") }
}

/// `path` without `.`, `..`, empty parts and slashes at the ends.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn json(data: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(data).map_err(text)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
