use std::process::{Command, Stdio};

use super::*;

/// QEMU's static programs, where Debian has them.
const QEMU: &str = "/usr/bin";

const ARCHITECTURES: [&str; 9] = ["amd64", "386", "arm64", "arm", "riscv64", "ppc64le", "s390x", "mips64le", "loong64"];

#[test]
fn the_smallest_programs_are_understood_by_emulators() {
    let directory = tempfile::tempdir().unwrap();
    for machine in ARCHITECTURES.map(|architecture| Machine::of_architecture(architecture).unwrap()) {
        let emulator = format!("{QEMU}/qemu-{}-static", machine.qemu);
        if !Path::new(&emulator).exists() {
            continue;
        }
        let program = directory.path().join(machine.architecture);
        std::fs::write(&program, machine.smallest_program()).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let status = Command::new(emulator).arg(&program).stdin(Stdio::null()).status().unwrap();
        assert!(status.success(), "{}: {status}", machine.architecture);
    }
}

#[test]
fn this_machine_runs_its_own_programs() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    assert!(probe::runs_here(&store, Machine::of_this_process().unwrap()).unwrap());
    let emulation = Emulation::new(store, Vec::new());
    assert!(matches!(emulation.support(&Platform::host()), Support::Native));
    assert!(matches!(emulation.support(&Platform::new("windows", "arm64", None)), Support::Native));
    // No kernel has a handler for this one unless it was told; then it runs.
    let platform = Platform::new("linux", "s390x", None);
    assert!(matches!(emulation.support(&platform), Support::None(Lacking::Program { .. }) | Support::Registered));
}

#[test]
fn an_emulator_becomes_a_handler_for_us_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    if !rustix::process::geteuid().is_root() || !Path::new(QEMU).join("qemu-s390x-static").exists() {
        return;
    }
    let machine = Machine::of_architecture("s390x").unwrap();
    let emulation = Emulation::new(store.clone(), vec![QEMU.into()]);
    match emulation.of_machine(machine) {
        Support::Emulator(emulator) => assert_eq!(emulator.path, Path::new(QEMU).join("qemu-s390x-static")),
        // Older kernels, and machines that have a handler.
        Support::None(Lacking::NotAllowed { .. }) | Support::Registered => return,
        other => panic!("{other:?}"),
    }
    assert!(!probe::runs_here(&store, machine).unwrap(), "the machine has it now");
}
