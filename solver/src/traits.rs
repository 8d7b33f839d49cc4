//! What the solver needs done by others. `executor` implements these; `cli` wires them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cache::{ContentDigest, Key, Layer, LayerInfo};
use oci::{Digest, ImageConfig, ImageRef, Platform};
use tokio_util::sync::CancellationToken;

use crate::error::OpError;
use crate::graph::{Chain, Graph, Input, ResultRef};
use crate::op::{CopySelection, Device, Op};
use crate::progress::Step;

/// An image found by its reference: metadata only, no layers moved.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// As asked for, normalised.
    pub reference: ImageRef,
    /// Digest of what the reference names (index or manifest), for display: `FROM x@sha256:…`.
    pub top_digest: Digest,
    /// Digest of the chosen platform's manifest.
    pub manifest: Digest,
    /// The platform that was chosen.
    pub platform: Platform,
    /// Its config.
    pub config: ImageConfig,
}

/// An image in an OCI layout, as `oci-layout://path[:tag][@digest]` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciLayout {
    /// Directory of the layout, as the client names it.
    pub path: String,
    /// Tag inside the layout, if one is named.
    pub tag: Option<String>,
    /// Digest inside the layout, if one is named.
    pub digest: Option<Digest>,
}

/// A device of the machine that steps run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDevice {
    /// Its whole name: `vendor.com/class=name`.
    pub name: String,
    /// Whether its description lets every step have it.
    pub is_auto_allowed: bool,
}

/// Finds base images and devices.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// Finds `reference` for `platform`: local store, then registry. The result can be pulled later by
    /// [`Op::Image`].
    ///
    /// # Errors
    /// An [`OpError`] whose message names every place that was tried.
    async fn resolve_image(
        &self,
        reference: &ImageRef,
        platform: &Platform,
        step: &Step,
    ) -> Result<ResolvedImage, OpError>;

    /// Finds an image in an OCI layout of the client (`--build-context x=oci-layout://…`). The reference of the result
    /// is one by which [`Op::Image`] finds the blobs again.
    ///
    /// # Errors
    /// An [`OpError`]; without an implementation, that there is none.
    async fn resolve_layout(
        &self,
        layout: &OciLayout,
        _platform: &Platform,
        _step: &Step,
    ) -> Result<ResolvedImage, OpError> {
        Err(OpError::input(format!("images in OCI layouts are not supported here: {}", layout.path)))
    }

    /// The devices that a name of `RUN --device` means, in order, each once; none when there is none. Reads files when it is
    /// first asked. Spec: `spec/engine.md` §5.5.
    ///
    /// # Errors
    /// An [`OpError`]: there is none although one is required, or the name is none or means two things.
    fn find_devices(&self, device: &Device) -> Result<Vec<FoundDevice>, OpError> {
        match device.required {
            true => Err(OpError::input(format!("required device {:?} is not registered", device.name))),
            false => Ok(Vec::new()),
        }
    }

    /// Makes `files`, a vertex of `graph` that yields a root, and says when the newest regular file in there was
    /// modified, in seconds since 1970. `None` when no file has a time: a URL whose server tells none gives the file zero.
    ///
    /// # Errors
    /// An [`OpError`]; without an implementation, that there is none.
    async fn newest_time(&self, _graph: &Graph, _files: Input) -> Result<Option<i64>, OpError> {
        Err(OpError::input("times of remote sources are not supported here")
            .help("give the number of seconds since 1970"))
    }
}

/// What is asked of a result when a key is made.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection<'a> {
    /// The files that a copy would take.
    Copy(&'a CopySelection),
    /// One path (a bind mount); symlinks are resolved inside the root.
    Path(&'a str),
}

/// One operation to perform.
#[derive(Clone)]
pub struct Work {
    /// What.
    pub op: Arc<Op>,
    /// Results of the vertex's inputs, in order; `Input::Scratch` is an empty chain.
    pub inputs: Vec<ResultRef>,
    /// Whether a later step looks into the layer (mounts it, copies from it): then it must have a tree. Otherwise a
    /// file operation may write its tar at once.
    pub needs_tree: bool,
    /// Empty the cache mounts first (`--no-cache`).
    pub ignore_cache: bool,
    /// Where output and sub-tasks are reported.
    pub step: Step,
    /// Stop at once when cancelled.
    pub cancel: CancellationToken,
}

/// Performs operations.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Digest of the selected content of `source`: names, types, modes, owners, sizes, link targets, capability
    /// xattrs and bytes; never times. Spec: `spec/engine.md` §3.5.
    ///
    /// # Errors
    /// A literal path that does not exist: BuildKit's `failed to compute cache key: … "/x": not found`.
    async fn digest(&self, source: &ResultRef, selection: Selection<'_>, step: &Step)
    -> Result<ContentDigest, OpError>;

    /// The layers of an image, base first, as far as known without moving any bytes.
    async fn image_chain(&self, image: &crate::op::ImageOp, step: &Step) -> Result<Chain, OpError>;

    /// Performs `Run`, `File`, `Http` or `Git` and returns the committed layer.
    ///
    /// Called at most once for a miss; a cancelled call leaves no trace.
    async fn perform(&self, work: Work) -> Result<LayerInfo, OpError>;

    /// Something that changes when what a source names changes, without fetching it when that can be avoided: the
    /// commit of a git ref, the ETag or digest of a URL. Part of the key of `Http` and `Git`.
    async fn probe_source(&self, op: &Op, step: &Step) -> Result<String, OpError>;

    /// A layer on the exported path is final: its tar, diff ID and blobs may be made in the background. `chain` ends
    /// with that layer. Returns at once.
    fn layer_is_final(&self, chain: &Chain);
}

/// A result that was found elsewhere. Its layer is in the store, as far as it has to be: its bytes may still lie there.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The result.
    pub layer: Layer,
    /// What it cost to make, where it was made.
    pub cost: Duration,
    /// Where it was found, for people: `registry example.com/team/cache`.
    pub from: String,
}

/// How a result was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The step was performed.
    Performed,
    /// It was in the store.
    Found,
    /// It was found elsewhere, by [`RemoteCaches::find`].
    Imported,
}

/// A result that others may want.
#[derive(Clone, Debug)]
pub struct SettledResult {
    /// The keys that are known to give it, at least one.
    pub keys: Vec<Key>,
    /// Ends with the layer of the step.
    pub chain: Chain,
    /// Display name of the step; may be empty.
    pub name: String,
    /// What it cost; zero when that is not known.
    pub cost: Duration,
    /// Whether it is a layer of a target.
    pub is_exported: bool,
    /// How it was come by.
    pub origin: Origin,
}

/// Results of steps in other places than the store: asked when the store has none, told of every result.
#[async_trait]
pub trait RemoteCaches: Send + Sync {
    /// Whether [`RemoteCaches::find`] can ever find anything.
    fn has_sources(&self) -> bool;

    /// The result of `key`, if some place has one. Places that do not answer in time, or wrongly, count as having none; that
    /// is said once each, and is never an error.
    async fn find(&self, key: &Key) -> Option<Imported>;

    /// Takes note of a result. Returns at once; what it begins is somebody else's to wait for.
    fn settled(&self, result: SettledResult);
}
