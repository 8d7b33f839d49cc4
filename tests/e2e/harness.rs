//! What every end-to-end test stands on: the program, stores, scratch directories, and what the machine can do.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The program under test: `$RBUILD_BIN`, else the release build, else the debug build.
pub(crate) fn rbuild_bin() -> PathBuf {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(bin) = env("RBUILD_BIN") {
            return bin.into();
        }
        // The test binary lies in target/<triple>/<profile>/deps.
        let exe = std::env::current_exe().expect("own path");
        let profiles = exe.ancestors().nth(3).expect("target directory");
        let found =
            ["release", "debug"].iter().map(|profile| profiles.join(profile).join("rbuild")).find(|bin| bin.is_file());
        found.expect("build rbuild first: cargo build --release -p cli")
    })
    .clone()
}

#[expect(clippy::disallowed_methods, reason = "settings of the tests, given by `cargo xtask test`")]
fn env(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

/// Says why a test is skipped, unless everything it needs is there. The full-capability job skips none.
#[macro_export]
macro_rules! need {
    ($($need:expr),+ $(,)?) => {
        if let Some(lacking) = [$($need),+].into_iter().find_map($crate::harness::Need::lacking) {
            $crate::harness::note(&format!("skipped {}: {lacking}", module_path!()));
            return;
        }
    };
}

/// Something that a test cannot do without.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    /// Root, with overlayfs.
    Root,
    /// A program on the path.
    Program(&'static str),
    /// The base images of `cargo xtask bases`.
    Bases,
    /// Files that can be mounted as disks.
    LoopDevices,
    /// `pasta`, and what it needs to make networks.
    PrivateNetwork,
}

impl Need {
    /// Why it is not there; `None` when it is.
    pub(crate) fn lacking(self) -> Option<String> {
        match self {
            Self::Root => (!is_root()).then(|| "needs root".to_owned()),
            Self::Program(name) => find_program(name).is_none().then(|| format!("needs the program {name}")),
            Self::LoopDevices => (!Path::new("/dev/loop-control").exists()).then(|| "needs loop devices".to_owned()),
            Self::PrivateNetwork if find_program("pasta").is_none() => Some("needs the program pasta".to_owned()),
            Self::PrivateNetwork => std::fs::OpenOptions::new()
                .write(true)
                .open("/dev/net/tun")
                .err()
                .map(|error| format!("needs /dev/net/tun: {error}")),
            Self::Bases => shared_store().is_none().then(|| "needs the base images: cargo xtask bases".to_owned()),
        }
    }
}

/// A line for the person who watches the tests.
#[expect(clippy::print_stderr, reason = "the reason of a skip must be seen")]
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("proc")) == 0
}

/// Path of a program, daemons' directories included.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// The store with the base images, if it has been made.
pub(crate) fn shared_store() -> Option<PathBuf> {
    let named = env("RBUILD_TEST_STORE").map(PathBuf::from);
    let exe = std::env::current_exe().ok()?;
    let default = exe.ancestors().nth(4).map(|target| target.join("xtask/store"));
    named.or(default).filter(|store| store.is_dir())
}

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").to_owned()
}

/// A place to work in: a directory, and a store (its own, or the shared one).
pub(crate) struct Space {
    dir: tempfile::TempDir,
    store: PathBuf,
}

/// How a run of the program ended.
pub(crate) struct Ran {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Space {
    /// A fresh directory with an empty store of its own.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir_in(scratch_root()).expect("temp dir");
        let store = dir.path().join("store");
        Self { dir, store }
    }

    /// A fresh directory and the store with the base images.
    pub(crate) fn shared() -> Self {
        let dir = tempfile::tempdir_in(scratch_root()).expect("temp dir");
        Self { dir, store: shared_store().expect("asked for with need!(Need::Bases)") }
    }

