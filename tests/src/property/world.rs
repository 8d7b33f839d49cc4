//! A Dockerfile with its context, small enough to be understood by a model, and the edits that people make to both.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::rng::Rng;

/// Names of the files directly in the context.
const TOPS: usize = 4;
/// Files and directories in the image.
const FILES: usize = 5;
const DIRS: usize = 3;
const VARIABLES: usize = 3;
/// How the names of links begin.
const LINKS: &str = "src/l";
const MODES: [u32; 4] = [0o644, 0o600, 0o755, 0o444];
/// Patterns of the ignore file; [`World::is_ignored`] understands these.
const PATTERNS: [&str; 7] = ["src/f1", "src/sub", "**/f2", "top1", "!src/f2", "!src/sub/f0", "src/l*"];
/// Contents have one length, so that a length never gives an edit away.
const WORDS: [&str; 6] = ["one", "two", "six", "ten", "yes", "not"];

/// What lies at a path of the context.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    /// A regular file.
    File {
        /// All of it.
        content: String,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// Where it points to; there may be nothing.
        target: String,
    },
}

/// A build with all that it depends on.
#[derive(Clone, Debug)]
pub(super) struct World {
    /// By path: `top0`, `src/f1`, `src/sub/f0`, `src/l0`.
    pub(super) context: BTreeMap<String, Node>,
    /// Lines of the ignore file.
    pub(super) ignore: Vec<&'static str>,
    /// Which of the two bases has the name `base`.
    pub(super) base: usize,
    /// `--build-arg`, by number of the variable.
    pub(super) build_args: BTreeMap<usize, &'static str>,
    /// The last one is built.
    pub(super) stages: Vec<Stage>,
}

/// One stage.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    /// An earlier stage; `None` is the base.
    pub(super) from: Option<usize>,
    /// Its instructions, without FROM.
    pub(super) steps: Vec<Step>,
}

/// Where a copy takes its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// `src/`, or with `true` `src/sub/`.
    Context(bool),
    /// A directory of an earlier stage.
    Stage(usize, usize),
}

/// One instruction.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// `ENV`.
    Env(usize, &'static str),
    /// `ARG` with a default.
    Arg(usize, &'static str),
    /// `COPY DIR/ DIR/`.
    CopyDir {
        /// From where.
        source: Source,
        /// To which directory.
        to: usize,
        /// `--chmod`.
        chmod: Option<u32>,
        /// `--chown`.
        chown: Option<u32>,
    },
    /// `COPY topN fM`.
    CopyTop(usize, usize),
    /// `RUN cat fN > fM`.
    Cat(usize, usize),
    /// Writes the files of a directory to a file.
    Gather(usize, usize),
    /// Writes the files of `src/` to a file, through a mount.
    GatherMount(usize),
    /// Writes a variable to a file.
    Print(usize, usize),
    /// Removes a directory.
    Remove(usize),
    /// Changes a file's mode.
    Chmod(usize, u32),
    /// Writes a list of everything to a file.
    List(usize),
    /// Does nothing, in several ways.
    Nothing(usize),
}

/// Something that is done to a file of the context when it is brought to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    /// Its times are set to now.
    Now(String),
    /// Its owner is changed.
    Owner(String),
    /// What is written next keeps the times that the file has.
    KeepTimes,
}

impl World {
    /// A first one.
    pub(super) fn new(rng: &mut Rng) -> Self {
        let mut world = Self {
            context: BTreeMap::new(),
            ignore: Vec::new(),
            base: 0,
            build_args: BTreeMap::new(),
            stages: Vec::new(),
        };
        for name in ["top0", "top1", "top2", "src/f0", "src/f1", "src/f2", "src/sub/f0", "src/sub/f1", "src/l0"] {
            let node = node(rng, name);
            world.context.insert(name.to_owned(), node);
        }
        for idx in 0..1 + rng.below(3) {
            let from = (idx > 0 && rng.one_in(3)).then(|| rng.below(idx));
            let steps = (0..1 + rng.below(5)).map(|_| step(rng, idx)).collect();
            world.stages.push(Stage { from, steps });
        }
        world
    }

    /// The Dockerfile's text.
    pub(super) fn dockerfile(&self) -> String {
        let mut text = String::new();
        for (idx, stage) in self.stages.iter().enumerate() {
            let from = stage.from.map_or_else(|| "base".to_owned(), |from| format!("s{from}"));
            writeln!(text, "FROM {from} AS s{idx}").expect("a String takes all text");
            for step in &stage.steps {
                writeln!(text, "{}", step.text()).expect("a String takes all text");
            }
        }
        text
    }

