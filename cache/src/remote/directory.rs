//! A cache in a directory: an OCI layout for the blobs, and beside it a file for every key.
//!
//! Files are written under another name and renamed when they are complete, so that any number of builds may use the
//! directory at once. Nothing is waited for to reach the disk: what a power cut leaves half is noticed when it is read.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use oci::digest::hex;
use oci::layout::{INDEX_FILE, LAYOUT_FILE, LAYOUT_JSON, blob_path};
use oci::registry::{BlobReader, Pushed};
use oci::{Descriptor, Digest, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::entry::MAX_ENTRY_BYTES;
use super::{Domain, Entry, Hint, RemoteCache, RemoteError};
use crate::id::Key;

/// In front of the path in the place of such a cache, where others have a registry.
pub const DIRECTORY_PLACE: &str = "dir://";
/// Directory of everything that is not a blob.
const ENTRIES_DIR: &str = "rbuild-cache-v1";
/// `index.json` of a layout without images.
const NO_IMAGES: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
/// How much is read or written at once.
const CHUNK_BYTES: usize = 256 << 10;
/// A file that was begun so long ago belongs to nobody any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A cache in a directory of this machine.
pub struct DirectoryCache {
    dir: PathBuf,
    domain: Domain,
    name: String,
    place: String,
    n_drafts: AtomicU64,
}

impl DirectoryCache {
    /// A cache in `dir`, which should be absolute. Does no I/O: a directory that does not exist has no entries, and is made
    /// when something is to be kept.
    pub fn new(dir: &Path, domain: Domain) -> Self {
        Self {
            dir: dir.to_owned(),
            domain,
            name: format!("directory {}", dir.display()),
            place: format!("{DIRECTORY_PLACE}{}", dir.display()),
            n_drafts: AtomicU64::new(0),
        }
    }

    /// The file in the cache at `place` that holds a blob; `None` when the place is no directory.
    pub fn blob_at(place: &str, digest: &Digest) -> Option<PathBuf> {
        place.strip_prefix(DIRECTORY_PLACE).map(|dir| Path::new(dir).join(blob_path(digest)))
    }

    /// Sends the blob that lies in the file `path` through `to`, verified when this returns.
    ///
    /// # Errors
    /// [`RemoteError::Unusable`].
    pub async fn fetch_file(path: PathBuf, blob: Descriptor, to: mpsc::Sender<Bytes>) -> Result<(), RemoteError> {
        in_thread(move || read_blob(&path, &blob, &to)).await
    }

    fn entry_path(&self, key: &Key) -> PathBuf {
        let key = hex(&key.0);
        self.dir.join(ENTRIES_DIR).join(self.domain.as_str()).join(&key[..2]).join(format!("{key}.json"))
    }

    fn draft(&self) -> PathBuf {
        let n = self.n_drafts.fetch_add(1, Ordering::Relaxed);
        // Machines may share the directory, and have processes with the same number.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), n);
        self.dir.join(ENTRIES_DIR).join("tmp").join(format!("{}-{n}-{random:x}", std::process::id()))
    }
}

#[async_trait]
impl RemoteCache for DirectoryCache {
    fn name(&self) -> &str {
        &self.name
    }

    fn place(&self) -> &str {
        &self.place
    }

    async fn find(&self, key: &Key) -> Result<Option<Entry>, RemoteError> {
        let path = self.entry_path(key);
        let at = path.clone();
        let Some(bytes) = in_thread(move || read_document(&at)).await? else { return Ok(None) };
        let unusable = |fault| RemoteError::Unusable(format!("`{}` is unusable: {fault}", path.display()));
        Entry::parse(&bytes, &self.domain, key).map(Some).map_err(unusable)
    }

    async fn put(&self, key: &Key, entry: &Entry) -> Result<(), RemoteError> {
        let (draft, path, bytes) = (self.draft(), self.entry_path(key), entry.to_json(&self.domain));
        in_thread(move || {
            make_parent(&draft)?;
            let written = fs::write(&draft, bytes).map_err(|error| down("write", &draft, &error));
            written.and_then(|()| publish(&draft, &path))
        })
        .await
    }

    async fn fetch(&self, blob: &Descriptor, to: mpsc::Sender<Bytes>) -> Result<(), RemoteError> {
        Self::fetch_file(self.dir.join(blob_path(&blob.digest)), blob.clone(), to).await
    }

    async fn keep(
        &self,
        blob: &Descriptor,
        open: &(dyn Fn() -> io::Result<BlobReader> + Send + Sync),
        _others: &[String],
    ) -> Result<Pushed, RemoteError> {
        let (dir, draft, path) = (self.dir.clone(), self.draft(), self.dir.join(blob_path(&blob.digest)));
        let (found, wanted) = (path.clone(), blob.digest.clone());
        // What lies there under its name may have been damaged since.
        if in_thread(move || Ok(is_whole(&found, &wanted))).await? {
            return Ok(Pushed::Existed);
        }
        let unreadable = |error: io::Error| RemoteError::Bytes(format!("cannot read {}: {error}", blob.digest));
        let mut reader = open().map_err(unreadable)?;
        let begun = draft.clone();
        let mut file = in_thread(move || begin(&dir, &begun)).await?;
        let mut hasher = Sha256::new();
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let n_bytes = (&mut reader).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await.map_err(unreadable)?;
            if n_bytes == 0 {
                break;
            }
            hasher.update(&chunk);
            let at = draft.clone();
            file = in_thread(move || {
                file.write_all(&chunk).map_err(|error| {
                    drop(fs::remove_file(&at));
                    down("write", &at, &error)
                })?;
                Ok(file)
            })
            .await?;
        }
        let got = hasher.finish();
        if got != blob.digest {
            drop(fs::remove_file(&draft));
            return Err(RemoteError::Bytes(format!("the bytes of {} have the digest {got}", blob.digest)));
        }
        in_thread(move || publish(&draft, &path)).await.map(|()| Pushed::Uploaded)
    }

    /// None: an entry is a file, and files are asked for quickly.
    async fn hint(&self) -> Result<Option<Hint>, RemoteError> {
        Ok(None)
    }

    async fn put_hint(&self, _hint: &Hint) -> Result<(), RemoteError> {
        Ok(())
    }
}

