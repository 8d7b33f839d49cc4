//! References: where an image lives and which one it is.
//!
//! [`ImageRef::parse_normalized`] reads what people write (`debian`, `ghcr.io/a/b:1`) by Docker's rules and keeps the
//! normalised form; [`ImageRef::familiar`] goes back to the short one. A value of this type is always well formed.
//!
//! Spec: `spec/engine.md` §4.2, `spec/cli.md` §1.1 (`-t`); error texts as the recorded builds have them.

use std::fmt;
use std::str::FromStr;

use nom::IResult;
use nom::Parser;
use nom::branch::alt;
use nom::bytes::complete::{tag as literal, take_while_m_n, take_while1};
use nom::character::complete::{char, digit1, satisfy};
use nom::combinator::{all_consuming, opt, recognize};
use nom::multi::{many0, separated_list1};
use nom::sequence::{delimited, pair, preceded};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// The registry that a bare name belongs to.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The older name of [`DEFAULT_REGISTRY`]; rewritten when parsed.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// The namespace of a bare name in the default registry.
const OFFICIAL_PREFIX: &str = "library/";
/// The tag of a reference that names neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// Longest repository path that registries accept, in bytes.
const MAX_REPOSITORY_LEN: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG_LEN: usize = 128;

/// A parsed, normalised reference: `registry/repository[:tag][@digest]`.
///
/// With tag and digest, the digest decides which image is meant and the tag is kept for display.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Text that is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text does not follow the grammar.
    #[error("invalid reference format")]
    Format {
        /// What was given.
        text: String,
    },
    /// The repository has upper-case letters.
    #[error("invalid reference format: repository name ({repository}) must be lowercase")]
    Uppercase {
        /// The repository as normalisation saw it, for instance `library/Debian`.
        repository: String,
    },
    /// 64 hex digits alone: an image ID was meant, and a name would be confused with it.
    #[error("invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")]
    Identifier {
        /// What was given.
        text: String,
    },
    /// The repository path is longer than registries accept.
    #[error("repository name must not be more than {MAX_REPOSITORY_LEN} characters")]
    TooLong {
        /// Bytes of the repository path.
        len: usize,
    },
    /// The part after `@` cannot be verified by this program.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl ImageRef {
    /// Parses what a person wrote, by Docker's rules.
    ///
    /// A first component with a dot, a colon or an upper-case letter, or `localhost`, is a registry; everything else
    /// belongs to `docker.io`, and there a name without a slash to `library/`. No tag is added, see
    /// [`with_default_tag`](Self::with_default_tag).
    ///
    /// # Errors
    /// [`ReferenceError`], with the texts Docker prints.
    pub fn parse_normalized(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::Identifier { text: text.to_owned() });
        }
        let (registry, remainder) = split_registry(text);
        let name = remainder.split(':').next().unwrap_or_default();
        if name.chars().any(char::is_uppercase) {
            return Err(ReferenceError::Uppercase { repository: name.to_owned() });
        }
        let format = |_| ReferenceError::Format { text: text.to_owned() };
        all_consuming(registry_host).parse(registry.as_str()).map_err(format)?;
        let (_, (repository, tag, digest)) = all_consuming(remote).parse(remainder.as_str()).map_err(format)?;
        if repository.len() > MAX_REPOSITORY_LEN {
            return Err(ReferenceError::TooLong { len: repository.len() });
        }
        Ok(Self {
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::parse).transpose()?,
            registry,
        })
    }

    /// Names a repository of a registry, without tag and digest.
    ///
    /// # Errors
    /// [`ReferenceError`] when either part is malformed, or when the text `registry/repository` would mean another one
    /// (a registry without dot or port).
    pub fn new(registry: &str, repository: &str) -> Result<Self, ReferenceError> {
        let text = format!("{registry}/{repository}");
        let parsed = Self::parse_normalized(&text)?;
        if parsed.registry == registry && parsed.repository == repository && parsed.is_name_only() {
            Ok(parsed)
        } else {
            Err(ReferenceError::Format { text })
        }
    }

    /// Registry host with optional port, for instance `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path inside the registry, for instance `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one is named.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one is named.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether neither tag nor digest is named.
    pub fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// Registry and repository alone.
    pub fn name_only(&self) -> Self {
        Self { tag: None, digest: None, ..self.clone() }
    }

    /// Adds the tag `latest` to a reference with neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.is_name_only() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// Sets the tag.
    ///
    /// # Errors
    /// [`ReferenceError::Format`] when `tag` is not one.
    pub fn with_tag(mut self, tag: &str) -> Result<Self, ReferenceError> {
        all_consuming(tag_text).parse(tag).map_err(|_| ReferenceError::Format { text: format!("{self}:{tag}") })?;
        self.tag = Some(tag.to_owned());
        Ok(self)
    }

    /// Sets the digest; a tag stays for display.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// What registries are asked for: the digest if there is one, else the tag, else `latest`.
    pub fn manifest_reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The shortest text that parses to this reference: without `docker.io/` and `library/` where they are implied.
    ///
    /// Docker also shortens `docker.io/localhost/app` to `localhost/app`, which then means another image; here such a
    /// name stays long.
    pub fn familiar(&self) -> String {
        let long = self.to_string();
        if self.registry != DEFAULT_REGISTRY {
            return long;
        }
        let without_registry = &long[DEFAULT_REGISTRY.len() + 1..];
        let without_namespace = without_registry.strip_prefix(OFFICIAL_PREFIX);
        [without_namespace, Some(without_registry)]
            .into_iter()
            .flatten()
            .find(|short| Self::parse_normalized(short).as_ref() == Ok(self))
            .map_or(long.clone(), str::to_owned)
    }
}

