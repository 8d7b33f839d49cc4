//! `rbuild repro`: builds twice from nothing but the base images, and shows what came out differently.

use std::collections::BTreeSet;

use cache::Store;
use executor::compare::{Comparison, Side, compare};
use executor::relay::Relay;
use executor::sandbox::Confinement;
use executor::seed::seed;
use executor::source::image::PullPolicy;
use oci::{Descriptor, ImageRef};
use serde_json::{Value, json};
use solver::plan::plan;
use solver::{ImageOp, Op, OpError, Outcome, Step};

use super::advice::advice;
use super::build::{self, Build, Prepared, wire};
use super::diff::{text, unpacked};
use super::image::{Image, PlatformImage};
use super::transfer::{step, with_transfer};
use crate::args::{Global, ReproArgs};
use crate::failure::{Failure, Source};
use crate::output::{ImageOptions, Output};
use crate::request::{BuildRequest, ContextArg, DockerfileArg};
use crate::ui;

/// What the results are called in their stores.
const NAME: &str = "repro:result";
/// Exit code for results that differ.
const DIFFERENT: u8 = 1;

/// Builds twice and compares.
pub(crate) fn repro(args: ReproArgs, global: &Global) -> Result<(), Failure> {
    let format = args.format;
    let mut request = BuildRequest::check(*args.build)?;
    if matches!(request.context, ContextArg::Stdin) || matches!(request.dockerfile, DockerfileArg::Stdin) {
        return Err(
            Failure::usage("what comes on standard input cannot be built twice").help("put it into a directory")
        );
    }
    request.outputs = vec![Output::Image(options(&request)?)];
    (request.no_cache, request.no_cache_filter) = (true, Vec::new());
    let store = super::open_store(global)?;
    let scratch = store.scratch_dir()?;
    let stores = ["first", "second"].map(|name| super::open_store_at(&scratch.path().join(name), global));
    let [first, second] = stores;
    let (first, second) = (first?, second?);
    // What is put there stays until the end.
    let _leases = (first.lease()?, second.lease()?);
    request.pull = give_bases(&request, &store, [&first, &second], global)?;
    // Steps come in another order, and side by side or not.
    let jobs = request.jobs.unwrap_or_else(wire::default_parallelism).max(1);
    let mut built = Vec::with_capacity(2);
    for (number, store) in [&first, &second].into_iter().enumerate() {
        request.jobs = Some(if number == 0 {
            jobs
        } else if jobs == 1 {
            2
        } else {
            1
        });
        built.push(build::build_into(&request, store, global)?);
    }
    if built[0].digest == built[1].digest {
        let text = match format.as_str() {
            "json" => format!("{:#}\n", json!({"reproducible": true, "digest": built[0].digest})),
            _ => format!("reproducible: {}\n", built[0].digest),
        };
        return Ok(ui::stdout(&text)?);
    }
    let differences = differences([&first, &second], &built, &global.confinement)?;
    ui::stdout(&said(&format, &built, &differences))?;
    Err(Failure::Exit(DIFFERENT))
}

/// How the image is written: as the first output that is one says, without sending it anywhere.
fn options(request: &BuildRequest) -> Result<ImageOptions, Failure> {
    let mut options = request.outputs.iter().find_map(|output| match output {
        Output::Image(options)
        | Output::Oci { options, .. }
        | Output::Docker { options, .. }
        | Output::Load { options, .. } => Some(options.clone()),
        Output::Local { .. } | Output::Tar { .. } | Output::CacheOnly => None,
    });
    let options = options.get_or_insert_default();
    let name = ImageRef::parse_normalized(NAME).map_err(|error| Failure::environment(error.to_string()))?;
    (options.names, options.push, options.is_unnamed) = (vec![name], None, false);
    Ok(options.clone())
}

/// Plans the build, and gives both stores the images that it is based on. What is there need not be asked for again:
/// `false`.
fn give_bases(request: &BuildRequest, store: &Store, to: [&Store; 2], global: &Global) -> Result<bool, Failure> {
    let work = async |build: &Build<'_>, source: &mut Option<Source>| {
        let Prepared { plan_request, engine, context: _context } = build.prepare(Vec::new(), source).await?;
        let plan = plan(&plan_request, &engine, &build.progress).await.map_err(build::plan_failure)?;
        let images: Vec<ImageOp> = plan
            .graph
            .ids()
            .filter_map(|id| match &*plan.graph.vertex(id).op {
                Op::Image(image) => Some(image.clone()),
                _ => None,
            })
            .collect();
        let pusher = engine.pusher();
        let relay = Relay { store: store.clone(), images: pusher.images.clone(), cancel: pusher.cancel.clone() };
        let step = build.progress.start("[internal] give both stores the base images");
        for store in to {
            let given = seed(&relay, engine.packer(), store, &images, &step).await;
            if let Err(error) = given {
                step.finish(Outcome::Failed(error.message.clone()));
                return Err(error.into());
            }
        }
        step.finish(Outcome::Done);
        Ok(())
    };
    build::session(request, store, global, work)?;
    Ok(false)
}

/// What differs, by platform.
fn differences(
    stores: [&Store; 2],
    built: &[Descriptor],
    confinement: &Confinement,
) -> Result<Vec<(String, Comparison)>, Failure> {
    let load = |store: &Store, target: &Descriptor| {
        let stored = cache::StoredImage { reference: None, target: target.clone(), updated_at: 0 };
        Image::load(store, stored)
    };
    let images = [load(stores[0], &built[0])?, load(stores[1], &built[1])?];
    let mut differences = Vec::new();
    for (one, other) in images[0].platforms().iter().zip(images[1].platforms()) {
        let (a, b) = (side(stores[0], one, confinement)?, side(stores[1], other, confinement)?);
        let comparison = compare(&a, &b).map_err(OpError::from)?;
        differences.push((one.platform().to_string(), comparison));
    }
    Ok(differences)
}

fn side(store: &Store, image: &PlatformImage, confinement: &Confinement) -> Result<Side, Failure> {
    let (digest, manifest) = (image.descriptor.digest.clone(), image.manifest.clone());
    with_transfer(store, confinement, true, PullPolicy::Never, None, async |transfer| {
        let work = async |step: Step| unpacked(transfer, digest, manifest, image.config.clone(), &step).await;
        step(&transfer.progress, "reading what was built".to_owned(), work).await
    })
}

/// The differences of all platforms, with what is likely to have caused them.
fn said(format: &str, built: &[Descriptor], differences: &[(String, Comparison)]) -> String {
    let reasons: BTreeSet<&str> = differences.iter().flat_map(|(_, comparison)| advice(comparison)).collect();
    if format == "json" {
        let platforms = differences.iter().map(|(platform, comparison)| (platform.clone(), json!(comparison)));
        let document = json!({"reproducible": false, "first": built[0].digest, "second": built[1].digest,
            "platforms": Value::Object(platforms.collect()), "advice": reasons});
        return format!("{document:#}\n");
    }
    let mut said = format!("not reproducible: {} and {}\n", built[0].digest, built[1].digest);
    for (platform, comparison) in differences {
        if differences.len() > 1 {
            said.push_str(&format!("{platform}:\n"));
        }
        said.push_str(&text(comparison));
    }
    for reason in reasons {
        said.push_str(&format!("help: {reason}\n"));
    }
    said
}
