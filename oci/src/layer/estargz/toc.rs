//! The list of an eStargz layer: `stargz.index.json`, and the footer that says where it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the list in the archive.
pub(super) const TOC_NAME: &str = "stargz.index.json";

/// The annotation of a layer's descriptor that has the digest of its list.
pub const TOC_DIGEST_ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Length of the footer.
pub const FOOTER_BYTES: u64 = 51;

/// The list.
#[derive(Deserialize, Serialize)]
pub(super) struct Toc {
    pub(super) version: u32,
    pub(super) entries: Vec<TocEntry>,
}

/// An entry of the archive, or a further chunk of the file before it. As in the specification; the order of the fields is
/// that of its reference implementation.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TocEntry {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    pub(super) mtime: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) dev_minor: u64,
    /// Values in base64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) chunk_offset: u64,
    /// Zero: to the end of the file.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) chunk_digest: String,
    /// Where in the member the chunk begins: other writers put several small files into one.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) inner_offset: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An empty gzip member whose extra field holds the place of the list.
pub(super) fn footer(toc_offset: u64) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    let field = format!("{toc_offset:016x}STARGZ");
    footer.extend((4 + field.len() as u16).to_le_bytes());
    footer.extend(b"SG");
    footer.extend((field.len() as u16).to_le_bytes());
    footer.extend(field.as_bytes());
    // One stored block of no bytes; checksum and length of nothing.
    footer.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

/// Where the list begins, by the end of a blob: its last [`FOOTER_BYTES`]. `None` for other blobs.
pub fn toc_offset(footer: &[u8]) -> Option<u64> {
    // The extra field of a gzip member is all that counts; its other bytes depend on the writer.
    let field = footer.get(..4)?.eq(&[0x1f, 0x8b, 8, 4]).then(|| footer.get(16..38))??;
    let digits = field.strip_suffix(b"STARGZ")?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footers_say_where_the_list_is() {
        assert_eq!(footer(7).len() as u64, FOOTER_BYTES);
        assert_eq!(toc_offset(&footer(0x1234_5678_9abc)), Some(0x1234_5678_9abc));
        for other in [&b""[..], &[0; 51], &[0x1f, 0x8b, 8, 4], &footer(7)[1..]] {
            assert_eq!(toc_offset(other), None);
        }
    }
}
