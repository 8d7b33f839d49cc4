//! Records of builds: what each of the last builds did, as text whose meaning is the caller's.
//!
//! One file a build, named so that a directory listing is in order of time and says whose build it was. Nothing depends on
//! them: a build explains itself by the ones before it, and people look at them.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{IoContext, Result};
use crate::layout::{Bucket, name_digest};
use crate::store::Store;

/// So many builds are kept.
const KEPT_BUILDS: usize = 100;
const SUFFIX: &str = ".json";
/// Hex digits of the subject's digest in a name.
const SUBJECT_DIGITS: usize = 12;

/// The name of a stored build.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BuildName {
    /// When it was begun: milliseconds since the epoch.
    pub began_at_ms: u64,
    /// What people call it: eight hex digits.
    pub id: String,
    /// Digest of what was built.
    subject: String,
}

impl BuildName {
    /// A name for a build that begins now. `subject` says what is built: builds of one Dockerfile have the same.
    pub fn new(subject: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unique = format!("{}-{}-{subject}", std::process::id(), since.as_nanos());
        Self {
            began_at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            id: name_digest(&unique)[..8].to_owned(),
            subject: name_digest(subject)[..SUBJECT_DIGITS].to_owned(),
        }
    }

    fn file_name(&self) -> String {
        format!("{:013}-{}-{}{SUFFIX}", self.began_at_ms, self.id, self.subject)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(SUFFIX)?.split('-');
        let (began_at_ms, id, subject) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
        parts.next().is_none().then(|| Self { began_at_ms, id: id.to_owned(), subject: subject.to_owned() })
    }
}

impl Store {
    /// Stores the record of a build; the oldest of more than a hundred go. Atomic.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put_build(&self, name: &BuildName, text: &str) -> Result<()> {
        let temporary = self.session()?.fresh_path("build");
        std::fs::write(&temporary, text).during("write", &temporary)?;
        std::fs::rename(&temporary, self.build_path(name)).during("rename", &temporary)?;
        let builds = self.builds();
        for old in builds.iter().skip(KEPT_BUILDS) {
            drop(std::fs::remove_file(self.build_path(old)));
        }
        Ok(())
    }

    /// The stored builds, newest first. None when they cannot be listed.
    pub fn builds(&self) -> Vec<BuildName> {
        let entries = std::fs::read_dir(self.inner.layout.bucket(Bucket::Builds)).into_iter().flatten().flatten();
        let mut builds: Vec<_> =
            entries.filter_map(|entry| BuildName::parse(&entry.file_name().to_string_lossy())).collect();
        builds.sort_by(|a, b| b.cmp(a));
        builds
    }

    /// The builds of `subject`, newest first.
    pub fn builds_of(&self, subject: &str) -> Vec<BuildName> {
        let digest = name_digest(subject);
        let mut builds = self.builds();
        builds.retain(|build| build.subject == digest[..SUBJECT_DIGITS]);
        builds
    }

    /// The text of a build; `None` when it has gone meanwhile.
    pub fn read_build(&self, name: &BuildName) -> Option<String> {
        std::fs::read_to_string(self.build_path(name)).ok()
    }

    /// Removes the record of a build. `false` when there is none.
    pub fn remove_build(&self, name: &BuildName) -> bool {
        std::fs::remove_file(self.build_path(name)).is_ok()
    }

    fn build_path(&self, name: &BuildName) -> PathBuf {
        self.inner.layout.bucket(Bucket::Builds).join(name.file_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, store};

    #[test]
    fn builds_are_listed_by_time_and_subject_and_the_oldest_go() {
        let (_dir, store) = store();
        assert_eq!(store.builds(), []);
        let name = |ms, subject| BuildName { began_at_ms: ms, ..BuildName::new(subject) };
        let names: Vec<_> = (1..=3).map(|ms| name(ms, if ms == 2 { "b" } else { "a" })).collect();
        for name in [&names[1], &names[2], &names[0]] {
            store.put_build(name, &format!("build {}", name.began_at_ms)).unwrap();
        }
        assert_eq!(store.builds(), [names[2].clone(), names[1].clone(), names[0].clone()]);
        assert_eq!(store.builds_of("a"), [names[2].clone(), names[0].clone()]);
        assert_eq!(store.read_build(&names[1]).as_deref(), Some("build 2"));
        assert!(store.remove_build(&names[1]) && !store.remove_build(&names[1]));
        assert_eq!(store.read_build(&names[1]), None);
        std::fs::write(store.root().join("builds-v1/notes.txt"), "not ours").unwrap();
        for ms in 10..10 + KEPT_BUILDS as u64 {
            store.put_build(&name(ms, "c"), "").unwrap();
        }
        let left = store.builds();
        assert_eq!((left.len(), left.last().map(|name| name.began_at_ms)), (KEPT_BUILDS, Some(10)));
        check(&store);
    }
}
