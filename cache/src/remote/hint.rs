//! A list of entries that are likely to be wanted together: fetched at once when a build starts, it spares a question for
//! every step. The last writer wins, which costs others questions and nothing else.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::entry::{Document, Domain, Entry};
use crate::id::Key;

/// The version of the document.
const VERSION: u32 = 1;
/// The longest list that is read, in bytes.
pub(super) const MAX_HINT_BYTES: u64 = 4 << 20;
/// Entries that are kept when lists are joined.
const MAX_ENTRIES: usize = 2000;
/// For so long an entry of a list is taken to be still there: longer than the builds of a day, shorter than the time after
/// which places throw away what nobody asks for.
const TRUSTED_SECS: i64 = 24 * 3600;

/// Entries, and when each was last known to be there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hint {
    /// Newest first.
    entries: Vec<HintedEntry>,
    /// Positions in `entries`.
    by_key: HashMap<Key, usize>,
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct HintedEntry {
    /// The entry.
    pub entry: Entry,
    /// Seconds since the epoch.
    pub seen_at: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListDocument {
    version: u32,
    entries: Vec<SeenDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenDocument {
    seen_at: i64,
    entry: Document,
}

impl Hint {
    /// A list of these; of several with the same key the first counts.
    pub fn new(entries: Vec<HintedEntry>) -> Self {
        let mut hint = Self::default();
        for hinted in entries {
            let is_new = hinted.entry.keys.iter().any(|key| !hint.by_key.contains_key(key));
            if is_new && hint.entries.len() < MAX_ENTRIES {
                for key in &hinted.entry.keys {
                    hint.by_key.entry(*key).or_insert(hint.entries.len());
                }
                hint.entries.push(hinted);
            }
        }
        hint
    }

    /// The entry of a key, if it is listed.
    pub fn find(&self, key: &Key) -> Option<&HintedEntry> {
        self.by_key.get(key).map(|position| &self.entries[*position])
    }

    /// Whether the entry of `key` is listed and was seen lately.
    pub fn vouches_for(&self, key: &Key, now: i64) -> bool {
        self.find(key).is_some_and(|hinted| now.saturating_sub(hinted.seen_at) < TRUSTED_SECS)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// This list with `news` in front, without what has become too much.
    #[must_use]
    pub fn with(&self, news: Vec<HintedEntry>) -> Self {
        Self::new(news.into_iter().chain(self.entries.iter().cloned()).collect())
    }

    /// The document as JSON on one line.
    pub fn to_json(&self, domain: &Domain) -> Vec<u8> {
        let entries = self
            .entries
            .iter()
            .map(|hinted| SeenDocument { seen_at: hinted.seen_at, entry: hinted.entry.document(domain) });
        let document = ListDocument { version: VERSION, entries: entries.collect() };
        serde_json::to_vec(&document).expect("a document has string keys and no failing serialisers")
    }

    /// Reads a document; entries that are not whole, or of another domain, are left out. `None` when it is none.
    pub fn parse(bytes: &[u8], domain: &Domain) -> Option<Self> {
        let document: ListDocument = serde_json::from_slice(bytes).ok()?;
        if document.version != VERSION {
            return None;
        }
        let read =
            |seen: SeenDocument| Some(HintedEntry { entry: seen.entry.check(domain).ok()?, seen_at: seen.seen_at });
        Some(Self::new(document.entries.into_iter().filter_map(read).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::{domain, entry};
    use super::*;

    fn seen(keys: &[u8], seen_at: i64) -> HintedEntry {
        HintedEntry { entry: entry(keys), seen_at }
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let hint = Hint::new(vec![seen(&[1, 2], 10), seen(&[3], 20), seen(&[1], 30)]);
        assert_eq!(hint.len(), 2);
        let read = Hint::parse(&hint.to_json(&domain()), &domain()).expect("a list");
        assert_eq!(read, hint);
        assert_eq!(read.find(&Key([2; 32])).map(|hinted| hinted.seen_at), Some(10));
        assert_eq!(read.find(&Key([4; 32])), None);
        assert_eq!(Hint::parse(&hint.to_json(&domain()), &Domain::of(&["other"])), Some(Hint::default()));
        assert_eq!(Hint::parse(b"{\"version\":2,\"entries\":[]}", &domain()), None);
        assert_eq!(Hint::parse(b"\x1f\x8b", &domain()), None);
    }

    #[test]
    fn news_stand_in_front_and_the_oldest_fall_out() {
        let hint = Hint::new(vec![seen(&[1], 10)]).with(vec![seen(&[2], 20), seen(&[1], 30)]);
        assert_eq!(hint.len(), 2);
        assert_eq!(hint.find(&Key([1; 32])).map(|hinted| hinted.seen_at), Some(30));
        let mut key = [0; 32];
        let many = (0..3000_u32).map(|n| {
            key[..4].copy_from_slice(&n.to_le_bytes());
            let mut hinted = seen(&[1], 1);
            hinted.entry.keys = vec![Key(key)];
            hinted
        });
        assert_eq!(Hint::new(many.collect()).len(), MAX_ENTRIES);
    }

    #[test]
    fn what_was_seen_long_ago_is_asked_for_again() {
        let hint = Hint::new(vec![seen(&[1], 1000)]);
        assert!(hint.vouches_for(&Key([1; 32]), 1000 + TRUSTED_SECS - 1));
        assert!(!hint.vouches_for(&Key([1; 32]), 1000 + TRUSTED_SECS));
        assert!(!hint.vouches_for(&Key([2; 32]), 1000));
    }
}
