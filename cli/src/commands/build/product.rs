//! Where the result goes: each `--output` as something that can be written.

use std::path::Path;
use std::sync::Arc;

use cache::{Codec, Store};
use executor::caches::Caches;
use executor::engine::Engine;
use executor::export::{
    Archive, AssembledLayer, Assembly, BuiltImage, ImageDocuments, MediaTypes, PlacedRoot, assemble, export_local,
    export_tar,
};
use executor::load::ContainerEngine;
use executor::packer::{PackedLayer, Wanted};
use executor::push::{EarlyTarget, Parcel};
use executor::sandbox::Isolation;
use futures_util::future::try_join_all;
use oci::{Descriptor, Digest, ImageConfig, ImageRef, Platform};
use solver::plan::{Plan, PlannedImage};
use solver::{Chain, OpError, Progress, Step, Tier};

use super::dest::to_dest;
use crate::container_engine;
use crate::failure::Failure;
use crate::output::{DEFAULT_GZIP_LEVEL, Dest, ImageOptions, Output};
use crate::request::BuildRequest;

/// What came of a build, for the files about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finished {
    /// Digest of the config; `None` when there is an index, or no image at all.
    pub(crate) config_digest: Option<Digest>,
    /// The manifest or index.
    pub(crate) descriptor: Option<Descriptor>,
    /// Names that were given, normalised.
    pub(crate) names: Vec<String>,
}

/// A plan whose work is done.
pub(crate) struct Solved<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) engine: &'a Engine,
    pub(crate) store: &'a Store,
    /// The layers of each image of the plan, in its order.
    pub(crate) chains: Vec<Chain>,
    /// Caches elsewhere, if there are any.
    pub(crate) caches: Option<&'a Arc<Caches>>,
}

/// One product.
pub(crate) struct Product {
    output: Output,
    /// What the image is given to, if that is its output.
    container_engine: Option<Arc<ContainerEngine>>,
}

/// The products that a request asks for. Engines that are to get an image have to answer now; where none was named and none
/// is there, the image goes to the local store.
pub(crate) async fn products(
    request: &BuildRequest,
    isolation: Isolation,
    progress: &Progress,
) -> Result<Vec<Product>, Failure> {
    let mut products = Vec::with_capacity(request.outputs.len());
    for output in &request.outputs {
        let Output::Load { options, context } = output else {
            products.push(Product { output: output.clone(), container_engine: None });
            continue;
        };
        let engine = container_engine::connect(context.as_deref(), isolation, progress).await?;
        let output = match engine {
            Some(_) => output.clone(),
            None => Output::Image(options.clone()),
        };
        products.push(Product { output, container_engine: engine.map(Arc::new) });
    }
    Ok(products)
}

/// In which forms layers will be asked for, so that they can be made while later steps run.
pub(crate) fn wanted(products: &[Product]) -> Vec<Wanted> {
    // What will be written again with other times is not needed as it is.
    let as_made = products.iter().filter(|product| !product.rewrites_times());
    let mut wanted: Vec<Wanted> = as_made.filter_map(Product::wanted).collect();
    wanted.dedup();
    wanted
}

/// What is going to be pushed in which form, so that layers can be sent while later steps run.
pub(crate) fn early_targets(products: &[Product]) -> Vec<EarlyTarget> {
    let pushed = products.iter().filter(|product| !product.rewrites_times() && !product.pushed_names().is_empty());
    let target =
        |product: &Product| Some(EarlyTarget { wanted: product.wanted()?, names: product.pushed_names().to_vec() });
    pushed.filter_map(target).collect()
}

