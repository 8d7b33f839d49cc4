//! Walks a source directory through include and exclude patterns, parents first, names in byte order.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::filter::PathFilter;
use super::source::{SourceDir, SourceEntry};
use super::{Result, glob};
use crate::view::Node;

/// Which entries of a walk are wanted.
#[derive(Default)]
pub struct WalkRules {
    /// Only what matches, or lies below something that does (`--parents`).
    pub include: Option<Include>,
    /// Not what these hide (`--exclude`). A directory that is left out but has something visible below it is visited.
    pub exclude: Option<Box<dyn PathFilter>>,
}

/// The pattern of `COPY --parents`.
pub struct Include {
    /// Decides: it "hides" what is wanted.
    matcher: Box<dyn PathFilter>,
    /// Its elements up to the first `**`, to stay out of directories where nothing can match.
    prefix: Vec<Vec<u8>>,
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
pub fn walk<E: From<super::ContextError>>(
    dir: &SourceDir,
    rules: &WalkRules,
    visit: &mut dyn FnMut(&Visited<'_>) -> Result<(), E>,
) -> Result<(), E> {
    if rules.include.is_none() {
        dir.read_below()?;
    }
    let mut walker = Walker { rules, path: PathBuf::new(), waiting: Vec::new(), visit };
    walker.dir(dir, rules.include.is_none())
}

struct Walker<'a, E> {
    rules: &'a WalkRules,
    path: PathBuf,
    /// Directories on the way that were not wanted for themselves, topmost first: where, and what.
    waiting: Vec<(PathBuf, SourceDir, SourceEntry)>,
    visit: &'a mut dyn FnMut(&Visited<'_>) -> Result<(), E>,
}

impl<E: From<super::ContextError>> Walker<'_, E> {
    /// `included` says that the directory itself matched, and with it everything below.
    fn dir(&mut self, dir: &SourceDir, included: bool) -> Result<(), E> {
        for entry in dir.entries()? {
            self.path.push(&entry.name);
            self.entry(dir, entry, included)?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(&mut self, dir: &SourceDir, entry: SourceEntry, included: bool) -> Result<(), E> {
        let include = self.rules.include.as_ref();
        let exclude = self.rules.exclude.as_deref();
        let included = included || include.is_none_or(|include| include.matcher.hides(&self.path));
        let excluded = exclude.is_some_and(|exclude| exclude.hides(&self.path));
        let wanted = included && !excluded;
        if wanted {
            self.visit_waiting()?;
            self.visit_one(dir, &entry)?;
        }
        if !entry.node.kind.is_dir() {
            return Ok(());
        }
        let may_match = included || include.is_none_or(|include| include.may_match_below(&self.path));
        let may_show = !excluded || exclude.is_none_or(|exclude| exclude.may_show_below(&self.path));
        if !(may_match && may_show) {
            return Ok(());
        }
        let Some(child) = dir.child_dir(&entry.name)? else { return Ok(()) };
        if wanted {
            return self.dir(&child, included);
        }
        let n_waiting = self.waiting.len();
        self.waiting.push((self.path.clone(), dir.clone(), entry));
        self.dir(&child, included)?;
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
    /// `pattern` is relative, `.dockerignore` syntax; `matcher` has been made from it alone.
    pub fn new(pattern: &str, matcher: Box<dyn PathFilter>) -> Self {
        let elements: Vec<&str> = pattern.split('/').filter(|element| !element.is_empty()).collect();
        let n_plain = elements.iter().position(|element| element.contains("**")).unwrap_or(elements.len());
        let prefix = elements[..n_plain].iter().map(|element| element.as_bytes().to_vec()).collect();
        Self { matcher, prefix, is_open: n_plain < elements.len() }
    }

    /// Whether something below the directory `path` can match. May say yes where nothing does.
    fn may_match_below(&self, path: &Path) -> bool {
        let mut elements = self.prefix.iter();
        for name in path {
            let Some(element) = elements.next() else { return self.is_open };
            if glob::matches(element, name.as_encoded_bytes()) == Ok(false) {
                return false;
            }
        }
        true
    }
}
