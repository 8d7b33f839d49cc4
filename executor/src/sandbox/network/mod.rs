//! Network of steps, and the two files that describe it.

mod fence;
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

/// A proxy of `env` on the loopback interface, of which a private network has another one: the sentence that says so.
pub(super) fn loopback_proxy(env: &[(String, String)]) -> Option<String> {
    let is_proxy = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.ends_with("_proxy") && name != "no_proxy"
    };
    let (name, value) = env.iter().find(|(name, value)| is_proxy(name) && leads_to_loopback(value))?;
    let address = host_address().map_or_else(String::new, |address| format!(" (for instance {address})"));
    // A proxy's URL may hold a password.
    let place = value.rsplit('@').next().unwrap_or(value);
    Some(format!(
        "{name} leads to the loopback interface of this machine ({place}), which RUN steps with a network of their own do \
         not reach: let the proxy listen on another address{address}, or build with --network=host --allow network.host"
    ))
}

/// Whether a URL, or what stands for one in a proxy variable, names the loopback interface.
fn leads_to_loopback(url: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let place = authority.rsplit('@').next().unwrap_or_default();
    let host = match place.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => place.split(':').next(),
    };
    let host = host.unwrap_or_default();
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
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

    #[test]
    fn proxies_on_the_loopback_interface_are_told() {
        for (value, expected) in [
            ("http://127.0.0.1:3128", true),
            ("localhost:3128", true),
            ("http://user:secret@LocalHost/", true),
            ("https://[::1]:8080/", true),
            ("http://10.0.0.1:3128", false),
            ("http://127.example.com", false),
            ("", false),
        ] {
            assert_eq!(leads_to_loopback(value), expected, "{value}");
        }
        let env = |name: &str| [(name.to_owned(), "http://user:secret@127.0.0.1:1".to_owned())];
        assert!(loopback_proxy(&env("NO_PROXY")).is_none() && loopback_proxy(&env("PROXY")).is_none());
        let sentence = loopback_proxy(&env("https_proxy")).unwrap();
        assert!(sentence.starts_with("https_proxy leads") && !sentence.contains("secret"), "{sentence}");
    }
}
