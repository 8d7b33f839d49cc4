//! Applies the entries of a layer tar to a tree, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci::layer::{CleanPath, Content, Entry, EntryKind, LayerError, LayerReader, Member};
use rustix::fs::{AtFlags, FileType, Stat, linkat, readlinkat, unlinkat};
use rustix::io::Errno;

use super::create::{Attributes, Created, Creator, remove};
use super::place::Place;
use super::{UnpackOptions, to_path};
use crate::layer::dir;
use crate::layer::error::{Result, TreeError, as_path};

/// Prefix of deletion markers.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Prefix of names that are markers and nothing else.
const META_PREFIX: &[u8] = b".wh..wh.";
/// Marks its directory as opaque.
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Symlinks that are followed for one path, as the kernel does.
const MAX_LINKS: usize = 40;

/// A tree while it is unpacked.
pub(super) struct Extractor {
    place: Place,
    creator: Creator,
    limits: oci::layer::ReadLimits,
    /// The parent path that `place` stands for, as the archive writes it; symlinks may make it differ from the place.
    current_parent: Option<Vec<u8>>,
    /// Whether the way to `place` went through a symlink: then nothing can be said about other paths.
    came_through_link: bool,
    path: CleanPath,
    n_entries: u64,
    /// Length of all paths that were ever put into the maps and sets below.
    remembered_bytes: u64,
    /// What becomes of every directory at the end, by its place in the tree.
    dirs: BTreeMap<Vec<u8>, Attributes>,
    implied: BTreeSet<Vec<u8>>,
    opaque: BTreeSet<Vec<u8>>,
    /// Links without a target: number in the archive and target, by their place in the tree.
    deferred: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
}

/// What is known at the end.
pub(super) struct Extracted {
    pub(super) n_entries: u64,
    pub(super) implied_dirs: Vec<Vec<u8>>,
    pub(super) opaque_dirs: Vec<Vec<u8>>,
    /// Path and target, in the order of the archive.
    pub(super) deferred_links: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extractor {
    pub(super) fn new(tree: &Path, options: UnpackOptions) -> Result<Self> {
        let place = Place::open(tree)?;
        let creator = Creator::new(options, place.fd())?;
        Ok(Self {
            place,
            creator,
            limits: options.limits,
            current_parent: None,
            came_through_link: false,
            path: CleanPath::default(),
            n_entries: 0,
            remembered_bytes: 0,
            dirs: BTreeMap::from([(Vec::new(), Attributes::IMPLIED)]),
            implied: BTreeSet::from([Vec::new()]),
            opaque: BTreeSet::new(),
            deferred: BTreeMap::new(),
        })
    }

    /// Applies all entries of `tar`.
    pub(super) fn run(&mut self, tar: impl Read) -> Result<()> {
        let mut archive = LayerReader::new(tar, self.limits);
        while let Some(Member { entry, mut content }) = archive.next_member()? {
            self.n_entries += 1;
            self.apply(&entry, &mut content)?;
        }
        Ok(())
    }

    /// Sets the metadata of all directories, children first: now nothing is written into them any more.
    pub(super) fn finish(mut self) -> Result<Extracted> {
        let dirs = std::mem::take(&mut self.dirs);
        for (path, attributes) in dirs.iter().rev() {
            let fd = self.open_dir(path)?;
            self.creator.describe_dir(&fd, path, attributes)?;
        }
        let mut deferred: Vec<_> =
            self.deferred.into_iter().map(|(path, (number, target))| (number, path, target)).collect();
        deferred.sort_unstable();
        Ok(Extracted {
            n_entries: self.n_entries,
            implied_dirs: self.implied.into_iter().collect(),
            opaque_dirs: self.opaque.into_iter().collect(),
            deferred_links: deferred.into_iter().map(|(_, path, target)| (path, target)).collect(),
        })
    }

    /// Opens a directory by its place in the tree.
    fn open_dir(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let name = match path.iter().rposition(|&byte| byte == b'/') {
            _ if path.is_empty() => b".",
            Some(slash) => &path[slash + 1..],
            None => path,
        };
        let parent = path.strip_suffix(name).unwrap_or_default();
        self.place.go_to(parent)?;
        dir::open_dir(self.place.fd(), name).map_err(TreeError::io_at("open", path))
    }

    fn apply<R: Read>(&mut self, entry: &Entry<'_>, content: &mut Content<'_, R>) -> Result<()> {
        let mut path = std::mem::take(&mut self.path);
        let outcome = match path.replace(entry.path) {
            true => self.apply_at(&path, entry, content),
            false => Err(refused(entry.path, "its name holds a NUL byte")),
        };
        self.path = path;
        outcome
    }

    fn apply_at<R: Read>(&mut self, path: &CleanPath, entry: &Entry<'_>, content: &mut Content<'_, R>) -> Result<()> {
        let Some((parent, name)) = path.split_last() else { return self.describe_root(entry) };
        // A marker holds nothing: below one there is only what means nothing.
        let mut names = path.components();
        let is_marker = names.next_back().is_some_and(|name| name.starts_with(META_PREFIX) && name != OPAQUE_MARKER);
        if is_marker || names.any(|name| name.starts_with(META_PREFIX)) {
            return Ok(());
        }
        self.go_to_parent(parent)?;
        if name == OPAQUE_MARKER {
            return self.mark_opaque();
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.delete(hidden, entry);
        }
        if !self.deferred.is_empty() {
            self.deferred.remove(&self.place.join(name));
        }
        match entry.kind {
            EntryKind::Directory => self.make_dir(name, entry),
            EntryKind::Hardlink { target } => self.make_link(name, entry, target),
            _ => self.make_other(name, entry, content),
        }
    }

    fn describe_root(&mut self, entry: &Entry<'_>) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(refused(entry.path, "the root can only be a directory"));
        }
        self.place.leave_all();
        self.current_parent = None;
        self.dirs.insert(Vec::new(), Attributes::of(entry));
        self.implied.remove(b"".as_slice());
        self.creator.set_dir_xattrs(self.place.fd(), b".", entry)
    }

