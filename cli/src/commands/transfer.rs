//! `rbuild push` and `rbuild pull`: images between the local store and registries (`spec/cli.md` §6).

use std::sync::Arc;

use cache::Store;
use executor::packer::{Packer, Wanted};
use executor::push::{Parcel, Pusher};
use executor::relay::{Depth, Relay};
use executor::sandbox::Confinement;
use executor::source::ImageSource;
use executor::source::image::PullPolicy;
use oci::registry::Client;
use oci::{Descriptor, ImageRef, Index, Platform, attestation, media_type};
use solver::{ImageOp, OpError, Outcome, Progress, Step};
use tokio_util::sync::CancellationToken;

use super::build::wire;
use super::room::{self, Keeper, SpaceRequest};
use crate::args::{PullArgs, PushArgs};
use crate::env;
use crate::failure::Failure;
use crate::output;
use crate::ui::{self, Mode, Ui};

/// What transfers work with.
pub(super) struct Transfer<'a> {
    pub(super) store: &'a Store,
    pub(super) images: Arc<ImageSource>,
    pub(super) progress: Progress,
    pub(super) cancel: CancellationToken,
}

/// Pushes images under the names that they have here.
pub(crate) fn push(store: &Store, args: &PushArgs, confinement: &Confinement) -> Result<(), Failure> {
    let codec = output::codec(args.compression.as_deref(), args.compression_level.as_deref())?;
    // What is asked for is done, also where a layer of a base image has another form already.
    let wanted = Wanted {
        codec: codec.unwrap_or(cache::Codec::Gzip { level: output::DEFAULT_GZIP_LEVEL }),
        force: codec.is_some(),
        store_plain: true,
        may_stay_away: true,
    };
    let mut images = Vec::new();
    for name in &args.images {
        images.extend(named(store, name, args.all_tags)?);
    }
    let pushed = with_transfer(store, confinement, args.quiet, PullPolicy::Missing, None, async |transfer| {
        let (packer, pusher) = (transfer.packer(), transfer.pusher());
        let mut pushed = Vec::with_capacity(images.len());
        for (name, target) in &images {
            let work = async |step: Step| {
                let parcel = Parcel::of_stored(&packer, store, target, wanted).await?;
                pusher.push(&parcel, std::slice::from_ref(name), &step).await?;
                store.end_push(name, target)?;
                Ok(parcel.top().clone())
            };
            pushed.push(step(&transfer.progress, format!("pushing {}", name.familiar()), work).await?);
        }
        Ok(pushed)
    })?;
    let mut text = String::new();
    for ((name, _), top) in images.iter().zip(pushed) {
        if args.quiet {
            text.push_str(&format!("{}\n", name.familiar()));
        } else {
            let tag = name.tag().unwrap_or_default();
            text.push_str(&format!("{tag}: digest: {} size: {}\n", top.digest, top.size_bytes));
        }
    }
    Ok(ui::stdout(&text)?)
}

/// The image of that name, or all tags of that repository.
fn named(store: &Store, text: &str, all_tags: bool) -> Result<Vec<(ImageRef, Descriptor)>, Failure> {
    let name = ImageRef::parse_normalized(text)
        .map_err(|error| Failure::usage(format!("invalid image name `{text}`: {error}")))?;
    if all_tags && !name.is_name_only() {
        return Err(Failure::usage(format!("`{text}` names one tag, and --all-tags means all of a repository")));
    }
    if !all_tags {
        let name = crate::request::parse_tag(text)?;
        // One that a build was pushing when it stopped need not have a name here.
        let unfinished = store.unfinished_push(&name)?;
        let newest =
            |stored: &cache::StoredImage| Some(stored.updated_at) > unfinished.as_ref().map(|push| push.updated_at);
        let target = match (super::image::find(store, &name.familiar()), &unfinished) {
            (Ok(mut images), None) => images.swap_remove(0).stored.target,
            (Ok(mut images), Some(_)) if newest(&images[0].stored) => images.swap_remove(0).stored.target,
            (_, Some(push)) => push.target.clone(),
            (Err(failure), None) => return Err(failure),
        };
        return Ok(vec![(name, target)]);
    }
    let images = store.images()?.into_iter().filter_map(|image| Some((image.reference?, image.target)));
    let of_repository: Vec<_> = images.filter(|(reference, _)| reference.name_only() == name).collect();
    if of_repository.is_empty() {
        return Err(
            Failure::input(format!("no image of the repository {text}")).help("`rbuild images` lists what there is")
        );
    }
    Ok(of_repository)
}

/// Brings images here, under their names.
pub(crate) fn pull(store: &Store, args: &PullArgs, confinement: &Confinement) -> Result<(), Failure> {
    let platform = match &args.platform {
        None => Platform::host(),
        Some(text) => Platform::parse(text, &Platform::host())
            .map_err(|error| Failure::usage(format!("invalid value `{text}` for --platform: {error}")))?,
    };
    let names = args.images.iter().map(|text| {
        ImageRef::parse_normalized(text)
            .map(ImageRef::with_default_tag)
            .map_err(|error| Failure::usage(format!("invalid image name `{text}`: {error}")))
    });
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let space = SpaceRequest::check(&args.space)?;
    let mut keeper = None;
    let outcome = with_transfer(store, confinement, args.quiet, PullPolicy::Always, None, async |transfer| {
        keeper = Some(Keeper::start(store, &space, &transfer.cancel));
        let mut lines = String::new();
        for name in &names {
            let work = async |step: Step| {
                // Whoever names a platform wants its image alone.
                if args.platform.is_none()
                    && let Some(digest) = transfer.pull_whole(name, args.all_platforms, &step).await?
                {
                    return Ok(digest);
                }
                transfer.pull(name, &platform, &step).await
            };
            let digest = step(&transfer.progress, format!("pulling {}", name.familiar()), work).await?;
            lines.push_str(&if args.quiet {
                format!("{name}\n")
            } else {
                format!("{}: digest: {digest}\n", name.familiar())
            });
        }
        Ok(lines)
    });
    let exceeded = keeper.and_then(Keeper::end);
    let lines = room::judge(outcome, exceeded.as_ref(), store.root())?;
    Ok(ui::stdout(&lines)?)
}

