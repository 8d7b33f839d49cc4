//! Names: what a remote and a ref may look like, and which commit they stand for.

use std::path::Path;

use solver::{GitOp, OpError};

use crate::source::url;

use super::program::{Git, GitFailure};

/// What a ref stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// The commit, in hex.
    pub(super) commit: String,
    /// The full name of the ref; `None` when a commit was named.
    pub(super) ref_name: Option<String>,
    /// The tag object, where the ref is an annotated tag.
    tag_object: Option<String>,
}

impl Resolved {
    /// Compares with the checksum that `op` expects: a prefix of the commit or of the tag object.
    pub(super) fn check(&self, op: &GitOp) -> Result<(), OpError> {
        let Some(wanted) = &op.checksum else { return Ok(()) };
        let is_hex = wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
        if wanted.is_empty() || wanted.len() > 64 || !is_hex {
            return Err(key_error(format!("invalid checksum {wanted} for Git URL, expected hex commit hash")));
        }
        let wanted_lower = wanted.to_ascii_lowercase();
        let is_met = self.commit.starts_with(&wanted_lower)
            || self.tag_object.as_ref().is_some_and(|tag| tag.starts_with(&wanted_lower));
        if is_met {
            return Ok(());
        }
        let error = key_error(format!("expected checksum to match {wanted}, got {}", self.commit));
        Err(error.help("the reference has moved, or the checksum is another commit's: find out which one is right"))
    }
}

/// Refuses what git would take for an option, a transport helper, a pattern or a refspec.
pub(super) fn validate(op: &GitOp) -> Result<(), OpError> {
    let remote = &op.remote;
    let is_option = remote.is_empty() || remote.starts_with('-');
    // `ext::sh -c …` names a program to run.
    let is_helper =
        remote.split_once("::").is_some_and(|(helper, _)| helper.bytes().all(|b| b.is_ascii_alphanumeric()));
    if is_option || is_helper || ssh_would_misread(remote) || remote.contains(|c: char| c.is_control()) {
        return Err(OpError::input(format!("invalid git remote `{}`", url::redacted(remote))));
    }
    match &op.reference {
        Some(reference) if !is_ref_name(reference) => Err(OpError::input(format!("invalid git ref `{reference}`"))),
        _ => Ok(()),
    }
}

/// Whether user, host or path of `ssh://user@host/path` or `user@host:path` begins like an option of ssh or of the server.
fn ssh_would_misread(remote: &str) -> bool {
    let (address, path) = match remote.split_once("://") {
        Some((_, rest)) => rest.split_once('/').unwrap_or((rest, "")),
        // A path of this machine has no host.
        None if !remote.contains('@') => return false,
        None => remote.split_once(':').unwrap_or((remote, "")),
    };
    address.split('@').chain([path]).any(|part| part.starts_with('-'))
}

/// The rules of `git check-ref-format`, which leave no name with a meaning beyond itself.
fn is_ref_name(name: &str) -> bool {
    let is_clean = |c: char| !c.is_control() && !c.is_whitespace() && !"~^:?*[\\\x7f".contains(c);
    let is_component = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && name.chars().all(is_clean)
        && name.split('/').all(is_component)
}

