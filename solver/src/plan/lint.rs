//! Findings of build checks: which are wanted, and in what form they leave the plan. Spec: `spec/dockerfile.md` §7.

use std::collections::HashSet;

use parser::lint::{self, CheckConfig, Rule};

use super::error::{PlanError, location};
use crate::graph::Location;

/// Something in the Dockerfile that works but should be changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Warning {
    /// Name of the rule, for instance `UndefinedVar`; empty when there is no rule.
    pub rule: &'static str,
    /// What the rule is about, a fixed text.
    pub description: &'static str,
    /// Page of the rule; empty when there is none.
    pub url: &'static str,
    /// What was found.
    pub message: String,
    /// Lines of the instruction.
    pub location: Option<Location>,
}

/// The findings of one plan, each once, in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    config: CheckConfig,
    wanted: Vec<Warning>,
    known: HashSet<Warning>,
    closed: bool,
    /// Only these are noted; everything when there are none.
    only: &'static [Rule],
}

/// What is not told of a platform by what is found for another.
const OF_ONE_PLATFORM: &[Rule] = &[Rule::InvalidBaseImagePlatform];

impl Findings {
    /// Says which findings are wanted.
    pub(super) fn configure(&mut self, config: CheckConfig) {
        self.config = config;
    }

    /// Notes nothing, ever.
    pub(super) fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }

    /// For the other platforms of a plan: what is found for the first is not found again.
    pub(super) fn of_another_platform(&self) -> Self {
        Self { config: self.config.clone(), only: OF_ONE_PLATFORM, ..Self::default() }
    }

    /// Notes everything that `others` has.
    pub(super) fn add(&mut self, others: Self) {
        for warning in others.wanted {
            self.note(warning);
        }
    }

    /// Notes a finding if its rule is wanted where it was made.
    pub(super) fn raise(&mut self, found: lint::Warning) {
        let is_meant = self.only.is_empty() || self.only.contains(&found.rule);
        if !is_meant || !self.config.reports(&found) {
            return;
        }
        let info = found.rule.info();
        self.note(Warning {
            rule: info.id,
            description: info.description,
            url: info.url,
            message: found.message,
            location: Some(location(found.lines)),
        });
    }

    /// Notes something that no rule can switch off.
    pub(super) fn note(&mut self, warning: Warning) {
        if !self.closed && self.known.insert(warning.clone()) {
            self.wanted.push(warning);
        }
    }

    /// From here on nothing is noted: a fault was met, and what follows may be its consequence.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// With `error=true`, the fault that the findings are.
    ///
    /// # Errors
    /// Names every rule that found something, once.
    pub(super) fn check(&self) -> Result<(), PlanError> {
        let mut rules: Vec<&str> = Vec::new();
        for rule in self.wanted.iter().map(|warning| warning.rule).filter(|rule| !rule.is_empty()) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        if !self.config.error || rules.is_empty() {
            return Ok(());
        }
        Err(PlanError::input(format!("lint violation found for rules: {}", rules.join(", ")))
            .help("mend what the warnings say, or drop `error=true` from the `check` directive"))
    }

    pub(super) fn into_warnings(self) -> Vec<Warning> {
        self.wanted
    }
}
