//! Walks a source directory through include and exclude patterns, parents first, names in byte order.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use solver::plan::patterns::{Glob, Patterns, Verdict};

use super::source::{SourceDir, SourceEntry};
use super::{ContextError, Result};
use crate::view::Node;

/// Which entries of a walk are wanted.
#[derive(Default)]
pub struct WalkRules {
    /// Only what matches, or lies below something that does (`--parents`).
    pub include: Option<Include>,
    /// Not what these hide (`--exclude`). A directory that is left out but has something visible below it is visited.
    pub exclude: Patterns,
}

impl WalkRules {
    /// Whether there is nothing that they leave out.
    pub fn want_everything(&self) -> bool {
        self.include.is_none() && self.exclude.is_empty()
    }
}

/// The pattern of `COPY --parents`.
pub struct Include {
    /// Decides: it "excludes" what is wanted.
    matcher: Patterns,
    /// Its elements up to the first `**`, to stay out of directories where nothing can match.
    prefix: Vec<Glob>,
    /// Whether the pattern goes on after `prefix`.
    is_open: bool,
}

/// One entry that a walk visits.
pub struct Visited<'a> {
    /// Path relative to where the walk began.
    pub path: &'a Path,
    /// The directory it is in.
    pub dir: &'a SourceDir,
    /// Its name in there.
    pub name: &'a OsStr,
    /// What it is.
    pub node: &'a Node,
}

/// Calls `visit` for everything below `dir` that the rules want; `dir` itself is not visited.
///
/// Directories that are visited only because something below them is wanted come right before it.
///
/// # Errors
/// What reading yields, and what `visit` returns.
pub fn walk<E: From<ContextError>>(
    dir: &SourceDir,
    rules: &WalkRules,
    visit: &mut dyn FnMut(&Visited<'_>) -> Result<(), E>,
) -> Result<(), E> {
    if rules.include.is_none() {
        dir.read_below()?;
    }
    let mut walker = Walker { rules, path: PathBuf::new(), waiting: Vec::new(), visit };
    let top = Inside { is_included: rules.include.is_none(), excluded: Verdict::default() };
    walker.dir(dir, top)
}

struct Walker<'a, E> {
    rules: &'a WalkRules,
    path: PathBuf,
    /// Directories on the way that were not wanted for themselves, topmost first: where, and what.
    waiting: Vec<(PathBuf, SourceDir, SourceEntry)>,
    visit: &'a mut dyn FnMut(&Visited<'_>) -> Result<(), E>,
}

/// What is known about everything in a directory.
#[derive(Clone, Copy)]
struct Inside {
    /// The directory or one around it matched.
    is_included: bool,
    /// The verdict on the directory.
    excluded: Verdict,
}

impl<E: From<ContextError>> Walker<'_, E> {
    fn dir(&mut self, dir: &SourceDir, inside: Inside) -> Result<(), E> {
        for entry in dir.entries()? {
            self.path.push(&entry.name);
            self.entry(dir, entry, inside)?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(&mut self, dir: &SourceDir, entry: SourceEntry, inside: Inside) -> Result<(), E> {
        let WalkRules { include, exclude } = self.rules;
        let is_included = inside.is_included || include.as_ref().is_none_or(|include| include.matches(&self.path));
        let excluded = match exclude.is_empty() {
            true => Verdict::default(),
            false => exclude.descend(inside.excluded, &self.path.to_string_lossy()),
        };
        let is_wanted = is_included && !excluded.is_excluded();
        if is_wanted {
            self.visit_waiting()?;
            self.visit_one(dir, &entry)?;
        }
        if !entry.node.kind.is_dir() {
            return Ok(());
        }
        let may_match = is_included || include.as_ref().is_none_or(|include| include.may_match_below(&self.path));
        if !may_match || exclude.excludes_all_below(excluded, &self.path.to_string_lossy()) {
            return Ok(());
        }
        let Some(child) = dir.child_dir(&entry.name)? else { return Ok(()) };
        let inside = Inside { is_included, excluded };
        if is_wanted {
            return self.dir(&child, inside);
        }
        let n_waiting = self.waiting.len();
        self.waiting.push((self.path.clone(), dir.clone(), entry));
        self.dir(&child, inside)?;
        self.waiting.truncate(n_waiting);
        Ok(())
    }

    fn visit_waiting(&mut self) -> Result<(), E> {
        for (path, dir, entry) in self.waiting.drain(..) {
            (self.visit)(&Visited { path: &path, dir: &dir, name: &entry.name, node: &entry.node })?;
        }
        Ok(())
    }

    fn visit_one(&mut self, dir: &SourceDir, entry: &SourceEntry) -> Result<(), E> {
        (self.visit)(&Visited { path: &self.path, dir, name: &entry.name, node: &entry.node })
    }
}

impl Include {
    /// `pattern` is relative, in `.dockerignore` syntax.
    ///
    /// # Errors
    /// [`ContextError::BadFilter`].
    pub fn new(pattern: &str) -> Result<Self> {
        let bad = |reason: String| ContextError::BadFilter { pattern: pattern.to_owned(), reason };
        let matcher = Patterns::new([pattern]).map_err(|e| bad(e.to_string()))?;
        let elements: Vec<&str> = pattern.split('/').filter(|element| !element.is_empty()).collect();
        let n_plain = elements.iter().position(|element| element.contains("**")).unwrap_or(elements.len());
        let prefix = elements[..n_plain].iter().map(|element| Glob::compile(element));
        let prefix = prefix.collect::<Result<_, _>>().map_err(|e| bad(e.to_string()))?;
        Ok(Self { matcher, prefix, is_open: n_plain < elements.len() })
    }

    fn matches(&self, path: &Path) -> bool {
        self.matcher.matches(&path.to_string_lossy())
    }

    /// Whether something below the directory `path` can match. May say yes where nothing does.
    fn may_match_below(&self, path: &Path) -> bool {
        let mut elements = self.prefix.iter();
        for name in path {
            let Some(element) = elements.next() else { return self.is_open };
            if !element.matches(&name.to_string_lossy()) {
                return false;
            }
        }
        true
    }
}