/// Makes the layout, and a file to write to.
fn begin(dir: &Path, draft: &Path) -> Result<File, RemoteError> {
    make_parent(draft)?;
    for (name, content) in [(LAYOUT_FILE, LAYOUT_JSON), (INDEX_FILE, NO_IMAGES)] {
        let path = dir.join(name);
        // Whoever is quicker writes the same.
        if let Err(error) = File::create_new(&path).and_then(|mut file| file.write_all(content))
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(down("create", &path, &error));
        }
    }
    remove_abandoned(draft);
    File::create_new(draft).map_err(|error| down("create", draft, &error))
}

/// Removes what processes have left that died. What cannot be removed stays.
fn remove_abandoned(draft: &Path) {
    let Some(drafts) = draft.parent().and_then(|dir| fs::read_dir(dir).ok()) else { return };
    let now = SystemTime::now();
    for entry in drafts.flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age > ABANDONED)) {
            drop(fs::remove_file(entry.path()));
        }
    }
}

fn publish(draft: &Path, path: &Path) -> Result<(), RemoteError> {
    let published =
        make_parent(path).and_then(|()| fs::rename(draft, path).map_err(|error| down("rename", draft, &error)));
    if published.is_err() {
        drop(fs::remove_file(draft));
    }
    published
}

fn make_parent(path: &Path) -> Result<(), RemoteError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|error| down("create", parent, &error))
}

/// A small file; `None` when there is none.
fn read_document(path: &Path) -> Result<Option<Vec<u8>>, RemoteError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_ENTRY_BYTES as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(down("read", path, &error)),
    }
}

fn is_whole(path: &Path, digest: &Digest) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let (mut hasher, mut chunk) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return hasher.finish() == *digest,
            Ok(n_bytes) => hasher.update(&chunk[..n_bytes]),
            Err(_) => return false,
        }
    }
}

fn read_blob(path: &Path, blob: &Descriptor, to: &mpsc::Sender<Bytes>) -> Result<(), RemoteError> {
    let unusable =
        |reason: &dyn std::fmt::Display| RemoteError::Unusable(format!("`{}` is unusable: {reason}", path.display()));
    let mut file = File::open(path).map_err(|error| unusable(&error))?;
    let (mut hasher, mut n_bytes) = (Sha256::new(), 0_u64);
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let n = file.read(&mut chunk).map_err(|error| unusable(&error))?;
        if n == 0 {
            break;
        }
        chunk.truncate(n);
        hasher.update(&chunk);
        n_bytes += n as u64;
        if n_bytes > blob.size_bytes {
            break;
        }
        to.blocking_send(chunk.into()).map_err(|_| RemoteError::Bytes("the reader of the blob is gone".to_owned()))?;
    }
    if n_bytes != blob.size_bytes {
        return Err(unusable(&format!("it has not the {} bytes that it should have", blob.size_bytes)));
    }
    let got = hasher.finish();
    if got == blob.digest { Ok(()) } else { Err(unusable(&format!("its bytes have the digest {got}"))) }
}

