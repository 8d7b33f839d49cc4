//! Moving the blob of one layer: from a registry into the store, and into a tree on the way.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use cache::remote::{DirectoryCache, RemoteCache, RemoteError};
use cache::{BlobWriter, Store, TreeDraft};
use oci::registry::{ChannelSink, Client, RegistryError};
use oci::{Descriptor, DiffId, Digest, ImageRef};
use solver::{OpError, Step};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ImageSource;
use super::pace::{Pace, TooSlow};
use super::resolve::observer;
use crate::layer::{TreeError, UnpackOptions, Unpacked, unpack};
use crate::source::blocking;

/// Chunks of the network (some 16 KiB each) that may wait for the disk and the decompressor.
const CHUNKS_AHEAD: usize = 64;
/// How much of a stored blob is read at once.
const READ_BYTES: usize = 256 << 10;
/// Progress is reported once in so many bytes.
const PROGRESS_BYTES: u64 = 512 << 10;

/// Where a blob comes from.
enum Origin {
    /// A repository, asked through this client.
    Repository(Client, ImageRef),
    /// A cache that this build knows.
    Cache(Arc<dyn RemoteCache>),
    /// A file of a cache that an earlier build has known.
    File(PathBuf),
}

/// A tree that has its files, and waits for what only the layers below know.
pub(super) struct UnpackedDraft {
    pub(super) draft: TreeDraft,
    pub(super) unpacked: Unpacked,
}

