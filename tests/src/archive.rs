//! Reads archives of images and flattens layers to the tree that unpacking them gives.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use serde_json::Value;

/// Name of the entry that empties its directory.
const OPAQUE: &str = ".wh..wh..opq";
/// Prefix of entries that remove what they name.
const WHITEOUT: &str = ".wh.";
/// Where PAX headers keep extended attributes.
const XATTR: &str = "SCHILY.xattr.";

/// One image of an archive.
#[derive(Clone)]
pub struct Image {
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// The config document.
    pub config: Value,
    /// Base layer first.
    pub layers: Vec<Layer>,
}

/// One layer.
#[derive(Clone)]
pub struct Layer {
    /// Digest of its tar: archives are written uncompressed.
    pub digest: String,
    /// In the order of the tar.
    pub entries: Arc<Vec<Arc<Entry>>>,
}

/// One entry of a layer or of a flattened tree.
#[derive(Clone)]
pub struct Entry {
    /// Without a slash in front; empty for the root.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Extended attributes, values in hex.
    pub xattrs: BTreeMap<String, String>,
    /// As written; a fraction may follow the seconds.
    pub mtime: String,
}

/// The kinds of entries with what is theirs alone.
#[derive(Clone, PartialEq)]
pub enum Kind {
    /// A regular file.
    File(Arc<Vec<u8>>),
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
    pub fn same(&self, other: &Self) -> bool {
        self.path == other.path
            && self.kind == other.kind
            && (self.mode, self.uid, self.gid) == (other.mode, other.uid, other.gid)
            && self.xattrs == other.xattrs
    }
}

/// What unpacking gives: path → entry. Names of one hard-linked file share their entry.
pub type Tree = BTreeMap<String, Arc<Entry>>;

/// The images of an OCI archive, attestations left out. Layers that are among `known` are not read again.
pub fn read_images(archive: &[u8], known: &[Layer]) -> Result<Vec<Image>, String> {
    let members = members(archive)?;
    let index = json(member(&members, "index.json")?)?;
    let mut manifests = Vec::new();
    collect_manifests(&index, &members, &mut manifests)?;
    manifests.iter().map(|manifest| read_image(manifest, &members, known)).collect()
}

/// The images of an archive that `docker save` wrote, by name. Layers that are among `known` are not read again.
pub fn read_saved_images(archive: &[u8], known: &[Layer]) -> Result<BTreeMap<String, Image>, String> {
    let members = members(archive)?;
    let mut images = BTreeMap::new();
    for manifest in list(&json(member(&members, "manifest.json")?)?) {
        let config = json(member(&members, &string(&manifest["Config"]))?)?;
        let mut layers = Vec::new();
        for (path, diff_id) in list(&manifest["Layers"]).iter().zip(list(&config["rootfs"]["diff_ids"])) {
            layers.push(layer(string(diff_id), known, || member(&members, &string(path)))?);
        }
        let image = Image { platform: platform(&config), config, layers };
        images.extend(list(&manifest["RepoTags"]).iter().map(|name| (string(name), image.clone())));
    }
    Ok(images)
}

/// Digest of the first document that an archive's index names.
pub fn first_digest(archive: &[u8]) -> Result<String, String> {
    let index = json(member(&members(archive)?, "index.json")?)?;
    Ok(string(&index["manifests"][0]["digest"]))
}

/// The files of an archive by path. The contents stay where they are. Of equal layers `docker save` writes one and
/// links the others to it.
fn members(archive: &[u8]) -> Result<BTreeMap<String, &[u8]>, String> {
    let (mut members, mut links) = (BTreeMap::new(), Vec::new());
    for entry in tar::Archive::new(archive).entries().map_err(text)? {
        let entry = entry.map_err(text)?;
        let path = normal(&String::from_utf8_lossy(&entry.path_bytes()));
        if let (tar::EntryType::Symlink, Some(target)) = (entry.header().entry_type(), entry.link_name_bytes()) {
            let target = normal(&join(split(&path).0, &String::from_utf8_lossy(&target)));
            links.push((path, target));
            continue;
        }
        let start = usize::try_from(entry.raw_file_position()).map_err(text)?;
        let end = start + usize::try_from(entry.size()).map_err(text)?;
        members.insert(path, archive.get(start..end).ok_or("the archive is cut short")?);
    }
    for (path, target) in links {
        members.insert(path, member(&members, &target)?);
    }
    Ok(members)
}

fn member<'a>(members: &BTreeMap<String, &'a [u8]>, path: &str) -> Result<&'a [u8], String> {
    members.get(path).copied().ok_or_else(|| format!("the archive has no {path}"))
}

fn collect_manifests(index: &Value, members: &BTreeMap<String, &[u8]>, found: &mut Vec<Value>) -> Result<(), String> {
    for descriptor in list(&index["manifests"]) {
        let document = json(blob(members, &string(&descriptor["digest"]))?)?;
        if document.get("manifests").is_some() {
            collect_manifests(&document, members, found)?;
        } else if descriptor["platform"]["os"] != "unknown" {
            found.push(document);
        }
    }
    Ok(())
}

fn read_image(manifest: &Value, members: &BTreeMap<String, &[u8]>, known: &[Layer]) -> Result<Image, String> {
    let config = json(blob(members, &string(&manifest["config"]["digest"]))?)?;
    let mut layers = Vec::new();
    for descriptor in list(&manifest["layers"]) {
        let digest = string(&descriptor["digest"]);
        layers.push(layer(digest.clone(), known, || blob(members, &digest))?);
    }
    Ok(Image { platform: platform(&config), config, layers })
}

/// A layer from those that are `known`, or from its tar.
fn layer<'a>(digest: String, known: &[Layer], tar: impl FnOnce() -> Result<&'a [u8], String>) -> Result<Layer, String> {
    match known.iter().find(|layer| layer.digest == digest) {
        Some(layer) => Ok(layer.clone()),
        None => Ok(Layer { entries: Arc::new(read_layer(tar()?)?), digest }),
    }
}

fn platform(config: &Value) -> String {
    let parts = ["os", "architecture", "variant"].map(|key| string(&config[key]));
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

fn blob<'a>(members: &BTreeMap<String, &'a [u8]>, digest: &str) -> Result<&'a [u8], String> {
    member(members, &format!("blobs/{}", digest.replace(':', "/")))
}

/// The entries of an uncompressed layer tar.
pub fn read_layer(data: &[u8]) -> Result<Vec<Arc<Entry>>, String> {
    let mut tar = tar::Archive::new(data);
    tar.entries().map_err(text)?.map(|entry| read_entry(entry.map_err(text)?).map(Arc::new)).collect()
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
            Kind::File(Arc::new(data))
        }
    };
    Ok(Entry { path, kind, mode, uid, gid, xattrs, mtime })
}

/// Applies one layer to `tree`. Tells for each entry whether it is a directory that only came along: it was there
/// before, unchanged.
pub fn apply_layer(tree: &mut Tree, entries: &[Arc<Entry>]) -> Vec<bool> {
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

fn apply_entry(tree: &mut Tree, entry: &Arc<Entry>) -> bool {
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
pub fn tree_of(layers: &[Layer]) -> Tree {
    let mut tree = Tree::new();
    for layer in layers {
        apply_layer(&mut tree, &layer.entries);
    }
    tree
}

/// Whether the last part of a path marks a removal.
pub fn is_whiteout(path: &str) -> bool {
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
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
