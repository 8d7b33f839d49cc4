//! Blobs: content-addressed bytes, exactly as they are stored or sent.
//!
//! A blob is written to a temporary file, hashed on the way, and renamed into place under its digest inside the
//! transaction that notes it. A file that the index does not know is not a stored blob.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci::{Digest, Sha256};
use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::bulk::{BulkFile, BulkReader};
use crate::durability::current_epoch;
use crate::error::{Fault, IoContext, Result, StoreError};
use crate::lease::Kind;
use crate::schema;
use crate::scratch::inode_bytes;
use crate::store::{Store, now};

/// Pieces in which a file is read to be hashed.
const HASH_BYTES: usize = 1 << 20;

/// A blob being written: bytes are hashed as they pass.
///
/// Dropped without a commit, nothing is left. Any number of writers may produce the same digest at the same time.
pub struct BlobWriter {
    store: Store,
    file: BulkFile,
    /// The temporary file; `None` once it has been renamed into place.
    path: Option<PathBuf>,
    hasher: Option<Sha256>,
    len_bytes: u64,
}

/// One row of the `blob` table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlobRow {
    pub(crate) n: i64,
    pub(crate) size_bytes: u64,
    verified: bool,
}

impl Store {
    /// Starts a blob of unknown digest.
    pub fn blob_writer(&self) -> Result<BlobWriter> {
        let path = self.session()?.fresh_path("blob");
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o444).open(&path);
        let file = file.during("create", &path)?;
        Ok(BlobWriter {
            store: self.clone(),
            file: BulkFile::new(file),
            path: Some(path),
            hasher: Some(Sha256::new()),
            len_bytes: 0,
        })
    }

    /// Stores a small document and returns its digest.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.find(&digest)?.is_none() {
            let mut writer = self.blob_writer()?.without_hashing();
            writer.write(bytes)?;
            writer.commit_prehashed(&digest)?;
        }
        Ok(digest)
    }

    /// Reads a whole small blob and verifies it; `None` when it is not stored.
    ///
    /// A blob whose bytes have changed on disk is dropped and counts as not stored.
    pub fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.find(digest)? else { return Ok(None) };
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.during("read", &path)?,
        };
        if Digest::of(&bytes) == *digest {
            return Ok(Some(bytes));
        }
        tracing::warn!(%digest, "a stored blob is corrupt; dropping it");
        self.drop_blob(digest)?;
        Ok(None)
    }

    /// Path of a stored blob; `None` when it is not stored. Large blobs are verified when they are written, not here.
    pub fn blob_path(&self, digest: &Digest) -> Option<PathBuf> {
        self.find(digest).unwrap_or_else(|error| {
            tracing::warn!(%digest, %error, "cannot look up a blob; treating it as absent");
            None
        })
    }

    /// Length of a stored blob; `None` when it is not stored.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.inner.index.read("find a blob", |conn| Ok(find_row(conn, digest)?))?.map(|row| row.size_bytes))
    }

    /// Copies a stored blob to the new file `dest`, sharing its blocks where the file system can. Returns its length.
    ///
    /// # Errors
    /// [`StoreError::UnknownBlob`] when it is not stored.
    pub fn link_or_copy_blob(&self, digest: &Digest, dest: &Path) -> Result<u64> {
        let unknown = || StoreError::UnknownBlob { digest: digest.clone() };
        let source_path = self.find(digest)?.ok_or_else(unknown)?;
        let source = File::open(&source_path).during("open", &source_path)?;
        let target = File::create(dest).during("create", dest)?;
        // Never a hard link: the copy belongs to the user, who may change it.
        if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
            return Ok(target.metadata().during("inspect", dest)?.len());
        }
        let mut target = BulkFile::new(target);
        let len_bytes = std::io::copy(&mut BulkReader::new(source), &mut target).during("write", dest)?;
        target.finish().during("write", dest)?;
        Ok(len_bytes)
    }

    /// Finds a blob, notes its use, and makes sure that its file is there and has been verified at least once.
    fn find(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        let Some(row) = self.inner.index.read("find a blob", |conn| Ok(find_row(conn, digest)?))? else {
            return Ok(None);
        };
        if !self.inner.touch(&[(Kind::Blob, row.n)])?.is_empty() {
            return Ok(None);
        }
        let path = self.inner.layout.blob(digest);
        if !path.is_file() {
            return Ok(None);
        }
        if row.verified || self.verify_found(digest, row, &path)? { Ok(Some(path)) } else { Ok(None) }
    }

    /// Hashes a blob that was found on disk rather than written through the index.
    fn verify_found(&self, digest: &Digest, row: BlobRow, path: &Path) -> Result<bool> {
        if digest_of_file(path)? != *digest {
            self.drop_blob(digest)?;
            return Ok(false);
        }
        self.inner.index.write("note a verified blob", |tx| {
            tx.execute("UPDATE blob SET verified = 1 WHERE n = ?1", [row.n])?;
            Ok(())
        })?;
        Ok(true)
    }

    /// Forgets and removes a blob that is not what it should be.
    pub(crate) fn drop_blob(&self, digest: &Digest) -> Result<()> {
        let path = self.inner.layout.blob(digest);
        self.inner.index.write("drop a blob", |tx| {
            tx.execute("DELETE FROM blob WHERE digest = ?1", [digest.as_bytes()])?;
            let _ = std::fs::remove_file(&path);
            Ok(())
        })
    }

    /// Notes a complete temporary file as a blob and moves it into place. `false` when it was stored already, and the
    /// file was left where it is.
    fn publish(&self, temporary: &Path, digest: &Digest, size_bytes: u64, disk_bytes: u64) -> Result<bool> {
        let path = self.inner.layout.blob(digest);
        let (n, is_new) = self.inner.index.write("note a blob", |tx| {
            if let Some(row) = find_row(tx, digest)?
                && row.verified
                && path.is_file()
            {
                note_use(tx, row.n)?;
                self.inner.note_lease(tx, Kind::Blob, row.n)?;
                return Ok((row.n, false));
            }
            let n = insert(tx, digest, size_bytes, disk_bytes, current_epoch(tx)?, true)?;
            self.inner.note_lease(tx, Kind::Blob, n)?;
            std::fs::rename(temporary, &path).during("rename", temporary)?;
            Ok((n, true))
        })?;
        self.inner.remember_noted([(Kind::Blob, n)]);
        Ok(is_new)
    }
}

