//! Identities: what things in the store are found by.

use std::fmt;

use oci::DiffId;
use oci::digest::hex;

/// Identity of one layer in this store.
///
/// `d-<hex>` for a layer known by its diff ID (pulled or loaded), `x-<unique>` for one that was built here. Never
/// leaves the machine and is never part of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(String);

/// What a layer *contains*, as keys see it: a BLAKE3 digest over its sorted entries (see `executor::layer::digest`).
///
/// Equal for two layers that differ only in times taken from the clock. For pulled layers it is derived from the diff
/// ID. Not a digest of any bytes on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentDigest(pub [u8; 32]);

/// Digest of a step's ingredients; what records are found by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

/// A layer, by identity and content: what results are made of. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Where the store keeps it.
    pub id: LayerId,
    /// What keys see of it.
    pub content: ContentDigest,
}

impl LayerId {
    /// The identity of the layer that is known by its diff ID.
    pub(crate) fn of_diff_id(diff_id: &DiffId) -> Self {
        Self(format!("d-{}", diff_id.digest().hex()))
    }

    /// The identity of a layer built here; `unique` is so across processes and time.
    pub(crate) fn of_built(unique: &str) -> Self {
        Self(format!("x-{unique}"))
    }

    /// Reads a name found in the database or on disk; `None` when it is no layer's name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let (kind, rest) = name.split_at_checked(2)?;
        let is_name = |c: u8| c.is_ascii_hexdigit() || c == b'-';
        ((kind == "d-" || kind == "x-") && !rest.is_empty() && rest.bytes().all(is_name)).then(|| Self(name.to_owned()))
    }

    /// Whether the layer was built here (and is garbage once no record leads to it).
    pub(crate) fn is_built(&self) -> bool {
        self.0.starts_with("x-")
    }

    /// The text form, for messages and the database.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl ContentDigest {
    /// The content digest of a pulled layer.
    ///
    /// Marked by a domain string, so that it never equals the digest of a built layer by construction.
    pub fn of_diff_id(diff_id: &DiffId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("rbuild content of a pulled layer, v1");
        hasher.update(diff_id.digest().as_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}

/// Reads 64 hex digits; `None` when the text is anything else.
pub(crate) fn parse_hex32(text: &str) -> Option<[u8; 32]> {
    format!("sha256:{text}").parse::<oci::Digest>().ok().map(|digest| *digest.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_strangers_are_no_layers() {
        for name in ["", "d-", "x-../../etc", "y-00", "d-0/1", "ü-0", "x"] {
            assert_eq!(LayerId::from_name(name), None, "{name}");
        }
        assert!(LayerId::from_name("x-0af3-1").is_some_and(|id| id.is_built()));
    }
}
