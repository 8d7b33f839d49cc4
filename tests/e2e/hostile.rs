//! Images that want more of this machine than there is: memory and disk are bounded, and the error says what it was.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{LoopDisk, Need, Ran, Space};
use crate::need;
use crate::pull::Layout;

/// What a build may take of memory, whatever an image holds.
const MOST_MEMORY_KIB: u64 = 400 << 10;

/// A gigabyte.
const GIB: u64 = 1 << 30;

/// What a program makes of its input.
fn filtered(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("ends");
    writer.join().expect("no panic").expect("written");
    assert!(output.status.success(), "{program}");
    output.stdout
}

/// A layer of one file of so many gigabytes of zeros, compressed by `program`: the same piece again and again.
fn bomb(program: &str, args: &[&str], n_gib: u64) -> Vec<u8> {
    const PIECE: u64 = 64 << 20;
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").expect("short");
    header.set_mode(0o644);
    header.set_size(n_gib * GIB);
    header.set_cksum();
    let mut bomb = filtered(program, args, header.as_bytes());
    let piece = filtered(program, args, &vec![0; PIECE as usize]);
    for _ in 0..n_gib * GIB / PIECE {
        bomb.extend_from_slice(&piece);
    }
    bomb.extend(filtered(program, args, &[0; 1024]));
    bomb
}

/// Runs a build; returns its end, and the most memory that it had, KiB.
fn measured(space: &Space, args: &[&str]) -> (Ran, u64) {
    let mut command = space.command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("rbuild starts");
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().expect("wait").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        most = most.max(peak.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    (Ran::of(child.wait_with_output().expect("ended")), most)
}

/// What is left of a failed build: nothing that counts.
fn used_kib(disk: &LoopDisk) -> u64 {
    let output = Command::new("du").args(["-sk"]).arg(disk.path()).output().expect("du");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn bombs_fill_no_memory_and_leave_no_disk() {
    need!(Need::Root, Need::Program("mkfs.ext4"), Need::LoopDevices, Need::Program("gzip"), Need::Program("zstd"));
    let space = Space::new();
    let disk = LoopDisk::new(&space, 200);
    let store = disk.path().join("store");
    let store = store.to_str().expect("UTF-8");
    let bombs = [
        ("gzip", "application/vnd.oci.image.layer.v1.tar+gzip", bomb("gzip", &["-9"], 4)),
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd", bomb("zstd", &["-19"], 4)),
    ];
    for (name, media_type, bomb) in bombs {
        assert!(bomb.len() < 8 << 20, "{name} is no bomb: {} bytes", bomb.len());
        // The build fails before anybody asks what the digest of the content is.
        Layout::new(&space, name).image_of(media_type, &bomb, &"0".repeat(64));
        space.write("Dockerfile", "FROM hostile\nRUN [\"/x\"]\n");
        let context = format!("hostile=oci-layout://{}", space.path(name).display());
        let args = ["--store", store, "build", "--progress=plain", "--build-context", &context, "."];
        let before = used_kib(&disk);
        let (ran, most_kib) = measured(&space, &args);
        assert_eq!(ran.code, 3, "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains("No space left on device"), "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains("rbuild prune"), "{name}: {}", ran.stderr);
        assert!(most_kib < MOST_MEMORY_KIB, "{name}: {most_kib} KiB");
        assert!(used_kib(&disk) < before + (20 << 10), "{name}: {} KiB are left", used_kib(&disk));
    }
}

/// Links to what is not in their layer, with long names: what has to be remembered of them is limited.
#[test]
fn endless_lists_of_names_fill_no_memory() {
    need!(Need::Root, Need::Program("gzip"));
    let space = Space::new();
    let mut tar = tar::Builder::new(Vec::new());
    // 3 KB a name, and more names than 128 MiB hold.
    let target = vec!["d".repeat(250); 12].join("/");
    for number in 0..60_000 {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Link);
        header.set_mode(0o644);
        header.set_size(0);
        tar.append_pax_extensions([("linkpath", target.as_bytes())]).expect("in memory");
        header.set_path(format!("link{number}")).expect("short");
        header.set_link_name("d").expect("short");
        header.set_cksum();
        tar.append(&header, std::io::empty()).expect("in memory");
    }
    let layer = filtered("gzip", &["-1"], &tar.into_inner().expect("in memory"));
    Layout::new(&space, "many").image_of("application/vnd.oci.image.layer.v1.tar+gzip", &layer, &"0".repeat(64));
    space.write("Dockerfile", "FROM hostile\nRUN [\"/x\"]\n");
    let context = format!("hostile=oci-layout://{}", space.path("many").display());
    let (ran, most_kib) = measured(&space, &["--progress=plain", "--build-context", &context, "."]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("layer tar has more than 134217728 bytes of paths to remember"), "{}", ran.stderr);
    assert!(most_kib < MOST_MEMORY_KIB, "{most_kib} KiB");
}