impl BlobWriter {
    /// Leaves the hashing to the caller, who then commits with [`BlobWriter::commit_prehashed`]. To be called before
    /// the first write.
    pub fn without_hashing(mut self) -> Self {
        self.hasher = None;
        self
    }

    /// Appends bytes, hashing them.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.len_bytes += bytes.len() as u64;
        self.file.write_all(bytes).during("write", self.path.as_deref().unwrap_or(Path::new("blob")))
    }

    /// Number of bytes so far.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The file in which the blob is being made, and how many of its first bytes are there to be read. Whoever has it open can
    /// read the whole blob once it is committed. `None` if there is no such file any more.
    pub fn growing_file(&self) -> Option<(&Path, u64)> {
        Some((self.path.as_deref()?, self.file.n_written()))
    }

    /// Publishes the blob under its digest; with `expected`, only if that is the digest.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] when it is not, [`StoreError::NoDigest`] when nobody hashed.
    pub fn commit(mut self, expected: Option<&Digest>) -> Result<Digest> {
        let digest = self.hasher.take().ok_or(StoreError::NoDigest)?.finish();
        match expected {
            Some(expected) if *expected != digest => {
                Err(StoreError::DigestMismatch { expected: expected.clone(), got: digest })
            }
            _ => {
                self.commit_as(&digest)?;
                Ok(digest)
            }
        }
    }

    /// Publishes the blob under a digest that the caller has computed over exactly the bytes written.
    pub fn commit_prehashed(mut self, digest: &Digest) -> Result<()> {
        self.commit_as(digest)
    }

    fn commit_as(&mut self, digest: &Digest) -> Result<()> {
        let Some(path) = self.path.clone() else { return Ok(()) };
        let file = self.file.finish_in_place().during("write", &path)?;
        let metadata = file.metadata().during("inspect", &path)?;
        if self.store.publish(&path, digest, self.len_bytes, inode_bytes(&metadata))? {
            self.path = None;
        }
        Ok(())
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Self::write(self, bytes).map_err(into_io)?;
        Ok(bytes.len())
    }

    /// Does nothing: a blob is there when it is committed.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn into_io(error: StoreError) -> std::io::Error {
    let kind = match &error {
        StoreError::Io { source, .. } => source.kind(),
        _ => std::io::ErrorKind::Other,
    };
    std::io::Error::new(kind, error)
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The row of a blob.
pub(crate) fn find_row(conn: &Connection, digest: &Digest) -> rusqlite::Result<Option<BlobRow>> {
    let sql = "SELECT n, size_bytes, verified FROM blob WHERE digest = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        Ok(BlobRow { n: row.get(0)?, size_bytes: row.get::<_, i64>(1)?.cast_unsigned(), verified: row.get(2)? })
    };
    conn.prepare_cached(sql)?.query_row([digest.as_bytes()], read).optional()
}

