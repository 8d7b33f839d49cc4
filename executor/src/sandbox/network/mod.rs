//! Network of steps, and the two files that describe it.

mod pasta;
pub(super) mod resolv;

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;

pub use pasta::PastaNetwork;

/// Provides the network of steps that ask for the default one.
///
/// Called once a step, from a thread that may block. An implementation can hold one network namespace for a whole
/// build (for instance with a helper process that translates addresses in user mode) and hand out descriptors of it.
pub trait NetworkProvider: Send + Sync {
    /// Says that the network will be wanted soon. Begins to make it, if that takes a while; never blocks.
    fn expect(&self) {}

    /// The network to join.
    ///
    /// # Errors
    /// When there is no network to be had; fails the step.
    fn network(&self) -> io::Result<Network>;
}

/// A network that steps can join.
#[derive(Debug, Default)]
pub struct Network {
    /// Its namespace; `None` is the host's own.
    pub namespace: Option<OwnedFd>,
    /// Where the host's first name server can be asked although it listens on the host's loopback interface only.
    pub resolver: Option<IpAddr>,
    /// What users should know of it, in one sentence. The same for every step of a build.
    pub warning: Option<String>,
}

/// The host's network for every step that does not ask for another one.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostNetwork;

impl NetworkProvider for HostNetwork {
    fn network(&self) -> io::Result<Network> {
        Ok(Network::default())
    }
}

/// The address of this machine on the way to the outside; `None` without IPv4. Steps reach services of the machine there,
/// with the default network as well: not those that listen on the loopback interface.
pub fn host_address() -> Option<Ipv4Addr> {
    /// Any address that is not ours (of a block for documentation). Nothing is sent to it.
    const OUTSIDE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 1), 9);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(OUTSIDE).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_unspecified() => Some(address),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// `/etc/hosts` of a step. Spec: `spec/dockerfile.md` §8.4.
pub(super) fn hosts(hostname: &str, extra: &[(String, String)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        text.push_str(address);
        text.push('\t');
        text.push_str(name);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_has_loopback_and_extra_lines() {
        let extra = [("db.test".to_owned(), "10.1.2.3".to_owned()), ("v6.test".to_owned(), "fd00::1".to_owned())];
        assert_eq!(
            hosts("buildkitsandbox", &extra),
            "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             10.1.2.3\tdb.test\nfd00::1\tv6.test\n"
        );
    }
}
