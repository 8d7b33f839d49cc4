//! The document for a command, field by field.

use solver::NetworkMode;

use super::*;
use crate::sandbox::nodes::GivenDevices;
use crate::sandbox::spec::Resources;
use crate::sandbox::step::DEFAULT_CAPABILITIES;

fn command(security: SecurityMode) -> SandboxSpec {
    SandboxSpec {
        handlers: None,
        lower: Vec::new(),
        upper: "/upper".into(),
        work: "/work".into(),
        args: ["/bin/sh", "-c", "id"].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: "/srv".to_owned(),
        user: "app".to_owned(),
        hostname: "buildkitsandbox".to_owned(),
        extra_hosts: Vec::new(),
        network: NetworkMode::Default,
        security,
        shm_size_bytes: None,
        ulimits: vec![Ulimit { name: "core".to_owned(), soft: 1, hard: 2 }],
        resources: Resources::default(),
        mounts: Vec::new(),
        given: GivenDevices::default(),
        stdio: Stdio::Piped,
    }
}

fn config(spec: &SandboxSpec, capabilities: u64, sys: Sys) -> serde_json::Value {
    let account = RunUser { uid: 500, gid: 501, supplementary: vec![501, 600], home: None };
    let limits = [(libc::RLIMIT_CORE, Limit { rlim_cur: 1, rlim_max: 2 })];
    let facts = Facts {
        spec,
        root: Path::new("/scratch/root"),
        account: &account,
        groups: Some(&account.supplementary),
        environment: vec!["PATH=/bin".to_owned(), "HOME=/srv".to_owned()],
        limits: &limits,
        open_files: Limit { rlim_cur: 1024, rlim_max: 4096 },
        window: None,
        capabilities,
        sys,
        unified_cgroups: true,
        late: vec![Mount::tree(Path::new("/scratch/bundle/mount-0"), "/sys/fs/bpf", StatVfsMountFlags::RDONLY)],
    };
    serde_json::to_value(Config::new(facts)).unwrap()
}

fn target(mount: &serde_json::Value) -> &str {
    mount["destination"].as_str().unwrap()
}

#[test]
fn a_confined_command_is_written_as_the_specification_has_it() {
    let mut config = config(&command(SecurityMode::Sandbox), DEFAULT_CAPABILITIES, Sys::New);
    // A document of its own, tested where it is made.
    config["linux"].as_object_mut().unwrap().remove("seccomp");
    let text = serde_json::to_string_pretty(&config).unwrap() + "\n";
    assert_eq!(text, include_str!("confined.golden"));
}

#[test]
fn an_unconfined_command_has_everything_and_sees_everything() {
    let config = config(&command(SecurityMode::Insecure), (1 << 41) - 1, Sys::New);
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        assert_eq!(config["process"]["capabilities"][set].as_array().unwrap().len(), 41, "{set}");
    }
    assert!(config["linux"].get("seccomp").is_none());
    assert_eq!(config["linux"]["maskedPaths"].as_array().unwrap().len(), 0);
    assert_eq!(config["linux"]["readonlyPaths"].as_array().unwrap().len(), 0);
    let kernel = ["/proc", "/sys", "/sys/fs/cgroup"];
    for mount in config["mounts"].as_array().unwrap().iter().filter(|mount| kernel.contains(&target(mount))) {
        assert!(mount["options"].as_array().unwrap().iter().all(|option| option != "ro"), "{mount}");
    }
}

#[test]
fn a_tree_for_sys_leaves_the_runtime_nothing_to_mount_there() {
    let config = config(&command(SecurityMode::Sandbox), DEFAULT_CAPABILITIES, Sys::Late);
    let targets: Vec<_> = config["mounts"].as_array().unwrap().iter().map(target).collect();
    assert_eq!(targets, ["/proc", "/dev/mqueue", "/sys/fs/bpf"]);
}

#[test]
fn of_two_limits_of_a_kind_the_last_counts() {
    let ulimit = |name: &str| Ulimit { name: name.to_owned(), soft: 0, hard: 0 };
    let value = |number| (libc::RLIMIT_NOFILE, Limit { rlim_cur: number, rlim_max: number });
    let usual = Limit { rlim_cur: 9, rlim_max: 9 };
    let limits = rlimits(&[ulimit("nofile"), ulimit("nofile")], &[value(1), value(2)], usual);
    assert_eq!(limits, [Rlimit { kind: "RLIMIT_NOFILE".to_owned(), soft: 2, hard: 2 }]);
}