    /// A fresh directory and a store of its own that knows `busybox`.
    pub(crate) fn with_busybox() -> Self {
        let space = Self::new();
        let root = space.path("busybox/rootfs");
        let script = workspace().join("testdata/bases/busybox/rootfs.sh");
        let busybox = find_program("busybox").expect("asked for with need!");
        let status = Command::new("sh").arg("-eu").arg(script).arg(root).arg(busybox).status().expect("sh");
        assert!(status.success(), "busybox root");
        space.write("busybox/Dockerfile", "FROM scratch\nCOPY rootfs/ /\nENV PATH=/bin\nCMD [\"sh\"]\n");
        space.rbuild(["-q", "-t", "busybox", "busybox"]).success();
        space
    }

    /// A path in the directory.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// Directory of the store.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// Writes a file, with the directories it needs.
    pub(crate) fn write(&self, relative: &str, content: impl AsRef<[u8]>) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("directories");
        std::fs::write(path, content).expect("write");
    }

    /// Reads a file.
    pub(crate) fn read(&self, relative: &str) -> String {
        std::fs::read_to_string(self.path(relative)).expect(relative)
    }

    /// The program in this directory, on this store, not yet started.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(rbuild_bin());
        command.current_dir(self.dir.path()).env("RBUILD_STORE", &self.store).env_remove("SOURCE_DATE_EPOCH");
        command.env("NO_COLOR", "1").args(args).stdin(Stdio::null());
        command
    }

    /// Runs the program.
    pub(crate) fn rbuild<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        Ran::of(self.command(args).output().expect("rbuild starts"))
    }

    /// Makes a directory in which everybody may write; returns its path.
    pub(crate) fn open_dir(&self, name: &str) -> String {
        let dir = self.path(name);
        std::fs::create_dir_all(&dir).expect("directory");
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
        dir.to_str().expect("UTF-8").to_owned()
    }

    /// Runs the program as a user without any rights, who may look into the directory.
    pub(crate) fn as_nobody(&self, args: &[&str]) -> Ran {
        let dir = self.dir.path();
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(rbuild_bin()).args(args);
        command.current_dir(dir).env("RBUILD_STORE", &self.store).env("NO_COLOR", "1").stdin(Stdio::null());
        Ran::of(command.output().expect("setpriv starts"))
    }

    /// Builds `dockerfile` with this directory as the context; returns the image ID.
    pub(crate) fn build(&self, dockerfile: &str, args: &[&str]) -> String {
        self.write("Dockerfile", dockerfile);
        let ran = self.rbuild(["-q", "."].iter().chain(args));
        ran.success().trim().to_owned()
    }

    /// Builds `dockerfile`, which must fail; returns how.
    pub(crate) fn build_fails(&self, dockerfile: &str, args: &[&str]) -> Ran {
        self.write("Dockerfile", dockerfile);
        let ran = self.rbuild(["--progress=plain", "."].iter().chain(args));
        assert_ne!(ran.code, 0, "the build must fail:\n{}", ran.stderr);
        ran
    }

    /// Runs a command in an image and returns its output.
    pub(crate) fn run_in(&self, image: &str, command: &[&str]) -> String {
        self.rbuild(["run", "--rm", image].iter().chain(command)).success()
    }

    /// `rbuild inspect` of one image.
    pub(crate) fn inspect(&self, image: &str) -> Value {
        let text = self.rbuild(["inspect", image]).success();
        let mut list: Vec<Value> = serde_json::from_str(&text).expect("inspect prints JSON");
        list.swap_remove(0)
    }
}

impl Ran {
    /// What a finished process left.
    pub(crate) fn of(output: Output) -> Self {
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status).unwrap_or(0);
        Self {
            code: output.status.code().unwrap_or(128 + signal),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output of a run that must have succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!(self.code, 0, "exit code {}\n{}\n{}", self.code, self.stdout, self.stderr);
        self.stdout
    }

