//! `--host-ca`: finds the bundle of certificate authorities that this machine trusts.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use executor::run::HostCa;

use crate::env;
use crate::failure::Failure;

/// Where systems keep their bundle: Debian, Alpine and Arch; Fedora; openSUSE; OpenSSL's own.
const USUAL: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

/// What every certificate in PEM form begins with.
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Reads `path`, or if that is empty the bundle that programs of this machine use.
pub(crate) fn read(path: &Path) -> Result<HostCa, Failure> {
    if path.as_os_str().is_empty() { find() } else { read_file(path) }
}

fn find() -> Result<HostCa, Failure> {
    let named = env::var("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = named {
        return read_file(&path);
    }
    let found = USUAL.iter().map(Path::new).find(|path| path.is_file());
    let path = found.ok_or_else(|| {
        Failure::environment(format!(
            "--host-ca: this machine has no bundle of certificate authorities at {}",
            USUAL.join(", ")
        ))
        .help("install ca-certificates, or name a file: --host-ca=FILE")
    })?;
    read_file(path)
}

fn read_file(path: &Path) -> Result<HostCa, Failure> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|error| {
        let failure = Failure::input(format!("--host-ca: cannot read {shown}: {error}"));
        match error.kind() {
            ErrorKind::NotFound => failure.help("name a file with certificates in PEM form: --host-ca=FILE"),
            _ => failure,
        }
    })?;
    if !pem.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Err(Failure::input(format!("--host-ca: {shown} has no certificate in PEM form")));
    }
    Ok(HostCa::new(pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_a_certificate() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("ca.pem");
        assert!(read(&path).is_err());
        std::fs::write(&path, "nothing").expect("write");
        assert!(read(&path).is_err());
        std::fs::write(&path, "# mine\n-----BEGIN CERTIFICATE-----\n").expect("write");
        assert!(read(&path).is_ok());
    }
}
