//! The packer: makes tars, diff IDs and blobs of layers while the build is still running.
//!
//! Each layer is packed at most once a process, whoever asks. [`Packer::start`] begins in the background as soon as a
//! layer of the result is final; [`Packer::packed`] is what exporters wait for. What the store has already is not made
//! again; but layers with clamped times ([`Packer::clamped`]) are made for each output that asks. Knows nothing of images or
//! of where the blobs go.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, PipeWriter, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cache::{Codec, LayerId, LayerInfo, Store};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, try_join_all};
use oci::layer::{LayerError, LayerReader, ReadLimits, TarWriter};
use oci::{Descriptor, DiffId, media_type};
use solver::{Chain, OpError, Outcome, Progress};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::layer::estargz::{make_estargz, take_diff_id};
use crate::layer::{LayerSink, Onlookers, PackOptions, Packed, write_tree};
use crate::source::ImageSource;
use crate::source::image::Asked;
use crate::view::Below;

/// How much of a tar is read at once.
const READ_BYTES: usize = 256 * 1024;

/// In which form layers leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// Compression of layers made here.
    pub codec: Codec,
    /// Compress layers that came compressed in another way again.
    pub force: bool,
    /// Plain tars must be stored, too, because their bytes are going to be sent; compressed ones always are.
    pub store_plain: bool,
    /// Layers of others may stay in the registry that has them, in the form that they have there: they go to a registry, which
    /// may have them as well.
    pub may_stay_away: bool,
}

/// A layer that is ready to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedLayer {
    /// Digest of its tar.
    pub diff_id: DiffId,
    /// Seconds since the epoch at which it was made.
    pub created_at: i64,
    /// The form that was wanted, with an OCI media type. A plain one may not be stored: the tar can be made again.
    pub blob: Descriptor,
    /// The time, in seconds since the epoch, that no time in it is later than, when it was written again for that.
    pub clamped_to: Option<i64>,
}

type Job = Shared<BoxFuture<'static, Result<PackedLayer, OpError>>>;

/// Makes layers ready to leave. Cheap to clone.
#[derive(Clone)]
pub struct Packer {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    images: Arc<ImageSource>,
    progress: Progress,
    cancel: CancellationToken,
    jobs: Mutex<HashMap<(LayerId, Wanted), Job>>,
    onlookers: OnceLock<Arc<dyn Onlookers>>,
}

impl Packer {
    /// Packs layers of `store`; base layers that are not here yet are fetched through `images`.
    pub fn new(store: Store, images: Arc<ImageSource>, progress: Progress, cancel: CancellationToken) -> Self {
        let (jobs, onlookers) = (Mutex::default(), OnceLock::new());
        Self { inner: Arc::new(Inner { store, images, progress, cancel, jobs, onlookers }) }
    }

    /// From now on lets `onlookers` read what is made. Counts once.
    pub(crate) fn let_watch(&self, onlookers: Arc<dyn Onlookers>) {
        self.inner.onlookers.get_or_init(|| onlookers);
    }

    /// Who reads what is made.
    pub(crate) fn onlookers(&self) -> Option<&dyn Onlookers> {
        self.inner.onlookers.get().map(Arc::as_ref)
    }

    /// Begins to pack the top layer of `chain` in the background. Must be called inside the runtime.
    pub fn start(&self, chain: &Chain, wanted: Wanted) {
        // The job runs by itself; whoever needs the result asks for it again.
        drop(self.job(chain, wanted));
    }

    /// All layers of `chain`, base first, ready to leave.
    ///
    /// # Errors
    /// The first failure in the order of the layers.
    pub async fn packed(&self, chain: &Chain, wanted: Wanted) -> Result<Vec<PackedLayer>, OpError> {
        let jobs: Vec<Job> = (1..=chain.layers().len())
            .map(|n_layers| self.job(&Chain::new(chain.layers()[..n_layers].to_vec()), wanted))
            .collect();
        let mut packed = Vec::with_capacity(jobs.len());
        for job in jobs {
            packed.push(job.await?);
        }
        Ok(packed)
    }

