//! What a context holds, for people: files with their sizes, what is hidden, and which rule decided.

use std::path::{Path, PathBuf};

use super::{ContextDir, LocalContext, RuleAt, scan};
use crate::view::{NodeKind, ViewError};

/// One thing that a build can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the context.
    pub path: PathBuf,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u32,
    /// Length of a file, else 0.
    pub size_bytes: u64,
    /// Of a link.
    pub target: Option<PathBuf>,
}

/// Something that the rules hide; what is in a directory goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// Relative to the context.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// The rule that hides it; `None` for what has appeared since the context was read.
    pub rule: Option<RuleAt>,
}

/// Whether a build can see a path, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// Whether anything is there.
    pub exists: bool,
    /// Whether a build can see it.
    pub is_sent: bool,
    /// The rule that decided; without one, everything can be seen.
    pub rule: Option<RuleAt>,
    /// Whether a hidden directory comes along for something visible in it.
    pub comes_along: bool,
}

/// Everything in the context, parents first, names in byte order.
///
/// # Errors
/// I/O errors.
pub fn list(context: &LocalContext) -> super::Result<Vec<Listed>> {
    let top = context.top()?;
    context.read_below(&top)?;
    let mut listed = Vec::new();
    list_below(context, &top, &mut listed)?;
    Ok(listed)
}

fn list_below(context: &LocalContext, dir: &ContextDir, listed: &mut Vec<Listed>) -> super::Result<()> {
    for entry in dir.entries() {
        let name = dir.name_of(entry);
        let node = entry.node();
        let target = match node.kind {
            NodeKind::Symlink => Some(scan::read_link(context, dir, name)?.into()),
            _ => None,
        };
        let size_bytes = if node.kind == NodeKind::File { node.meta.size_bytes } else { 0 };
        let path = dir.path().join(name);
        listed.push(Listed { path, kind: node.kind, mode: node.meta.mode, size_bytes, target });
        if let Some(child) = context.child_dir(dir, name)? {
            list_below(context, &child, listed)?;
        }
    }
    Ok(())
}

/// What the rules hide: the topmost paths only.
///
/// # Errors
/// I/O errors.
pub fn hidden(context: &LocalContext) -> super::Result<Vec<Hidden>> {
    let top = context.top()?;
    context.read_below(&top)?;
    let mut found = Vec::new();
    hidden_below(context, &top, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn hidden_below(context: &LocalContext, dir: &ContextDir, found: &mut Vec<Hidden>) -> super::Result<()> {
    let host = context.host_path(dir.path());
    let io = |source| ViewError::io("list", &host, source);
    for entry in std::fs::read_dir(&host).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let path = dir.path().join(&name);
        match dir.entry(&name) {
            None => {
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let rule = context.rules().decided_by(&path).filter(|rule| rule.hides);
                found.push(Hidden { path, is_dir, rule });
            }
            Some(_) => {
                if let Some(child) = context.child_dir(dir, &name)? {
                    hidden_below(context, &child, found)?;
                }
            }
        }
    }
    Ok(())
}

/// Says whether a build sees `path`, which is relative to the context.
///
/// # Errors
/// I/O errors.
pub fn why(context: &LocalContext, path: &Path) -> super::Result<Why> {
    let exists = context.host_path(path).symlink_metadata().is_ok();
    let rule = context.rules().decided_by(path);
    let is_hidden = rule.as_ref().is_some_and(|rule| rule.hides);
    let seen = is_seen(context, path)?;
    Ok(Why { exists, is_sent: seen, rule, comes_along: seen && is_hidden })
}

fn is_seen(context: &LocalContext, path: &Path) -> super::Result<bool> {
    let mut dir = context.top()?;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let name = name.as_os_str();
        if dir.entry(name).is_none() {
            return Ok(false);
        }
        if names.peek().is_some() {
            match context.child_dir(&dir, name)? {
                Some(child) => dir = child,
                None => return Ok(false),
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use solver::plan::patterns::Patterns;

    use super::*;
    use crate::context::IgnoreRules;

    fn context(ignore: &str) -> (tempfile::TempDir, LocalContext) {
        let dir = tempfile::TempDir::new().unwrap();
        for (path, text) in
            [("a.txt", "12345"), ("src/b.rs", "1"), ("node_modules/x/y.js", "1"), ("node_modules/keep", "")]
        {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        std::os::unix::fs::symlink("a.txt", dir.path().join("link")).unwrap();
        let patterns = Patterns::parse_ignore_file(ignore.as_bytes()).unwrap();
        let rules = IgnoreRules { patterns, file: ".dockerignore".to_owned() };
        let context = LocalContext::open("context", dir.path(), rules, None).unwrap();
        (dir, context)
    }

    #[test]
    fn what_is_seen_and_what_is_hidden_by_which_rule() {
        let (_dir, context) = context("# big\nnode_modules\n!node_modules/keep\n*.txt\n");
        let listed = list(&context).unwrap();
        let paths: Vec<_> = listed.iter().map(|it| (it.path.to_str().unwrap(), it.size_bytes)).collect();
        assert_eq!(paths, [("link", 0), ("node_modules", 0), ("node_modules/keep", 0), ("src", 0), ("src/b.rs", 1)]);
        assert_eq!(listed[0].target.as_deref(), Some(Path::new("a.txt")));
        let hidden: Vec<_> = hidden(&context)
            .unwrap()
            .into_iter()
            .map(|it| (it.path.display().to_string(), it.is_dir, it.rule.unwrap().line_1based))
            .collect();
        assert_eq!(hidden, [("a.txt".to_owned(), false, 4), ("node_modules/x".to_owned(), true, 2)]);
    }

    #[test]
    fn every_path_has_a_reason() {
        let (_dir, context) = context("node_modules\n!node_modules/keep\n");
        let of = |path: &str| {
            let why = why(&context, Path::new(path)).unwrap();
            (why.exists, why.is_sent, why.comes_along, why.rule.map(|rule| (rule.line_1based, rule.hides)))
        };
        assert_eq!(of("a.txt"), (true, true, false, None));
        assert_eq!(of("node_modules/x/y.js"), (true, false, false, Some((1, true))));
        assert_eq!(of("node_modules/keep"), (true, true, false, Some((2, false))));
        assert_eq!(of("node_modules"), (true, true, true, Some((1, true))));
        assert_eq!(of("nothing"), (false, false, false, None));
    }
}