/// Splits off the registry by Docker's rule and completes names of the default registry. Checks nothing.
fn split_registry(text: &str) -> (String, String) {
    let Some((first, rest)) = text.split_once('/') else {
        return (DEFAULT_REGISTRY.to_owned(), format!("{OFFICIAL_PREFIX}{text}"));
    };
    let is_registry = first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase);
    let (registry, remainder) = match first {
        LEGACY_DEFAULT_REGISTRY => (DEFAULT_REGISTRY, rest),
        _ if is_registry => (first, rest),
        _ => (DEFAULT_REGISTRY, text),
    };
    if registry == DEFAULT_REGISTRY && !remainder.contains('/') {
        return (registry.to_owned(), format!("{OFFICIAL_PREFIX}{remainder}"));
    }
    (registry.to_owned(), remainder.to_owned())
}

/// `host[:port]`, where the host is a DNS name, an IPv4 address or a bracketed IPv6 address.
fn registry_host(input: &str) -> IResult<&str, &str> {
    let word = |input| take_while1(|c: char| c.is_ascii_alphanumeric()).parse(input);
    let label = recognize(pair(word, many0(pair(take_while1(|c| c == '-'), word))));
    let name = recognize(separated_list1(char('.'), label));
    let ipv6 = delimited(char('['), take_while1(|c: char| c.is_ascii_hexdigit() || c == ':'), char(']'));
    recognize(pair(alt((recognize(ipv6), name)), opt(preceded(char(':'), digit1)))).parse(input)
}

/// `repository[:tag][@digest]`.
fn remote(input: &str) -> IResult<&str, (&str, Option<&str>, Option<&str>)> {
    let repository = recognize(separated_list1(char('/'), path_component));
    (repository, opt(preceded(char(':'), tag_text)), opt(preceded(char('@'), digest_text))).parse(input)
}

/// Lower-case words joined by `.`, `_`, `__` or any number of hyphens.
fn path_component(input: &str) -> IResult<&str, &str> {
    let word = |input| take_while1(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).parse(input);
    let separator = alt((literal("."), literal("__"), literal("_"), take_while1(|c| c == '-')));
    recognize(pair(word, many0(pair(separator, word)))).parse(input)
}

fn tag_text(input: &str) -> IResult<&str, &str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let rest = take_while_m_n(0, MAX_TAG_LEN - 1, move |c| is_word(c) || matches!(c, '.' | '-'));
    recognize(pair(satisfy(is_word), rest)).parse(input)
}

/// The shape of a digest; whether it is one is [`Digest`]'s business.
fn digest_text(input: &str) -> IResult<&str, &str> {
    let algorithm = take_while1(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+' | '.'));
    let hex = take_while_m_n(32, usize::MAX, |c: char| c.is_ascii_hexdigit());
    recognize((algorithm, char(':'), hex)).parse(input)
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse_normalized(text)
    }
}

impl TryFrom<String> for ImageRef {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        Self::parse_normalized(&text)
    }
}