/// Whether the index knows the blob.
pub(crate) fn is_known(conn: &Connection, digest: &Digest) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM blob WHERE digest = ?1")?.exists([digest.as_bytes()])
}

/// Adds a row, replacing one of the same digest; returns its number.
pub(crate) fn insert(
    conn: &Connection,
    digest: &Digest,
    size_bytes: u64,
    disk_bytes: u64,
    epoch: i64,
    verified: bool,
) -> rusqlite::Result<i64> {
    let sql = "INSERT INTO blob(n, digest, size_bytes, disk_bytes, epoch, verified, created_at, used_at, uses)
               VALUES (?7, ?1, ?2, ?3, ?4, ?5, ?6, ?6, 1)
               ON CONFLICT(digest) DO UPDATE SET size_bytes = ?2, disk_bytes = ?3, epoch = ?4, verified = ?5,
                   used_at = ?6, uses = uses + 1
               RETURNING n";
    let (size_bytes, disk_bytes) = (size_bytes.cast_signed(), disk_bytes.cast_signed());
    let values = (digest.as_bytes(), size_bytes, disk_bytes, epoch, verified, now(), schema::new_number(conn)?);
    conn.prepare_cached(sql)?.query_row(values, |row| row.get(0))
}

/// Inserts what was found on disk: to be hashed before it is believed.
pub(crate) fn insert_found(conn: &Connection, digest: &Digest, path: &Path, epoch: i64) -> Result<(), Fault> {
    let metadata = std::fs::metadata(path).during("inspect", path)?;
    insert(conn, digest, metadata.size(), inode_bytes(&metadata), epoch, false)?;
    Ok(())
}

fn note_use(tx: &Transaction, n: i64) -> rusqlite::Result<()> {
    tx.prepare_cached("UPDATE blob SET used_at = ?2, uses = uses + 1 WHERE n = ?1")?.execute((n, now()))?;
    Ok(())
}

