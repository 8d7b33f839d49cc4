//! One result in a place elsewhere, as a document that says all about itself.

use std::time::Duration;

use oci::digest::hex;
use oci::{Descriptor, DiffId};
use serde::{Deserialize, Serialize};

use crate::id::{ContentDigest, Key, parse_hex32};

/// The version of the document. Another one is another document, under other names.
const VERSION: u32 = 1;
/// The longest document that is read, in bytes.
pub(super) const MAX_ENTRY_BYTES: usize = 64 << 10;
/// Keys that one result may have.
const MAX_KEYS: usize = 16;
/// Characters of a step's name that are kept.
const MAX_NAME_CHARS: usize = 200;

/// Which keys mean the same: those that were made in the same way. 16 hex digits; part of every name under which an entry is
/// kept, so that a program that makes keys or content digests in another way never finds these.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Domain(String);

impl Domain {
    /// The domain of keys that are made by these rules, each of which holds its version.
    pub fn of(rules: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("rbuild remote cache, v1");
        for rule in rules {
            hasher.update(&(rule.len() as u64).to_le_bytes());
            hasher.update(rule.as_bytes());
        }
        Self(hex(&hasher.finalize().as_bytes()[..8]))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A result: some keys once gave this layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// All keys of the result that its writer knew; each has a copy of this entry.
    pub keys: Vec<Key>,
    /// What keys see of the layer. Its writer's word: see `docs/cache.md`, "Whom to trust".
    pub content: ContentDigest,
    /// Digest of the layer's tar. Compared whenever the layer is used.
    pub diff_id: DiffId,
    /// The layer as it is kept there.
    pub blob: Descriptor,
    /// How we compressed it, as [`crate::Codec`] names it; `None` when somebody else did.
    pub codec: Option<String>,
    /// What it cost to make.
    pub cost: Duration,
    /// Seconds since the epoch.
    pub created_at: i64,
    /// Display name of the step that made it.
    pub step: String,
}

/// Why bytes are no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// They are no JSON, or not of this form.
    #[error("it is no entry of version 1: {0}")]
    Form(String),
    /// They have changed since they were written.
    #[error("its checksum does not match")]
    Sum,
    /// It is an entry for something else.
    #[error("it is the entry of another key")]
    OtherKey,
    /// Its keys were made by other rules.
    #[error("its keys were made by another version of rbuild")]
    OtherDomain,
}

/// The document. Fields stand in the order in which they are written and summed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    version: u32,
    domain: String,
    keys: Vec<String>,
    content: String,
    diff_id: DiffId,
    blob: Descriptor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    codec: Option<String>,
    cost_ms: u64,
    created_at: i64,
    step: String,
    /// BLAKE3 digest of this document with an empty text here.
    sum: String,
}

impl Entry {
    /// The document of this entry.
    pub(super) fn document(&self, domain: &Domain) -> Document {
        let mut document = Document {
            version: VERSION,
            domain: domain.0.clone(),
            keys: self.keys.iter().take(MAX_KEYS).map(|key| hex(&key.0)).collect(),
            content: hex(&self.content.0),
            diff_id: self.diff_id.clone(),
            blob: self.blob.clone(),
            codec: self.codec.clone(),
            cost_ms: u64::try_from(self.cost.as_millis()).unwrap_or(u64::MAX),
            created_at: self.created_at,
            step: self.step.chars().take(MAX_NAME_CHARS).collect(),
            sum: String::new(),
        };
        document.sum = document.summed();
        document
    }

    /// The document as JSON on one line.
    pub fn to_json(&self, domain: &Domain) -> Vec<u8> {
        serde_json::to_vec(&self.document(domain)).expect("a document has string keys and no failing serialisers")
    }

    /// Reads a document that must be an entry of `key`.
    ///
    /// # Errors
    /// [`EntryFault`].
    pub fn parse(bytes: &[u8], domain: &Domain, key: &Key) -> Result<Self, EntryFault> {
        if bytes.len() > MAX_ENTRY_BYTES {
            return Err(EntryFault::Form(format!("it has {} bytes", bytes.len())));
        }
        let document: Document = serde_json::from_slice(bytes).map_err(|error| EntryFault::Form(error.to_string()))?;
        let entry = document.check(domain)?;
        if entry.keys.contains(key) { Ok(entry) } else { Err(EntryFault::OtherKey) }
    }
}

