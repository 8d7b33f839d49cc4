//! A little space laid in for the moment when the disk is full: without it pruning could not even write its journal.

use std::fs::File;
use std::io::Write;

use crate::layout::{Bucket, Layout};

/// Room for the journal of some dozens of removals; each of them frees more than it takes.
const RESERVE_BYTES: usize = 512 << 10;
/// With less than this free, the reserve is spent.
const TIGHT_BYTES: u64 = 4 << 20;

/// Makes sure that the reserve is there. Not worth an error: a full disk is the reason it may fail.
pub(crate) fn lay_in(layout: &Layout) {
    let path = layout.bucket(Bucket::Reserve);
    if path.exists() || is_tight(layout) {
        return;
    }
    let written = File::create(&path).and_then(|mut file| file.write_all(&vec![0; RESERVE_BYTES]));
    if written.is_err() {
        let _ = std::fs::remove_file(&path);
    }
}

/// Gives the reserve back to the file system if that has hardly anything left.
pub(crate) fn spend_when_full(layout: &Layout) {
    if is_tight(layout) {
        let _ = std::fs::remove_file(layout.bucket(Bucket::Reserve));
    }
}

fn is_tight(layout: &Layout) -> bool {
    rustix::fs::statvfs(layout.root()).is_ok_and(|stat| stat.f_bavail * stat.f_frsize < TIGHT_BYTES)
}
