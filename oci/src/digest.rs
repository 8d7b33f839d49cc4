//! Digests: the names of exact bytes.
//!
//! [`Digest`] names any bytes; [`DiffId`] names an uncompressed layer tar and [`ChainId`] a stack of layers. The three
//! never convert into each other silently, because mixing them up is how wrong images are made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The digest of exact bytes, `sha256:` and 64 lower-case hex digits.
///
/// Only SHA-256 is produced; `sha512` digests of strangers' documents are refused when parsed, because nothing here
/// could verify what they name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Text that is not a digest this program can verify.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The text has no `algorithm:` part or a body of the wrong length or alphabet.
    #[error("`{text}` is not a digest: expected `sha256:` and 64 lower-case hex digits")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// The algorithm is none of ours.
    #[error("unsupported digest algorithm in `{text}`: expected `sha256`")]
    Algorithm {
        /// What was given.
        text: String,
    },
}

impl Digest {
    /// Hashes `bytes` with SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Names bytes whose SHA-256 is already known.
    pub const fn from_sha256(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits, without the algorithm.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// The first 12 hex digits, as shown to people.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed { text: text.to_owned() };
        let (algorithm, body) = text.split_once(':').ok_or_else(malformed)?;
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm { text: text.to_owned() });
        }
        parse_hex(body).map(Self).ok_or_else(malformed)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// The digest of an *uncompressed* layer tar.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(Digest);

impl DiffId {
    /// Wraps the digest of an uncompressed layer tar.
    pub const fn of_uncompressed(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest of the uncompressed tar.
    pub const fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The digest that names a stack of layers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl ChainId {
    /// The digest of the stack.
    pub const fn digest(&self) -> &Digest {
        &self.0
    }
}

/// Computes the chain ID of a layer stack.
///
/// `diff_ids` is base layer first. `None` for an empty stack.
///
/// Spec: OCI image-spec 1.1, config.md, "Layer ChainID".
pub fn chain_id(diff_ids: &[DiffId]) -> Option<ChainId> {
    let (first, rest) = diff_ids.split_first()?;
    let chain = rest
        .iter()
        .fold(first.digest().clone(), |parent, diff_id| Digest::of(format!("{parent} {diff_id}").as_bytes()));
    Some(ChainId(chain))
}

/// Streaming SHA-256, with the CPU's SHA extension or ring's assembly, whichever the machine is faster with.
#[derive(Clone)]
pub struct Sha256(Backend);

#[derive(Clone)]
enum Backend {
    Extension(sha2::Sha256),
    Assembly(ring::digest::Context),
}

impl Sha256 {
    /// Starts an empty hash.
    pub fn new() -> Self {
        Self(if has_sha_extension() {
            Backend::Extension(<sha2::Sha256 as sha2::Digest>::new())
        } else {
            Backend::Assembly(ring::digest::Context::new(&ring::digest::SHA256))
        })
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Backend::Extension(hasher) => sha2::Digest::update(hasher, bytes),
            Backend::Assembly(context) => context.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        let mut raw = [0; 32];
        match self.0 {
            Backend::Extension(hasher) => raw.copy_from_slice(&sha2::Digest::finalize(hasher)),
            Backend::Assembly(context) => raw.copy_from_slice(context.finish().as_ref()),
        }
        Digest(raw)
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

fn has_sha_extension() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("sha");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("sha2");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Lower-case hex of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut raw = [0; 32];
    for (byte, pair) in raw.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(raw)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_backends_agree_with_the_known_digest_of_nothing() {
        let nothing = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), nothing);
        let assembly = Sha256(Backend::Assembly(ring::digest::Context::new(&ring::digest::SHA256)));
        assert_eq!(assembly.finish().to_string(), nothing);
    }

    #[test]
    fn text_that_is_no_digest_is_refused() {
        for text in ["", "sha256", "sha256:", "sha256:ABCD", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        let upper = Digest::of(b"x").to_string().to_uppercase().replace("SHA256", "sha256");
        assert!(upper.parse::<Digest>().is_err());
    }

    #[test]
    fn a_chain_of_one_is_its_diff_id() {
        let base = DiffId::of_uncompressed(Digest::of(b"base"));
        let top = DiffId::of_uncompressed(Digest::of(b"top"));
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(std::slice::from_ref(&base)).expect("one layer").digest(), base.digest());
        let expected = Digest::of(format!("{base} {top}").as_bytes());
        assert_eq!(chain_id(&[base, top]).expect("two layers").digest(), &expected);
    }
}