    /// Whether the ignore file leaves a path out: the last pattern that matches it or what it lies in decides.
    pub(super) fn is_ignored(&self, path: &str) -> bool {
        let mut ignored = false;
        for pattern in &self.ignore {
            let (negated, pattern) = pattern.strip_prefix('!').map_or((false, *pattern), |rest| (true, rest));
            let matches = match (pattern.strip_prefix("**/"), pattern.strip_suffix('*')) {
                (Some(name), _) => path.rsplit('/').next() == Some(name),
                (None, Some(prefix)) => path.starts_with(prefix),
                (None, None) => path == pattern || path.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('/')),
            };
            if matches {
                ignored = !negated;
            }
        }
        ignored
    }

    /// Changes something, and says what.
    pub(super) fn edit(&mut self, rng: &mut Rng, touches: &mut Vec<Touch>) -> String {
        match rng.below(16) {
            0..=4 => self.edit_file(rng, touches),
            5 => {
                let name = new_name(rng);
                let node = node(rng, &name);
                self.context.insert(name.clone(), node);
                format!("write {name}")
            }
            6 => {
                let at = rng.below(self.ignore.len() + 1);
                if at < self.ignore.len() && rng.one_in(2) {
                    return format!("stop ignoring {}", self.ignore.remove(at));
                }
                self.ignore.insert(at, *rng.pick(&PATTERNS[..]));
                format!("ignore {}", self.ignore[at])
            }
            7 => {
                self.base = 1 - self.base;
                format!("base {}", self.base)
            }
            8 => {
                let variable = rng.below(VARIABLES);
                let value = word(rng);
                let had = if rng.one_in(3) {
                    self.build_args.remove(&variable)
                } else {
                    self.build_args.insert(variable, value)
                };
                format!("argument {variable} {had:?} to {:?}", self.build_args.get(&variable))
            }
            _ => self.edit_steps(rng),
        }
    }

    fn edit_file(&mut self, rng: &mut Rng, touches: &mut Vec<Touch>) -> String {
        let names: Vec<String> = self.context.keys().cloned().collect();
        let Some(name) = names.get(rng.below(names.len().max(1))).cloned() else { return "nothing".to_owned() };
        match rng.below(7) {
            0 => {
                touches.push(Touch::Now(name.clone()));
                format!("touch {name}")
            }
            1 => {
                touches.push(Touch::Owner(name.clone()));
                format!("chown {name}")
            }
            2 => {
                self.context.remove(&name);
                format!("remove {name}")
            }
            3 => {
                // What a name is like says what it is: links among links.
                let is_link = name.starts_with(LINKS);
                let Some(to) = (0..9).map(|_| new_name(rng)).find(|to| to.starts_with(LINKS) == is_link) else {
                    return "nothing".to_owned();
                };
                if let Some(node) = self.context.remove(&name) {
                    self.context.insert(to.clone(), node);
                }
                format!("rename {name} to {to}")
            }
            4 => {
                touches.push(Touch::KeepTimes);
                self.change(rng, &name)
            }
            _ => self.change(rng, &name),
        }
    }

    fn change(&mut self, rng: &mut Rng, name: &str) -> String {
        match self.context.get_mut(name) {
            Some(Node::File { mode, .. }) if rng.one_in(3) => *mode = *rng.pick(&MODES),
            Some(Node::File { content, .. }) => *content = word(rng).to_owned(),
            Some(Node::Link { target }) => *target = (*rng.pick(&["f0", "f1", "away"])).to_owned(),
            None => {}
        }
        format!("{name} is {:?}", self.context.get(name))
    }

    fn edit_steps(&mut self, rng: &mut Rng) -> String {
        let idx = rng.below(self.stages.len());
        let new = step(rng, idx);
        let steps = &mut self.stages[idx].steps;
        let at = rng.below(steps.len() + 1);
        match rng.below(4) {
            0 if steps.len() > 1 && at < steps.len() => format!("s{idx}: drop {}", steps.remove(at).text()),
            1 if at + 1 < steps.len() => {
                steps.swap(at, at + 1);
                format!("s{idx}: swap {at} with the next")
            }
            2 if at < steps.len() => {
                steps[at] = new;
                format!("s{idx}: replace {at} by {}", steps[at].text())
            }
            _ if steps.len() < 7 => {
                steps.insert(at, new);
                format!("s{idx}: insert {}", steps[at].text())
            }
            _ => "nothing".to_owned(),
        }
    }
}

