//! COPY and ADD of one source into the draft. Spec: `spec/dockerfile.md` §2.15, §2.20.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use solver::{CopyAction, OpError, Unpack};

use super::Setting;
use super::draft::{Attributes, Body, DirId, Draft, Inode, InodeId, InodeKind, InodeXattrs, NewDirs, NotADirectory};
use super::mode::Chmod;
use super::owner::Owners;
use crate::context::select::{Item, Place, Selected, select};
use crate::context::source::{Source, SourceDir};
use crate::context::walk::{Visited, WalkRules, walk};
use crate::view::resolve::Last;
use crate::view::{Node, NodeKind};

/// How one action changes what it copies and creates.
pub(super) struct Style {
    /// `--chown`, looked up.
    pub(super) owner: Option<(u32, u32)>,
    /// `--chmod`.
    pub(super) chmod: Option<Chmod>,
    /// For directories that have to be created.
    pub(super) created: NewDirs,
}

/// A copy's first file of each hard-linked group, by device and inode.
type Links = HashMap<(u64, u64), InodeId>;

impl Style {
    /// The style of an action with these flags.
    pub(super) fn new(
        draft: &Draft,
        owners: &mut Owners,
        setting: &Setting<'_>,
        owner: Option<&solver::Owner>,
        mode: Option<&solver::ModeChange>,
    ) -> Result<Self, OpError> {
        let owner = owner.map(|owner| owners.look_up(draft.root_view(), owner)).transpose()?;
        let chmod = mode.map(Chmod::new).transpose()?;
        let mode = chmod.as_ref().map_or(0o755, Chmod::of_created_dir);
        Ok(Self { owner, chmod, created: NewDirs { mode, owner, mtime: setting.now } })
    }

    /// What a copied entry gets.
    pub(super) fn attributes(&self, node: &Node) -> Attributes {
        let mut attributes = Attributes::of(node);
        if let Some((uid, gid)) = self.owner {
            (attributes.uid, attributes.gid) = (uid, gid);
        }
        if let Some(chmod) = &self.chmod {
            attributes.mode = chmod.apply(attributes.mode, node.kind);
        }
        attributes
    }
}

/// Copies one source.
///
/// [`CopyAction::keep_source_metadata`] asks for nothing more: what a copy takes from a root keeps its metadata anyway.
pub(super) fn copy(
    draft: &mut Draft,
    owners: &mut Owners,
    setting: &Setting<'_>,
    action: &CopyAction,
) -> Result<(), OpError> {
    let style = Style::new(draft, owners, setting, action.owner.as_ref(), action.mode.as_ref())?;
    let source = setting.source(action.input)?;
    match select(&source, &action.selection)? {
        Selected::Items { items, rules } => {
            for item in items {
                copy_item(draft, setting, action, &style, &item, &rules)?;
            }
        }
        Selected::Parents { bases, rules } => {
            let path = draft.resolve(Path::new(&action.dest), Last::Followed)?.path;
            let top = draft.ensure_dir(&path, &style.created)?.map_err(|e| mkdir_error(&e))?;
            for base in &bases {
                copy_contents(draft, setting, &style, base, &rules, (top, &path))?;
            }
        }
    }
    Ok(())
}

fn copy_item(
    draft: &mut Draft,
    setting: &Setting<'_>,
    action: &CopyAction,
    style: &Style,
    item: &Item,
    rules: &WalkRules,
) -> Result<(), OpError> {
    match &item.place {
        Place::Dir(dir) => {
            let dest = draft.resolve(Path::new(&action.dest), Last::Followed)?;
            if dest.node.is_some_and(|kind| !kind.is_dir()) {
                return Err(non_directory(&dest.path));
            }
            let top = draft.ensure_dir(&dest.path, &style.created)?.map_err(|e| mkdir_error(&e))?;
            draft.dir_mut(top).attributes.mtime = (item.node.meta.mtime_s, item.node.meta.mtime_ns);
            copy_contents(draft, setting, style, dir, rules, (top, &dest.path))
        }
        Place::Leaf(dir, name) => {
            if action.unpack == Unpack::IfArchive
                && item.node.kind == NodeKind::File
                && super::archive::unpack(draft, setting, style, dir, name, &action.dest)?
            {
                return Ok(());
            }
            let (parent, target, path) = place_file(draft, style, &action.dest, &item.name)?;
            put_leaf(draft, style, (parent, &target, &path), dir, name, &item.node, &mut Links::new())
        }
    }
}

/// Decides where a single file called `name` goes: its directory (made if need be), its name in there and its path.
pub(super) fn place_file(
    draft: &mut Draft,
    style: &Style,
    dest: &str,
    name: &OsStr,
) -> Result<(DirId, OsString, PathBuf), OpError> {
    let resolved = draft.resolve(Path::new(dest), Last::Followed)?;
    let wants_dir = dest.ends_with('/') || dest.ends_with("/.") || dest == ".";
    let is_dir = resolved.node.is_some_and(NodeKind::is_dir);
    let (dir_path, target) = match (resolved.path.parent(), resolved.path.file_name()) {
        (Some(parent), Some(last)) if !wants_dir && !is_dir => (parent.to_owned(), last.to_owned()),
        _ => (resolved.path, name.to_owned()),
    };
    let parent = draft.ensure_dir(&dir_path, &style.created)?.map_err(|e| mkdir_error(&e))?;
    let path = dir_path.join(&target);
    if draft.lookup(parent, &target)?.is_some_and(NodeKind::is_dir) {
        return Err(OpError::input(format!("cannot replace to directory {} with file", path.display())));
    }
    Ok((parent, target, path))
}

