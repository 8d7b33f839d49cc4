//! `rbuild --check` and `rbuild --call=…`: answers questions about a Dockerfile; nothing is built.
//!
//! Metadata of base images is asked for, as for a build; layers are not. Every answer is data, on standard output, in the
//! shapes of `docker buildx build --call` ([`json`], [`text`]) or as SARIF ([`sarif`]). Spec: `spec/dockerfile.md` §7.3–7.6.

mod json;
mod sarif;
mod text;

use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use solver::Tier;
use solver::plan::{self, Outline, PlanError, Purpose, TargetInfo, Warning};

use self::json::{CheckDoc, OutlineDoc, TargetsDoc};
use super::build::{self, Build, Prepared};
use crate::args::Global;
use crate::call::{Call, Format, Method};
use crate::failure::{Failure, Report, Source};
use crate::report;
use crate::request::{BuildRequest, ContextArg, DockerfileArg};
use crate::ui;

/// Exit code of a check that has found something.
const HAS_FINDINGS: u8 = 1;

/// What a check found.
struct Findings {
    warnings: Vec<Warning>,
    /// Why the Dockerfile cannot be built.
    fault: Option<PlanError>,
}

/// The answer to a call.
enum Answer {
    Findings(Findings),
    Outline(Outline),
    Targets(Vec<TargetInfo>),
}

/// Answers `call`.
pub(crate) fn run(request: &BuildRequest, call: Call, global: &Global) -> Result<(), Failure> {
    if call.method == Method::Describe {
        return print(call.format, &text::describe(), &json::describe());
    }
    let store = super::open_store(global)?;
    let work = async |build: &Build<'_>, source: &mut Option<Source>| answer(build, call.method, source).await;
    let (answer, source) = build::session(request, &store, global, work)?;
    let source = source.unwrap_or_else(|| Source { name: "Dockerfile".to_owned(), text: String::new() });
    match answer {
        Answer::Findings(findings) => report_findings(findings, request, &source, call),
        Answer::Outline(outline) => print(call.format, &text::outline(&outline), &OutlineDoc::new(&outline, &source)),
        Answer::Targets(targets) => print(call.format, &text::targets(&targets), &TargetsDoc::new(&targets, &source)),
    }
}

async fn answer(build: &Build<'_>, method: Method, source: &mut Option<Source>) -> Result<Answer, Failure> {
    let Prepared { plan_request: mut request, engine, context: _context } = build.prepare(Vec::new(), source).await?;
    if method == Method::Targets {
        return plan::targets(&request).map(Answer::Targets).map_err(build::plan_failure);
    }
    if method == Method::Outline {
        request.purpose = Purpose::Outline;
        let outline = plan::outline(&request, &engine, &build.progress).await;
        return outline.map(Answer::Outline).map_err(build::plan_failure);
    }
    request.purpose = Purpose::Check;
    let (warnings, fault) = match plan::plan(&request, &engine, &build.progress).await {
        Ok(plan) => (plan.warnings, None),
        Err(fault) if matches!(fault.tier, Tier::Internal | Tier::Cancelled) => return Err(build::plan_failure(fault)),
        Err(mut fault) => (std::mem::take(&mut fault.warnings).into_vec(), Some(fault)),
    };
    Ok(Answer::Findings(Findings { warnings, fault }))
}

/// Prints findings; warnings and a fault make the program fail.
fn report_findings(findings: Findings, request: &BuildRequest, source: &Source, call: Call) -> Result<(), Failure> {
    match call.format {
        Format::Sarif => print_json(&sarif::log(&findings, &path_of(request, source)))?,
        format => print(format, &text::findings(&findings, source), &CheckDoc::new(&findings, source))?,
    }
    let Some(fault) = findings.fault else {
        let is_clean = findings.warnings.is_empty() || call.ignore_status;
        return if is_clean { Ok(()) } else { Err(Failure::Exit(HAS_FINDINGS)) };
    };
    let failure = build::plan_failure(fault);
    let code = failure.code();
    if let Failure::Failed(report) = failure {
        report::fault_of_check(&Report { source: Some(source.clone()), ..*report });
    }
    // Everything has been said.
    Err(Failure::Exit(code))
}

/// Where the Dockerfile lies, seen from the current directory.
fn path_of(request: &BuildRequest, source: &Source) -> PathBuf {
    let path = match (&request.dockerfile, &request.context) {
        (DockerfileArg::File(path), _) => path.into(),
        (DockerfileArg::Default, ContextArg::Dir(dir)) => dir.join(&source.name),
        _ => PathBuf::from(&source.name),
    };
    Path::new(&path).components().filter(|part| *part != Component::CurDir).collect()
}

/// Prints an answer in one of its two shapes.
fn print(format: Format, text: &str, document: &impl Serialize) -> Result<(), Failure> {
    match format {
        Format::Text => Ok(ui::stdout(text)?),
        Format::Json | Format::Sarif => print_json(document),
    }
}

fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    Ok(ui::stdout(&(serde_json::to_string_pretty(document).expect("keys are strings") + "\n"))?)
}
