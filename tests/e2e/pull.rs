//! Base images from a registry: every form of layer, platforms, digests, credentials, offline, and hostile layers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Need, Ran, Registry, Space};
use crate::need;

/// Everything that the tests of this file need.
macro_rules! need_registry {
    () => {
        need!(Need::Root, Need::Program("busybox"), Need::Program("docker-registry"), Need::Program("skopeo"));
    };
}

/// Builds an image for the registry: busybox and a file that tells what it is.
fn base(space: &Space, content: &str, output: &str) {
    space.write("base/content", content);
    space.write("base/Dockerfile", "FROM busybox\nCOPY content /content\nENV KIND=base\n");
    space.rbuild(["-q", "-o", output, "base"]).success();
}

/// A build on `reference` that looks into it; returns what is there.
fn look(space: &Space, reference: &str) -> String {
    space.build(&format!("FROM {reference}\nRUN cp /content /copied && echo $KIND >> /copied\n"), &["-t", "looked"]);
    space.run_in("looked", &["cat", "/copied"])
}

#[test]
fn layers_of_every_compression() {
    need_registry!();
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    for compression in ["gzip", "zstd", "uncompressed"] {
        let output = format!("type=oci,dest={compression}.tar,compression={compression},force-compression=true");
        base(&maker, compression, &output);
        let name = format!("bases/{compression}:1");
        let reference = registry.push(&maker, &format!("oci-archive:{compression}.tar"), &name);
        let space = Space::new();
        assert_eq!(look(&space, &reference), format!("{compression}base\n"));
        // The base's layers are passed on as they are.
        let ran = space.rbuild(["--progress=plain", "-o", "type=oci,dest=out.tar", "."]);
        ran.success();
    }
}

#[test]
fn the_platform_is_chosen_from_an_index() {
    need_registry!();
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64", "riscv64"] {
        maker.write("multi/content", architecture);
        maker.write("multi/Dockerfile", "FROM scratch\nCOPY content /content\n");
        let (platform, output) = (format!("linux/{architecture}"), format!("type=oci,tar=false,dest={architecture}"));
        maker.rbuild(["-q", "--platform", &platform, "-o", &output, "multi"]).success();
        let index: Value = serde_json::from_str(&maker.read(&format!("{architecture}/index.json"))).expect("JSON");
        let mut manifest = index["manifests"][0].clone();
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifests.push(manifest);
        let blobs = std::fs::read_dir(maker.path(&format!("{architecture}/blobs/sha256"))).expect("blobs").flatten();
        for blob in blobs {
            let name = format!("all/blobs/sha256/{}", blob.file_name().to_string_lossy());
            maker.write(&name, std::fs::read(blob.path()).expect("blob"));
        }
    }
    let mut layout = Layout::new(&maker, "all");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let index = layout.add(INDEX, index.to_string().as_bytes());
    layout.finish(&index);
    let reference = registry.push(&maker, "oci:all:1", "multi:1");
    let space = Space::new();
    let host = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    for (platform, expected) in [(None, host), (Some("linux/arm64"), "arm64"), (Some("linux/riscv64"), "riscv64")] {
        let args: Vec<&str> = platform.into_iter().flat_map(|platform| ["--platform", platform]).collect();
        let args = [&args[..], &["-o", "out"]].concat();
        space.build(&format!("FROM {reference}\n"), &args);
        assert_eq!(space.read("out/content"), expected);
    }
    let digest = index["digest"].as_str().expect("digest");
    space.build(&format!("FROM --platform=linux/arm64 {}/multi@{digest}\n", registry.host()), &["-o", "out"]);
    assert_eq!(space.read("out/content"), "arm64");
    let ran = space.build_fails(&format!("FROM {reference}\n"), &["--platform", "linux/s390x"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("no match for platform in manifest: not found"), "{}", ran.stderr);
    assert!(ran.stderr.contains("help: it is wanted for linux/s390x, and there is one for "), "{}", ran.stderr);
}

