//! Contexts that come as an archive: a tar on standard input, in any compression. Spec: `spec/dockerfile.md` §6.
//!
//! An archive becomes a directory exactly as ADD would unpack it, so that the rules for hostile archives are in one place.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use oci::layer::{Compression, sniff_archive};
use solver::{CopyAction, CopySelection, FileAction, FileOp, OpError, Unpack};
use tokio_util::sync::CancellationToken;

use crate::context::{IgnoreRules, LocalContext};
use crate::files::{Form, Setting, Source, perform_file_op};
use crate::view::RootView;

/// As much of the beginning of a stream as tells whether it is an archive, whatever headers stand before its first entry.
pub const HEAD_BYTES: usize = 64 << 10;

/// Name of the archive in its scratch directory.
const ARCHIVE: &str = "archive";

/// Whether bytes that begin like this are an archive; `start` should hold [`HEAD_BYTES`] of them.
pub fn is_archive(start: &[u8]) -> bool {
    Compression::of_magic(start) != Compression::None || sniff_archive(start).is_some()
}

/// Unpacks an archive below `scratch`, a directory of the caller's; returns where its files are.
///
/// # Errors
/// The stream cannot be read, or is no archive after all.
pub fn unpack_context(mut archive: impl Read, scratch: &Path, cancel: &CancellationToken) -> Result<PathBuf, OpError> {
    let fault = |operation: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| OpError::environment(format!("cannot {operation} `{path}`: {error}"))
    };
    let (received, tree) = (scratch.join("received"), scratch.join("context"));
    for directory in [&received, &tree] {
        std::fs::create_dir(directory).map_err(fault("create directory", directory))?;
    }
    let path = received.join(ARCHIVE);
    let mut file = std::fs::File::create(&path).map_err(fault("create", &path))?;
    std::io::copy(&mut archive, &mut file).and_then(|_| file.flush()).map_err(fault("write", &path))?;

    let source = Source::Context(LocalContext::open(ARCHIVE, &received, IgnoreRules::default(), None)?);
    let root = RootView::open(&[])?;
    let inputs = [Source::Empty, source];
    let setting = Setting { root: &root, inputs: &inputs, scratch, now: (0, 0), cancel };
    perform_file_op(&unpack_op(), &setting, Form::Tree(&tree))?;
    std::fs::remove_dir_all(&received).map_err(fault("remove", &received))?;
    Ok(tree)
}

/// `ADD archive /`.
fn unpack_op() -> FileOp {
    let selection =
        CopySelection { source: format!("/{ARCHIVE}"), wildcard: false, excludes: Vec::new(), parents_base: None };
    let copy = CopyAction {
        input: Some(1),
        selection,
        dest: "/".to_owned(),
        owner: None,
        mode: None,
        unpack: Unpack::IfArchive,
        keep_source_metadata: false,
    };
    FileOp { actions: vec![FileAction::Copy(copy)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o644);
        builder.append_data(&mut header, "sub/f", b"hi".as_slice()).expect("entry");
        builder.into_inner().expect("tar")
    }

    #[test]
    fn a_tar_is_told_from_a_dockerfile() {
        assert!(is_archive(&tar()));
        assert!(is_archive(&[0x1f, 0x8b, 8, 0]));
        assert!(!is_archive(b"FROM busybox\n"));
        assert!(!is_archive(b""));
    }

    #[test]
    fn an_archive_becomes_a_directory() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = unpack_context(tar().as_slice(), temp.path(), &CancellationToken::new()).expect("unpacks");
        assert_eq!(std::fs::read(dir.join("sub/f")).expect("file"), b"hi");
    }
}
