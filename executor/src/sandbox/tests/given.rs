//! Devices that a command is given: they are there as described, and no others are.

use rustix::fs::FileType;

use super::*;
use crate::sandbox::hooks::{Hook, HookMoment};
use crate::sandbox::nodes::{GivenDevices, GivenNode};
use crate::sys::bpf::DeviceAccess;
use crate::sys::mount::MountAttributes;

fn node(path: &str, number: (u32, u32), access: DeviceAccess) -> GivenNode {
    GivenNode {
        path: path.to_owned(),
        host_path: "/dev/there/is/none".into(),
        kind: FileType::CharacterDevice,
        number,
        mode: Some(0o666),
        uid: None,
        gid: None,
        access,
    }
}

fn given(nodes: Vec<GivenNode>) -> GivenDevices {
    GivenDevices { nodes, ..GivenDevices::default() }
}

#[test]
fn privileged_given_devices_can_be_used_as_described_and_leave_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: needs /dev/fuse");
        return;
    }
    let filtered = fixture.sandbox.host.guard().policy(SecurityMode::Sandbox) == guard::DevicePolicy::Filtered;
    // FUSE under other names; it is not among the usual nodes.
    let fuse = (10, 229);
    let (reading, none) = (DeviceAccess::READ, DeviceAccess::NONE);
    let nodes = vec![
        node("/dev/x/fuse", fuse, DeviceAccess::ALL),
        node("/a/fuse", fuse, reading),
        node("/dev/loop", (7, 0), none),
    ];
    let script = "for f in /dev/x/fuse /a/fuse; do (: < $f) 2> /dev/null && echo $f reads; (: >> $f) 2> /dev/null && echo $f writes; done; \
                  mknod /made c 10 229; (: < /made) 2> /dev/null && echo made reads; rm /made; \
                  mknod /disk b 7 0; (: < /disk) 2> /dev/null && echo disk reads; rm /disk; stat -c '%U %t:%T' /dev/loop; :";
    let with = |nodes| SandboxSpec { given: given(nodes), ..fixture.shell(script) };
    // A filter knows devices, not nodes: what is allowed for one of them is allowed.
    let first = fixture.run(&with(nodes.clone())).unwrap();
    let made = if filtered { "made reads\n" } else { "" };
    let want = format!("/dev/x/fuse reads\n/dev/x/fuse writes\n/a/fuse reads\n/a/fuse writes\n{made}root 7:0\n");
    assert_eq!((first.output.as_str(), &first.upper[..]), (want.as_str(), &[][..]));
    if !filtered {
        eprintln!("skipped: no filter on control groups here");
        return;
    }
    let second = fixture.run(&with(nodes[1..].to_vec())).unwrap().output;
    assert!(second.contains("/a/fuse reads\nmade reads\n"), "{second}");
    assert!(!second.contains("disk reads"), "{second}");
    // The next command has nothing of it.
    let third = fixture.sh("mknod /made c 10 229; (: < /made) 2> /dev/null && echo reads; rm /made").unwrap();
    assert_eq!(third.output, "");
    let groups = fs::read_dir(fixture.sandbox.host.hierarchy.unified_directory().unwrap()).unwrap();
    let ours = format!("rbuild-devices-{}-", std::process::id());
    let left = groups.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(&ours)).count();
    assert!(left < 20, "{left} control groups are left");
}

#[test]
fn privileged_given_devices_work_without_control_groups() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.sandbox.host.guard.set(guard::DeviceGuard::Mounts).ok();
    if fixture.sandbox.host.guard().policy(SecurityMode::Sandbox) != guard::DevicePolicy::NoneOnMounts {
        // The fixture has tried a command already.
        let scratch = tempfile::tempdir_in(fixture.directory.path()).unwrap();
        let sandbox = Sandbox::new(scratch, Arc::new(HostNetwork), &Confinement::of_this_process()).unwrap();
        sandbox.host.guard.set(guard::DeviceGuard::Mounts).unwrap();
        return given_devices_work(&Fixture { sandbox, ..fixture });
    }
    given_devices_work(&fixture);
}

