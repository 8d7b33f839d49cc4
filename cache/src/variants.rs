//! What a layer's tar becomes outside: compressed blobs, where to fetch it from, and reusable compressed pieces.

use oci::{Descriptor, DiffId, Digest, media_type};
use rusqlite::{Connection, OptionalExtension};

use crate::blobs;
use crate::error::{Fault, Result};
use crate::lease::Kind;
use crate::store::{Store, now};

/// How a layer's tar is compressed; the level is part of the identity of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// The tar itself.
    Plain,
    /// gzip members, one a piece.
    Gzip {
        /// 0 to 9 (libdeflate levels).
        level: u8,
    },
    /// zstd frames, one a piece.
    Zstd {
        /// 1 to 22.
        level: u8,
    },
    /// gzip members, one a file, and a list of them. Such a blob holds more than the tar: its uncompressed bytes have a diff
    /// ID of their own, which its descriptor has in the annotation [`UNCOMPRESSED_ANNOTATION`].
    Estargz {
        /// 0 to 9 (libdeflate levels).
        level: u8,
    },
}

/// The diff ID of a blob that is not the tar under which it is noted.
pub const UNCOMPRESSED_ANNOTATION: &str = "containerd.io/uncompressed";

impl Codec {
    /// The name in the database. The number is the version of the encoder: another libdeflate or zstd makes other
    /// bytes, and must not find these.
    fn name(self) -> String {
        match self {
            Self::Plain => "plain".to_owned(),
            Self::Gzip { level } => format!("gzip-{level}-2"),
            Self::Zstd { level } => format!("zstd-{level}-1"),
            Self::Estargz { level } => format!("estargz-{level}-1"),
        }
    }
}

/// Whether a text is the name of a compression of ours, as [`Codec::name`] writes them now.
pub(crate) fn is_codec_name(text: &str) -> bool {
    let levels = (0..=9).map(|level| Codec::Gzip { level }).chain((1..=22).map(|level| Codec::Zstd { level }));
    levels.map(Codec::name).any(|name| name == text)
}

/// The codec name of blobs that somebody else compressed.
const FOREIGN: &str = "foreign";

/// Where a compressed piece of some layer lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceLocation {
    /// The stored blob.
    pub blob: Digest,
    /// First byte.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub len_bytes: u64,
}

impl Store {
    /// Notes that `blob` is the tar `diff_id` compressed with `codec`. `descriptor` holds media type, digest, size.
    pub fn remember_blob(&self, diff_id: &DiffId, codec: Codec, descriptor: &Descriptor) -> Result<()> {
        self.remember_variant(diff_id, &codec.name(), descriptor)
    }

    /// Notes that `descriptor` is the tar `diff_id` as somebody else compressed it (a pulled or loaded layer).
    pub fn remember_foreign_blob(&self, diff_id: &DiffId, descriptor: &Descriptor) -> Result<()> {
        self.remember_variant(diff_id, FOREIGN, descriptor)
    }

    fn remember_variant(&self, diff_id: &DiffId, codec: &str, descriptor: &Descriptor) -> Result<()> {
        self.inner.index.write("note a compressed layer", |tx| Ok(insert_variant(tx, diff_id, codec, descriptor)?))
    }

    /// The stored blob of `diff_id` in `codec`, if its file still exists.
    pub fn find_blob(&self, diff_id: &DiffId, codec: Codec) -> Result<Option<Descriptor>> {
        if let Some(descriptor) = self.blob_descriptor(diff_id, codec)?
            && self.blob_path(&descriptor.digest).is_some()
        {
            return Ok(Some(descriptor));
        }
        if codec != Codec::Plain || self.blob_path(diff_id.digest()).is_none() {
            return Ok(None);
        }
        // The plain tar is known by its name alone.
        let size_bytes = self.blob_size(diff_id.digest())?;
        Ok(size_bytes.map(|size_bytes| Descriptor::new(media_type::OCI_LAYER, diff_id.digest().clone(), size_bytes)))
    }

