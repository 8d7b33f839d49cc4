//! Git URLs: which texts are git at all, and what their fragment and query ask for.
//!
//! Spec: `spec/dockerfile.md` §2.24, `spec/engine.md` §4.5.

use crate::op::GitOp;

/// A git URL taken apart. `None` in an option means "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitUrl {
    /// Remote without fragment and query.
    pub remote: String,
    /// Branch, tag, commit or full ref.
    pub reference: Option<String>,
    /// Directory inside the repository.
    pub subdir: Option<String>,
    /// Expected commit, or a prefix of it.
    pub checksum: Option<String>,
    /// Keep `.git`.
    pub keep_git_dir: Option<bool>,
    /// Check out submodules.
    pub submodules: Option<bool>,
    /// Give the files the time of the commit.
    pub commit_times: bool,
}

/// Why a git URL is not a good one; the text is BuildKit's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GitUrlError {
    /// `?ref=`
    #[error("query \"{key}\" has no value")]
    NoValue {
        /// Which one.
        key: String,
    },
    /// `?ref=a&ref=b`
    #[error("query \"{key}\" has multiple values")]
    MultipleValues {
        /// Which one.
        key: String,
    },
    /// `?reff=a`
    #[error("unexpected query \"{key}\"")]
    Unexpected {
        /// Which one.
        key: String,
    },
    /// Two texts for the same thing.
    #[error("{what} conflicts: \"{first}\" vs \"{second}\"")]
    Conflict {
        /// `ref`, `subdir` or `checksum`.
        what: &'static str,
        /// The one of the fragment.
        first: String,
        /// The one of the query.
        second: String,
    },
    /// `?branch=a&tag=b`
    #[error("branch conflicts with tag")]
    BranchAndTag,
    /// `?mtime=now`
    #[error("invalid mtime value: \"{value}\" (must be \"checkout\" or \"commit\")")]
    Mtime {
        /// What was given.
        value: String,
    },
    /// `?submodules=maybe`
    #[error("invalid {key} value: \"{value}\"")]
    Boolean {
        /// Which one.
        key: String,
        /// What was given.
        value: String,
    },
}

impl GitUrl {
    /// Reads a source of ADD. `None` when the text is not git at all.
    ///
    /// # Errors
    /// [`GitUrlError`], for a text that is git but asks for something impossible.
    pub fn parse(text: &str) -> Option<Result<Self, GitUrlError>> {
        let (before_fragment, fragment) = split_once_opt(text, '#');
        let (remote, query) = split_once_opt(before_fragment, '?');
        is_git_remote(remote).then(|| Self::from_parts(remote, query, fragment))
    }