    /// The top layer of `chain`, ready to leave.
    ///
    /// # Errors
    /// It cannot be packed.
    pub async fn packed_top(&self, chain: &Chain, wanted: Wanted) -> Result<PackedLayer, OpError> {
        self.job(chain, wanted).await
    }

    /// As [`Packer::packed`], with layers written again in which no time is later than `latest`, seconds since the epoch:
    /// all but the leading ones that are those of the image `base`. Spec: `spec/engine.md` §1.8.
    ///
    /// # Errors
    /// The first failure in the order of the layers.
    pub async fn clamped(
        &self,
        chain: &Chain,
        base: &[DiffId],
        latest: i64,
        wanted: Wanted,
    ) -> Result<Vec<PackedLayer>, OpError> {
        let mut n_base = 0;
        for (layer, diff_id) in chain.layers().iter().zip(base) {
            if crate::engine::known_layer(&self.inner.store, layer)?.diff_id.as_ref() != Some(diff_id) {
                break;
            }
            n_base += 1;
        }
        let mut packed = self.packed(&Chain::new(chain.layers()[..n_base].to_vec()), wanted).await?;
        let rest = (n_base + 1..=chain.layers().len()).map(|n_layers| {
            let chain = Chain::new(chain.layers()[..n_layers].to_vec());
            clamp(self.inner.clone(), chain, wanted, latest)
        });
        packed.extend(try_join_all(rest).await?);
        Ok(packed)
    }

    /// Forgets what was packed and what could not be: layers that were not to be had are made anew.
    pub(crate) fn forget_jobs(&self) {
        self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The job of the top layer of `chain`, begun when nobody has asked before.
    fn job(&self, chain: &Chain, wanted: Wanted) -> Job {
        let Some(top) = chain.layers().last() else {
            return futures_util::future::ready(Err(OpError::internal("a chain without layers was packed")))
                .boxed()
                .shared();
        };
        let mut jobs = self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let job = jobs.entry((top.id.clone(), wanted)).or_insert_with(|| {
            // The handle is kept: the job is never detached from those who wait for it.
            let task = tokio::runtime::Handle::current().spawn(pack(self.inner.clone(), chain.clone(), wanted));
            async move { joined(task.await) }.boxed().shared()
        });
        job.clone()
    }
}

fn joined<T>(outcome: Result<Result<T, OpError>, JoinError>) -> Result<T, OpError> {
    match outcome {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(OpError::cancelled()),
    }
}

/// Packs the top layer of `chain`.
async fn pack(inner: Arc<Inner>, chain: Chain, wanted: Wanted) -> Result<PackedLayer, OpError> {
    let info = top_of(&inner, &chain)?;
    if let Some(packed) = already_packed(&inner.store, &info, wanted)? {
        return Ok(packed);
    }
    if let Some(packed) = left_away(&inner.store, &info, wanted)? {
        return Ok(packed);
    }
    fetch(&inner, &info).await?;
    if let Some(packed) = already_packed(&inner.store, &info, wanted)? {
        return Ok(packed);
    }
    let below = trees_below(&inner, &chain, &info).await?;
    joined(tokio::task::spawn_blocking(move || pack_blocking(&inner, &info, &below, wanted)).await)
}

/// Writes the top layer of `chain` again, without times later than `latest`.
async fn clamp(inner: Arc<Inner>, chain: Chain, wanted: Wanted, latest: i64) -> Result<PackedLayer, OpError> {
    let info = top_of(&inner, &chain)?;
    fetch(&inner, &info).await?;
    let below = trees_below(&inner, &chain, &info).await?;
    let work = move || {
        // Nothing else holds its bytes: they are not those of the layer.
        let wanted = Wanted { store_plain: true, ..wanted };
        let packed = write_once(&inner, &info, &below, wanted, Some(latest))?;
        Ok(PackedLayer { clamped_to: Some(latest), ..packed.into_layer(info.created_at) })
    };
    joined(tokio::task::spawn_blocking(work).await)
}

fn top_of(inner: &Inner, chain: &Chain) -> Result<LayerInfo, OpError> {
    let top = chain.layers().last().ok_or_else(|| OpError::internal("a chain without layers was packed"))?;
    crate::engine::known_layer(&inner.store, top)
}

/// Gets the bytes of a layer that has none here.
async fn fetch(inner: &Inner, info: &LayerInfo) -> Result<(), OpError> {
    // A pulled layer may not be here, and its tree does not give the bytes of its tar again: tars of others may name a
    // file twice, or in another order. One that was built has some form here.
    let lacks_bytes = match &info.diff_id {
        Some(diff_id) if own_tree(info).is_none() => inner.store.find_blobs(diff_id)?.is_empty(),
        _ => own_tree(info).is_none() && !info.has_tar,
    };
    if lacks_bytes {
        let diff_id = info.diff_id.as_ref().ok_or_else(|| OpError::internal("a layer without any form was packed"))?;
        let step = inner.progress.start(format!("[internal] fetch layer {diff_id}"));
        let fetched = inner.images.ensure_blob(diff_id, &step, &inner.cancel).await;
        step.finish(outcome(&fetched));
        fetched?;
    }
    Ok(())
}

/// The trees that the tar of a layer's own tree is made against; none are needed for a layer that has another form.
async fn trees_below(inner: &Inner, chain: &Chain, info: &LayerInfo) -> Result<Vec<PathBuf>, OpError> {
    let (_, below) = chain.layers().split_last().unzip();
    match own_tree(info) {
        // They are there: the tree was made on top of them, and the lease keeps them. Nothing will be shown.
        Some(tree) => {
            let below = Chain::new(below.unwrap_or_default().to_vec());
            let silent = Progress::silent().start("");
            if let Some(trees) =
                inner.images.outlines(&below, Asked::Below(tree.clone()), &silent, &inner.cancel).await?
            {
                return Ok(trees);
            }
            inner.images.ensure_trees(&below, &silent, &inner.cancel).await
        }
        None => Ok(Vec::new()),
    }
}

fn outcome<T>(result: &Result<T, OpError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(error) if error.is_remade => Outcome::Canceled,
        Err(error) => Outcome::Failed(error.message.clone()),
    }
}