    /// What the tar `diff_id` is in `codec`, whether or not the blob is stored: enough to ask a registry for it.
    pub fn blob_descriptor(&self, diff_id: &DiffId, codec: Codec) -> Result<Option<Descriptor>> {
        let sql = "SELECT descriptor FROM variant WHERE diff_id = ?1 AND codec = ?2";
        let text = self.inner.index.read("find a compressed layer", |conn| {
            let values = (diff_id.digest().as_bytes(), codec.name());
            let text: Option<String> = conn.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()?;
            Ok(text)
        })?;
        Ok(text.as_deref().and_then(parse_descriptor))
    }

    /// All stored blobs that hold the tar `diff_id`, and nothing else, in any compression, the plain tar first.
    pub fn find_blobs(&self, diff_id: &DiffId) -> Result<Vec<Descriptor>> {
        let mut found: Vec<_> = self.find_blob(diff_id, Codec::Plain)?.into_iter().collect();
        let texts = self.inner.index.read("find compressed layers", |conn| {
            let sql = "SELECT variant.descriptor FROM variant JOIN blob USING (digest)
                       WHERE variant.diff_id = ?1 AND variant.codec <> 'plain' AND variant.codec NOT LIKE 'estargz-%' ORDER BY blob.n DESC";
            let mut select = conn.prepare_cached(sql)?;
            let rows = select.query_map([diff_id.digest().as_bytes()], |row| row.get::<_, String>(0))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        })?;
        let stored = texts.iter().filter_map(|text| parse_descriptor(text));
        found.extend(stored.filter(|descriptor| self.blob_path(&descriptor.digest).is_some()));
        Ok(found)
    }

    /// The stored blob in which the tar `diff_id` came from somebody else.
    pub fn find_foreign_blob(&self, diff_id: &DiffId) -> Result<Option<Descriptor>> {
        let texts = self.inner.index.read("find a layer of others", |conn| {
            let sql = "SELECT descriptor FROM variant WHERE diff_id = ?1 AND codec = ?2 ORDER BY digest";
            let mut select = conn.prepare_cached(sql)?;
            let rows = select.query_map((diff_id.digest().as_bytes(), FOREIGN), |row| row.get::<_, String>(0))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        })?;
        let mut known = texts.iter().filter_map(|text| parse_descriptor(text));
        Ok(known.find(|descriptor| self.blob_path(&descriptor.digest).is_some()))
    }