impl Step {
    /// Whether it is a vertex of the graph.
    pub(super) fn is_vertex(&self) -> bool {
        !matches!(self, Self::Env(..) | Self::Arg(..))
    }

    /// Its line of the Dockerfile.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Env(variable, value) => format!("ENV V{variable}={value}"),
            Self::Arg(variable, value) => format!("ARG V{variable}={value}"),
            Self::CopyDir { source, to, chmod, chown } => {
                let mut text = "COPY".to_owned();
                if let Source::Stage(stage, _) = source {
                    write!(text, " --from=s{stage}").expect("a String takes all text");
                }
                if let Some(mode) = chmod {
                    write!(text, " --chmod={mode:o}").expect("a String takes all text");
                }
                if let Some(id) = chown {
                    write!(text, " --chown={id}:{id}").expect("a String takes all text");
                }
                let path = match source {
                    Source::Context(false) => "src/".to_owned(),
                    Source::Context(true) => "src/sub/".to_owned(),
                    Source::Stage(_, dir) => format!("/w/d{dir}/"),
                };
                format!("{text} {path} /w/d{to}/")
            }
            Self::CopyTop(top, to) => format!("COPY top{top} /w/f{to}"),
            Self::Cat(from, to) => format!("RUN cat /w/f{from} > /w/f{to} || true"),
            Self::Gather(dir, to) => {
                format!("RUN find /w/d{dir} -type f 2> /dev/null | sort | xargs cat > /w/f{to} < /dev/null")
            }
            Self::GatherMount(to) => format!(
                "RUN --mount=type=bind,source=src,target=/m find /m -type f | sort | xargs cat > /w/f{to} < /dev/null"
            ),
            Self::Print(variable, to) => format!("RUN echo \"$V{variable}\" > /w/f{to}"),
            Self::Remove(dir) => format!("RUN rm -rf /w/d{dir}"),
            Self::Chmod(file, mode) => format!("RUN chmod {mode:o} /w/f{file} || true"),
            Self::List(to) => {
                format!("RUN find /w /marker ! -name f{to} | sort | xargs stat -c '%N %a %u %g' > /w/f{to}")
            }
            Self::Nothing(way) => format!("RUN true {way}"),
        }
    }
}

/// A step for the stage with number `stage`.
fn step(rng: &mut Rng, stage: usize) -> Step {
    let (file, other, dir) = (rng.below(FILES), rng.below(FILES), rng.below(DIRS));
    match rng.below(16) {
        0 => Step::Env(rng.below(VARIABLES), word(rng)),
        1 => Step::Arg(rng.below(VARIABLES), word(rng)),
        2..=5 => {
            let source = match stage {
                0 => Source::Context(rng.one_in(2)),
                _ if rng.one_in(2) => Source::Stage(rng.below(stage), rng.below(DIRS)),
                _ => Source::Context(rng.one_in(2)),
            };
            let chmod = rng.one_in(4).then(|| *rng.pick(&MODES) | 0o111);
            let chown = rng.one_in(4).then(|| 1 + rng.below(3) as u32);
            Step::CopyDir { source, to: dir, chmod, chown }
        }
        6 => Step::CopyTop(rng.below(TOPS), file),
        7 | 8 => Step::Cat(file, if file == other { (file + 1) % FILES } else { other }),
        9 => Step::Gather(dir, file),
        10 => Step::GatherMount(file),
        11 => Step::Print(rng.below(VARIABLES), file),
        12 => Step::Remove(dir),
        13 => Step::Chmod(file, *rng.pick(&MODES)),
        14 => Step::List(file),
        _ => Step::Nothing(rng.below(2)),
    }
}

fn new_name(rng: &mut Rng) -> String {
    match rng.below(4) {
        0 => format!("top{}", rng.below(TOPS)),
        1 => format!("src/f{}", rng.below(4)),
        2 => format!("src/sub/f{}", rng.below(3)),
        _ => format!("src/l{}", rng.below(2)),
    }
}

fn node(rng: &mut Rng, name: &str) -> Node {
    if name.starts_with(LINKS) {
        return Node::Link { target: (*rng.pick(&["f0", "sub", "away"])).to_owned() };
    }
    Node::File { content: word(rng).to_owned(), mode: *rng.pick(&MODES) }
}

fn word(rng: &mut Rng) -> &'static str {
    WORDS[rng.below(WORDS.len())]
}
