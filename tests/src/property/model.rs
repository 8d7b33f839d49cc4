//! What each step of a [`World`] depends on, said in another way than rbuild says it: not by digests of files and layers,
//! but by knowing what every instruction does.
//!
//! The model tells more apart than it would have to, never less: a step of which it says that nothing has changed must
//! come from the cache.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::world::{Node, Source, Step, World};

/// Which vertex: number of the stage, and the number that its name has there.
pub(super) type Place = (usize, usize);

/// A file of an image under `/w`.
#[derive(Clone, Debug, Hash)]
struct File {
    node: Node,
    owner: u32,
}

/// What is known of a stage at some instruction.
#[derive(Clone, Debug, Default)]
struct State {
    /// What the layers below hold, base first.
    layers: Vec<u64>,
    /// Declarations in order, ENV and ARG; a stage inherits both.
    variables: Vec<(&'static str, usize, String)>,
    files: BTreeMap<String, File>,
    dirs: Vec<usize>,
}

/// What all vertices depend on that come before the first one that must fail.
pub(super) fn keys(world: &World) -> BTreeMap<Place, u64> {
    let mut keys = BTreeMap::new();
    let mut stages: Vec<Option<State>> = Vec::new();
    for (idx, stage) in world.stages.iter().enumerate() {
        let state = match stage.from {
            None => Some(State { layers: vec![digest(&("base", world.base))], ..State::default() }),
            Some(from) => stages[from].clone(),
        };
        // The base image is the first vertex of its stage.
        let first = if stage.from.is_none() { 2 } else { 1 };
        let state = state.and_then(|mut state| {
            let mut number = first;
            for step in &stage.steps {
                let key = state.take(step, world, &stages)?;
                if step.is_vertex() {
                    keys.insert((idx, number), key);
                    number += 1;
                }
            }
            Some(state)
        });
        stages.push(state);
    }
    keys
}

impl State {
    /// Performs a step and tells what it depends on; `None` if it must fail.
    fn take(&mut self, step: &Step, world: &World, stages: &[Option<Self>]) -> Option<u64> {
        let below = digest(&self.layers);
        let run = |state: &Self, mounted: &[(String, Node)]| digest(&(step.text(), &below, &state.variables, mounted));
        let key = match step {
            Step::Env(variable, value) => {
                self.variables.push(("ENV", *variable, (*value).to_owned()));
                return Some(0);
            }
            Step::Arg(variable, default) => {
                let value = world.build_args.get(variable).unwrap_or(default);
                self.variables.push(("ARG", *variable, (*value).to_owned()));
                return Some(0);
            }
            Step::CopyDir { source, to, chmod, chown } => {
                let selected = match source {
                    Source::Context(deep) => of_context(world, if *deep { "src/sub" } else { "src" })?,
                    Source::Stage(stage, dir) => stages[*stage].as_ref()?.dir(*dir)?,
                };
                let content = digest(&(to, chmod, chown, &selected));
                for (path, mut file) in selected {
                    if let (Some(chmod), Node::File { mode, .. }) = (chmod, &mut file.node) {
                        *mode = *chmod;
                    }
                    file.owner = chown.unwrap_or(file.owner);
                    self.files.insert(format!("d{to}/{path}"), file);
                }
                self.dirs.push(*to);
                self.layers.push(content);
                return Some(digest(&(source, below, content)));
            }
            Step::CopyTop(top, to) => {
                let name = format!("top{top}");
                let node = world.context.get(&name).filter(|_| !world.is_ignored(&name))?.clone();
                let content = digest(&(to, &node));
                self.files.insert(format!("f{to}"), File { node, owner: 0 });
                self.layers.push(content);
                return Some(digest(&(name, below, content)));
            }
            Step::GatherMount(to) => {
                let mounted = of_context(world, "src")?;
                let nodes: Vec<(String, Node)> =
                    mounted.iter().map(|(path, file)| (path.clone(), file.node.clone())).collect();
                let key = run(self, &nodes);
                let files: Vec<&File> = mounted.iter().map(|(_, file)| file).collect();
                let content = contents(&files);
                self.write(*to, content);
                return Some(key);
            }
            _ => run(self, &[]),
        };
        match step {
            Step::Cat(from, to) => {
                let content = self.files.get(&format!("f{from}")).map(|file| contents(&[file]));
                self.write(*to, content.unwrap_or_default());
            }
            Step::Gather(dir, to) => {
                let prefix = format!("d{dir}/");
                let inside = self.files.iter().filter(|(path, _)| path.starts_with(&prefix));
                let files: Vec<&File> = inside.map(|(_, file)| file).collect();
                let content = contents(&files);
                self.write(*to, content);
            }
            Step::Remove(dir) => {
                let prefix = format!("d{dir}/");
                self.layers.push(digest(&("removed", dir, self.dirs.contains(dir))));
                self.files.retain(|path, _| !path.starts_with(&prefix));
                self.dirs.retain(|there| there != dir);
            }
            Step::Chmod(file, bits) => {
                let found = self.files.get_mut(&format!("f{file}"));
                if let Some(File { node: Node::File { mode, .. }, .. }) = found {
                    *mode = *bits;
                }
                let after = self.files.get(&format!("f{file}"));
                self.layers.push(digest(&("mode", file, after)));
            }
            Step::Nothing(_) => self.layers.push(digest(&"nothing")),
            // What they write is not followed: all that they depend on stands for it.
            Step::Print(_, to) | Step::List(to) => {
                let content = format!("of {key}");
                self.write(*to, content);
            }
            Step::Env(..) | Step::Arg(..) | Step::CopyDir { .. } | Step::CopyTop(..) | Step::GatherMount(_) => {}
        }
        Some(key)
    }

    /// A command writes a file: one that is there keeps its mode and owner.
    fn write(&mut self, to: usize, content: String) {
        let file = self.files.entry(format!("f{to}"));
        let file = file.or_insert(File { node: Node::File { content: String::new(), mode: 0o644 }, owner: 0 });
        if let Node::File { content: old, .. } = &mut file.node {
            *old = content;
        }
        self.layers.push(digest(&("written", to, &*file)));
    }

    /// What lies in a directory, by path in it.
    fn dir(&self, dir: usize) -> Option<Vec<(String, File)>> {
        let prefix = format!("d{dir}/");
        let inside =
            self.files.iter().filter_map(|(path, file)| Some((path.strip_prefix(&prefix)?.to_owned(), file.clone())));
        self.dirs.contains(&dir).then(|| inside.collect())
    }
}

/// What is sent of a directory of the context; `None` where it is left out itself.
fn of_context(world: &World, dir: &str) -> Option<Vec<(String, File)>> {
    if world.is_ignored(dir) {
        return None;
    }
    let prefix = format!("{dir}/");
    let inside = world.context.iter().filter(|(path, _)| path.starts_with(&prefix) && !world.is_ignored(path));
    let file = |node: &Node| File { node: node.clone(), owner: 0 };
    let mut selected: Vec<_> = inside.map(|(path, node)| (path[prefix.len()..].to_owned(), file(node))).collect();
    if dir == "src" && !world.is_ignored("src/sub") {
        // An empty directory is copied, too.
        selected.push(("sub".to_owned(), file(&Node::Link { target: "a directory".to_owned() })));
    }
    Some(selected)
}

/// The files one after the other; links are passed over, as `find -type f` does.
fn contents(files: &[&File]) -> String {
    let texts = files.iter().filter_map(|file| match &file.node {
        Node::File { content, .. } => Some(content.as_str()),
        Node::Link { .. } => None,
    });
    texts.collect()
}

/// The hasher has fixed keys: the same for every run of the same program.
fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
