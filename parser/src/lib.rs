//! Dockerfiles as text: syntax, word expansion, `.dockerignore` patterns, build checks.
//!
//! A pure core. It reads no files and knows no images, no platforms and no stages of a build; whoever lowers the tree
//! does. Bad input never panics and never loops. Read [`ast::Dockerfile`] first; [`parse`] makes it.
//!
//! Parsing takes three steps: [`lexer`] turns bytes into logical lines with their heredocs, the crate's `node` splits
//! a line into keyword, flags and arguments, and [`instruction`] checks those. Expansion ([`expand`]), mounts
//! ([`mount`]), ports ([`port`]) and signals ([`signal`]) come later, when values are known.
#![forbid(unsafe_code)]

pub mod ast;
mod csv;
pub mod directive;
pub mod duration;
pub mod error;
mod exec_form;
pub mod expand;
mod flags;
pub mod go;
pub mod instruction;
pub mod lexer;
pub mod lint;
pub mod mount;
mod node;
pub mod pattern;
pub mod port;
pub mod signal;
pub mod suggest;
mod words;

pub use ast::{Dockerfile, Spanned, Stage, description};
pub use directive::{Directives, SyntaxDirective};
pub use error::{LineRange, ParseError, SourceSpan};
pub use instruction::{Command, Instruction, InstructionKind};
pub use lint::{CheckConfig, Rule, Warning};

use instruction::{parse_instruction, parse_stage};
use lexer::LogicalLine;
use node::Fault;

/// What a file that begins with nothing, or in the middle, lacks.
const FIRST_STEP: &str = "begin with the image to build on: `FROM debian`, or `FROM scratch` for an empty one";

/// Parses a Dockerfile.
///
/// Linear in the size of the text. See [`directive::detect`] for files in other languages.
///
/// # Errors
///
/// The fault that BuildKit would report, with all further ones that do not follow from it in [`ParseError::others`].
///
/// Spec: §1, §2.
pub fn parse(text: &[u8]) -> Result<Dockerfile, ParseError> {
    if text.is_empty() {
        return Err(ParseError::new("the Dockerfile cannot be empty").help(FIRST_STEP));
    }
    let lexed = lexer::lex(text).map_err(gather)?;
    if lexed.lines.is_empty() {
        return Err(ParseError::new("file with no instructions")
            .at(LineRange::line(lexed.n_physical_lines))
            .help(FIRST_STEP));
    }
    let (syntax, check) = directive::detect(text);
    let mut builder = Builder::new(Directives { syntax, escape: lexed.escape, check }, lexed.faults);
    lexed.lines.iter().for_each(|line| builder.add(line));
    builder.finish()
}

/// Parses the text of a trigger that was stored by ONBUILD. Line numbers count within the trigger.
///
/// # Errors
///
/// The trigger is not exactly one instruction, or that instruction has a fault. Messages have no prefix here, and
/// errors no lines: they belong to the FROM that brought the trigger.
///
/// Spec: §1.10, §4.5.
pub fn parse_onbuild_trigger(text: &str) -> Result<Instruction, ParseError> {
    let without_lines = |error: ParseError| ParseError { lines: Vec::new(), span: None, ..error };
    let lexed = lexer::lex(text.as_bytes()).map_err(|faults| without_lines(gather(faults)))?;
    let line = match lexed.lines.as_slice() {
        [line] => line,
        [] => return Err(ParseError::new("file with no instructions").help(FIRST_STEP)),
        _ => return Err(ParseError::new("onbuild trigger should be a single expression")),
    };
    if !lexed.faults.is_empty() {
        return Err(without_lines(gather(lexed.faults)));
    }
    if line.node.keyword.eq_ignore_ascii_case("from") {
        return Err(ParseError::new("FROM isn't allowed as an ONBUILD trigger"));
    }
    parse_instruction(line, lexed.escape).map_err(|fault| without_lines(fault.into_error(line.lines)))
}

/// The first fault is the one that BuildKit reports; the others stand beside it in source order.
fn gather(mut faults: Vec<ParseError>) -> ParseError {
    let mut others = faults.split_off(1.min(faults.len()));
    others.sort_by_key(|error| error.lines.first().copied());
    match faults.pop() {
        Some(first) => ParseError { others, ..first },
        None => ParseError::new("the Dockerfile cannot be parsed"),
    }
}

/// Puts checked instructions into stages and collects faults.
struct Builder {
    file: Dockerfile,
    faults: Vec<ParseError>,
    /// A FROM has come, though perhaps a faulty one, or its absence has been reported.
    has_stage: bool,
    empty_continuations: Vec<Warning>,
}

impl Builder {
    fn new(directives: Directives, faults: Vec<ParseError>) -> Self {
        let file = Dockerfile { directives, global_args: Vec::new(), stages: Vec::new(), warnings: Vec::new() };
        Self { file, faults, has_stage: false, empty_continuations: Vec::new() }
    }

    fn add(&mut self, line: &LogicalLine) {
        if let Some(last) = line.empty_continuation {
            let local = CheckConfig::from_comments(&line.comments);
            self.empty_continuations.push(Warning::no_empty_continuation(LineRange::line(last), &local));
        }
        let is_from = line.node.keyword.eq_ignore_ascii_case("from");
        let fault = if line.is_faulty {
            None
        } else if is_from {
            self.add_stage(line).err()
        } else {
            self.add_instruction(line).err()
        };
        self.has_stage |= is_from;
        if let Some(fault) = fault {
            let span = fault.word.as_deref().and_then(|word| line.locate(word));
            let prefix = format!("dockerfile parse error on line {}: ", line.lines.start);
            let message = prefix + &fault.message;
            self.faults.push(Fault { message, ..fault }.into_error(line.lines).spanning(span));
        }
    }

    fn add_stage(&mut self, line: &LogicalLine) -> Result<(), Fault> {
        let stage = parse_stage(line)?;
        lint::check_from(line, &stage, &mut self.file.warnings);
        self.file.stages.push(stage);
        Ok(())
    }

    fn add_instruction(&mut self, line: &LogicalLine) -> Result<(), Fault> {
        let instruction = parse_instruction(line, self.file.directives.escape)?;
        let Instruction { lines, comments, checks, .. } = &instruction;
        match &instruction.kind {
            InstructionKind::Arg(arg) => {
                lint::check_arg_comments(arg, comments, *lines, checks, &mut self.file.warnings);
            }
            InstructionKind::Maintainer(_) => {
                self.file.warnings.push(Warning::maintainer_deprecated(*lines, checks));
            }
            _ => {}
        }
        if let Some(stage) = self.file.stages.last_mut() {
            stage.instructions.push(instruction);
        } else if let (false, InstructionKind::Arg(value)) = (self.has_stage, instruction.kind) {
            let Instruction { lines, comments, checks, .. } = instruction;
            self.file.global_args.push(Spanned { value, lines, comments, checks });
        } else if !self.has_stage {
            self.has_stage = true;
            self.faults.push(ParseError::new("no build stage in current context").at(line.lines).help(FIRST_STEP));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Dockerfile, ParseError> {
        if !self.faults.is_empty() {
            return Err(gather(self.faults));
        }
        if self.file.stages.is_empty() {
            return Err(ParseError::new("dockerfile contains no stages to build"));
        }
        self.empty_continuations.append(&mut self.file.warnings);
        self.file.warnings = self.empty_continuations;
        lint::apply_to_file(&mut self.file);
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests;
