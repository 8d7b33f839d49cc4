//! What can be said about a Dockerfile without building it: its targets, and what one of them can be given and asks for.
//!
//! Stages note their [`Facts`] while they are evaluated; [`of`] gathers those of all stages that the target needs. Read
//! [`Outline`] first. Spec: `spec/dockerfile.md` §7.4, §7.5, §7.7.

use std::collections::HashSet;

use parser::instruction::ArgDefinition;
use parser::{Dockerfile, LineRange, description};

use super::error::location;
use super::stages::Stage;
use super::target::{Done, Target};
use crate::graph::Location;

/// What a target can be given and what its steps ask for, of all stages that it needs.
///
/// Every list is in the order of the file and has each name once: the target's own word counts before that of its base,
/// and that before what it takes files from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outline {
    /// Name of the target; `None` for a stage without one.
    pub name: Option<String>,
    /// What its comment says about it.
    pub description: Option<String>,
    /// Build arguments that matter to it.
    pub args: Vec<OutlineArg>,
    /// Secrets that its steps mount.
    pub secrets: Vec<Asked>,
    /// ssh agents that its steps mount.
    pub agents: Vec<Asked>,
    /// Cache directories that its steps mount.
    pub caches: Vec<CacheMount>,
}

/// A build argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineArg {
    /// As for `--build-arg`.
    pub name: String,
    /// What its comment says about it.
    pub description: Option<String>,
    /// The value that it has in this build; `None` without a default.
    pub value: Option<String>,
    /// Its ARG.
    pub location: Location,
}

/// Something that whoever builds has to hand over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// As for `--secret` and `--ssh`.
    pub id: String,
    /// Whether the build fails without it.
    pub required: bool,
    /// The RUN that mounts it.
    pub location: Location,
}

/// A directory that outlives builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMount {
    /// What tells caches apart; the path of the mount unless it has an `id`.
    pub id: String,
    /// The RUN that mounts it.
    pub location: Location,
}

/// A stage that can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetInfo {
    /// Its name, lower-cased; `None` for a stage without one.
    pub name: Option<String>,
    /// What its comment says about it.
    pub description: Option<String>,
    /// Whether it is built when nothing else is asked for.
    pub is_default: bool,
    /// The image or stage it is based on, as written.
    pub base: String,
    /// `--platform`, as written.
    pub platform: Option<String>,
    /// Its FROM.
    pub location: Location,
}

/// A global ARG and the variables that its default is made of.
#[derive(Clone, Debug)]
pub(super) struct GlobalArg {
    pub(super) arg: OutlineArg,
    pub(super) uses: Vec<String>,
}

/// What one stage says about itself, without its base.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// ARGs with a value of their own, or none; not those that repeat a global one.
    args: Vec<OutlineArg>,
    /// Names of all ARGs.
    declared: Vec<String>,
    secrets: Vec<Asked>,
    agents: Vec<Asked>,
    caches: Vec<CacheMount>,
}

impl OutlineArg {
    /// An argument with the description that the comments of its line give.
    pub(super) fn new(arg: &ArgDefinition, value: Option<String>, comments: &[String], lines: LineRange) -> Self {
        Self { name: arg.name.clone(), description: described(comments, &arg.name), value, location: location(lines) }
    }
}

impl Facts {
    /// Notes an ARG: its name, and the argument unless that is the global one. Of several of one name the last counts.
    pub(super) fn note_arg(&mut self, name: &str, arg: Option<OutlineArg>) {
        self.declared.push(name.to_owned());
        if let Some(arg) = arg {
            self.args.retain(|known| known.name != arg.name);
            self.args.push(arg);
        }
    }

    /// Notes a secret. Of several mounts the first counts.
    pub(super) fn note_secret(&mut self, id: &str, required: bool, lines: LineRange) {
        note(&mut self.secrets, id, required, lines);
    }

    /// Notes an agent. Of several mounts the first counts.
    pub(super) fn note_agent(&mut self, id: &str, required: bool, lines: LineRange) {
        note(&mut self.agents, if id.is_empty() { "default" } else { id }, required, lines);
    }

