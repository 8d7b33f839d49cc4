//! What an eStargz layer contains, by its list alone.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::toc::{TOC_NAME, Toc, TocEntry};
use crate::digest::Digest;
use crate::layer::{Entry, EntryKind, LayerError, LayerReader, ReadLimits, TarWriter, Xattr};

/// The longest list that is read: that of a million files.
const MOST_TOC_BYTES: u64 = 256 << 20;

/// What the name of a deletion begins with.
const WHITEOUT_PREFIX: &str = ".wh.";

/// Names of one file: file systems have a limit, ext4's is 65,000.
const MOST_NAMES: usize = 30_000;

/// Why a list is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// It cannot be read as what it should be.
    #[error("the list of the layer cannot be read: {0}")]
    Unreadable(String),
    /// It is another one than the layer's descriptor says.
    #[error("the list of the layer has the digest {actual}, not {expected}")]
    OtherList {
        /// As the descriptor has it.
        expected: Digest,
        /// As it is.
        actual: Digest,
    },
    /// An entry is none.
    #[error(transparent)]
    Entry(#[from] LayerError),
}

/// The list of a layer.
pub struct Listing {
    entries: Vec<TocEntry>,
}

/// Where the content of a small file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte, in the blob, of the gzip member that holds it.
    pub offset_bytes: u64,
    /// First byte in the member.
    inner_bytes: u64,
    size_bytes: u64,
    digest: Digest,
}

impl Listing {
    /// Reads a list from the bytes between its place and the footer, and compares it with the digest of the descriptor's
    /// annotation.
    ///
    /// # Errors
    /// It is none, or another one.
    pub fn read(member: &[u8], expected: &Digest) -> Result<Self, ListingError> {
        let unreadable = |reason: &dyn std::fmt::Display| ListingError::Unreadable(reason.to_string());
        let mut entries =
            LayerReader::new(flate2::read::GzDecoder::new(member).take(MOST_TOC_BYTES), ReadLimits::default());
        let mut text = Vec::new();
        match entries.next_member()? {
            Some(mut member) if member.entry.path == TOC_NAME.as_bytes() => {
                member.content.read_to_end(&mut text).map_err(|error| unreadable(&error))?;
            }
            _ => return Err(unreadable(&"it is not where the footer says")),
        }
        let actual = Digest::of(&text);
        if actual != *expected {
            return Err(ListingError::OtherList { expected: expected.clone(), actual });
        }
        let toc: Toc = serde_json::from_slice(&text).map_err(|error| unreadable(&error))?;
        if toc.version != 1 {
            return Err(unreadable(&format!("version {} is not known", toc.version)));
        }
        Ok(Self { entries: toc.entries })
    }

    /// Where the content of the regular file `path` (relative) is; `None` if there is none, or one of several chunks.
    pub fn place(&self, path: &str) -> Option<Place> {
        let is_it = |entry: &&TocEntry| clean(&entry.name) == path;
        let entry = self.entries.iter().rev().find(is_it).filter(|entry| entry.kind == "reg")?;
        if entry.size == 0 || (entry.chunk_size != 0 && entry.chunk_size < entry.size) {
            return None;
        }
        let digest = if entry.chunk_digest.is_empty() { &entry.digest } else { &entry.chunk_digest };
        Some(Place {
            offset_bytes: entry.offset,
            inner_bytes: entry.inner_offset,
            size_bytes: entry.size,
            digest: digest.parse().ok()?,
        })
    }

    /// The symlinks of the layer: their paths, relative and clean, and what they say.
    pub fn links(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let links = self.entries.iter().filter(|entry| entry.kind == "symlink");
        links.map(|entry| (clean(&entry.name), entry.link_name.as_str()))
    }

