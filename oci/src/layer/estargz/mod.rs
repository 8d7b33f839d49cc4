//! eStargz: a gzip layer in which every file is found without reading the rest. [`EstargzWriter`] makes one; [`Listing`] knows
//! what is in one by its list alone.
//!
//! Every file's content begins a gzip member of its own, and every [`CHUNK_BYTES`] of it another. Behind the tar's end comes
//! one more entry, `stargz.index.json`, that lists all entries with the places of their members, and an empty member of 51
//! bytes that says where it is. Readers of ordinary layers see an ordinary layer: they stop at the tar's end.
//!
//! The bytes depend on the entries and the level alone. Format: the eStargz specification of containerd's
//! stargz-snapshotter, version 1; spec: `spec/engine.md` §1.9.

mod read;
mod toc;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use super::codec::{CodecError, Compressors, PieceCodec};
use super::entry::{Entry, EntryKind};
use super::error::{LayerError, lossy};
use super::ordered::Ordered;
use super::tar_writer::TarWriter;
use crate::digest::{DiffId, Digest, Sha256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub use read::{Listing, ListingError, Place};
pub use toc::{FOOTER_BYTES, TOC_DIGEST_ANNOTATION, toc_offset};
use toc::{TOC_NAME, Toc, TocEntry, footer};

/// The most bytes of a file in one member.
const CHUNK_BYTES: u64 = 4 << 20;

/// Raw bytes that may wait for compression or for their turn, for each worker of the pool.
const IN_FLIGHT_BYTES_PER_THREAD: usize = 8 << 20;

/// Members that may wait: small files are many.
const IN_FLIGHT_MEMBERS: usize = 1024;

/// What came of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estargz {
    /// Digest of the uncompressed bytes, the list included: not that of the tar alone.
    pub diff_id: DiffId,
    /// Length of the uncompressed bytes.
    pub tar_bytes: u64,
    /// Digest of the blob.
    pub digest: Digest,
    /// Length of the blob.
    pub size_bytes: u64,
    /// Digest of the list, by which readers trust it.
    pub toc_digest: Digest,
}

impl Estargz {
    /// Annotations of the layer's descriptor that tell readers of it.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (TOC_DIGEST_ANNOTATION.to_owned(), self.toc_digest.to_string()),
            ("io.containers.estargz.uncompressed-size".to_owned(), self.tar_bytes.to_string()),
        ])
    }
}

/// Writes a layer entry by entry.
pub struct EstargzWriter<W: Write> {
    /// Headers and padding collect in its vector.
    tar: TarWriter<Vec<u8>>,
    out: W,
    blob: Sha256,
    plain: Sha256,
    tar_bytes: u64,
    compressors: Arc<Compressors>,
    in_flight: Ordered<(usize, Result<Vec<u8>, CodecError>)>,
    in_flight_bytes: usize,
    /// Where each member begins in the blob; one more than have been written.
    offsets: Vec<u64>,
    n_members: usize,
    toc: Vec<Listed>,
}

/// An entry of the list, and the member that its content begins with.
struct Listed {
    entry: TocEntry,
    member: Option<usize>,
}

impl<W: Write> EstargzWriter<W> {
    /// Begins a layer; `level` is one of gzip.
    ///
    /// # Errors
    /// [`LayerError::Io`] for a level that gzip does not have.
    pub fn new(out: W, level: u8) -> Result<Self, LayerError> {
        let compressors = Compressors::undivided(PieceCodec::Gzip { level }).map_err(codec_error)?;
        Ok(Self {
            tar: TarWriter::new(Vec::new()),
            out,
            blob: Sha256::new(),
            plain: Sha256::new(),
            tar_bytes: 0,
            compressors: Arc::new(compressors),
            in_flight: Ordered::new(),
            in_flight_bytes: 0,
            offsets: vec![0],
            n_members: 0,
            toc: Vec::new(),
        })
    }

