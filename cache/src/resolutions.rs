//! What registries and other servers said when they were last asked, for builds without a network.

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

    /// Notes what a server answered to a question: which file a URL stands for, which commit a ref of a repository names.
    /// The question itself is not kept.
    pub fn remember_answer(&self, question: &str, answer: &str) -> Result<()> {
        if self.last_answer(question)?.as_deref() == Some(answer) {
            return Ok(());
        }
        self.inner.index.write("note what a server said", |tx| {
            let sql = "INSERT OR REPLACE INTO answer(question, answer) VALUES (?1, ?2)";
            tx.prepare_cached(sql)?.execute((question_digest(question), answer))?;
            Ok(())
        })
    }

    /// The answer that was last given to a question.
    pub fn last_answer(&self, question: &str) -> Result<Option<String>> {
        self.inner.index.read("find what a server said", |conn| {
            let mut select = conn.prepare_cached("SELECT answer FROM answer WHERE question = ?1")?;
            Ok(select.query_row([question_digest(question)], |row| row.get(0)).optional()?)
        })
    }
}

fn question_digest(question: &str) -> [u8; 32] {
    *blake3::hash(question.as_bytes()).as_bytes()
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

    #[test]
    fn answers_are_those_to_the_same_question() {
        let (_dir, store) = store();
        assert_eq!(store.last_answer("url a").unwrap(), None);
        for answer in ["1", "2", "2"] {
            store.remember_answer("url a", answer).unwrap();
            assert_eq!(store.last_answer("url a").unwrap().as_deref(), Some(answer));
        }
        assert_eq!(store.last_answer("url b").unwrap(), None);
    }
}
