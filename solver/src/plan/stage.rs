//! Evaluates one stage, instruction by instruction. The instructions themselves are in the files named after them.
//!
//! Within an instruction, words are expanded with the state before it; then it takes effect.

use std::sync::Arc;

use parser::LineRange;
use parser::instruction::InstructionKind;
use parser::lint::{self, CheckConfig};
use parser::suggest;

use super::error::{PlanError, location};
use super::lint::Findings;
use super::names::{self, Numbering};
use super::paths;
use super::scope::{self, Env};
use super::stages::{Stage, StageIdx, Step};
use super::state::State;
use super::target::{Done, Target};
use crate::graph::{Graph, Input, Vertex, VertexId, VertexMeta};
use crate::op::{ImageOp, Op};

/// A stage on its way through its instructions.
pub(super) struct StageBuilder<'a> {
    pub(super) target: &'a Target<'a>,
    index: StageIdx,
    pub(super) stage: &'a Stage,
    pub(super) graph: &'a mut Graph,
    pub(super) findings: &'a mut Findings,
    /// What is known of all stages.
    pub(super) done: &'a [Done],
    pub(super) state: State,
    pub(super) numbering: Numbering,
    /// The instruction at hand.
    pub(super) here: Here,
    /// Whether the stage itself has said CMD.
    pub(super) has_own_cmd: bool,
    /// Ports that EXPOSE has named so far, some of them perhaps repeatedly.
    pub(super) n_ports: usize,
    ignore_cache: bool,
    /// [`VertexMeta::help`] of the next vertex of the instruction at hand.
    pub(super) help: Vec<String>,
}

/// The instruction at hand.
#[derive(Clone, Debug, Default)]
pub(super) struct Here {
    pub(super) lines: LineRange,
    pub(super) checks: CheckConfig,
    pub(super) is_trigger: bool,
    /// The logical line.
    pub(super) original: String,
    /// Position in the stage, triggers included, from 1; 0 is FROM.
    pub(super) number: usize,
}

impl<'a> StageBuilder<'a> {
    /// A builder that has not begun: its state is an empty root.
    pub(super) fn new(
        target: &'a Target<'a>,
        index: StageIdx,
        graph: &'a mut Graph,
        findings: &'a mut Findings,
        done: &'a [Done],
    ) -> Self {
        let stage = &target.stages.list[index];
        let is_covered = target.request.no_cache.covers(stage.name.as_deref());
        Self {
            target,
            index,
            stage,
            graph,
            findings,
            done,
            state: State::scratch(&target.platform),
            numbering: Numbering::new(&stage.shown, stage.n_steps()),
            here: Here { lines: stage.lines, checks: stage.checks.clone(), ..Here::default() },
            has_own_cmd: false,
            n_ports: 0,
            ignore_cache: is_covered,
            help: Vec::new(),
        }
    }

    /// Evaluates the whole stage.
    ///
    /// # Errors
    /// The first fault, at the lines of its instruction.
    pub(super) fn build(mut self) -> Result<State, PlanError> {
        self.begin().map_err(|fault| fault.at(self.stage.lines))?;
        if self.stage.replaced_by.is_some() {
            if self.index == self.target.stages.target {
                self.root_from_context();
            }
            return Ok(self.state);
        }
        // Triggers are among the steps by now; what is added from here on is for children of this stage.
        self.state.config.config.on_build.clear();
        for (index, step) in self.stage.steps.iter().enumerate() {
            self.here = Here {
                lines: step.instruction.lines,
                checks: step.instruction.checks.clone(),
                is_trigger: step.is_trigger,
                original: step.instruction.original.clone(),
                number: index + 1,
            };
            self.instruction(step).map_err(|fault| fault.at(step.instruction.lines))?;
        }
        Ok(self.state)
    }

    fn instruction(&mut self, step: &Step) -> Result<(), PlanError> {
        for warning in &step.instruction.warnings {
            self.findings.raise(warning.clone());
        }
        match &step.instruction.kind {
            InstructionKind::Run(run) => self.run(run, &step.sources)?,
            InstructionKind::Copy(copy) => self.copy(copy, &step.sources)?,
            InstructionKind::Add(add) => self.add(add)?,
            InstructionKind::Env(pairs) => self.env(pairs)?,
            InstructionKind::Arg(args) => self.arg(args, &step.instruction.comments)?,
            InstructionKind::Label(pairs) => self.label(pairs)?,
            InstructionKind::Cmd(command) => self.cmd(command),
            InstructionKind::Entrypoint(command) => self.entrypoint(command),
            InstructionKind::Expose(words) => self.expose(words)?,
            InstructionKind::Volume(words) => self.volume(words)?,
            InstructionKind::User(user) => self.user(user)?,
            InstructionKind::Workdir(path) => self.workdir(path)?,
            InstructionKind::Onbuild(trigger) => self.onbuild(trigger),
            InstructionKind::StopSignal(signal) => self.stop_signal(signal)?,
            InstructionKind::Healthcheck(check) => self.healthcheck(check),
            InstructionKind::Shell(words) => self.shell(words),
            InstructionKind::Maintainer(author) => self.maintainer(author),
        }
        Ok(())
    }

