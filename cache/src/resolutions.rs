//! What references named when a registry was last asked.

use oci::{Descriptor, ImageRef};
use rusqlite::OptionalExtension as _;

use crate::Store;
use crate::error::Result;

impl Store {
    /// Notes what a registry says `reference` names: a manifest or an index. Names no image.
    pub fn remember_resolution(&self, reference: &ImageRef, target: &Descriptor) -> Result<()> {
        if self.find_resolution(reference)?.as_ref() == Some(target) {
            return Ok(());
        }
        let json = serde_json::to_string(target).expect("a descriptor has string keys and no failing serialisers");
        self.inner.index.write("note what a reference names", |tx| {
            let sql = "INSERT OR REPLACE INTO resolution(reference, descriptor) VALUES (?1, ?2)";
            tx.prepare_cached(sql)?.execute((reference.to_string(), &json))?;
            Ok(())
        })
    }

    /// What `reference` named when a registry was last asked, for builds without a network. The documents may have
    /// been removed since.
    pub fn find_resolution(&self, reference: &ImageRef) -> Result<Option<Descriptor>> {
        let text = self.inner.index.read("find what a reference named", |conn| {
            let sql = "SELECT descriptor FROM resolution WHERE reference = ?1";
            let mut select = conn.prepare_cached(sql)?;
            Ok(select.query_row([reference.to_string()], |row| row.get::<_, String>(0)).optional()?)
        })?;
        // An unreadable one counts as unknown.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }
}

#[cfg(test)]
mod tests {
    use oci::{Digest, media_type};

    use super::*;
    use crate::testing::{check, store};

    #[test]
    fn the_last_answer_counts() {
        let (_dir, store) = store();
        let reference = ImageRef::parse_normalized("debian:12").unwrap();
        assert_eq!(store.find_resolution(&reference).unwrap(), None);
        for bytes in [b"old", b"new"] {
            let target = Descriptor::new(media_type::OCI_INDEX, Digest::of(bytes), 3);
            store.remember_resolution(&reference, &target).unwrap();
            assert_eq!(store.find_resolution(&reference).unwrap(), Some(target));
        }
        let other = ImageRef::parse_normalized("debian:11").unwrap();
        assert_eq!(store.find_resolution(&other).unwrap(), None);
        assert!(store.images().unwrap().is_empty());
        check(&store);
    }
}
