//! COPY, and what it shares with ADD. Spec: `spec/dockerfile.md` §2.15–2.21.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parser::instruction::{CopyInstruction, SourceContent};
use parser::lint;
use parser::pattern::{BadPattern, Glob, Patterns};

use super::error::PlanError;
use super::git_url::{GitUrl, is_http};
use super::history::PlannedHistory;
use super::ownership::{self, Accounts};
use super::paths;
use super::stage::StageBuilder;
use super::stages::Source;
use crate::graph::Input;
use crate::op::{CopyAction, CopySelection, FileAction, FileOp, ModeChange, Op, Owner, Unpack, WriteFileAction};

/// An inline file: what it is called, and its content, which others may share.
pub(super) type NamedBytes = (String, Arc<[u8]>);

/// COPY or ADD after expansion.
#[derive(Debug)]
pub(super) struct Transfer<'i> {
    /// `COPY` or `ADD`.
    pub(super) keyword: &'static str,
    /// As written, expanded.
    pub(super) sources: Vec<String>,
    pub(super) contents: Vec<NamedBytes>,
    /// As written, expanded.
    pub(super) dest: String,
    pub(super) chown: Option<String>,
    pub(super) chmod: Option<String>,
    pub(super) link: bool,
    pub(super) parents: bool,
    pub(super) excludes: &'i [String],
}

/// What all actions of one instruction have in common.
#[derive(Debug)]
pub(super) struct Common {
    /// Absolute.
    pub(super) dest: String,
    pub(super) owner: Option<Owner>,
    pub(super) mode: Option<ModeChange>,
    /// Whether the files get a root of their own, which is then laid over the stage's.
    pub(super) is_linked: bool,
}

impl Common {
    /// A copy that neither unpacks nor brings its own metadata.
    pub(super) fn action(&self, input: Option<usize>, selection: CopySelection) -> CopyAction {
        CopyAction {
            input,
            selection,
            dest: self.dest.clone(),
            owner: self.owner.clone(),
            mode: self.mode.clone(),
            unpack: Unpack::Never,
            keep_source_metadata: false,
        }
    }
}

/// What a vertex takes files from, each once, behind the root that it works on.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    sources: Vec<Input>,
}

impl Inputs {
    /// The index by which the operation refers to a source; `None` is an empty root.
    pub(super) fn index_of(&mut self, source: Option<Input>) -> Option<usize> {
        let source = source?;
        let known = self.sources.iter().position(|known| *known == source);
        let index = known.unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        });
        // Input 0 is the root that is worked on.
        Some(index + 1)
    }

    /// The inputs of the vertex.
    pub(super) fn behind(self, root: Input) -> Vec<Input> {
        std::iter::once(root).chain(self.sources).collect()
    }
}

/// The actions of one vertex and the inputs that they refer to.
#[derive(Debug, Default)]
pub(super) struct Actions {
    pub(super) list: Vec<FileAction>,
    pub(super) inputs: Inputs,
}

