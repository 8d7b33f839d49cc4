//! Links, as a process in a chroot sees them: `..` and absolute targets stop at the root.
//!
//! One walk for everything that has directories and links: root views, contexts, and the destination of a copy, which
//! is a root view plus what was written to it so far.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use super::{DirView, Node, NodeKind, Result, RootView, ViewError};

/// More links than this on one path are an error, as in BuildKit.
pub const MAX_LINKS: usize = 255;

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved<N> {
    /// Absolute path inside the root, without links (apart from a last one that was to be kept), `.` and `..`.
    pub path: PathBuf,
    /// What is there; `None` when nothing is. Missing directories on the way are kept as they are named.
    pub node: Option<N>,
}

/// What happens to a link at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// It is followed.
    Followed,
    /// It is the result.
    Kept,
}

/// What a directory of a [`Tree`] holds under some name.
pub enum Child<D, N> {
    /// Nothing.
    Missing,
    /// A directory.
    Dir(D, N),
    /// A link and its stored target.
    Link(OsString, N),
    /// Anything else.
    Leaf(N),
}

/// Something with directories and links.
pub trait Tree {
    /// A directory of it.
    type Dir: Clone;
    /// What is known of an entry.
    type Node: Clone;

    /// The root directory and its node, if it has one.
    ///
    /// # Errors
    /// Whatever reading it yields.
    fn root_dir(&self) -> Result<(Self::Dir, Option<Self::Node>)>;

    /// What `dir` holds under `name` (one component, never `.` or `..`).
    ///
    /// # Errors
    /// Whatever reading it yields.
    fn child(&self, dir: &Self::Dir, name: &OsStr) -> Result<Child<Self::Dir, Self::Node>>;
}

/// One resolved component: its name and, as far as it exists, what is there.
struct Step<D, N> {
    name: OsString,
    dir: Option<D>,
    node: Option<N>,
}

/// Follows `path` from the root of `tree`.
///
/// A component that does not exist (or whose parent is no directory) is kept as it is named and the walk goes on, so
/// that the result says where something missing would have to be created.
///
/// # Errors
/// [`ViewError::TooManyLinks`], and what the tree yields.
pub fn resolve<T: Tree>(tree: &T, path: &Path, last: Last) -> Result<Resolved<T::Node>> {
    let (root, root_node) = tree.root_dir()?;
    let mut steps: Vec<Step<T::Dir, T::Node>> = Vec::new();
    let mut todo = VecDeque::new();
    prepend(&mut todo, path);
    let mut n_links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            steps.pop();
            continue;
        }
        let parent = match steps.last() {
            Some(step) => step.dir.as_ref(),
            None => Some(&root),
        };
        let child = parent.map_or(Ok(Child::Missing), |dir| tree.child(dir, &name))?;
        match child {
            Child::Missing => steps.push(Step { name, dir: None, node: None }),
            Child::Dir(dir, node) => steps.push(Step { name, dir: Some(dir), node: Some(node) }),
            Child::Leaf(node) => steps.push(Step { name, dir: None, node: Some(node) }),
            Child::Link(_, node) if last == Last::Kept && todo.is_empty() => {
                steps.push(Step { name, dir: None, node: Some(node) });
            }
            Child::Link(target, _) => {
                n_links += 1;
                if n_links > MAX_LINKS {
                    return Err(ViewError::TooManyLinks { path: path.to_owned() });
                }
                let target = Path::new(&target);
                if target.is_absolute() {
                    steps.clear();
                }
                prepend(&mut todo, target);
            }
        }
    }
    let mut resolved = PathBuf::from("/");
    resolved.extend(steps.iter().map(|step| &step.name));
    let node = match steps.pop() {
        Some(step) => step.node,
        None => root_node,
    };
    Ok(Resolved { path: resolved, node })
}

/// Puts the components of `path` before what is still to be done.
fn prepend(todo: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => todo.push_front(name.to_owned()),
            Component::ParentDir => todo.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

impl Tree for RootView {
    type Dir = DirView;
    type Node = Node;

    fn root_dir(&self) -> Result<(DirView, Option<Node>)> {
        Ok((self.root().clone(), self.root().metadata()?))
    }

    fn child(&self, dir: &DirView, name: &OsStr) -> Result<Child<DirView, Node>> {
        let Some(node) = dir.lookup(name)? else { return Ok(Child::Missing) };
        Ok(match node.kind {
            NodeKind::Dir => match dir.child_dir(name)? {
                Some(child) => Child::Dir(child, node),
                None => Child::Missing,
            },
            NodeKind::Symlink => Child::Link(dir.read_link(name)?.unwrap_or_default(), node),
            _ => Child::Leaf(node),
        })
    }
}
