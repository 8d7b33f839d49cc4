//! What a process needs to know and to have for running commands, found and made once.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::process::PidfdFlags;
use rustix::thread::CapabilitySet;
use tempfile::TempDir;

use super::cgroup::{BuildGroups, Hierarchy};
use super::chroot::{Commands, Roots};
use super::error::SandboxError;
use super::guard::DeviceGuard;
use super::isolation::{Confinement, Isolation};
use super::namespaces::RemainsCount;
use super::network::NetworkProvider;
use super::points::{PointKind, make_stubs};
use super::rootfs::Sensitive;
use crate::sys::bpf::AllowedDevice;
use crate::sys::release::kernel_is_at_least;

/// Facts about the machine, and a scratch directory with what all commands share.
pub(super) struct Host {
    scratch: TempDir,
    /// Whether what all commands share is there.
    has_points: Mutex<bool>,
    /// Contents of files that are bound into containers, with where they lie.
    files: Mutex<HashMap<String, PathBuf>>,
    /// Trees of layers that were looked at, and whether they have any entry.
    have_entries: Mutex<HashMap<PathBuf, bool>>,
    pub(super) network: Arc<dyn NetworkProvider>,
    pub(super) isolation: Isolation,
    /// The OCI runtime that starts commands.
    pub(super) runtime: Option<PathBuf>,
    pub(super) sensitive: Sensitive,
    pub(super) hierarchy: Hierarchy,
    pub(super) build_groups: BuildGroups,
    /// Whether the number of processes can be limited for each pid namespace.
    pub(super) counts_processes: bool,
    pub(super) guard: OnceLock<DeviceGuard>,
    /// All that this process has.
    pub(super) capabilities: u64,
    /// Device and inode of our program file.
    pub(super) program: (u64, u64),
    /// The mount namespace to go back to.
    pub(super) mount_namespace: OwnedFd,
    /// A descriptor of this process.
    pub(super) this_process: OwnedFd,
    pub(super) remains: Arc<RemainsCount>,
    /// Copies of layers, in [`Isolation::Chroot`].
    pub(super) roots: Roots,
    /// What runs there.
    pub(super) commands: Commands,
}

