//! Caches elsewhere: `--cache-to` and `--cache-from`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::{Need, Ran, Registry, Space, workspace};
use crate::need;
use crate::weather::{Fate, Weather};

macro_rules! need_registry {
    () => {
        need!(Need::Root, Need::Program("busybox"), Need::Program("docker-registry"));
    };
}

/// Two stages; a step whose result shows whether it ran again.
const DOCKERFILE: &str = "FROM BASE AS tools\nRUN mkdir /tools && echo tool > /tools/t\nFROM BASE\nCOPY content /content\n\
     RUN cat /proc/sys/kernel/random/uuid > /stamp\nCOPY --from=tools /tools /tools\nRUN cat /stamp > /copy\n";

/// A registry with a base image, and a context.
struct Scene {
    space: Space,
    registry: Registry,
}

impl Scene {
    fn new() -> Self {
        let space = Space::with_busybox();
        let registry = Registry::start(&space);
        let base = format!("{}/base:1", registry.host());
        space.rbuild(["tag", "busybox", &base]).success();
        space.rbuild(["push", "-q", &base]).success();
        space.write("context/content", "of the context\n");
        let scene = Self { space, registry };
        scene.write(DOCKERFILE);
        scene
    }

    fn write(&self, dockerfile: &str) {
        let base = format!("{}/base:1", self.registry.host());
        self.space.write("context/Dockerfile", dockerfile.replace("BASE", &base));
    }

    /// The cache's reference.
    fn reference(&self) -> String {
        format!("{}/team/cache:main", self.registry.host())
    }

    fn store(&self, name: &str) -> PathBuf {
        self.space.path(&format!("stores/{name}"))
    }

    fn command(&self, store: &str, args: &[&str]) -> Ran {
        let mut command = self.space.command(args);
        Ran::of(command.env("RBUILD_STORE", self.store(store)).output().expect("rbuild starts"))
    }

    /// Builds the context with a store of that name.
    fn build(&self, store: &str, args: &[&str]) -> Ran {
        let fixed = ["build", "--progress=plain", "-t", "result", "context"];
        self.command(store, &[&fixed[..], args].concat())
    }

