//! Brings contexts to the disk as people and programs do: in place or by renaming, with the times of before, moved.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::rng::Rng;
use super::world::{Node, Touch, World};

/// A context on the disk.
pub(super) struct Disk {
    dir: PathBuf,
    nodes: BTreeMap<String, Node>,
    /// What the edits since the last time want done to the files.
    pub(super) touches: Vec<Touch>,
}

impl Disk {
    /// An empty one.
    pub(super) fn new(dir: &Path) -> Result<Self, String> {
        fs::create_dir_all(dir.join("src/sub")).map_err(|error| format!("mkdir {}: {error}", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), nodes: BTreeMap::new(), touches: Vec::new() })
    }

    /// Makes the directory what the world says; adds to `edits` how.
    pub(super) fn bring(&mut self, world: &World, rng: &mut Rng, edits: &mut Vec<String>) -> Result<(), String> {
        self.try_bring(world, rng, edits).map_err(|error| format!("write the context: {error}"))
    }

    fn try_bring(&mut self, world: &World, rng: &mut Rng, edits: &mut Vec<String>) -> std::io::Result<()> {
        let touches = std::mem::take(&mut self.touches);
        let keep_times = touches.contains(&Touch::KeepTimes);
        let gone: Vec<String> = self.nodes.keys().filter(|name| !world.context.contains_key(*name)).cloned().collect();
        for name in gone {
            let Some(node) = self.nodes.remove(&name) else { continue };
            // What appears elsewhere with the same content was moved there.
            let moved = world.context.iter().find(|(to, new)| **new == node && !self.nodes.contains_key(*to));
            match moved {
                Some((to, _)) => {
                    fs::rename(self.dir.join(&name), self.dir.join(to))?;
                    self.nodes.insert(to.clone(), node);
                }
                None => fs::remove_file(self.dir.join(&name))?,
            }
        }
        for (name, node) in &world.context {
            if self.nodes.get(name) != Some(node) {
                let in_place = self.nodes.contains_key(name) && rng.one_in(2);
                self.write(name, node, in_place, keep_times)?;
                edits.push(format!("disk: {name}{}", if in_place { " in place" } else { "" }));
                self.nodes.insert(name.clone(), node.clone());
            }
        }
        for touch in touches {
            self.touch(&touch, rng)?;
        }
        fs::write(self.dir.join(".dockerignore"), world.ignore.join("\n"))?;
        fs::write(self.dir.join("Dockerfile"), world.dockerfile())
    }

    fn write(&self, name: &str, node: &Node, in_place: bool, keep_times: bool) -> std::io::Result<()> {
        let path = self.dir.join(name);
        let before = fs::symlink_metadata(&path).and_then(|metadata| metadata.modified()).ok();
        let (content, mode) = match node {
            Node::Link { target } => {
                drop(fs::remove_file(&path));
                return symlink(target, &path);
            }
            Node::File { content, mode } => (content, *mode),
        };
        if in_place {
            File::options().write(true).truncate(true).open(&path)?.write_all(content.as_bytes())?;
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
        } else {
            let new = self.dir.join("src/.new");
            fs::write(&new, content)?;
            fs::set_permissions(&new, Permissions::from_mode(mode))?;
            fs::rename(&new, &path)?;
        }
        match before.filter(|_| keep_times) {
            Some(before) => set_time(&path, before),
            None => Ok(()),
        }
    }

    fn touch(&self, touch: &Touch, rng: &mut Rng) -> std::io::Result<()> {
        let (Touch::Now(name) | Touch::Owner(name)) = touch else { return Ok(()) };
        let path = self.dir.join(name);
        match (touch, self.nodes.get(name)) {
            (Touch::Now(_), Some(Node::File { .. })) => set_time(&path, SystemTime::now()),
            (Touch::Owner(_), Some(Node::File { mode, .. })) => {
                chown(&path, Some(rng.below(4) as u32), None)?;
                fs::set_permissions(&path, Permissions::from_mode(*mode))
            }
            (Touch::Owner(_), Some(Node::Link { .. })) => lchown(&path, Some(rng.below(4) as u32), None),
            _ => Ok(()),
        }
    }
}

fn set_time(path: &Path, time: SystemTime) -> std::io::Result<()> {
    File::open(path)?.set_times(FileTimes::new().set_modified(time))
}
