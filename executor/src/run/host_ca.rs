//! The certificate authorities that this machine trusts, trusted by commands as well (`--host-ca`): for registries and
//! proxies whose authority no image knows.
//!
//! Commands find them in two ways. Most programs read a variable that names a file; the file is ours, in `/dev`. The others
//! (wget, apt and whatever else reads the distribution's bundle) see a bundle with our authorities at its end: it lies
//! in a layer of its own between the image and what the command writes. So it is an ordinary file, which tools may
//! replace (`update-ca-certificates` renames a new one over it), and what they make of their own sources has nothing of
//! ours. A bundle that a command has only touched or added to gets its own content back before the layer is made.
//!
//! Not part of any key: what a step trusts is not what it does.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid};
use solver::OpError;
use tempfile::TempDir;

use super::Environment;
use crate::sandbox::{MemoryFile, MountSource, SandboxMount};
use crate::view::{self, Node, NodeKind, RootView};

/// Where distributions keep their bundle: Debian and Alpine, Fedora, openSUSE. Links lead from one to another.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Variables that name a bundle, and who reads them: OpenSSL and Go, pip, Python's requests, Node, cargo, git, curl.
const VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
    "GIT_SSL_CAINFO",
    "CURL_CA_BUNDLE",
];

/// Our file. `/dev` is made anew for every command: nothing there is in a layer or can be in the way.
const PLACE: &str = "/dev/host-ca.pem";

/// No bundle is so large; larger files are left alone.
const MOST_BUNDLE_BYTES: u64 = 16 << 20;

/// Certificates in PEM form, one after the other.
#[derive(Clone, Debug)]
pub struct HostCa(Arc<[u8]>);

impl HostCa {
    /// `pem` is the content of a bundle.
    pub fn new(pem: impl Into<Arc<[u8]>>) -> Self {
        Self(pem.into())
    }

    /// Gets everything ready for one command whose root has these `layers` (base first). Blocks.
    pub(super) fn prepare(&self, layers: &[PathBuf], scratch: &Path) -> Result<Trust, OpError> {
        let fault = |error: io::Error| OpError::environment(format!("cannot prepare --host-ca: {error}"));
        let view = RootView::open(layers)?;
        let mut planted: Vec<Planted> = Vec::new();
        for bundle in BUNDLES {
            if let Some(found) = self.find(&view, Path::new(bundle))?
                && !planted.iter().any(|other| other.path == found.path)
            {
                planted.push(found);
            }
        }
        let layer = match planted.is_empty() {
            true => None,
            false => Some(plant(&view, &planted, scratch).map_err(fault)?),
        };
        // The image's own authorities, too: the variables make programs forget them.
        let all: Arc<[u8]> = planted.first().map_or_else(|| Arc::clone(&self.0), |first| first.content().into());
        let file = MemoryFile { content: all, uid: 0, gid: 0, mode: 0o444 };
        let mount = SandboxMount { target: PLACE.to_owned(), source: MountSource::File(file), read_only: true };
        Ok(Trust { mount, layer, planted })
    }

    /// The bundle that a path of the root leads to.
    fn find(&self, view: &RootView, path: &Path) -> Result<Option<Planted>, OpError> {
        let resolved = view.resolve(path)?;
        let is_bundle = |node: &Node| node.kind == NodeKind::File && node.meta.size_bytes <= MOST_BUNDLE_BYTES;
        let Some(node) = resolved.node.filter(is_bundle) else { return Ok(None) };
        let Some(mut file) = view.open_file(&resolved.path)? else { return Ok(None) };
        let mut original = Vec::new();
        file.read_to_end(&mut original)
            .map_err(|error| OpError::environment(format!("cannot read `{}`: {error}", resolved.path.display())))?;
        Ok(Some(Planted { path: resolved.path, node, original, added: Arc::clone(&self.0) }))
    }
}

/// What one command gets.
pub(super) struct Trust {
    mount: SandboxMount,
    layer: Option<TempDir>,
    planted: Vec<Planted>,
}

/// A bundle of the image.
struct Planted {
    /// Inside the root, free of links.
    path: PathBuf,
    node: Node,
    original: Vec<u8>,
    added: Arc<[u8]>,
}

impl Planted {
    fn content(&self) -> Vec<u8> {
        let line_end: &[u8] = if self.original.last().is_none_or(|last| *last == b'\n') { b"" } else { b"\n" };
        [&self.original, line_end, &self.added].concat()
    }

    /// Gives a file that still begins with our content its own back.
    fn restore(&self, upper: &Path) -> io::Result<()> {
        let path = upper.join(self.path.strip_prefix("/").unwrap_or(&self.path));
        let before = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let now = fs::read(&path)?;
        let Some(rest) = now.strip_prefix(&*self.content()) else { return Ok(()) };
        let mut file = File::options().write(true).truncate(true).open(&path)?;
        file.write_all(&self.original)?;
        file.write_all(rest)?;
        drop(file);
        set_times(&path, (before.mtime(), before.mtime_nsec()))
    }
}

impl Trust {
    /// The layer that goes on top of the image's.
    pub(super) fn layer(&self) -> Option<PathBuf> {
        self.layer.as_ref().map(|layer| layer.path().to_owned())
    }

    /// The file that the variables name.
    pub(super) fn mount(&self) -> SandboxMount {
        self.mount.clone()
    }