    /// Appends an entry whose content, if it is a regular file, is read from `content`.
    ///
    /// # Errors
    /// As [`TarWriter::append`]; the blob cannot be written.
    pub fn append(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> Result<(), LayerError> {
        self.tar.write_header(entry)?;
        let mut listed = self.list(entry);
        let size_bytes = entry.content_bytes();
        if !matches!(entry.kind, EntryKind::Regular { .. }) {
            self.toc.push(Listed { entry: listed, member: None });
            return Ok(());
        }
        let first = self.toc.len();
        let mut whole = Sha256::new();
        let mut read_bytes = 0;
        while read_bytes < size_bytes {
            // What comes before the content belongs to another member.
            self.cut()?;
            let chunk_bytes = (size_bytes - read_bytes).min(CHUNK_BYTES);
            let n_read = content.take(chunk_bytes).read_to_end(self.tar.inner_mut());
            let n_read = n_read.map_err(|error| LayerError::io("read", entry.path, error))? as u64;
            if n_read < chunk_bytes {
                let got_bytes = read_bytes + n_read;
                return Err(LayerError::ShortContent {
                    path: lossy(entry.path),
                    expected_bytes: size_bytes,
                    got_bytes,
                });
            }
            whole.update(self.tar.inner_mut());
            listed.chunk_digest = Digest::of(self.tar.inner_mut()).to_string();
            listed.chunk_offset = read_bytes;
            read_bytes += chunk_bytes;
            // The last one says nothing: it goes to the end.
            listed.chunk_size = if read_bytes < size_bytes { chunk_bytes } else { 0 };
            let next = TocEntry { name: listed.name.clone(), kind: "chunk".to_owned(), ..TocEntry::default() };
            self.toc.push(Listed { entry: std::mem::replace(&mut listed, next), member: Some(self.n_members) });
        }
        if size_bytes == 0 {
            self.toc.push(Listed { entry: listed, member: None });
        }
        self.toc[first].entry.digest = whole.finish().to_string();
        self.tar.pad(size_bytes)
    }

    /// Ends the layer and gives the stream back, not flushed.
    ///
    /// # Errors
    /// The blob cannot be written.
    pub fn finish(mut self) -> Result<(W, Estargz), LayerError> {
        self.tar.end()?;
        self.cut()?;
        while !self.in_flight.is_empty() {
            self.write_oldest()?;
        }
        let toc_offset = self.offsets.last().copied().unwrap_or_default();
        let toc = self.table();
        let entry = Entry {
            mode: 0o444,
            ..Entry::new(TOC_NAME.as_bytes(), EntryKind::Regular { size_bytes: toc.len() as u64 })
        };
        self.tar.append_bytes(&entry, &toc)?;
        self.tar.end()?;
        self.cut()?;
        self.write_oldest()?;
        let footer = footer(toc_offset);
        self.put(&footer)?;
        let size_bytes = self.offsets.last().copied().unwrap_or_default() + footer.len() as u64;
        let estargz = Estargz {
            diff_id: DiffId::of_uncompressed(self.plain.finish()),
            tar_bytes: self.tar_bytes,
            digest: self.blob.finish(),
            size_bytes,
            toc_digest: Digest::of(&toc),
        };
        Ok((self.out, estargz))
    }

    /// The list, with the places that are known by now.
    fn table(&mut self) -> Vec<u8> {
        let place = |Listed { entry, member }: Listed| {
            let offset = member.and_then(|member| self.offsets.get(member).copied()).unwrap_or_default();
            TocEntry { offset, ..entry }
        };
        let entries = std::mem::take(&mut self.toc).into_iter().map(place).collect();
        serde_json::to_vec(&Toc { version: 1, entries }).expect("strings and numbers only")
    }

    fn list(&self, entry: &Entry<'_>) -> TocEntry {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (kind, link, device): (_, &[u8], _) = match entry.kind {
            EntryKind::Regular { .. } => ("reg", b"", (0, 0)),
            EntryKind::Directory => ("dir", b"", (0, 0)),
            EntryKind::Symlink { target } => ("symlink", target, (0, 0)),
            EntryKind::Hardlink { target } => ("hardlink", target, (0, 0)),
            EntryKind::Char { major, minor } => ("char", b"", (major, minor)),
            EntryKind::Block { major, minor } => ("block", b"", (major, minor)),
            EntryKind::Fifo => ("fifo", b"", (0, 0)),
        };
        let is_bare_dir = kind == "dir" && !entry.path.ends_with(b"/");
        let xattrs = entry.xattrs.iter().map(|xattr| (text(&xattr.name), STANDARD.encode(&xattr.value)));
        TocEntry {
            name: text(entry.path) + if is_bare_dir { "/" } else { "" },
            kind: kind.to_owned(),
            size: entry.content_bytes(),
            mtime: crate::time::format_rfc3339(entry.mtime_secs, 0),
            link_name: text(link),
            mode: entry.mode.into(),
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            dev_major: device.0.into(),
            dev_minor: device.1.into(),
            xattrs: xattrs.collect(),
            ..TocEntry::default()
        }
    }

