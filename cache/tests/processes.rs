//! Several processes on one store: they work at the same time, collect each other's garbage, and are killed at any
//! moment. The test binary runs itself as the worker.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cache::{
    CheckMode, CheckOptions, ContentDigest, Explanation, Key, NewRecord, Problem, PruneFilter, Sharing, Store,
};
use oci::{Descriptor, DiffId, Digest, media_type};

const STORE: &str = "RBUILD_WORKER_STORE";
const SEED: &str = "RBUILD_WORKER_SEED";
const MILLIS: &str = "RBUILD_WORKER_MILLIS";
/// Longer than any worker lives that is to be killed.
const UNTIL_KILLED: u64 = 60_000;
/// Few keys, so that the processes meet.
const N_KEYS: u64 = 24;

/// A small generator: the same seed, the same operations.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

fn spawn(store: &Path, seed: u64, millis: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker", "--nocapture", "--test-threads=1"])
        .env(STORE, store)
        .env(SEED, seed.to_string())
        .env(MILLIS, millis.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Does nothing unless started by one of the tests below.
#[test]
#[expect(clippy::disallowed_methods, reason = "how the parent tells a worker what to do")]
fn worker() {
    let Ok(path) = std::env::var(STORE) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let store = Store::open(Path::new(&path)).unwrap();
    let mut random = Random(number(SEED) * 2 + 1);
    let millis = number(MILLIS);
    let end = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < end {
        build(&store, &mut random, millis == UNTIL_KILLED);
        match random.below(8) {
            0 => drop(store.prune(&PruneFilter { all: true, ..PruneFilter::default() }, false).unwrap()),
            1 => drop(store.prune(&PruneFilter::hard_cap(Some(random.below(4 << 20)), None), false).unwrap()),
            2 => drop(store.usage().unwrap()),
            3 => store.sync().unwrap(),
            4 => drop(store.remove_leftovers(&|| false).unwrap()),
            _ => {}
        }
    }
}

fn text_of(key: u64) -> String {
    format!("the content that belongs to key {key}, ").repeat(40)
}

/// What a build does: under a lease, every hit must be whole and stay.
///
/// Where others are killed, the mark of one who was inside a locked mount may be left there.
fn build(store: &Store, random: &mut Random, others_are_killed: bool) {
    let _lease = store.lease().unwrap();
    let mut seen = Vec::new();
    for _ in 0..random.below(6) + 1 {
        let key = random.below(N_KEYS);
        let _lock = store.lock(&format!("key {key}")).unwrap();
        let tree = match store.find_record(&Key([key as u8; 32])).unwrap() {
            Some(record) => {
                assert_eq!(record.layer.layer.content, ContentDigest([key as u8; 32]));
                record.layer.tree.unwrap()
            }
            None => run(store, key),
        };
        let blob = text_of(key + 1000).into_bytes();
        let digest = store.put_blob(&blob).unwrap();
        assert_eq!(store.read_blob(&digest).unwrap().unwrap(), blob);
        seen.push((key, tree, digest, blob));
    }
    let mount = store.cache_mount(&format!("mount {}", random.below(2)), Sharing::Locked).unwrap();
    let counter = mount.path.join("inside");
    assert!(others_are_killed || !counter.exists(), "somebody else is inside a locked mount");
    std::fs::write(&counter, "x").unwrap();
    std::fs::remove_file(&counter).unwrap();
    drop(mount);
    for (key, tree, digest, blob) in seen {
        let text = std::fs::read_to_string(tree.join("file")).unwrap();
        assert_eq!(text, text_of(key), "a leased tree changed or went");
        assert_eq!(std::fs::read(store.blob_path(&digest).unwrap()).unwrap(), blob);
    }
    if random.below(4) == 0 {
        let key = random.below(N_KEYS);
        let manifest = format!("{{\"schemaVersion\":2,\"key\":{key}}}");
        let digest = store.put_blob(manifest.as_bytes()).unwrap();
        let target = Descriptor::new(media_type::OCI_MANIFEST, digest, manifest.len() as u64);
        let name = format!("image-{}", random.below(3)).parse().unwrap();
        store.tag(&name, &target).unwrap();
        let other = format!("image-{}", random.below(3)).parse().unwrap();
        let _was_there = store.untag(&other).unwrap();
    }
}

fn run(store: &Store, key: u64) -> std::path::PathBuf {
    let draft = store.new_tree().unwrap();
    std::fs::write(draft.tree().join("file"), text_of(key)).unwrap();
    let info = store.commit_tree(draft, ContentDigest([key as u8; 32])).unwrap();
    let diff_id = DiffId::of_uncompressed(Digest::of(text_of(key).as_bytes()));
    store.set_diff_id(&info.layer.id, &diff_id, 1).unwrap();
    let record = NewRecord {
        key: Key([key as u8; 32]),
        layer: info.layer.id,
        explanation: Some(Explanation { ingredients: "[]".to_owned(), ..Explanation::default() }),
        name: format!("RUN {key}"),
        slot: "slot".to_owned(),
        cost: Duration::from_millis(key),
    };
    store.put_record(&record).unwrap();
    info.tree.unwrap()
}

/// Asserts that what the store offers is right, and that nothing is left to repair.
fn assert_sound(store: &Store) {
    for key in 0..N_KEYS {
        if let Some(record) = store.find_record(&Key([key as u8; 32])).unwrap() {
            let text = std::fs::read_to_string(record.layer.tree.unwrap().join("file")).unwrap();
            assert_eq!(text, text_of(key));
        }
    }
    assert_eq!(store.check_invariants().unwrap(), [] as [String; 0]);
}

#[test]
fn many_processes_share_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let workers: Vec<_> = (0..6).map(|seed| spawn(&path, seed, 2500)).collect();
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let store = Store::open(&path).unwrap();
    assert_sound(&store);
    assert_eq!(store.check(&CheckOptions::silent(CheckMode::Repair)).unwrap().findings, []);
    let everything = PruneFilter { all: true, ..PruneFilter::default() };
    for image in store.images().unwrap() {
        match image.reference {
            Some(reference) => assert!(store.untag(&reference).unwrap()),
            None => assert!(store.remove_dangling(&image.target.digest).unwrap()),
        }
    }
    store.prune(&everything, false).unwrap();
    let left: Vec<_> = store.usage().unwrap().into_iter().filter(|record| !record.in_use).collect();
    assert_eq!(left, [], "nobody holds a lease any more");
    assert_sound(&store);
}

#[test]
fn a_killed_process_leaves_a_store_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut random = Random(20);
    for round in 0..30 {
        let mut pair = [spawn(&path, 100 + round, UNTIL_KILLED), spawn(&path, 200 + round, UNTIL_KILLED)];
        // From the middle of opening the store to the middle of anything.
        std::thread::sleep(Duration::from_micros(5_000 + random.below(60_000)));
        for worker in &mut pair {
            worker.kill().unwrap();
            let status = worker.wait().unwrap();
            assert_eq!(status.signal(), Some(9), "the worker failed before it was killed: {:?}", read_stderr(worker));
        }
        let store = Store::open(&path).unwrap();
        store.remove_leftovers(&|| false).unwrap();
        let findings = store.check(&CheckOptions::silent(CheckMode::Repair)).unwrap().findings;
        let problems: Vec<_> = findings.into_iter().map(|finding| finding.problem).collect();
        let is_torn =
            |problem: &&Problem| matches!(problem, Problem::CorruptBlob(_) | Problem::BrokenImages(_) | Problem::Index);
        assert_eq!(problems.iter().find(is_torn), None, "{problems:?}");
        assert_sound(&store);
    }
}

fn read_stderr(worker: &mut Child) -> String {
    let mut text = String::new();
    if let Some(stderr) = &mut worker.stderr {
        let _ = std::io::Read::read_to_string(stderr, &mut text);
    }
    text
}
