//! One pass over a tar: every file becomes a blob of the store, the lists of images are kept.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};

use cache::Store;
use oci::layer::{EntryKind, LayerReader, ReadLimits, clean_path, decompress};
use oci::layout::{BLOBS_DIR, DOCKER_MANIFEST_FILE, DockerArchiveImage, INDEX_FILE, MAX_DOCUMENT_SIZE};
use oci::{Digest, Index};

use super::ImportError;

/// Files in an archive: a thousand images of a hundred layers each are fewer.
const MAX_ENTRIES: u64 = 1 << 17;
/// How much is read at once.
const READ_BYTES: usize = 256 << 10;
/// Links that lead to links.
const MAX_LINKS: usize = 16;

/// What an archive has.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Digest of each file.
    files: BTreeMap<Vec<u8>, Digest>,
    /// Where links lead, from the root.
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `index.json`.
    pub(super) index: Option<Index>,
    /// `manifest.json`.
    pub(super) docker: Option<Vec<DockerArchiveImage>>,
}

impl Contents {
    /// The blob that a file has become; links are followed.
    pub(super) fn file(&self, path: &str) -> Option<&Digest> {
        let mut path = clean_path(path.as_bytes())?.as_bytes().to_vec();
        for _ in 0..MAX_LINKS {
            if let Some(digest) = self.files.get(&path) {
                return Some(digest);
            }
            path = self.links.get(&path)?.clone();
        }
        None
    }

    /// Whether there is a file of that name.
    pub(super) fn has(&self, path: &str) -> bool {
        self.file(path).is_some()
    }
}

/// Reads a whole archive.
pub(super) fn read(store: &Store, reader: &mut (dyn Read + Send)) -> Result<Contents, ImportError> {
    let at_start = |source| ImportError::Io { operation: "read", path: "the archive".into(), source };
    let (_, raw) = decompress(reader).map_err(at_start)?;
    let mut tar = LayerReader::new(raw, ReadLimits { max_entries: MAX_ENTRIES, ..ReadLimits::default() });
    let mut contents = Contents::default();
    while let Some(mut member) = tar.next_member()? {
        let Some(path) = clean_path(member.entry.path).map(|path| path.as_bytes().to_vec()) else {
            let name = String::from_utf8_lossy(member.entry.path).into_owned();
            return Err(ImportError::Malformed { name, reason: "its name has a NUL byte".to_owned() });
        };
        match member.entry.kind {
            EntryKind::Regular { .. } => {
                let digest = keep(store, &path, &mut member.content)?;
                contents.files.insert(path, digest);
            }
            EntryKind::Hardlink { target } => {
                contents.links.extend(clean_path(target).map(|target| (path, target.as_bytes().to_vec())));
            }
            EntryKind::Symlink { target } => {
                contents.links.extend(beside(&path, target).map(|target| (path, target)));
            }
            // Nothing that an image is made of.
            EntryKind::Directory | EntryKind::Fifo | EntryKind::Char { .. } | EntryKind::Block { .. } => {}
        }
    }
    contents.index = document(store, &contents, INDEX_FILE)?;
    contents.docker = document(store, &contents, DOCKER_MANIFEST_FILE)?;
    Ok(contents)
}

/// Stores a file. One in the place of a blob must have the digest that its name says.
fn keep(store: &Store, path: &[u8], content: &mut impl Read) -> Result<Digest, ImportError> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    let mut writer = store.blob_writer()?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let n_read = content.read(&mut buffer).map_err(|source| match source.kind() {
            // What the archive says of itself, not this machine.
            ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => {
                ImportError::Malformed { name: shown(), reason: source.to_string() }
            }
            _ => ImportError::Io { operation: "read", path: shown().into(), source },
        })?;
        if n_read == 0 {
            break;
        }
        writer.write(&buffer[..n_read])?;
    }
    let Some(expected) = named_digest(path) else { return Ok(writer.commit(None)?) };
    match writer.commit(Some(&expected)) {
        Err(cache::StoreError::DigestMismatch { got, .. }) => {
            Err(ImportError::DigestMismatch { path: shown(), actual: got })
        }
        digest => Ok(digest?),
    }
}

/// The digest that the path of a blob says.
fn named_digest(path: &[u8]) -> Option<Digest> {
    let hex = std::str::from_utf8(path).ok()?.strip_prefix(BLOBS_DIR)?.strip_prefix('/')?;
    format!("sha256:{hex}").parse().ok()
}

/// Where a symbolic link leads, from the root of the archive, which is as far up as it gets.
fn beside(link: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let dir = link.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |at| &link[..=at]);
    Some(clean_path(&[dir, target].concat())?.as_bytes().to_vec())
}

/// One of the lists of images.
fn document<T: serde::de::DeserializeOwned>(
    store: &Store,
    contents: &Contents,
    name: &str,
) -> Result<Option<T>, ImportError> {
    let Some(digest) = contents.file(name) else { return Ok(None) };
    let malformed = |reason: String| ImportError::Malformed { name: name.to_owned(), reason };
    if store.blob_size(digest)?.is_some_and(|size_bytes| size_bytes > MAX_DOCUMENT_SIZE) {
        return Err(malformed(format!("it is larger than {MAX_DOCUMENT_SIZE} bytes")));
    }
    let bytes = store.read_blob(digest)?.unwrap_or_default();
    serde_json::from_slice(&bytes).map(Some).map_err(|error| malformed(error.to_string()))
}
