//! WORKDIR's directory and inline files. Spec: `spec/dockerfile.md` §1.9, §2.9.

use std::ffi::OsStr;
use std::path::Path;

use solver::{MakeDirAction, OpError, WriteFileAction};

use super::Setting;
use super::copy::{Style, mkdir_error, place_file};
use super::draft::{Attributes, Body, Draft, Inode, InodeKind, InodeXattrs, NewDirs};
use super::owner::Owners;
use crate::view::NodeKind;
use crate::view::resolve::Last;

/// Mode of an inline file without `--chmod`.
const INLINE_MODE: u32 = 0o644;

/// Makes a directory with its missing parents; an existing one stays as it is.
pub(super) fn make_dir(
    draft: &mut Draft,
    owners: &mut Owners,
    setting: &Setting<'_>,
    action: &MakeDirAction,
) -> Result<(), OpError> {
    let owner = action.owner.as_ref().map(|owner| owners.look_up(draft.root_view(), owner)).transpose()?;
    let mtime = action.mtime.map_or(setting.now, |seconds| (seconds, 0));
    let created = NewDirs { mode: action.mode, owner, mtime };
    let path = draft.resolve(Path::new(&action.path), Last::Followed)?.path;
    draft.ensure_dir(&path, &created)?.map_err(|e| mkdir_error(&e))?;
    Ok(())
}

/// Writes an inline file where a copy of one file of that name would go.
pub(super) fn write_file(
    draft: &mut Draft,
    owners: &mut Owners,
    setting: &Setting<'_>,
    action: &WriteFileAction,
) -> Result<(), OpError> {
    let style = Style::new(draft, owners, setting, action.owner.as_ref(), action.mode.as_ref())?;
    let (uid, gid) = style.owner.unwrap_or((0, 0));
    let mode = style.chmod.as_ref().map_or(INLINE_MODE, |chmod| chmod.apply(INLINE_MODE, NodeKind::File));
    let mtime = action.mtime.map_or(setting.now, |seconds| (seconds, 0));
    let (parent, name, _) = place_file(draft, &style, &action.dest, OsStr::new(&action.name))?;
    let inode = draft.new_inode(Inode {
        attributes: Attributes { mode, uid, gid, mtime },
        kind: InodeKind::File(Body::Bytes(action.content.as_slice().into())),
        xattrs: InodeXattrs::Given(Vec::new()),
    });
    draft.link(parent, &name, inode);
    Ok(())
}