/// Whether the layer came from elsewhere, as a blob.
fn is_foreign(info: &LayerInfo) -> bool {
    info.diff_id.as_ref().is_some_and(|diff_id| info.layer.content == cache::ContentDigest::of_diff_id(diff_id))
}

/// The tree that the layer's tar is made of: one that was built here, be it as a layer of the image that this build is
/// based on.
fn own_tree(info: &LayerInfo) -> Option<&PathBuf> {
    info.tree.as_ref().filter(|_| info.is_tree_built)
}

/// What can be had without any work.
fn already_packed(store: &Store, info: &LayerInfo, wanted: Wanted) -> Result<Option<PackedLayer>, OpError> {
    let Some(diff_id) = info.diff_id.clone() else { return Ok(None) };
    let created_at = info.created_at;
    let is_at_hand = || !wanted.store_plain || store.blob_path(diff_id.digest()).is_some();
    if let (Codec::Plain, Some(bytes), true) = (wanted.codec, info.tar_bytes, is_at_hand()) {
        let blob = Descriptor::new(media_type::OCI_LAYER, diff_id.digest().clone(), bytes);
        return Ok(Some(PackedLayer { diff_id, created_at, blob, clamped_to: None }));
    }
    if wanted.codec == Codec::Plain {
        return Ok(None);
    }
    if let Some(blob) = store.find_blob(&diff_id, wanted.codec)? {
        let (diff_id, blob) = match wanted.codec {
            Codec::Estargz { .. } => {
                let Some(own) = take_diff_id(blob) else { return Ok(None) };
                own
            }
            _ => (diff_id, blob),
        };
        return Ok(Some(PackedLayer { diff_id, created_at, blob, clamped_to: None }));
    }
    // A base image's layer keeps the compression that it came with.
    if !wanted.force {
        let came_compressed = store.find_foreign_blob(&diff_id)?.filter(|blob| blob.digest != *diff_id.digest());
        if let (true, Some(blob)) = (is_foreign(info), came_compressed) {
            return Ok(Some(PackedLayer { diff_id, created_at, blob, clamped_to: None }));
        }
    }
    Ok(None)
}

