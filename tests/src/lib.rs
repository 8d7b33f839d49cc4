//! What the test programs `e2e` and `goldens` and `cargo xtask compare` share: cases in folders, images read back and
//! described, a docker engine, the program under test, and what the machine can do.

pub mod archive;
pub mod case;
pub mod describe;
pub mod engine;
pub mod property;
pub mod stress;
pub mod web;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The program under test: `$RBUILD_BIN`, else the newer one of the release and the debug build.
pub fn rbuild_bin() -> PathBuf {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(bin) = setting("RBUILD_BIN") {
            return bin.into();
        }
        let builds = ["release", "debug"].map(|profile| profiles().join(profile).join("rbuild"));
        let built = |bin: &PathBuf| std::fs::metadata(bin).and_then(|meta| meta.modified()).ok();
        let newest = builds.into_iter().filter(|bin| built(bin).is_some()).max_by_key(built);
        newest.expect("build rbuild first: cargo build --release -p cli")
    })
    .clone()
}

/// The test binary lies in target/TRIPLE/PROFILE/deps; this is target/TRIPLE.
fn profiles() -> PathBuf {
    let exe = std::env::current_exe().expect("own path");
    exe.ancestors().nth(3).expect("target directory").to_owned()
}

/// A setting of the tests, from the environment.
#[expect(clippy::disallowed_methods, reason = "settings of the tests, given by the person who runs them")]
pub fn setting(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// A line for the person who watches the tests; it is seen though the test passes.
pub fn note(text: &str) {
    // A closed standard error is no reason to fail.
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Path of a program, daemons' directories included.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = setting("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// Whether this is root on a kernel with overlayfs.
pub fn is_root_with_overlayfs() -> bool {
    let is_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("proc")) == 0;
    let file_systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    is_root && file_systems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay")
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").to_owned()
}

/// The golden cases, if there are any: `$RBUILD_GOLDENS`, else beside the workspace.
pub fn goldens() -> Option<PathBuf> {
    let named = setting("RBUILD_GOLDENS").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| workspace().join("../shared/goldens"));
    folder.canonicalize().ok().filter(|folder| folder.join("cases").is_dir())
}

/// Where the tests put their files: overlayfs cannot stand on overlayfs, so it lies beside the build products.
pub fn scratch_root() -> PathBuf {
    let root = profiles().parent().expect("target directory").join("e2e");
    std::fs::create_dir_all(&root).expect("scratch root");
    root
}