impl StageBuilder<'_> {
    pub(super) fn copy(&mut self, copy: &CopyInstruction, sources: &[Source]) -> Result<(), PlanError> {
        let transfer = Transfer {
            keyword: "COPY",
            chown: self.expand_opt(copy.chown.as_deref())?,
            chmod: self.expand_opt(copy.chmod.as_deref())?,
            sources: self.expand_all(&copy.sources)?,
            dest: self.expand(&copy.dest)?,
            contents: self.contents(&copy.contents)?,
            link: copy.link,
            parents: copy.parents,
            excludes: &copy.excludes,
        };
        let source = match copy.from.is_none() && !transfer.sources.is_empty() {
            true => self.context_input(),
            false => self.copied_from(copy.from.as_deref(), sources)?,
        };
        for text in &transfer.sources {
            if let Some(git) = GitUrl::parse(text) {
                git.map_err(|error| PlanError::input(error.to_string()).about(text))?;
                return Err(PlanError::input("source can't be a git ref for COPY")
                    .about(text)
                    .help("use ADD to fetch a repository"));
            }
            if is_http(text) {
                return Err(PlanError::input("source can't be a URL for COPY")
                    .about(text)
                    .help("use ADD to fetch a URL"));
            }
        }
        let common = self.common(&transfer)?;
        let mut actions = Actions::default();
        for text in &transfer.sources {
            if copy.from.is_none() {
                self.check_ignored(&transfer, text);
                self.check_inside(text);
            }
            let input = actions.inputs.index_of(source);
            let action = common.action(input, selection(text, &transfer)?);
            actions.list.push(FileAction::Copy(action));
        }
        self.finish_transfer(transfer, common, actions);
        Ok(())
    }

    /// What `--from` names.
    fn copied_from(&mut self, from: Option<&str>, sources: &[Source]) -> Result<Option<Input>, PlanError> {
        match sources.first() {
            Some(Source::Stage(index)) => self.stage_input(*index).unwrap_or_else(|| {
                let (from, current) = (from.unwrap_or_default(), &self.stage.shown);
                let fault = PlanError::input(format!(
                    "cannot copy from stage \"{from}\", it needs to be defined before current stage \"{current}\""
                ));
                Err(fault.about(from).help(format!("move the stage `{from}` before this one")))
            }),
            Some(Source::Outside(name)) => self.outside_input(name),
            Some(Source::Context) | None => Ok(None),
        }
    }

    pub(super) fn expand_opt(&mut self, text: Option<&str>) -> Result<Option<String>, PlanError> {
        let expanded = text.map(|text| self.expand(text)).transpose()?;
        Ok(expanded.filter(|text| !text.is_empty()))
    }

    pub(super) fn expand_all(&mut self, words: &[String]) -> Result<Vec<String>, PlanError> {
        words.iter().map(|word| self.expand(word)).collect()
    }

    /// Names and bytes, in order. Sources that share their bytes still do when those are expanded.
    pub(super) fn contents(&mut self, heredocs: &[SourceContent]) -> Result<Vec<NamedBytes>, PlanError> {
        let mut expanded: HashMap<*const u8, Arc<[u8]>> = HashMap::new();
        let mut contents = Vec::with_capacity(heredocs.len());
        for SourceContent { path, data, expand } in heredocs {
            let data = match (expand, expanded.get(&data.as_ptr())) {
                (false, _) => data.clone(),
                (true, Some(known)) => known.clone(),
                (true, None) => {
                    let bytes: Arc<[u8]> = self.expand_heredoc(data)?.into_bytes().into();
                    expanded.insert(data.as_ptr(), bytes.clone());
                    bytes
                }
            };
            contents.push((path.clone(), data));
        }
        Ok(contents)
    }

    /// Destination, owner and mode.
    pub(super) fn common(&self, transfer: &Transfer) -> Result<Common, PlanError> {
        // BuildKit does without the merge when modes change; the result is the same, and names can be looked up.
        let is_linked = transfer.link && transfer.chmod.is_none();
        let has_root = !is_linked && self.state.root != Input::Scratch;
        let accounts = if has_root { Accounts::OfRoot } else { Accounts::None };
        let owner = transfer.chown.as_deref().map(|text| ownership::owner(text, accounts)).transpose();
        let owner = owner.map_err(|message| {
            PlanError::input(message)
                .about(transfer.chown.as_deref().unwrap_or_default())
                .help("there are no accounts to look names up in: give numbers to --chown, such as `1000:1000`")
        })?;
        let mode = transfer.chmod.as_deref().map(ownership::mode).transpose().map_err(|message| {
            PlanError::input(message)
                .about(transfer.chmod.as_deref().unwrap_or_default())
                .help("write it like `--chmod=755` or `--chmod=u+x,go-w`")
        })?;
        Ok(Common { dest: paths::destination(&self.state.directory(), &transfer.dest), owner, mode, is_linked })
    }

    /// Adds the heredoc files, the vertices and the history entry.
    pub(super) fn finish_transfer(&mut self, transfer: Transfer, common: Common, mut actions: Actions) {
        let created_by = created_by(&transfer);
        for (name, content) in without_repetitions(transfer.contents) {
            actions.list.push(FileAction::WriteFile(WriteFileAction {
                dest: common.dest.clone(),
                name,
                content: content.to_vec(),
                owner: common.owner.clone(),
                mode: common.mode.clone(),
                mtime: self.target.epoch.seconds,
            }));
        }
        let root = self.state.root;
        let (prefix, text) = (self.step_prefix(), self.shown_instruction());
        let under = if common.is_linked { Input::Scratch } else { root };
        let op = Op::File(FileOp { actions: actions.list });
        let mut vertex = self.add_vertex(op, actions.inputs.behind(under), format!("{prefix}{text}"), "");
        if common.is_linked && root != Input::Scratch {
            let inputs = vec![root, Input::Vertex(vertex)];
            vertex = self.add_vertex(Op::Merge, inputs, format!("{prefix}LINK {text}"), "link");
        }
        self.state.root = Input::Vertex(vertex);
        self.state.history.push(PlannedHistory::layer(created_by, vertex));
    }

    /// A source of the main context that climbs above it is looked for within it. If nothing is there, people want to
    /// know why.
    pub(super) fn check_inside(&mut self, source: &str) {
        if paths::climbs_out(source) {
            self.help.push(format!(
                "`{source}` leads out of the context, and only files in it can be copied: \
                 build with the directory above as the context, and name this file with -f"
            ));
        }
    }

    /// A source of the main context that its ignore file hides is a finding.
    pub(super) fn check_ignored(&mut self, transfer: &Transfer, source: &str) {
        let verb = if transfer.keyword == "ADD" { "Add" } else { "Copy" };
        if self.target.ignored.as_ref().is_some_and(|ignored| ignored.hides(source)) {
            let (lines, checks) = (self.here.lines, self.here.checks.clone());
            self.findings.raise(lint::Warning::copy_ignored_file(verb, source, lines, &checks));
        }
    }
}

