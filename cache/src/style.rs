//! Which style the trees of a store are written in: one for all of them, because they are mounted together.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};

use crate::error::{IoContext, Result, StoreError};
use crate::layout::Bucket;
use crate::store::Store;

impl Store {
    /// Declares the style in which the caller reads and writes trees: one word, whose meaning is the caller's. The first
    /// one counts for ever.
    ///
    /// # Errors
    /// [`StoreError::OtherStyle`] when the store has trees of another style, or the note of it cannot be read or written.
    pub fn claim(&self, style: &str) -> Result<()> {
        let path = self.inner.layout.bucket(Bucket::Style);
        loop {
            match std::fs::read_to_string(&path) {
                Ok(found) if found.trim_end() == style => return Ok(()),
                // A process that was killed between creating and writing has written no trees.
                Ok(found) if !found.trim_end().is_empty() => {
                    return Err(StoreError::OtherStyle {
                        path: self.root().to_owned(),
                        found: found.trim_end().to_owned(),
                        wanted: style.to_owned(),
                    });
                }
                Ok(_) => std::fs::remove_file(&path).during("remove", &path)?,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).during("read", &path),
            }
            // One write of one word by the only one who creates it.
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => return file.write_all(format!("{style}\n").as_bytes()).during("write", &path),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).during("create", &path),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_style_counts() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.claim("user").unwrap();
        store.claim("user").unwrap();
        let refused = store.claim("trusted").unwrap_err();
        assert!(refused.to_string().ends_with("has trees in the style `user`, not `trusted`"), "{refused}");
        Store::open(directory.path()).unwrap().claim("user").unwrap();
    }
}