impl Product {
    /// As shown in the progress.
    pub(crate) fn step_name(&self) -> &'static str {
        match self.output {
            Output::Image(_) => "exporting to image",
            Output::Oci { .. } => "exporting to oci image format",
            Output::Docker { .. } | Output::Load { .. } => "exporting to docker image format",
            Output::Local { .. } => "exporting to client directory",
            Output::Tar { .. } => "exporting to client tarball",
            Output::CacheOnly => "exporting nothing",
        }
    }

    /// In which form layers leave; `None` where they do not.
    pub(crate) fn wanted(&self) -> Option<Wanted> {
        let gzip = Codec::Gzip { level: DEFAULT_GZIP_LEVEL };
        let (options, default, store_plain) = match &self.output {
            Output::Image(options) if options.push.is_some() => (options, gzip, true),
            Output::Image(options) => (options, Codec::Plain, false),
            Output::Oci { options, .. } | Output::Docker { options, .. } => (options, gzip, true),
            // What stays on this machine is unpacked at once.
            Output::Load { options, .. } => match &self.container_engine {
                Some(engine) if engine.is_remote() => (options, gzip, true),
                _ => (options, Codec::Plain, true),
            },
            Output::Local { .. } | Output::Tar { .. } | Output::CacheOnly => return None,
        };
        // What only goes to registries need not be here.
        let may_stay_away = options.push.is_some() && options.is_unnamed;
        let codec = options.codec.unwrap_or(default);
        Some(Wanted { codec, force: options.force_compression, store_plain, may_stay_away })
    }

    fn rewrites_times(&self) -> bool {
        match &self.output {
            Output::Image(options)
            | Output::Oci { options, .. }
            | Output::Docker { options, .. }
            | Output::Load { options, .. } => options.rewrite_timestamp,
            Output::Local { .. } | Output::Tar { .. } | Output::CacheOnly => false,
        }
    }

    /// The names under which it goes to registries.
    pub(crate) fn pushed_names(&self) -> &[ImageRef] {
        match &self.output {
            Output::Image(options) if options.push.is_some() => &options.names,
            _ => &[],
        }
    }

    /// Refuses what this output cannot hold, before anything is done for it.
    pub(crate) fn check(&self, plan: &Plan) -> Result<(), OpError> {
        let options = match &self.output {
            Output::Image(options)
            | Output::Oci { options, .. }
            | Output::Docker { options, .. }
            | Output::Load { options, .. } => options,
            Output::Local { .. } | Output::Tar { .. } | Output::CacheOnly => return Ok(()),
        };
        if plan.is_multi_platform && matches!(self.output, Output::Docker { .. } | Output::Load { .. }) {
            let message = "docker exporter does not currently support exporting manifest lists";
            return Err(OpError::input(message)
                .help("an OCI archive holds several platforms: `-o type=oci,dest=FILE`; so does the local store")
                .help("or build one platform: `--platform linux/amd64`"));
        }
        let platforms: Vec<&Platform> = plan.images.iter().map(|image| &image.platform).collect();
        options.annotations.check(&platforms, plan.is_multi_platform)
    }

    /// Writes it.
    pub(crate) async fn write(&self, solved: &Solved<'_>, step: &Step, finished: &mut Finished) -> Result<(), OpError> {
        match &self.output {
            Output::Image(options) => {
                let built = self.image(solved, options, step).await?;
                finished.note(&built, options);
                let (top, store) = (built.descriptor(), solved.store.clone());
                let (named, shown) = (options.clone(), step.clone());
                blocking(move || store_image(&store, &built, &named, &shown)).await?;
                match options.push {
                    Some(_) => self.push_noted(solved, &top, &options.names, step).await,
                    None => Ok(()),
                }
            }
            Output::Oci { options, dest, tar } => {
                let archive = self.archive(solved, options, step, false).await?;
                finished.note(&archive.built, options);
                let (store, dest, is_tar, step) = (solved.store.clone(), dest.clone(), *tar, step.clone());
                blocking(move || match (&dest, is_tar) {
                    (Dest::File(path), false) => Ok(archive.write_dir(&store, path)?),
                    _ => write_archive(&store, &archive, &dest, &step),
                })
                .await
            }
            Output::Docker { options, dest } => {
                let archive = self.archive(solved, options, step, true).await?;
                finished.note(&archive.built, options);
                let (store, dest, step) = (solved.store.clone(), dest.clone(), step.clone());
                blocking(move || write_archive(&store, &archive, &dest, &step)).await
            }
            Output::Load { options, .. } => {
                let archive = self.archive(solved, options, step, true).await?;
                finished.note(&archive.built, options);
                let engine = self.container_engine.as_ref();
                let engine = engine.ok_or_else(|| OpError::internal("an image has no engine to go to"))?;
                engine.load(archive, solved.store, step).await?;
                step.status(format!("loading into {}", engine.name()), 0, 0, true);
                for name in &options.names {
                    step.status(format!("naming to {name}"), 0, 0, true);
                }
                Ok(())
            }
            Output::Local { dest, split, epoch } => {
                let is_split = split.unwrap_or(solved.plan.is_multi_platform);
                let roots = solved.roots(is_split, *epoch, step).await?;
                let (dest, step) = (dest.clone(), step.clone());
                blocking(move || write_directory(&roots, &dest, &step)).await
            }
            Output::Tar { dest, epoch } => {
                let roots = solved.roots(solved.plan.is_multi_platform, *epoch, step).await?;
                let (dest, step) = (dest.clone(), step.clone());
                blocking(move || {
                    to_dest(&dest, |out| export_tar(&roots, out))?;
                    step.status("sending tarball", 0, 0, true);
                    Ok(())
                })
                .await
            }
            Output::CacheOnly => Ok(()),
        }
    }

    /// The image, or the index of the images of all platforms.
    async fn image(&self, solved: &Solved<'_>, options: &ImageOptions, step: &Step) -> Result<BuiltImage, OpError> {
        let wanted = self.wanted().ok_or_else(|| OpError::internal("a product without layers was packed"))?;
        let lacks_epoch = |image: &PlannedImage| options.epoch.or(image.epoch).is_none();
        if options.rewrite_timestamp && solved.plan.images.iter().any(lacks_epoch) {
            step.warn("rewrite-timestamp is specified, but no source-date-epoch was found");
        }
        // All at once: what one platform waits for does not hold up the others.
        let packed = solved.images().map(|(image, chain)| packed(solved.engine, image, chain, options, wanted));
        let packed = try_join_all(packed).await?;
        step.status("exporting layers", 0, 0, true);
        let images = solved.images().zip(packed);
        let mut images: Vec<ImageDocuments> = images
            .map(|((image, chain), layers)| {
                let cache = solved.caches.and_then(|caches| caches.image_metadata(chain, &layers));
                documents(image, layers, cache, options)
            })
            .collect();
        for image in &images {
            step.status(format!("exporting manifest {}", image.descriptor().digest), 0, 0, true);
            step.status(format!("exporting config {}", image.config_digest()), 0, 0, true);
        }
        if solved.plan.is_multi_platform {
            let built = BuiltImage::indexed(images, media_types(options), options.annotations.of_index());
            step.status(format!("exporting manifest list {}", built.descriptor().digest), 0, 0, true);
            return Ok(built);
        }
        let image = images.pop().ok_or_else(|| OpError::internal("a plan without an image"))?;
        Ok(BuiltImage::single(image))
    }

    /// Brings the image to the registries that its names say. Until it is there, `rbuild push` finds it by its names.
    async fn push_noted(
        &self,
        solved: &Solved<'_>,
        top: &Descriptor,
        names: &[ImageRef],
        step: &Step,
    ) -> Result<(), OpError> {
        let tagged = || names.iter().filter(|name| name.tag().is_some());
        for name in tagged() {
            solved.store.begin_push(name, top)?;
        }
        let pushed = self.push(solved, top, names, step).await;
        match pushed {
            Ok(()) => tagged().try_for_each(|name| Ok(solved.store.end_push(name, top)?)),
            Err(error) if error.tier == Tier::Environment && tagged().next().is_some() => {
                let names: Vec<String> = tagged().map(ImageRef::familiar).collect();
                Err(error.help(format!("without building again: rbuild push {}", names.join(" "))))
            }
            Err(error) => Err(error),
        }
    }

    /// Brings the image to the registries that its names say.
    async fn push(
        &self,
        solved: &Solved<'_>,
        top: &Descriptor,
        names: &[ImageRef],
        step: &Step,
    ) -> Result<(), OpError> {
        let wanted = self.wanted().ok_or_else(|| OpError::internal("a product without layers was pushed"))?;
        let parcel = Parcel::of_stored(solved.engine.packer(), solved.store, top, wanted).await?;
        solved.engine.pusher().push(&parcel, names, step).await
    }

    async fn archive(
        &self,
        solved: &Solved<'_>,
        options: &ImageOptions,
        step: &Step,
        for_docker: bool,
    ) -> Result<Archive, OpError> {
        let built = self.image(solved, options, step).await?;
        let epoch = options.epoch.or_else(|| solved.plan.images.iter().find_map(|image| image.epoch));
        let created = oci::time::format_rfc3339(epoch.unwrap_or_else(crate::commands::now), 0);
        Ok(Archive { built, names: options.names.clone(), created, for_docker })
    }
}