    fn make_other<R: Read>(&mut self, name: &[u8], entry: &Entry<'_>, content: &mut Content<'_, R>) -> Result<()> {
        if self.creator.create(self.place.fd(), name, entry, content)? == Created::Exists {
            self.make_way(name, entry)?;
            self.creator.create(self.place.fd(), name, entry, content)?;
        }
        Ok(())
    }

    fn make_dir(&mut self, name: &[u8], entry: &Entry<'_>) -> Result<()> {
        let path = self.place.join(name);
        let made = self.creator.make_dir(self.place.fd(), name);
        if made == Err(Errno::EXIST) {
            let existing = dir::stat(self.place.fd(), name).map_err(TreeError::io_at("stat", entry.path))?;
            if !is_dir(&existing) {
                self.replace_by_dir(name)?;
            }
        } else {
            made.map_err(TreeError::io_at("create", entry.path))?;
        }
        self.creator.set_dir_xattrs(self.place.fd(), name, entry)?;
        self.implied.remove(&path);
        self.remember(path.len())?;
        self.dirs.insert(path, Attributes::of(entry));
        Ok(())
    }

    /// Counts a path that is kept until the end: a small archive can name very many.
    fn remember(&mut self, path_bytes: usize) -> Result<()> {
        self.remembered_bytes += path_bytes as u64;
        let limit = self.limits.max_remembered_bytes;
        match self.remembered_bytes > limit {
            true => Err(LayerError::LimitExceeded { what: "bytes of paths to remember", limit }.into()),
            false => Ok(()),
        }
    }

    /// Puts an empty directory in the place of something else. What that hid stays hidden.
    fn replace_by_dir(&mut self, name: &[u8]) -> Result<()> {
        let path = self.place.join(name);
        let at = |operation| TreeError::io_at(operation, &path);
        unlinkat(self.place.fd(), name, AtFlags::empty()).map_err(at("replace"))?;
        self.creator.make_dir(self.place.fd(), name).map_err(at("create"))?;
        let fd = dir::open_dir(self.place.fd(), name).map_err(at("open"))?;
        self.creator.mark_opaque(fd.as_fd()).map_err(at("mark"))?;
        self.opaque.insert(path);
        Ok(())
    }