/// Hashes a whole file.
pub(crate) fn digest_of_file(path: &Path) -> Result<Digest> {
    let mut file = File::open(path).during("open", path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASH_BYTES];
    loop {
        match file.read(&mut buffer).during("read", path)? {
            0 => return Ok(hasher.finish()),
            n_read => hasher.update(&buffer[..n_read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::{check, store};

    #[test]
    fn what_is_written_is_found_under_its_digest_whatever_the_sizes_of_the_writes() {
        let (_dir, store) = store();
        const LONG: usize = 1 << 20;
        for sizes in [vec![], vec![1], vec![LONG], vec![100, LONG - 100, 1], vec![3 * LONG, 5]] {
            let bytes: Vec<u8> = sizes.iter().enumerate().flat_map(|(i, &len)| vec![i as u8 + 1; len]).collect();
            let mut writer = store.blob_writer().unwrap();
            let mut rest = &bytes[..];
            for &len in &sizes {
                writer.write(&rest[..len]).unwrap();
                rest = &rest[len..];
            }
            assert_eq!(writer.len_bytes(), bytes.len() as u64);
            let digest = writer.commit(None).unwrap();
            assert_eq!(digest, Digest::of(&bytes));
            assert_eq!(store.read_blob(&digest).unwrap().unwrap(), bytes);
            let mode = std::fs::metadata(store.blob_path(&digest).unwrap()).unwrap().permissions().mode();
            assert_eq!(mode & 0o222, 0, "nobody may write a blob");
        }
        check(&store);
    }

    #[test]
    fn a_blob_can_be_read_while_it_is_made() {
        let (_dir, store) = store();
        let bytes: Vec<u8> = (0..5 << 19).map(|n: u32| (n % 251) as u8).collect();
        let mut writer = store.blob_writer().unwrap();
        let (path, n_bytes) = writer.growing_file().unwrap();
        let (mut file, mut read) = (File::open(path).unwrap(), Vec::new());
        assert_eq!(n_bytes, 0);
        for part in bytes.chunks(300_000) {
            writer.write(part).unwrap();
            let n_bytes = writer.growing_file().unwrap().1;
            file.read_to_end(&mut read).unwrap();
            assert_eq!(read.len() as u64, n_bytes);
        }
        assert!(read.len() >= 2 << 20, "it is written as it grows");
        writer.commit(None).unwrap();
        file.read_to_end(&mut read).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn a_wrong_digest_publishes_nothing() {
        let (_dir, store) = store();
        let mut writer = store.blob_writer().unwrap();
        writer.write(b"these").unwrap();
        let error = writer.commit(Some(&Digest::of(b"those"))).unwrap_err();
        assert!(matches!(error, StoreError::DigestMismatch { .. }));
        assert_eq!(store.blob_path(&Digest::of(b"these")), None);
        let error = store.blob_writer().unwrap().without_hashing().commit(None).unwrap_err();
        assert!(matches!(error, StoreError::NoDigest));
        let left = std::fs::read_dir(store.session().unwrap().bucket()).unwrap().count();
        assert_eq!(left, 1, "only the session's lock is left");
    }

    #[test]
    fn two_writers_of_the_same_bytes_both_succeed() {
        let (_dir, store) = store();
        let (mut a, mut b) = (store.blob_writer().unwrap(), store.blob_writer().unwrap().without_hashing());
        a.write(b"same").unwrap();
        b.write(b"same").unwrap();
        let digest = a.commit(None).unwrap();
        b.commit_prehashed(&digest).unwrap();
        assert_eq!(store.read_blob(&digest).unwrap().unwrap(), b"same");
        check(&store);
    }

    #[test]
    fn bytes_that_changed_on_disk_are_not_served() {
        let (_dir, store) = store();
        let digest = store.put_blob(b"right").unwrap();
        let path = store.blob_path(&digest).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "wrong").unwrap();
        assert_eq!(store.read_blob(&digest).unwrap(), None);
        assert_eq!(store.put_blob(b"right").unwrap(), digest);
        assert_eq!(store.read_blob(&digest).unwrap().unwrap(), b"right");
    }

    #[test]
    fn a_copy_is_independent_of_the_store() {
        let (dir, store) = store();
        let digest = store.put_blob(b"bytes").unwrap();
        let dest = dir.path().join("copy");
        assert_eq!(store.link_or_copy_blob(&digest, &dest).unwrap(), 5);
        std::fs::write(&dest, "other").unwrap();
        assert_eq!(store.read_blob(&digest).unwrap().unwrap(), b"bytes");
        let error = store.link_or_copy_blob(&Digest::of(b"absent"), &dest).unwrap_err();
        assert!(matches!(error, StoreError::UnknownBlob { .. }));
    }
}