impl ImageSource {
    /// Makes sure that a blob of the layer `diff_id`, in any compression, is in the store.
    ///
    /// # Errors
    /// An [`OpError`] with every repository that was tried.
    pub async fn ensure_blob(
        &self,
        diff_id: &DiffId,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<Descriptor, OpError> {
        if let Some(found) = self.stored_blob(diff_id).await? {
            return Ok(found);
        }
        let _lock = self.lock(format!("pull-{}", diff_id.digest()), cancel).await?;
        if let Some(found) = self.stored_blob(diff_id).await? {
            return Ok(found);
        }
        self.pull(diff_id, None, step, cancel).await.map(|(descriptor, _)| descriptor)
    }

    /// Unpacks the layer `diff_id` into a new tree: from a stored blob, else straight from a registry.
    pub(super) async fn unpacked(
        &self,
        diff_id: &DiffId,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<UnpackedDraft, OpError> {
        // Whoever wants the blob alone may be at it.
        let lock = self.lock(format!("pull-{}", diff_id.digest()), cancel).await?;
        let unpacked = match self.stored_blob(diff_id).await? {
            Some(blob) => {
                drop(lock);
                self.unpack_stored(&blob, step, cancel).await?
            }
            None => {
                let (_, unpacked) = self.pull(diff_id, Some(self.unpack), step, cancel).await?;
                unpacked.ok_or_else(|| OpError::internal("a pulled layer was not unpacked"))?
            }
        };
        if unpacked.unpacked.diff_id != *diff_id {
            let got = &unpacked.unpacked.diff_id;
            let message = format!("the layer's content does not match its config: expected {diff_id}, got {got}");
            return Err(OpError::environment(message));
        }
        Ok(unpacked)
    }

    async fn stored_blob(&self, diff_id: &DiffId) -> Result<Option<Descriptor>, OpError> {
        let (store, diff_id) = (self.store.clone(), diff_id.clone());
        Ok(blocking(move || store.find_blobs(&diff_id)).await?.into_iter().next())
    }

    async fn unpack_stored(
        &self,
        blob: &Descriptor,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<UnpackedDraft, OpError> {
        let (store, digest, options) = (self.store.clone(), blob.digest.clone(), self.unpack);
        let stop = cancel.clone();
        let extracting = format!("extracting {digest}");
        step.status(&extracting, 0, 0, false);
        let unpacked = blocking(move || {
            let gone = || OpError::environment(format!("blob `{digest}` has vanished from the store"));
            let path = store.blob_path(&digest).ok_or_else(gone)?;
            let file = File::open(&path).map_err(crate::source::io_error("open", &path))?;
            let draft = store.new_tree()?;
            let unpacked = unpack(Stoppable { inner: file, stop }, &draft.tree(), &options).map_err(tree_error)?;
            Ok(UnpackedDraft { draft, unpacked })
        })
        .await;
        match unpacked {
            Err(_) if cancel.is_cancelled() => Err(OpError::cancelled()),
            Ok(unpacked) => {
                step.status(&extracting, 0, 0, true);
                Ok(unpacked)
            }
            error => error,
        }
    }

    /// Fetches the blob from one of the places where it is to be had.
    async fn pull(
        &self,
        diff_id: &DiffId,
        unpack: Option<UnpackOptions>,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<(Descriptor, Option<UnpackedDraft>), OpError> {
        let (store, wanted) = (self.store.clone(), diff_id.clone());
        let look = move || {
            let cost = if store.is_result_only(&wanted)? { Some(store.cost_of(&wanted)?) } else { None };
            Ok::<_, OpError>((store.find_remotes(&wanted)?, cost))
        };
        // What a step has made has cost something, and can be made again.
        let (remotes, cost) = blocking(look).await?;
        let is_result = cost.is_some();
        let mut failures = Vec::new();
        for (descriptor, place) in remotes {
            let Some(origin) = self.origin(&place, &descriptor, is_result) else { continue };
            if is_result && self.is_given_up(&place) {
                failures.push(format!("{place} has failed before"));
                continue;
            }
            let pulled = match self.pull_from(origin, &descriptor, (unpack, cost), step, cancel).await {
                Ok(unpacked) => self.verified(diff_id, &descriptor, unpacked, is_result).await,
                Err(Stopped::Reader(reason) | Stopped::Bytes(reason)) => Err(reason),
                Err(Stopped::Place(reason)) => {
                    if is_result && !cancel.is_cancelled() {
                        self.give_up(&place);
                    }
                    Err(reason)
                }
            };
            match pulled {
                Ok(unpacked) => {
                    let (store, diff_id, noted) = (self.store.clone(), diff_id.clone(), descriptor.clone());
                    blocking(move || store.remember_foreign_blob(&diff_id, &noted)).await?;
                    return Ok((descriptor, unpacked));
                }
                Err(_) if cancel.is_cancelled() => return Err(OpError::cancelled()),
                Err(reason) => failures.push(reason),
            }
        }
        if is_result {
            self.lose(diff_id, failures.first().map_or("no place is known to have it", String::as_str));
        }
        let mut error = match failures.split_first() {
            None => OpError::environment(format!("layer {diff_id} is not stored, and no registry is known to have it"))
                .help("build again, so that its image is resolved anew"),
            Some((first, _)) => OpError::environment(format!("failed to pull layer {diff_id}: {first}")),
        };
        error.is_remade = is_result;
        Err(failures.into_iter().skip(1).fold(error, |error, reason| error.help(format!("tried {reason}"))))
    }

    /// How a blob is fetched from a place; `None` for one that nobody understands.
    fn origin(&self, place: &str, blob: &Descriptor, is_result: bool) -> Option<Origin> {
        if let Some(cache) = self.cache_at(place).filter(|_| is_result) {
            return Some(Origin::Cache(cache));
        }
        if let Some(file) = DirectoryCache::blob_at(place, &blob.digest) {
            return Some(Origin::File(file));
        }
        let client = if is_result { &self.hasty } else { &self.client };
        ImageRef::parse_normalized(place).ok().map(|reference| Origin::Repository(client.clone(), reference))
    }

    /// Compares the diff ID of a result of a step, of which only a cache's word is known. Layers of images are compared where
    /// they are unpacked: what names them is trusted.
    async fn verified(
        &self,
        diff_id: &DiffId,
        blob: &Descriptor,
        unpacked: Option<UnpackedDraft>,
        is_result: bool,
    ) -> Result<Option<UnpackedDraft>, String> {
        if !is_result {
            return Ok(unpacked);
        }
        let got = match &unpacked {
            Some(unpacked) => unpacked.unpacked.diff_id.clone(),
            None => {
                let (store, digest) = (self.store.clone(), blob.digest.clone());
                blocking(move || uncompressed_digest(&store, &digest)).await.map_err(|error| error.message)?
            }
        };
        if got == *diff_id {
            return Ok(unpacked);
        }
        Err(format!("the content of blob {} is not what was said: expected {diff_id}, got {got}", blob.digest))
    }

    /// One transfer. The disk and the decompressor work in a thread of their own while the network goes on.
    async fn pull_from(
        &self,
        origin: Origin,
        blob: &Descriptor,
        (options, cost): (Option<UnpackOptions>, Option<Duration>),
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<Option<UnpackedDraft>, Stopped> {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let pace = Arc::new(Pace::default());
        let (store, theirs) = (self.store.clone(), pace.clone());
        let disk = tokio::task::spawn_blocking(move || receive(&store, receiver, options, theirs));
        let too_slow = async {
            match cost {
                Some(cost) => pace.too_slow(blob.size_bytes, cost).await,
                None => std::future::pending().await,
            }
        };
        let in_time = async {
            tokio::select! {
                transferred = transfer(origin, blob, sender, step) => transferred,
                TooSlow { reason, is_hopeless } = too_slow => {
                    Err(if is_hopeless { Stopped::Place(reason) } else { Stopped::Bytes(reason) })
                }
            }
        };
        // What sends ends with this, and with it the stream that the thread reads.
        let fetched = cancel.run_until_cancelled(in_time).await;
        let extracting = format!("extracting {}", blob.digest);
        if options.is_some() && matches!(fetched, Some(Ok(()))) {
            step.status(&extracting, 0, 0, false);
        }
        let by_reader = |error: &dyn std::fmt::Display| Stopped::Reader(error.to_string());
        let received = disk.await.map_err(|error| Stopped::Reader(format!("unpacking broke: {error}")))?;
        match (fetched, received) {
            (None, _) => Err(Stopped::Reader("cancelled".to_owned())),
            // The reader has stopped first: its reason is the true one.
            (Some(Err(Stopped::Reader(_))), Err(error)) => Err(by_reader(&error)),
            (Some(Err(stopped)), _) => Err(stopped),
            (Some(Ok(())), Err(error)) => Err(by_reader(&error)),
            (Some(Ok(())), Ok(received)) => {
                // The client has verified size and digest of all that went through the channel.
                let digest = blob.digest.clone();
                let Received { writer, unpacked } = received;
                let committed = blocking(move || Ok(writer.commit_prehashed(&digest)?)).await;
                committed.map_err(|error: OpError| by_reader(&error))?;
                if options.is_some() {
                    step.status(&extracting, 0, 0, true);
                }
                Ok(unpacked)
            }
        }
    }

    /// Takes a lock of the store without blocking the runtime.
    pub(super) async fn lock(&self, name: String, cancel: &CancellationToken) -> Result<cache::StoreLock, OpError> {
        let (store, stop) = (self.store.clone(), cancel.clone());
        let lock = blocking(move || store.lock_unless(&name, &|| stop.is_cancelled())).await?;
        lock.ok_or_else(OpError::cancelled)
    }
}

/// Why a transfer did not come to its end.
enum Stopped {
    /// Who takes the bytes has failed.
    Reader(String),
    /// The bytes there are not those that were asked for, or there are none.
    Bytes(String),
    /// The place has failed.
    Place(String),
}

/// Sends the bytes of a blob through a channel, verified when it returns.
async fn transfer(origin: Origin, blob: &Descriptor, sender: mpsc::Sender<Bytes>, step: &Step) -> Result<(), Stopped> {
    let mut report = progress(step, blob);
    let by_place = |error: RemoteError| match error {
        RemoteError::Bytes(reason) => Stopped::Reader(reason),
        RemoteError::Unusable(reason) => Stopped::Bytes(reason),
        RemoteError::Down(reason) => Stopped::Place(reason),
    };
    match origin {
        Origin::Repository(client, reference) => {
            let mut sink = ChannelSink(sender);
            let client = client.observed_by(observer(step));
            client.fetch_blob(&reference, blob, &mut sink, report).await.map_err(|error| match error {
                RegistryError::Local { .. } => Stopped::Reader(error.to_string()),
                error if error.is_transient() || error.is_unreachable() => Stopped::Place(error.to_string()),
                error => Stopped::Bytes(error.to_string()),
            })
        }
        Origin::Cache(cache) => {
            cache.fetch(blob, sender).await.map_err(by_place)?;
            report(blob.size_bytes);
            Ok(())
        }
        Origin::File(path) => {
            DirectoryCache::fetch_file(path, blob.clone(), sender).await.map_err(by_place)?;
            report(blob.size_bytes);
            Ok(())
        }
    }
}

/// Digest of the tar in a stored blob.
fn uncompressed_digest(store: &Store, digest: &Digest) -> Result<DiffId, OpError> {
    let gone = || OpError::environment(format!("blob `{digest}` has vanished from the store"));
    let path = store.blob_path(digest).ok_or_else(gone)?;
    let file = File::open(&path).map_err(crate::source::io_error("open", &path))?;
    let read = crate::source::io_error("read", &path);
    let (_, mut tar) = match oci::layer::decompress(io::BufReader::with_capacity(READ_BYTES, file)) {
        Ok(tar) => tar,
        Err(error) => return Err(read(error)),
    };
    let (mut hasher, mut chunk) = (oci::Sha256::new(), vec![0; READ_BYTES]);
    loop {
        match tar.read(&mut chunk) {
            Ok(0) => return Ok(DiffId::of_uncompressed(hasher.finish())),
            Ok(n_bytes) => hasher.update(&chunk[..n_bytes]),
            Err(error) => return Err(read(error)),
        }
    }
}

struct Received {
    writer: BlobWriter,
    unpacked: Option<UnpackedDraft>,
}

/// Stores what comes through the channel, and unpacks it on the way.
fn receive(
    store: &Store,
    receiver: mpsc::Receiver<Bytes>,
    options: Option<UnpackOptions>,
    pace: Arc<Pace>,
) -> Result<Received, TreeError> {
    let writer = store.blob_writer()?.without_hashing();
    let mut stream = Incoming { receiver, chunk: Bytes::new(), writer, failure: None, pace };
    let unpacked = match options {
        None => None,
        Some(options) => {
            let draft = store.new_tree()?;
            let unpacked = match unpack(&mut stream, &draft.tree(), &options) {
                Ok(unpacked) => unpacked,
                Err(error) => return Err(stream.failure.map_or(error, TreeError::Store)),
            };
            Some(UnpackedDraft { draft, unpacked })
        }
    };
    // Without unpacking this is all of it; else what has followed the compressed stream.
    let drained = io::copy(&mut stream, &mut io::sink());
    let Incoming { writer, failure, .. } = stream;
    match (failure, drained) {
        (Some(failure), _) => Err(failure.into()),
        (None, Err(error)) => Err(TreeError::Io { operation: "read", path: "the network".into(), source: error }),
        (None, Ok(_)) => Ok(Received { writer, unpacked }),
    }
}

/// The bytes of the network as a reader that keeps a copy.
struct Incoming {
    receiver: mpsc::Receiver<Bytes>,
    chunk: Bytes,
    writer: BlobWriter,
    /// Why the copy could not be kept.
    failure: Option<cache::StoreError>,
    pace: Arc<Pace>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let Some(chunk) = self.receiver.blocking_recv() else { return Ok(0) };
            self.pace.add(chunk.len());
            if let Err(error) = self.writer.write(&chunk) {
                let message = error.to_string();
                self.failure = Some(error);
                return Err(io::Error::other(message));
            }
            self.chunk = chunk;
        }
        let n_bytes = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..n_bytes]);
        Ok(n_bytes)
    }
}

/// A reader that fails once the build is cancelled.
struct Stoppable<R> {
    inner: R,
    stop: CancellationToken,
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.inner.read(buffer)
    }
}

/// Reports bytes received, not too often, and the end.
fn progress(step: &Step, blob: &Descriptor) -> impl FnMut(u64) + Send + use<> {
    let (step, digest, total_bytes) = (step.clone(), blob.digest.clone(), blob.size_bytes);
    let mut reported_bytes = None;
    move |received_bytes| {
        let is_last = received_bytes >= total_bytes;
        if is_last || reported_bytes.is_none_or(|before| received_bytes - before >= PROGRESS_BYTES) {
            reported_bytes = Some(received_bytes);
            step.status(Digest::to_string(&digest), received_bytes, total_bytes, is_last);
        }
    }
}

/// Trees fail for reasons of the image (which its maker can mend) or of this machine.
pub(super) fn tree_error(error: TreeError) -> OpError {
    match &error {
        TreeError::Tar(_) | TreeError::Refused { .. } | TreeError::MissingLinkTarget { .. } => {
            OpError::input(error.to_string())
        }
        _ => OpError::environment(error.to_string()),
    }
}