    /// How often a line of the progress ends like this: `CACHED`, `DONE`.
    pub(crate) fn count(&self, word: &str) -> usize {
        self.stderr.lines().filter(|line| line.starts_with('#') && line.split(' ').nth(1) == Some(word)).count()
    }
}

/// Overlayfs cannot stand on overlayfs: scratch space lies beside the build products.
fn scratch_root() -> PathBuf {
    let exe = std::env::current_exe().expect("own path");
    let root = exe.ancestors().nth(4).expect("target directory").join("e2e");
    std::fs::create_dir_all(&root).expect("scratch root");
    root
}

/// An ssh server on loopback with a private git repository, and an agent that holds the key to it.
pub(crate) struct Sshd {
    server: std::process::Child,
    agent: std::process::Child,
    port: u16,
    socket: PathBuf,
    key: PathBuf,
}

impl Sshd {
    /// Starts both; everything they use lies in the space.
    pub(crate) fn start(space: &Space) -> Self {
        let dir = space.path("sshd");
        std::fs::create_dir_all(&dir).expect("directory");
        let port = free_port();
        let script = format!(
            "set -eu\ncd {dir}\nssh-keygen -q -t ed25519 -N '' -f host\nssh-keygen -q -t ed25519 -N '' -f user\n\
             chmod 600 user.pub\nmkdir work\ncd work\ngit init -q\necho 'private package' > README\ngit add README\n\
             git -c user.name=t -c user.email=t@t commit -qm one\ncd ..\ngit clone -q --bare work private.git\n\
             mkdir -p /run/sshd\n",
            dir = dir.display()
        );
        let status = Command::new("sh").args(["-c", &script]).status().expect("sh");
        assert!(status.success(), "preparing the ssh server");
        // Whoever has the key gets the repository and nothing else, wherever the client thinks it lies.
        let force = format!("git upload-pack {}", dir.join("private.git").display());
        let server = Command::new(find_program("sshd").expect("sshd"))
            .args(["-D", "-e", "-f", "/dev/null"])
            .arg("-h")
            .arg(dir.join("host"))
            .args(["-o", &format!("Port={port}"), "-o", "ListenAddress=127.0.0.1", "-o", "StrictModes=no"])
            .args(["-o", &format!("AuthorizedKeysFile={}", dir.join("user.pub").display())])
            .args(["-o", "PermitRootLogin=yes", "-o", "PasswordAuthentication=no", "-o", "UsePAM=no"])
            .args(["-o", &format!("ForceCommand={force}"), "-o", "PidFile=none"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("log")).expect("log"))
            .spawn()
            .expect("sshd starts");
        let socket = dir.join("agent");
        let agent = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let agent = agent.expect("ssh-agent starts");
        wait_for(|| socket.exists());
        let added = Command::new("ssh-add").arg("-q").arg(dir.join("user")).env("SSH_AUTH_SOCK", &socket).status();
        assert!(added.expect("ssh-add").success());
        wait_for(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { server, agent, port, socket, key: dir.join("user") }
    }

    /// Variables that the client of the agent needs.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 1] {
        [("SSH_AUTH_SOCK", self.socket.clone())]
    }

    /// The file of the key that the server lets in; it has no passphrase.
    pub(crate) fn key(&self) -> &Path {
        &self.key
    }

    /// Where the repository is.
    pub(crate) fn url(&self) -> String {
        format!("ssh://root@127.0.0.1:{}/private.git", self.port)
    }

