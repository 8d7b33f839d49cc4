//! Go templates, as far as people write them after `--format`: an engine of our own over JSON values.
//!
//! Read [`Template`] first: parsed once ([`parser`], on the tokens of [`lexer`]), then executed on any number of values
//! ([`eval`]); [`functions`] has what can be called. Supported are fields, variables, pipelines, parentheses, literals,
//! `if`, `range`, `with`, `break`, `continue`, comments, trimming, Go's functions and docker's. `define`, `template` and
//! `block` are errors that say so. Knows nothing of images.
//!
//! Spec: Go's `text/template`; `docker … --format`.

mod eval;
mod functions;
mod lexer;
mod parser;
mod printf;
#[cfg(test)]
mod tests;

use serde_json::Value;

pub(crate) use eval::Zeros;

/// A template that is well formed.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

/// Why a template cannot be parsed or executed: one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateError(pub(crate) String);

impl TemplateError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl std::fmt::Display for TemplateError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// It is malformed, or uses what this engine does not know; the message names it.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        parser::parse(&lexer::pieces(text)?).map(|nodes| Self { nodes })
    }

    /// Executes the template on `data`. Fields that `data` lacks are looked for in `zeros`.
    ///
    /// # Errors
    /// A field or function that does not exist, arguments of a wrong kind.
    pub(crate) fn render(&self, data: &Value, zeros: &Zeros) -> Result<String, TemplateError> {
        eval::render(&self.nodes, data, zeros)
    }
}

/// A part of a template.
#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Print(Pipeline),
    If { branches: Vec<(Pipeline, Vec<Node>)>, otherwise: Vec<Node> },
    Range { over: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
    With { branches: Vec<(Pipeline, Vec<Node>)>, otherwise: Vec<Node> },
    Break,
    Continue,
}

/// Commands, each of which gets the result of the one before as its last argument.
#[derive(Clone, Debug)]
struct Pipeline {
    variables: Vec<String>,
    /// `=` instead of `:=`.
    assigns: bool,
    commands: Vec<Vec<Operand>>,
}

/// A word of a command. A chain is the fields that follow it directly.
#[derive(Clone, Debug)]
enum Operand {
    /// `.`, `.A.B`.
    Dot(Vec<String>),
    /// `$x`, `$x.A`; the name is without the dollar, empty for `$`.
    Variable(String, Vec<String>),
    Function(String),
    Literal(Value),
    /// `(…)`, `(…).A`.
    Group(Box<Pipeline>, Vec<String>),
}
