//! `type=oci` and `type=docker`: an OCI layout as tar or directory, for docker with its `manifest.json`.
//!
//! Spec: `spec/engine.md` §1.12.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use cache::{BulkReader, Store};
use oci::layer::{Entry, EntryKind, TarWriter};
use oci::{Descriptor, Digest, ImageRef};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::{BuiltImage, ExportError, ImageDocuments};

/// Bytes that are written to a tar at once.
const BUFFER_BYTES: usize = 1 << 20;
const LAYOUT: &[u8] = b"{\"imageLayoutVersion\":\"1.0.0\"}";

/// An image, or an index of several, that leaves as an archive.
#[derive(Clone, Debug)]
pub struct Archive {
    /// What leaves.
    pub built: BuiltImage,
    /// Its names.
    pub names: Vec<ImageRef>,
    /// `org.opencontainers.image.created`: RFC 3339.
    pub created: String,
    /// Whether docker's `manifest.json` is written, which knows no platforms.
    pub for_docker: bool,
}

impl Archive {
    /// Writes the layout as one tar. Entries are sorted; owners and times are zero: the same image gives the same bytes.
    ///
    /// # Errors
    /// [`ExportError`]; a blob that the store has lost.
    pub fn write_tar(&self, store: &Store, out: impl Write) -> Result<(), ExportError> {
        self.write_tar_without(store, out, &BTreeSet::new())
    }

    /// As [`Archive::write_tar`], without some blobs: for a reader that has them.
    ///
    /// # Errors
    /// As [`Archive::write_tar`].
    pub fn write_tar_without(
        &self,
        store: &Store,
        out: impl Write,
        omitted: &BTreeSet<Digest>,
    ) -> Result<(), ExportError> {
        let mut tar = TarWriter::new(BufWriter::with_capacity(BUFFER_BYTES, out));
        let fault =
            |error: oci::layer::LayerError| ExportError::io("write", "the archive", std::io::Error::other(error));
        for directory in ["blobs", "blobs/sha256"] {
            let entry = Entry { mode: 0o755, ..Entry::new(directory.as_bytes(), EntryKind::Directory) };
            tar.append_bytes(&entry, &[]).map_err(fault)?;
        }
        for (digest, content) in self.blobs().into_iter().filter(|(digest, _)| !omitted.contains(digest)) {
            let path = format!("blobs/sha256/{}", digest.hex());
            let regular =
                |size_bytes| Entry { mode: 0o444, ..Entry::new(path.as_bytes(), EntryKind::Regular { size_bytes }) };
            match content {
                Content::Bytes(bytes) => tar.append_bytes(&regular(bytes.len() as u64), bytes).map_err(fault)?,
                Content::Stored(size_bytes) => {
                    let mut blob = BulkReader::new(open_blob(store, &digest)?);
                    tar.append(&regular(size_bytes), &mut blob).map_err(fault)?;
                }
            }
        }
        let mut documents = vec![("index.json", 0o644, self.index_json(&[])), ("oci-layout", 0o444, LAYOUT.to_vec())];
        if self.for_docker {
            documents.insert(1, ("manifest.json", 0o644, self.docker_json()));
        }
        for (name, mode, bytes) in documents {
            let kind = EntryKind::Regular { size_bytes: bytes.len() as u64 };
            tar.append_bytes(&Entry { mode, ..Entry::new(name.as_bytes(), kind) }, &bytes).map_err(fault)?;
        }
        let mut out = tar.finish().map_err(fault)?;
        out.flush().map_err(|error| ExportError::io("write", "the archive", error))
    }