    /// Flags that tell the Dockerfile where the server is.
    pub(crate) fn build_args(&self) -> [String; 2] {
        ["--build-arg".to_owned(), format!("SSHD_PORT={}", self.port)]
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.agent] {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A port of loopback that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("loopback");
    listener.local_addr().expect("address").port()
}

/// Waits up to ten seconds.
#[track_caller]
pub(crate) fn wait_for(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited for ten seconds");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A small file system in a file, for disks that are full or read-only.
pub(crate) struct LoopDisk {
    mount: PathBuf,
}

impl LoopDisk {
    /// Makes one of so many MiB and mounts it in the space.
    pub(crate) fn new(space: &Space, mebibytes: u64) -> Self {
        let (image, mount) = (space.path("disk.img"), space.path("disk"));
        std::fs::create_dir(&mount).expect("mount point");
        let file = std::fs::File::create(&image).expect("image");
        file.set_len(mebibytes << 20).expect("size");
        succeed(Command::new(find_program("mkfs.ext4").expect("asked for with need!")).arg("-q").arg(&image));
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Self { mount }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// Changes its options, such as `ro`.
    #[track_caller]
    pub(crate) fn remount(&self, options: &str) {
        succeed(Command::new("mount").arg("-o").arg(format!("remount,{options}")).arg(&self.mount));
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.mount).status());
    }
}

/// Runs a command that must succeed; returns its standard output.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let ran = Ran::of(command.stdin(Stdio::null()).output().expect("program starts"));
    assert_eq!(ran.code, 0, "{command:?}\n{}\n{}", ran.stdout, ran.stderr);
    ran.stdout
}

/// A registry on loopback, with plain HTTP. Its files lie in the space.
pub(crate) struct Registry {
    server: std::process::Child,
    port: u16,
    dir: PathBuf,
}

/// A user of a [`Registry`] that asks for one, and the password.
pub(crate) const REGISTRY_USER: (&str, &str) = ("builder", "hunter2");

impl Registry {
    /// Starts one that serves everybody.
    pub(crate) fn start(space: &Space) -> Self {
        Self::with_settings(space, "", "")
    }

    /// Starts one with more settings of its protocol (`tls: {…}`), and at the top (`auth: {…}`).
    pub(crate) fn with_settings(space: &Space, http: &str, top: &str) -> Self {
        Self::on_port(space, free_port(), http, top)
    }

    /// Starts one that serves [`REGISTRY_USER`] only.
    pub(crate) fn with_password(space: &Space) -> Self {
        let (user, password) = REGISTRY_USER;
        space.write("registry/htpasswd", succeed(Command::new("htpasswd").args(["-Bbn", user, password])));
        let file = space.path("registry/htpasswd");
        Self::with_settings(space, "", &format!("auth: {{htpasswd: {{realm: test, path: '{}'}}}}", file.display()))
    }

    fn on_port(space: &Space, port: u16, http: &str, top: &str) -> Self {
        let dir = space.path("registry/data");
        let http = if http.is_empty() { String::new() } else { format!(", {http}") };
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\nhttp: {{addr: '127.0.0.1:{port}', secret: x{http}}}\n{top}\n",
            dir.display()
        );
        space.write("registry/config.yml", config);
        let server = Command::new(find_program("docker-registry").expect("asked for with need!"))
            .arg("serve")
            .arg(space.path("registry/config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(space.path("registry/log")).expect("log"))
            .spawn()
            .expect("docker-registry starts");
        let registry = Self { server, port, dir };
        wait_for(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        registry
    }

    /// Stops answering; what was pushed stays.
    pub(crate) fn stop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Copies an image there with skopeo, byte for byte; returns its reference.
    #[track_caller]
    pub(crate) fn push(&self, space: &Space, from: &str, name: &str) -> String {
        let reference = format!("{}/{name}", self.host());
        let mut skopeo = Command::new("skopeo");
        skopeo.current_dir(space.path("")).args(["--insecure-policy", "copy", "-q", "--all", "--preserve-digests"]);
        skopeo.args(["--dest-tls-verify=false", "--dest-creds", &format!("{}:{}", REGISTRY_USER.0, REGISTRY_USER.1)]);
        succeed(skopeo.arg(from).arg(format!("docker://{reference}")));
        reference
    }

    /// The file in which the registry keeps a blob.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("digest");
        self.dir.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}
