//! FROM: image and platform with their variables replaced, and the checks that go with it.
//!
//! Done for every stage of a file, needed or not. Spec: `spec/dockerfile.md` §2.1, §7.1.

use oci::{ImageRef, Platform};
use parser::expand::{Expanded, Expander};
use parser::instruction::Instruction;
use parser::lint::{self, CheckConfig};
use parser::{Dockerfile, LineRange, Stage, suggest};

use super::error::PlanError;
use super::lint::Findings;
use super::request::PlanRequest;
use super::scope::Globals;

/// A stage whose FROM has been evaluated.
#[derive(Debug)]
pub(super) struct From {
    /// Lower-cased.
    pub(super) name: Option<String>,
    /// Image or stage, expanded.
    pub(super) base: String,
    /// Variables in the base that have no value.
    pub(super) unset: Vec<String>,
    /// Variables in base and platform that have one.
    pub(super) used: Vec<String>,
    /// `--platform`.
    pub(super) platform: Option<Platform>,
    pub(super) lines: LineRange,
    pub(super) checks: CheckConfig,
    pub(super) instructions: Vec<Instruction>,
}

/// Evaluates all FROMs. `defaults` is the global scope without any build argument, if it can be evaluated.
///
/// # Errors
/// Blank or malformed texts, each at its line.
pub(super) fn evaluate(
    file: &Dockerfile,
    request: &PlanRequest,
    globals: &Globals,
    defaults: Option<&Globals>,
    findings: &mut Findings,
) -> Result<Vec<From>, PlanError> {
    let context = Context { expander: Expander::new(file.directives.escape), globals, build: &request.build_platform };
    if let Some(defaults) = defaults {
        context.check_defaults(file, defaults, findings);
    }
    let mut froms = Vec::new();
    let mut faults = Vec::new();
    for stage in &file.stages {
        match context.from(stage, findings) {
            Ok(from) => froms.push(from),
            Err(fault) => {
                findings.close();
                faults.push(fault.at(stage.location));
            }
        }
    }
    PlanError::all(faults).map_or(Ok(froms), Err)
}

/// Says how variables without a value get one.
pub(super) fn give_a_value(fault: PlanError, unset: &[String]) -> PlanError {
    unset.iter().fold(fault, |fault, name| {
        fault.help(format!(
            "`{name}` has no value: write `ARG {name}=VALUE` before the first FROM, or pass --build-arg {name}=VALUE"
        ))
    })
}

struct Context<'a> {
    expander: Expander,
    globals: &'a Globals,
    build: &'a Platform,
}

impl Context<'_> {
    fn from(&self, stage: &Stage, findings: &mut Findings) -> Result<From, PlanError> {
        let base = self.expand(&stage.base, stage, findings)?;
        if base.text.is_empty() {
            let message = format!("base name ({}) should not be blank", stage.base);
            return Err(give_a_value(PlanError::input(message).about(&stage.base), &base.unset));
        }
        let mut used = base.used;
        let platform =
            stage.platform.as_deref().map(|text| self.platform(text, stage, &mut used, findings)).transpose()?;
        Ok(From {
            name: stage.name.clone(),
            base: base.text,
            unset: base.unset,
            used,
            platform,
            lines: stage.location,
            checks: stage.checks.clone(),
            instructions: stage.instructions.clone(),
        })
    }

    /// Expands a text of FROM with the global scope; names that nobody declares are findings.
    fn expand(&self, text: &str, stage: &Stage, findings: &mut Findings) -> Result<Expanded, PlanError> {
        let expanded = self.expander.process_word(text, &self.globals.env)?;
        for name in &expanded.unset {
            if !self.globals.known_names().any(|known| known == name) {
                let nearest = suggest::nearest(name, self.globals.known_names());
                let found = lint::Warning::undefined_arg_in_from(name, nearest, stage.location, &stage.checks);
                findings.raise(found);
            }
        }
        Ok(expanded)
    }

    fn platform(
        &self,
        text: &str,
        stage: &Stage,
        used: &mut Vec<String>,
        findings: &mut Findings,
    ) -> Result<Platform, PlanError> {
        let expanded = self.expand(text, stage, findings).map_err(|fault| {
            let message = format!("failed to process arguments for platform {text}: {}", fault.message);
            PlanError { message, ..fault }
        })?;
        used.extend(expanded.used);
        let suggestion = expanded.unset.iter().find_map(|name| suggest::nearest(name, self.globals.known_names()));
        let suggested = |message: String| match suggestion {
            Some(name) => PlanError::input(format!("{message} (did you mean {name}?)")).about(text),
            None => PlanError::input(message).about(text),
        };
        if expanded.text.is_empty() {
            let fault = suggested(format!("empty platform value from expression {text}"));
            // Of a name that is nearly right, the right one is the better advice.
            return Err(if suggestion.is_some() { fault } else { give_a_value(fault, &expanded.unset) });
        }
        Platform::parse(&expanded.text, self.build).map_err(|error| {
            suggested(format!("failed to parse platform {text}: {error}"))
                .help("a platform is OS/ARCHITECTURE[/VARIANT], such as `linux/amd64` or `linux/arm64`")
        })
    }

    /// Finds images that are only named when build arguments are given.
    fn check_defaults(&self, file: &Dockerfile, defaults: &Globals, findings: &mut Findings) {
        for stage in &file.stages {
            let Ok(base) = self.expander.process_word(&stage.base, &defaults.env) else { return };
            if ImageRef::parse_normalized(&base.text).is_err() {
                findings.raise(lint::Warning::invalid_default_arg_in_from(&stage.base, stage.location, &stage.checks));
            }
        }
    }
}
