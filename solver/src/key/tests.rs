use std::collections::BTreeSet;
use std::sync::LazyLock;

use cache::{Layer, Sharing};
use oci::{DiffId, Digest};

use super::*;

fn content(number: u8) -> ContentDigest {
    ContentDigest([number; 32])
}

fn chain(numbers: &[u8]) -> Chain {
    Chain::new(numbers.iter().map(|&number| layer(number)).collect())
}

/// Only a store can make identities of layers.
static STORE: LazyLock<(tempfile::TempDir, cache::Store)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory for the test's store");
    let store = cache::Store::open(dir.path()).expect("a new store");
    (dir, store)
});

fn layer(number: u8) -> Layer {
    let diff_id = DiffId::of_uncompressed(Digest::of(&[number]));
    let info = STORE.1.layer_for_diff_id(&diff_id).expect("a layer for any diff ID");
    Layer { id: info.layer.id, content: content(number) }
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn run() -> RunOp {
    RunOp {
        args: vec![text("/bin/sh"), text("-c"), text("make")],
        env: vec![(text("PATH"), text("/bin")), (text("VERSION"), text("1"))],
        proxy_env: vec![(text("http_proxy"), text("a"))],
        cwd: text("/"),
        user: String::new(),
        network: NetworkMode::Default,
        security: SecurityMode::Sandbox,
        hostname: text("buildkitsandbox"),
        extra_hosts: vec![ExtraHost { name: text("db"), address: text("10.0.0.1") }],
        shm_size_bytes: None,
        ulimits: vec![Ulimit { name: text("nofile"), soft: 1, hard: 2 }],
        cgroup_parent: None,
        mounts: vec![
            Mount { target: text("/b"), kind: bind() },
            Mount { target: text("/c"), kind: cache() },
            Mount { target: text("/t"), kind: MountKind::Tmpfs { size_bytes: None } },
            Mount { target: text("/s"), kind: secret() },
            Mount { target: text("/ssh"), kind: ssh() },
        ],
        scripts: vec![InlineScript { name: text("x"), content: b"#!/bin/sh\n".to_vec() }],
        devices: vec![Device { name: text("a.com/b=c"), required: false }],
        platform: platform(),
    }
}

fn platform() -> Platform {
    Platform {
        architecture: text("amd64"),
        os: text("linux"),
        os_version: None,
        os_features: Vec::new(),
        variant: None,
    }
}

fn bind() -> MountKind {
    MountKind::Bind { input: Some(1), source: text("/from"), read_only: true }
}

fn cache() -> MountKind {
    MountKind::Cache {
        id: text("/c"),
        sharing: Sharing::Shared,
        input: None,
        source: text("/"),
        uid: 0,
        gid: 0,
        mode: 0o755,
        read_only: false,
    }
}

fn secret() -> MountKind {
    MountKind::Secret { id: text("s"), env: None, required: false, uid: 0, gid: 0, mode: 0o400 }
}

fn ssh() -> MountKind {
    MountKind::Ssh { id: text("default"), required: false, uid: 0, gid: 0, mode: 0o600 }
}

fn copy() -> CopyAction {
    CopyAction {
        input: Some(1),
        selection: CopySelection {
            source: text("/src/main.c"),
            wildcard: false,
            excludes: Vec::new(),
            parents_base: None,
        },
        dest: text("/app/"),
        owner: None,
        mode: None,
        unpack: Unpack::Never,
        keep_source_metadata: false,
    }
}

fn facts(op: &Op) -> Facts {
    let answers = questions(op).iter().map(|_| Answer::Content(content(9))).collect();
    let probe = needs_probe(op).then(|| text("probed"));
    Facts { parents: chain(&[1, 2]), n_base_layers: 1, answers, probe, ..Facts::default() }
}

fn key_of(op: &Op) -> Key {
    key(op, &facts(op)).expect("an operation with a key")
}

/// Edits one thing of `T` and says whether the key must change.
type Edit<T> = (&'static str, bool, fn(&mut T));

#[track_caller]
fn check<T: Clone>(start: &T, wrap: fn(T) -> Op, edits: &[Edit<T>]) {
    let before = key_of(&wrap(start.clone()));
    let mut seen = BTreeSet::from([before.0]);
    for (name, counts, edit) in edits {
        let mut edited = start.clone();
        edit(&mut edited);
        let op = wrap(edited);
        let after = key_of(&op);
        assert_eq!(after != before, *counts, "{name}");
        assert!(!*counts || seen.insert(after.0), "{name} has the key of another edit");
        let (old, new) = (wrap(start.clone()), op);
        let (old, new) = (ingredients(&old, &facts(&old)), ingredients(&new, &facts(&new)));
        if *counts {
            assert_ne!(old, new, "{name}: what is hashed is not explained");
        } else {
            // Labels do not count, and may differ.
            let values = |list: &[Ingredient]| list.iter().map(|one| one.value.clone()).collect::<Vec<_>>();
            assert_eq!(values(&old), values(&new), "{name}: what is explained is not hashed");
        }
    }
}

#[test]
fn what_counts_of_a_run() {
    check(
        &run(),
        |run| Op::Run(Box::new(run)),
        &[
            ("args", true, |run| run.args[2] = text("make all")),
            ("args are not joined", true, |run| run.args = vec![text("/bin/sh -c"), text("make")]),
            ("env value", true, |run| run.env[1].1 = text("2")),
            ("env name", true, |run| run.env[1].0 = text("VERSIO")),
            ("env split", true, |run| run.env[1] = (text("VERSIO"), text("N1"))),
            ("env order", true, |run| run.env.reverse()),
            ("proxies", false, |run| run.proxy_env[0].1 = text("b")),
            ("cwd", true, |run| run.cwd = text("/app")),
            ("user", true, |run| run.user = text("app")),
            ("network none", true, |run| run.network = NetworkMode::None),
            ("network host", true, |run| run.network = NetworkMode::Host),
            ("security", true, |run| run.security = SecurityMode::Insecure),
            ("hostname", true, |run| run.hostname = text("x")),
            ("extra host name", true, |run| run.extra_hosts[0].name = text("da")),
            ("extra host address", false, |run| run.extra_hosts[0].address = text("10.0.0.2")),
            ("shm size", true, |run| run.shm_size_bytes = Some(1)),
            ("ulimit name", true, |run| run.ulimits[0].name = text("nproc")),
            ("ulimit soft", true, |run| run.ulimits[0].soft = 2),
            ("ulimit hard", true, |run| run.ulimits[0].hard = 3),
            ("cgroup parent", true, |run| run.cgroup_parent = Some(text("a"))),
            ("mount target", true, |run| run.mounts[0].target = text("/bb")),
            ("mount order", true, |run| run.mounts.swap(0, 1)),
            ("mount gone", true, |run| drop(run.mounts.pop())),
            ("script name", true, |run| run.scripts[0].name = text("y")),
            ("script", true, |run| run.scripts[0].content.push(b'\n')),
            ("device", true, |run| run.devices[0].name = text("a.com/b=d")),
            ("device required", true, |run| run.devices[0].required = true),
            ("os", true, |run| run.platform.os = text("freebsd")),
            ("architecture", true, |run| run.platform.architecture = text("arm64")),
            ("variant", true, |run| run.platform.variant = Some(text("v2"))),
            ("os version", true, |run| run.platform.os_version = Some(text("10"))),
            ("os features", true, |run| run.platform.os_features.push(text("win32k"))),
        ],
    );
}

fn with_mount(kind: MountKind) -> Op {
    Op::Run(Box::new(RunOp { mounts: vec![Mount { target: text("/m"), kind }], ..run() }))
}

#[test]
fn what_counts_of_a_bind_mount() {
    check(
        &bind(),
        with_mount,
        &[
            ("input number", false, |kind| {
                *kind = MountKind::Bind { input: Some(2), source: text("/from"), read_only: true }
            }),
            ("source path", false, |kind| {
                *kind = MountKind::Bind { input: Some(1), source: text("/to"), read_only: true }
            }),
            ("no input", true, |kind| *kind = MountKind::Bind { input: None, source: text("/from"), read_only: true }),
            ("read only", true, |kind| {
                *kind = MountKind::Bind { input: Some(1), source: text("/from"), read_only: false }
            }),
        ],
    );
}

#[test]
fn what_counts_of_a_cache_mount() {
    fn edit(
        kind: &mut MountKind,
        change: impl FnOnce(&mut String, &mut Sharing, &mut Option<usize>, &mut [u32; 3], &mut bool),
    ) {
        if let MountKind::Cache { id, sharing, input, uid, gid, mode, read_only, source: _ } = kind {
            let mut numbers = [*uid, *gid, *mode];
            change(id, sharing, input, &mut numbers, read_only);
            [*uid, *gid, *mode] = numbers;
        }
    }
    check(
        &cache(),
        with_mount,
        &[
            ("id", false, |kind| edit(kind, |id, _, _, _, _| *id = text("other"))),
            ("sharing", false, |kind| edit(kind, |_, sharing, _, _, _| *sharing = Sharing::Locked)),
            ("initial content", true, |kind| edit(kind, |_, _, input, _, _| *input = Some(1))),
            ("uid", true, |kind| edit(kind, |_, _, _, numbers, _| numbers[0] = 1)),
            ("gid", true, |kind| edit(kind, |_, _, _, numbers, _| numbers[1] = 1)),
            ("mode", true, |kind| edit(kind, |_, _, _, numbers, _| numbers[2] = 0o700)),
            ("read only", true, |kind| edit(kind, |_, _, _, _, read_only| *read_only = true)),
        ],
    );
}

#[test]
fn what_counts_of_other_mounts() {
    check(
        &MountKind::Tmpfs { size_bytes: None },
        with_mount,
        &[
            ("size", true, |kind| *kind = MountKind::Tmpfs { size_bytes: Some(1) }),
            ("kind", true, |kind| *kind = ssh()),
        ],
    );
    check(
        &secret(),
        with_mount,
        &[
            ("id", true, |kind| {
                if let MountKind::Secret { id, .. } = kind {
                    *id = text("t")
                }
            }),
            ("env", true, |kind| {
                if let MountKind::Secret { env, .. } = kind {
                    *env = Some(text("S"))
                }
            }),
            ("required", true, |kind| {
                if let MountKind::Secret { required, .. } = kind {
                    *required = true
                }
            }),
            ("uid", true, |kind| {
                if let MountKind::Secret { uid, .. } = kind {
                    *uid = 1
                }
            }),
            ("gid", true, |kind| {
                if let MountKind::Secret { gid, .. } = kind {
                    *gid = 1
                }
            }),
            ("mode", true, |kind| {
                if let MountKind::Secret { mode, .. } = kind {
                    *mode = 0o444
                }
            }),
        ],
    );
    check(
        &ssh(),
        with_mount,
        &[
            ("id", true, |kind| {
                if let MountKind::Ssh { id, .. } = kind {
                    *id = text("t")
                }
            }),
            ("required", true, |kind| {
                if let MountKind::Ssh { required, .. } = kind {
                    *required = true
                }
            }),
            ("uid", true, |kind| {
                if let MountKind::Ssh { uid, .. } = kind {
                    *uid = 1
                }
            }),
            ("gid", true, |kind| {
                if let MountKind::Ssh { gid, .. } = kind {
                    *gid = 1
                }
            }),
            ("mode", true, |kind| {
                if let MountKind::Ssh { mode, .. } = kind {
                    *mode = 0o444
                }
            }),
        ],
    );
}

fn with_action(action: FileAction) -> Op {
    Op::File(FileOp { actions: vec![action] })
}

#[test]
fn what_counts_of_a_copy() {
    check(
        &copy(),
        |copy| with_action(FileAction::Copy(copy)),
        &[
            ("input number", false, |copy| copy.input = Some(2)),
            ("no input", true, |copy| copy.input = None),
            ("directory of the source", false, |copy| copy.selection.source = text("/lib/main.c")),
            ("name of the source", true, |copy| copy.selection.source = text("/src/main.h")),
            ("wildcard", true, |copy| copy.selection.wildcard = true),
            ("excludes", true, |copy| copy.selection.excludes.push(text("*.o"))),
            ("parents", true, |copy| copy.selection.parents_base = Some(text("/"))),
            ("parents pivot", true, |copy| copy.selection.parents_base = Some(text("/src"))),
            ("dest", true, |copy| copy.dest = text("/app")),
            ("owner id", true, |copy| copy.owner = Some(Owner { user: Principal::Id(1), group: None })),
            ("owner name", true, |copy| copy.owner = Some(Owner { user: Principal::Name(text("1")), group: None })),
            ("owner group", true, |copy| {
                copy.owner = Some(Owner { user: Principal::Id(1), group: Some(Principal::Id(1)) });
            }),
            ("octal mode", true, |copy| copy.mode = Some(ModeChange::Octal(0o644))),
            ("symbolic mode", true, |copy| copy.mode = Some(ModeChange::Symbolic(text("0644")))),
            ("unpack", true, |copy| copy.unpack = Unpack::IfArchive),
            ("source metadata", true, |copy| copy.keep_source_metadata = true),
        ],
    );
}

#[test]
fn the_whole_kept_path_counts_with_parents() {
    let mut start = copy();
    start.selection.parents_base = Some(text("/"));
    check(
        &start,
        |copy| with_action(FileAction::Copy(copy)),
        &[("directory of the source", true, |copy| copy.selection.source = text("/lib/main.c"))],
    );
}

#[test]
fn what_counts_of_directories_and_inline_files() {
    let make_dir = MakeDirAction { path: text("/app"), mode: 0o755, owner: None, mtime: None };
    check(
        &make_dir,
        |action| with_action(FileAction::MakeDir(action)),
        &[
            ("path", true, |action| action.path = text("/ap")),
            ("mode", true, |action| action.mode = 0o700),
            ("owner", true, |action| action.owner = Some(Owner { user: Principal::Id(0), group: None })),
            ("mtime", true, |action| action.mtime = Some(0)),
        ],
    );
    let write_file = WriteFileAction {
        dest: text("/f"),
        name: text("EOF"),
        content: b"a".to_vec(),
        owner: None,
        mode: None,
        mtime: None,
    };
    check(
        &write_file,
        |action| with_action(FileAction::WriteFile(action)),
        &[
            ("dest", true, |action| action.dest = text("/g")),
            ("name", true, |action| action.name = text("FILE")),
            ("content", true, |action| action.content = b"b".to_vec()),
            ("owner", true, |action| action.owner = Some(Owner { user: Principal::Id(0), group: None })),
            ("mode", true, |action| action.mode = Some(ModeChange::Octal(0o600))),
            ("mtime", true, |action| action.mtime = Some(0)),
        ],
    );
}

#[test]
fn what_counts_of_a_url() {
    let http = HttpOp { url: text("https://a/x"), filename: text("x"), checksum: None };
    check(
        &http,
        Op::Http,
        &[
            ("url", true, |http| http.url = text("https://b/x")),
            ("filename", true, |http| http.filename = text("y")),
            ("checksum", true, |http| http.checksum = Some(Digest::of(b"x"))),
        ],
    );
    let known = HttpOp { checksum: Some(Digest::of(b"x")), ..http };
    check(
        &known,
        Op::Http,
        &[
            ("url of known bytes", false, |http| http.url = text("https://b/x")),
            ("filename", true, |http| http.filename = text("y")),
            ("checksum", true, |http| http.checksum = Some(Digest::of(b"y"))),
        ],
    );
}

#[test]
fn what_counts_of_a_git_tree() {
    let git = GitOp {
        remote: text("https://a/x.git"),
        reference: Some(text("main")),
        subdir: None,
        checksum: None,
        keep_git_dir: false,
        submodules: true,
        commit_times: false,
    };
    check(
        &git,
        Op::Git,
        &[
            ("remote", false, |git| git.remote = text("https://b/x.git")),
            ("reference", false, |git| git.reference = None),
            ("subdir", true, |git| git.subdir = Some(text("a"))),
            ("checksum", false, |git| git.checksum = Some(text("ab"))),
            ("keep git dir", true, |git| git.keep_git_dir = true),
            ("submodules", true, |git| git.submodules = false),
            ("commit times", true, |git| git.commit_times = true),
        ],
    );
    check(
        &GitOp { keep_git_dir: true, ..git },
        Op::Git,
        &[
            ("kept remote", true, |git| git.remote = text("https://b/x.git")),
            ("kept reference", true, |git| git.reference = None),
        ],
    );
}

#[test]
fn what_counts_of_the_results_of_inputs() {
    let op = Op::Run(Box::new(run()));
    let start = facts(&op);
    let before = key(&op, &start);
    let mut edited = start.clone();
    edited.n_base_layers = 2;
    assert_eq!(key(&op, &edited), before, "what is called base image is a matter of words");
    let others: [(&str, Facts); 4] = [
        ("a parent", Facts { parents: chain(&[1, 3]), ..start.clone() }),
        ("order of parents", Facts { parents: chain(&[2, 1]), ..start.clone() }),
        ("number of parents", Facts { parents: chain(&[1, 2, 2]), ..start.clone() }),
        ("an answer", Facts { answers: vec![Answer::Content(content(8))], ..start.clone() }),
    ];
    for (name, facts) in others {
        assert_ne!(key(&op, &facts), before, "{name}");
    }
    let git = Op::Git(GitOp {
        remote: text("r"),
        reference: None,
        subdir: None,
        checksum: None,
        keep_git_dir: false,
        submodules: true,
        commit_times: false,
    });
    let other = Facts { probe: Some(text("other")), ..facts(&git) };
    assert_ne!(key(&git, &other), key(&git, &facts(&git)), "the commit");
}

#[test]
fn a_definition_key_counts_the_selection_and_the_layers_behind_it() {
    fn with(copy: CopyAction, layers: &[u8]) -> Option<Key> {
        let facts = Facts { answers: vec![Answer::Layers(chain(layers))], ..Facts::default() };
        key(&with_action(FileAction::Copy(copy)), &facts)
    }
    let before = with(copy(), &[1, 2]);
    assert_eq!(with(copy(), &[1, 2]), before);
    assert_ne!(with(copy(), &[1]), before);
    assert_ne!(with(copy(), &[1, 3]), before);
    let mut elsewhere = copy();
    elsewhere.selection.source = text("/lib/main.c");
    assert_ne!(with(elsewhere, &[1, 2]), before, "the layers do not say which of their files are taken");
    let content = Facts { answers: vec![Answer::Content(content(1))], ..Facts::default() };
    assert_ne!(key(&with_action(FileAction::Copy(copy())), &content), before);
}

#[test]
fn a_family_has_all_files_and_nothing_else_in_common() {
    let facts = |parents: &[u8]| Facts { parents: chain(parents), ..Facts::default() };
    let of = |copy: CopyAction, parents| family(&with_action(FileAction::Copy(copy)), &facts(parents));
    let before = of(copy(), &[1]);
    assert!(before.is_some());
    let mut elsewhere = copy();
    elsewhere.selection.source = text("/lib/main.c");
    assert_eq!(of(elsewhere, &[1]), before, "other files of that name may be the same files");
    let mut renamed = copy();
    renamed.selection.source = text("/src/other.c");
    assert_ne!(of(renamed, &[1]), before);
    let mut placed = copy();
    placed.dest = text("/lib/");
    assert_ne!(of(placed, &[1]), before);
    assert_ne!(of(copy(), &[2]), before);
    assert_ne!(before, Some(key_of(&with_action(FileAction::Copy(copy())))));
    let nothing =
        with_action(FileAction::MakeDir(MakeDirAction { path: text("/d"), mode: 0o755, owner: None, mtime: None }));
    assert_eq!(family(&nothing, &facts(&[1])), None, "no files, no family");
}

#[test]
fn identity_of_layers_never_counts() {
    let op = Op::Run(Box::new(run()));
    let start = facts(&op);
    let mut edited = start.clone();
    let mut layers = edited.parents.layers().to_vec();
    layers[1].id = layer(77).id;
    edited.parents = Chain::new(layers);
    assert_eq!(key(&op, &edited), key(&op, &start));
}

#[test]
fn images_directories_and_merges_have_no_key() {
    let local = Op::Local(crate::op::LocalOp { name: text("context") });
    for op in [Op::Merge, local] {
        assert_eq!(key(&op, &Facts::default()), None);
        assert_eq!(ingredients(&op, &Facts::default()), []);
    }
}

#[test]
fn ingredients_name_what_people_know() {
    let mut run = run();
    run.env.push((text("API_TOKEN"), text("hunter2")));
    run.scripts[0].content = vec![b'a'; 5000];
    let op = Op::Run(Box::new(run));
    let list = ingredients(&op, &facts(&op));
    let value = |name: &str| {
        let found = list.iter().find(|ingredient| ingredient.name == name);
        found.unwrap_or_else(|| panic!("no `{name}` in {list:#?}")).value.clone()
    };
    assert_eq!(value("argv"), "/bin/sh -c make");
    assert_eq!(value("ENV VERSION"), "1");
    assert_eq!(value("base image"), oci::digest::hex(&[1; 32]));
    assert_eq!(value("parent layer 1"), oci::digest::hex(&[2; 32]));
    assert_eq!(value("files /from"), oci::digest::hex(&[9; 32]));
    assert_eq!(value("mount /c"), "cache");
    assert!(value("ENV API_TOKEN").starts_with("(hidden, "));
    assert!(value("script x").len() < 1200, "long values are cut");
}

#[test]
fn what_is_stored_is_the_same_list() {
    let ops = [Op::Run(Box::new(run())), with_action(FileAction::Copy(copy()))];
    for op in &ops {
        for n_base_layers in [0, 1, 2] {
            let facts = Facts { n_base_layers, ..facts(op) };
            let stored = explanation(op, &facts);
            assert!(!stored.ingredients.contains("parent layer 1") && !stored.ingredients.contains("base image"));
            assert_eq!(recorded(&stored), Some(ingredients(op, &facts)));
        }
    }
    let nothing_below = Facts { parents: Chain::empty(), n_base_layers: 0, ..facts(&ops[0]) };
    assert_eq!(recorded(&explanation(&ops[0], &nothing_below)), Some(ingredients(&ops[0], &nothing_below)));
    for unreadable in ["", "[1]", "{}"] {
        assert_eq!(recorded(&Explanation { ingredients: text(unreadable), ..Explanation::default() }), None);
    }
}

/// A change here makes every stored record unreachable. If it is meant, [`DOMAIN`] gets a new number.
#[test]
fn the_encoding_is_stable() {
    let run = Op::Run(Box::new(run()));
    let file = with_action(FileAction::Copy(copy()));
    let keys = [key_of(&run), key_of(&file)].map(|key| oci::digest::hex(&key.0[..8]));
    assert_eq!(keys, ["0f3e30b44d12b5dc", "899b30e2c322ba49"]);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

    #[test]
    fn lists_of_words_are_never_confused(
        left in proptest::collection::vec("[a-c ]{0,3}", 0..4),
        right in proptest::collection::vec("[a-c ]{0,3}", 0..4),
    ) {
        let with = |args: &Vec<String>| key_of(&Op::Run(Box::new(RunOp { args: args.clone(), ..run() })));
        proptest::prop_assert_eq!(with(&left) == with(&right), left == right);
    }
}