/// A layer that is not here, as a registry has it, if that will do.
fn left_away(store: &Store, info: &LayerInfo, wanted: Wanted) -> Result<Option<PackedLayer>, OpError> {
    let Some(diff_id) = info.diff_id.clone().filter(|_| wanted.may_stay_away && !wanted.force) else { return Ok(None) };
    if own_tree(info).is_some() || info.has_tar || !store.find_blobs(&diff_id)?.is_empty() {
        return Ok(None);
    }
    let known = store.find_remotes(&diff_id)?.into_iter().next();
    Ok(known.map(|(blob, _)| PackedLayer { diff_id, created_at: info.created_at, blob, clamped_to: None }))
}

/// Makes the tar out of whatever form there is, and from it what is wanted.
fn pack_blocking(inner: &Inner, info: &LayerInfo, below: &[PathBuf], wanted: Wanted) -> Result<PackedLayer, OpError> {
    let mut packed = pack_once(inner, info, below, wanted)?;
    let is_other = |packed: &Packed| info.diff_id.as_ref().is_some_and(|known| *known != packed.diff_id);
    if is_other(&packed) && is_foreign(info) {
        // In the build that made it the layer may have been put there without a look at what lies below (`COPY --link`).
        packed = pack_once(inner, info, &[], wanted)?;
    }
    if let (true, Some(known)) = (is_other(&packed), &info.diff_id) {
        return Err(OpError::internal(format!("layer {known} has become {} when it was packed again", packed.diff_id)));
    }
    inner.store.set_diff_id(&info.layer.id, &packed.diff_id, packed.tar_bytes)?;
    if let (Codec::Estargz { .. }, Some((_, blob))) = (wanted.codec, packed.blobs.first()) {
        inner.store.remember_blob(&packed.diff_id, wanted.codec, blob)?;
    }
    Ok(packed.into_layer(info.created_at))
}

impl Packed {
    fn into_layer(self, created_at: i64) -> PackedLayer {
        let plain = || Descriptor::new(media_type::OCI_LAYER, self.diff_id.digest().clone(), self.tar_bytes);
        let blob = self.blobs.first().map_or_else(plain, |(_, blob)| blob.clone());
        // One that holds more than the tar says so.
        let (diff_id, blob) = take_diff_id(blob.clone()).unwrap_or((self.diff_id, blob));
        PackedLayer { diff_id, created_at, blob, clamped_to: None }
    }
}

fn pack_once(inner: &Inner, info: &LayerInfo, below: &[PathBuf], wanted: Wanted) -> Result<Packed, OpError> {
    write_once(inner, info, below, wanted, None)
}

/// Makes the tar, without times later than `latest`, and from it what is wanted.
fn write_once(
    inner: &Inner,
    info: &LayerInfo,
    below: &[PathBuf],
    wanted: Wanted,
    latest: Option<i64>,
) -> Result<Packed, OpError> {
    let Codec::Estargz { level } = wanted.codec else {
        return write_into(inner, info, below, wanted, latest, None);
    };
    // The tar goes two ways at once: one reads the entries out of it again.
    let fault = |error: &dyn std::fmt::Display| OpError::environment(format!("cannot pack a layer: {error}"));
    let (reader, copy) = std::io::pipe().map_err(|error| fault(&error))?;
    std::thread::scope(|scope| {
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        let maker = scope.spawn(|| make_estargz(&inner.store, reader, level));
        let written = write_into(inner, info, below, wanted, latest, Some(copy));
        let made = maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (written, made) {
            (Ok(packed), Ok(blob)) => Ok(Packed { blobs: vec![(wanted.codec, blob)], ..packed }),
            // A reader that has failed breaks the pipe; a writer that has failed ends the tar too early.
            (_, Err(error)) if !inner.cancel.is_cancelled() => Err(fault(&error)),
            (Err(error), _) => Err(error),
            (Ok(_), Err(_)) => Err(OpError::cancelled()),
        }
    })
}

