//! What a copy may look at in the root that it is written onto.

use std::collections::BTreeSet;
use std::path::Path;

/// In the name of the attribute by which a directory hides what is below it.
const HIDES: &[u8] = b"overlay.opaque";

/// With more places than these, everything is as well.
const MOST_PLACES: usize = 64;

/// Paths of a root: some places, all that is below them, and what is on the way to them. Never too little, perhaps too much.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reach {
    /// Relative paths without `.` and `..`; the empty one is the root.
    places: BTreeSet<String>,
}

impl Reach {
    /// A whole root.
    pub(super) fn everything() -> Self {
        Self { places: BTreeSet::from([String::new()]) }
    }

    /// What can be reached by absolute paths where no links are.
    pub(super) fn of<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let places: Option<BTreeSet<String>> = paths.into_iter().map(|path| joined("", path)).collect();
        match places {
            Some(places) if places.len() <= MOST_PLACES => Self { places },
            _ => Self::everything(),
        }
    }

    pub(super) fn is_everything(&self) -> bool {
        self.places.contains("")
    }

    /// Whether `path`, which is relative and clean, is within reach.
    pub(super) fn has(&self, path: &str) -> bool {
        self.places.iter().any(|place| is_at_or_below(path, place) || is_at_or_below(place, path))
    }

    /// Adds what can be reached through `links`: their paths, relative and clean, and where they point.
    pub(super) fn follow<'a>(&mut self, links: impl Iterator<Item = (&'a str, &'a str)> + Clone) {
        while !self.is_everything() {
            let mut found = Vec::new();
            for (link, target) in links.clone() {
                let dir = link.rsplit_once('/').map_or("", |(dir, _)| dir);
                for place in &self.places {
                    // A link below a place may be followed as well, to where it leads and below.
                    let rest = if is_at_or_below(place, link) { &place[link.len()..] } else { "" };
                    if is_at_or_below(place, link) || is_at_or_below(link, place) {
                        found.push(target_of(dir, target).and_then(|target| joined(&target, rest)));
                    }
                }
            }
            let n_before = self.places.len();
            match found.into_iter().collect::<Option<Vec<String>>>() {
                Some(found) => self.places.extend(found),
                None => *self = Self::everything(),
            }
            if self.places.len() > MOST_PLACES {
                *self = Self::everything();
            }
            if self.places.len() == n_before {
                return;
            }
        }
    }

    /// The links of `tree` on the way to the places or below them: paths and targets. `None` if there is too much to look at.
    pub(super) fn links_of(&self, tree: &Path) -> Option<Vec<(String, String)>> {
        let (mut links, mut n_seen) = (Vec::new(), 0);
        for place in &self.places {
            let mut path = String::new();
            let mut is_dir = true;
            for name in place.split('/').filter(|name| !name.is_empty()) {
                path = joined(&path, name)?;
                is_dir = look(tree, &path, &mut links)?;
                if !is_dir {
                    break;
                }
            }
            let mut dirs = if is_dir { vec![path] } else { Vec::new() };
            while let Some(dir) = dirs.pop() {
                let Ok(names) = std::fs::read_dir(tree.join(&dir)) else { continue };
                for name in names {
                    n_seen += 1;
                    let path = joined(&dir, name.ok()?.file_name().to_str()?)?;
                    if n_seen > MOST_PLACES {
                        return None;
                    }
                    if look(tree, &path, &mut links)? {
                        dirs.push(path);
                    }
                }
            }
        }
        Some(links)
    }
}

/// The absolute paths of what is in a tree, but for directories that hold something. `None` if that is too much to list, or if the
/// tree hides what is below a directory.
pub(super) fn leaves(tree: &Path) -> Option<Vec<String>> {
    let (mut leaves, mut dirs) = (Vec::new(), vec![String::new()]);
    while let Some(dir) = dirs.pop() {
        let here = tree.join(&dir);
        let mut names = [0; 4096];
        let len = rustix::fs::llistxattr(&here, &mut names).ok()?;
        if names[..len].windows(HIDES.len()).any(|name| name == HIDES) {
            return None;
        }
        let mut is_empty = true;
        for entry in std::fs::read_dir(here).ok()? {
            let entry = entry.ok()?;
            is_empty = false;
            let path = joined(&dir, entry.file_name().to_str()?)?;
            if leaves.len() + dirs.len() > MOST_PLACES {
                return None;
            }
            match entry.file_type().ok()?.is_dir() {
                true => dirs.push(path),
                false => leaves.push(format!("/{path}")),
            }
        }
        if is_empty {
            leaves.push(format!("/{dir}"));
        }
    }
    Some(leaves)
}

