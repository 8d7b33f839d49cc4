//! Lowers a Dockerfile to the build graph and the image config, for each target platform.
//!
//! The order of events: the global scope and every FROM are evaluated (`scope.rs`, `from.rs`); stages are connected and
//! checked (`stages.rs`); images of the stages that are needed are found, and triggers bring more (`resolve.rs`,
//! `onbuild.rs`); then the needed stages are evaluated one after the other, instruction by instruction (`stage.rs` and
//! the files named after the instructions). All platforms share one graph, in which equal vertices are one.
//!
//! Nothing here performs anything: no file is read and no image is fetched. What a plan has to know of the world it asks
//! its [`Resolver`]. Read [`PlanRequest`] first, then [`Plan`].
//!
//! Spec: `spec/dockerfile.md` §2–§4 and §6–§9.

mod add;
mod contexts;
mod copy;
mod devices;
mod epoch;
mod error;
mod from;
mod git_url;
mod history;
mod ignore;
mod lint;
mod metadata;
mod mounts;
mod names;
mod onbuild;
mod outline;
mod ownership;
mod paths;
mod remote;
mod render;
mod request;
mod resolve;
mod run;
mod scope;
mod sources;
mod stage;
mod stages;
mod state;
mod target;
#[cfg(test)]
mod tests;
mod workdir;

/// Ignore files, `--exclude` patterns and wildcards, for whoever selects files.
pub use parser::pattern as patterns;

/// Quotes a text as messages show it, for whoever words one.
pub use parser::go::quote;

pub use contexts::NamedContext;
pub use error::{Culprit, PlanError};
pub use git_url::{GitUrl, GitUrlError, is_http, redacted};
pub use history::{COMMENT, EXPORTER_COMMENT, PlannedHistory};
pub use lint::Warning;
pub use outline::{Asked, CacheMount, Outline, OutlineArg, TargetInfo};
pub use remote::{RemoteFiles, URL_CONTEXT_FILE};
pub use render::render;
pub use request::{ContextKind, IgnoreFile, NoCache, PlanRequest, Purpose, SourceText};
pub use state::BaseImage;
pub use target::PlannedImage;

use futures_util::future::join_all;
use oci::Platform;
use parser::Dockerfile;
use parser::lint::CheckConfig;

use crate::graph::Graph;
use crate::progress::Progress;
use crate::traits::Resolver;
use ignore::Ignored;
use lint::Findings;
use resolve::Finder;
use target::{Shared, Target};

/// What a Dockerfile means in one build.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything that may have to be done, for all platforms.
    pub graph: Graph,
    /// One image a platform, in the order in which they were asked for, each once.
    pub images: Vec<PlannedImage>,
    /// What should be changed in the Dockerfile.
    pub warnings: Vec<Warning>,
    /// Whether the result is laid out for several platforms, also when there is only one: an index, a directory each.
    pub is_multi_platform: bool,
}

/// Makes the plan of a build.
///
/// Metadata of base images is asked for through `resolver`, all images at once; each shows as a step of `progress`.
///
/// # Errors
/// [`PlanError`]: the first fault, other faults that do not follow from it, and the warnings found before.
pub async fn plan(request: &PlanRequest, resolver: &dyn Resolver, progress: &Progress) -> Result<Plan, PlanError> {
    let mut findings = Findings::default();
    match make(request, resolver, progress, &mut findings).await {
        Ok(plan) => Ok(Plan { warnings: findings.into_warnings(), ..plan }),
        Err(fault) => Err(PlanError { warnings: findings.into_warnings().into(), ..fault }),
    }
}

/// Says what the target can be given and what it asks for. [`PlanRequest::purpose`] should be [`Purpose::Outline`].
///
/// Evaluates what a build would evaluate, for the first platform; metadata of base images is asked for.
///
/// # Errors
/// [`PlanError`], as for a plan.
pub async fn outline(
    request: &PlanRequest,
    resolver: &dyn Resolver,
    progress: &Progress,
) -> Result<Outline, PlanError> {
    let mut findings = Findings::closed();
    let source = Source::read(request, &mut findings)?;
    let platform = platforms(request, &mut findings).swap_remove(0);
    let finder = Finder::new(request, resolver, progress, false);
    let target = Target::prepare(source.shared(request, resolver, false), platform, &finder, &mut findings).await?;
    target.outline(&source.file, &mut findings)
}

/// The stages of a file, in its order. Nothing is evaluated and no image is asked for.
///
/// # Errors
/// [`PlanError`]: what is wrong with the text, or a front end that is not ours.
pub fn targets(request: &PlanRequest) -> Result<Vec<TargetInfo>, PlanError> {
    check_front_end(request)?;
    Ok(outline::targets_of(&parser::parse(&request.dockerfile.text)?))
}

/// A request's files, read.
struct Source {
    file: Dockerfile,
    ignored: Option<Ignored>,
    is_labs: bool,
}

impl Source {
    /// Parses everything that is text, and notes what the texts alone give reason to.
    fn read(request: &PlanRequest, findings: &mut Findings) -> Result<Self, PlanError> {
        let is_labs = check_front_end(request)?;
        findings.configure(check_config(request)?);
        let file = parser::parse(&request.dockerfile.text)?;
        file.warnings.iter().for_each(|found| findings.raise(found.clone()));
        let ignored = request.ignore.as_ref().map(Ignored::read).transpose()?.flatten();
        Ok(Self { file, ignored, is_labs })
    }

    fn shared<'a>(&'a self, request: &'a PlanRequest, resolver: &'a dyn Resolver, is_multi: bool) -> Shared<'a> {
        Shared {
            request,
            resolver,
            file: &self.file,
            ignored: self.ignored.as_ref(),
            is_multi,
            is_explicit: !request.platforms.is_empty(),
            is_labs: self.is_labs,
        }
    }
}