/// The layers of one image, ready to leave.
async fn packed(
    engine: &Engine,
    image: &PlannedImage,
    chain: &Chain,
    options: &ImageOptions,
    wanted: Wanted,
) -> Result<Vec<PackedLayer>, OpError> {
    let epoch = options.epoch.or(image.epoch).filter(|_| options.rewrite_timestamp);
    let base = image.base.as_ref().map_or(&[][..], |base| &base.diff_ids);
    match epoch {
        Some(epoch) => engine.packer().clamped(chain, base, epoch, wanted).await,
        None => engine.packer().packed(chain, wanted).await,
    }
}

/// Config and manifest of one image.
fn documents(
    image: &PlannedImage,
    packed: Vec<PackedLayer>,
    cache: Option<serde_json::Value>,
    options: &ImageOptions,
) -> ImageDocuments {
    let layers: Vec<AssembledLayer> = packed.into_iter().map(AssembledLayer::from).collect();
    let assembly = Assembly {
        config: ImageConfig { cache, ..image.config.clone() },
        history: image.history.iter().map(|history| history.entry.clone()).collect(),
        n_base_history: image.history.iter().take_while(|history| history.from_base).count(),
        epoch: options.epoch.or(image.epoch),
        keeps_nondistributable: options.keeps_nondistributable,
    };
    assemble(&assembly, &layers, media_types(options), &options.annotations.of_image(&image.platform))
}

