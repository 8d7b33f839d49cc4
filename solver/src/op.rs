//! The operations: a closed set. Everything that counts for a key is in here; everything that does not is in
//! [`crate::graph::VertexMeta`], or is marked *not in the key*.
//!
//! After lowering there are no unexpanded variables, unknown stages or relative paths.

use oci::{DiffId, Digest, ImageRef, Platform};

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The root of a registry or local image.
    Image(ImageOp),
    /// A directory offered by the client.
    Local(LocalOp),
    /// A file behind a URL.
    Http(HttpOp),
    /// A git tree.
    Git(GitOp),
    /// A command in a sandbox. Input 0 is its root; the others are mounted as [`Mount`] says.
    Run(Box<RunOp>),
    /// File operations that give one layer. Input 0 is the root they apply to; the others are sources.
    File(FileOp),
    /// Lays the layers of input 1 over those of input 0 (`--link`).
    Merge,
}

/// An image, resolved to exact bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageOp {
    /// As the user named it, normalised.
    pub reference: ImageRef,
    /// Which platform was chosen.
    pub platform: Platform,
    /// Digest of that platform's manifest.
    pub manifest: Digest,
    /// Base layer first. What counts for keys.
    pub diff_ids: Vec<DiffId>,
}

/// A directory offered by the client, by name (`context` is the main one).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalOp {
    /// The name of the context.
    pub name: String,
}

/// A file behind a URL. The result is a root with that one file in `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpOp {
    /// Where.
    pub url: String,
    /// Name of the file in the result.
    pub filename: String,
    /// What its bytes must be.
    pub checksum: Option<Digest>,
}

/// A git tree. The result is a root with the tree's contents. Spec: `spec/engine.md` §4.5.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GitOp {
    /// Remote without fragment and query.
    pub remote: String,
    /// Branch, tag, commit or full ref; `None` is the remote's HEAD.
    pub reference: Option<String>,
    /// Directory inside the repository.
    pub subdir: Option<String>,
    /// Expected commit, or a prefix of it.
    pub checksum: Option<String>,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// Check out submodules.
    pub submodules: bool,
    /// Give the files the time of the commit.
    pub commit_times: bool,
}

/// A command in a sandbox. Spec: `spec/dockerfile.md` §8, `spec/engine.md` §5.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunOp {
    /// argv, SHELL included.
    pub args: Vec<String>,
    /// Environment in order, without proxies and secrets.
    pub env: Vec<(String, String)>,
    /// Proxy variables; *not in the key*.
    pub proxy_env: Vec<(String, String)>,
    /// Absolute working directory; created 0755 for the user when missing.
    pub cwd: String,
    /// As in `USER`; empty is root.
    pub user: String,
    /// Network of the step.
    pub network: NetworkMode,
    /// Confinement of the step.
    pub security: SecurityMode,
    /// Hostname.
    pub hostname: String,
    /// Lines of `/etc/hosts`; addresses are *not in the key*.
    pub extra_hosts: Vec<ExtraHost>,
    /// Size of `/dev/shm`; `None` is 64 MiB.
    pub shm_size_bytes: Option<u64>,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// Parent control group.
    pub cgroup_parent: Option<String>,
    /// Mounts, in the order of the Dockerfile (the last of one target wins).
    pub mounts: Vec<Mount>,
    /// Heredoc scripts, read-only in `/dev/pipes/`, mode 0755.
    pub scripts: Vec<InlineScript>,
    /// CDI device names.
    pub devices: Vec<Device>,
    /// The platform of the root.
    pub platform: Platform,
}

/// `--device`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// `vendor.com/class=name`.
    pub name: String,
    /// Whether its absence is an error.
    pub required: bool,
}

/// A script given by a heredoc that begins with `#!`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InlineScript {
    /// File name in `/dev/pipes/`.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// `NAME` and its address for `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExtraHost {
    /// Lower-cased host name.
    pub name: String,
    /// Its address.
    pub address: String,
}

/// `--ulimit NAME=SOFT[:HARD]`; -1 is unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ulimit {
    /// For instance `nofile`.
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// Network of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// Whatever the builder's default is.
    Default,
    /// Loopback only.
    None,
    /// The host's.
    Host,
}

/// Confinement of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecurityMode {
    /// Docker's default capabilities and seccomp profile.
    Sandbox,
    /// All capabilities, nothing masked.
    Insecure,
}

/// `RUN --mount`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mount {
    /// Absolute, cleaned; empty for a secret that is only a variable.
    pub target: String,
    /// Which sort.
    pub kind: MountKind,
}

