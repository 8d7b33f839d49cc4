//! `SOURCE_DATE_EPOCH`: the time that makes builds repeatable. Spec: `spec/dockerfile.md` §3.8.

use parser::instruction::InstructionKind;

use super::contexts::{self, NamedContext};
use super::error::PlanError;
use super::from::From;
use super::git_url::{GitUrl, is_http};
use super::request::{ContextKind, PlanRequest};
use super::scope::{EPOCH, Globals};
use super::stages::SCRATCH;

/// The time in seconds; `None` when there is none, or when it was switched off with an empty value.
///
/// # Errors
/// A value that means nothing, or that only a remote source could tell.
pub(super) fn resolve(request: &PlanRequest, froms: &[From], globals: &Globals) -> Result<Option<i64>, PlanError> {
    let given = globals.setting(EPOCH).or_else(|| globals.env.get(EPOCH));
    let Some(text) = given.filter(|text| !text.is_empty()) else { return Ok(None) };
    if let Ok(seconds) = text.parse() {
        return Ok(Some(seconds));
    }
    if text == "context" {
        return match request.main_context {
            // Directories of the client have no time of their own.
            ContextKind::Local(_) | ContextKind::None => Ok(None),
            ContextKind::Git(_) | ContextKind::Http(_) => Err(of_remote(text)),
        };
    }
    if let Some(found) = contexts::find(&request.named_contexts, text, &request.build_platform) {
        return match found.checked()?.context {
            NamedContext::Local(_) => Ok(None),
            _ => Err(of_remote(text)),
        };
    }
    match froms.iter().rev().find(|from| from.name.as_deref() == Some(text)) {
        Some(stage) => Err(stage_fault(stage).unwrap_or_else(|| of_remote(text)).at(stage.lines)),
        None => Err(PlanError::input(format!("invalid {EPOCH}: {text}"))
            .help("give seconds since 1970, `context`, or the name of a context or stage")),
    }
}

fn of_remote(text: &str) -> PlanError {
    PlanError::input(format!("{EPOCH}={text}: taking the time from a remote source is not supported yet"))
        .help("give the number of seconds since 1970")
}

/// Why a stage cannot give a time, if so: it must add exactly one remote source to nothing.
fn stage_fault(stage: &From) -> Option<PlanError> {
    if stage.base != SCRATCH {
        return Some(PlanError::input(format!("{EPOCH} stage must use FROM scratch")));
    }
    let unmet =
        |what: &str| Some(PlanError::input(format!("{EPOCH} stage does not meet source-only requirements: {what}")));
    let mut n_remote = 0;
    for instruction in &stage.instructions {
        match &instruction.kind {
            InstructionKind::Arg(_) => {}
            // Variables are not known here; what begins with one may well be a URL.
            InstructionKind::Add(add) => match add.sources.as_slice() {
                [source] if is_http(source) || GitUrl::parse(source).is_some() || source.starts_with('$') => {
                    n_remote += 1;
                }
                _ => return unmet("exactly one remote ADD"),
            },
            other => return unmet(&format!("unsupported {} instruction", other.keyword())),
        }
    }
    if n_remote == 1 { None } else { unmet("exactly one remote ADD") }
}