    #[track_caller]
    fn built(&self, store: &str, args: &[&str]) -> Ran {
        let ran = self.build(store, args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran
    }

    /// What the first run of the step gave.
    #[track_caller]
    fn stamp(&self, store: &str) -> String {
        self.command(store, &["run", "--rm", "result", "cat", "/stamp", "/copy"]).success()
    }
}

/// No step was performed.
#[track_caller]
fn assert_all_found(ran: &Ran, place: &str) {
    assert!(!ran.stderr.contains("MISS"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("WARN"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("CACHED from {place}")), "{}", ran.stderr);
}

/// What becomes of a request, by its number, method and target.
type FateOf = fn(u64, &str, &str) -> Fate;

fn n_warnings(ran: &Ran) -> usize {
    ran.stderr.lines().filter(|line| line.contains("WARN: ")).count()
}

fn is_blob_request(target: &str) -> bool {
    target.contains("/blobs/sha256:")
}

#[test]
fn a_store_that_is_warm_from_a_registry_alone_runs_nothing() {
    need_registry!();
    let scene = Scene::new();
    let to = format!("type=registry,ref={},mode=max", scene.reference());
    let first = scene.built("one", &["--cache-to", &to]);
    assert!(first.stderr.contains("exporting cache to registry"), "{}", first.stderr);
    assert!(first.stderr.contains("5 results added, 0 known"), "{}", first.stderr);
    let second = scene.built("two", &["--cache-from", &scene.reference()]);
    assert_all_found(&second, &format!("registry {}/team/cache", scene.registry.host()));
    assert_eq!(scene.stamp("one"), scene.stamp("two"));
    // What was found is remembered: nobody is asked again.
    let third = scene.built("two", &[]);
    assert_eq!(third.count("CACHED"), second.count("CACHED"), "{}", third.stderr);
    assert!(!third.stderr.contains("MISS") && !third.stderr.contains("from registry"), "{}", third.stderr);
}

#[test]
fn a_store_that_is_warm_from_a_directory_alone_runs_nothing() {
    need_registry!();
    let scene = Scene::new();
    let dir = scene.space.path("cache");
    let to = format!("type=local,dest={},mode=max,compression=zstd", dir.display());
    let from = format!("type=local,src={}", dir.display());
    scene.built("one", &["--cache-to", &to]);
    let second = scene.built("two", &["--cache-from", &from]);
    assert_all_found(&second, "directory ");
    assert_eq!(scene.stamp("one"), scene.stamp("two"));
    // In a build that adds to it, only what is new is added.
    scene.write(&format!("{DOCKERFILE}RUN echo more > /more\n"));
    let third = scene.built("three", &["--cache-from", &from, "--cache-to", &to]);
    assert!(third.stderr.contains("1 results added, 5 known"), "{}", third.stderr);
    assert_eq!(third.stderr.matches("MISS").count(), 1, "{}", third.stderr);
    // A relative path, and the layout can be read by others.
    let ran = scene.space.command(["-q", "--cache-from", "type=local,src=cache", "context"]);
    assert!({ ran }.env("RBUILD_STORE", scene.store("four")).output().expect("rbuild starts").status.success());
    let layout = scene.space.read("cache/oci-layout");
    assert!(layout.contains("imageLayoutVersion"), "{layout}");
}

#[test]
fn only_what_is_in_the_result_is_cached_when_nothing_is_said() {
    need_registry!();
    let scene = Scene::new();
    let first = scene.built("one", &["--cache-to", &scene.reference()]);
    assert!(first.stderr.contains("4 results added"), "{}", first.stderr);
    let second = scene.built("two", &["--cache-from", &scene.reference()]);
    // The other stage gives the same again, and all that follows is found.
    assert_eq!(second.stderr.matches("MISS").count(), 1, "{}", second.stderr);
    assert_eq!(scene.stamp("one"), scene.stamp("two"));
}

#[test]
fn a_build_that_has_everything_sends_nothing_and_asks_for_a_list_alone() {
    need_registry!();
    let scene = Scene::new();
    let weather = Weather::start(&scene.registry.host(), |_, _| Fate::Fair);
    let to = format!("type=registry,ref={}/team/cache:main,mode=max", weather.host);
    scene.built("one", &["--cache-to", &to]);
    let before = weather.seen().len();
    let again = scene.built("one", &["--cache-to", &to]);
    assert!(again.stderr.contains("0 results added, 5 known"), "{}", again.stderr);
    let seen = weather.seen().split_off(before);
    assert_eq!(seen.len(), 2, "the list's manifest, and the list: {seen:#?}");
    // The same for a cold store: all answers are in the list, and no layer is fetched for a result that nobody needs.
    let before = weather.seen().len();
    let from = format!("{}/team/cache:main", weather.host);
    let cold = scene.built("two", &["--cache-from", &from, "-o", "type=cacheonly"]);
    assert_all_found(&cold, "registry ");
    let seen = weather.seen().split_off(before);
    assert_eq!(seen.len(), 3, "besides, whether the name is that of an image: {seen:#?}");
}

#[test]
fn layers_that_are_in_the_registry_are_mounted_there() {
    need_registry!();
    let scene = Scene::new();
    let weather = Weather::start(&scene.registry.host(), |_, _| Fate::Fair);
    let (cache, image) = (format!("{}/team/cache:main", weather.host), format!("{}/team/app:1", weather.host));
    let base = format!("{}/base:1", weather.host);
    scene.space.write("context/Dockerfile", DOCKERFILE.replace("BASE", &base));
    scene.built("one", &["--cache-to", &format!("type=registry,ref={cache},mode=max")]);
    let before = weather.seen().len();
    let fixed = ["build", "--progress=plain", "--push", "-t", &image, "--cache-from", &cache, "context"];
    let pushed = scene.command("two", &fixed);
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    assert_all_found(&pushed, "registry ");
    let seen = weather.seen().split_off(before);
    let big = seen.iter().filter(|seen| seen.method == "GET" && is_blob_request(&seen.target)).count();
    // The base image's config, and the list.
    assert_eq!(big, 2, "{seen:#?}");
    assert_eq!(seen.iter().filter(|seen| seen.target.contains("mount=")).count(), 5, "{seen:#?}");
    scene.command("three", &["pull", "-q", &image]).success();
    let stamp = scene.command("three", &["run", "--rm", &image, "cat", "/stamp", "/copy"]).success();
    scene.built("one", &[]);
    assert_eq!(stamp, scene.stamp("one"));
}

#[test]
fn an_image_may_be_its_own_cache() {
    need_registry!();
    let scene = Scene::new();
    let image = format!("{}/team/app:1", scene.registry.host());
    let push = ["build", "--progress=plain", "--push", "-t", &image, "--cache-to", "type=inline", "context"];
    let first = scene.command("one", &push);
    assert_eq!(first.code, 0, "{}", first.stderr);
    scene.built("one", &[]);
    let second = scene.built("two", &["--cache-from", &image]);
    assert_eq!(second.stderr.matches("MISS").count(), 1, "the other stage: {}", second.stderr);
    assert!(second.stderr.contains("CACHED from registry"), "{}", second.stderr);
    assert_eq!(scene.stamp("one"), scene.stamp("two"));
    // By the build argument of BuildKit; an image that stands on it says nothing of its base's steps.
    let push = ["build", "--push", "-q", "-t", &image, "--build-arg", "BUILDKIT_INLINE_CACHE=1", "context"];
    scene.command("three", &push).success();
    scene.space.write("child/Dockerfile", format!("FROM {image}\nRUN true\n"));
    let child = scene.command("three", &["build", "-q", "-t", "child", "child"]);
    child.success();
    let config = scene.command("three", &["inspect", "child"]).success();
    assert!(!config.contains("rbuild.cache"), "{config}");
    // Multi-platform images tell of all platforms.
    let both = ["--push", "--platform=linux/amd64,linux/arm64", "-t", &image, "--cache-to", "type=inline", "copies"];
    scene.space.write("copies/Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY <<E /arch\n$TARGETARCH\nE\n");
    scene.command("four", &[&["build", "-q"][..], &both].concat()).success();
    let from = ["build", "--progress=plain", "--platform=linux/amd64,linux/arm64", "--cache-from", &image, "copies"];
    let found = scene.command("five", &from);
    assert_eq!(found.code, 0, "{}", found.stderr);
    assert_all_found(&found, "registry ");
}

#[test]
fn two_builds_that_export_at_once_add_up() {
    need_registry!();
    let scene = Scene::new();
    let to = format!("type=registry,ref={},mode=max", scene.reference());
    let dir = format!("type=local,dest={},mode=max", scene.space.path("cache").display());
    let dockerfile = |n: usize| {
        DOCKERFILE.replace("BASE", &format!("{}/base:1", scene.registry.host()))
            + &format!("RUN sleep 0.3 && echo {n} > /n\nRUN cat /n > /m\n")
    };
    let children = (1..=2).map(|n| {
        scene.space.write(&format!("of{n}/content"), "of the context\n");
        scene.space.write(&format!("of{n}/Dockerfile"), dockerfile(n));
        let mut command = scene.space.command(["build", "--progress=plain", "--cache-to", &to, "--cache-to", &dir]);
        command.arg(format!("of{n}")).env("RBUILD_STORE", scene.store(&format!("exporter{n}")));
        command.stderr(std::process::Stdio::piped()).spawn().expect("rbuild starts")
    });
    let children: Vec<_> = children.collect();
    for child in children {
        let ran = Ran::of(child.wait_with_output().expect("rbuild ends"));
        assert_eq!((ran.code, n_warnings(&ran)), (0, 0), "{}", ran.stderr);
    }
    let from_dir = format!("type=local,src={}", scene.space.path("cache").display());
    for (n, from) in [(1, scene.reference()), (2, scene.reference()), (1, from_dir.clone()), (2, from_dir)] {
        let store = format!("importer{n}{}", from.contains("type=local"));
        let args = ["build", "--progress=plain", "--cache-from", &from, &format!("of{n}")];
        let ran = scene.command(&store, &args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        // Whichever stamp was first stays; what stands on the other is found by nobody, or the steps behind run again.
        let misses = ran.stderr.matches("MISS").count();
        assert!(misses <= 4, "{}", ran.stderr);
        assert!(ran.stderr.contains("CACHED from"), "{}", ran.stderr);
    }
}

#[test]
fn a_damaged_layer_is_made_again_with_one_warning() {
    need_registry!();
    let scene = Scene::new();
    let dir = scene.space.path("cache");
    let (to, from) =
        (format!("type=local,dest={},mode=max", dir.display()), format!("type=local,src={}", dir.display()));
    scene.built("one", &["--cache-to", &to]);
    for entry in std::fs::read_dir(dir.join("blobs/sha256")).expect("blobs") {
        damage(&entry.expect("entry").path());
    }
    let second = scene.built("two", &["--cache-from", &from, "--cache-to", &to]);
    assert!(n_warnings(&second) >= 1, "{}", second.stderr);
    assert!(second.stderr.contains("run again: "), "{}", second.stderr);
    assert!(!second.stderr.contains("ERROR"), "{}", second.stderr);
    let [stamp, copy] =
        scene.stamp("two").split_whitespace().map(str::to_owned).collect::<Vec<_>>().try_into().expect("two");
    assert_eq!(stamp, copy);
    // The cache is whole again.
    let third = scene.built("three", &["--cache-from", &from]);
    assert_all_found(&third, "directory ");
    // Entries that are no entries are none.
    for entry in walk(&dir.join("rbuild-cache-v1")) {
        std::fs::write(entry, "{\"version\":1}").expect("write");
    }
    let fourth = scene.built("four", &["--cache-from", &from]);
    assert_eq!(n_warnings(&fourth), 1, "{}", fourth.stderr);
}

fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("a blob");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(path, bytes).expect("write");
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn what_was_counted_on_and_has_gone_is_made_again_by_later_builds() {
    need_registry!();
    let scene = Scene::new();
    let dir = scene.space.path("cache");
    let from = format!("type=local,src={}", dir.display());
    scene.built("one", &["--cache-to", &format!("type=local,dest={},mode=max", dir.display())]);
    scene.built("two", &["--cache-from", &from, "-o", "type=cacheonly"]);
    std::fs::remove_dir_all(&dir).expect("remove");
    let later = scene.built("two", &[]);
    assert!(later.stderr.contains("run again: "), "{}", later.stderr);
    assert!(!later.stderr.contains("ERROR"), "{}", later.stderr);
    assert_eq!(scene.stamp("two").lines().count(), 2);
    let last = scene.built("two", &[]);
    assert_eq!((n_warnings(&last), last.stderr.matches("MISS").count()), (0, 0), "{}", last.stderr);
}

#[test]
fn a_place_that_fails_is_told_of_once_and_left_alone() {
    need_registry!();
    let scene = Scene::new();
    // Nobody listens.
    let gone = "127.0.0.1:1/team/cache";
    // A directory that cannot be made, even by root.
    let dir = "type=local,dest=/proc/cache,mode=max";
    let to = format!("type=registry,ref={gone},mode=max");
    let ran = scene.built("one", &["--cache-from", gone, "--cache-to", &to, "--cache-to", dir]);
    assert_eq!(n_warnings(&ran), 3, "{}", ran.stderr);
    for text in
        ["the cache in registry 127.0.0.1:1/team/cache cannot be read", "cannot be written", "directory /proc/cache"]
    {
        assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
    }
    // Who says so hears of it with the exit code.
    let strict = scene.build("one", &["--cache-to", &format!("{to},ignore-error=false"), "--no-cache"]);
    assert_eq!(strict.code, 3, "{}", strict.stderr);
    assert!(
        strict.stderr.contains("failed to export the cache to registry 127.0.0.1:1/team/cache"),
        "{}",
        strict.stderr
    );
    let quiet = scene.build("one", &["--cache-to", &format!("{to},ignore-error=true"), "--no-cache"]);
    assert_eq!((quiet.code, n_warnings(&quiet)), (0, 1), "{}", quiet.stderr);
}

#[test]
fn a_registry_in_any_weather_changes_nothing_but_the_time() {
    need_registry!();
    let scene = Scene::new();
    let reference = |host: &str| format!("{host}/team/cache:main");
    scene.built("one", &["--cache-to", &format!("type=registry,ref={},mode=max", scene.reference())]);
    let kinds: [(&str, FateOf); 6] = [
        // It may be read.
        (
            "read-only",
            |_, method, _| if matches!(method, "PUT" | "POST" | "PATCH") { Fate::Status(403) } else { Fate::Fair },
        ),
        // It dies in the middle.
        ("dies", |number, _, _| if number > 6 { Fate::Lost } else { Fate::Fair }),
        // All that it says is cut off.
        ("garbage", |_, method, _| if method == "GET" { Fate::Truncated(50) } else { Fate::Fair }),
        // Nothing comes.
        ("hangs", |_, _, _| Fate::Stalled(Duration::from_secs(60))),
        // Something comes, but not soon enough.
        ("trickles", |_, method, target| {
            if method == "GET" && is_blob_request(target) {
                Fate::Trickling(Duration::from_millis(500))
            } else {
                Fate::Fair
            }
        }),
        // Layers cannot be fetched.
        (
            "no layers",
            |_, method, target| {
                if method == "GET" && is_blob_request(target) { Fate::Status(500) } else { Fate::Fair }
            },
        ),
    ];
    for (kind, fate) in kinds {
        let weather =
            Weather::start(&scene.registry.host(), move |number, seen| fate(number, &seen.method, &seen.target));
        let to = format!("type=registry,ref={},mode=max", reference(&weather.host));
        scene.write(&format!("{DOCKERFILE}RUN echo '{kind}' > /kind\n"));
        let began = Instant::now();
        let ran = scene.build(kind, &["--cache-from", &reference(&weather.host), "--cache-to", &to]);
        assert_eq!(ran.code, 0, "{kind}: {}", ran.stderr);
        assert!(!ran.stderr.contains("ERROR"), "{kind}: {}", ran.stderr);
        let n = n_warnings(&ran);
        assert!((1..=4).contains(&n), "{kind}: {n} warnings: {}", ran.stderr);
        assert!(began.elapsed() < Duration::from_secs(50), "{kind}: {:?}", began.elapsed());
        let stamps = scene.stamp(kind);
        let stamps: Vec<&str> = stamps.split_whitespace().collect();
        assert_eq!(stamps[0], stamps[1], "{kind}");
    }
}

#[test]
fn results_are_sent_while_later_steps_run() {
    need_registry!();
    let scene = Scene::new();
    let weather = Weather::start(&scene.registry.host(), |_, _| Fate::Fair);
    let to = format!("type=registry,ref={}/team/cache:main,mode=max", weather.host);
    scene.write("FROM BASE\nRUN head -c 300000 /dev/urandom > /one\nRUN sleep 4 && echo two > /two\n");
    let mut command = scene.space.command(["build", "--progress=plain", "--cache-to", &to, "context"]);
    command.env("RBUILD_STORE", scene.store("one")).stderr(std::process::Stdio::null());
    let mut child = command.spawn().expect("rbuild starts");
    let is_entry = |seen: &crate::weather::Seen| seen.method == "PUT" && seen.target.contains("/manifests/rbuild-v1-");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !weather.seen().iter().any(is_entry) {
        assert!(Instant::now() < deadline, "{:#?}", weather.seen());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(matches!(child.try_wait(), Ok(None)), "the second step still runs");
    assert!(child.wait().expect("rbuild ends").success());
}

#[test]
fn other_types_are_not_there_yet() {
    let space = Space::new();
    space.write("Dockerfile", "FROM scratch\n");
    for (args, text) in [
        (["--cache-to", "type=gha,mode=max"], "caches of type gha are not supported yet"),
        (["--cache-from", "type=s3,bucket=b"], "caches of type s3 are not supported yet"),
        (["--cache-to", "type=registry,ref=a,tag=b"], "no attribute `tag`"),
    ] {
        let ran = space.rbuild([&args[..], &["."]].concat());
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(text), "{}", ran.stderr);
    }
}

#[test]
fn no_step_of_a_real_application_runs_on_a_second_machine() {
    need!(Need::Root, Need::Bases, Need::Program("docker-registry"));
    let space = Space::shared();
    let registry = Registry::start(&space);
    let host = registry.host();
    let cases = ["flask", "flask-two-stage", "django", "ml-api", "node", "go", "go-distroless", "thirty-steps"];
    for folder in cases {
        let source = workspace().join("testdata/real").join(folder);
        let case: toml::Table =
            std::fs::read_to_string(source.join("case.toml")).expect("a case").parse().expect("TOML");
        // The second machine gets the base images from a mirror.
        for base in case["bases"].as_array().expect("bases").iter().map(|base| base.as_str().expect("a name")) {
            let mirrored = format!("{host}/library/{base}");
            space.rbuild(["tag", base, &mirrored]).success();
            space.rbuild(["push", "-q", &mirrored]).success();
            space.rbuild(["rmi", &mirrored]).success();
        }
        let args = case.get("args").and_then(toml::Value::as_array).cloned().unwrap_or_default();
        let args: Vec<&str> = args.iter().map(|arg| arg.as_str().expect("a flag")).collect();
        let cache = format!("{host}/cache/{folder}");
        let (image, context) = (format!("e2e-cached-{folder}:test"), source.to_str().expect("UTF-8"));
        let fixed = ["build", "--progress=plain", "-t", &image];
        let to = format!("type=registry,ref={cache},mode=max");
        space.rbuild([&fixed[..], &args, &["--cache-to", &to, context]].concat()).success();
        let layers = space.inspect(&image)["RootFS"]["Layers"].clone();
        space.rbuild(["rmi", &image]).success();

        let second = |args: &[&str]| {
            let mut command = space.command(args);
            command
                .env("RBUILD_STORE", space.path(folder))
                .env("KANIKO_REGISTRY_MAP", format!("index.docker.io={host}"));
            Ran::of(command.output().expect("rbuild starts"))
        };
        let ran = second(&[&fixed[..], &args, &["--cache-from", &cache, context]].concat());
        assert_eq!(ran.code, 0, "{folder}: {}", ran.stderr);
        assert_all_found(&ran, &format!("registry {cache}"));
        let inspected: serde_json::Value = serde_json::from_str(&second(&["inspect", &image]).success()).expect("JSON");
        assert_eq!(inspected[0]["RootFS"]["Layers"], layers, "{folder}");
    }
}
