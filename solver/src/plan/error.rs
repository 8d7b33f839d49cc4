//! Why there is no plan.

use std::fmt;

use parser::expand::ExpandError;
use parser::mount::MountError;
use parser::{LineRange, ParseError, SourceSpan};

use super::lint::Warning;
use crate::error::{OpError, Tier};
use crate::graph::Location;

/// Why there is no plan.
///
/// `message` is the first fault, in BuildKit's words where it has any; `others` are faults that do not follow from it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanError {
    /// What is wrong: one sentence without a full stop.
    pub message: String,
    /// The lines at fault, most important first. Empty when the fault is in no line.
    pub locations: Vec<Location>,
    /// The word at fault, if it is one. Boxed, as others are slices, so that results stay small.
    pub culprit: Option<Box<Culprit>>,
    /// Who can mend it.
    pub tier: Tier,
    /// What to do, one suggestion each.
    pub help: Vec<String>,
    /// Further independent faults, in the order in which they were met; theirs are empty.
    pub others: Box<[PlanError]>,
    /// What was noticed before the first fault.
    pub warnings: Box<[Warning]>,
}

/// The word that is at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// Where the parser saw it.
    At(SourceSpan),
    /// As it stands in the lines at fault, unless a variable stands for it.
    Word(String),
}

impl PlanError {
    /// A fault of the Dockerfile or of a flag.
    pub(super) fn input(message: impl Into<String>) -> Self {
        Self::new(Tier::Input, message)
    }

    /// A broken promise between our own parts.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(Tier::Internal, message)
    }

    fn new(tier: Tier, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            locations: Vec::new(),
            culprit: None,
            tier,
            help: Vec::new(),
            others: Box::default(),
            warnings: Box::default(),
        }
    }

    /// Says where, unless that is known already.
    #[must_use]
    pub(super) fn at(mut self, lines: LineRange) -> Self {
        if self.locations.is_empty() {
            self.locations.push(location(lines));
        }
        self
    }

    /// Says which word is at fault, unless it is known where it stands.
    #[must_use]
    pub(super) fn about(mut self, word: impl Into<String>) -> Self {
        if !matches!(self.culprit.as_deref(), Some(Culprit::At(_))) {
            self.culprit = Some(Box::new(Culprit::Word(word.into())));
        }
        self
    }

    /// Adds a suggestion.
    #[must_use]
    pub(super) fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// Joins faults that were met one after the other; `None` when there are none.
    pub(super) fn all(faults: Vec<PlanError>) -> Option<Self> {
        let mut faults = faults.into_iter().flat_map(PlanError::flatten);
        let mut first = faults.next()?;
        first.others = faults.collect();
        Some(first)
    }

    /// Faults of several platforms, all in one row: what is the same for several is there once, with the help of each.
    pub(super) fn each_once(faults: Vec<PlanError>) -> Vec<Self> {
        let mut distinct: Vec<Self> = Vec::new();
        for fault in faults.into_iter().flat_map(PlanError::flatten) {
            let is_same = |known: &&mut Self| known.message == fault.message && known.locations == fault.locations;
            match distinct.iter_mut().find(is_same) {
                Some(known) => {
                    let more: Vec<String> = fault.help.into_iter().filter(|text| !known.help.contains(text)).collect();
                    known.help.extend(more);
                }
                None => distinct.push(fault),
            }
        }
        distinct
    }

    fn flatten(mut self) -> Vec<PlanError> {
        let others = std::mem::take(&mut self.others);
        std::iter::once(self).chain(others.into_vec()).collect()
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PlanError {}

impl From<ParseError> for PlanError {
    fn from(error: ParseError) -> Self {
        Self {
            locations: error.lines.into_iter().map(location).collect(),
            culprit: error.span.map(Culprit::At).map(Box::new),
            help: error.help,
            others: error.others.into_iter().map(Self::from).collect(),
            ..Self::input(error.message)
        }
    }
}

impl From<OpError> for PlanError {
    fn from(error: OpError) -> Self {
        let culprit = error.word.map(Culprit::Word).map(Box::new);
        Self { help: error.help, culprit, ..Self::new(error.tier, error.message) }
    }
}

impl From<ExpandError> for PlanError {
    fn from(error: ExpandError) -> Self {
        let fault = Self::input(error.to_string()).about(&error.word);
        let is_like_json = error.word.starts_with("['");
        let of_json = || "the JSON form takes double quotes: `[\"one\", \"two\"]`".to_owned();
        let help = if is_like_json { Some(of_json()) } else { error.fault.help() };
        Self { help: help.into_iter().collect(), ..fault }
    }
}

impl From<MountError> for PlanError {
    fn from(error: MountError) -> Self {
        let culprit = error.culprit().map(|word| Box::new(Culprit::Word(word.to_owned())));
        Self { help: error.help().into_iter().collect(), culprit, ..Self::input(error.to_string()) }
    }
}

/// The same lines in the vocabulary of the graph.
pub(super) fn location(lines: LineRange) -> Location {
    Location { start_line: lines.start, end_line: lines.end }
}
