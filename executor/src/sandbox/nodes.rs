//! Device nodes that a command gets beyond the usual ones, and what else comes with a device.
//!
//! Where nodes can be made, each is made in memory with its mode and owner; elsewhere it is the machine's own. Either way
//! it is mounted in its place one by one: nothing of it is in the layer, and no other node of the machine can be opened.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, Uid, major, makedev, minor};
use rustix::io::Errno;
use rustix::mount::MoveMountFlags;

use super::error::SandboxError;
use super::guard::DeviceGuard;
use super::hooks::Hook;
use super::host::Host;
use super::isolation::Isolation;
use super::mounts::{Prepared, memory_mount};
use crate::sys::bpf::{AllowedDevice, DeviceAccess, DeviceKind};
use crate::sys::mount::MountAttributes;
use crate::view::passwd::RunUser;

/// What a command gets for the devices that it asks for, besides mounts and variables.
#[derive(Clone, Debug, Default)]
pub struct GivenDevices {
    /// Nodes; of two with one path the last one counts.
    pub nodes: Vec<GivenNode>,
    /// Further supplementary groups.
    pub groups: Vec<u32>,
    /// Programs of this machine that are run before the command, in order.
    pub hooks: Vec<Hook>,
}

/// A device node for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenNode {
    /// Absolute path in the root.
    pub path: String,
    /// Where this machine has it; need not exist where nodes can be made.
    pub host_path: PathBuf,
    /// Character device, block device or FIFO.
    pub kind: FileType,
    /// Major and minor number; zeros for a FIFO.
    pub number: (u32, u32),
    /// Permission bits; 0666 unless said.
    pub mode: Option<u32>,
    /// Owner; the command's user unless said.
    pub uid: Option<u32>,
    /// Group; the command's unless said.
    pub gid: Option<u32>,
    /// What may be done with it.
    pub access: DeviceAccess,
}

/// Mode of nodes that nobody says anything about, as OCI runtimes have it.
const USUAL_MODE: u32 = 0o666;

/// A node that was made for a command, and whose it is to be.
pub(super) struct MadeNode {
    node: OwnedFd,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl GivenNode {
    fn device(&self) -> Dev {
        makedev(self.number.0, self.number.1)
    }

    fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.mode.unwrap_or(USUAL_MODE) & 0o7777)
    }

    fn failed(&self) -> impl FnOnce(Errno) -> SandboxError {
        let path = self.path.clone();
        move |errno| SandboxError::Node { path, errno }
    }

    /// Makes the node at `name` in `directory`, with its mode; the umask does not count.
    pub(super) fn make(&self, directory: impl AsFd, name: &Path) -> Result<(), SandboxError> {
        let make = || -> Result<(), Errno> {
            rustix::fs::mknodat(&directory, name, self.kind, self.mode(), self.device())?;
            rustix::fs::chmodat(&directory, name, self.mode(), AtFlags::empty())
        };
        make().map_err(self.failed())
    }

    /// Gives a node that was made at `path` to its owner.
    pub(super) fn give_to(&self, path: &Path, account: &RunUser) -> Result<(), SandboxError> {
        let (uid, gid) = (self.uid.unwrap_or(account.uid), self.gid.unwrap_or(account.gid));
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed())
    }

    /// The machine's node, which has to be the same device.
    fn bind(&self) -> Result<Prepared, SandboxError> {
        let (path, host_path) = (self.path.clone(), self.host_path.clone());
        let found = rustix::fs::stat(&host_path).map_err(SandboxError::call("look at device", &host_path))?;
        let (kind, have) = (FileType::from_raw_mode(found.st_mode), number(found.st_rdev));
        if kind != self.kind || (kind != FileType::Fifo && have != self.number) {
            return Err(SandboxError::OtherDevice { path, host_path, want: self.number, have });
        }
        let quiet = MountAttributes::NO_SUID.with(MountAttributes::NO_EXEC);
        Prepared::host_file(&host_path, &path, quiet)
    }

    /// What of the node cannot be had when it is the machine's own.
    fn shortfall(&self) -> Option<String> {
        let found = rustix::fs::stat(&self.host_path).ok()?;
        let differs = |want: Option<u32>, have: u32| want.is_some_and(|want| want != have);
        let is_other = differs(self.mode.map(|mode| mode & 0o7777), found.st_mode & 0o7777)
            || differs(self.uid, found.st_uid)
            || differs(self.gid, found.st_gid);
        is_other.then(|| {
            format!(
                "the device node {} has the mode and owner of {} on this machine: only root can make another",
                self.path,
                self.host_path.display()
            )
        })
    }
}

/// Major and minor number of a device.
pub(super) fn number(device: Dev) -> (u32, u32) {
    (major(device), minor(device))
}

impl GivenDevices {
    /// The nodes that count.
    fn chosen(&self) -> impl Iterator<Item = &GivenNode> {
        let is_last =
            |(index, node): &(usize, &GivenNode)| self.nodes[index + 1..].iter().all(|later| later.path != node.path);
        self.nodes.iter().enumerate().filter(is_last).map(|(_, node)| node)
    }