    fn make_link(&mut self, name: &[u8], entry: &Entry<'_>, target: &[u8]) -> Result<()> {
        let at = |operation| TreeError::io_at(operation, entry.path);
        let mut target_path = CleanPath::default();
        if !target_path.replace(target) || target_path.is_root() {
            return Err(refused(entry.path, "it is a hard link to a directory"));
        }
        let Some((target_dir, target_name, stat)) = self.find_target(&target_path)? else {
            let number = self.n_entries;
            if dir::stat(self.place.fd(), name).is_ok() {
                self.make_way(name, entry)?;
            }
            let path = self.place.join(name);
            self.remember(path.len() + target_path.as_bytes().len())?;
            self.deferred.insert(path, (number, target_path.as_bytes().to_vec()));
            return Ok(());
        };
        if is_dir(&stat) {
            return Err(refused(entry.path, "it is a hard link to a directory"));
        }
        let link = |place: &Place| linkat(&target_dir, target_name.as_slice(), place.fd(), name, AtFlags::empty());
        match link(&self.place) {
            Err(Errno::EXIST) => {
                let existing = dir::stat(self.place.fd(), name).map_err(at("stat"))?;
                if (existing.st_dev, existing.st_ino) == (stat.st_dev, stat.st_ino) {
                    return Ok(());
                }
                self.make_way(name, entry)?;
                link(&self.place).map_err(at("link"))
            }
            linked => linked.map_err(at("link")),
        }
    }

    /// Finds the file that a hard link names: handle of its directory, its name, its status. `None` when this layer does
    /// not have it.
    fn find_target(&mut self, target: &CleanPath) -> Result<Option<(OwnedFd, Vec<u8>, Stat)>> {
        let Some((parent, name)) = target.split_last() else { return Ok(None) };
        let mut place = self.place.reopen().map_err(TreeError::io_at("open", target.as_bytes()))?;
        let mut finder = Way::new(parent);
        while let Some(component) = finder.next() {
            if component == b".." {
                place.leave();
                continue;
            }
            match place.enter(&component) {
                Ok(()) => {}
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => match finder.follow(&mut place, &component, target.as_bytes())? {
                    Obstacle::Link => {}
                    Obstacle::Whiteout | Obstacle::Other => return Ok(None),
                },
                Err(error) => return Err(TreeError::io("open", as_path(target.as_bytes()), error)),
            }
        }
        match dir::stat(place.fd(), name) {
            Ok(stat) if !dir::is_whiteout(&stat) => {
                let fd = place.fd().try_clone_to_owned();
                Ok(Some((
                    fd.map_err(|error| TreeError::io("open", as_path(target.as_bytes()), error))?,
                    name.to_vec(),
                    stat,
                )))
            }
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(TreeError::io("stat", as_path(target.as_bytes()), error)),
        }
    }

    /// `.wh.NAME`: deletes `NAME` from the layers below, not from this one.
    fn delete(&mut self, name: &[u8], entry: &Entry<'_>) -> Result<()> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(refused(entry.path, "it is a deletion marker without a name"));
        }
        if self.deferred.contains_key(&self.place.join(name)) {
            return Ok(());
        }
        let at = |operation| TreeError::io_at(operation, entry.path);
        match self.creator.make_whiteout(self.place.fd(), name) {
            Err(Errno::EXIST) => {}
            made => return made.map_err(at("create")),
        }
        let existing = dir::stat(self.place.fd(), name).map_err(at("stat"))?;
        if is_dir(&existing) {
            let fd = dir::open_dir(self.place.fd(), name).map_err(at("open"))?;
            self.creator.mark_opaque(fd.as_fd()).map_err(at("mark"))?;
            self.opaque.insert(self.place.join(name));
        }
        Ok(())
    }

    /// `.wh..wh..opq`: hides what is below the current directory.
    fn mark_opaque(&mut self) -> Result<()> {
        let path = self.place.path();
        // Overlayfs does not look at the mark of a root; `fix_up` hides everything by name there.
        if !path.is_empty() {
            self.creator.mark_opaque(self.place.fd()).map_err(TreeError::io_at("mark", &path))?;
        }
        self.opaque.insert(path);
        Ok(())
    }

    /// Removes what has the name of a later entry that is no directory.
    fn make_way(&mut self, name: &[u8], entry: &Entry<'_>) -> Result<()> {
        remove(self.place.fd(), name).map_err(TreeError::io_at("replace", entry.path))?;
        let path = self.place.join(name);
        let inside = [path.as_slice(), b"/"].concat();
        self.dirs.remove(&path);
        forget_inside(&mut self.dirs, &inside);
        forget_inside(&mut self.deferred, &inside);
        for set in [&mut self.implied, &mut self.opaque] {
            set.remove(&path);
            let gone: Vec<_> =
                set.range(inside.clone()..).take_while(|path| path.starts_with(&inside)).cloned().collect();
            for path in gone {
                set.remove(&path);
            }
        }
        Ok(())
    }

    /// Goes to the directory `parent`, making what is missing. Symlinks on the way lead inside the tree.
    fn go_to_parent(&mut self, parent: &[u8]) -> Result<()> {
        if self.current_parent.as_deref() == Some(parent) {
            return Ok(());
        }
        self.current_parent = None;
        let mut way = if self.came_through_link {
            self.place.leave_all();
            Way::new(parent)
        } else {
            Way::of(self.place.rewind(parent))
        };
        while let Some(component) = way.next() {
            if component == b".." {
                self.place.leave();
                continue;
            }
            match self.place.enter(&component) {
                Ok(()) => {}
                Err(Errno::NOENT) => self.make_implied(&component)?,
                Err(Errno::NOTDIR | Errno::LOOP) => match way.follow(&mut self.place, &component, parent)? {
                    Obstacle::Link => {}
                    Obstacle::Whiteout => self.replace_whiteout(&component)?,
                    Obstacle::Other => return Err(TreeError::io("enter", as_path(parent), Errno::NOTDIR)),
                },
                Err(error) => return Err(TreeError::io("open", as_path(parent), error)),
            }
        }
        self.came_through_link = way.n_links > 0;
        self.current_parent = Some(parent.to_vec());
        Ok(())
    }

    /// Makes and enters a directory that the archive takes for granted.
    fn make_implied(&mut self, name: &[u8]) -> Result<()> {
        let path = self.place.join(name);
        self.creator.make_dir(self.place.fd(), name).map_err(TreeError::io_at("create", &path))?;
        self.place.enter(name).map_err(TreeError::io_at("open", &path))?;
        self.remember(2 * path.len())?;
        self.dirs.insert(path.clone(), Attributes::IMPLIED);
        self.implied.insert(path);
        Ok(())
    }

    /// Makes and enters a directory where this layer deleted something: nothing below shines through, nor lends metadata.
    fn replace_whiteout(&mut self, name: &[u8]) -> Result<()> {
        self.replace_by_dir(name)?;
        let path = self.place.join(name);
        self.place.enter(name).map_err(TreeError::io_at("open", &path))?;
        self.remember(path.len())?;
        self.dirs.insert(path, Attributes::IMPLIED);
        Ok(())
    }
}

