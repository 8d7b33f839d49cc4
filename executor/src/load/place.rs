//! Where container engines are, as docker's `DOCKER_HOST` and contexts write it.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a container engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnginePlace {
    /// The docker API on a socket of this machine.
    Socket(PathBuf),
    /// The docker API at a host and port, as `HOST:PORT`; with TLS if there are files for it.
    Tcp {
        /// `HOST:PORT`.
        address: String,
        /// `None` is plain HTTP.
        tls: Option<TlsFiles>,
    },
    /// The docker API of another machine that ssh leads to.
    Ssh {
        /// `[USER@]HOST`.
        destination: String,
        /// Other than ssh's own.
        port: Option<u16>,
    },
    /// A program that reads a docker archive from its standard input.
    Program {
        /// Its path.
        program: PathBuf,
        /// Its arguments.
        args: Vec<String>,
    },
}

/// Certificates for a docker API with TLS. Files that do not exist count as not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// CA that signs the engine's certificate; `None` is the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The engine's certificate may be anything.
    pub skip_verify: bool,
}

/// Why an address is none of an engine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is no address of a container engine: write unix://PATH, tcp://HOST:PORT, https://HOST:PORT or ssh://[USER@]HOST"
)]
pub struct PlaceError(String);

/// Ports that docker's client takes when none is given.
const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

impl TlsFiles {
    /// `ca.pem`, `cert.pem` and `key.pem` of a directory, as far as they are there.
    pub fn in_dir(dir: &Path) -> Self {
        let file = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
        Self { ca: file("ca.pem"), cert: file("cert.pem"), key: file("key.pem"), skip_verify: false }
    }
}

impl EnginePlace {
    /// Reads an address. `tls`: the files for `tcp://`, which is plain without; `https://` takes them or has none.
    ///
    /// # Errors
    /// The address has none of the known forms.
    pub fn parse(address: &str, tls: Option<TlsFiles>) -> Result<Self, PlaceError> {
        let wrong = || PlaceError(address.to_owned());
        let (scheme, rest) = match address.split_once("://") {
            Some(parts) => parts,
            None if address.starts_with('/') => ("unix", address),
            None => return Err(wrong()),
        };
        let rest = if scheme == "unix" { rest } else { rest.trim_end_matches('/') };
        if rest.is_empty() {
            return Err(wrong());
        }
        match scheme {
            "unix" => Ok(Self::Socket(rest.into())),
            "tcp" | "http" => Ok(Self::Tcp { address: with_port(rest, tls.is_some()), tls }),
            "https" => Ok(Self::Tcp { address: with_port(rest, true), tls: Some(tls.unwrap_or_default()) }),
            "ssh" => {
                // A path behind the host is the socket there; docker's client ignores it, too.
                let authority = rest.split('/').next().unwrap_or_default();
                let (destination, port) = match authority.rsplit_once(':') {
                    Some((host, port)) if !host.ends_with(':') => (host, Some(port.parse().map_err(|_| wrong())?)),
                    _ => (authority, None),
                };
                // What begins with a dash would be an option of ssh.
                if destination.is_empty() || destination.starts_with('-') {
                    return Err(wrong());
                }
                Ok(Self::Ssh { destination: destination.to_owned(), port })
            }
            _ => Err(wrong()),
        }
    }
}

fn with_port(authority: &str, is_tls: bool) -> String {
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let port = if is_tls { TLS_PORT } else { PLAIN_PORT };
    if has_port { authority.to_owned() } else { format!("{authority}:{port}") }
}

impl fmt::Display for EnginePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { address, tls: None } => write!(f, "tcp://{address}"),
            Self::Tcp { address, tls: Some(_) } => write!(f, "https://{address}"),
            Self::Ssh { destination, port: None } => write!(f, "ssh://{destination}"),
            Self::Ssh { destination, port: Some(port) } => write!(f, "ssh://{destination}:{port}"),
            Self::Program { program, args } => {
                let name = program.file_name().unwrap_or(program.as_os_str());
                write!(f, "`{} {}`", name.to_string_lossy(), args.join(" "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_docker() {
        let tcp = |address: &str| EnginePlace::Tcp { address: address.to_owned(), tls: None };
        let ssh = |destination: &str, port| EnginePlace::Ssh { destination: destination.to_owned(), port };
        let cases = [
            ("unix:///run/docker.sock", Some(EnginePlace::Socket("/run/docker.sock".into()))),
            ("/run/docker.sock", Some(EnginePlace::Socket("/run/docker.sock".into()))),
            ("tcp://docker:2375", Some(tcp("docker:2375"))),
            ("tcp://docker", Some(tcp("docker:2375"))),
            ("http://[::1]:99/", Some(tcp("[::1]:99"))),
            ("ssh://me@there", Some(ssh("me@there", None))),
            ("ssh://there:2222/run/docker.sock", Some(ssh("there", Some(2222)))),
            ("ssh://-oProxyCommand=x", None),
            ("ssh://there:x", None),
            ("unix://", None),
            ("tcp://", None),
            ("npipe:////./pipe/docker", None),
            ("docker", None),
        ];
        for (address, expected) in cases {
            assert_eq!(EnginePlace::parse(address, None).ok(), expected, "{address}");
        }
    }

    #[test]
    fn certificates_make_it_tls() {
        let files = TlsFiles { ca: Some("/ca.pem".into()), ..TlsFiles::default() };
        let place = EnginePlace::parse("tcp://docker", Some(files.clone())).unwrap();
        assert_eq!(place.to_string(), "https://docker:2376");
        assert_eq!(EnginePlace::parse("https://docker", None).unwrap().to_string(), "https://docker:2376");
        let without = EnginePlace::Tcp { address: "docker:2376".to_owned(), tls: Some(TlsFiles::default()) };
        assert_eq!(EnginePlace::parse("https://docker", None), Ok(without));
    }
}