    /// Reads a build context: as [`parse`](Self::parse), and `github.com/user/repo` without a scheme.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn parse_context(text: &str) -> Option<Result<Self, GitUrlError>> {
        if text.starts_with("github.com/") {
            let (before_fragment, fragment) = split_once_opt(text, '#');
            let (remote, query) = split_once_opt(before_fragment, '?');
            return Some(Self::from_parts(&format!("https://{remote}"), query, fragment));
        }
        Self::parse(text)
    }

    /// The operation that fetches it; `keep_git_dir` when the URL does not say.
    pub fn to_op(&self, keep_git_dir: bool) -> GitOp {
        GitOp {
            remote: self.remote.clone(),
            reference: self.reference.clone(),
            subdir: self.subdir.clone(),
            checksum: self.checksum.clone(),
            // With a subdirectory there is no place for it.
            keep_git_dir: self.keep_git_dir.unwrap_or(keep_git_dir) && self.subdir.is_none(),
            submodules: self.submodules.unwrap_or(true),
            commit_times: self.commit_times,
        }
    }

    fn from_parts(remote: &str, query: Option<&str>, fragment: Option<&str>) -> Result<Self, GitUrlError> {
        let mut url = Self { remote: remote.to_owned(), ..Self::default() };
        if let Some(fragment) = fragment {
            let (reference, subdir) = split_once_opt(fragment, ':');
            url.reference = Some(reference.to_owned()).filter(|text| !text.is_empty());
            url.subdir = subdir.map(str::to_owned).filter(|text| !text.is_empty());
        }
        let pairs = query.map(query_pairs).unwrap_or_default();
        for (index, (key, value)) in pairs.iter().enumerate() {
            if pairs[..index].iter().any(|(earlier, _)| earlier == key) {
                return Err(GitUrlError::MultipleValues { key: key.clone() });
            }
            url.apply(key, value)?;
        }
        if pairs.iter().any(|(key, _)| key == "branch") && pairs.iter().any(|(key, _)| key == "tag") {
            return Err(GitUrlError::BranchAndTag);
        }
        // Only now, so that two query keys are compared with the fragment and not with each other first.
        for (key, value) in &pairs {
            match key.as_str() {
                "ref" => agree("ref", &mut url.reference, value.clone())?,
                "branch" => agree("ref", &mut url.reference, format!("refs/heads/{value}"))?,
                "tag" => agree("ref", &mut url.reference, format!("refs/tags/{value}"))?,
                _ => {}
            }
        }
        Ok(url)
    }

    /// Takes one key of the query, but for the refs.
    fn apply(&mut self, key: &str, value: &str) -> Result<(), GitUrlError> {
        let is_flag = matches!(key, "keep-git-dir" | "submodules" | "fetch-by-commit");
        let is_known = is_flag || matches!(key, "ref" | "branch" | "tag" | "subdir" | "commit" | "checksum" | "mtime");
        if !is_known {
            return Err(GitUrlError::Unexpected { key: key.to_owned() });
        }
        if value.is_empty() && !is_flag {
            return Err(GitUrlError::NoValue { key: key.to_owned() });
        }
        match key {
            "subdir" => agree("subdir", &mut self.subdir, value.to_owned())?,
            "commit" | "checksum" => agree("checksum", &mut self.checksum, value.to_owned())?,
            "mtime" => {
                self.commit_times = match value {
                    "checkout" => false,
                    "commit" => true,
                    _ => return Err(GitUrlError::Mtime { value: value.to_owned() }),
                }
            }
            "keep-git-dir" => self.keep_git_dir = Some(flag(key, value)?),
            "submodules" => self.submodules = Some(flag(key, value)?),
            // How the commit is fetched is the fetcher's business; the value is only checked.
            "fetch-by-commit" => drop(flag(key, value)?),
            _ => {}
        }
        Ok(())
    }
}

/// A git source as text, without credentials: `remote[#ref[:subdir]]`.
pub(super) fn shown(git: &GitOp) -> String {
    let subdir = git.subdir.as_deref().map(|subdir| format!(":{subdir}")).unwrap_or_default();
    let fragment = format!("{}{subdir}", git.reference.as_deref().unwrap_or_default());
    let remote = redacted(&git.remote);
    if fragment.is_empty() { remote } else { format!("{remote}#{fragment}") }
}

/// The URL with user and password replaced by `xxxxx`, for messages, logs and whatever stays in a layer.
pub fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    match authority.rsplit_once('@') {
        None => url.to_owned(),
        // The user of `ssh://git@host/` is part of the address, not a secret.
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{scheme}://{user}:xxxxx@{host}{path}"),
            None if scheme.eq_ignore_ascii_case("ssh") || scheme.eq_ignore_ascii_case("git") => url.to_owned(),
            None => format!("{scheme}://xxxxx@{host}{path}"),
        },
    }
}

/// Whether a text without query and fragment names a git repository.
fn is_git_remote(remote: &str) -> bool {
    if remote.starts_with("git://") || remote.starts_with("ssh://") {
        return true;
    }
    if is_http(remote) {
        return remote.ends_with(".git");
    }
    // `user@host:path`, as ssh writes it.
    let Some((user, rest)) = remote.split_once('@') else { return false };
    let is_word = |text: &str, extra: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    rest.split_once(':').is_some_and(|(host, path)| is_word(user, "-_") && is_word(host, "-.") && !path.is_empty())
}

/// Whether a source of ADD is an http(s) URL.
pub fn is_http(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

fn agree(what: &'static str, slot: &mut Option<String>, value: String) -> Result<(), GitUrlError> {
    match slot {
        Some(first) if *first != value => Err(GitUrlError::Conflict { what, first: first.clone(), second: value }),
        _ => {
            *slot = Some(value);
            Ok(())
        }
    }
}

fn flag(key: &str, value: &str) -> Result<bool, GitUrlError> {
    match value {
        "" => Ok(true),
        value => parser::go::parse_bool(value)
            .ok_or_else(|| GitUrlError::Boolean { key: key.to_owned(), value: value.to_owned() }),
    }
}

fn query_pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = split_once_opt(pair, '=');
            (query_decode(key), query_decode(value.unwrap_or_default()))
        })
        .collect()
}

fn query_decode(text: &str) -> String {
    percent_decode(&text.replace('+', " "))
}

