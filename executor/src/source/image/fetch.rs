//! Moving the blob of one layer: from a registry into the store, and into a tree on the way.

use std::fs::File;
use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use cache::{BlobWriter, Store, TreeDraft};
use oci::registry::ChannelSink;
use oci::{Descriptor, DiffId, Digest, ImageRef};
use solver::{OpError, Step};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ImageSource;
use super::resolve::observer;
use crate::layer::{TreeError, UnpackOptions, Unpacked, unpack};
use crate::source::blocking;

/// Chunks of the network (some 16 KiB each) that may wait for the disk and the decompressor.
const CHUNKS_AHEAD: usize = 64;
/// Progress is reported once in so many bytes.
const PROGRESS_BYTES: u64 = 512 << 10;

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
        let remotes = blocking(move || store.find_remotes(&wanted)).await?;
        let mut failures = Vec::new();
        for (descriptor, repository) in remotes {
            let Ok(reference) = ImageRef::parse_normalized(&repository) else { continue };
            match self.pull_from(&reference, &descriptor, unpack, step, cancel).await {
                Ok(unpacked) => {
                    let (store, diff_id, noted) = (self.store.clone(), diff_id.clone(), descriptor.clone());
                    blocking(move || store.remember_foreign_blob(&diff_id, &noted)).await?;
                    return Ok((descriptor, unpacked));
                }
                Err(_) if cancel.is_cancelled() => return Err(OpError::cancelled()),
                Err(reason) => failures.push(reason),
            }
        }
        let error = match failures.split_first() {
            None => OpError::environment(format!("layer {diff_id} is not stored, and no registry is known to have it"))
                .help("build again, so that its image is resolved anew"),
            Some((first, _)) => OpError::environment(format!("failed to pull layer {diff_id}: {first}")),
        };
        Err(failures.into_iter().skip(1).fold(error, |error, reason| error.help(format!("tried {reason}"))))
    }

    /// One transfer. The disk and the decompressor work in a thread of their own while the network goes on.
    async fn pull_from(
        &self,
        reference: &ImageRef,
        blob: &Descriptor,
        options: Option<UnpackOptions>,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<Option<UnpackedDraft>, String> {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let store = self.store.clone();
        let disk = tokio::task::spawn_blocking(move || receive(&store, receiver, options));
        let fetched = {
            let mut sink = ChannelSink(sender);
            let client = self.client.observed_by(observer(step));
            let report = progress(step, blob);
            cancel.run_until_cancelled(client.fetch_blob(reference, blob, &mut sink, report)).await
            // The sink ends here, and with it the stream that the thread reads.
        };
        let extracting = format!("extracting {}", blob.digest);
        if options.is_some() && matches!(fetched, Some(Ok(()))) {
            step.status(&extracting, 0, 0, false);
        }
        let received = disk.await.map_err(|error| format!("unpacking broke: {error}"))?;
        match (fetched, received) {
            (None, _) => Err("cancelled".to_owned()),
            // The reader has stopped first: its reason is the true one.
            (Some(Err(oci::registry::RegistryError::Local { .. })), Err(error)) => Err(error.to_string()),
            (Some(Err(error)), _) => Err(error.to_string()),
            (Some(Ok(())), Err(error)) => Err(error.to_string()),
            (Some(Ok(())), Ok(received)) => {
                // The client has verified size and digest of all that went through the channel.
                let digest = blob.digest.clone();
                let Received { writer, unpacked } = received;
                blocking(move || writer.commit_prehashed(&digest)).await.map_err(|error| error.to_string())?;
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

struct Received {
    writer: BlobWriter,
    unpacked: Option<UnpackedDraft>,
}

/// Stores what comes through the channel, and unpacks it on the way.
fn receive(
    store: &Store,
    receiver: mpsc::Receiver<Bytes>,
    options: Option<UnpackOptions>,
) -> Result<Received, TreeError> {
    let writer = store.blob_writer()?.without_hashing();
    let mut stream = Incoming { receiver, chunk: Bytes::new(), writer, failure: None };
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
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let Some(chunk) = self.receiver.blocking_recv() else { return Ok(0) };
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