    /// Ends the member that is being collected, if there is anything in it.
    fn cut(&mut self) -> Result<(), LayerError> {
        if self.tar.inner_mut().is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(self.tar.inner_mut());
        self.plain.update(&raw);
        self.tar_bytes += raw.len() as u64;
        let limit = IN_FLIGHT_BYTES_PER_THREAD * rayon::current_num_threads().max(2);
        while self.in_flight_bytes + raw.len() > limit || self.in_flight.len() >= IN_FLIGHT_MEMBERS {
            if self.in_flight.is_empty() {
                break;
            }
            self.write_oldest()?;
        }
        self.in_flight_bytes += raw.len();
        self.n_members += 1;
        let compressors = Arc::clone(&self.compressors);
        self.in_flight.push(move || (raw.len(), compressors.compress(&raw)));
        Ok(())
    }

    /// Waits for a member and writes it.
    fn write_oldest(&mut self) -> Result<(), LayerError> {
        let Some((raw_bytes, member)) = self.in_flight.pop() else { return Ok(()) };
        self.in_flight_bytes -= raw_bytes;
        let member = member.map_err(codec_error)?;
        self.put(&member)?;
        let end = self.offsets.last().copied().unwrap_or_default() + member.len() as u64;
        self.offsets.push(end);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.blob.update(bytes);
        self.out.write_all(bytes).map_err(|error| LayerError::io("write the layer at", b"", error))
    }
}