    /// Names the file in the variables that the Dockerfile has not set.
    pub(super) fn set_variables(environment: &mut Environment) {
        for name in VARIABLES {
            if !environment.has(name) {
                environment.set(name.to_owned(), PLACE.to_owned());
            }
        }
    }

    /// Takes our authorities out of what the command has written. Blocks.
    pub(super) fn remove_traces(&self, upper: &Path) -> Result<(), OpError> {
        let restored = self.planted.iter().try_for_each(|planted| planted.restore(upper));
        restored.map_err(|error| OpError::environment(format!("cannot take the host's authorities out again: {error}")))
    }
}

/// A layer with the bundles, whose directories are as the image has them.
fn plant(view: &RootView, bundles: &[Planted], scratch: &Path) -> io::Result<TempDir> {
    let layer = tempfile::Builder::new().prefix("ca-").tempdir_in(scratch)?;
    let mut directories: Vec<(PathBuf, Node)> = Vec::new();
    for bundle in bundles {
        let mut parents: Vec<&Path> = bundle.path.ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents {
            let ours = layer.path().join(parent.strip_prefix("/").unwrap_or(parent));
            if directories.iter().any(|(known, _)| *known == ours) {
                continue;
            }
            if ours != layer.path() {
                DirBuilder::new().mode(0o700).create(&ours)?;
            }
            if let Some(node) = view.lookup(parent).map_err(io::Error::other)? {
                directories.push((ours, node));
            }
        }
        let ours = layer.path().join(bundle.path.strip_prefix("/").unwrap_or(&bundle.path));
        fs::write(&ours, bundle.content())?;
        give_metadata(&ours, &bundle.node.meta)?;
    }
    // Children first: what is made in a directory changes its time.
    for (path, node) in directories.iter().rev() {
        give_metadata(path, &node.meta)?;
    }
    Ok(layer)
}

fn give_metadata(path: &Path, meta: &view::Metadata) -> io::Result<()> {
    let now: Metadata = fs::symlink_metadata(path)?;
    if (now.uid(), now.gid()) != (meta.uid, meta.gid) {
        rustix::fs::chown(path, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(meta.mode))?;
    set_times(path, (meta.mtime_s, i64::from(meta.mtime_ns)))
}

fn set_times(path: &Path, (seconds, nanoseconds): (i64, i64)) -> io::Result<()> {
    let mtime = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: mtime, last_modification: mtime };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// An image as Alpine has it: one bundle, known by two names.
    fn image() -> TempDir {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir_all(image.path().join("etc/ssl/certs")).unwrap();
        fs::write(image.path().join("etc/ssl/certs/ca-certificates.crt"), "theirs\n").unwrap();
        fs::set_permissions(image.path().join("etc/ssl"), fs::Permissions::from_mode(0o711)).unwrap();
        symlink("certs/ca-certificates.crt", image.path().join("etc/ssl/cert.pem")).unwrap();
        image
    }

    #[test]
    fn the_images_bundle_has_ours_at_its_end_in_a_layer_like_it() {
        let (image, scratch) = (image(), tempfile::tempdir().unwrap());
        let trust = HostCa::new(*b"ours\n").prepare(&[image.path().to_owned()], scratch.path()).unwrap();
        assert_eq!(trust.planted.len(), 1);
        let layer = trust.layer().unwrap();
        assert_eq!(fs::read_to_string(layer.join("etc/ssl/certs/ca-certificates.crt")).unwrap(), "theirs\nours\n");
        for path in ["", "etc", "etc/ssl", "etc/ssl/certs", "etc/ssl/certs/ca-certificates.crt"] {
            let facts = |root: &Path| {
                let found = fs::symlink_metadata(root.join(path)).unwrap();
                (found.mode(), found.uid(), found.mtime(), found.mtime_nsec())
            };
            assert_eq!(facts(&layer), facts(image.path()), "{path}");
        }
    }

    #[test]
    fn what_a_command_leaves_has_nothing_of_ours() {
        let (image, scratch) = (image(), tempfile::tempdir().unwrap());
        let trust = HostCa::new(*b"ours\n").prepare(&[image.path().to_owned()], scratch.path()).unwrap();
        for (written, kept) in [
            ("theirs\nours\n", "theirs\n"),
            ("theirs\nours\nadded\n", "theirs\nadded\n"),
            ("made anew\n", "made anew\n"),
        ] {
            let upper = tempfile::tempdir().unwrap();
            let path = upper.path().join("etc/ssl/certs/ca-certificates.crt");
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, written).unwrap();
            set_times(&path, (77, 5)).unwrap();
            trust.remove_traces(upper.path()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), kept);
            assert_eq!(fs::metadata(&path).unwrap().mtime(), 77);
        }
        trust.remove_traces(tempfile::tempdir().unwrap().path()).unwrap();
    }

    #[test]
    fn an_image_without_a_bundle_gets_the_variables_alone() {
        let (image, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let trust = HostCa::new(*b"ours\n").prepare(&[image.path().to_owned()], scratch.path()).unwrap();
        assert_eq!(trust.layer(), None);
        let mut environment = Environment(vec![("PIP_CERT".to_owned(), "/mine".to_owned())]);
        Trust::set_variables(&mut environment);
        assert!(environment.0.contains(&("PIP_CERT".to_owned(), "/mine".to_owned())));
        assert!(environment.0.contains(&("SSL_CERT_FILE".to_owned(), PLACE.to_owned())));
    }
}
