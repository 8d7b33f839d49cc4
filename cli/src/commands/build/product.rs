//! Where the result goes: each `--output` as something that can be written.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use cache::{BulkFile, Codec, Store};
use executor::engine::Engine;
use executor::export::{
    Archive, AssembledLayer, Assembly, ExportError, ImageDocuments, MediaTypes, assemble, export_local, export_tar,
};
use executor::packer::Wanted;
use oci::Descriptor;
use solver::plan::Plan;
use solver::{Chain, OpError, Step};

use crate::output::{DEFAULT_GZIP_LEVEL, Dest, ImageOptions, Output};
use crate::request::BuildRequest;

/// What came of a build, for the files about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finished {
    /// Digest of the config.
    pub(crate) image_id: Option<oci::Digest>,
    /// The manifest.
    pub(crate) descriptor: Option<Descriptor>,
    /// Names that were given, normalised.
    pub(crate) names: Vec<String>,
}

/// One product.
pub(crate) struct Product {
    output: Output,
}

/// The products that a request asks for.
pub(crate) fn products(request: &BuildRequest) -> Vec<Product> {
    request.outputs.iter().map(|output| Product { output: output.clone() }).collect()
}

/// In which forms layers will be asked for, so that they can be made while later steps run.
pub(crate) fn wanted(products: &[Product]) -> Vec<Wanted> {
    // What will be written again with other times is not needed as it is.
    let as_made = products.iter().filter(|product| !product.rewrites_times());
    let mut wanted: Vec<Wanted> = as_made.filter_map(Product::wanted).collect();
    wanted.dedup();
    wanted
}

impl Product {
    /// As shown in the progress.
    pub(crate) fn step_name(&self) -> &'static str {
        match self.output {
            Output::Image(_) => "exporting to image",
            Output::Oci { .. } => "exporting to oci image format",
            Output::Docker { .. } => "exporting to docker image format",
            Output::Local { .. } => "exporting to client directory",
            Output::Tar { .. } => "exporting to client tarball",
            Output::CacheOnly => "exporting nothing",
        }
    }

    fn wanted(&self) -> Option<Wanted> {
        let gzip = Codec::Gzip { level: DEFAULT_GZIP_LEVEL };
        let (options, default, store_plain) = match &self.output {
            Output::Image(options) => (options, Codec::Plain, false),
            Output::Oci { options, .. } | Output::Docker { options, .. } => (options, gzip, true),
            Output::Local { .. } | Output::Tar { .. } | Output::CacheOnly => return None,
        };
        Some(Wanted { codec: options.codec.unwrap_or(default), force: options.force_compression, store_plain })
    }

    fn rewrites_times(&self) -> bool {
        match &self.output {
            Output::Image(options) | Output::Oci { options, .. } | Output::Docker { options, .. } => {
                options.rewrite_timestamp
            }
            Output::Local { .. } | Output::Tar { .. } | Output::CacheOnly => false,
        }
    }

    /// Writes it.
    pub(crate) async fn write(
        &self,
        plan: &Plan,
        engine: &Engine,
        store: &Store,
        chain: &Chain,
        step: &Step,
        finished: &mut Finished,
    ) -> Result<(), OpError> {
        match &self.output {
            Output::Image(options) => {
                let documents = self.documents(plan, engine, chain, options, step).await?;
                finished.note(&documents, options);
                let (store, options, step) = (store.clone(), options.clone(), step.clone());
                blocking(move || store_image(&store, &documents, &options, &step)).await
            }
            Output::Oci { options, dest, tar } => {
                let archive = self.archive(plan, engine, chain, options, step, false).await?;
                finished.note(&archive.documents, options);
                let (store, dest, is_tar, step) = (store.clone(), dest.clone(), *tar, step.clone());
                blocking(move || match (&dest, is_tar) {
                    (Dest::File(path), false) => Ok(archive.write_dir(&store, path)?),
                    _ => write_archive(&store, &archive, &dest, &step),
                })
                .await
            }
            Output::Docker { options, dest } => {
                let archive = self.archive(plan, engine, chain, options, step, true).await?;
                finished.note(&archive.documents, options);
                let (store, dest, step) = (store.clone(), dest.clone(), step.clone());
                blocking(move || write_archive(&store, &archive, &dest, &step)).await
            }
            Output::Local { dest, epoch } => {
                let root = engine.root_view(chain, step).await?;
                let (dest, epoch, step) = (dest.clone(), epoch.or(plan.epoch), step.clone());
                blocking(move || {
                    let exported = export_local(&root, &dest, epoch)?;
                    step.status("copying files", exported.bytes, 0, true);
                    Ok(())
                })
                .await
            }
            Output::Tar { dest, epoch } => {
                let root = engine.root_view(chain, step).await?;
                let (dest, epoch, step) = (dest.clone(), epoch.or(plan.epoch), step.clone());
                blocking(move || {
                    to_dest(&dest, |out| export_tar(&root, out, epoch))?;
                    step.status("sending tarball", 0, 0, true);
                    Ok(())
                })
                .await
            }
            Output::CacheOnly => Ok(()),
        }
    }

    async fn documents(
        &self,
        plan: &Plan,
        engine: &Engine,
        chain: &Chain,
        options: &ImageOptions,
        step: &Step,
    ) -> Result<ImageDocuments, OpError> {
        let image = plan.images.first().ok_or_else(|| OpError::internal("a plan without an image"))?;
        let wanted = self.wanted().ok_or_else(|| OpError::internal("a product without layers was packed"))?;
        let epoch = options.epoch.or(plan.epoch);
        if options.rewrite_timestamp && epoch.is_none() {
            step.warn("rewrite-timestamp is specified, but no source-date-epoch was found");
        }
        let base = image.base.as_ref().map_or(&[][..], |base| &base.diff_ids);
        let packed = match epoch.filter(|_| options.rewrite_timestamp) {
            Some(epoch) => engine.packer().clamped(chain, base, epoch, wanted).await?,
            None => engine.packer().packed(chain, wanted).await?,
        };
        step.status("exporting layers", 0, 0, true);
        let layers: Vec<AssembledLayer> = packed.into_iter().map(AssembledLayer::from).collect();
        let assembly = Assembly {
            config: image.config.clone(),
            history: image.history.iter().map(|history| history.entry.clone()).collect(),
            n_base_history: image.history.iter().take_while(|history| history.from_base).count(),
            epoch,
        };
        let types = if options.docker_types { MediaTypes::Docker } else { MediaTypes::Oci };
        let documents = assemble(&assembly, &layers, types, &options.annotations);
        step.status(format!("exporting manifest {}", documents.descriptor().digest), 0, 0, true);
        step.status(format!("exporting config {}", documents.config_digest()), 0, 0, true);
        Ok(documents)
    }

    async fn archive(
        &self,
        plan: &Plan,
        engine: &Engine,
        chain: &Chain,
        options: &ImageOptions,
        step: &Step,
        for_docker: bool,
    ) -> Result<Archive, OpError> {
        let documents = self.documents(plan, engine, chain, options, step).await?;
        let created = options.epoch.or(plan.epoch).unwrap_or_else(crate::commands::now);
        let created = oci::time::format_rfc3339(created, 0);
        Ok(Archive { documents, names: options.names.clone(), created, for_docker })
    }
}

