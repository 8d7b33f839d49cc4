//! Cache mounts: directories that outlive builds, shared as the Dockerfile asks.
//!
//! Each id has one or more *slots*, directories of their own. A user holds a flock on its slot's `lock` file: shared
//! users a shared one, private and locked users an exclusive one. So the modes exclude each other across processes, and
//! a slot that nobody holds can be emptied or removed. Spec: `spec/dockerfile.md` §2.2.3, `spec/engine.md` §3.6.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::error::{IoContext, Result, StoreError};
use crate::layout::{Bucket, Layout, name_digest};
use crate::locks::{StoreLock, poll_until, try_lock_file};
use crate::scratch::{remove_tree, set_mode};
use crate::store::{Store, now};
use crate::usage::UsageKind;

/// How long others wait for the first user of a new directory to lay down its base content.
const PREPARATION: Duration = Duration::from_secs(5);

/// How often and how long a taken slot is looked at again before another is used: somebody may just be taking stock.
const GLANCES: usize = 2;
const GLANCE: Duration = Duration::from_millis(1);

/// How concurrent users of one cache mount share it. Spec: `spec/dockerfile.md` §2.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// All at once in one directory.
    Shared,
    /// Each concurrent user has its own.
    Private,
    /// One after the other.
    Locked,
}

/// Which directory is wanted, and what to say about it.
#[derive(Clone, Debug)]
pub struct MountRequest<'a> {
    /// Identity, already with namespace and base.
    pub id: &'a str,
    /// How it is shared.
    pub sharing: Sharing,
    /// What it is, for `du`: normally [`UsageKind::CacheMount`].
    pub kind: UsageKind,
    /// What it is for, for `du`: `cached mount /root/.cache from exec …`.
    pub description: &'a str,
}

/// The persistent cache directory behind `RUN --mount=type=cache`.
#[derive(Debug)]
pub struct CacheMount {
    /// The directory to bind.
    pub path: PathBuf,
    /// Whether it was made just now (so that its base content, owner and mode must be laid down first).
    pub is_new: bool,
    /// Keeps the sharing mode's promise while alive.
    pub lock: Option<StoreLock>,
    preparation: Preparation,
}

/// Says, at the latest when dropped, that a new directory has its base content.
#[derive(Debug)]
struct Preparation {
    /// The file whose presence says so; `None` when it is there.
    marker: Option<PathBuf>,
    /// Kept while preparing, so that nobody else does, and so that the next one sees when this process dies over it.
    claim: Option<StoreLock>,
}

/// `mount.json` in a slot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MountFile {
    pub(crate) id: String,
    pub(crate) kind: UsageKind,
    pub(crate) description: String,
    pub(crate) created_at: i64,
}

/// One directory of one id.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) dir: PathBuf,
}

impl CacheMount {
    /// Says that a new directory has its base content, so that other users need not wait for it. Dropping says so too.
    pub fn mark_ready(&mut self) {
        self.preparation.finish();
    }
}

impl Store {
    /// The cache directory `id` (already with namespace and base), shared as `sharing` says. Blocks while a
    /// [`Sharing::Locked`] directory is in use: call it off the runtime, or use [`Store::try_cache_mount`].
    ///
    /// Not reentrant: whoever holds a locked directory and asks for it again waits for itself.
    pub fn cache_mount(&self, id: &str, sharing: Sharing) -> Result<CacheMount> {
        let request = MountRequest { id, sharing, kind: UsageKind::CacheMount, description: id };
        loop {
            if let Some(mount) = self.cache_mount_unless(&request, &|| false)? {
                return Ok(mount);
            }
        }
    }

    /// A cache directory; waits until it is free or `cancelled` says true (asked at least ten times a second), which
    /// gives `None`.
    pub fn cache_mount_unless(
        &self,
        request: &MountRequest<'_>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<CacheMount>> {
        poll_until(cancelled, || self.try_cache_mount(request))
    }

