//! Finds everything that is not in the Dockerfile: base images and named contexts. Metadata only; nothing is fetched.
//!
//! All images of a round are asked for at once, and everything only once for a plan, however many stages and platforms
//! name it. Spec: `spec/dockerfile.md` §4.2, §4.7.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use oci::{ImageRef, Platform};
use parser::{LineRange, suggest};
use tokio::sync::OnceCell;

use super::contexts::{self, Found, NamedContext};
use super::error::PlanError;
use super::remote::RemoteFiles;
use super::request::PlanRequest;
use super::stages::SCRATCH;
use crate::error::OpError;
use crate::op::Op;
use crate::progress::{Outcome, Progress, Step};
use crate::traits::{ResolvedImage, Resolver};

/// Images that people mean when they mistype a name.
const COMMON_IMAGES: [&str; 14] = [
    "alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora", "node", "python", "rust", "redis", "nginx",
    "postgres", "scratch",
];

/// A name outside of the file, and the platform it is wanted for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) platform: Platform,
}

/// What a name outside of the file turned out to be.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// Nothing.
    Scratch,
    /// An image.
    Image(Box<FoundImage>),
    /// A named context that is no image.
    Context(Found),
}

/// An image and how it was named.
#[derive(Clone, Debug)]
pub(super) struct FoundImage {
    pub(super) resolved: ResolvedImage,
    /// The named context that led to it.
    pub(super) context: Option<String>,
}

/// Everything outside of the file that the stages of one platform use.
pub(super) type Origins = BTreeMap<Wanted, Origin>;

/// What came of a question; faults are told to everyone who asks.
type Answer = Result<Origin, PlanError>;

/// Asks the resolver, each question once.
pub(super) struct Finder<'a> {
    request: &'a PlanRequest,
    resolver: &'a dyn Resolver,
    progress: &'a Progress,
    multi_platform: bool,
    answers: Asked<Wanted, Answer>,
    /// By what has to be done for the files.
    times: Asked<Vec<Arc<Op>>, Time>,
}

/// Questions that have been asked, each with its answer as soon as there is one.
type Asked<Q, A> = Mutex<HashMap<Q, Arc<OnceCell<A>>>>;

/// The time of files that lie elsewhere.
type Time = Result<Option<i64>, OpError>;

impl<'a> Finder<'a> {
    pub(super) fn new(
        request: &'a PlanRequest,
        resolver: &'a dyn Resolver,
        progress: &'a Progress,
        multi_platform: bool,
    ) -> Self {
        Self { request, resolver, progress, multi_platform, answers: Mutex::default(), times: Mutex::default() }
    }

    /// The time of the newest of some files.
    ///
    /// # Errors
    /// They cannot be had.
    pub(super) async fn newest_time(&self, source: &RemoteFiles) -> Time {
        let ops = source.graph.ids().map(|id| source.graph.vertex(id).op.clone()).collect();
        let cell = {
            let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
            times.entry(ops).or_default().clone()
        };
        cell.get_or_init(|| self.resolver.newest_time(&source.graph, source.files)).await.clone()
    }

    /// Finds all of `wanted` that `origins` does not have yet. `stage_names` are for suggestions.
    ///
    /// # Errors
    /// Whatever could not be found, at the lines that want it.
    pub(super) async fn find_all(
        &self,
        wanted: Vec<(Wanted, LineRange)>,
        origins: &mut Origins,
        stage_names: &[&str],
    ) -> Result<(), PlanError> {
        let mut seen = HashSet::new();
        let is_missing = |(want, _): &(Wanted, LineRange)| !origins.contains_key(want) && seen.insert(want.clone());
        let missing: Vec<(Wanted, LineRange)> = wanted.into_iter().filter(is_missing).collect();
        let answers = join_all(missing.iter().map(|(want, _)| self.find_once(want, stage_names))).await;
        let mut faults = Vec::new();
        for ((want, lines), answer) in missing.into_iter().zip(answers) {
            match answer {
                Ok(origin) => drop(origins.insert(want, origin)),
                Err(fault) => faults.push(fault.at(lines)),
            }
        }
        PlanError::all(faults).map_or(Ok(()), Err)
    }

    async fn find_once(&self, want: &Wanted, stage_names: &[&str]) -> Answer {
        let cell = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.entry(want.clone()).or_default().clone()
        };
        cell.get_or_init(|| self.find(want, stage_names)).await.clone()
    }

    async fn find(&self, want: &Wanted, stage_names: &[&str]) -> Answer {
        if want.name == SCRATCH {
            return Ok(Origin::Scratch);
        }
        match contexts::find(&self.request.named_contexts, &want.name, &want.platform) {
            Some(found) => self.find_context(found.checked()?, &want.platform).await,
            None => self.find_image(want, stage_names).await,
        }
    }

    async fn find_context(&self, found: Found, platform: &Platform) -> Answer {
        let name = &found.name;
        let resolved = match &found.context {
            NamedContext::Scratch => return Ok(Origin::Scratch),
            NamedContext::Image(reference) => {
                let step = self.progress.start(format!("[context {name}] load metadata for {reference}"));
                finished(&step, self.resolver.resolve_image(reference, platform, &step).await)?
            }
            NamedContext::OciLayout(layout) => {
                let step = self.progress.start(format!("[context {name}] OCI load from client"));
                finished(&step, self.resolver.resolve_layout(layout, platform, &step).await)?
            }
            _ => return Ok(Origin::Context(found)),
        };
        Ok(Origin::Image(Box::new(FoundImage { resolved, context: Some(found.name) })))
    }

    async fn find_image(&self, want: &Wanted, stage_names: &[&str]) -> Answer {
        let name = &want.name;
        let parsed = ImageRef::parse_normalized(name);
        let reference = parsed
            .map_err(|error| PlanError::input(format!("failed to parse stage name \"{name}\": {error}")))?
            .with_default_tag();
        let prefix = if self.multi_platform { format!("{} ", want.platform) } else { String::new() };
        let step = self.progress.start(format!("[{prefix}internal] load metadata for {reference}"));
        let result = finished(&step, self.resolver.resolve_image(&reference, &want.platform, &step).await);
        let resolved = result.map_err(|error| {
            let message = format!("{name}: {}", error.message);
            let candidates = stage_names.iter().copied().chain(COMMON_IMAGES);
            let message = suggest::with_suggestion(message, name, candidates);
            let fault = PlanError { message, ..PlanError::from(error) }.about(name);
            match stage_names.contains(&name.as_str()) {
                true => {
                    fault.help(format!("the stage `{name}` comes later: move it before the one that begins with it"))
                }
                false => fault,
            }
        })?;
        Ok(Origin::Image(Box::new(FoundImage { resolved, context: None })))
    }
}

fn finished(step: &Step, result: Result<ResolvedImage, OpError>) -> Result<ResolvedImage, OpError> {
    step.finish(match &result {
        Ok(_) => Outcome::Done,
        Err(error) => Outcome::Failed(error.message.clone()),
    });
    result
}
