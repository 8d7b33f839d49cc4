//! What is to be run, in what surroundings.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use solver::{NetworkMode, SecurityMode, Ulimit};

use super::nodes::GivenDevices;
use crate::sys::handlers::HandlerNamespace;
use crate::sys::mount::MountAttributes;

/// One command and everything it sees. Spec: `spec/dockerfile.md` §8, `spec/engine.md` §5.1.
///
/// Has no `Debug` form on purpose: the environment may hold secrets.
#[derive(Clone)]
pub struct SandboxSpec {
    /// The layers of the root, base first; none is an empty root.
    pub lower: Vec<PathBuf>,
    /// Takes all writes; empty, or what an earlier command of the same step has written.
    pub upper: PathBuf,
    /// Scratch space of overlayfs: empty, on the file system of `upper`.
    pub work: PathBuf,
    /// The command; the program is looked for in `PATH` unless it has a slash.
    pub args: Vec<String>,
    /// The environment, in order; `HOME` is added when missing.
    pub env: Vec<(String, String)>,
    /// Absolute working directory; made for the user when missing.
    pub cwd: String,
    /// As in `USER`; empty is root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// Name and address of each further line of `/etc/hosts`.
    pub extra_hosts: Vec<(String, String)>,
    /// Network.
    pub network: NetworkMode,
    /// Confinement.
    pub security: SecurityMode,
    /// A user namespace that the command enters last of all, for its program handlers ([`crate::emulation`]).
    pub handlers: Option<Arc<HandlerNamespace>>,
    /// Size of `/dev/shm`; `None` is 64 MiB.
    pub shm_size_bytes: Option<u64>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Limits of the control group, and its parent.
    pub resources: Resources,
    /// Mounts in the order given; of the same target the last one counts, parents are mounted first.
    pub mounts: Vec<SandboxMount>,
    /// What comes with the devices that it asks for.
    pub given: GivenDevices,
    /// Standard input, output and error.
    pub stdio: Stdio,
}

/// Standard input, output and error of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// Input is empty; output and error go to the log.
    Piped,
    /// Ours.
    Inherit,
    /// A terminal of the container's own, connected to ours.
    Terminal,
}

/// What a control group limits. Never part of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Parent control group; `None` is our own.
    pub cgroup_parent: Option<String>,
    /// Most memory.
    pub memory_bytes: Option<u64>,
    /// Most memory and swap together; `-1` is unlimited swap.
    pub memory_swap_bytes: Option<i64>,
    /// Weight against others, 2 to 262144; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Length of a scheduling period, microseconds.
    pub cpu_period_us: Option<u64>,
    /// Processor time in a period, microseconds.
    pub cpu_quota_us: Option<i64>,
    /// Processors, for instance `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
}

/// Something mounted for the command.
#[derive(Clone, Debug)]
pub struct SandboxMount {
    /// Absolute path in the root; symlinks are resolved inside of it.
    pub target: String,
    /// What.
    pub source: MountSource,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// The sorts of things that can be mounted.
#[derive(Clone, Debug)]
pub enum MountSource {
    /// A path in a chain of layers (base first). Writes, where they are allowed, vanish with the command.
    Layers {
        /// The layers; none is an empty root.
        lower: Vec<PathBuf>,
        /// Absolute path; symlinks are resolved inside of the chain.
        path: String,
    },
    /// A path in a directory of the host. Writes, where they are allowed, vanish or stay.
    Directory {
        /// The directory; it is the root for `path` and for symlinks. With `path` `/` it may be a file.
        root: PathBuf,
        /// Absolute path in it.
        path: String,
        /// What becomes of writes.
        writes: Writes,
    },
    /// A path of the host as it is, with all that is mounted below it. Writes, where they are allowed, reach it.
    Host {
        /// File, directory or socket.
        path: PathBuf,
        /// What it cannot be used for.
        attributes: MountAttributes,
    },
    /// Memory.
    Tmpfs {
        /// `None` is the kernel's default.
        size_bytes: Option<u64>,
    },
    /// A file in memory, read-only.
    File(MemoryFile),
    /// A unix socket of the host.
    Socket {
        /// Where it is.
        path: PathBuf,
    },
}

/// What becomes of writes to a mounted directory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// They reach the directory (cache mounts).
    Stay,
    /// They vanish with the command (bind mounts).
    Vanish,
}

/// A file that exists only in memory: a secret or a script.
#[derive(Clone)]
pub struct MemoryFile {
    /// Its bytes. Never shown.
    pub content: Arc<[u8]>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits; without an x bit the mount is `noexec`.
    pub mode: u32,
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFile")
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .field("mode", &format_args!("{:o}", self.mode))
            .finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n when signal n ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its control group ran out of memory meanwhile.
    pub out_of_memory: bool,
    /// The program was not started at all, and why.
    pub not_started: Option<NotStarted>,
    /// What the machine did not let us do, one sentence each.
    pub warnings: Vec<String>,
}

impl Exit {
    /// Whether the command succeeded.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

/// Why a program could not be started. The text, in the runtime's words, has gone to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// There is no such program.
    Missing,
    /// It may not be executed.
    Denied,
    /// This machine cannot run it: another architecture, or no program at all.
    WrongFormat,
    /// Another reason; the kernel's number for it.
    Other(i32),
}