/// The components that are left of a path while it is walked; symlinks are spliced in.
struct Way {
    /// Innermost first.
    rest: Vec<Vec<u8>>,
    n_links: usize,
}

/// What is in the way where a directory should be.
enum Obstacle {
    /// A symlink; the way goes on through it.
    Link,
    Whiteout,
    Other,
}

impl Way {
    fn new(path: &[u8]) -> Self {
        Self::of(path.split(|&byte| byte == b'/'))
    }

    fn of<'a>(components: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut way = Self { rest: Vec::new(), n_links: 0 };
        way.prepend(components);
        way
    }

    fn prepend<'a>(&mut self, components: impl Iterator<Item = &'a [u8]>) {
        let n_before = self.rest.len();
        self.rest.extend(components.filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec));
        self.rest[n_before..].reverse();
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.rest.pop()
    }

    /// Looks at what `name` is in `place`, and follows it if it is a symlink: absolute ones start at the root of the tree.
    fn follow(&mut self, place: &mut Place, name: &[u8], whole: &[u8]) -> Result<Obstacle> {
        let at = |operation| TreeError::io_at(operation, whole);
        let stat = dir::stat(place.fd(), name).map_err(at("stat"))?;
        if dir::is_whiteout(&stat) {
            return Ok(Obstacle::Whiteout);
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok(Obstacle::Other);
        }
        self.n_links += 1;
        if self.n_links > MAX_LINKS {
            return Err(TreeError::io("resolve", as_path(whole), Errno::LOOP));
        }
        let target = readlinkat(place.fd(), name, Vec::new()).map_err(at("read the link"))?.into_bytes();
        if target.starts_with(b"/") {
            place.leave_all();
        }
        self.prepend(target.split(|&byte| byte == b'/'));
        Ok(Obstacle::Link)
    }
}

fn forget_inside<V>(map: &mut BTreeMap<Vec<u8>, V>, inside: &[u8]) {
    let gone: Vec<_> = map
        .range(inside.to_vec()..)
        .map(|(path, _)| path)
        .take_while(|path| path.starts_with(inside))
        .cloned()
        .collect();
    for path in gone {
        map.remove(&path);
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn refused(path: &[u8], reason: &'static str) -> TreeError {
    TreeError::Refused { path: to_path(path), reason }
}
