//! `config.json` of an OCI bundle: a command in the words of the OCI runtime specification, 1.0.2. Only the parts that
//! we use. Spec: `spec/engine.md` §5.1.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use rustix::termios::Winsize;
use serde::Serialize;
use solver::{SecurityMode, Ulimit};

use crate::sandbox::hooks::Hook;
use crate::sandbox::rootfs::{self, MASKED, READ_ONLY};
use crate::sandbox::seccomp::{OciFilter, oci_filter};
use crate::sandbox::spec::{SandboxSpec, Stdio};
use crate::sys::spawn::{Limit, MountCall};
use crate::view::passwd::RunUser;

/// What a configuration is made from, besides the command itself.
pub(super) struct Facts<'a> {
    pub(super) spec: &'a SandboxSpec,
    /// The root, with everything mounted below it that the runtime need not mount.
    pub(super) root: &'a Path,
    pub(super) account: &'a RunUser,
    /// Supplementary groups, where they can be set.
    pub(super) groups: Option<&'a [u32]>,
    /// `NAME=value`, in order.
    pub(super) environment: Vec<String>,
    /// One an entry of [`SandboxSpec::ulimits`], in that order.
    pub(super) limits: &'a [(u32, Limit)],
    /// The usual limit of open files, for a command that has no other: some runtimes raise their own.
    pub(super) open_files: Limit,
    /// The size of its terminal, if it gets one.
    pub(super) window: Option<Winsize>,
    /// The set that bounds what the command can have.
    pub(super) capabilities: u64,
    /// How `/sys` comes about.
    pub(super) sys: Sys,
    /// Whether there is one tree of control groups.
    pub(super) unified_cgroups: bool,
    /// What has to come after `/proc` and `/sys`, in order.
    pub(super) late: Vec<Mount>,
}

/// Who mounts `/sys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sys {
    /// The runtime.
    New,
    /// It is among the late mounts, control groups included.
    Late,
}

/// The whole document.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    oci_version: &'static str,
    process: Process,
    root: Root,
    hostname: String,
    mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hooks: BTreeMap<&'static str, Vec<HookEntry>>,
    linux: Linux,
}

/// A program that the runtime runs.
#[derive(Serialize)]
struct HookEntry {
    path: PathBuf,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    terminal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    console_size: Option<ConsoleSize>,
    user: User,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    capabilities: Capabilities,
    rlimits: Vec<Rlimit>,
    no_new_privileges: bool,
}

#[derive(Serialize)]
struct ConsoleSize {
    height: u16,
    width: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    uid: u32,
    gid: u32,
    umask: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    additional_gids: Vec<u32>,
}

#[derive(Serialize)]
struct Capabilities {
    bounding: Vec<&'static str>,
    effective: Vec<&'static str>,
    permitted: Vec<&'static str>,
    inheritable: Vec<&'static str>,
    ambient: Vec<&'static str>,
}

#[derive(Serialize, PartialEq, Debug)]
struct Rlimit {
    #[serde(rename = "type")]
    kind: String,
    soft: u64,
    hard: u64,
}

#[derive(Serialize)]
struct Root {
    path: String,
    readonly: bool,
}

/// A mount that the runtime makes.
#[derive(Clone, Serialize, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    destination: String,
    #[serde(rename = "type")]
    kind: String,
    source: String,
    options: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: Vec<Namespace>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seccomp: Option<OciFilter>,
    masked_paths: Vec<&'static str>,
    readonly_paths: Vec<&'static str>,
}

#[derive(Serialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: &'static str,
}

impl Config {
    /// Writes a command down.
    ///
    /// There is no network namespace in it: the runtime is started in the one that the command is to have. And there is
    /// no path of a control group: the runtime is born in the one that limits the command, and has to leave it at that.
    pub(super) fn new(facts: Facts<'_>) -> Self {
        let spec = facts.spec;
        let confined = spec.security == SecurityMode::Sandbox;
        let held = capability_names(facts.capabilities);
        // An unconfined command keeps what it has whoever it is.
        let kept = if confined { Vec::new() } else { held.clone() };
        let cgroup = facts.unified_cgroups.then_some("cgroup");
        let namespaces = ["pid", "ipc", "uts", "mount"].into_iter().chain(cgroup);
        let process = Process {
            terminal: spec.stdio == Stdio::Terminal,
            console_size: facts.window.map(|size| ConsoleSize { height: size.ws_row, width: size.ws_col }),
            user: User {
                uid: facts.account.uid,
                gid: facts.account.gid,
                umask: 0o022,
                additional_gids: facts.groups.map(<[u32]>::to_vec).unwrap_or_default(),
            },
            args: spec.args.clone(),
            env: facts.environment,
            cwd: spec.cwd.clone(),
            capabilities: Capabilities {
                bounding: held.clone(),
                effective: held.clone(),
                permitted: held,
                inheritable: kept.clone(),
                ambient: kept,
            },
            rlimits: rlimits(&spec.ulimits, facts.limits, facts.open_files),
            no_new_privileges: false,
        };
        let mut mounts = kernel_mounts(spec.security, facts.sys, facts.unified_cgroups);
        // A mount of the command's own wins.
        mounts.retain(|mount| spec.mounts.iter().all(|own| own.target != mount.destination));
        mounts.extend(facts.late);
        Self {
            oci_version: "1.0.2",
            process,
            root: Root { path: facts.root.to_string_lossy().into_owned(), readonly: false },
            hostname: spec.hostname.clone(),
            mounts,
            hooks: hooks(&spec.given.hooks),
            linux: Linux {
                namespaces: namespaces.map(|kind| Namespace { kind }).collect(),
                seccomp: if confined { oci_filter() } else { None },
                masked_paths: if confined { MASKED.to_vec() } else { Vec::new() },
                readonly_paths: if confined { READ_ONLY.to_vec() } else { Vec::new() },
            },
        }
    }
}