    /// Notes that the tar `diff_id` is to be had, as `descriptor`, from `repository` (`registry/path`).
    pub fn remember_remote(&self, diff_id: &DiffId, descriptor: &Descriptor, repository: &str) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO remote(diff_id, repository, digest, descriptor, noted_at)
                   VALUES (?1, ?2, ?3, ?4, ?5)";
        let json = descriptor_json(descriptor);
        self.inner.index.write("note a remote layer", |tx| {
            let (diff_id, digest) = (diff_id.digest().as_bytes(), descriptor.digest.as_bytes());
            tx.prepare_cached(sql)?.execute((diff_id, repository, digest, &json, now()))?;
            Ok(())
        })
    }

    /// Where `diff_id` is to be had, newest first.
    pub fn find_remotes(&self, diff_id: &DiffId) -> Result<Vec<(Descriptor, String)>> {
        let sql = "SELECT descriptor, repository FROM remote WHERE diff_id = ?1 ORDER BY noted_at DESC, repository";
        let rows = self.inner.index.read("find remote layers", |conn| {
            let mut select = conn.prepare_cached(sql)?;
            let rows = select.query_map([diff_id.digest().as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<Vec<(String, String)>>>()?)
        })?;
        Ok(rows.into_iter().filter_map(|(text, repository)| Some((parse_descriptor(&text)?, repository))).collect())
    }

    /// Compressed pieces by the BLAKE3 digest of their raw bytes; the answer has the order of `pieces`.
    ///
    /// The blobs that are named are stored and protected like any blob that is looked up.
    pub fn find_pieces(&self, pieces: &[[u8; 32]], codec: Codec) -> Result<Vec<Option<PieceLocation>>> {
        let codec = codec.name();
        let found = self.inner.index.read("find pieces", |conn| {
            let mut answers = Vec::with_capacity(pieces.len());
            for raw in pieces {
                answers.push(find_piece(conn, raw, &codec)?);
            }
            Ok(answers)
        })?;
        let mut items: Vec<_> = found.iter().flatten().map(|(n, _)| (Kind::Blob, *n)).collect();
        items.sort_unstable_by_key(|&(_, n)| n);
        items.dedup();
        let gone = self.inner.touch(&items)?;
        let is_there = |n: i64, location: &PieceLocation| {
            !gone.contains(&(Kind::Blob, n)) && self.inner.layout.blob(&location.blob).is_file()
        };
        // Thousands of pieces lie in a few blobs: each is looked at once.
        let mut there = std::collections::HashMap::new();
        let keep = |(n, location): (i64, PieceLocation)| {
            there.entry(n).or_insert_with(|| is_there(n, &location)).then_some(location)
        };
        let mut keep = keep;
        Ok(found.into_iter().map(|answer| answer.and_then(&mut keep)).collect())
    }

    /// Remembers where the pieces of a blob lie. Pieces of blobs that are not stored are ignored.
    pub fn remember_pieces(&self, codec: Codec, pieces: &[([u8; 32], PieceLocation)]) -> Result<()> {
        let codec = codec.name();
        let sql = "INSERT OR REPLACE INTO piece(raw, codec, blob, offset_bytes, len_bytes)
                   SELECT ?1, ?2, n, ?4, ?5 FROM blob WHERE digest = ?3";
        self.inner.index.write("note pieces", |tx| {
            let mut insert = tx.prepare_cached(sql)?;
            for (raw, at) in pieces {
                let (offset_bytes, len_bytes) = (at.offset_bytes.cast_signed(), at.len_bytes.cast_signed());
                insert.execute((raw, &codec, at.blob.as_bytes(), offset_bytes, len_bytes))?;
            }
            Ok(())
        })
    }
}

fn find_piece(conn: &Connection, raw: &[u8; 32], codec: &str) -> Result<Option<(i64, PieceLocation)>, Fault> {
    let sql =
        "SELECT blob.n, blob.digest, piece.offset_bytes, piece.len_bytes FROM piece JOIN blob ON blob.n = piece.blob
               WHERE piece.raw = ?1 AND piece.codec = ?2 AND blob.verified";
    let read = |row: &rusqlite::Row<'_>| {
        let location = PieceLocation {
            blob: Digest::from_sha256(row.get(1)?),
            offset_bytes: row.get::<_, i64>(2)?.cast_unsigned(),
            len_bytes: row.get::<_, i64>(3)?.cast_unsigned(),
        };
        Ok((row.get(0)?, location))
    };
    Ok(conn.prepare_cached(sql)?.query_row((raw, codec), read).optional()?)
}

/// Notes a variant; one of the same codec that had other bytes is forgotten, foreign ones add up.
pub(crate) fn insert_variant(
    conn: &Connection,
    diff_id: &DiffId,
    codec: &str,
    descriptor: &Descriptor,
) -> rusqlite::Result<()> {
    let (diff_id, digest) = (diff_id.digest().as_bytes(), descriptor.digest.as_bytes());
    if codec != FOREIGN {
        let sql = "DELETE FROM variant WHERE diff_id = ?1 AND codec = ?2 AND digest <> ?3";
        conn.prepare_cached(sql)?.execute((diff_id, codec, digest))?;
    }
    let sql = "INSERT OR REPLACE INTO variant(diff_id, codec, digest, descriptor) VALUES (?1, ?2, ?3, ?4)";
    conn.prepare_cached(sql)?.execute((diff_id, codec, digest, descriptor_json(descriptor)))?;
    Ok(())
}