/// The sorts of mounts. Spec: `spec/dockerfile.md` §2.2.1–2.2.7.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MountKind {
    /// A directory or file of another result; writes are discarded.
    Bind {
        /// Index into the vertex's inputs; `None` is an empty root.
        input: Option<usize>,
        /// Absolute path inside of it.
        source: String,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// A persistent directory.
    Cache {
        /// Identity with namespace; *not in the key* (see `spec/engine.md` §3.4).
        id: String,
        /// How concurrent users share it; *not in the key*.
        sharing: cache::Sharing,
        /// Initial content: index into the vertex's inputs.
        input: Option<usize>,
        /// Path inside of the initial content.
        source: String,
        /// Owner of a new directory.
        uid: u32,
        /// Group of a new directory.
        gid: u32,
        /// Mode of a new directory.
        mode: u32,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// Memory.
    Tmpfs {
        /// `None` is the kernel's default.
        size_bytes: Option<u64>,
    },
    /// A secret file, variable or both.
    Secret {
        /// Which secret.
        id: String,
        /// Name of the variable, if it is wanted as one.
        env: Option<String>,
        /// Whether its absence is an error.
        required: bool,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Mode.
        mode: u32,
    },
    /// A forwarded ssh agent.
    Ssh {
        /// As written; empty means `default`.
        id: String,
        /// Whether its absence is an error.
        required: bool,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Mode.
        mode: u32,
    },
}

/// File operations that together give one layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileOp {
    /// In order; each sees what the earlier ones did.
    pub actions: Vec<FileAction>,
}

/// One file operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileAction {
    /// COPY or ADD of one source.
    Copy(CopyAction),
    /// WORKDIR's directory.
    MakeDir(MakeDirAction),
    /// An inline heredoc file.
    WriteFile(WriteFileAction),
}

impl FileAction {
    /// The absolute path at which it writes, or below which.
    pub fn dest(&self) -> &str {
        match self {
            Self::Copy(copy) => &copy.dest,
            Self::MakeDir(dir) => &dir.path,
            Self::WriteFile(file) => &file.dest,
        }
    }
}

/// COPY or ADD of one source. Spec: `spec/dockerfile.md` §2.15–2.24.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CopyAction {
    /// Index into the vertex's inputs (never 0); `None` is an empty root.
    pub input: Option<usize>,
    /// What is taken.
    pub selection: CopySelection,
    /// Absolute; a trailing `/` (or `/.`) means "a directory".
    pub dest: String,
    /// `--chown`.
    pub owner: Option<Owner>,
    /// `--chmod`.
    pub mode: Option<ModeChange>,
    /// Whether archives are unpacked.
    pub unpack: Unpack,
    /// Mode, owner and time come from the source as they are (a URL's file: the fetcher has set them).
    pub keep_source_metadata: bool,
}

/// What a copy takes from its source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CopySelection {
    /// Absolute cleaned path or pattern (`/src/*.c`); `/` is everything.
    pub source: String,
    /// Whether `source` has an unescaped `*`, `?` or `[` and is matched as Go's `filepath.Match`.
    pub wildcard: bool,
    /// `--exclude` patterns, .dockerignore syntax.
    pub excludes: Vec<String>,
    /// `--parents`: the pattern is split at the pivot `/./`; `Some(base)` is its left part (absolute, `/` when there
    /// is no pivot) and `source` the whole cleaned path.
    pub parents_base: Option<String>,
}

/// WORKDIR's directory: made with missing parents, an existing one is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MakeDirAction {
    /// Absolute.
    pub path: String,
    /// Mode of what is created.
    pub mode: u32,
    /// Owner of what is created; `None` is root.
    pub owner: Option<Owner>,
    /// Time of what is created, seconds since the epoch; `None` is now.
    pub mtime: Option<i64>,
}

/// An inline file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WriteFileAction {
    /// Absolute destination as for a copy of one file named `name`.
    pub dest: String,
    /// The file's name when `dest` is a directory.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// `--chown`.
    pub owner: Option<Owner>,
    /// `--chmod`; 0644 when not given.
    pub mode: Option<ModeChange>,
    /// Time, seconds since the epoch; `None` is now.
    pub mtime: Option<i64>,
}

/// `--chown`: names are looked up in the root that is written to. Spec: `spec/dockerfile.md` §2.17.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// User part.
    pub user: Principal,
    /// Group part; `None` is the user's primary group (for a name) or the same number (for a number).
    pub group: Option<Principal>,
}

/// A user or group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// `--chmod`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ModeChange {
    /// Permission bits 0 to 07777.
    Octal(u32),
    /// Checked symbolic clauses, for instance `u+rwX,go=rX`.
    Symbolic(String),
}

/// Whether ADD unpacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unpack {
    /// COPY and `--unpack=false`.
    Never,
    /// Unpack if it is a tar, plain or compressed; copy otherwise.
    IfArchive,
}