/// Makes the tar, and from it what comes of its bytes alone; `copy` gets them as well.
fn write_into(
    inner: &Inner,
    info: &LayerInfo,
    below: &[PathBuf],
    wanted: Wanted,
    latest: Option<i64>,
    copy: Option<PipeWriter>,
) -> Result<Packed, OpError> {
    let store = &inner.store;
    let codecs = if wanted.codec == Codec::Plain { Vec::new() } else { vec![wanted.codec] };
    let fault = |error: crate::layer::TreeError| OpError::environment(format!("cannot pack a layer: {error}"));
    let options = PackOptions { keep_plain: wanted.codec == Codec::Plain && wanted.store_plain, codecs, is_new: false };
    let onlookers = inner.onlookers.get().map(Arc::as_ref);
    let sink = LayerSink::new(store, &options, onlookers).map_err(fault)?;
    let cannot = |error: LayerError| {
        cancelled_or(&inner.cancel, || OpError::environment(format!("cannot pack a layer: {error}")))
    };
    let copy = copy.map(|copy| BufWriter::with_capacity(READ_BYTES, copy));
    let mut sink = Sink { inner: sink, copy, cancel: &inner.cancel };
    let writer = |sink| {
        let tar = TarWriter::new(sink);
        if let Some(latest) = latest { tar.clamp_times(latest) } else { tar }
    };
    match (own_tree(info), latest) {
        (Some(tree), _) => {
            let lower = Below::new(below.to_vec());
            let mut tar = writer(&mut sink);
            write_tree(tree, &lower, &mut tar).map_err(|error| cancelled_or(&inner.cancel, || fault(error)))?;
            tar.finish().map_err(cannot)?;
        }
        (None, None) => stream_tar(store, info, &mut sink)?,
        (None, Some(_)) => {
            let mut tar = writer(&mut sink);
            let mut entries = LayerReader::new(open_tar(store, info)?, ReadLimits::default());
            while let Some(mut member) = entries.next_member().map_err(cannot)? {
                tar.append(&member.entry, &mut member.content).map_err(cannot)?;
            }
            tar.finish().map_err(cannot)?;
        }
    }
    let Sink { inner: sink, mut copy, .. } = sink;
    let flushed = copy.as_mut().map_or(Ok(()), std::io::Write::flush);
    flushed.map_err(|error| OpError::environment(format!("cannot pack a layer: {error}")))?;
    sink.finish().map_err(fault)
}

/// Sends a stored tar, plain or compressed, through the sink.
fn stream_tar(store: &Store, info: &LayerInfo, sink: &mut Sink<'_>) -> Result<(), OpError> {
    let mut tar = open_tar(store, info)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let n = tar.read(&mut buffer).map_err(|error| OpError::environment(format!("cannot read a layer: {error}")))?;
        if n == 0 {
            return Ok(());
        }
        let written = std::io::Write::write_all(sink, &buffer[..n]);
        written.map_err(|error| {
            cancelled_or(sink.cancel, || OpError::environment(format!("cannot pack a layer: {error}")))
        })?;
    }
}

/// The uncompressed tar of a layer that has no tree.
fn open_tar(store: &Store, info: &LayerInfo) -> Result<Box<dyn Read + Send>, OpError> {
    let lost = || OpError::environment(format!("the store has lost the layer {}", info.layer.id));
    let diff_id = info.diff_id.as_ref().ok_or_else(lost)?;
    let stored = store.find_blobs(diff_id)?.into_iter().map(|blob| blob.digest);
    let path = [diff_id.digest().clone()].into_iter().chain(stored).find_map(|digest| store.blob_path(&digest));
    let path = path.ok_or_else(lost)?;
    let open = |error| OpError::environment(format!("cannot read `{}`: {error}", path.display()));
    let file = File::open(&path).map_err(open)?;
    let (_, tar) = oci::layer::decompress(BufReader::with_capacity(READ_BYTES, file)).map_err(open)?;
    Ok(tar)
}

/// Where the bytes of a tar go. Refuses to go on once the build was stopped.
struct Sink<'a> {
    inner: LayerSink,
    copy: Option<BufWriter<PipeWriter>>,
    cancel: &'a CancellationToken,
}

impl std::io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other("cancelled"));
        }
        if let Some(copy) = &mut self.copy {
            copy.write_all(bytes)?;
        }
        self.inner.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

fn cancelled_or(cancel: &CancellationToken, error: impl FnOnce() -> OpError) -> OpError {
    if cancel.is_cancelled() { OpError::cancelled() } else { error() }
}
