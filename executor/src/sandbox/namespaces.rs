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
    /// Joins and makes what `spec` wants; mounts no longer reach the host.
    pub(super) fn enter(host: &'a Host, spec: &SandboxSpec) -> Result<Self, SandboxError> {
        let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        let private_network = match spec.network {
            NetworkMode::Host => false,
            NetworkMode::None => {
                flags |= UnshareFlags::NEWNET;
                true
            }
            NetworkMode::Default => join_network(host)?,
        };
        crate::sys::namespace::unshare(flags).map_err(SandboxError::setup("make namespaces"))?;
        let namespaces = Self { host, private_network };
        if spec.network == NetworkMode::None {
            crate::sys::net::loopback_up().map_err(SandboxError::setup("bring the loopback interface up"))?;
        }
        rustix::system::sethostname(spec.hostname.as_bytes()).map_err(SandboxError::setup("set the host name"))?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(SandboxError::setup("make mounts private"))?;
        Ok(namespaces)
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