    /// Nodes ready to be mounted, and those of them that were made. Uses the stage of the calling thread.
    pub(super) fn prepare(&self, host: &Host) -> Result<(Vec<Prepared>, Vec<MadeNode>), SandboxError> {
        let (mut mounts, mut made) = (Vec::new(), Vec::new());
        if self.nodes.is_empty() {
            return Ok((mounts, made));
        }
        if !host.isolation.may_make_devices() {
            return Ok((self.chosen().map(GivenNode::bind).collect::<Result<_, _>>()?, made));
        }
        let memory = memory_mount().map_err(SandboxError::setup("make a file system in memory"))?;
        let stage = host.stage_point();
        rustix::mount::move_mount(memory.as_fd(), "", CWD, &stage, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(SandboxError::setup("mount a file system in memory"))?;
        for (index, given) in self.chosen().enumerate() {
            let name = PathBuf::from(format!("node-{index}"));
            match given.make(&memory, &name) {
                // A container may lack the right to make nodes, and still have the device.
                Err(SandboxError::Node { errno: Errno::PERM, .. }) if given.host_path.exists() => {
                    mounts.push(given.bind()?);
                    continue;
                }
                result => result?,
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let node = rustix::fs::openat(&memory, &name, flags, Mode::empty()).map_err(given.failed())?;
            mounts.push(Prepared::node(node.as_fd(), &given.path)?);
            made.push(MadeNode { node, uid: given.uid, gid: given.gid });
        }
        Ok((mounts, made))
    }

    /// What keeps this command from all other devices, if it needs something of its own.
    pub(super) fn guard(&self, host: &Host) -> Option<DeviceGuard> {
        let allowed: Vec<AllowedDevice> = self.chosen().filter_map(GivenNode::allowed).collect();
        let is_filtered = !allowed.is_empty() && matches!(host.guard(), DeviceGuard::Filter(_));
        is_filtered.then(|| host.guard_with(&allowed))
    }

    /// What of this a command will not get, one sentence each.
    pub(super) fn warnings(&self, host: &Host) -> Vec<String> {
        let nodes = self.chosen().filter(|_| !host.isolation.may_make_devices()).filter_map(GivenNode::shortfall);
        let lost: Vec<String> =
            self.groups.iter().filter(|gid| !may_have_group(host, **gid)).map(u32::to_string).collect();
        let groups = (!lost.is_empty()).then(|| {
            format!(
                "the groups {} of its devices are not to be had for a step with --isolation={}",
                lost.join(", "),
                host.isolation.name()
            )
        });
        nodes.chain(groups).collect()
    }

    /// Puts a user into the groups of the devices, as far as that can be.
    pub(super) fn join_groups(&self, host: &Host, account: &mut RunUser) {
        account.supplementary.extend(self.groups.iter().copied().filter(|gid| may_have_group(host, *gid)));
        account.supplementary.sort_unstable();
        account.supplementary.dedup();
    }
}

impl GivenNode {
    /// What a filter has to let through.
    fn allowed(&self) -> Option<AllowedDevice> {
        let kind = match self.kind {
            FileType::CharacterDevice => DeviceKind::Character,
            FileType::BlockDevice => DeviceKind::Block,
            _ => return None,
        };
        let (major, minor) = self.number;
        Some(AllowedDevice { kind, major, minor: Some(minor), access: self.access })
    }
}

/// Gives made nodes to the command's user, as far as nothing else was said.
pub(super) fn give_to(made: &[MadeNode], account: &RunUser) -> Result<(), SandboxError> {
    made.iter().try_for_each(|MadeNode { node, uid, gid }| {
        let (uid, gid) = (uid.unwrap_or(account.uid), gid.unwrap_or(account.gid));
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(node, "", uid, gid, AtFlags::EMPTY_PATH)
            .map_err(SandboxError::setup("give a device node to the command's user"))
    })
}

/// Whether a process of ours can be in a group: with one id in none, in a user namespace in those that it knows.
fn may_have_group(host: &Host, gid: u32) -> bool {
    match host.isolation {
        Isolation::Root | Isolation::Chroot => true,
        Isolation::UserNamespace => {
            let map = fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
            is_mapped(&map, gid)
        }
        Isolation::SingleId | Isolation::Nothing => false,
    }
}

/// Whether a map of ids (`proc_pid_gid_map(5)`) has an id of the namespace.
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (fields.next().unwrap_or(0), fields.next(), fields.next().unwrap_or(0));
        (first..first + count).contains(&u64::from(id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, number: (u32, u32)) -> GivenNode {
        GivenNode {
            path: path.to_owned(),
            host_path: "/dev/zero".into(),
            kind: FileType::CharacterDevice,
            number,
            mode: None,
            uid: None,
            gid: None,
            access: DeviceAccess::ALL,
        }
    }

    #[test]
    fn the_last_node_of_a_path_counts() {
        let nodes = vec![node("/dev/a", (1, 3)), node("/dev/b", (1, 5)), node("/dev/a", (1, 7))];
        let given = GivenDevices { nodes, ..GivenDevices::default() };
        let chosen: Vec<_> = given.chosen().map(|node| (node.path.as_str(), node.number)).collect();
        assert_eq!(chosen, [("/dev/b", (1, 5)), ("/dev/a", (1, 7))]);
    }

    #[test]
    fn the_machines_node_has_to_be_the_device_that_is_meant() {
        assert!(matches!(
            node("/dev/x", (1, 3)).bind(),
            Err(SandboxError::OtherDevice { want: (1, 3), have: (1, 5), .. })
        ));
        let gone = GivenNode { host_path: "/dev/there/is/none".into(), ..node("/dev/x", (1, 5)) };
        assert!(matches!(gone.bind(), Err(SandboxError::Io { .. })));
        let strict = GivenNode { mode: Some(0o600), ..node("/dev/x", (1, 5)) };
        assert!(strict.shortfall().is_some_and(|text| text.contains("/dev/zero")));
        assert_eq!(node("/dev/x", (1, 5)).shortfall(), None);
    }

    #[test]
    fn ids_of_a_namespace_are_told_from_others() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        for (id, want) in [(0, true), (44, true), (65536, true), (65537, false)] {
            assert_eq!(is_mapped(map, id), want, "{id}");
        }
        assert!(is_mapped("0 0 4294967295\n", 5));
        assert!(!is_mapped("", 0));
    }
}