    /// Writes the layout into a directory, beside the images that are there; an older image of the same name loses it.
    ///
    /// # Errors
    /// [`ExportError`]; a blob that the store has lost.
    pub fn write_dir(&self, store: &Store, dest: &Path) -> Result<(), ExportError> {
        let blobs = dest.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(|error| ExportError::io("create directory", &blobs, error))?;
        for (digest, content) in self.blobs() {
            let path = blobs.join(digest.hex());
            if path.exists() {
                continue;
            }
            match content {
                Content::Bytes(bytes) => write_file(&path, bytes)?,
                Content::Stored(_) => {
                    let copy = tempfile::Builder::new().prefix(".blob-").tempdir_in(&blobs);
                    let copy = copy.map_err(|error| ExportError::io("create directory in", &blobs, error))?;
                    let partial = copy.path().join("blob");
                    store.link_or_copy_blob(&digest, &partial)?;
                    std::fs::rename(&partial, &path).map_err(|error| ExportError::io("rename to", &path, error))?;
                }
            }
        }
        let lock_path = dest.join("index.json.lock");
        let lock = File::create(&lock_path).map_err(|error| ExportError::io("create", &lock_path, error))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| ExportError::io("lock", &lock_path, error))?;
        let index = dest.join("index.json");
        let known = std::fs::read(&index).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let known = known.and_then(|index| index["manifests"].as_array().cloned()).unwrap_or_default();
        let layout = dest.join("oci-layout");
        if !layout.exists() {
            write_file(&layout, LAYOUT)?;
        }
        write_file(&index, &self.index_json(&known))
    }

    /// Every blob once, in the order of the digests.
    fn blobs(&self) -> BTreeMap<Digest, Content<'_>> {
        let layers = self.built.layers().map(|layer| (layer.digest.clone(), Content::Stored(layer.size_bytes)));
        let documents = self.built.documents().map(|(digest, bytes)| (digest, Content::Bytes(bytes)));
        layers.chain(documents).collect()
    }

    /// One descriptor a name, after those of `known` that have other names.
    fn index_json(&self, known: &[Value]) -> Vec<u8> {
        const IMAGE_NAME: &str = "io.containerd.image.name";
        const REF_NAME: &str = "org.opencontainers.image.ref.name";
        let mut own: Vec<Descriptor> = self.names.iter().map(|name| self.named_descriptor(Some(name))).collect();
        if own.is_empty() {
            own.push(self.named_descriptor(None));
        }
        let is_replaced = |old: &Value| {
            own.iter().any(|new| {
                let same = |key: &str| old["annotations"][key].as_str() == new.annotations.get(key).map(String::as_str);
                same(IMAGE_NAME) && same(REF_NAME)
            })
        };
        let kept = known.iter().filter(|old| !is_replaced(old)).cloned();
        let manifests: Vec<Value> = kept.chain(own.iter().map(|descriptor| json!(descriptor))).collect();
        let index = Index { schema_version: 2, media_type: oci::media_type::OCI_INDEX, manifests };
        serde_json::to_vec(&index).expect("an index has string keys and no failing serialisers")
    }

    fn named_descriptor(&self, name: Option<&ImageRef>) -> Descriptor {
        let mut descriptor = self.built.descriptor();
        descriptor.annotations.insert("org.opencontainers.image.created".to_owned(), self.created.clone());
        if let Some(name) = name {
            descriptor.annotations.insert("io.containerd.image.name".to_owned(), name.to_string());
            let tag = name.tag().unwrap_or("latest").to_owned();
            descriptor.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
        }
        descriptor
    }

    fn docker_json(&self) -> Vec<u8> {
        let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let names: Vec<String> = self.names.iter().map(ImageRef::familiar).collect();
        let tags = if names.is_empty() { Value::Null } else { json!(names) };
        let image = |image: &ImageDocuments| DockerImage {
            config: blob(image.config_digest()),
            repo_tags: tags.clone(),
            layers: image.parsed.layers.iter().map(|layer| blob(&layer.digest)).collect(),
        };
        let images: Vec<DockerImage> = self.built.images().iter().map(image).collect();
        serde_json::to_vec(&images).expect("strings only")
    }
}

/// Where the bytes of a blob are.
enum Content<'a> {
    Bytes(&'a [u8]),
    Stored(u64),
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Value>,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Value,
    layers: Vec<String>,
}

fn open_blob(store: &Store, digest: &Digest) -> Result<File, ExportError> {
    let path = store.blob_path(digest).ok_or_else(|| ExportError::LostBlob { digest: digest.clone() })?;
    File::open(&path).map_err(|error| ExportError::io("read", path, error))
}

/// Writes a file that others see whole or not at all.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let fault = |error| ExportError::io("write", path, error);
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(fault)?;
    file.write_all(bytes).map_err(fault)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(fault)?;
    file.persist(path).map_err(|error| fault(error.error))?;
    Ok(())
}