fn media_types(options: &ImageOptions) -> MediaTypes {
    if options.docker_types { MediaTypes::Docker } else { MediaTypes::Oci }
}

impl Solved<'_> {
    /// The images of the plan with their layers.
    fn images(&self) -> impl Iterator<Item = (&PlannedImage, &Chain)> {
        self.plan.images.iter().zip(&self.chains)
    }

    /// The files of every platform. `epoch` is that of the output.
    async fn roots(&self, is_apart: bool, epoch: Option<i64>, step: &Step) -> Result<Vec<PlacedRoot>, OpError> {
        let placed = self.images().map(async |(image, chain)| {
            let root = self.engine.root_view(chain, step).await?;
            Ok(PlacedRoot { platform: image.platform.clone(), root, is_apart, epoch: epoch.or(image.epoch) })
        });
        try_join_all(placed).await
    }
}

impl Finished {
    /// What identifies the result: digest of the config of a single image, else of the index.
    pub(crate) fn image_id(&self) -> Option<&Digest> {
        self.config_digest.as_ref().or(self.descriptor.as_ref().map(|descriptor| &descriptor.digest))
    }

    fn note(&mut self, built: &BuiltImage, options: &ImageOptions) {
        self.config_digest = built.config_digest().filter(|_| !options.prefers_image_digest).cloned();
        self.descriptor = Some(built.descriptor());
        for name in options.names.iter().map(ToString::to_string) {
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        }
    }
}

fn store_image(store: &Store, built: &BuiltImage, options: &ImageOptions, step: &Step) -> Result<(), OpError> {
    for (_, document) in built.documents() {
        store.put_blob(document)?;
    }
    let descriptor = built.descriptor();
    if options.is_unnamed {
        return Ok(());
    }
    let own_name = options.name_by_digest(&descriptor.digest)?;
    if options.names.is_empty() && own_name.is_none() {
        store.keep_dangling(&descriptor)?;
    }
    for name in options.names.iter().chain(&own_name) {
        store.tag(name, &descriptor)?;
        step.status(format!("naming to {name}"), 0, 0, true);
    }
    Ok(())
}

fn write_archive(store: &Store, archive: &Archive, dest: &Dest, step: &Step) -> Result<(), OpError> {
    to_dest(dest, |out| archive.write_tar(store, out))?;
    step.status("sending tarball", 0, 0, true);
    Ok(())
}

fn write_directory(roots: &[PlacedRoot], dest: &Path, step: &Step) -> Result<(), OpError> {
    for (placed, exported) in roots.iter().zip(export_local(roots, dest)?) {
        let of_platform = if placed.is_apart { format!(" {}", placed.platform) } else { String::new() };
        step.status(format!("copying files{of_platform}"), exported.bytes, 0, true);
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, OpError> + Send + 'static) -> Result<T, OpError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(OpError::cancelled()),
    }
}