fn given_devices_work(fixture: &Fixture) {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: needs /dev/fuse");
        return;
    }
    let nodes = vec![node("/dev/fuse0", (10, 229), DeviceAccess::ALL)];
    let script =
        "(: < /dev/fuse0) && echo reads; cp -a /dev/fuse0 /copy; (: < /copy) 2> /dev/null && echo copy; rm /copy";
    let spec = SandboxSpec { given: given(nodes), ..fixture.shell(script) };
    assert_eq!(fixture.run(&spec).unwrap().output, "reads\n");
}

#[test]
fn privileged_given_nodes_are_the_commands_users_and_groups_are_joined() {
    let Some(fixture) = Fixture::new() else { return };
    let mut nodes = vec![node("/dev/mine", (1, 5), DeviceAccess::ALL), node("/dev/theirs", (1, 5), DeviceAccess::ALL)];
    (nodes[1].uid, nodes[1].gid, nodes[1].mode) = (Some(7), Some(8), Some(0o640));
    let mut spec = fixture.shell("stat -c '%u:%g %a' /dev/mine /dev/theirs; grep Groups /proc/self/status");
    spec.user = "5:6".to_owned();
    spec.given = GivenDevices { groups: vec![44, 9, 44], ..given(nodes) };
    assert_eq!(fixture.run(&spec).unwrap().output, "5:6 666\n7:8 640\nGroups:\t6 9 44 \n");
}

#[test]
fn privileged_paths_of_the_machine_are_mounted_as_they_are() {
    let Some(fixture) = Fixture::new() else { return };
    let host = fixture.tree(&[("so", "library"), ("sub/file", "x")]);
    let bind = |path: PathBuf| MountSource::Host { path, attributes: MountAttributes::NO_EXEC };
    let mut spec =
        fixture.shell("cat /l/so /f /l/sub/file; echo new > /w/new; (echo x > /l/so) 2> /dev/null || echo kept");
    spec.mounts = vec![
        mount("/l", bind(host.clone()), true),
        mount("/f", bind(host.join("so")), true),
        mount("/w", bind(host.join("sub")), false),
    ];
    let outcome = fixture.run(&spec).unwrap();
    assert_eq!((outcome.output.as_str(), &outcome.upper[..]), ("librarylibraryxkept\n", &[][..]));
    assert_eq!(fs::read_to_string(host.join("sub/new")).unwrap(), "new\n");
}

#[test]
fn privileged_hooks_see_the_root_with_its_mounts() {
    let Some(fixture) = Fixture::new() else { return };
    let library = fixture.tree(&[("so", "library")]);
    let script = "root=$(sed -n 's/.*\"path\":\"\\([^\"]*\\)\".*/\\1/p' config.json); cat $root/l/so > $root/etc/seen; \
                  test -c $root/dev/given && echo there >> $root/etc/seen; grep -c creating >> $root/etc/seen";
    let hook = |moment, script: &str| Hook {
        moment,
        path: "/bin/sh".into(),
        args: ["sh", "-ec", script].map(str::to_owned).to_vec(),
        env: vec![("PATH".to_owned(), PATH.to_owned())],
        timeout: None,
    };
    let mut spec = fixture.shell("cat /etc/seen; stat -c %a /etc/seen");
    spec.mounts = vec![mount("/l", MountSource::Host { path: library, attributes: MountAttributes::NONE }, true)];
    spec.given = given(vec![node("/dev/given", (1, 3), DeviceAccess::ALL)]);
    spec.given.hooks = vec![hook(HookMoment::CreateContainer, script)];
    let outcome = fixture.run(&spec).unwrap();
    assert_eq!(outcome.output, "librarythere\n1\n644\n");

    let failing = |moment| {
        let mut spec = fixture.shell("true");
        spec.given.hooks = vec![hook(moment, "echo no luck; exit 1")];
        fixture.run(&spec).err().unwrap().to_string()
    };
    assert!(failing(HookMoment::Prestart).ends_with("failed: exit status: 1: no luck"));
    assert!(failing(HookMoment::Poststop).contains("which only an OCI runtime does"));
}