fn down(operation: &str, path: &Path, error: &io::Error) -> RemoteError {
    RemoteError::Down(format!("cannot {operation} `{}`: {error}", path.display()))
}

/// Runs work on files off the runtime's threads.
async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
) -> Result<T, RemoteError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(RemoteError::Down("the program ends".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use oci::{ImageRef, media_type};

    use super::super::entry::tests::{domain, entry};
    use super::*;

    fn blob(bytes: &[u8]) -> Descriptor {
        Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(bytes), bytes.len() as u64)
    }

    async fn keep(cache: &DirectoryCache, blob: &Descriptor, bytes: &'static [u8]) -> Result<Pushed, RemoteError> {
        cache.keep(blob, &|| Ok(Box::new(bytes) as BlobReader), &[]).await
    }

    async fn fetch(cache: &DirectoryCache, blob: &Descriptor) -> Result<Vec<u8>, RemoteError> {
        let (sender, mut receiver) = mpsc::channel(100);
        cache.fetch(blob, sender).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn what_is_kept_is_found_by_each_key() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DirectoryCache::new(&dir.path().join("not/yet"), domain());
        let (one, other) = (Key([1; 32]), Key([2; 32]));
        assert_eq!(cache.find(&one).await, Ok(None));
        for key in [one, other] {
            cache.put(&key, &entry(&[1, 2])).await.unwrap();
            assert_eq!(cache.find(&key).await, Ok(Some(entry(&[1, 2]))));
        }
        let stranger = DirectoryCache::new(&dir.path().join("not/yet"), Domain::of(&["other"]));
        assert_eq!(stranger.find(&one).await, Ok(None));
        fs::write(cache.entry_path(&one), b"{").unwrap();
        assert!(matches!(cache.find(&one).await, Err(RemoteError::Unusable(_))));
    }

    #[tokio::test]
    async fn blobs_are_verified_both_ways_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DirectoryCache::new(dir.path(), domain());
        let wanted = blob(b"layer");
        assert!(matches!(keep(&cache, &wanted, b"liar!").await, Err(RemoteError::Bytes(_))));
        assert!(matches!(fetch(&cache, &wanted).await, Err(RemoteError::Unusable(_))));
        assert_eq!(keep(&cache, &wanted, b"layer").await, Ok(Pushed::Uploaded));
        assert_eq!(keep(&cache, &wanted, b"layer").await, Ok(Pushed::Existed));
        assert_eq!(fetch(&cache, &wanted).await.unwrap(), b"layer");
        assert!(oci::layout::Layout::open(dir.path()).unwrap().index().unwrap().manifests.is_empty());
        for damage in [&b"lay"[..], b"layer and more", b"LAYER"] {
            fs::write(dir.path().join(blob_path(&wanted.digest)), damage).unwrap();
            assert!(matches!(fetch(&cache, &wanted).await, Err(RemoteError::Unusable(_))));
        }
        assert_eq!(keep(&cache, &wanted, b"layer").await, Ok(Pushed::Uploaded));
        assert_eq!(fetch(&cache, &wanted).await.unwrap(), b"layer");
        assert_eq!(fs::read_dir(dir.path().join(ENTRIES_DIR).join("tmp")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_place_that_is_no_directory_is_down_for_those_who_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let cache = DirectoryCache::new(&path, domain());
        assert_eq!(cache.find(&Key([1; 32])).await, Ok(None));
        assert!(matches!(cache.put(&Key([1; 32]), &entry(&[1])).await, Err(RemoteError::Down(_))));
    }

    #[test]
    fn a_place_is_never_taken_for_a_repository() {
        for path in ["/a", "/a/b", "/host.example:5000/a"] {
            let cache = DirectoryCache::new(Path::new(path), domain());
            assert!(ImageRef::parse_normalized(cache.place()).is_err(), "{path}");
            let digest = Digest::of(b"x");
            let file = DirectoryCache::blob_at(cache.place(), &digest).unwrap();
            assert_eq!(file, Path::new(path).join(blob_path(&digest)));
        }
        assert_eq!(DirectoryCache::blob_at("docker.io/library/a", &Digest::of(b"x")), None);
    }
}