impl Finished {
    fn note(&mut self, documents: &ImageDocuments, options: &ImageOptions) {
        self.image_id = Some(documents.config_digest().clone());
        self.descriptor = Some(documents.descriptor());
        for name in options.names.iter().map(ToString::to_string) {
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        }
    }
}

fn store_image(store: &Store, documents: &ImageDocuments, options: &ImageOptions, step: &Step) -> Result<(), OpError> {
    store.put_blob(&documents.config)?;
    store.put_blob(&documents.manifest)?;
    let descriptor = documents.descriptor();
    if options.names.is_empty() {
        store.keep_dangling(&descriptor)?;
    }
    for name in &options.names {
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

/// Writes to standard output, or to a file that appears when it is complete.
fn to_dest(dest: &Dest, write: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>) -> Result<(), ExportError> {
    match dest {
        Dest::Stdout => write(&mut std::io::stdout().lock()),
        Dest::File(path) => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::create_dir_all(directory)
                .map_err(|error| ExportError::io("create directory", directory, error))?;
            if path.exists() && !path.is_file() {
                // A pipe or device cannot be replaced.
                let mut file =
                    File::options().write(true).open(path).map_err(|error| ExportError::io("open", path, error))?;
                return write(&mut file);
            }
            let fault = |error| ExportError::io("write", path, error);
            let file = tempfile::Builder::new().prefix(".rbuild-").tempfile_in(directory).map_err(fault)?;
            let mut bulk = BulkFile::new(file.as_file().try_clone().map_err(fault)?);
            write(&mut bulk)?;
            bulk.finish().map_err(fault)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            file.as_file().set_permissions(mode).map_err(fault)?;
            file.persist(path).map_err(|error| fault(error.error))?;
            Ok(())
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, OpError> + Send + 'static) -> Result<T, OpError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(OpError::cancelled()),
    }
}
