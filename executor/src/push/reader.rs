//! Blobs of the store as streams. Long ones are read past the page cache, as they were written: nobody reads them again soon.

use std::fs::File;
use std::io::{self, BufRead as _};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use cache::BulkReader;
use oci::registry::BlobReader;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::{JoinError, JoinHandle};

/// Shorter blobs are read like any file.
const LONG_BYTES: u64 = 1 << 20;

/// Opens a complete blob.
///
/// # Errors
/// Those of opening a file.
pub(crate) fn open(path: &Path) -> io::Result<BlobReader> {
    let file = File::open(path)?;
    match file.metadata()?.len() {
        ..LONG_BYTES => Ok(Box::new(tokio::fs::File::from_std(file))),
        _ => Ok(Box::new(LongReader::new(BulkReader::new(file)))),
    }
}

/// Opens a blob that is still being written, of which no more is read than is there.
pub(super) fn open_growing(path: &Path) -> io::Result<BlobReader> {
    Ok(Box::new(LongReader::new(BulkReader::of_growing(File::open(path)?))))
}

/// A reader that fills its buffer on a thread that may wait for the disk.
struct LongReader(State);

enum State {
    /// `None` after a thread has died.
    Here(Option<BulkReader>),
    /// With what came of it.
    Filling(JoinHandle<(BulkReader, io::Result<()>)>),
}

impl LongReader {
    fn new(reader: BulkReader) -> Self {
        Self(State::Here(Some(reader)))
    }
}

impl AsyncRead for LongReader {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.0 {
                State::Here(reader) => {
                    let Some(mut bulk) = reader.take() else {
                        return Poll::Ready(Err(io::Error::other("reading has failed before")));
                    };
                    if take(&mut bulk, into) {
                        *reader = Some(bulk);
                        return Poll::Ready(Ok(()));
                    }
                    self.0 = State::Filling(tokio::task::spawn_blocking(move || {
                        let filled = bulk.fill_buf().map(drop);
                        (bulk, filled)
                    }));
                }
                State::Filling(task) => {
                    let filled: Result<_, JoinError> = ready!(Pin::new(task).poll(context));
                    self.0 = State::Here(None);
                    let (mut bulk, filled) = filled.map_err(io::Error::other)?;
                    // Nothing more is the end.
                    take(&mut bulk, into);
                    self.0 = State::Here(Some(bulk));
                    return Poll::Ready(filled);
                }
            }
        }
    }
}

/// Gives what is in the buffer; `false` if there is nothing.
fn take(bulk: &mut BulkReader, into: &mut ReadBuf<'_>) -> bool {
    let bytes = bulk.buffered();
    let n_bytes = bytes.len().min(into.remaining());
    into.put_slice(&bytes[..n_bytes]);
    bulk.consume(n_bytes);
    n_bytes > 0
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn blobs_of_all_lengths_come_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        for len in [0, 1, LONG_BYTES - 1, LONG_BYTES, LONG_BYTES + 1, 3 * LONG_BYTES + 4097] {
            let bytes: Vec<u8> = (0..len).map(|number| (number % 251) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            for mut reader in [open(&path).unwrap(), open_growing(&path).unwrap()] {
                let (mut read, mut part) = (Vec::new(), vec![0; 100_000]);
                loop {
                    match reader.read(&mut part).await.unwrap() {
                        0 => break,
                        n_bytes => read.extend_from_slice(&part[..n_bytes]),
                    }
                }
                assert!(read == bytes, "{len}");
            }
        }
    }
}