async fn make(
    request: &PlanRequest,
    resolver: &dyn Resolver,
    progress: &Progress,
    findings: &mut Findings,
) -> Result<Plan, PlanError> {
    let source = Source::read(request, findings)?;
    if request.purpose == Purpose::Build {
        for message in scope::mistaken_build_args(request, &source.file) {
            findings.note(Warning { rule: "", description: "", url: "", message, location: None });
        }
    }
    let platforms = platforms(request, findings);
    let is_multi = is_multi_platform(request, platforms.len())?;
    let shared = source.shared(request, resolver, is_multi);
    let finder = Finder::new(request, resolver, progress, is_multi);
    // The first platform reports what it finds, the others what need not be true of the first: they would repeat the rest.
    let mut reports = vec![std::mem::take(findings)];
    let of_another = reports[0].of_another_platform();
    reports.resize(platforms.len(), of_another);
    let lowered = lower(shared, platforms, &finder, &mut reports).await;
    let mut reports = reports.into_iter();
    *findings = reports.next().unwrap_or_default();
    reports.for_each(|report| findings.add(report));
    let plan = lowered?;
    if request.purpose == Purpose::Build {
        findings.check()?;
    }
    Ok(plan)
}

/// Evaluates the file for each platform into one graph, with one of `reports` for each.
async fn lower(
    shared: Shared<'_>,
    platforms: Vec<Platform>,
    finder: &Finder<'_>,
    reports: &mut [Findings],
) -> Result<Plan, PlanError> {
    let preparations = platforms.into_iter().zip(reports.iter_mut());
    let targets = join_all(preparations.map(|(platform, report)| Target::prepare(shared, platform, finder, report)));
    let targets = of_platforms(targets.await)?;
    let mut graph = Graph::default();
    let images = targets.iter().zip(reports).map(|(target, report)| target.evaluate(&mut graph, report));
    let images = of_platforms(images.collect())?;
    Ok(Plan { graph, images, warnings: Vec::new(), is_multi_platform: shared.is_multi })
}

/// What came of every platform; a fault that several have is told once.
fn of_platforms<T>(results: Vec<Result<T, PlanError>>) -> Result<Vec<T>, PlanError> {
    let (mut done, mut faults) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(one) => done.push(one),
            Err(fault) => faults.push(fault),
        }
    }
    PlanError::all(PlanError::each_once(faults)).map_or(Ok(done), Err)
}

/// Refuses files that ask for another front end than ours. Returns whether experimental instructions are on.
fn check_front_end(request: &PlanRequest) -> Result<bool, PlanError> {
    let argument = request.build_args.get("BUILDKIT_SYNTAX").filter(|value| !value.is_empty());
    let directive = parser::directive::detect(&request.dockerfile.text).0;
    let (reference, lines, prefix) = match (argument, directive) {
        (Some(value), _) => {
            let reference = value.split(' ').next().unwrap_or_default().to_owned();
            let prefix = format!("failed with build-arg:BUILDKIT_SYNTAX = {value}: ");
            (reference, None, prefix)
        }
        (None, Some(syntax)) => (syntax.reference, syntax.lines, String::new()),
        (None, None) => return Ok(false),
    };
    if parser::directive::is_builtin_frontend(&reference) {
        let tag = reference.split(':').nth(1).unwrap_or_default();
        return Ok(tag == "labs" || tag.ends_with("-labs"));
    }
    let fault = PlanError::input(format!("{prefix}the front end {reference} is not supported"))
        .help("only Dockerfiles can be built: `docker/dockerfile` is built in, others cannot be loaded");
    Err(match lines {
        Some(lines) => fault.at(lines),
        None => fault,
    })
}

/// Which rules are wanted: a build argument, or the directive.
fn check_config(request: &PlanRequest) -> Result<CheckConfig, PlanError> {
    let directive = parser::directive::detect(&request.dockerfile.text).1;
    let value = match request.build_args.get("BUILDKIT_DOCKERFILE_CHECK") {
        Some(value) => Some(value.clone()),
        None => directive.map(|directive| directive.value),
    };
    let parsed = value.map(|value| CheckConfig::parse(&value)).transpose();
    Ok(parsed.map_err(|error| PlanError::input(error.to_string()))?.unwrap_or_default())
}

/// The platforms to build for, normalised, each once.
fn platforms(request: &PlanRequest, findings: &mut Findings) -> Vec<Platform> {
    let mut list: Vec<Platform> = Vec::new();
    for platform in &request.platforms {
        let platform = platform.normalized();
        if list.contains(&platform) {
            let message = format!("Duplicate platform result requested \"{platform}\"");
            findings.note(Warning { rule: "", description: "", url: "", message, location: None });
        } else {
            list.push(platform);
        }
    }
    if list.is_empty() {
        list.push(request.build_platform.clone());
    }
    list
}

/// Whether the result is laid out for several platforms. A build argument can ask for that with a single one.
fn is_multi_platform(request: &PlanRequest, n_platforms: usize) -> Result<bool, PlanError> {
    let given = request.build_args.get("BUILDKIT_MULTI_PLATFORM").filter(|value| !value.is_empty());
    let Some(value) = given else { return Ok(n_platforms > 1) };
    let Some(is_wanted) = parser::go::parse_bool(value) else {
        return Err(PlanError::input(format!("invalid boolean value for multi-platform: {value}"))
            .help("BUILDKIT_MULTI_PLATFORM is `true` or `false`"));
    };
    if !is_wanted && n_platforms > 1 {
        return Err(PlanError::input("conflicting config: returning multiple target platforms is not allowed")
            .help("leave out BUILDKIT_MULTI_PLATFORM, which is off, or give one --platform"));
    }
    Ok(is_wanted)
}
