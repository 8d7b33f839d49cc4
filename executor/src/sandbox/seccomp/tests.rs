//! The compiled filters against the tables, by an interpreter of classic BPF.

use super::*;

/// `struct seccomp_data` as far as our filters look.
struct Request {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

/// Runs `program`; panics on anything the kernel's checker would refuse.
fn interpret(program: &[FilterInstruction], request: &Request) -> u32 {
    let mut data = Vec::new();
    data.extend(request.number.to_ne_bytes());
    data.extend(request.architecture.to_ne_bytes());
    data.extend(0_u64.to_ne_bytes());
    data.extend(request.arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let step = program[at];
        at += 1;
        let choose = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
        match step.code {
            0x20 => {
                let offset = step.k as usize;
                accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            0x05 => at += step.k as usize,
            0x15 => at += choose(accumulator == step.k),
            0x35 => at += choose(accumulator >= step.k),
            0x45 => at += choose(accumulator & step.k != 0),
            0x06 => return step.k,
            code => panic!("unknown instruction {code:#x}"),
        }
    }
}

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const fn errno(number: i32) -> u32 {
    0x0005_0000 | number as u32
}

fn filter(architecture: &str) -> Vec<FilterInstruction> {
    bpf::compile(&machines_of(architecture).unwrap())
}

fn verdict(program: &[FilterInstruction], architecture: u32, number: u32, first: u64) -> u32 {
    interpret(program, &Request { architecture, number, arguments: [first, 0, 0, 0, 0, 0] })
}

#[test]
fn every_call_of_every_machine_gets_its_verdict() {
    type Number = fn(&Call) -> i32;
    let machines: [(&str, u32, Number); 4] = [
        ("x86_64", AUDIT_X86_64, |call| call.x86_64),
        ("x86_64", AUDIT_I386, |call| call.i386),
        ("aarch64", AUDIT_AARCH64, |call| call.aarch64),
        ("aarch64", AUDIT_ARM, |call| call.arm),
    ];
    for (host, audit, number) in machines {
        let program = filter(host);
        let known: Vec<&Call> = CALLS.iter().filter(|call| number(call) != NONE).collect();
        assert!(known.len() > 300);
        for call in &known {
            let want = match rule_for(call.name) {
                Rule::Refuse(number) => errno(number),
                // With a first argument of 0 all conditions hold.
                _ => ALLOW,
            };
            assert_eq!(verdict(&program, audit, number(call) as u32, 0), want, "{} on {audit:#x}", call.name);
        }
        let highest = known.iter().map(|call| number(call) as u32).max().unwrap();
        for unknown in [highest + 1, highest + 1000, 0x3fff_ffff] {
            assert_eq!(verdict(&program, audit, unknown, 0), errno(libc::ENOSYS));
        }
    }
}

#[test]
fn x32_calls_have_their_own_numbers() {
    let program = filter("x86_64");
    let x32 = |number: u32| verdict(&program, AUDIT_X86_64, X32_BIT | number, 0);
    assert_eq!(x32(0), ALLOW, "read");
    assert_eq!(x32(520), ALLOW, "execve");
    assert_eq!(x32(59), errno(libc::EPERM), "execve by the number of x86_64");
    assert_eq!(x32(528), errno(libc::EPERM), "kexec_load");
    assert_eq!(x32(165), errno(libc::EPERM), "mount");
    assert_eq!(x32(900), errno(libc::ENOSYS));
}

#[test]
fn arguments_decide() {
    let program = filter("x86_64");
    let number = |name: &str| CALLS.iter().find(|call| call.name == name).unwrap().x86_64 as u32;
    let refused = errno(libc::EPERM);
    let cases: &[(&str, u64, u32)] = &[
        ("clone", 0x0000_0011, ALLOW),
        ("clone", 0x003d_0f00, ALLOW),
        ("clone", 0x1000_0011, refused),
        ("clone", 0x0002_0000, refused),
        ("clone", 0x4000_0000, refused),
        ("clone3", 0, errno(libc::ENOSYS)),
        ("socket", 1, ALLOW),
        ("socket", 40, refused),
        // The kernel reads an int: garbage above it must not help.
        ("socket", 0x1_0000_0028, refused),
        ("personality", 0xffff_ffff, ALLOW),
        ("personality", 0x2_0008, ALLOW),
        ("personality", 0x4_0000, refused),
        ("unshare", 0, refused),
        ("keyctl", 0, refused),
        ("io_uring_setup", 0, refused),
        ("ptrace", 0, ALLOW),
    ];
    for &(name, argument, want) in cases {
        assert_eq!(verdict(&program, AUDIT_X86_64, number(name), argument), want, "{name}({argument:#x})");
    }
}

#[test]
fn another_machine_ends_the_process() {
    assert_eq!(verdict(&filter("x86_64"), AUDIT_ARM, 1, 0), KILL);
    assert_eq!(verdict(&filter("aarch64"), AUDIT_I386, 1, 0), KILL);
    assert!(machines_of("s390x").is_none());
}

#[test]
fn the_tables_agree() {
    assert!(CALLS.windows(2).all(|pair| pair[0].name < pair[1].name), "numbers are sorted and unique");
    let known = |name: &&str| CALLS.iter().any(|call| call.name == *name);
    assert!(ALLOWED.iter().all(&known), "{:?}", ALLOWED.iter().find(|name| !known(name)));
    assert!(SPECIAL.iter().all(|(name, _)| known(name) && !ALLOWED.contains(name)));
    // The kernel takes at most 4096 instructions, and a third of a millisecond for 600.
    assert!(filter("x86_64").len() < 420, "{}", filter("x86_64").len());
    assert!(filter("aarch64").len() < 420, "{}", filter("aarch64").len());
}
