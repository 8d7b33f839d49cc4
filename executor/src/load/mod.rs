//! Images into container engines: docker and podman through the docker API, others through programs that read an archive.
//!
//! [`EnginePlace`] says where an engine is, [`ContainerEngine::connect`] finds out whether it answers, and
//! [`ContainerEngine::load`] gives it an image. Spec: `spec/engine.md` §1.1 (`docker`), `spec/cli.md` §1.1 (`--load`).

mod api;
mod place;
mod program;
mod ssh;
mod stream;

use std::collections::BTreeSet;
use std::path::PathBuf;

use cache::Store;
use oci::{DiffId, Digest, ImageConfig};
use solver::{OpError, Step};

use crate::export::Archive;
use api::Api;
pub use place::{EnginePlace, PlaceError, TlsFiles};

/// An engine that has answered.
pub struct ContainerEngine {
    name: String,
    way: Way,
}

enum Way {
    Api(Api),
    Program { program: PathBuf, args: Vec<String> },
}

impl ContainerEngine {
    /// Finds out whether an engine is there. `scratch` is a directory for a socket.
    ///
    /// # Errors
    /// Nobody answers, or not as an engine; a program does not exist.
    pub async fn connect(place: &EnginePlace) -> Result<Self, OpError> {
        let way = match place {
            EnginePlace::Program { program, args } => Way::Program { program: program.clone(), args: args.clone() },
            _ => Way::Api(Api::connect(place).await?),
        };
        let name = match &way {
            Way::Api(api) => format!("{} at {place}", api.product()),
            Way::Program { .. } => place.to_string(),
        };
        Ok(Self { name, way })
    }

    /// The engine and where it is, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether bytes to it leave the machine, so that layers had better be compressed.
    pub fn is_remote(&self) -> bool {
        matches!(&self.way, Way::Api(api) if api.is_remote())
    }

    /// Gives it an image. Layers that it has already are not sent where its API lets us know.
    ///
    /// # Errors
    /// The engine refuses the image, in its words; the connection breaks; a blob that the store has lost.
    pub async fn load(&self, archive: Archive, store: &Store, step: &Step) -> Result<(), OpError> {
        match &self.way {
            Way::Program { program, args } => program::load(program, args, archive, store, step).await,
            Way::Api(api) => {
                let known = api.known_layers(&diff_ids(&archive)).await;
                let omitted = layers_of(&archive, known);
                if omitted.is_empty() {
                    return api.load(archive, BTreeSet::new(), store, step).await;
                }
                let n_layers = archive.built.layers().count();
                step.status(format!("{} of {n_layers} layers are there already", omitted.len()), 0, 0, true);
                match api.load(archive.clone(), omitted, store, step).await {
                    Ok(()) => Ok(()),
                    Err(error) if error.tier == solver::Tier::Cancelled => Err(error),
                    // Somebody may have removed a layer since it was asked for.
                    Err(error) => {
                        tracing::debug!(error = %error.message, "all layers are sent after all");
                        api.load(archive, BTreeSet::new(), store, step).await
                    }
                }
            }
        }
    }
}

/// The diff IDs of the only image of an archive; none if there are several.
fn diff_ids(archive: &Archive) -> Vec<DiffId> {
    let [image] = archive.built.images() else { return Vec::new() };
    serde_json::from_slice::<ImageConfig>(&image.config).map(|config| config.rootfs.diff_ids).unwrap_or_default()
}

/// The blobs of the first `known` layers that no other layer of the image has as well.
fn layers_of(archive: &Archive, known: usize) -> BTreeSet<Digest> {
    let [image] = archive.built.images() else { return BTreeSet::new() };
    let digests = image.parsed.layers.iter().map(|layer| &layer.digest);
    let needed: BTreeSet<&Digest> = digests.clone().skip(known).collect();
    digests.take(known).filter(|digest| !needed.contains(digest)).cloned().collect()
}
