//! Build checks: rules as a table, findings, and which of them the user wants to see. Spec: §7.1, §7.2.
//!
//! Rules that syntax alone decides are applied by the parser; the others are raised by whoever evaluates, with the
//! constructors of [`Warning`].

mod checks;
mod config;
mod rules;

pub use checks::looks_like_secret;
pub(crate) use checks::{apply_to_file, check_arg_comments, check_from, check_instruction};
pub use config::{CheckConfig, CheckConfigError};
pub use rules::{RULES, Rule, RuleInfo};

use crate::error::LineRange;

/// A finding of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Which rule.
    pub rule: Rule,
    /// What it found (the "detail" of reports).
    pub message: String,
    /// The lines it marks.
    pub lines: LineRange,
    /// What the comments of that instruction say about rules.
    pub local: CheckConfig,
}