impl From<ImageRef> for String {
    fn from(reference: ImageRef) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_normalised_and_shortened_again() {
        let digest = format!("sha256:{HEX}");
        let long_host = format!("a.b/c:1@{digest}");
        // (written, normalised, familiar)
        let cases = [
            ("debian", "docker.io/library/debian", "debian"),
            ("debian:12-slim", "docker.io/library/debian:12-slim", "debian:12-slim"),
            ("library/debian", "docker.io/library/debian", "debian"),
            ("docker.io/debian", "docker.io/library/debian", "debian"),
            ("index.docker.io/debian", "docker.io/library/debian", "debian"),
            ("user/app", "docker.io/user/app", "user/app"),
            ("library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
            ("docker.io/localhost/app", "docker.io/localhost/app", "docker.io/localhost/app"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b"),
            ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
            ("[2001:db8::1]/a/b:t", "[2001:db8::1]/a/b:t", "[2001:db8::1]/a/b:t"),
            ("ghcr.io/Org/app", "", ""),
            ("Registry/app", "Registry/app", "Registry/app"),
            ("host:443/a__b/c-d.e---f", "host:443/a__b/c-d.e---f", "host:443/a__b/c-d.e---f"),
            (&long_host, &long_host, &long_host),
            ("x:T_a.g-1", "docker.io/library/x:T_a.g-1", "x:T_a.g-1"),
        ];
        for (written, normalised, familiar) in cases {
            match ImageRef::parse_normalized(written) {
                Ok(reference) => {
                    assert_eq!(reference.to_string(), normalised, "{written}");
                    assert_eq!(reference.familiar(), familiar, "{written}");
                }
                Err(error) => assert_eq!(normalised, "", "{written}: {error}"),
            }
        }
    }

    #[test]
    fn errors_have_dockers_words() {
        let too_long = format!("docker.io/{}", "a".repeat(256));
        let sha512 = format!("a@sha512:{HEX}{HEX}");
        let cases = [
            ("", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("-a", "invalid reference format"),
            ("a_", "invalid reference format"),
            ("a___b", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a:-x", "invalid reference format"),
            ("a@sha256:abc", "invalid reference format"),
            ("-host.io/a", "invalid reference format"),
            ("host-.io/a", "invalid reference format"),
            ("host:port/a", "invalid reference format"),
            ("[::1/a", "invalid reference format"),
            ("host.io/", "invalid reference format"),
            ("https://host/a", "invalid reference format"),
            ("Base", "invalid reference format: repository name (library/Base) must be lowercase"),
            ("host.io/A/b:1", "invalid reference format: repository name (A/b) must be lowercase"),
            (&too_long, "repository name must not be more than 255 characters"),
        ];
        for (text, message) in cases {
            assert_eq!(ImageRef::parse_normalized(text).expect_err(text).to_string(), message, "{text}");
        }
        assert!(matches!(ImageRef::parse_normalized(HEX), Err(ReferenceError::Identifier { .. })));
        assert!(matches!(ImageRef::parse_normalized(&sha512), Err(ReferenceError::Digest(_))));
    }

    #[test]
    fn tags_of_128_bytes_are_the_longest() {
        let name = ImageRef::parse_normalized("a").expect("a name");
        assert!(name.clone().with_tag(&"t".repeat(128)).is_ok());
        assert!(name.clone().with_tag(&"t".repeat(129)).is_err());
        assert!(name.with_tag("a/b").is_err());
    }

    #[test]
    fn the_default_tag_is_for_bare_names_only() {
        let parse = |text| ImageRef::parse_normalized(text).expect("a reference");
        assert_eq!(parse("a").with_default_tag().familiar(), "a:latest");
        assert_eq!(parse("a:1").with_default_tag().familiar(), "a:1");
        let pinned = format!("a@sha256:{HEX}");
        assert_eq!(parse(&pinned).with_default_tag().familiar(), pinned);
        assert_eq!(parse("a").manifest_reference(), "latest");
        assert_eq!(parse(&format!("a:1@sha256:{HEX}")).manifest_reference(), format!("sha256:{HEX}"));
    }

    #[test]
    fn constructed_references_obey_the_grammar() {
        assert_eq!(ImageRef::new("ghcr.io", "a/b").expect("well formed").to_string(), "ghcr.io/a/b");
        assert!(ImageRef::new("ghcr", "a/b").is_err(), "would read as docker.io/ghcr/a/b");
        assert!(ImageRef::new("ghcr.io", "a:b").is_err());
        assert!(ImageRef::new("docker.io", "a").is_err(), "would read as library/a");
    }

    #[test]
    fn json_is_the_normalised_text() {
        let reference = ImageRef::parse_normalized("debian:12").expect("a reference");
        let json = serde_json::to_string(&reference).expect("text");
        assert_eq!(json, "\"docker.io/library/debian:12\"");
        assert_eq!(serde_json::from_str::<ImageRef>(&json).expect("parses"), reference);
        assert!(serde_json::from_str::<ImageRef>("\"A\"").is_err());
    }

    proptest! {
        #[test]
        fn what_parses_survives_both_texts(text in "[a-zA-Z0-9.:/@_\\-\\[\\]]{0,40}") {
            if let Ok(reference) = ImageRef::parse_normalized(&text) {
                prop_assert_eq!(&ImageRef::parse_normalized(&reference.to_string()).unwrap(), &reference);
                prop_assert_eq!(&ImageRef::parse_normalized(&reference.familiar()).unwrap(), &reference);
            }
        }
    }
}
