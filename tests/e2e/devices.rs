//! `RUN --device`: devices that CDI files describe, in every tier, allowed and refused.

use crate::harness::{Need, Ran, Space, note};
use crate::need;

/// A device that every machine has, under another name, with a library and a variable.
const DESCRIPTION: &str = "cdiVersion: 0.6.0\nkind: vendor.test/zeros\ncontainerEdits: { env: [COMMON=all] }\ndevices:\n\
    - name: one\n  containerEdits:\n    env: [GIVEN=one]\n    deviceNodes: [{ path: /dev/sub/given, hostPath: /dev/zero }]\n    \
    mounts: [{ hostPath: LIBRARY, containerPath: /usr/lib/given, options: [ro, nosuid, nodev, bind] }]\n\
    - name: free\n  annotations: { org.mobyproject.buildkit.device.autoallow: true }\n  containerEdits: { env: [GIVEN=free] }\n";

/// A step that uses it, and one that must not see anything of it.
const STEPS: &str = "[ \"$COMMON-$GIVEN\" = all-one ] && [ $(head -c 3 /dev/sub/given | wc -c) = 3 ] && cat /usr/lib/given/so > /copy\n\
    RUN ! [ -e /dev/sub ] && ! [ -e /usr/lib/given ] && [ -z \"$GIVEN$COMMON\" ] && cat /copy\n";

/// A space with the description, and busybox as a context that every tier can read.
fn space() -> Space {
    let space = Space::with_busybox();
    space.write("empty/Dockerfile", "FROM busybox\n");
    space.rbuild(["-q", "-o", "type=oci,tar=false,dest=bb", "empty"]).success();
    space.write("lib/so", "library");
    let library = space.path("lib").display().to_string();
    space.write("cdi/vendor.yaml", DESCRIPTION.replace("LIBRARY", &library));
    space
}

fn build(space: &Space, isolation: &str, options: &str, args: &[&str]) -> Ran {
    let text = format!("# syntax=docker/dockerfile:labs\nFROM busybox\nRUN {options} {STEPS}");
    space.write("context/Dockerfile", text);
    let store = space.path(&format!("store-{}", isolation.replace(':', "-"))).display().to_string();
    let (isolation, cdi) = (format!("--isolation={isolation}"), space.path("cdi").display().to_string());
    let layout = format!("--build-context=busybox=oci-layout://{}", space.path("bb").display());
    let fixed =
        ["--store", &store, &isolation, "--cdi-spec-dir", &cdi, "build", "--no-cache", "--progress=plain", &layout];
    space.rbuild(fixed.iter().chain(args).chain(&["context"]))
}

#[test]
fn a_device_is_given_in_every_tier_and_leaves_nothing() {
    need!(Need::Root, Need::Program("busybox"));
    let space = space();
    for isolation in ["root", "userns", "userns-single", "chroot", "oci:crun", "oci:runc"] {
        if let Some(program) = isolation.strip_prefix("oci:")
            && crate::harness::find_program(program).is_none()
        {
            note(&format!("skipped devices with {isolation}: it is not installed"));
            continue;
        }
        // A copy in a directory can be written to.
        let read_only = if isolation == "chroot" { "" } else { "! touch /usr/lib/given/so 2> /dev/null && " };
        let options = format!("--device=vendor.test/zeros=one,required {read_only}");
        let ran = build(&space, isolation, &options, &["--allow=device=vendor.test/zeros=one"]);
        if ran.stderr.contains("may not make user namespaces") {
            note(&format!("skipped devices with {isolation}: no user namespaces"));
            continue;
        }
        assert_eq!(ran.code, 0, "{isolation}: {}", ran.stderr);
        assert!(ran.stderr.contains("library"), "{isolation}: {}", ran.stderr);
    }
}

#[test]
fn a_device_that_is_not_allowed_is_refused_with_the_flag_to_give() {
    need!(Need::Root, Need::Program("busybox"));
    let space = space();
    let refused = build(&space, "root", "--device=vendor.test/zeros=*", &[]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    // The other one needs nobody's leave.
    for part in [
        "device vendor.test/zeros=one is requested by the build but not allowed",
        "--allow device=vendor.test/zeros=one",
        "Dockerfile:3",
    ] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    let wrong = build(&space, "root", "--device=vendor.test/zeros=one", &["--allow=device=x,as=y"]);
    assert_eq!(wrong.code, 2, "{}", wrong.stderr);
}

#[test]
fn what_is_not_there_is_told() {
    need!(Need::Root, Need::Program("busybox"));
    let space = space();
    space.write("cdi/broken.json", "{\"cdiVersion\": \"0.6.0\", \"kinds\": 1}");
    let required = build(&space, "root", "--device=vendor.test/zeros=two,required", &["--allow=device"]);
    assert_eq!(required.code, 1, "{}", required.stderr);
    for part in ["required device \"vendor.test/zeros=two\" is not registered", "broken.json is not used: ", "kinds"] {
        assert!(required.stderr.contains(part), "{part}: {}", required.stderr);
    }
    let optional = build(&space, "root", "--device=vendor.test/none=x", &["--allow=device"]);
    assert!(
        optional.stderr.contains("optional device \"vendor.test/none=x\" is not registered"),
        "{}",
        optional.stderr
    );

    let cdi = space.path("cdi");
    let doctor = space.command(["doctor"]).env("RBUILD_CDI_SPEC_DIRS", &cdi).output().expect("rbuild starts");
    let doctor = Ran::of(doctor).stdout;
    let line = doctor.lines().find(|line| line.contains("CDI devices")).unwrap_or_default().to_owned();
    assert!(
        line.starts_with("WARN") && line.contains("vendor.test/zeros=one") && line.contains("broken.json"),
        "{line}"
    );
}

/// A hook of a device writes into the root: with our own sandbox, and when a runtime runs it.
#[test]
fn hooks_of_devices_are_run() {
    need!(Need::Root, Need::Program("busybox"));
    let space = space();
    space.write(
        "hook.sh",
        "bundle=$(tr -d '\\n' | sed 's/.*\"bundle\": *\"\\([^\"]*\\)\".*/\\1/')\n\
         root=$(tr -d '\\n' < $bundle/config.json | sed 's/.*\"root\": *{[^}]*\"path\": *\"\\([^\"]*\\)\".*/\\1/')\n\
         cat $root/usr/lib/given/so > $root/hooked\n",
    );
    let hook = format!(
        "    hooks: [{{ hookName: createContainer, path: /bin/sh, args: [sh, -e, {}], env: [PATH=/bin:/usr/bin] }}]\n",
        space.path("hook.sh").display()
    );
    let description = space.read("cdi/vendor.yaml").replace("- name: free", &format!("{hook}- name: free"));
    space.write("cdi/vendor.yaml", description);
    for isolation in ["root", "oci:crun", "oci:runc", "chroot"] {
        if let Some(program) = isolation.strip_prefix("oci:")
            && crate::harness::find_program(program).is_none()
        {
            continue;
        }
        let ran = build(
            &space,
            isolation,
            "--device=vendor.test/zeros=one [ \"$(cat /hooked)\" = library ] &&",
            &["--allow=device"],
        );
        match isolation {
            "chroot" => assert!(ran.stderr.contains("is not to be had with --isolation=chroot"), "{}", ran.stderr),
            _ => assert_eq!(ran.code, 0, "{isolation}: {}", ran.stderr),
        }
    }
}
