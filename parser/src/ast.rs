//! The tree of a Dockerfile: directives, global ARGs, stages, instructions.
//!
//! Nothing in it is expanded: texts are as written, without the flags, quotes and continuations that the grammar
//! itself removes. Read [`Dockerfile`] first, then [`crate::instruction::InstructionKind`].

use crate::directive::Directives;
use crate::error::LineRange;
use crate::instruction::{ArgInstruction, Instruction};
use crate::lint::{CheckConfig, Warning};

/// A parsed Dockerfile.
#[derive(Clone, Debug, PartialEq)]
pub struct Dockerfile {
    /// `# syntax=`, `# escape=`, `# check=`.
    pub directives: Directives,
    /// ARGs before the first FROM, in order.
    pub global_args: Vec<Spanned<ArgInstruction>>,
    /// In order; at least one.
    pub stages: Vec<Stage>,
    /// Findings that syntax alone decides and that are reported for every stage, in BuildKit's order.
    ///
    /// They are candidates: [`CheckConfig::reports`] says which of them are wanted. Findings that only count in stages
    /// that are built are at [`Instruction::warnings`].
    pub warnings: Vec<Warning>,
}

/// Something with its place and its comments.
#[derive(Clone, Debug, PartialEq)]
pub struct Spanned<T> {
    /// The thing.
    pub value: T,
    /// Where it is.
    pub lines: LineRange,
    /// Comment lines attached to it, without `#` and surrounding blanks.
    pub comments: Vec<String>,
    /// What the first `check=` among its comments says.
    pub checks: CheckConfig,
}

/// One `FROM` and all that follows up to the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Lower-cased and valid.
    pub name: Option<String>,
    /// The name with its letter case.
    pub name_as_written: Option<String>,
    /// The image or stage it is based on, unexpanded.
    pub base: String,
    /// Value of `--platform`, unexpanded; `None` when absent or empty.
    pub platform: Option<String>,
    /// Lines of the FROM instruction.
    pub location: LineRange,
    /// Comment lines attached to FROM.
    pub comments: Vec<String>,
    /// What the first `check=` among its comments says.
    pub checks: CheckConfig,
    /// The logical line of the FROM instruction, trimmed.
    pub from_text: String,
    /// The keyword `FROM` with its letter case.
    pub keyword_as_written: String,
    /// In order.
    pub instructions: Vec<Instruction>,
}

/// The description of a stage or an ARG: the rest of the first comment line that begins with `name` and a blank.
///
/// Spec: §7.7.
pub fn description<'a>(comments: &'a [String], name: &str) -> Option<&'a str> {
    if name.is_empty() {
        return None;
    }
    comments.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::trim)
}