    /// Expands a word with the environment of the stage; names that nobody defines are findings.
    pub(super) fn expand(&mut self, word: &str) -> Result<String, PlanError> {
        match self.target.expander.process_word(word, &self.state.env) {
            Ok(expanded) => {
                self.check_unset(&expanded.unset);
                Ok(expanded.text)
            }
            Err(error) => Err(self.expand_fault(error)),
        }
    }

    /// As [`expand`](Self::expand), split at blanks that are not quoted.
    pub(super) fn expand_words(&mut self, word: &str) -> Result<Vec<String>, PlanError> {
        match self.target.expander.process_words(word, &self.state.env) {
            Ok(expanded) => {
                self.check_unset(&expanded.unset);
                Ok(expanded.words)
            }
            Err(error) => Err(self.expand_fault(error)),
        }
    }

    /// As [`expand`](Self::expand), by the rules for bodies of heredocs.
    pub(super) fn expand_heredoc(&mut self, body: &[u8]) -> Result<String, PlanError> {
        match self.target.expander.process_heredoc(body, &self.state.env) {
            Ok(expanded) => {
                self.check_unset(&expanded.unset);
                Ok(expanded.text)
            }
            Err(error) => Err(self.expand_fault(error)),
        }
    }

    fn expand_fault(&mut self, error: parser::expand::ExpandError) -> PlanError {
        if let parser::expand::ExpandFault::Required { name, .. } = &error.fault
            && self.state.env.get(name).is_none()
        {
            self.check_unset(std::slice::from_ref(name));
        }
        PlanError::from(error)
    }

    /// Names that nobody defines are findings, even when a default stands in for them.
    pub(super) fn check_unset(&mut self, names: &[String]) {
        for name in names {
            let is_declared = self.state.args.iter().any(|(known, _)| known == name);
            if !is_declared && scope::is_variable(name) {
                let nearest = suggest::nearest(name, self.state.env.keys());
                let found = lint::Warning::undefined_var(name, nearest, self.here.lines, &self.here.checks);
                self.findings.raise(found);
            }
        }
    }

    /// Adds a vertex for the instruction at hand. `part` tells vertices of one instruction apart.
    pub(super) fn add_vertex(&mut self, op: Op, inputs: Vec<Input>, name: String, part: &str) -> VertexId {
        let meta = self.meta(name, part);
        self.graph.add(Vertex { op: Arc::new(op), inputs, meta })
    }

    fn meta(&mut self, name: String, part: &str) -> VertexMeta {
        VertexMeta {
            name,
            location: Some(location(self.here.lines)),
            slot: self.slot(part),
            platform: self.target.is_multi.then(|| self.state.platform.clone()),
            ignore_cache: self.ignore_cache,
            build_args: self.state.build_args().into(),
            base: None,
            help: std::mem::take(&mut self.help),
        }
    }

    /// Adds the vertex of an image, which the name `base` stands for.
    pub(super) fn add_image(&mut self, op: ImageOp, name: String, base: String) -> VertexId {
        let meta = VertexMeta { ignore_cache: false, base: Some(base), ..self.meta(name, "image") };
        self.graph.add(Vertex { op: Arc::new(Op::Image(op)), inputs: Vec::new(), meta })
    }

    /// Adds a vertex that is looked up even where steps are not.
    pub(super) fn add_source(&mut self, op: Op, inputs: Vec<Input>, name: String, part: &str) -> VertexId {
        let ignore_cache = std::mem::take(&mut self.ignore_cache);
        let vertex = self.add_vertex(op, inputs, name, part);
        self.ignore_cache = ignore_cache;
        vertex
    }

    fn slot(&self, part: &str) -> String {
        let stage = self.stage.name.clone().unwrap_or_else(|| self.index.to_string());
        // That of the target: steps for several targets may run on one platform, and are still not the same step.
        let platform = if self.target.is_multi { format!("{}:", self.target.platform) } else { String::new() };
        let part = if part.is_empty() { String::new() } else { format!(":{part}") };
        format!("{}:{platform}{stage}:{}{part}", self.target.request.dockerfile_identity, self.here.number)
    }

    /// `[stage k/N] text` for the next step of the stage.
    pub(super) fn step_name(&mut self, text: &str) -> String {
        self.step_prefix() + text
    }

    /// What names of the next step begin with.
    pub(super) fn step_prefix(&mut self) -> String {
        let platforms = match self.target.is_multi {
            true => names::platforms(&self.state.platform, &self.state.env, &self.target.request.build_platform),
            false => String::new(),
        };
        let trigger = if self.here.is_trigger { "ONBUILD " } else { "" };
        self.numbering.next(&platforms) + trigger
    }

    /// The instruction as names show it: keyword in upper case, variables replaced.
    pub(super) fn shown_instruction(&self) -> String {
        let expanded = self.target.expander.process_word(&self.here.original, &self.state.env);
        names::upper_case_keyword(&expanded.map_or_else(|_| self.here.original.clone(), |expanded| expanded.text))
    }

    /// As [`shown_instruction`](Self::shown_instruction) for RUN: quotes stay, and so do variables that only the shell
    /// knows. `env` may hide values.
    pub(super) fn shown_command(&self, text: &str, env: &Env) -> String {
        let expanded = self.target.expander.process_display(text, env);
        names::upper_case_keyword(&expanded.map_or_else(|_| text.to_owned(), |expanded| expanded.text))
    }

    /// `path` seen from the current directory.
    pub(super) fn absolute(&self, path: &str) -> String {
        paths::join(&self.state.directory(), path)
    }
}