    /// A tar with the entries of the layer that are at wanted paths, which are relative and clean, or delete what is there.
    /// Files are empty but for those of `contents`, by their paths. The empty ones are names of a few files: making
    /// thousands is most of what unpacking such a tar costs.
    ///
    /// # Errors
    /// An entry that no tar can hold.
    pub fn outline(
        &self,
        contents: &BTreeMap<&str, Vec<u8>>,
        is_wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<u8>, ListingError> {
        let mut tar = TarWriter::new(Vec::new());
        let (mut empty, mut n_names) = (None, 0);
        for listed in self.entries.iter().filter(|entry| entry.kind != "chunk") {
            let path = clean(&listed.name);
            if !is_wanted(&shown(path)) {
                continue;
            }
            let content = contents.get(path).map_or(&[][..], Vec::as_slice);
            let (major, minor) = (low(listed.dev_major), low(listed.dev_minor));
            let target = listed.link_name.as_bytes();
            let kind = match listed.kind.as_str() {
                // A deletion is no file. What a name belongs to may not be wanted.
                "reg" | "hardlink"
                    if content.is_empty()
                        && !is_whiteout(path)
                        && (listed.kind == "reg" || !is_wanted(clean(&listed.link_name))) =>
                {
                    match empty {
                        Some(target) if n_names < MOST_NAMES => {
                            n_names += 1;
                            EntryKind::Hardlink { target }
                        }
                        _ => {
                            (empty, n_names) = (Some(path.as_bytes()), 1);
                            EntryKind::Regular { size_bytes: 0 }
                        }
                    }
                }
                "reg" => EntryKind::Regular { size_bytes: content.len() as u64 },
                "dir" => EntryKind::Directory,
                "symlink" => EntryKind::Symlink { target },
                "hardlink" => EntryKind::Hardlink { target },
                "char" => EntryKind::Char { major, minor },
                "block" => EntryKind::Block { major, minor },
                "fifo" => EntryKind::Fifo,
                other => return Err(ListingError::Unreadable(format!("`{}` is a `{other}`", listed.name))),
            };
            // The root itself.
            let path = if path.is_empty() { "." } else { path };
            let mut xattrs = Vec::with_capacity(listed.xattrs.len());
            for (name, value) in &listed.xattrs {
                let value = STANDARD.decode(value).map_err(|error| ListingError::Unreadable(error.to_string()))?;
                xattrs.push(Xattr { name: name.clone().into_bytes(), value });
            }
            let (mtime_secs, mtime_nanos) = match listed.mtime.as_str() {
                "" => (0, 0),
                text => {
                    crate::time::parse_rfc3339(text).map_err(|error| ListingError::Unreadable(error.to_string()))?
                }
            };
            let entry = Entry {
                mode: low(listed.mode) & 0o7777,
                uid: low(listed.uid),
                gid: low(listed.gid),
                mtime_secs,
                mtime_nanos,
                xattrs: &xattrs,
                ..Entry::new(path.as_bytes(), kind)
            };
            let content = if matches!(kind, EntryKind::Regular { .. }) { content } else { &[] };
            tar.append_bytes(&entry, content)?;
        }
        Ok(tar.finish()?)
    }
}

impl Place {
    /// The content, from bytes of the blob that begin at [`Self::offset_bytes`] and reach far enough. `None` if they are not
    /// what the list says.
    pub fn read(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut member = flate2::read::GzDecoder::new(bytes);
        std::io::copy(&mut (&mut member).take(self.inner_bytes), &mut std::io::sink()).ok()?;
        let mut content = Vec::new();
        member.take(self.size_bytes).read_to_end(&mut content).ok()?;
        (content.len() as u64 == self.size_bytes && Digest::of(&content) == self.digest).then_some(content)
    }

    /// How many bytes of the blob hold it at most: what does not compress becomes a little longer.
    pub fn most_bytes(&self) -> u64 {
        self.inner_bytes + self.size_bytes + self.size_bytes / 100 + 1024
    }
}

fn is_whiteout(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with(WHITEOUT_PREFIX))
}

fn clean(name: &str) -> &str {
    name.trim_start_matches("./").trim_matches('/')
}

/// The path that an entry is about: of a deletion, what it deletes.
fn shown(path: &str) -> Cow<'_, str> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name.strip_prefix(WHITEOUT_PREFIX) {
        None => Cow::Borrowed(path),
        // Of the directory as a whole.
        Some(name) if name.starts_with(WHITEOUT_PREFIX) => Cow::Borrowed(dir),
        Some(name) if dir.is_empty() => Cow::Borrowed(name),
        Some(name) => Cow::Owned(format!("{dir}/{name}")),
    }
}

fn low(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