    /// Notes a cache. Of several mounts the first counts.
    pub(super) fn note_cache(&mut self, id: &str, lines: LineRange) {
        if !self.caches.iter().any(|known| known.id == id) {
            self.caches.push(CacheMount { id: id.to_owned(), location: location(lines) });
        }
    }

    /// The arguments that matter to the stage: those of its ARGs and its FROM, and what their defaults are made of.
    fn args<'a>(&'a self, stage: &'a Stage, globals: &'a [GlobalArg]) -> Vec<&'a OutlineArg> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut waiting: Vec<&str> = stage.used.iter().chain(&self.declared).map(String::as_str).collect();
        while let Some(name) = waiting.pop() {
            if !seen.insert(name) {
                continue;
            }
            if let Some(own) = self.args.iter().find(|arg| arg.name == name) {
                found.push(own);
            } else if let Some(global) = globals.iter().rev().find(|global| global.arg.name == name) {
                found.push(&global.arg);
                waiting.extend(global.uses.iter().map(String::as_str));
            }
        }
        found
    }
}

fn note(list: &mut Vec<Asked>, id: &str, required: bool, lines: LineRange) {
    if !list.iter().any(|known| known.id == id) {
        list.push(Asked { id: id.to_owned(), required, location: location(lines) });
    }
}

fn described(comments: &[String], name: &str) -> Option<String> {
    description(comments, name).map(str::to_owned).filter(|text| !text.is_empty())
}

/// Gathers the facts of all stages that the target needs. `done` are the stages after their evaluation.
pub(super) fn of(target: &Target<'_>, file: &Dockerfile, done: &[Done]) -> Outline {
    let stages = &target.stages;
    let own = &file.stages[stages.target];
    let mut outline = Outline {
        name: own.name.clone(),
        description: own.name.as_deref().and_then(|name| described(&own.comments, name)),
        ..Outline::default()
    };
    let mut seen = vec![false; stages.list.len()];
    let mut waiting = vec![stages.target];
    while let Some(index) = waiting.pop() {
        if std::mem::replace(&mut seen[index], true) {
            continue;
        }
        // A context in the place of a stage has neither arguments nor steps.
        if let (Done::Built(state), None) = (&done[index], &stages.list[index].replaced_by) {
            let facts = &state.facts;
            let args = facts.args(&stages.list[index], &target.globals.args);
            add(&mut outline.args, args, |arg| &arg.name);
            add(&mut outline.secrets, &facts.secrets, |secret| &secret.id);
            add(&mut outline.agents, &facts.agents, |agent| &agent.id);
            add(&mut outline.caches, &facts.caches, |cache| &cache.id);
        }
        // The base is next, then what files are taken from, in the order of the file.
        waiting.extend(stages.needed_by(index).into_iter().rev());
    }
    let line = |location: &Location| (location.start_line, location.end_line);
    outline.args.sort_by(|a, b| (line(&a.location), &a.name).cmp(&(line(&b.location), &b.name)));
    outline.secrets.sort_by_key(|secret| line(&secret.location));
    outline.agents.sort_by_key(|agent| line(&agent.location));
    outline.caches.sort_by_key(|cache| line(&cache.location));
    outline
}

/// Adds what is not known yet by its name.
fn add<'a, T: Clone + 'a>(list: &mut Vec<T>, more: impl IntoIterator<Item = &'a T>, name: fn(&T) -> &str) {
    for item in more {
        if !list.iter().any(|known| name(known) == name(item)) {
            list.push(item.clone());
        }
    }
}

/// The stages of a file, in its order.
pub(super) fn targets_of(file: &Dockerfile) -> Vec<TargetInfo> {
    let last = file.stages.len().saturating_sub(1);
    let info = |(index, stage): (usize, &parser::Stage)| TargetInfo {
        name: stage.name.clone(),
        description: stage.name.as_deref().and_then(|name| described(&stage.comments, name)),
        is_default: index == last,
        base: stage.base.clone(),
        platform: stage.platform.clone(),
        location: location(stage.location),
    };
    file.stages.iter().enumerate().map(info).collect()
}
