//! Network of steps, and the two files that describe it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Provides the network of steps that ask for the default one.
///
/// Called once a step, from a thread that may block. An implementation can hold one network namespace for a whole
/// build (for instance with a helper process that translates addresses in user mode) and hand out descriptors of it.
pub trait NetworkProvider: Send + Sync {
    /// A descriptor of the network namespace to join; `None` is the host's own.
    ///
    /// # Errors
    /// When there is no network to be had; fails the step.
    fn namespace(&self) -> io::Result<Option<OwnedFd>>;
}

/// The host's network for every step that does not ask for another one.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostNetwork;

impl NetworkProvider for HostNetwork {
    fn namespace(&self) -> io::Result<Option<OwnedFd>> {
        Ok(None)
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

/// The host's `resolv.conf`; when it only names systemd's stub, the file with the real servers.
pub(super) fn host_resolv_conf() -> String {
    let read = |path: &str| std::fs::read(Path::new(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = read("/etc/resolv.conf").unwrap_or_default();
    let servers: Vec<&str> = nameservers(&text).collect();
    if servers == ["127.0.0.53"]
        && let Ok(upstream) = read("/run/systemd/resolve/resolv.conf")
    {
        return upstream;
    }
    text
}

/// `resolv.conf` for a network namespace of its own: without servers on the host's loopback interface.
pub(super) fn private_resolv_conf(host: &str) -> String {
    let mut text = String::new();
    let usable: Vec<&str> = nameservers(host).filter(|server| !is_loopback(server)).collect();
    let fallback = ["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"];
    let servers = if usable.is_empty() { &fallback[..] } else { &usable[..] };
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let last = |keyword: &str| host.lines().rfind(|line| line.split_whitespace().next() == Some(keyword));
    let others = host.lines().filter(|line| {
        let keyword = line.split_whitespace().next().unwrap_or("#");
        !keyword.starts_with(['#', ';']) && !["nameserver", "search", "options"].contains(&keyword)
    });
    for line in last("search").into_iter().chain(last("options")).chain(others) {
        text.push_str(line.trim());
        text.push('\n');
    }
    text
}

fn nameservers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    })
}

fn is_loopback(server: &str) -> bool {
    let address = server.split('%').next().unwrap_or(server);
    address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
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
    fn loopback_servers_are_dropped_for_private_networks() {
        let host = "# made by hand\noptions edns0\nnameserver 127.0.0.1\nnameserver 10.0.0.2\nnameserver ::1\nsearch a b\nsortlist x\n";
        assert_eq!(private_resolv_conf(host), "nameserver 10.0.0.2\nsearch a b\noptions edns0\nsortlist x\n");
        let fallback = private_resolv_conf("nameserver 127.0.0.53\n");
        assert_eq!(fallback.lines().count(), 4);
        assert!(fallback.starts_with("nameserver 8.8.8.8\n"));
    }
}
