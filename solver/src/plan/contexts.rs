//! Build contexts: what `--build-context` values mean, which one a name stands for, and how contexts become vertices.
//!
//! Spec: `spec/dockerfile.md` §4.7, §6.

use std::collections::BTreeMap;

use oci::{ImageRef, Platform};

use super::error::PlanError;
use super::git_url::{GitUrl, is_http};
use crate::op::GitOp;
use crate::traits::OciLayout;

/// What a name of `--build-context` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// An image.
    Image(ImageRef),
    /// `docker-image://scratch`: nothing.
    Scratch,
    /// An image in an OCI layout.
    OciLayout(OciLayout),
    /// A directory of the client, by the name that [`crate::op::LocalOp`] gets.
    Local(String),
    /// A git tree.
    Git(GitOp),
    /// A file behind a URL: unpacked when it is an archive, else a file named `context`.
    Http(String),
    /// A value that means nothing; the message is for whoever uses the name. Unused ones do no harm.
    Invalid(String),
}

impl NamedContext {
    /// Reads the value of `--build-context name=value`, but for paths of directories, which only the client knows.
    ///
    /// Never fails: what is wrong with a value is told when the name is used.
    pub fn parse(name: &str, value: &str) -> Self {
        if let Some(git) = GitUrl::parse_context(value) {
            return git.map_or_else(|error| Self::Invalid(error.to_string()), |url| Self::Git(url.to_op(false)));
        }
        if is_http(value) {
            return Self::Http(value.to_owned());
        }
        let Some((scheme, rest)) = value.split_once(':') else {
            return Self::Invalid(format!("invalid context specifier {value} for {name}"));
        };
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        match scheme {
            "docker-image" if rest == "scratch" => Self::Scratch,
            "docker-image" => ImageRef::parse_normalized(rest).map_or_else(
                |error| Self::Invalid(format!("could not parse {rest} for {name}: {error}")),
                |reference| Self::Image(reference.with_default_tag()),
            ),
            "oci-layout" => oci_layout(rest).map_or_else(
                || Self::Invalid(format!("invalid context specifier {value} for {name}")),
                Self::OciLayout,
            ),
            "local" => Self::Local(rest.to_owned()),
            _ => Self::Invalid(format!("unsupported context source {scheme} for {name}")),
        }
    }
}

/// `path[:tag][@digest]`.
fn oci_layout(text: &str) -> Option<OciLayout> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().ok()?)),
        None => (text, None),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
        _ => (rest, None),
    };
    (!path.is_empty()).then(|| OciLayout { path: path.to_owned(), tag, digest })
}

/// A named context that is used, with the name it was found by (`name` or `name::os/arch`).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) context: NamedContext,
}

impl Found {
    /// The context, unless its value means nothing.
    pub(super) fn checked(self) -> Result<Self, PlanError> {
        match self.context {
            NamedContext::Invalid(message) => Err(PlanError::input(message)),
            _ => Ok(self),
        }
    }
}

/// The named context that a stage or image name stands for on a platform, if any.
///
/// Names are compared as image references, so `alpine` is `docker.io/library/alpine:latest`. `scratch` and `context`
/// cannot be replaced.
pub(super) fn find(contexts: &BTreeMap<String, NamedContext>, name: &str, platform: &Platform) -> Option<Found> {
    if contexts.is_empty() || ["scratch", "context"].iter().any(|word| name.eq_ignore_ascii_case(word)) {
        return None;
    }
    let wanted = familiar(name);
    let for_platform = format!("::{}", platform.normalized());
    let matches = |key: &str, suffix: &str| {
        key.strip_suffix(suffix).is_some_and(|base| !base.contains("::") && familiar(base) == wanted)
    };
    [for_platform.as_str(), ""].into_iter().find_map(|suffix| {
        let (key, context) = contexts.iter().find(|(key, _)| matches(key, suffix))?;
        Some(Found { name: key.clone(), context: context.clone() })
    })
}

fn familiar(name: &str) -> String {
    let normalised = ImageRef::parse_normalized(name).map(|reference| reference.familiar());
    let text = normalised.unwrap_or_else(|_| name.to_owned());
    text.strip_suffix(":latest").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_recognised() {
        let image = |text: &str| NamedContext::Image(ImageRef::parse_normalized(text).expect("a reference"));
        let invalid = |text: &str| NamedContext::Invalid(text.to_owned());
        let digest = oci::Digest::of(b"x");
        let layout = |path: &str, tag: Option<&str>, digest: Option<&oci::Digest>| {
            let tag = tag.map(str::to_owned);
            NamedContext::OciLayout(OciLayout { path: path.to_owned(), tag, digest: digest.cloned() })
        };
        let pinned = format!("oci-layout:///a/b:1@{digest}");
        let table = [
            ("docker-image://busybox", image("busybox:latest")),
            ("docker-image://scratch", NamedContext::Scratch),
            ("local:src", NamedContext::Local("src".to_owned())),
            ("https://h/x.tar", NamedContext::Http("https://h/x.tar".to_owned())),
            ("oci-layout://l", layout("l", None, None)),
            (&pinned, layout("/a/b", Some("1"), Some(&digest))),
            ("strange://thing", invalid("unsupported context source strange for x")),
            ("plain", invalid("invalid context specifier plain for x")),
            ("https://h/r.git?nope=1", invalid("unexpected query \"nope\"")),
        ];
        for (value, wanted) in table {
            assert_eq!(NamedContext::parse("x", value), wanted, "{value}");
        }
        assert!(matches!(NamedContext::parse("x", "https://h/r.git#v1"), NamedContext::Git(_)));
    }

    #[test]
    fn names_are_compared_as_references() {
        let contexts: BTreeMap<_, _> = ["alpine", "data", "data::linux/amd64", "scratch", "h.io/a:1"]
            .map(|name| (name.to_owned(), NamedContext::Local(name.to_owned())))
            .into();
        let amd64 = Platform::new("linux", "amd64", None);
        let arm64 = Platform::new("linux", "arm64", None);
        let found = |name: &str, platform| find(&contexts, name, platform).map(|found| found.name);
        assert_eq!(found("docker.io/library/alpine:latest", &amd64).as_deref(), Some("alpine"));
        assert_eq!(found("alpine:3", &amd64), None);
        assert_eq!(found("data", &amd64).as_deref(), Some("data::linux/amd64"));
        assert_eq!(found("data", &arm64).as_deref(), Some("data"));
        assert_eq!(found("scratch", &amd64), None);
        assert_eq!(found("h.io/a:1", &amd64).as_deref(), Some("h.io/a:1"));
    }
}
