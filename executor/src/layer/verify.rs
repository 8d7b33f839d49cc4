//! Whether a tree still is what its diff ID says.

use std::io::Write;
use std::path::{Path, PathBuf};

use oci::layer::TarWriter;
use oci::{DiffId, Sha256};

use super::error::Result;
use super::tree_tar::write_tree;
use crate::view::Below;

/// The diff ID of `tree`, an overlay upper directory over the trees `below` (base first): its tar is made and forgotten.
///
/// # Errors
/// As [`write_tree`].
pub fn diff_id_of_tree(tree: &Path, below: &[PathBuf]) -> Result<DiffId> {
    let mut tar = TarWriter::new(Hashing(Sha256::new()));
    write_tree(tree, &Below::new(below.to_vec()), &mut tar)?;
    let Hashing(hasher) = tar.finish()?;
    Ok(DiffId::of_uncompressed(hasher.finish()))
}

/// Keeps nothing but the digest of what is written.
struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_changes_has_another_diff_id() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "one").unwrap();
        let before = diff_id_of_tree(&tree, &[]).unwrap();
        assert_eq!(diff_id_of_tree(&tree, &[]).unwrap(), before);
        std::fs::write(tree.join("file"), "two").unwrap();
        assert_ne!(diff_id_of_tree(&tree, &[]).unwrap(), before);
    }
}
