//! The namespaces that a command's thread gives itself.

use std::os::fd::AsFd as _;

use rustix::mount::MountPropagationFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use solver::NetworkMode;

use super::error::SandboxError;
use super::host::Host;
use super::spec::SandboxSpec;

/// The namespaces of a command's thread; dropping goes back, which takes all mounts down.
pub(super) struct Namespaces<'a> {
    host: &'a Host,
    /// Whether the network namespace is not the host's.
    pub(super) private_network: bool,
}

impl<'a> Namespaces<'a> {
    /// Makes namespaces for a command with that network; mounts no longer reach the host.
    pub(super) fn enter(host: &'a Host, network: NetworkMode) -> Result<Self, SandboxError> {
        let private_network = match network {
            NetworkMode::Default => join_network(host)?,
            NetworkMode::Host | NetworkMode::None => false,
        };
        let flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        crate::sys::namespace::unshare(flags).map_err(SandboxError::setup("make namespaces"))?;
        let namespaces = Self { host, private_network };
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(SandboxError::setup("make mounts private"))?;
        Ok(namespaces)
    }

    /// Makes them those of one command.
    pub(super) fn give_to(&mut self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        if spec.network == NetworkMode::None {
            crate::sys::namespace::unshare(UnshareFlags::NEWNET).map_err(SandboxError::setup("make namespaces"))?;
            self.private_network = true;
            crate::sys::net::loopback_up().map_err(SandboxError::setup("bring the loopback interface up"))?;
        }
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

fn join_network(host: &Host) -> Result<bool, SandboxError> {
    let namespace = host.network.namespace().map_err(SandboxError::io("get", "the default network"))?;
    let Some(namespace) = namespace else { return Ok(false) };
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(SandboxError::setup("join the default network"))?;
    Ok(true)
}