#[test]
fn digests_are_believed_and_nothing_else() {
    need_registry!();
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    base(&maker, "by digest", "type=oci,tar=false,dest=layout");
    let reference = registry.push(&maker, "oci:layout", "base:1");
    let index: Value = serde_json::from_str(&maker.read("layout/index.json")).expect("JSON");
    let digest = index["manifests"][0]["digest"].as_str().expect("digest");
    let named = format!("{reference}@{digest}");
    assert_eq!(look(&Space::new(), &named), "by digestbase\n");

    let space = Space::new();
    let wrong = format!("{}/base@sha256:{}", registry.host(), "0".repeat(64));
    let ran = space.build_fails(&format!("FROM {wrong}\n"), &[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("{wrong}: not found")), "{}", ran.stderr);

    // A registry that sends other bytes than were asked for.
    let manifest = std::fs::read_to_string(registry.blob(digest)).expect("manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let layer = manifest["layers"][1]["digest"].as_str().expect("digest");
    let mut bytes = std::fs::read(registry.blob(layer)).expect("layer");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(registry.blob(layer), bytes).expect("write");
    let ran = space.build_fails(&format!("FROM {named}\nRUN true\n"), &[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("sent other content: expected {layer}, got sha256:")), "{}", ran.stderr);
    // Nothing of it is believed later.
    registry.push(&maker, "oci:layout", "elsewhere:1");
    assert!(!holds(space.store(), layer), "the wrong bytes are in the store");
}

/// Whether the store has a blob.
fn holds(store: &Path, digest: &str) -> bool {
    let hex = digest.strip_prefix("sha256:").expect("digest");
    let mut dirs = vec![store.join("blobs-v1")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy() == hex {
                return true;
            }
            if entry.path().is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    false
}

#[test]
fn layers_come_in_parallel() {
    need_registry!();
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    let copies: String = (0..5).map(|n| format!("COPY part{n} /part{n}\n")).collect();
    for n in 0..5 {
        maker.write(&format!("parts/part{n}"), noise(n, 400_000));
    }
    maker.write("parts/Dockerfile", format!("FROM scratch\n{copies}"));
    maker.rbuild(["-q", "-o", "type=oci,dest=parts.tar", "parts"]).success();
    registry.push(&maker, "oci-archive:parts.tar", "parts:1");
    let slow = SlowProxy::start(registry.port());
    let space = Space::new();
    space.build(&format!("FROM 127.0.0.1:{}/parts:1\nCOPY Dockerfile /x\n", slow.port), &["-o", "out"]);
    for n in 0..5 {
        assert_eq!(std::fs::read(space.path(&format!("out/part{n}"))).expect("part"), noise(n, 400_000));
    }
    let most = slow.most_at_once.load(Ordering::SeqCst);
    assert!(most >= 3, "only {most} transfers at once");
}

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Passes connections on to a port, slowly, and counts how many receive large answers at the same time.
struct SlowProxy {
    port: u16,
    most_at_once: Arc<AtomicUsize>,
}

impl SlowProxy {
    fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback");
        let port = listener.local_addr().expect("address").port();
        let most_at_once = Arc::new(AtomicUsize::new(0));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), most_at_once.clone());
        // Ends with the test program.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", target)).expect("registry");
                let (requests, to_server) = (client.try_clone().expect("clone"), server.try_clone().expect("clone"));
                std::thread::spawn(move || pass_on(requests, to_server));
                let (now, most) = (now.clone(), most.clone());
                std::thread::spawn(move || pass_on_slowly(server, client, &now, &most));
            }
        });
        Self { port, most_at_once }
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    drop(std::io::copy(&mut from, &mut to));
    drop(to.shutdown(std::net::Shutdown::Write));
}