/// Whether `name` is a whole object id, which is taken as it is.
fn is_object_id(name: &str) -> bool {
    matches!(name.len(), 40 | 64) && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What the ref of `op` stands for, without asking anybody: a whole object id is taken as it is.
pub(super) fn known(op: &GitOp) -> Option<Resolved> {
    let commit = op.reference.clone().filter(|name| is_object_id(name))?;
    Some(Resolved { commit, ref_name: None, tag_object: None })
}

/// Asks the remote for everything that the ref of `op` may stand for.
pub(super) async fn ask(git: &Git, op: &GitOp) -> Result<Result<String, GitFailure>, OpError> {
    let reference = reference(op);
    let mut args = vec!["ls-remote".to_owned(), "--symref".to_owned(), "--".to_owned(), op.remote.clone()];
    args.extend([reference.to_owned(), format!("{reference}^{{}}")]);
    git.call(Path::new("/"), &args).await
}

/// What the ref of `op` stands for, by what the remote has answered.
pub(super) fn read_answer(op: &GitOp, answer: &str) -> Result<Resolved, OpError> {
    let reference = reference(op);
    choose(answer, reference)
        .ok_or_else(|| key_error(format!("repository does not contain ref {reference}, output: \"\"")))
}

/// The ref that is meant.
pub(super) fn reference(op: &GitOp) -> &str {
    op.reference.as_deref().unwrap_or("HEAD")
}

/// Picks from the output of `ls-remote --symref`: branch before tag before full name.
///
/// The remote matches a name at the end of full names, so `main` also brings `refs/heads/feature/main`.
fn choose(output: &str, reference: &str) -> Option<Resolved> {
    let lines: Vec<(&str, &str)> = output.lines().filter_map(|line| line.split_once('\t')).collect();
    let object = |name: &str| {
        let of_name = lines.iter().find(|(object, found)| *found == name && is_object_id(object));
        of_name.map(|(object, _)| (*object).to_owned())
    };
    let candidates = [format!("refs/heads/{reference}"), format!("refs/tags/{reference}"), reference.to_owned()];
    let (ref_name, found) = candidates.into_iter().find_map(|name| object(&name).map(|found| (name, found)))?;
    // HEAD is another name of a branch, where the remote says so.
    let branch = lines.iter().find_map(|(left, name)| left.strip_prefix("ref: ").filter(|_| *name == ref_name));
    let branch = branch.filter(|branch| is_ref_name(branch)).map(str::to_owned);
    let peeled = object(&format!("{ref_name}^{{}}"));
    let (commit, tag_object) = match peeled {
        Some(commit) => (commit, Some(found)),
        None => (found, None),
    };
    Some(Resolved { commit, ref_name: Some(branch.unwrap_or(ref_name)), tag_object })
}

fn key_error(message: String) -> OpError {
    OpError::input(format!("failed to load cache key: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn op(remote: &str, reference: Option<&str>) -> GitOp {
        GitOp {
            remote: remote.to_owned(),
            reference: reference.map(str::to_owned),
            subdir: None,
            checksum: None,
            keep_git_dir: false,
            submodules: true,
            commit_times: false,
        }
    }

    #[test]
    fn names_that_git_would_misunderstand_are_refused() {
        for remote in [
            "--upload-pack=x",
            "",
            "ext::sh -c x",
            "https://h/\nx",
            "ssh://-oProxyCommand=x/r",
            "ssh://git@-oProxyCommand=x/r",
            "ssh://-l@h/r",
            "ssh://h/-x",
            "git@-oProxyCommand:r",
            "-l@h:r",
            "git@h:-x",
        ] {
            assert!(validate(&op(remote, None)).is_err(), "{remote}");
        }
        for remote in
            ["https://h/r.git", "git@h:r.git", "ssh://git@[::1]/r.git", "ssh://a-b@h-c/d-/-e", "/tmp/r", "/-/r"]
        {
            assert!(validate(&op(remote, None)).is_ok(), "{remote}");
        }
        let bad =
            ["-x", "a:b", "+a", "a..b", "a b", "a*", "^a", "a~1", "a@{1}", "", "a//b", ".a", "a.lock", "@", "a\\b"];
        for reference in bad.into_iter().filter(|name| *name != "+a") {
            assert!(validate(&op("https://h/r.git", Some(reference))).is_err(), "{reference}");
        }
        for reference in ["main", "v1.2", "refs/tags/v1", "feature/x-y", "HEAD", A] {
            assert!(validate(&op("https://h/r.git", Some(reference))).is_ok(), "{reference}");
        }
    }

    #[test]
    fn branches_come_before_tags_before_full_names() {
        let both = format!("{A}\trefs/heads/x\n{B}\trefs/tags/x\n");
        let resolved = choose(&both, "x").unwrap();
        assert_eq!((resolved.commit.as_str(), resolved.ref_name.as_deref()), (A, Some("refs/heads/x")));
        let full = choose(&format!("{B}\trefs/pull/1/head\n"), "refs/pull/1/head").unwrap();
        assert_eq!(full.commit, B);
    }

    #[test]
    fn only_whole_names_match() {
        assert_eq!(choose(&format!("{A}\trefs/heads/feature/main\n"), "main"), None);
        assert_eq!(choose("", "main"), None);
    }

    #[test]
    fn annotated_tags_are_peeled_and_match_by_both_ids() {
        let output = format!("{A}\trefs/tags/v1\n{B}\trefs/tags/v1^{{}}\n");
        let resolved = choose(&output, "v1").unwrap();
        assert_eq!(resolved.commit, B);
        for (checksum, is_met) in [("aaaa", true), ("BBBB", true), ("cccc", false), ("xyz", false), ("", false)] {
            let op = GitOp { checksum: Some(checksum.to_owned()), ..op("r", Some("v1")) };
            assert_eq!(resolved.check(&op).is_ok(), is_met, "{checksum}");
        }
    }

    #[test]
    fn head_is_a_branch_when_the_remote_says_so() {
        let output = format!("ref: refs/heads/main\tHEAD\n{A}\tHEAD\n");
        assert_eq!(choose(&output, "HEAD").unwrap().ref_name.as_deref(), Some("refs/heads/main"));
        assert_eq!(choose(&format!("{A}\tHEAD\n"), "HEAD").unwrap().ref_name.as_deref(), Some("HEAD"));
    }
}