/// Whether there is a directory at a path of a tree, whose parents are directories of it; notes a link. `None` for a link to what is
/// no text.
fn look(tree: &Path, path: &str, links: &mut Vec<(String, String)>) -> Option<bool> {
    let here = tree.join(path);
    let Ok(metadata) = std::fs::symlink_metadata(&here) else { return Some(false) };
    if metadata.is_symlink() {
        links.push((path.to_owned(), std::fs::read_link(here).ok()?.to_str()?.to_owned()));
    }
    Some(metadata.is_dir())
}

/// Where a link in `dir` leads, relative to the root. `None` if it goes up from what may be a link itself.
fn target_of(dir: &str, target: &str) -> Option<String> {
    joined(if target.starts_with('/') { "" } else { dir }, target)
}

/// `path` below `dir`, clean.
fn joined(dir: &str, path: &str) -> Option<String> {
    let mut names: Vec<&str> = dir.split('/').filter(|name| !name.is_empty()).collect();
    let mut is_known = true;
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if is_known => drop(names.pop()),
            ".." => return None,
            name => {
                is_known = false;
                names.push(name);
            }
        }
    }
    Some(names.join("/"))
}

fn is_at_or_below(path: &str, place: &str) -> bool {
    place.is_empty() || path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(reach: &Reach) -> Vec<&str> {
        reach.places.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_place_is_reached_with_what_is_below_and_on_the_way() {
        let reach = Reach::of(["/app/x/", "/etc/passwd"]);
        for path in ["", "app", "app/x", "app/x/y/z", "etc", "etc/passwd"] {
            assert!(reach.has(path), "{path}");
        }
        for path in ["app/xy", "ap", "etc/passwd-", "usr"] {
            assert!(!reach.has(path), "{path}");
        }
        assert!(Reach::of(["/"]).is_everything() && Reach::of(["/a/../b"]).is_everything());
        let many: Vec<String> = (0..100).map(|number| format!("/{number}")).collect();
        assert!(Reach::of(many.iter().map(String::as_str)).is_everything());
    }

    #[test]
    fn links_on_the_way_and_below_are_followed() {
        type Links<'a> = &'a [(&'a str, &'a str)];
        let cases: [(&str, Links<'_>, &[&str]); 7] = [
            ("/bin/x", &[("bin", "usr/bin"), ("lib", "usr/lib")], &["bin/x", "usr/bin/x"]),
            ("/bin/x", &[("bin", "/usr/bin"), ("usr/bin", "../opt/bin")], &["bin/x", "opt/bin/x", "usr/bin/x"]),
            ("/a", &[("a/l", "../b/c")], &["a", "b/c"]),
            ("/a/b", &[("a", "."), ("a/b", "b")], &["a/b", "b"]),
            ("/a", &[("a", "x/../b")], &[""]),
            ("/a", &[("a", "/")], &["", "a"]),
            ("/app", &[("usr/x", "/app"), ("application", "/usr")], &["app"]),
        ];
        for (dest, links, expected) in cases {
            let mut reach = Reach::of([dest]);
            reach.follow(links.iter().copied());
            assert_eq!(places(&reach), expected, "{dest} {links:?}");
        }
        // Each round makes it longer.
        let mut reach = Reach::of(["/a/b"]);
        reach.follow([("a", "a/a")].into_iter());
        assert!(reach.is_everything());
    }

    #[test]
    fn links_of_trees_are_found_without_following_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("app/sub")).unwrap();
        std::os::unix::fs::symlink("/srv", dir.path().join("app/sub/data")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("conf")).unwrap();
        let links = Reach::of(["/app", "/conf/passwd", "/none"]).links_of(dir.path()).unwrap();
        let mut found = leaves(dir.path()).unwrap();
        found.sort();
        assert_eq!(found, ["/app/sub/data", "/conf"]);
        assert_eq!(links, [("app/sub/data".to_owned(), "/srv".to_owned()), ("conf".to_owned(), "/etc".to_owned())]);
        for number in 0..=MOST_PLACES {
            std::fs::write(dir.path().join(format!("app/{number}")), "").unwrap();
        }
        assert_eq!(Reach::of(["/app"]).links_of(dir.path()), None);
        assert_eq!(leaves(dir.path()), None);
    }
}