impl Document {
    fn summed(&self) -> String {
        let bare = Self { sum: String::new(), ..self.clone() };
        let bytes = serde_json::to_vec(&bare).expect("a document has string keys and no failing serialisers");
        hex(blake3::derive_key("rbuild remote cache entry, v1", &bytes).as_slice())
    }

    /// What it says, if it is whole and its keys mean here what they meant where it was written.
    pub(super) fn check(self, domain: &Domain) -> Result<Entry, EntryFault> {
        if self.version != VERSION {
            return Err(EntryFault::Form(format!("its version is {}", self.version)));
        }
        if self.domain != domain.0 {
            return Err(EntryFault::OtherDomain);
        }
        if self.sum != self.summed() {
            return Err(EntryFault::Sum);
        }
        let digits =
            |text: &String| parse_hex32(text).ok_or_else(|| EntryFault::Form(format!("`{text}` is no digest")));
        if self.keys.len() > MAX_KEYS {
            return Err(EntryFault::Form(format!("it has {} keys", self.keys.len())));
        }
        Ok(Entry {
            keys: self.keys.iter().map(|key| digits(key).map(Key)).collect::<Result<_, _>>()?,
            content: ContentDigest(digits(&self.content)?),
            diff_id: self.diff_id,
            // Whoever wrote this does not tell us where to get bytes from.
            blob: Descriptor::new(&self.blob.media_type, self.blob.digest, self.blob.size_bytes),
            codec: self.codec,
            cost: Duration::from_millis(self.cost_ms),
            created_at: self.created_at,
            step: self.step,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use oci::{Digest, media_type};

    use super::*;

    pub(crate) fn domain() -> Domain {
        Domain::of(&["keys v1", "content v1"])
    }

    pub(crate) fn entry(keys: &[u8]) -> Entry {
        Entry {
            keys: keys.iter().map(|key| Key([*key; 32])).collect(),
            content: ContentDigest([9; 32]),
            diff_id: DiffId::of_uncompressed(Digest::of(b"tar")),
            blob: Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(b"blob"), 4),
            codec: Some("gzip-4-2".to_owned()),
            cost: Duration::from_millis(1500),
            created_at: 7,
            step: "[2/2] RUN make".to_owned(),
        }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written_by_each_of_its_keys_alone() {
        let bytes = entry(&[1, 2]).to_json(&domain());
        for key in [1, 2] {
            assert_eq!(Entry::parse(&bytes, &domain(), &Key([key; 32])), Ok(entry(&[1, 2])));
        }
        assert_eq!(Entry::parse(&bytes, &domain(), &Key([3; 32])), Err(EntryFault::OtherKey));
    }

    #[test]
    fn whatever_changes_in_an_entry_is_noticed() {
        let text = String::from_utf8(entry(&[1]).to_json(&domain())).expect("JSON");
        let changes =
            [("\"content\":\"09", "\"content\":\"19"), ("gzip-4-2", "gzip-5-2"), ("1500", "1501"), ("make", "fake")];
        for (from, to) in changes {
            assert!(text.contains(from), "{from}");
            let changed = text.replace(from, to);
            assert_eq!(Entry::parse(changed.as_bytes(), &domain(), &Key([1; 32])), Err(EntryFault::Sum), "{to}");
        }
        for (bytes, n) in [(&b""[..], 0), (b"{}", 1), (b"[1]", 2), (&[0xff; 70_000], 3)] {
            assert!(matches!(Entry::parse(bytes, &domain(), &Key([1; 32])), Err(EntryFault::Form(_))), "{n}");
        }
        for n_bytes in 0..text.len() {
            assert!(Entry::parse(&text.as_bytes()[..n_bytes], &domain(), &Key([1; 32])).is_err(), "{n_bytes}");
        }
    }

    #[test]
    fn keys_of_another_version_are_of_another_domain() {
        let other = Domain::of(&["keys v2", "content v1"]);
        assert_ne!(other, domain());
        assert_ne!(Domain::of(&["a", "bc"]), Domain::of(&["ab", "c"]));
        let bytes = entry(&[1]).to_json(&other);
        assert_eq!(Entry::parse(&bytes, &domain(), &Key([1; 32])), Err(EntryFault::OtherDomain));
    }

    #[test]
    fn addresses_in_an_entry_are_not_followed() {
        let mut bad = entry(&[1]);
        bad.blob.urls = vec!["http://example.com/".to_owned()];
        let read = Entry::parse(&bad.to_json(&domain()), &domain(), &Key([1; 32])).expect("an entry");
        assert!(read.blob.urls.is_empty());
    }
}
