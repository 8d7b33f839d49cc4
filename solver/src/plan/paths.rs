//! Paths inside of roots, as text. All of them are absolute in the end, whatever the Dockerfile says.

/// The shortest equal absolute path: no `.`, no `..`, no empty parts, no slash at the end but for the root.
///
/// A relative path is taken from the root; `..` at the root stays there.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Whether a path has more `..` than directories to leave.
pub(super) fn climbs_out(path: &str) -> bool {
    let mut depth = 0_usize;
    path.split('/').any(|part| match part {
        "" | "." => false,
        ".." if depth == 0 => true,
        ".." => {
            depth -= 1;
            false
        }
        _ => {
            depth += 1;
            false
        }
    })
}

/// `path` seen from the directory `dir`, cleaned.
pub(super) fn join(dir: &str, path: &str) -> String {
    if path.starts_with('/') { clean(path) } else { clean(&format!("{dir}/{path}")) }
}

/// The destination of a copy: absolute and clean, with a slash at the end when a directory is meant.
///
/// Spec: `spec/dockerfile.md` §2.15, "Destination".
pub(super) fn destination(workdir: &str, dest: &str) -> String {
    let path = join(workdir, dest);
    let is_directory = matches!(dest, "" | ".") || dest.ends_with('/') || dest.ends_with("/.");
    if is_directory && path != "/" { format!("{path}/") } else { path }
}

/// What WORKDIR makes of `path`: absolute paths are kept letter by letter, relative ones joined to `current` and cleaned.
///
/// Spec: `spec/dockerfile.md` §2.9. That nothing leaves the directory as it is is recorded in
/// `workdir-values/relative-and-unclean`.
pub(super) fn workdir(current: &str, path: &str) -> String {
    match path {
        "" if current.is_empty() => "/".to_owned(),
        "" => current.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => join(current, path),
    }
}

/// The last part of a path; empty for the root.
pub(super) fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// Whether a path is a pattern: it has a `*`, `?` or `[` that no backslash protects.
pub(super) fn has_wildcard(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_keep_their_slash() {
        // (workdir, dest, wanted)
        let table = [
            ("/", "/d", "/d"),
            ("/", "/d/", "/d/"),
            ("/", "/d/.", "/d/"),
            ("/", "/", "/"),
            ("/w", ".", "/w/"),
            ("/w", "", "/w/"),
            ("/w", "./", "/w/"),
            ("/w", "x/../y", "/w/y"),
            ("/w", "../../z/", "/z/"),
            ("", ".", "/"),
            ("//abs///z/.", "f", "/abs/z/f"),
        ];
        for (workdir, dest, wanted) in table {
            assert_eq!(destination(workdir, dest), wanted, "{workdir} {dest}");
        }
    }

    #[test]
    fn paths_can_climb_out() {
        for path in ["..", "../x", "/../x", "a/../../x", "./../x/.."] {
            assert!(climbs_out(path), "{path}");
        }
        for path in ["", ".", "x", "a/..", "a/../x", "..x", "a/b/../../c"] {
            assert!(!climbs_out(path), "{path}");
        }
    }

    #[test]
    fn working_directories_are_as_recorded() {
        let table = [
            ("", "rel", "/rel"),
            ("/rel", "./x/../y/", "/rel/y"),
            ("/a", "..", "/"),
            ("/rel/y", "//abs///z/.", "//abs///z/."),
            ("//abs///z/.", "", "//abs///z/."),
            ("", "", "/"),
        ];
        for (current, path, wanted) in table {
            assert_eq!(workdir(current, path), wanted, "{current} {path}");
        }
    }

    #[test]
    fn wildcards_can_be_protected() {
        for pattern in ["*", "a?", "x/[a]", r"\\*"] {
            assert!(has_wildcard(pattern), "{pattern}");
        }
        for literal in ["a", r"a\*", r"\[\?", "a]", r"end\"] {
            assert!(!has_wildcard(literal), "{literal}");
        }
    }

    #[test]
    fn base_names_ignore_slashes_at_the_end() {
        for (path, name) in [("/a/b", "b"), ("/a/b/", "b"), ("/", ""), ("a", "a")] {
            assert_eq!(base_name(path), name);
        }
    }
}