impl Transfer<'_> {
    /// What reads whole images of registries.
    pub(super) fn relay(&self) -> Relay {
        Relay { store: self.store.clone(), images: self.images.clone(), cancel: self.cancel.clone() }
    }

    /// What makes layers ready to leave.
    pub(super) fn packer(&self) -> Packer {
        Packer::new(self.store.clone(), self.images.clone(), self.progress.clone(), self.cancel.clone())
    }

    /// What brings images to registries.
    pub(super) fn pusher(&self) -> Pusher {
        Pusher { store: self.store.clone(), images: self.images.clone(), cancel: self.cancel.clone() }
    }

    /// Fetches an index with everything that it lists, if that is wanted, or if all but one of its entries are
    /// attestations: then the index is the image, and without it they would be lost. `None` if it is not.
    async fn pull_whole(&self, name: &ImageRef, all: bool, step: &Step) -> Result<Option<oci::Digest>, OpError> {
        let relay = self.relay();
        let top = relay.top(name, step).await?;
        if !media_type::is_index(&top.descriptor.media_type) {
            return Ok(None);
        }
        let index: Index = serde_json::from_slice(&top.bytes)
            .map_err(|error| OpError::input(format!("{} is no usable index: {error}", name.familiar())))?;
        let n_images = index.manifests.iter().filter(|entry| attestation::is_image(entry)).count();
        let has_attestations = index.manifests.iter().any(attestation::is_attestation);
        let is_wanted = all || (n_images == 1 && has_attestations);
        if !is_wanted {
            return Ok(None);
        }
        let parcel = relay.read(name, &top, Depth::Blobs, step).await?;
        relay.ensure_here(&parcel, step).await?;
        self.keep(name, &top.descriptor)?;
        Ok(Some(top.descriptor.digest))
    }

    /// Gives a pulled image its name.
    fn keep(&self, name: &ImageRef, target: &Descriptor) -> Result<(), OpError> {
        // A name that is a digest is none to find the image by later.
        match name.tag() {
            Some(tag) => {
                let tagged = name.name_only().with_tag(tag).map_err(|error| OpError::internal(error.to_string()))?;
                self.store.tag(&tagged, target)?;
            }
            None => self.store.keep_dangling(target)?,
        }
        Ok(())
    }

    /// Fetches and unpacks an image, then names it. Returns the digest of what the name stands for at the registry.
    async fn pull(&self, name: &ImageRef, platform: &Platform, step: &Step) -> Result<oci::Digest, OpError> {
        let image = self.images.resolve(name, platform, step).await?;
        let operation = ImageOp {
            reference: image.reference.clone(),
            platform: image.platform.clone(),
            manifest: image.manifest.clone(),
            diff_ids: image.config.rootfs.diff_ids.clone(),
        };
        let chain = self.images.chain(&operation, step).await?;
        self.images.ensure_trees(&chain, step, &self.cancel).await?;
        let gone = || OpError::environment(format!("the store has lost the blob {}", image.manifest));
        let bytes = self.store.read_blob(&image.manifest)?.ok_or_else(gone)?;
        let media_type = serde_json::from_slice::<oci::Manifest>(&bytes).ok().and_then(|manifest| manifest.media_type);
        let media_type = media_type.unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
        let target = Descriptor::new(&media_type, image.manifest.clone(), bytes.len() as u64);
        self.keep(name, &target)?;
        Ok(image.top_digest)
    }
}

/// Does `work` with progress on the screen and an eye on interrupts. `insecure` names a registry that may use plain HTTP.
pub(super) fn with_transfer<T>(
    store: &Store,
    confinement: &Confinement,
    quiet: bool,
    policy: PullPolicy,
    insecure: Option<String>,
    work: impl AsyncFnOnce(&Transfer<'_>) -> Result<T, OpError>,
) -> Result<T, Failure> {
    let mode = if quiet { Mode::Silent } else { Mode::choose("auto").map_err(Failure::usage)? };
    let ui = Ui::start(mode, super::clock(), env::colours());
    let cancel = CancellationToken::new();
    let runtime = wire::runtime()?;
    let lease = store.lease()?;
    let mut options = wire::client_options();
    options.insecure.extend(insecure);
    let client = Client::new(options);
    let images = Arc::new(ImageSource::new(store.clone(), client, policy, wire::unpack_options(confinement)));
    let transfer = Transfer { store, images, progress: ui.progress().clone(), cancel: cancel.clone() };
    let outcome = runtime.block_on(wire::until_interrupted(cancel, work(&transfer)));
    drop(transfer);
    // Work that was cancelled ends before the last picture is drawn.
    drop(runtime);
    ui.close();
    drop(lease);
    store.sync()?;
    Ok(outcome?)
}

/// Shows `work` as a step.
pub(super) async fn step<T>(
    progress: &Progress,
    name: String,
    work: impl AsyncFnOnce(Step) -> Result<T, OpError>,
) -> Result<T, OpError> {
    let step = progress.start(name);
    let outcome = work(step.clone()).await;
    step.finish(match &outcome {
        Ok(_) => Outcome::Done,
        Err(error) => Outcome::Failed(error.message.clone()),
    });
    outcome
}
