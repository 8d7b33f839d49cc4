//! An archive as a stream of pieces: a thread writes it while somebody sends it.

use std::collections::BTreeSet;
use std::io::{self, Write};

use bytes::Bytes;
use cache::Store;
use oci::Digest;
use solver::{OpError, Step};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

use crate::export::Archive;

/// Pieces that are written ahead; the writer makes them a mebibyte long.
const PIECES_AHEAD: usize = 4;

/// Bytes between two reports.
const REPORT_BYTES: u64 = 4 << 20;

/// Begins to write an archive without the blobs `omitted`. The pieces end when it is complete, or the writer has failed,
/// which its handle says.
pub(super) fn write(
    archive: Archive,
    omitted: BTreeSet<Digest>,
    store: &Store,
    step: &Step,
) -> (Receiver<Bytes>, JoinHandle<Result<(), OpError>>) {
    let (sender, receiver) = channel(PIECES_AHEAD);
    let (store, step) = (store.clone(), step.clone());
    let writer = tokio::task::spawn_blocking(move || {
        let mut out = Pieces { sender, step, sent_bytes: 0, reported_bytes: 0 };
        archive.write_tar_without(&store, &mut out, &omitted)?;
        out.step.status(SENDING, out.sent_bytes, 0, true);
        Ok(())
    });
    (receiver, writer)
}

/// Whether a writer failed because nobody reads any more, which has a reason of its own.
pub(super) fn is_broken_pipe(error: &OpError) -> bool {
    error.message.contains(NOBODY_READS)
}

const NOBODY_READS: &str = "nobody reads the archive any more";

/// BuildKit's name for it.
const SENDING: &str = "sending tarball";

struct Pieces {
    sender: Sender<Bytes>,
    step: Step,
    sent_bytes: u64,
    reported_bytes: u64,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        self.sender.blocking_send(piece).map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, NOBODY_READS))?;
        self.sent_bytes += bytes.len() as u64;
        if self.sent_bytes - self.reported_bytes >= REPORT_BYTES {
            self.reported_bytes = self.sent_bytes;
            self.step.status(SENDING, self.sent_bytes, 0, false);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
