//! The answers as `docker buildx build --call …,format=json` writes them (`spec/dockerfile.md` §7.3–7.6).
//!
//! Fields are in the reference's order, and what has nothing in it is left out where the reference leaves it out. Sources are
//! in base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use solver::Location;
use solver::plan::{Asked, CacheMount, Outline, OutlineArg, PlanError, TargetInfo, Warning};

use super::Findings;
use crate::failure::Source;
use crate::report;

/// Version of all sub-requests.
pub(super) const VERSION: &str = "1.0.0";

/// The sub-requests, without the prefix `frontend.`, and what they do.
pub(super) const SUBREQUESTS: [(&str, &str); 3] = [
    ("outline", "List all parameters current build target supports"),
    ("targets", "List all targets current build supports"),
    ("subrequests.describe", "List available subrequest types"),
];

/// Of `check`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CheckDoc<'a> {
    /// In the order in which they were found; `null` without any.
    warnings: Option<Vec<WarningDoc<'a>>>,
    sources: [SourceDoc<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    build_error: Option<FaultDoc<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WarningDoc<'a> {
    rule_name: &'a str,
    description: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'a str,
    detail: &'a str,
    location: LocationDoc,
}

#[derive(Serialize)]
struct SourceDoc<'a> {
    filename: &'a str,
    data: String,
    language: &'static str,
}

#[derive(Serialize)]
struct FaultDoc<'a> {
    message: &'a str,
    location: LocationDoc,
}

/// Of `outline`.
#[derive(Serialize)]
pub(super) struct OutlineDoc<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<ArgDoc<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<AskedDoc<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<AskedDoc<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cache: Vec<CacheDoc<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct ArgDoc<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    location: LocationDoc,
}

#[derive(Serialize)]
struct AskedDoc<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    required: bool,
    location: LocationDoc,
}

/// The reference has a place for these and leaves it empty.
#[derive(Serialize)]
struct CacheDoc<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    location: LocationDoc,
}

/// Of `targets`.
#[derive(Serialize)]
pub(super) struct TargetsDoc<'a> {
    targets: Vec<TargetDoc<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct TargetDoc<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    base: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<&'a str>,
    location: LocationDoc,
}

/// Of `subrequests.describe`: one of a list.
#[derive(Serialize)]
pub(super) struct SubrequestDoc {
    name: String,
    version: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    description: &'static str,
    opts: Option<Vec<NamedDoc>>,
    inputs: Option<()>,
    metadata: [NamedDoc; 2],
    refs: Option<()>,
}

#[derive(Serialize)]
struct NamedDoc {
    name: &'static str,
    description: &'static str,
}

#[derive(Serialize)]
struct LocationDoc {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<RangeDoc>,
}

#[derive(Serialize)]
struct RangeDoc {
    start: LineDoc,
    end: LineDoc,
}

#[derive(Serialize)]
struct LineDoc {
    line: u32,
}

impl<'a> CheckDoc<'a> {
    pub(super) fn new(findings: &'a Findings, source: &'a Source) -> Self {
        let warnings: Vec<WarningDoc<'_>> = findings.warnings.iter().map(WarningDoc::new).collect();
        let data = STANDARD.encode(&source.text);
        Self {
            warnings: (!warnings.is_empty()).then_some(warnings),
            sources: [SourceDoc { filename: &source.name, data, language: "Dockerfile" }],
            build_error: findings.fault.as_ref().map(FaultDoc::new),
        }
    }
}

impl<'a> WarningDoc<'a> {
    fn new(warning: &'a Warning) -> Self {
        Self {
            rule_name: warning.rule,
            description: warning.description,
            url: warning.url,
            detail: &warning.message,
            location: LocationDoc::line_by_line(warning.location.as_ref()),
        }
    }
}

impl<'a> FaultDoc<'a> {
    fn new(fault: &'a PlanError) -> Self {
        let merged = report::merged(&fault.locations);
        let ranges = merged.into_iter().map(|at| RangeDoc::new(at.start_line, at.end_line));
        Self { message: &fault.message, location: LocationDoc { ranges: ranges.collect() } }
    }
}

impl<'a> OutlineDoc<'a> {
    pub(super) fn new(outline: &'a Outline, source: &Source) -> Self {
        Self {
            name: outline.name.as_deref(),
            description: outline.description.as_deref(),
            args: outline.args.iter().map(ArgDoc::new).collect(),
            secrets: outline.secrets.iter().map(AskedDoc::new).collect(),
            ssh: outline.agents.iter().map(AskedDoc::new).collect(),
            cache: outline.caches.iter().map(CacheDoc::new).collect(),
            sources: [STANDARD.encode(&source.text)],
        }
    }
}

impl<'a> ArgDoc<'a> {
    fn new(arg: &'a OutlineArg) -> Self {
        Self {
            name: &arg.name,
            description: arg.description.as_deref(),
            value: arg.value.as_deref(),
            location: LocationDoc::line_by_line(Some(&arg.location)),
        }
    }
}

impl<'a> AskedDoc<'a> {
    fn new(asked: &'a Asked) -> Self {
        let location = LocationDoc::line_by_line(Some(&asked.location));
        Self { name: &asked.id, required: asked.required, location }
    }
}

impl<'a> CacheDoc<'a> {
    fn new(cache: &'a CacheMount) -> Self {
        Self { id: &cache.id, location: LocationDoc::line_by_line(Some(&cache.location)) }
    }
}

impl<'a> TargetsDoc<'a> {
    pub(super) fn new(targets: &'a [TargetInfo], source: &Source) -> Self {
        let targets = targets.iter().map(|target| TargetDoc {
            name: target.name.as_deref(),
            default: target.is_default,
            description: target.description.as_deref(),
            base: &target.base,
            platform: target.platform.as_deref(),
            location: LocationDoc::line_by_line(Some(&target.location)),
        });
        Self { targets: targets.collect(), sources: [STANDARD.encode(&source.text)] }
    }
}

/// Of `subrequests.describe`.
pub(super) fn describe() -> [SubrequestDoc; 3] {
    SUBREQUESTS.map(|(name, description)| SubrequestDoc {
        name: format!("frontend.{name}"),
        version: VERSION,
        kind: "rpc",
        description,
        opts: match name {
            "outline" => Some(vec![NamedDoc { name: "target", description: "Target build stage" }]),
            "targets" => Some(Vec::new()),
            _ => None,
        },
        inputs: None,
        metadata: ["result.json", "result.txt"].map(|name| NamedDoc { name, description: "" }),
        refs: None,
    })
}

impl LocationDoc {
    /// One range a line.
    fn line_by_line(location: Option<&Location>) -> Self {
        let lines = location.into_iter().flat_map(|location| location.start_line..=location.end_line);
        Self { ranges: lines.map(|line| RangeDoc::new(line, line)).collect() }
    }
}

impl RangeDoc {
    fn new(start: u32, end: u32) -> Self {
        Self { start: LineDoc { line: start }, end: LineDoc { line: end } }
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}