fn pass_on_slowly(mut from: TcpStream, mut to: TcpStream, now: &AtomicUsize, most: &AtomicUsize) {
    let mut chunk = vec![0; 16 << 10];
    let mut is_large = false;
    loop {
        // A pause of the server is the end of an answer.
        from.set_read_timeout(Some(Duration::from_millis(if is_large { 100 } else { 10_000 }))).expect("timeout");
        let n = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(_) if is_large => {
                now.fetch_sub(1, Ordering::SeqCst);
                is_large = false;
                continue;
            }
            Err(_) => break,
        };
        if n == chunk.len() && !is_large {
            is_large = true;
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        }
        if to.write_all(&chunk[..n]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if is_large {
        now.fetch_sub(1, Ordering::SeqCst);
    }
    drop(to.shutdown(std::net::Shutdown::Both));
}

#[test]
fn a_second_build_needs_no_registry() {
    need_registry!();
    let maker = Space::with_busybox();
    let mut registry = Registry::start(&maker);
    base(&maker, "once", "type=oci,dest=base.tar");
    let reference = registry.push(&maker, "oci-archive:base.tar", "base:1");
    let space = Space::new();
    let dockerfile = format!("FROM {reference}\nRUN cat /content > /copied\n");
    let first = space.build(&dockerfile, &[]);
    registry.stop();
    let ran = space.rbuild(["--progress=plain", "--iidfile", "iid", "."]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(space.read("iid"), first);
    let said = format!("as seen last: cannot reach {}", registry.host());
    assert!(ran.stderr.contains(&said), "it is offline, and does not say so:\n{}", ran.stderr);
    assert_eq!(ran.count("CACHED"), 2, "{}", ran.stderr);
    // Even a new step works: the layers are here.
    space.build(&format!("{dockerfile}RUN test -e /copied\n"), &[]);
    // Whoever wants to know what the registry says now is not told what it said once.
    let ran = space.build_fails(&dockerfile, &["--pull"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("cannot reach {}", registry.host())), "{}", ran.stderr);
}

#[test]
fn a_check_asks_for_metadata_alone() {
    need_registry!();
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    base(&maker, "checked", "type=oci,tar=false,dest=layout");
    let reference = registry.push(&maker, "oci:layout", "base:1");
    let index: Value = serde_json::from_str(&maker.read("layout/index.json")).expect("JSON");
    let manifest = index["manifests"][0]["digest"].as_str().expect("digest").replace(':', "/");
    let manifest: Value = serde_json::from_str(&maker.read(&format!("layout/blobs/{manifest}"))).expect("JSON");
    let space = Space::new();
    // The image's environment is known: KIND is no undefined variable.
    space.write("Dockerfile", format!("FROM {reference}\nLABEL kind=$KIND other=$OTHER\n"));
    let ran = space.rbuild(["--check", "-q", "."]);
    assert!(ran.stdout.starts_with("Check complete, 1 warning has been found!\n"), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("Usage of undefined variable '$OTHER'"), "{}", ran.stdout);
    for layer in manifest["layers"].as_array().expect("layers") {
        assert!(!holds(space.store(), layer["digest"].as_str().expect("digest")), "a layer was fetched");
    }
    space.rbuild(["-q", "."]).success();
}

#[test]
fn pull_asks_the_registry_though_the_name_is_known_here() {
    need_registry!();
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    base(&maker, "theirs", "type=oci,dest=base.tar");
    let reference = registry.push(&maker, "oci-archive:base.tar", "base:1");
    base(&maker, "ours", &format!("type=image,name={reference}"));
    let content = |args: &[&str]| {
        maker.build(&format!("FROM {reference}\n"), &[&["-o", "out"], args].concat());
        maker.read("out/content")
    };
    assert_eq!(content(&[]), "ours");
    assert_eq!(content(&["--pull"]), "theirs");
    // A tag that moves is followed.
    base(&maker, "moved", "type=oci,dest=moved.tar");
    registry.push(&maker, "oci-archive:moved.tar", "base:1");
    assert_eq!(content(&["--pull"]), "moved");
    assert_eq!(content(&[]), "ours");
}

#[test]
fn credentials() {
    need_registry!();
    need!(Need::Program("htpasswd"));
    let maker = Space::with_busybox();
    let registry = Registry::with_password(&maker);
    base(&maker, "private", "type=oci,dest=base.tar");
    let reference = registry.push(&maker, "oci-archive:base.tar", "base:1");
    let space = Space::new();
    space.write("Dockerfile", format!("FROM {reference}\nRUN true\n"));
    let build = |auth: Option<&str>| {
        let auths = auth.map(|auth| json!({ registry.host(): { "auth": auth } })).unwrap_or(json!({}));
        space.write("config/config.json", json!({ "auths": auths }).to_string());
        let mut command = space.command(["--progress=plain", "."]);
        command.env("DOCKER_CONFIG", space.path("config")).env("HOME", space.path("")).env_remove("XDG_RUNTIME_DIR");
        Ran::of(command.output().expect("rbuild starts"))
    };
    let denied = "pull access denied, repository does not exist or may require authorization";
    let none = build(None);
    assert_eq!(none.code, 1, "{}", none.stderr);
    assert!(none.stderr.contains(denied), "{}", none.stderr);
    assert!(none.stderr.contains(&format!("help: log in: rbuild login {}", registry.host())), "{}", none.stderr);
    // builder:wrong
    let wrong = build(Some("YnVpbGRlcjp3cm9uZw=="));
    assert_eq!(wrong.code, 1, "{}", wrong.stderr);
    assert!(wrong.stderr.contains(denied), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("the credentials were refused"), "{}", wrong.stderr);
    // builder:hunter2
    let right = build(Some("YnVpbGRlcjpodW50ZXIy"));
    assert_eq!(right.code, 0, "{}", right.stderr);
    for ran in [none, wrong, right] {
        assert!(!ran.stderr.contains("YnVpbGRlcj") && !ran.stderr.contains("hunter2"), "a secret is shown");
    }
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI layout that is made by hand.
pub(crate) struct Layout<'a> {
    space: &'a Space,
    name: &'a str,
}

impl<'a> Layout<'a> {
    /// An empty one in a directory of the space.
    pub(crate) fn new(space: &'a Space, name: &'a str) -> Self {
        space.write(&format!("{name}/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
        Self { space, name }
    }

    /// Adds a blob; returns its descriptor.
    fn add(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let hex = sha256(bytes);
        self.space.write(&format!("{}/blobs/sha256/{hex}", self.name), bytes);
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    }

    /// Adds an image of one uncompressed layer, as `1`.
    fn image(self, layer: &[u8]) {
        self.image_of(LAYER, layer, &sha256(layer));
    }

    /// Adds an image of one layer whose content has that digest, or is said to, as `1`.
    pub(crate) fn image_of(mut self, media_type: &str, layer: &[u8], diff_id: &str) {
        let config = json!({
            "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
            "os": "linux",
            "config": { "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
            "history": [{ "created_by": "by hand" }],
        });
        let config = self.add(CONFIG, config.to_string().as_bytes());
        let layer = self.add(media_type, layer);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let manifest = self.add(MANIFEST, manifest.to_string().as_bytes());
        self.finish(&manifest);
    }

    /// Names an image or index `1`.
    fn finish(&self, top: &Value) {
        let mut top = top.clone();
        top["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
        let index = json!({ "schemaVersion": 2, "manifests": [top] });
        self.space.write(&format!("{}/index.json", self.name), index.to_string());
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One entry of a hostile layer.
enum Entry<'a> {
    File(&'a str, &'a str),
    Dir(&'a str),
    Symlink(&'a str, &'a str),
    Hardlink(&'a str, &'a str),
    Device(&'a str, u32, u32),
    Attribute(&'a str, &'a str, &'a str),
}

/// A layer tar of exactly these names: no library would write them.
fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(0);
        let (name, link, content) = match *entry {
            Entry::File(name, content) => (name, "", content),
            Entry::Dir(name) => {
                header.set_entry_type(tar::EntryType::Directory);
                (name, "", "")
            }
            Entry::Symlink(name, link) => {
                header.set_entry_type(tar::EntryType::Symlink);
                (name, link, "")
            }
            Entry::Hardlink(name, link) => {
                header.set_entry_type(tar::EntryType::Link);
                (name, link, "")
            }
            Entry::Device(name, major, minor) => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_device_major(major).expect("ustar");
                header.set_device_minor(minor).expect("ustar");
                (name, "", "")
            }
            Entry::Attribute(name, key, value) => {
                let key = format!("SCHILY.xattr.{key}");
                tar.append_pax_extensions([(key.as_str(), value.as_bytes())]).expect("extension");
                header.set_entry_type(tar::EntryType::Directory);
                (name, "", "")
            }
        };
        let raw = header.as_ustar_mut().expect("ustar");
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content.as_bytes()).expect("entry");
    }
    tar.into_inner().expect("tar")
}

#[test]
fn hostile_layers_stay_in_their_root() {
    need_registry!();
    let maker = Space::with_busybox();
    let registry = Registry::start(&maker);
    let space = Space::with_busybox();
    space.write("outside/victim", "untouched");
    let outside = space.path("outside").display().to_string();
    let victim = format!("{outside}/victim");
    let (climb, through) = ("../../../../../../../..", format!("link{victim}"));
    let climb_to = format!("{climb}{outside}/new");
    let climb_victim = format!("{climb}{victim}");
    use Entry::{Attribute, Device, Dir, File, Hardlink, Symlink};
    let layers: Vec<(&str, Vec<Entry<'_>>)> = vec![
        ("dotdot", vec![File("ok", "x"), File(&climb_to, "escaped")]),
        ("dotdot-inside", vec![Dir("a"), File("a/../../../../../../../../../../../tmp/rbuild-escaped", "escaped")]),
        ("absolute", vec![File(&climb_victim, "escaped")]),
        ("absolute-symlink-parent", vec![Symlink("link", &outside), File("link/new", "escaped")]),
        ("relative-symlink-parent", vec![Symlink("link", climb), File(&through, "escaped")]),
        ("symlink-then-same-name", vec![Symlink("f", &victim), File("f", "replaced")]),
        ("hardlink-out", vec![Hardlink("h", &climb_victim)]),
        ("hardlink-absolute", vec![Hardlink("h", &victim)]),
        (
            "hardlink-through-symlink",
            vec![Symlink("link", &outside), Hardlink("h", "link/victim"), File("h", "escaped")],
        ),
        ("hardlink-to-symlink", vec![Symlink("s", &victim), Hardlink("h", "s"), File("h", "escaped")]),
        ("devices", vec![Device("null", 1, 3), Device("sda", 8, 0), Device("whiteout", 0, 0)]),
        ("duplicates", vec![File("f", "one"), File("f", "two"), Dir("f"), File("f/x", "three"), File("f", "four")]),
        (
            "whiteouts",
            vec![Dir("d"), File("d/.wh...", ""), File(".wh..", ""), File("d/.wh./x", ""), File(".wh.../x", "")],
        ),
        ("root-replaced", vec![File(".", "x"), Symlink("./", &outside), File("x", "escaped")]),
        (
            "overlay-attributes",
            vec![
                Dir("d"),
                Attribute("e", "trusted.overlay.redirect", &climb_victim),
                Attribute("g", "user.overlay.opaque", "y"),
            ],
        ),
    ];
    let before = snapshot(&space.path("outside"));
    for (name, entries) in layers {
        Layout::new(&maker, name).image(&layer(&entries));
        let reference = registry.push(&maker, &format!("oci:{name}:1"), &format!("{name}:1"));
        let dockerfile = format!(
            "FROM {reference} AS hostile\nCOPY --from=busybox /bin /bin\nRUN [\"/bin/find\", \"/\", \"-xdev\"]\n"
        );
        space.write("context/Dockerfile", dockerfile);
        let ran = space.rbuild(["--progress=plain", "context"]);
        assert!(matches!(ran.code, 0 | 1 | 3), "{name}: exit code {}\n{}", ran.code, ran.stderr);
        if ran.code != 0 {
            let error = ran.stderr.lines().find(|line| line.starts_with("ERROR: ")).unwrap_or_default();
            assert!(error.len() > "ERROR: failed to build: failed to solve: ".len() + 10, "{name}: {error}");
            crate::harness::note(&format!("hostile layer {name}: {error}"));
        }
        assert_eq!(snapshot(&space.path("outside")), before, "{name} escaped");
        assert!(!Path::new("/tmp/rbuild-escaped").exists(), "{name} escaped");
    }
    space.build("FROM busybox\nRUN echo fine > /fine\n", &[]);
}

/// Names, contents, inodes' link counts and times of change below a directory.
fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>, u64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let mut list: Vec<_> = std::fs::read_dir(dir)
        .expect("directory")
        .flatten()
        .map(|entry| {
            let meta = entry.path().symlink_metadata().expect("metadata");
            let content = std::fs::read(entry.path()).unwrap_or_default();
            (entry.file_name().to_string_lossy().into_owned(), content, meta.nlink(), meta.ctime_nsec())
        })
        .collect();
    list.sort();
    list
}
