//! EXPOSE after expansion: `[[ip:]hostport:]port[-end][/proto]`. Spec: §2.6.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::error::LineRange;
use crate::go::quote;
use crate::lint::{CheckConfig, Warning};

/// The ports that one word exposes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// The word.
    pub text: String,
    /// Container ports in ascending order.
    pub ports: RangeInclusive<u16>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

impl PortSpec {
    /// One key of the config for each port, for instance `5000/tcp`, in ascending order.
    pub fn keys(&self) -> impl Iterator<Item = String> + '_ {
        self.ports.clone().map(|port| format!("{port}/{}", self.protocol))
    }
}

/// A word that exposes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Nothing where the container port is to be.
    #[error("invalid port: {}: no port specified", quote(.0))]
    NoPort(String),
    /// Neither tcp, udp nor sctp.
    #[error("invalid port: {}: invalid proto: {protocol}", quote(text))]
    InvalidProtocol {
        /// The word.
        text: String,
        /// Its protocol.
        protocol: String,
    },
    /// No number, out of range, or a range that ends before it begins.
    #[error("invalid containerPort: {0}")]
    InvalidContainerPort(String),
    /// The same before the colon.
    #[error("invalid hostPort: {0}")]
    InvalidHostPort(String),
    /// Ranges of different lengths.
    #[error("invalid ranges specified for container and host Ports: {container} and {host}")]
    RangeMismatch {
        /// The container's range.
        container: String,
        /// The host's range.
        host: String,
    },
    /// What stands for an address is none.
    #[error("invalid IP address: {0}")]
    InvalidAddress(String),
}

/// Parses one word and reports what is odd about it to `warn`, also when it then turns out to be wrong.
///
/// # Errors
///
/// See [`PortError`].
pub fn parse_port(
    text: &str,
    lines: LineRange,
    local: &CheckConfig,
    warn: &mut dyn FnMut(Warning),
) -> Result<PortSpec, PortError> {
    let (address, host, port_and_protocol) = split_parts(text);
    let (container, written_protocol) = match port_and_protocol.split_once('/') {
        Some((container, protocol)) if !protocol.is_empty() => (container, protocol),
        Some((container, _)) => (container, "tcp"),
        None => (port_and_protocol, "tcp"),
    };
    if container.is_empty() {
        return Err(PortError::NoPort(text.to_owned()));
    }
    let protocol = written_protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(PortError::InvalidProtocol { text: text.to_owned(), protocol: written_protocol.to_owned() });
    }
    if protocol != written_protocol {
        warn(Warning::expose_proto_casing(text, lines, local));
    }
    if !address.is_empty() || !host.is_empty() {
        warn(Warning::expose_invalid_format(text, lines, local));
    }
    check_address(address)?;
    let ports = parse_range(container).ok_or_else(|| PortError::InvalidContainerPort(container.to_owned()))?;
    if !host.is_empty() {
        let host_ports = parse_range(host).ok_or_else(|| PortError::InvalidHostPort(host.to_owned()))?;
        // A single port may be given a range of the host to choose from.
        if ports.len() != 1 && ports.len() != host_ports.len() {
            return Err(PortError::RangeMismatch { container: container.to_owned(), host: host.to_owned() });
        }
    }
    Ok(PortSpec { text: text.to_owned(), ports, protocol })
}

/// Address, host port, container port with protocol; what is absent is empty. An address may have colons in it.
fn split_parts(text: &str) -> (&str, &str, &str) {
    let Some((before, container)) = text.rsplit_once(':') else { return ("", "", text) };
    match before.rsplit_once(':') {
        Some((address, host)) => (address, host, container),
        None => ("", before, container),
    }
}

fn check_address(address: &str) -> Result<(), PortError> {
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if bare.is_empty() || bare.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(PortError::InvalidAddress(address.to_owned()))
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |digits: &str| {
        let decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if decimal { digits.parse::<u16>().ok() } else { None }
    };
    let range = match text.split_once('-') {
        Some((start, end)) => number(start)?..=number(end)?,
        None => number(text)?..=number(text)?,
    };
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lint::Rule;

    fn check(text: &str) -> (Result<Vec<String>, String>, Vec<Rule>) {
        let mut rules = Vec::new();
        let parsed =
            parse_port(text, LineRange::line(1), &CheckConfig::default(), &mut |warning| rules.push(warning.rule));
        (parsed.map(|spec| spec.keys().collect()).map_err(|error| error.to_string()), rules)
    }

    #[test]
    fn ports() {
        use Rule::{ExposeInvalidFormat as Format, ExposeProtoCasing as Casing};
        type Row = (&'static str, Result<&'static [&'static str], &'static str>, &'static [Rule]);
        let table: &[Row] = &[
            ("5000", Ok(&["5000/tcp"]), &[]),
            ("0", Ok(&["0/tcp"]), &[]),
            ("1234/udp", Ok(&["1234/udp"]), &[]),
            ("80/", Ok(&["80/tcp"]), &[]),
            ("80/UDP", Ok(&["80/udp"]), &[Casing]),
            ("90-92/sctp", Ok(&["90/sctp", "91/sctp", "92/sctp"]), &[]),
            ("8080:80", Ok(&["80/tcp"]), &[Format]),
            ("127.0.0.1:90:91/tcp", Ok(&["91/tcp"]), &[Format]),
            ("[::1]:7:8", Ok(&["8/tcp"]), &[Format]),
            ("[::1]::81", Ok(&["81/tcp"]), &[Format]),
            ("8000-9000:80", Ok(&["80/tcp"]), &[Format]),
            ("/tcp", Err("invalid port: \"/tcp\": no port specified"), &[]),
            ("8080:", Err("invalid port: \"8080:\": no port specified"), &[]),
            ("80/foo", Err("invalid port: \"80/foo\": invalid proto: foo"), &[]),
            ("http", Err("invalid containerPort: http"), &[]),
            ("65536", Err("invalid containerPort: 65536"), &[]),
            ("-1", Err("invalid containerPort: -1"), &[]),
            ("+1", Err("invalid containerPort: +1"), &[]),
            ("90-80", Err("invalid containerPort: 90-80"), &[]),
            ("1-2-3", Err("invalid containerPort: 1-2-3"), &[]),
            ("x:80", Err("invalid hostPort: x"), &[Format]),
            ("80-81:90-95", Err("invalid ranges specified for container and host Ports: 90-95 and 80-81"), &[Format]),
            ("1.2.3:80:80", Err("invalid IP address: 1.2.3"), &[Format]),
        ];
        for (text, want, want_rules) in table {
            let (got, rules) = check(text);
            let got = got.as_ref().map(|keys| keys.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(got.as_deref().map_err(|error| error.as_str()), *want, "{text}");
            assert_eq!(rules, *want_rules, "{text}");
        }
        assert_eq!(check("0-65535").0.unwrap().len(), 65_536);
    }
}
