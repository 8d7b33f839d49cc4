//! What a copy takes from its source: literal paths, wildcards, `--parents`, `--exclude`.
//!
//! The same selection is made twice, for the key and for the copy; both go through [`select`]. Spec:
//! `spec/dockerfile.md` §2.15, §2.20, §2.21.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use solver::CopySelection;
use solver::plan::patterns::{Glob, Patterns};

use super::source::{Source, SourceDir};
use super::walk::{Include, WalkRules};
use super::{ContextError, Result};
use crate::view::resolve::Last;
use crate::view::{Node, normal_components};

/// What a copy takes.
pub enum Selected {
    /// Files and directories, each on its own; directories stand for their contents.
    Items {
        /// In the order in which they are copied.
        items: Vec<Item>,
        /// For the contents of directories.
        rules: WalkRules,
    },
    /// `--parents`: what the rules want below each directory, with its path from there.
    Parents {
        /// Where the kept paths begin.
        bases: Vec<SourceDir>,
        /// What is wanted.
        rules: WalkRules,
    },
}

/// One source of a copy, links followed.
#[derive(Clone, Debug)]
pub struct Item {
    /// The name as written or matched: a link's, not its target's. Empty for the root of the source.
    pub name: OsString,
    /// What it is.
    pub node: Node,
    /// Where it is.
    pub place: Place,
}

/// Where an [`Item`] is.
#[derive(Clone, Debug)]
pub enum Place {
    /// A directory: itself.
    Dir(SourceDir),
    /// Anything else: the directory it is in, and its name in there.
    Leaf(SourceDir, OsString),
}

/// Finds what `selection` takes from `source`.
///
/// # Errors
/// [`ContextError::NotFound`] for a literal path without anything there, and for a match that is a link without a target;
/// [`ContextError::BadPattern`], [`ContextError::BadFilter`], and I/O errors.
pub fn select(source: &Source, selection: &CopySelection) -> Result<Selected> {
    let exclude = Patterns::new(&selection.excludes)
        .map_err(|e| ContextError::BadFilter { pattern: selection.excludes.join(", "), reason: e.to_string() })?;
    match &selection.parents_base {
        Some(base) => select_parents(source, selection, base, exclude),
        None => {
            let items = if selection.wildcard {
                expand(source, &selection.source)?
            } else {
                vec![literal(source, &selection.source)?]
            };
            Ok(Selected::Items { items, rules: WalkRules { include: None, exclude } })
        }
    }
}

/// The one thing at a literal path.
pub(super) fn literal(source: &Source, path: &str) -> Result<Item> {
    let name = Path::new(path).file_name().unwrap_or_default();
    item(source, Path::new(path), name)?.ok_or_else(|| super::error::not_found(source, path))
}

/// What `path` leads to, under the name `name`.
fn item(source: &Source, path: &Path, name: &OsStr) -> Result<Option<Item>> {
    let resolved = source.resolve(path, Last::Followed)?;
    let (parent, leaf) = match (resolved.path.parent(), resolved.path.file_name()) {
        (Some(parent), Some(leaf)) => (parent, leaf),
        _ => {
            // The root: also of a view without layers, which has no node of its own.
            let Some(dir) = source.root()? else { return Ok(Some(empty_root())) };
            let node = dir.own_node()?.unwrap_or(EMPTY_ROOT);
            return Ok(Some(Item { name: name.to_owned(), node, place: Place::Dir(dir) }));
        }
    };
    let Some(node) = resolved.node else { return Ok(None) };
    let Some(dir) = source.dir(parent)? else { return Ok(None) };
    let place = match node.kind.is_dir() {
        false => Place::Leaf(dir, leaf.to_owned()),
        true => match dir.child_dir(leaf)? {
            Some(child) => Place::Dir(child),
            None => return Ok(None),
        },
    };
    Ok(Some(Item { name: name.to_owned(), node, place }))
}