/// Which files one source means.
///
/// # Errors
/// A malformed pattern.
pub(super) fn selection(source: &str, transfer: &Transfer) -> Result<CopySelection, PlanError> {
    let path = paths::clean(source);
    let wildcard = paths::has_wildcard(source);
    let relative = path.trim_start_matches('/');
    let is_bad = wildcard
        && match transfer.parents {
            true => Patterns::new([relative]).is_err(),
            false => Glob::compile(relative).is_err(),
        };
    if is_bad {
        return Err(PlanError::input(format!("invalid includepatterns: [{relative}]: {BadPattern}"))
            .about(source)
            .help("close the `[` of the pattern, or write `\\[` for a bracket that is part of the name"));
    }
    if Patterns::new(transfer.excludes).is_err() {
        let list = transfer.excludes.join(" ");
        return Err(PlanError::input(format!("invalid excludepatterns: [{list}]: {BadPattern}")));
    }
    let parents_base = transfer.parents.then(|| match source.split_once("/./") {
        Some((base, _)) => paths::clean(base),
        None => "/".to_owned(),
    });
    Ok(CopySelection { source: path, wildcard, excludes: transfer.excludes.to_vec(), parents_base })
}

/// Of files that are the same in name and bytes only the last stays. It overwrites the others, and thousands of them would
/// take as many times the memory of one.
fn without_repetitions(mut contents: Vec<NamedBytes>) -> Vec<NamedBytes> {
    let mut seen = HashSet::new();
    contents.reverse();
    contents.retain(|(name, data)| seen.insert((name.clone(), data.as_ptr())));
    contents.reverse();
    contents
}

fn created_by(transfer: &Transfer) -> String {
    let mut words = vec![transfer.keyword.to_owned()];
    if transfer.parents {
        words.push("--parents".to_owned());
    }
    words.extend(transfer.chown.as_ref().map(|owner| format!("--chown={owner}")));
    words.extend(transfer.chmod.as_ref().map(|mode| format!("--chmod={mode}")));
    words.extend(transfer.sources.iter().cloned());
    words.extend(transfer.contents.iter().map(|(name, _)| format!("<<{name}")));
    words.push(transfer.dest.clone());
    words.push("# buildkit".to_owned());
    words.join(" ")
}
