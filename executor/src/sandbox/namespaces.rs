//! The namespaces that a command's thread gives itself, and what is left of them.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use solver::NetworkMode;

use super::error::SandboxError;
use super::host::Host;
use super::network::Network;
use super::spec::SandboxSpec;

/// The namespaces of a command's thread; dropping goes back and takes all mounts down.
pub(super) struct Namespaces<'a> {
    host: &'a Host,
    /// Keeps the mounts when the thread goes back.
    mounts: Option<OwnedFd>,
    /// Whether the network namespace is not the host's.
    pub(super) private_network: bool,
    /// Where the host's name server answers in that namespace, if it does.
    pub(super) resolver: Option<IpAddr>,
    /// What is to be said about the network.
    pub(super) warning: Option<String>,
}

impl<'a> Namespaces<'a> {
    /// Makes namespaces for a command with that network; mounts no longer reach the host.
    pub(super) fn enter(host: &'a Host, network: NetworkMode) -> Result<Self, SandboxError> {
        let is_alone = network == NetworkMode::None;
        let network = match network {
            NetworkMode::Default => join_network(host)?,
            NetworkMode::Host | NetworkMode::None => Network::default(),
        };
        let Network { namespace, resolver, warning } = network;
        let own_network = if is_alone { UnshareFlags::NEWNET } else { UnshareFlags::empty() };
        let flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | own_network;
        crate::sys::namespace::unshare(flags).map_err(SandboxError::setup("make namespaces"))?;
        let private_network = is_alone || namespace.is_some();
        let mut namespaces = Self { host, mounts: None, private_network, resolver, warning };
        if is_alone {
            crate::sys::net::loopback_up().map_err(SandboxError::setup("bring the loopback interface up"))?;
        }
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(SandboxError::setup("make mounts private"))?;
        // Without it, the mounts go when the thread goes back.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        namespaces.mounts = rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty()).ok();
        Ok(namespaces)
    }

    /// Goes back to the host's mounts. Those of the command stay until the remains are dropped, which takes a while.
    pub(super) fn leave(mut self) -> Remains {
        Remains::new(&self.host.remains, self.mounts.take())
    }

    /// Makes them those of one command.
    pub(super) fn give_to(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        rustix::system::sethostname(spec.hostname.as_bytes()).map_err(SandboxError::setup("set the host name"))
    }
}

impl Drop for Namespaces<'_> {
    fn drop(&mut self) {
        let back = rustix::thread::move_into_link_name_space(
            self.host.mount_namespace.as_fd(),
            Some(LinkNameSpaceType::Mount),
        );
        if let Err(errno) = back {
            // The mounts then go when the thread ends, a moment later.
            tracing::warn!(%errno, "cannot go back to the host's mount namespace");
        }
    }
}

/// The mounts of a command that has ended: nobody sees them any more. Dropping takes them down.
pub(super) struct Remains {
    count: Arc<RemainsCount>,
    mounts: Option<OwnedFd>,
}

/// How many commands' mounts are still to be taken down.
#[derive(Default)]
pub(super) struct RemainsCount {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Remains {
    fn new(count: &Arc<RemainsCount>, mounts: Option<OwnedFd>) -> Self {
        *count.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self { count: Arc::clone(count), mounts }
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        drop(self.mounts.take());
        *self.count.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.count.changed.notify_all();
    }
}

impl RemainsCount {
    /// Waits until there are none: a layer that is still mounted for writing must not be mounted for reading.
    pub(super) fn wait_for_none(&self) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(count, |count| *count > 0));
    }
}

fn join_network(host: &Host) -> Result<Network, SandboxError> {
    let network = host.network.network().map_err(SandboxError::io("get", "the default network"))?;
    if let Some(namespace) = &network.namespace {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(SandboxError::setup("join the default network"))?;
    }
    Ok(network)
}
