//! `SOURCE_DATE_EPOCH`: the time that makes builds repeatable. Spec: `spec/dockerfile.md` §3.8.

use parser::expand::Expander;
use parser::instruction::{AddInstruction, ArgInstruction, InstructionKind};

use super::contexts::{self, NamedContext};
use super::error::PlanError;
use super::from::From;
use super::git_url::{self, GitUrl, is_http};
use super::remote::{self, RemoteFiles, UrlNames};
use super::request::{ContextKind, PlanRequest, Purpose};
use super::resolve::Finder;
use super::scope::{EPOCH, Env, Globals};
use super::stages::SCRATCH;
use crate::op::GitOp;

/// The name of the main context, which no other context can have.
pub(super) const MAIN_CONTEXT: &str = "context";

/// The time of a build, and where it was taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Epoch {
    /// In seconds; `None` when there is none, or when it was switched off with an empty value.
    pub(super) seconds: Option<i64>,
    /// The context whose time it is: its files get their times, too.
    pub(super) context: Option<String>,
}

/// What the value names.
enum Named {
    /// Files of the client, which have no time of their own.
    Here,
    Remote(RemoteFiles),
}

/// Finds the time. Sources whose time is wanted are fetched through `finder`, unless nothing is to be done at all.
///
/// # Errors
/// A value that means nothing, a stage that cannot give a time, a source that cannot be had.
pub(super) async fn resolve(
    request: &PlanRequest,
    froms: &[From],
    globals: &Globals,
    expander: &Expander,
    finder: &Finder<'_>,
) -> Result<Epoch, PlanError> {
    let given = globals.setting(EPOCH).or_else(|| globals.env.get(EPOCH));
    let Some(text) = given.filter(|text| !text.is_empty()) else { return Ok(Epoch::default()) };
    if let Ok(seconds) = text.parse() {
        return Ok(Epoch { seconds: Some(seconds), context: None });
    }
    let (named, context) = if text == MAIN_CONTEXT {
        (main_context(&request.main_context), Some(text.to_owned()))
    } else if let Some(found) = contexts::find(&request.named_contexts, text, &request.build_platform) {
        let found = found.checked()?;
        (named_context(&found.name, &found.context)?, Some(found.name))
    } else if let Some(stage) = froms.iter().rev().find(|from| from.name.as_deref() == Some(text)) {
        (Named::Remote(stage_source(stage, globals, expander).map_err(|fault| fault.at(stage.lines))?), None)
    } else {
        return Err(PlanError::input(format!("invalid {EPOCH}: {text}"))
            .help("give seconds since 1970, `context`, or the name of a context or stage"));
    };
    let seconds = match named {
        Named::Remote(source) if request.purpose == Purpose::Build => finder.newest_time(&source).await?,
        Named::Remote(_) | Named::Here => None,
    };
    Ok(Epoch { seconds, context })
}

fn main_context(kind: &ContextKind) -> Named {
    match kind {
        ContextKind::Local(_) | ContextKind::None => Named::Here,
        ContextKind::Git(git) => Named::Remote(RemoteFiles::of_git(&timed(git), remote::git_name(git))),
        ContextKind::Http(url) => Named::Remote(RemoteFiles::of_url(url, UrlNames::main_context())),
    }
}

fn named_context(name: &str, context: &NamedContext) -> Result<Named, PlanError> {
    Ok(match context {
        NamedContext::Local(_) => Named::Here,
        NamedContext::Git(git) => Named::Remote(RemoteFiles::of_git(&timed(git), remote::named_git_name(name, git))),
        NamedContext::Http(url) => Named::Remote(RemoteFiles::of_url(url, UrlNames::named_context(name, url))),
        _ => {
            return Err(PlanError::input(format!("{EPOCH}={name}: an image has no time that could be taken"))
                .help("name a git or http(s) context, or give the number of seconds since 1970"));
        }
    })
}

/// The same tree, whose files have the time of the commit.
pub(super) fn timed(git: &GitOp) -> GitOp {
    GitOp { commit_times: true, ..git.clone() }
}

/// The one remote source that a stage adds to nothing.
fn stage_source(stage: &From, globals: &Globals, expander: &Expander) -> Result<RemoteFiles, PlanError> {
    if stage.base != SCRATCH {
        return Err(PlanError::input(format!("{EPOCH} stage must use FROM scratch")));
    }
    let mut env = Env::default();
    let mut source = None;
    for instruction in &stage.instructions {
        match &instruction.kind {
            InstructionKind::Arg(arg) => declare(arg, globals, expander, &mut env)?,
            InstructionKind::Add(add) => {
                let added = added_source(add, expander, &env)?.filter(|_| source.is_none());
                source = Some(added.ok_or_else(|| unmet("exactly one remote ADD"))?);
            }
            other => return Err(unmet(&format!("unsupported {} instruction", other.keyword()))),
        }
    }
    source.ok_or_else(|| unmet("exactly one remote ADD"))
}

fn unmet(what: &str) -> PlanError {
    PlanError::input(format!("{EPOCH} stage does not meet source-only requirements: {what}"))
}

fn declare(arg: &ArgInstruction, globals: &Globals, expander: &Expander, env: &mut Env) -> Result<(), PlanError> {
    for definition in &arg.args {
        let value = match (globals.build_args.get(&definition.name), &definition.default) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => Some(expand(expander, default, env)?),
            (None, None) => globals.env.get(&definition.name).map(str::to_owned),
        };
        if let Some(value) = value {
            env.set(&definition.name, &value);
        }
    }
    Ok(())
}

/// What an ADD fetches; `None` when it is not one remote source.
fn added_source(add: &AddInstruction, expander: &Expander, env: &Env) -> Result<Option<RemoteFiles>, PlanError> {
    let [source] = add.sources.as_slice() else { return Ok(None) };
    let source = expand(expander, source, env)?;
    match GitUrl::parse(&source) {
        Some(url) => {
            let git = url.map_err(|error| PlanError::input(error.to_string()))?.to_op(false);
            Ok(Some(RemoteFiles::of_git(&timed(&git), git_url::shown(&git))))
        }
        None if is_http(&source) => Ok(Some(RemoteFiles::of_file(&source))),
        None => Ok(None),
    }
}

fn expand(expander: &Expander, text: &str, env: &Env) -> Result<String, PlanError> {
    let expanded = expander.process_word(text, env)?;
    Ok(expanded.text)
}