/// Notes a blob of a layer that was found through an image.
pub(crate) fn insert_found(conn: &Connection, diff_id: &DiffId, descriptor: &Descriptor) -> Result<(), Fault> {
    if blobs::is_known(conn, &descriptor.digest)? {
        insert_variant(conn, diff_id, FOREIGN, descriptor)?;
    }
    Ok(())
}

pub(crate) fn descriptor_json(descriptor: &Descriptor) -> String {
    serde_json::to_string(descriptor).expect("a descriptor has string keys and no failing serialisers")
}

/// Reads a stored descriptor; an unreadable one counts as unknown.
fn parse_descriptor(text: &str) -> Option<Descriptor> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, diff_id, store};

    #[test]
    fn a_variant_is_found_by_codec_and_level_while_its_blob_is_stored() {
        let (_dir, store) = store();
        let digest = store.put_blob(b"zipped").unwrap();
        let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, digest.clone(), 6);
        let codec = Codec::Gzip { level: 4 };
        store.remember_blob(&diff_id(1), codec, &descriptor).unwrap();
        assert_eq!(store.find_blob(&diff_id(1), codec).unwrap(), Some(descriptor.clone()));
        assert_eq!(store.find_blob(&diff_id(1), Codec::Gzip { level: 5 }).unwrap(), None);
        assert_eq!(store.find_blob(&diff_id(2), codec).unwrap(), None);
        assert_eq!(store.find_blobs(&diff_id(1)).unwrap(), std::slice::from_ref(&descriptor));
        store.drop_blob(&digest).unwrap();
        assert_eq!(store.find_blob(&diff_id(1), codec).unwrap(), None);
        assert_eq!(store.blob_descriptor(&diff_id(1), codec).unwrap(), Some(descriptor));
        check(&store);
    }

    #[test]
    fn the_plain_tar_is_known_by_its_name() {
        let (_dir, store) = store();
        let digest = store.put_blob(b"tar").unwrap();
        let found = store.find_blob(&DiffId::of_uncompressed(digest.clone()), Codec::Plain).unwrap().unwrap();
        assert_eq!((found.digest, found.size_bytes), (digest, 3));
    }

    #[test]
    fn remotes_are_listed_once_each() {
        let (_dir, store) = store();
        let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(b"r"), 9);
        for repository in ["docker.io/library/a", "docker.io/library/b", "docker.io/library/a"] {
            store.remember_remote(&diff_id(1), &descriptor, repository).unwrap();
        }
        let mut found = store.find_remotes(&diff_id(1)).unwrap();
        found.sort_by(|a, b| a.1.cmp(&b.1));
        let expected = ["docker.io/library/a", "docker.io/library/b"].map(|name| (descriptor.clone(), name.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn pieces_go_with_their_blob() {
        let (_dir, store) = store();
        let blob = store.put_blob(b"0123456789").unwrap();
        let at = |offset_bytes| PieceLocation { blob: blob.clone(), offset_bytes, len_bytes: 5 };
        let codec = Codec::Zstd { level: 3 };
        store.remember_pieces(codec, &[([1; 32], at(0)), ([2; 32], at(5))]).unwrap();
        let stray = PieceLocation { blob: Digest::of(b"absent"), offset_bytes: 0, len_bytes: 1 };
        store.remember_pieces(codec, &[([3; 32], stray)]).unwrap();
        let found = store.find_pieces(&[[2; 32], [3; 32], [1; 32]], codec).unwrap();
        assert_eq!(found, [Some(at(5)), None, Some(at(0))]);
        assert_eq!(store.find_pieces(&[[1; 32]], Codec::Gzip { level: 3 }).unwrap(), [None]);
        store.drop_blob(&blob).unwrap();
        assert_eq!(store.find_pieces(&[[1; 32]], codec).unwrap(), [None]);
        check(&store);
    }
}