/// Replaces `%XX`; whatever is not that, or would not be UTF-8, stays.
pub(super) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%').then(|| tail.get(..2)).flatten();
        let decoded =
            code.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(decoded.unwrap_or(first));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

fn split_once_opt(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(remote: &str, reference: &str, subdir: &str) -> GitUrl {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        GitUrl { remote: remote.to_owned(), reference: given(reference), subdir: given(subdir), ..GitUrl::default() }
    }

    #[test]
    fn fragments_and_queries_say_the_same() {
        let table = [
            ("https://h/r.git", url("https://h/r.git", "", "")),
            ("https://h/r.git#v1:sub", url("https://h/r.git", "v1", "sub")),
            ("https://h/r.git#:sub", url("https://h/r.git", "", "sub")),
            ("https://h/r.git?ref=v1&subdir=sub", url("https://h/r.git", "v1", "sub")),
            ("https://h/r.git?branch=side", url("https://h/r.git", "refs/heads/side", "")),
            ("https://h/r.git?tag=v2", url("https://h/r.git", "refs/tags/v2", "")),
            ("https://h/r.git?ref=v1#v1", url("https://h/r.git", "v1", "")),
            ("https://h/r.git?subdir=a%20b", url("https://h/r.git", "", "a b")),
            ("git@h:u/r.git#main", url("git@h:u/r.git", "main", "")),
            ("me@h.example:r", url("me@h.example:r", "", "")),
            ("ssh://git@h/r", url("ssh://git@h/r", "", "")),
            ("git://h/r", url("git://h/r", "", "")),
        ];
        for (text, wanted) in table {
            assert_eq!(GitUrl::parse(text), Some(Ok(wanted)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_not_git() {
        for text in
            ["https://h/r", "https://h/r.git/x", "github.com/u/r", "./x.git", "/x.git", "x", "a@b", "http://h/?x.git"]
        {
            assert_eq!(GitUrl::parse(text), None, "{text}");
        }
        let short = GitUrl::parse_context("github.com/u/r#b");
        assert_eq!(short, Some(Ok(url("https://github.com/u/r", "b", ""))));
    }

    #[test]
    fn options_are_read() {
        let text = "https://h/r.git?keep-git-dir&submodules=false&mtime=commit&checksum=abc&fetch-by-commit=1";
        let op = GitUrl::parse(text).expect("git").expect("well formed").to_op(false);
        assert!(op.keep_git_dir && !op.submodules && op.commit_times);
        assert_eq!(op.checksum.as_deref(), Some("abc"));
        let in_subdir = GitUrl::parse("https://h/r.git?keep-git-dir#:sub").expect("git").expect("well formed");
        assert!(!in_subdir.to_op(true).keep_git_dir, "there is no place for it");
    }

    #[test]
    fn contradictions_have_buildkits_words() {
        let table = [
            ("?ref=side#v1", "ref conflicts: \"v1\" vs \"side\""),
            ("?tag=v1#v1", "ref conflicts: \"v1\" vs \"refs/tags/v1\""),
            ("?subdir=x#:sub", "subdir conflicts: \"sub\" vs \"x\""),
            ("?branch=side&tag=v1", "branch conflicts with tag"),
            ("?reff=v1", "unexpected query \"reff\""),
            ("?ref=", "query \"ref\" has no value"),
            ("?ref=a&ref=b", "query \"ref\" has multiple values"),
            ("?mtime=now", "invalid mtime value: \"now\" (must be \"checkout\" or \"commit\")"),
            ("?submodules=maybe", "invalid submodules value: \"maybe\""),
        ];
        for (rest, message) in table {
            let error = GitUrl::parse(&format!("https://h/r.git{rest}")).expect("git").expect_err(rest);
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn percent_signs_that_mean_nothing_stay() {
        for (text, wanted) in [("a%20b", "a b"), ("100%", "100%"), ("%zz", "%zz"), ("%ff", "%ff"), ("%C3%A9", "é")] {
            assert_eq!(percent_decode(text), wanted);
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let cases = [
            ("https://u:secret@h/x", "https://u:xxxxx@h/x"),
            ("https://token@h/x", "https://xxxxx@h/x"),
            ("https://h/x@y", "https://h/x@y"),
            ("ssh://git@h/x", "ssh://git@h/x"),
            ("ssh://git:secret@h/x", "ssh://git:xxxxx@h/x"),
            ("git@h:x", "git@h:x"),
        ];
        for (url, want) in cases {
            assert_eq!(redacted(url), want);
        }
    }
}
