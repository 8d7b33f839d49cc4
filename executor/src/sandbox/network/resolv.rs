//! `/etc/resolv.conf` of a step. Spec: `spec/dockerfile.md` §8.4.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

/// Servers that anybody may ask, for hosts without any that can be reached.
const PUBLIC: &[&str] = &["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"];

/// For the host's own network: its file as it is.
pub(in super::super) fn host() -> String {
    read("/etc/resolv.conf").unwrap_or_default()
}

/// Whether the host's first server listens on its loopback interface (with an address of IPv4), so that steps can ask it
/// only through somebody who forwards.
pub(super) fn needs_forwarding() -> bool {
    nameservers(&host())
        .next()
        .and_then(|server| server.parse().ok())
        .is_some_and(|server: Ipv4Addr| server.is_loopback())
}

/// For a private network. With `forward`, an address at which the host's first server can be asked there, a resolver on
/// the host's loopback interface (systemd-resolved, dnsmasq, a VPN's) goes on deciding who answers what. Without it there
/// is no way to such a resolver: then systemd's list of real servers takes the place of its stub.
pub(in super::super) fn private(forward: Option<IpAddr>) -> String {
    let text = host();
    if forward.is_none()
        && nameservers(&text).eq(["127.0.0.53"])
        && let Some(upstream) = read("/run/systemd/resolve/resolv.conf")
    {
        return rewrite(&upstream, None);
    }
    rewrite(&text, forward)
}

fn read(path: &str) -> Option<String> {
    fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Servers first, then `search`, `options` and the rest.
fn rewrite(host: &str, forward: Option<IpAddr>) -> String {
    let first_is_loopback = nameservers(host).next().is_some_and(is_loopback);
    let forward = forward.filter(|_| first_is_loopback).map(|address| address.to_string());
    let reachable = nameservers(host).filter(|server| !is_loopback(server));
    let mut servers: Vec<&str> = forward.as_deref().into_iter().chain(reachable).collect();
    if servers.is_empty() {
        servers.extend(PUBLIC);
    }
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
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
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_servers_are_dropped_for_private_networks() {
        let host = "# made by hand\noptions edns0\nnameserver 127.0.0.1\nnameserver 10.0.0.2\nnameserver ::1\nsearch a b\nsortlist x\n";
        assert_eq!(rewrite(host, None), "nameserver 10.0.0.2\nsearch a b\noptions edns0\nsortlist x\n");
        let public = rewrite("nameserver 127.0.0.53\n", None);
        assert_eq!(public.lines().count(), 4);
        assert!(public.starts_with("nameserver 8.8.8.8\n"));
    }

    #[test]
    fn a_loopback_server_that_is_asked_first_is_forwarded_to() {
        let forward = Some(IpAddr::from([192, 0, 0, 3]));
        for (host, expected) in [
            ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.0.3\noptions edns0\n"),
            ("nameserver 127.0.0.1\nnameserver 10.0.0.2\n", "nameserver 192.0.0.3\nnameserver 10.0.0.2\n"),
            ("nameserver 10.0.0.2\nnameserver 127.0.0.1\n", "nameserver 10.0.0.2\n"),
        ] {
            assert_eq!(rewrite(host, forward), expected);
        }
    }
}