    /// A cache directory if it is free; `None` when another user must finish first.
    pub fn try_cache_mount(&self, request: &MountRequest<'_>) -> Result<Option<CacheMount>> {
        for number in 0_u32.. {
            let slot = self.slot(request, number)?;
            match slot.try_take(request.sharing)? {
                Taken::Ok(mount) => {
                    self.note_mount(&slot)?;
                    return Ok(Some(mount));
                }
                Taken::Wait => return Ok(None),
                Taken::Next => {}
            }
        }
        Ok(None)
    }

    /// Empties the cache directory `id` for later users (`--no-cache`). Present users keep what they have.
    pub fn reset_cache_mount(&self, id: &str) -> Result<()> {
        for number in 0_u32.. {
            let slot = Slot::at(&self.inner.layout, id, number);
            if !slot.dir.exists() {
                return Ok(());
            }
            match self.reset_slot(&slot) {
                // Removed a moment ago: as empty as can be.
                Err(error) if is_not_found(&error) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn reset_slot(&self, slot: &Slot) -> Result<()> {
        match slot.try_take_exclusive()? {
            Some(_lock) => self.empty(slot),
            None => std::fs::write(slot.condemned(), "").during("write", &slot.dir),
        }
    }

    /// The slot, made when missing; a condemned one that nobody uses is emptied.
    fn slot(&self, request: &MountRequest<'_>, number: u32) -> Result<Slot> {
        let slot = Slot::at(&self.inner.layout, request.id, number);
        if !slot.dir.exists() {
            self.make_slot(&slot, request)?;
        } else if slot.condemned().exists()
            && let Ok(Some(_lock)) = slot.try_take_exclusive()
        {
            self.empty(&slot)?;
        }
        Ok(slot)
    }

    fn make_slot(&self, slot: &Slot, request: &MountRequest<'_>) -> Result<()> {
        let draft = self.session()?.fresh_path("mount");
        let data = draft.join("data");
        std::fs::create_dir_all(&data).during("create", &data)?;
        set_mode(&data, 0o755)?;
        let file = MountFile {
            id: request.id.to_owned(),
            kind: request.kind,
            description: request.description.to_owned(),
            created_at: now(),
        };
        let bytes = serde_json::to_vec(&file).map_err(std::io::Error::from).during("encode", &draft)?;
        for (name, bytes) in [("mount.json", &bytes[..]), ("lock", b"")] {
            std::fs::write(draft.join(name), bytes).during("write", &draft)?;
        }
        if let Err(error) = std::fs::rename(&draft, &slot.dir) {
            remove_tree(&draft);
            // Somebody else was quicker: then theirs is as good, even if it has been pruned again since.
            if !matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty) {
                return Err(error).during("create", &slot.dir);
            }
        }
        Ok(())
    }

    /// Gives a slot that nobody uses (the caller has its lock) a new empty directory.
    fn empty(&self, slot: &Slot) -> Result<()> {
        let trash = self.inner.trash_path()?;
        let data = slot.data();
        std::fs::rename(&data, &trash).during("rename", &data)?;
        std::fs::create_dir(&data).during("create", &data)?;
        set_mode(&data, 0o755)?;
        for marker in [slot.ready(), slot.claimed(), slot.condemned()] {
            let _ = std::fs::remove_file(marker);
        }
        remove_tree(&trash);
        Ok(())
    }

    fn note_mount(&self, slot: &Slot) -> Result<()> {
        let sql = "INSERT INTO mount(slot_dir, used_at, uses) VALUES (?1, ?2, 1)
                   ON CONFLICT(slot_dir) DO UPDATE SET used_at = ?2, uses = uses + 1, disk_bytes = NULL";
        self.inner.index.write("note a cache mount", |tx| {
            tx.prepare_cached(sql)?.execute((slot.name(), now()))?;
            Ok(())
        })
    }
}

/// What came of asking for a slot.
enum Taken {
    Ok(CacheMount),
    /// It will be free later, and no other will do.
    Wait,
    /// Try the next one.
    Next,
}

impl Slot {
    fn at(layout: &Layout, id: &str, number: u32) -> Self {
        Self { dir: layout.bucket(Bucket::Mounts).join(format!("{}-{number}", name_digest(id))) }
    }

    /// All slots of all ids.
    pub(crate) fn all(layout: &Layout) -> Vec<Self> {
        let entries = std::fs::read_dir(layout.bucket(Bucket::Mounts)).into_iter().flatten().flatten();
        entries.map(|entry| Self { dir: entry.path() }).collect()
    }

    /// The directory's name, which is what the index calls the slot.
    pub(crate) fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What the slot is for; `None` when it is none of ours.
    pub(crate) fn description(&self) -> Option<MountFile> {
        serde_json::from_slice(&std::fs::read(self.dir.join("mount.json")).ok()?).ok()
    }

    /// Takes the slot for removal if nobody uses it.
    pub(crate) fn try_take_exclusive(&self) -> Result<Option<StoreLock>> {
        try_lock_file(&self.lock_path(), FlockOperation::NonBlockingLockExclusive)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Present once the directory has its base content.
    fn ready(&self) -> PathBuf {
        self.dir.join("ready")
    }

    /// Flocked by whoever lays down the base content, and of the time at which that began.
    fn claimed(&self) -> PathBuf {
        self.dir.join("claimed")
    }

    /// Present when the directory is to be emptied as soon as its present users are done.
    fn condemned(&self) -> PathBuf {
        self.dir.join("condemned")
    }

    fn try_take(&self, sharing: Sharing) -> Result<Taken> {
        let (operation, otherwise) = match sharing {
            Sharing::Shared => (FlockOperation::NonBlockingLockShared, Taken::Next),
            Sharing::Private => (FlockOperation::NonBlockingLockExclusive, Taken::Next),
            Sharing::Locked => (FlockOperation::NonBlockingLockExclusive, Taken::Wait),
        };
        let lock = match self.try_lock(operation) {
            // The slot was removed a moment ago: the next attempt makes it again.
            Err(error) if is_not_found(&error) => return Ok(Taken::Wait),
            other => other?,
        };
        let Some(lock) = lock else { return Ok(otherwise) };
        if self.condemned().exists() {
            // Users of the emptied directory do not get in the way of those of the old one.
            return Ok(Taken::Next);
        }
        let Some(preparation) = self.prepare()? else { return Ok(Taken::Wait) };
        let is_new = preparation.marker.is_some();
        Ok(Taken::Ok(CacheMount { path: self.data(), is_new, lock: Some(lock), preparation }))
    }

    /// Takes the slot's lock, looking past those who take it only to see whether it is free.
    fn try_lock(&self, operation: FlockOperation) -> Result<Option<StoreLock>> {
        for _ in 0..GLANCES {
            if let Some(lock) = try_lock_file(&self.lock_path(), operation)? {
                return Ok(Some(lock));
            }
            std::thread::sleep(GLANCE);
        }
        try_lock_file(&self.lock_path(), operation)
    }

    /// Finds out whether the base content is there, or becomes the one who lays it down. `None` while another does.
    fn prepare(&self) -> Result<Option<Preparation>> {
        let done = || Some(Preparation { marker: None, claim: None });
        if self.ready().exists() {
            return Ok(done());
        }
        let claimed = self.claimed();
        match try_lock_file(&claimed, FlockOperation::NonBlockingLockExclusive)? {
            Some(_) if self.ready().exists() => Ok(done()),
            Some(claim) => {
                // The time of the claim is the file's.
                std::fs::write(&claimed, "claimed").during("write", &claimed)?;
                Ok(Some(Preparation { marker: Some(self.ready()), claim: Some(claim) }))
            }
            None if is_younger(&claimed, PREPARATION) => Ok(None),
            None => Ok(done()),
        }
    }
}

impl Preparation {
    fn finish(&mut self) {
        if let Some(marker) = self.marker.take() {
            let _ = std::fs::write(marker, "");
        }
        self.claim = None;
    }
}

impl Drop for Preparation {
    fn drop(&mut self) {
        self.finish();
    }
}

fn is_not_found(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}

fn is_younger(path: &Path, age: Duration) -> bool {
    let Ok(modified) = std::fs::metadata(path).and_then(|metadata| metadata.modified()) else { return false };
    SystemTime::now().duration_since(modified).is_ok_and(|elapsed| elapsed < age)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::testing::{check, store};

    fn request(sharing: Sharing) -> MountRequest<'static> {
        MountRequest { id: "/root/.cache", sharing, kind: UsageKind::CacheMount, description: "cache" }
    }

    fn take(store: &Store, sharing: Sharing) -> Option<CacheMount> {
        store.try_cache_mount(&request(sharing)).unwrap()
    }

    #[test]
    fn shared_users_meet_in_one_directory_and_only_the_first_finds_it_new() {
        let (dir, first) = store();
        let second = Store::open(&dir.path().join("store")).unwrap();
        let mut a = take(&first, Sharing::Shared).unwrap();
        assert!(a.is_new);
        assert!(take(&second, Sharing::Shared).is_none(), "the first user is still preparing");
        a.mark_ready();
        let b = take(&second, Sharing::Shared).unwrap();
        assert_eq!((b.is_new, &b.path), (false, &a.path));
        std::fs::write(a.path.join("kept"), "x").unwrap();
        drop((a, b));
        let c = take(&second, Sharing::Shared).unwrap();
        assert!(!c.is_new && c.path.join("kept").exists());
        check(&first);
    }

    #[test]
    fn private_users_have_their_own_and_reuse_a_free_one() {
        let (_dir, store) = store();
        let a = take(&store, Sharing::Private).unwrap();
        let b = take(&store, Sharing::Private).unwrap();
        assert_ne!(a.path, b.path);
        let freed = a.path.clone();
        drop(a);
        let c = take(&store, Sharing::Private).unwrap();
        assert_eq!((c.path, c.is_new), (freed, false));
        drop(b);
    }

    #[test]
    fn locked_users_wait_for_everybody_and_can_give_up() {
        let (_dir, store) = store();
        let mut shared = take(&store, Sharing::Shared).unwrap();
        shared.mark_ready();
        assert!(take(&store, Sharing::Locked).is_none());
        assert!(store.cache_mount_unless(&request(Sharing::Locked), &|| true).unwrap().is_none());
        let path = shared.path.clone();
        drop(shared);
        let locked = take(&store, Sharing::Locked).unwrap();
        assert_eq!(locked.path, path);
        let is_free = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mount = store.cache_mount("/root/.cache", Sharing::Locked).unwrap();
                assert!(is_free.load(Ordering::SeqCst));
                drop(mount);
            });
            std::thread::sleep(Duration::from_millis(20));
            is_free.store(true, Ordering::SeqCst);
            drop(locked);
            waiting.join().unwrap();
        });
    }

    #[test]
    fn a_reset_empties_the_directory_for_later_users_only() {
        let (_dir, store) = store();
        let mount = take(&store, Sharing::Shared).unwrap();
        std::fs::write(mount.path.join("old"), "x").unwrap();
        store.reset_cache_mount("/root/.cache").unwrap();
        assert!(mount.path.join("old").exists(), "in use");
        let other = take(&store, Sharing::Shared).unwrap();
        assert!(other.is_new && !other.path.join("old").exists());
        let path = mount.path.clone();
        drop((mount, other));
        let again = take(&store, Sharing::Shared).unwrap();
        assert_eq!(again.path, path);
        assert!(again.is_new && !again.path.join("old").exists());
        drop(again);
        store.reset_cache_mount("/root/.cache").unwrap();
        assert!(take(&store, Sharing::Locked).unwrap().is_new);
        check(&store);
    }

    #[test]
    fn a_preparation_that_was_never_finished_is_done_again() {
        let (_dir, store) = store();
        let mount = take(&store, Sharing::Locked).unwrap();
        let marker = mount.path.with_file_name("ready");
        drop(mount);
        // As if the process had been killed before.
        std::fs::remove_file(marker).unwrap();
        assert!(take(&store, Sharing::Locked).unwrap().is_new);
    }
}
