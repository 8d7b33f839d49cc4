//! Copies onto base images whose layers stay in the registry: layers with lists (eStargz) tell what a copy has to know.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Need, Registry, Space, succeed};
use crate::need;

/// Bytes of files in a store's directory of that name, `0` if there is none.
fn bytes_in(store: &Path, bucket: &str) -> u64 {
    let script = "find \"$1\" -type f -printf '%s\\n' 2> /dev/null | awk '{ n += $1 } END { print n + 0 }'";
    let count = succeed(Command::new("sh").args(["-c", script, "sh"]).arg(store.join(bucket)));
    count.trim().parse().expect("a number")
}

#[test]
fn a_copy_moves_no_byte_of_its_base() {
    need!(Need::Root, Need::Program("busybox"), Need::Program("docker-registry"), Need::Program("skopeo"));
    let space = Space::with_busybox();
    let registry = Registry::start(&space);
    let host = registry.host();
    // A base with users, a link on the way, modes and times of its own, and some bytes.
    space.write("base/big", "0123456789abcdef".repeat(200_000));
    let base = "FROM busybox\nRUN mkdir -p /etc /srv/real && echo app:x:1234:5678::/:/bin/sh >> /etc/passwd && \
                chown 7:8 /srv/real && chmod 2750 /srv/real && ln -s real /srv/app && touch -d '2001-02-03 04:05:06' /srv/real\n\
                COPY big /big\nRUN rm /bin/wget && mkdir /gone && rm -r /gone\n\
                RUN mkdir -p /usr && ln -s ../srv/app /usr/via && ln -s /usr/via/.. /odd && mkdir -m 700 -p /data/in && ln -s ../srv /data/out\n";
    space.write("base/Dockerfile", base);
    let pushed = format!("type=image,name={host}/base:1,push=true,compression=estargz");
    space.rbuild(["-q", "-o", &pushed, "base"]).success();

    space.write("app/file", "data\n");
    space.write("app/tree/in/deep/file", "more\n");
    let copies = "COPY --chown=app file /srv/app/\nWORKDIR /srv/app\nCOPY file /bin/wget\nCOPY file /usr/via/x/\n\
                  COPY file /odd/y\nCOPY tree /data/\nCOPY file /data/out/real/z\nCOPY tree /\nWORKDIR /usr/via/in\n";
    space.write("app/Dockerfile", format!("FROM {host}/base:1\n{copies}CMD [\"x\"]\n"));
    let build = |store: &str, name: &str| {
        let name = format!("{host}/{name}:1");
        let mut command = Command::new(crate::harness::rbuild_bin());
        command
            .current_dir(space.path(""))
            .arg("--store")
            .arg(space.path(store))
            .env("SOURCE_DATE_EPOCH", "1000000000");
        let output = format!("type=registry,name={name},rewrite-timestamp=true");
        succeed(command.args(["--progress=plain", "-o", &output, "app"]));
        let raw = succeed(
            Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false"]).arg(format!("docker://{name}")),
        );
        serde_json::from_str::<Value>(&raw).expect("a manifest")
    };
    let without = build("cold", "without");
    let (blobs, trees) = (bytes_in(&space.path("cold"), "blobs-v1"), bytes_in(&space.path("cold"), "trees-v1"));
    assert!(blobs < 64 << 10 && trees < 64 << 10, "{blobs} {trees}");

    // The same with all layers here.
    let mut pull = Command::new(crate::harness::rbuild_bin());
    pull.current_dir(space.path("")).arg("--store").arg(space.path("warm"));
    space.write("look/Dockerfile", format!("FROM {host}/base:1\nRUN ls /\n"));
    succeed(pull.args(["-q", "-o", "type=cacheonly", "look"]));
    assert!(bytes_in(&space.path("warm"), "trees-v1") > 3 << 20);
    let with = build("warm", "with");
    let layers = |manifest: &Value| -> Vec<String> {
        let layers = manifest["layers"].as_array().expect("layers").iter();
        layers.map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
    };
    assert_eq!(layers(&without), layers(&with));
    assert_eq!(without["config"]["digest"], with["config"]["digest"]);

    // What was pushed is whole.
    let image = format!("{host}/without:1");
    let mut run = Command::new(crate::harness::rbuild_bin());
    run.current_dir(space.path("")).arg("--store").arg(space.path("other")).args(["pull", "-q", &image]);
    succeed(&mut run);
    let mut run = Command::new(crate::harness::rbuild_bin());
    run.current_dir(space.path("")).arg("--store").arg(space.path("other"));
    let script =
        "stat -c '%a %u:%g' /srv/real /srv/real/file && cat /bin/wget && wc -c < /big && ls /gone 2>&1 | wc -l";
    let seen = succeed(run.args(["run", "--rm", &image, "sh", "-c", script]));
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["2750 7:8", "644 1234:5678", "data", "3200000", "1"], "{seen}");
}