impl Host {
    pub(super) fn new(
        scratch: TempDir,
        network: Arc<dyn NetworkProvider>,
        confinement: &Confinement,
    ) -> Result<Self, SandboxError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mount_namespace = rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty())
            .map_err(SandboxError::call("open", "/proc/self/ns/mnt"))?;
        let this_process = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(SandboxError::setup("get a descriptor of this process"))?;
        let program = rustix::fs::stat("/proc/self/exe").map_err(SandboxError::call("read", "/proc/self/exe"))?;
        let capabilities =
            rustix::thread::capabilities(None).map_err(SandboxError::setup("read the capabilities of this process"))?;
        Ok(Self {
            scratch,
            has_points: Mutex::default(),
            files: Mutex::default(),
            have_entries: Mutex::default(),
            network,
            isolation: confinement.isolation,
            runtime: confinement.runtime.clone(),
            sensitive: Sensitive::of_host(),
            hierarchy: Hierarchy::of_this_process(),
            build_groups: BuildGroups::default(),
            counts_processes: namespaces_count_processes(),
            guard: OnceLock::new(),
            program: (program.st_dev, program.st_ino),
            capabilities: capabilities.permitted.bits(),
            mount_namespace,
            this_process,
            remains: Arc::default(),
            roots: Roots::default(),
            commands: Commands::default(),
        })
    }

    /// Makes what all commands share, for the first one: many builds find all their results.
    pub(super) fn make_points(&self) -> Result<(), SandboxError> {
        let mut has_points = self.has_points.lock().unwrap_or_else(PoisonError::into_inner);
        if *has_points {
            return Ok(());
        }
        let points = [self.root_point(), self.stage_point(), self.bundle_point(), self.empty(), self.default_stubs()];
        for directory in points {
            std::fs::create_dir(&directory).map_err(SandboxError::io("create", &directory))?;
        }
        let always = [("/etc/hosts", PointKind::File), ("/etc/resolv.conf", PointKind::File)];
        make_stubs(&self.default_stubs(), always.into_iter())?;
        *has_points = true;
        Ok(())
    }

    /// What keeps commands from devices; made for the first one.
    pub(super) fn guard(&self) -> &DeviceGuard {
        self.guard.get_or_init(|| self.guard_with(&[]))
    }

    /// What keeps one command from all but the usual devices and those in `more`.
    pub(super) fn guard_with(&self, more: &[AllowedDevice]) -> DeviceGuard {
        // In a user namespace no node works anyway, and filters cannot be loaded.
        let can_be = matches!(self.isolation, Isolation::Root | Isolation::Chroot);
        let group = if can_be { self.hierarchy.unified_directory() } else { None };
        DeviceGuard::new(group.as_deref(), more)
    }

    /// The scratch directory.
    pub(super) fn root(&self) -> &Path {
        self.scratch.path()
    }

    /// Where roots are mounted before they are entered; each command sees its own there.
    pub(super) fn root_point(&self) -> PathBuf {
        self.root().join("root")
    }

    /// Where sources of mounts are put together.
    pub(super) fn stage_point(&self) -> PathBuf {
        self.root().join("stage")
    }

    /// Where the bundle for an OCI runtime is mounted; each command sees its own there.
    pub(super) fn bundle_point(&self) -> PathBuf {
        self.root().join("bundle")
    }

    /// An empty directory.
    pub(super) fn empty(&self) -> PathBuf {
        self.root().join("empty")
    }

    /// Mount points of what every container gets.
    pub(super) fn default_stubs(&self) -> PathBuf {
        self.root().join("stubs")
    }

    /// A fresh directory for one command.
    pub(super) fn step_directory(&self) -> Result<TempDir, SandboxError> {
        tempfile::Builder::new()
            .prefix("step-")
            .tempdir_in(self.root())
            .map_err(SandboxError::io("create a directory in", self.root()))
    }

    /// A file with that content, root's and 0644; the same one for the same content.
    pub(super) fn shared_file(&self, content: &str) -> Result<PathBuf, SandboxError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = files.get(content) {
            return Ok(path.clone());
        }
        let path = self.root().join(format!("file-{}", files.len()));
        std::fs::write(&path, content).map_err(SandboxError::io("write", &path))?;
        // Whatever our umask is.
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o644))
            .map_err(SandboxError::call("change the mode of", &path))?;
        files.insert(content.to_owned(), path.clone());
        Ok(path)
    }

    /// The trees among `lower` that have an entry: a layer without any changes nothing but the attributes of the root, which
    /// the upper directory has anyway, and the kernel looks into every layer for every name.
    ///
    /// A tree never changes, so each is looked into once.
    pub(super) fn with_entries<'a>(&self, lower: &'a [PathBuf]) -> Vec<&'a Path> {
        let mut known = self.have_entries.lock().unwrap_or_else(PoisonError::into_inner);
        let has_entries = |tree: &&PathBuf| match known.get(*tree) {
            Some(&has_entries) => has_entries,
            None => {
                // What cannot be read is for the mount to complain about.
                let has_entries = std::fs::read_dir(tree).map_or(true, |mut entries| entries.next().is_some());
                known.insert((*tree).clone(), has_entries);
                has_entries
            }
        };
        lower.iter().filter(has_entries).map(PathBuf::as_path).collect()
    }

    /// Whether this process may raise hard limits.
    pub(super) fn may_raise_limits(&self) -> bool {
        self.isolation == Isolation::Root && self.capabilities & CapabilitySet::SYS_RESOURCE.bits() != 0
    }
}

/// `kernel.pid_max` belongs to the pid namespace since Linux 6.14. Before, it is the machine's: it must not be touched.
fn namespaces_count_processes() -> bool {
    kernel_is_at_least((6, 14))
}

/// A number that no other caller in this process gets.
pub(super) fn serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
