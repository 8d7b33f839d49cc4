//! Whether the roots of several platforms can lie over each other: no path may mean different things.
//!
//! Directories are merged, whatever their modes; other entries have to be the same in type, mode and content.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;

use super::{ExportError, PlacedRoot};
use crate::view::{DirView, Node, NodeKind};

/// Bytes of a file that are compared at once.
const CHUNK_BYTES: u64 = 128 << 10;

/// Refuses roots that disagree.
///
/// # Errors
/// [`ExportError::Overwritten`] for the first path in lexical order; what cannot be read.
pub(super) fn check(roots: &[PlacedRoot]) -> Result<(), ExportError> {
    let parts: Vec<Part<'_>> = roots.iter().map(|placed| Part { placed, dir: placed.root.root().clone() }).collect();
    check_directory(&parts)
}

/// A directory of one platform's root.
struct Part<'a> {
    placed: &'a PlacedRoot,
    dir: DirView,
}

/// Compares the same directory of several platforms.
fn check_directory(parts: &[Part<'_>]) -> Result<(), ExportError> {
    // What one platform has alone cannot disagree.
    if parts.len() < 2 {
        return Ok(());
    }
    let mut entries: BTreeMap<OsString, Vec<(&Part<'_>, Node)>> = BTreeMap::new();
    for part in parts {
        for (name, node) in part.dir.entries()? {
            entries.entry(name).or_default().push((part, node));
        }
    }
    for (name, found) in &entries {
        let mut children = Vec::new();
        for (part, node) in found {
            if !is_same(&found[0], &(*part, *node), name)? {
                return Err(ExportError::Overwritten {
                    path: part.dir.path().join(name).to_string_lossy().trim_start_matches('/').to_owned(),
                    first: found[0].0.placed.platform.to_string(),
                    second: part.placed.platform.to_string(),
                });
            }
            let dir = if node.kind == NodeKind::Dir { part.dir.child_dir(name)? } else { None };
            children.extend(dir.map(|dir| Part { placed: part.placed, dir }));
        }
        check_directory(&children)?;
    }
    Ok(())
}

/// Whether either may stand for both.
fn is_same(
    (one, node): &(&Part<'_>, Node),
    (other, other_node): &(&Part<'_>, Node),
    name: &OsStr,
) -> Result<bool, ExportError> {
    let (meta, other_meta) = (&node.meta, &other_node.meta);
    if node.kind != other_node.kind {
        return Ok(false);
    }
    // The platforms share what was built for both.
    if node.kind == NodeKind::Dir || meta.inode == other_meta.inode {
        return Ok(true);
    }
    match node.kind {
        NodeKind::Symlink => Ok(one.dir.read_link(name)? == other.dir.read_link(name)?),
        _ if meta.mode != other_meta.mode => Ok(false),
        NodeKind::File if meta.size_bytes != other_meta.size_bytes => Ok(false),
        NodeKind::File => {
            let path = one.dir.path().join(name);
            let same = |(one, other): (File, File)| has_same_bytes(&one, &other);
            let files = one.dir.open_file(name)?.zip(other.dir.open_file(name)?);
            files.map_or(Ok(true), same).map_err(|error| ExportError::io("compare", path, error))
        }
        _ => Ok(meta.rdev == other_meta.rdev),
    }
}

fn has_same_bytes(one: &File, other: &File) -> std::io::Result<bool> {
    loop {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        one.take(CHUNK_BYTES).read_to_end(&mut left)?;
        other.take(CHUNK_BYTES).read_to_end(&mut right)?;
        if left != right || left.is_empty() {
            return Ok(left == right);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use oci::Platform;

    use super::*;
    use crate::view::RootView;

    fn root(tree: &Path, architecture: &str) -> PlacedRoot {
        let root = RootView::open(&[tree.to_owned()]).expect("view");
        PlacedRoot { platform: Platform::new("linux", architecture, None), root, is_apart: false, epoch: None }
    }

    /// Puts something into a directory.
    type Make<'a> = &'a dyn Fn(&Path);

    /// What is said of two trees, each made by one of the functions.
    fn said(make: [Make<'_>; 2]) -> Result<(), String> {
        let temp = tempfile::tempdir().expect("temp dir");
        let roots = ["amd64", "arm64"].iter().zip(make).map(|(architecture, make)| {
            let tree = temp.path().join(architecture);
            std::fs::create_dir_all(tree.join("d/e")).expect("tree");
            make(&tree.join("d/e"));
            root(&tree, architecture)
        });
        check(&roots.collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    fn file(content: &'static str, mode: u32) -> impl Fn(&Path) {
        move |dir: &Path| {
            std::fs::write(dir.join("f"), content).expect("file");
            std::fs::set_permissions(dir.join("f"), PermissionsExt::from_mode(mode)).expect("mode");
        }
    }

    fn link(target: &'static str) -> impl Fn(&Path) {
        move |dir: &Path| symlink(target, dir.join("f")).expect("link")
    }

    #[test]
    fn what_is_equal_or_alone_can_be_merged_and_nothing_else() {
        let nothing = |_: &Path| ();
        let (one, same, other, open) = (file("1", 0o644), file("1", 0o644), file("2", 0o644), file("1", 0o666));
        let directory = |dir: &Path| std::fs::create_dir(dir.join("f")).expect("directory");
        let cases: [([Make<'_>; 2], bool); 9] = [
            ([&nothing, &one], true),
            ([&one, &same], true),
            ([&directory, &directory], true),
            ([&link("a"), &link("a")], true),
            ([&link("a"), &link("b")], false),
            ([&one, &other], false),
            ([&one, &open], false),
            ([&one, &link("a")], false),
            ([&directory, &one], false),
        ];
        for (index, (make, is_fine)) in cases.into_iter().enumerate() {
            let words = "cannot overwrite d/e/f from linux/amd64 with linux/arm64 when split option is disabled";
            let expected = if is_fine { Ok(()) } else { Err(words.to_owned()) };
            assert_eq!(said(make), expected, "case {index}");
        }
    }
}