fn codec_error(error: CodecError) -> LayerError {
    LayerError::io("compress", b"", io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use serde_json::Value;

    use super::*;
    use crate::layer::{LayerReader, ReadLimits, decompress};

    fn write(level: u8, big: &[u8]) -> (Vec<u8>, Estargz) {
        let mut writer = EstargzWriter::new(Vec::new(), level).unwrap();
        let file = |path: &'static str, size_bytes| Entry {
            mode: 0o644,
            mtime_secs: 1_000_000_000,
            ..Entry::new(path.as_bytes(), EntryKind::Regular { size_bytes })
        };
        let dir = Entry { mode: 0o755, ..Entry::new(b"d", EntryKind::Directory) };
        writer.append(&dir, &mut io::empty()).unwrap();
        writer.append(&file("d/small", 5), &mut &b"hello"[..]).unwrap();
        writer.append(&file("d/empty", 0), &mut io::empty()).unwrap();
        writer.append(&file("d/big", big.len() as u64), &mut &big[..]).unwrap();
        writer.append(&Entry::new(b"link", EntryKind::Symlink { target: b"d/small" }), &mut io::empty()).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn readers_of_ordinary_layers_see_the_entries_alone() {
        let big = vec![7; 9 << 20];
        let (blob, made) = write(4, &big);
        assert_eq!((made.size_bytes, &made.digest), (blob.len() as u64, &Digest::of(&blob)));
        let (_, mut tar) = decompress(Cursor::new(blob.clone())).unwrap();
        let mut plain = Vec::new();
        tar.read_to_end(&mut plain).unwrap();
        assert_eq!((plain.len() as u64, Digest::of(&plain)), (made.tar_bytes, made.diff_id.digest().clone()));
        let mut entries = LayerReader::new(Cursor::new(plain), ReadLimits::default());
        let mut paths = Vec::new();
        while let Some(member) = entries.next_member().unwrap() {
            paths.push(String::from_utf8_lossy(member.entry.path).into_owned());
        }
        assert_eq!(
            paths.iter().map(|path| path.trim_end_matches('/')).collect::<Vec<_>>(),
            ["d", "d/small", "d/empty", "d/big", "link"]
        );
        assert_eq!(write(4, &big).0, blob);
    }

    #[test]
    fn a_listing_knows_everything_but_contents() {
        let (blob, made) = write(4, &vec![9; 5 << 20]);
        let footer_at = blob.len() - FOOTER_BYTES as usize;
        let offset = toc_offset(&blob[footer_at..]).unwrap() as usize;
        let listing = Listing::read(&blob[offset..footer_at], &made.toc_digest).unwrap();
        let place = listing.place("d/small").unwrap();
        let bytes = &blob[place.offset_bytes as usize..][..place.most_bytes().min(offset as u64) as usize];
        assert_eq!(place.read(bytes).as_deref(), Some(&b"hello"[..]));
        assert_eq!(place.read(&blob), None, "other bytes");
        assert_eq!((listing.place("d/big"), listing.place("d/empty"), listing.place("nothing")), (None, None, None));

        let tar = listing.outline(&BTreeMap::from([("d/small", b"hello".to_vec())]), &|_| true).unwrap();
        let mut entries = LayerReader::new(Cursor::new(tar), ReadLimits::default());
        let mut seen = Vec::new();
        while let Some(mut member) = entries.next_member().unwrap() {
            let mut content = String::new();
            member.content.read_to_string(&mut content).unwrap();
            let path = String::from_utf8_lossy(member.entry.path).trim_end_matches('/').to_owned();
            let is_name_of = match member.entry.kind {
                EntryKind::Hardlink { target } => String::from_utf8_lossy(target).into_owned(),
                _ => String::new(),
            };
            seen.push((path, member.entry.mode, member.entry.mtime_secs, content, is_name_of));
        }
        let time = 1_000_000_000;
        let expected = [
            ("d", 0o755, 0, "", ""),
            ("d/small", 0o644, time, "hello", ""),
            ("d/empty", 0o644, time, "", ""),
            ("d/big", 0o644, time, "", "d/empty"),
            ("link", 0, 0, "", ""),
        ];
        let owned = |(path, mode, time, content, is_name_of): (&str, u32, i64, &str, &str)| {
            (path.to_owned(), mode, time, content.to_owned(), is_name_of.to_owned())
        };
        assert_eq!(seen, expected.map(owned));

        let other = Digest::of(b"other");
        assert!(matches!(Listing::read(&blob[offset..footer_at], &other), Err(ListingError::OtherList { .. })));
        assert!(Listing::read(&blob[..100], &made.toc_digest).is_err());
        assert!(Listing::read(b"no gzip", &made.toc_digest).is_err());
    }

    #[test]
    fn every_chunk_is_found_through_the_list() {
        let big: Vec<u8> = (0..(9_u32 << 20)).map(|number| (number / 1000) as u8).collect();
        let (blob, made) = write(6, &big);
        let footer = &blob[blob.len() - 51..];
        let offset = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
        let inflate = |from: usize| {
            let mut raw = Vec::new();
            flate2::read::GzDecoder::new(&blob[from..]).read_to_end(&mut raw).unwrap();
            raw
        };
        let toc = inflate(offset);
        let end = toc.iter().skip(512).position(|byte| *byte == 0).unwrap() + 512;
        let toc = &toc[512..end];
        assert_eq!(Digest::of(toc), made.toc_digest);
        assert_eq!(made.annotations()["containerd.io/snapshot/stargz/toc.digest"], made.toc_digest.to_string());
        let toc: Value = serde_json::from_slice(toc).unwrap();
        let entries = toc["entries"].as_array().unwrap();
        let summary: Vec<_> = entries
            .iter()
            .map(|entry| {
                format!(
                    "{} {} {}",
                    entry["name"].as_str().unwrap(),
                    entry["type"].as_str().unwrap(),
                    entry["chunkOffset"]
                )
            })
            .collect();
        assert_eq!(
            summary,
            [
                "d/ dir null",
                "d/small reg null",
                "d/empty reg null",
                "d/big reg null",
                "d/big chunk 4194304",
                "d/big chunk 8388608",
                "link symlink null"
            ]
        );
        assert_eq!(entries[1]["modtime"], "2001-09-09T01:46:40Z");
        assert_eq!(entries[1]["digest"], Digest::of(b"hello").to_string());
        assert_eq!(entries[2]["digest"], Digest::of(b"").to_string());
        let mut read: Vec<u8> = Vec::new();
        for chunk in &entries[3..6] {
            let raw = inflate(chunk["offset"].as_u64().unwrap() as usize);
            let size = chunk["chunkSize"].as_u64().map_or(big.len() - read.len(), |size| size as usize);
            assert_eq!(chunk["chunkDigest"], Digest::of(&raw[..size]).to_string());
            read.extend(&raw[..size]);
        }
        assert!(read == big);
        assert!(EstargzWriter::new(Vec::new(), 13).is_err());
    }
}