impl Mount {
    /// A tree that lies ready at `source`. Its attributes are said again: some runtimes take away those that are not.
    pub(super) fn tree(source: &Path, destination: &str, attributes: StatVfsMountFlags) -> Self {
        let names = [
            (StatVfsMountFlags::NOSUID, "nosuid"),
            (StatVfsMountFlags::NOEXEC, "noexec"),
            (StatVfsMountFlags::NODEV, "nodev"),
            (StatVfsMountFlags::RDONLY, "ro"),
        ];
        let names = names.iter().filter(|(attribute, _)| attributes.contains(*attribute)).map(|(_, name)| *name);
        Self {
            destination: destination.to_owned(),
            kind: "bind".to_owned(),
            source: source.to_string_lossy().into_owned(),
            options: ["rbind"].into_iter().chain(names).map(str::to_owned).collect(),
        }
    }

    /// A mount of our own sandbox.
    pub(super) fn call(call: &MountCall) -> Self {
        let text = |text: Option<&std::ffi::CString>| text.map(|text| text.to_string_lossy().into_owned());
        let flags = FLAGS.iter().filter(|(flag, _)| call.flags & flag != 0).map(|(_, name)| (*name).to_owned());
        let options = text(call.options.as_ref()).unwrap_or_default();
        let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned);
        // One name for both versions.
        let kind = text(call.kind.as_ref()).map(|kind| if kind == "cgroup2" { "cgroup".to_owned() } else { kind });
        Self {
            destination: call.target.to_string_lossy().into_owned(),
            kind: kind.unwrap_or_default(),
            source: text(call.source.as_ref()).unwrap_or_default(),
            options: flags.chain(options).collect(),
        }
    }
}

/// Flags of `mount(2)` that our mounts have, as options.
const FLAGS: &[(libc::c_ulong, &str)] = &[
    (libc::MS_NOSUID, "nosuid"),
    (libc::MS_NOEXEC, "noexec"),
    (libc::MS_NODEV, "nodev"),
    (libc::MS_RELATIME, "relatime"),
    (libc::MS_RDONLY, "ro"),
];

/// What a process inside has to mount: it belongs to the namespaces that the runtime makes.
fn kernel_mounts(security: SecurityMode, sys: Sys, unified_cgroups: bool) -> Vec<Mount> {
    let mqueue = ["nosuid", "noexec", "nodev"].map(str::to_owned).to_vec();
    let mut mounts = vec![
        Mount::call(&rootfs::proc_mount(false)),
        Mount {
            destination: "/dev/mqueue".to_owned(),
            kind: "mqueue".to_owned(),
            source: "mqueue".to_owned(),
            options: mqueue,
        },
    ];
    if sys == Sys::New {
        mounts.push(Mount::call(&rootfs::sys_mount(security)));
        if unified_cgroups {
            mounts.push(Mount::call(&rootfs::cgroup2_mount(security)));
        }
    }
    mounts
}

/// Hooks by their moment, in order.
fn hooks(hooks: &[Hook]) -> BTreeMap<&'static str, Vec<HookEntry>> {
    let mut map: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for hook in hooks {
        map.entry(hook.moment.name()).or_default().push(HookEntry {
            path: hook.path.clone(),
            args: hook.args.clone(),
            env: hook.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            // Whole seconds, and zero is not allowed.
            timeout: hook.timeout.map(|timeout| timeout.as_secs().max(1)),
        });
    }
    map
}

fn rlimits(ulimits: &[Ulimit], values: &[(u32, Limit)], open_files: Limit) -> Vec<Rlimit> {
    let limit = |name: &str, limit: &Limit| Rlimit {
        kind: format!("RLIMIT_{}", name.to_ascii_uppercase()),
        soft: limit.rlim_cur,
        hard: limit.rlim_max,
    };
    // The runtimes refuse two of a kind; the last one counts.
    let mut limits: Vec<Rlimit> = Vec::with_capacity(values.len() + 1);
    for (ulimit, (_, value)) in ulimits.iter().zip(values) {
        let limit = limit(&ulimit.name, value);
        limits.retain(|earlier| earlier.kind != limit.kind);
        limits.push(limit);
    }
    let usual = limit("nofile", &open_files);
    if limits.iter().all(|limit| limit.kind != usual.kind) {
        limits.push(usual);
    }
    limits
}

/// Names of the capabilities in a set, by number.
fn capability_names(set: u64) -> Vec<&'static str> {
    let names = CAPABILITIES.iter().enumerate();
    names.filter(|(number, _)| set & (1 << number) != 0).map(|(_, name)| *name).collect()
}

/// By number, linux/capability.h.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests;