/// Metadata of a root that has none.
const EMPTY_ROOT: Node = Node {
    layer_idx: 0,
    kind: crate::view::NodeKind::Dir,
    meta: crate::view::Metadata {
        mode: 0o755,
        uid: 0,
        gid: 0,
        size_bytes: 0,
        mtime_s: 0,
        mtime_ns: 0,
        rdev: 0,
        inode: (0, 0),
        n_links: 1,
    },
};

fn empty_root() -> Item {
    let view = crate::view::RootView::empty();
    Item { name: OsString::new(), node: EMPTY_ROOT, place: Place::Dir(SourceDir::View(view.root().clone())) }
}

/// Everything that a wildcard path matches, in the order of a walk. Nothing is a result, too.
///
/// Links are followed in the part before the first wildcard and at the end, not in between, as in BuildKit.
fn expand(source: &Source, pattern: &str) -> Result<Vec<Item>> {
    let bad = || ContextError::BadPattern { pattern: pattern.trim_start_matches('/').to_owned() };
    let elements: Vec<&str> = pattern.split('/').filter(|element| !element.is_empty()).collect();
    let globs: Vec<Glob> =
        elements.iter().map(|element| Glob::compile(element)).collect::<Result<_, _>>().map_err(|_| bad())?;
    let n_literal = elements.iter().take_while(|element| !element.contains(['*', '?', '[', '\\'])).count();
    let prefix: PathBuf = [""].iter().chain(&elements[..n_literal]).collect();
    let prefix = source.resolve(&Path::new("/").join(prefix), Last::Followed)?.path;
    let mut paths = Vec::new();
    if let Some(dir) = source.dir(&prefix)? {
        expand_below(&dir, &prefix, &globs[n_literal..], &mut paths)?;
    }
    let mut items = Vec::with_capacity(paths.len());
    for path in paths {
        // A link that leads nowhere is an error as it is without a wildcard.
        let found = item(source, &path, path.file_name().unwrap_or_default())?;
        items.push(found.ok_or_else(|| super::error::not_found(source, &path.to_string_lossy()))?);
    }
    Ok(items)
}

fn expand_below(dir: &SourceDir, path: &Path, elements: &[Glob], found: &mut Vec<PathBuf>) -> Result<()> {
    let Some((element, rest)) = elements.split_first() else { return Ok(()) };
    for entry in dir.entries()? {
        if !element.matches(&entry.name.to_string_lossy()) {
            continue;
        }
        let path = path.join(&entry.name);
        if rest.is_empty() {
            found.push(path);
        } else if let Some(child) = dir.child_dir(&entry.name)? {
            expand_below(&child, &path, rest, found)?;
        }
    }
    Ok(())
}

fn select_parents(source: &Source, selection: &CopySelection, base: &str, exclude: Patterns) -> Result<Selected> {
    if !selection.wildcard {
        literal(source, &selection.source)?;
    }
    let base_items = match has_wildcard(base) {
        true => expand(source, base)?,
        false => vec![literal(source, base)?],
    };
    let bases = base_items.into_iter().filter_map(|item| match item.place {
        Place::Dir(dir) => Some(dir),
        Place::Leaf(..) => None,
    });
    let n_base = normal_components(Path::new(base)).len();
    let kept: PathBuf = normal_components(Path::new(&selection.source)).into_iter().skip(n_base).collect();
    let kept = kept.to_string_lossy();
    let include = match kept.as_ref() {
        "" => None,
        _ => {
            let pattern = if selection.wildcard { kept.into_owned() } else { escape(&kept) };
            Some(Include::new(&pattern)?)
        }
    };
    Ok(Selected::Parents { bases: bases.collect(), rules: WalkRules { include, exclude } })
}

/// Whether `path` has a `*`, `?` or `[` that no backslash protects.
fn has_wildcard(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    false
}

/// A pattern that matches exactly `path`.
fn escape(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '*' | '?' | '[' | '\\') || (pattern.is_empty() && matches!(c, '!' | '#')) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}
