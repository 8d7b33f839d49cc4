//! Entry paths of strangers, made harmless lexically.

/// A cleaned entry path: relative components without `.`, `..`, empty ones and NUL bytes; empty for the root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CleanPath(Vec<u8>);

/// Cleans `raw` as if it were absolute: `..` at the root stays at the root, as Go's `path.Clean("/" + raw)` has it.
///
/// Purely lexical: whether a component is a symlink is for the extractor to find out. `None` for a path with a NUL byte,
/// which no file system can hold.
///
/// Spec: `spec/engine.md` §1.11.
pub fn clean_path(raw: &[u8]) -> Option<CleanPath> {
    let mut cleaned = CleanPath::default();
    cleaned.replace(raw).then_some(cleaned)
}

impl CleanPath {
    /// Cleans `raw` into this buffer; `false` (and empty) for a path with a NUL byte. See [`clean_path`].
    pub fn replace(&mut self, raw: &[u8]) -> bool {
        self.0.clear();
        if raw.contains(&0) {
            return false;
        }
        for component in raw.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => self.pop(),
                name => self.push(name),
            }
        }
        true
    }

    /// The bytes: components joined by `/`, no slash at either end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components, from the root downwards.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|component| !component.is_empty())
    }

    /// Parent path and last component; `None` for the root.
    pub fn split_last(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[], &self.0),
        })
    }

    fn push(&mut self, name: &[u8]) {
        if !self.0.is_empty() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(name);
    }

    fn pop(&mut self) {
        let parent_len = self.0.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        self.0.truncate(parent_len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_never_leave_the_root() {
        for (raw, cleaned) in [
            ("a/b", "a/b"),
            ("/a//b/", "a/b"),
            ("./a/./b", "a/b"),
            ("../../etc/passwd", "etc/passwd"),
            ("a/../../b", "b"),
            ("a/b/../c", "a/c"),
            (".", ""),
            ("/", ""),
            ("", ""),
            ("...", "..."),
            ("a/..b", "a/..b"),
        ] {
            let path = clean_path(raw.as_bytes()).expect("no NUL");
            assert_eq!(path.as_bytes(), cleaned.as_bytes(), "{raw}");
        }
        assert_eq!(clean_path(b"a\0b"), None);
    }

    #[test]
    fn a_path_splits_into_parent_and_name() {
        let split =
            |raw: &str| clean_path(raw.as_bytes()).expect("no NUL").split_last().map(|(p, n)| (p.to_vec(), n.to_vec()));
        assert_eq!(split("a/b/c"), Some((b"a/b".to_vec(), b"c".to_vec())));
        assert_eq!(split("c"), Some((b"".to_vec(), b"c".to_vec())));
        assert_eq!(split("/"), None);
    }
}