/// Copies what the rules want of `source` into the drafted directory `top` at the given path.
fn copy_contents(
    draft: &mut Draft,
    setting: &Setting<'_>,
    style: &Style,
    source: &SourceDir,
    rules: &WalkRules,
    (top, top_path): (DirId, &Path),
) -> Result<(), OpError> {
    let mut links = Links::new();
    // The drafted directory at each depth of the walk; a walk visits parents right before their children.
    let mut dirs = vec![top];
    let mut n_visited = 0_usize;
    walk::<OpError>(source, rules, &mut |entry: &Visited<'_>| {
        n_visited += 1;
        if n_visited.is_multiple_of(CANCEL_EVERY) {
            setting.check_cancelled()?;
        }
        let depth = entry.path.as_os_str().as_bytes().iter().filter(|byte| **byte == b'/').count();
        dirs.truncate(depth + 1);
        let parent = dirs[depth];
        if entry.node.kind.is_dir() {
            dirs.push(merge_dir(draft, style, parent, entry, top_path)?);
            return Ok(());
        }
        if draft.lookup(parent, entry.name)?.is_some_and(NodeKind::is_dir) {
            let path = top_path.join(entry.path);
            return Err(OpError::input(format!("cannot replace to directory {} with file", path.display())));
        }
        let at = (parent, entry.name, entry.path);
        put_leaf(draft, style, at, entry.dir, entry.name, entry.node, &mut links)
    })
}

/// Entries between two looks at the cancellation token.
const CANCEL_EVERY: usize = 1024;

/// A directory inside of what is copied: it takes the source's metadata, whether it was there or not.
fn merge_dir(
    draft: &mut Draft,
    style: &Style,
    parent: DirId,
    entry: &Visited<'_>,
    top_path: &Path,
) -> Result<DirId, OpError> {
    let attributes = style.attributes(entry.node);
    let xattrs = entry.dir.xattrs(entry.name)?;
    if let Some(id) = draft.existing_dir(parent, entry.name)? {
        let dir = draft.dir_mut(id);
        dir.attributes = attributes;
        for (name, value) in xattrs {
            dir.xattrs.retain(|(existing, _)| *existing != name);
            dir.xattrs.push((name, value));
        }
        return Ok(id);
    }
    if draft.lookup(parent, entry.name)?.is_some() {
        return Err(non_directory(&top_path.join(entry.path)));
    }
    Ok(draft.new_dir(parent, entry.name, attributes, xattrs)?)
}

/// Puts a file, link or device of a source into the draft. The target is no directory.
fn put_leaf(
    draft: &mut Draft,
    style: &Style,
    (parent, target, path): (DirId, &OsStr, &Path),
    dir: &SourceDir,
    name: &OsStr,
    node: &Node,
    links: &mut Links,
) -> Result<(), OpError> {
    let is_linked = node.kind == NodeKind::File && node.meta.n_links > 1;
    if is_linked && let Some(first) = links.get(&node.meta.inode) {
        draft.link(parent, target, *first);
        return Ok(());
    }
    let kind = match node.kind {
        NodeKind::File => {
            InodeKind::File(Body::Source { dir: dir.clone(), name: name.to_owned(), size_bytes: node.meta.size_bytes })
        }
        NodeKind::Symlink => InodeKind::Symlink(dir.read_link(name)?),
        NodeKind::Fifo => InodeKind::Fifo,
        NodeKind::Socket => InodeKind::File(Body::Bytes([].into())),
        NodeKind::CharDevice => InodeKind::CharDevice(node.meta.rdev),
        NodeKind::BlockDevice => InodeKind::BlockDevice(node.meta.rdev),
        NodeKind::Dir => return Err(OpError::internal(format!("`{}` is copied as a file", path.display()))),
    };
    let xattrs = match dir {
        SourceDir::View(_) => InodeXattrs::OfSource(dir.clone(), name.to_owned()),
        SourceDir::Context(..) => InodeXattrs::Given(Vec::new()),
    };
    let inode = draft.new_inode(Inode { attributes: style.attributes(node), kind, xattrs });
    if is_linked {
        links.insert(node.meta.inode, inode);
    }
    draft.link(parent, target, inode);
    Ok(())
}

/// BuildKit's words for a file where a directory is wanted; its host path is the path in the root here.
fn non_directory(path: &Path) -> OpError {
    OpError::input(format!("cannot copy to non-directory: {}", path.display()))
}

/// The words for a file on the way to a directory that must be made.
pub(super) fn mkdir_error(error: &NotADirectory) -> OpError {
    OpError::input(format!("mkdir {}: not a directory", error.path.display()))
}

impl Setting<'_> {
    /// The source that an action names.
    fn source(&self, input: Option<usize>) -> Result<Source, OpError> {
        let Some(input) = input else { return Ok(Source::Empty) };
        let missing = || OpError::internal(format!("a copy reads input {input} of {}", self.inputs.len()));
        self.inputs.get(input).cloned().ok_or_else(missing)
    }
}
