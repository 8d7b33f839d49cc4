//! The system call filter of a step: Docker's default profile, compiled to BPF for this machine and those whose
//! programs it also runs (x86_64 with i386 and x32, aarch64 with arm).
//!
//! Read [`profile`] for what is allowed, [`numbers`] for how calls are numbered, [`bpf`] for the compiler.

mod bpf;
mod numbers;
mod profile;

use std::sync::OnceLock;

use crate::sys::spawn::FilterInstruction;
use bpf::Machine;
use numbers::{CALLS, Call, NONE, X32_BIT, X32_LACKS, X32_OWN};
use profile::{ALLOWED, Rule, SPECIAL};

/// `AUDIT_ARCH_*` of linux/audit.h: the ELF machine, with flags for 64 bit and little endian.
const AUDIT_X86_64: u32 = 62 | 0xc000_0000;
const AUDIT_I386: u32 = 3 | 0x4000_0000;
const AUDIT_AARCH64: u32 = 183 | 0xc000_0000;
const AUDIT_ARM: u32 = 40 | 0x4000_0000;

/// The filter for this machine, compiled once a process; `None` where we know no profile.
pub fn default_filter() -> Option<&'static [FilterInstruction]> {
    static FILTER: OnceLock<Option<Vec<FilterInstruction>>> = OnceLock::new();
    FILTER.get_or_init(|| machines_of(std::env::consts::ARCH).map(|machines| bpf::compile(&machines))).as_deref()
}

/// A filter that has calls answered by somebody else and lets all others pass.
pub struct Answered {
    /// The program.
    pub filter: Vec<FilterInstruction>,
    /// The number of each call, in the order of the names.
    pub numbers: Vec<Option<i32>>,
}

/// Makes one for this machine's own programs; `None` where we know no numbers.
pub fn answered<'a>(names: impl Iterator<Item = &'a str>) -> Option<Answered> {
    let (architecture, number): (u32, fn(&Call) -> i32) = match std::env::consts::ARCH {
        "x86_64" => (AUDIT_X86_64, |call| call.x86_64),
        "aarch64" => (AUDIT_AARCH64, |call| call.aarch64),
        _ => return None,
    };
    let find = |name: &str| CALLS.iter().find(|call| call.name == name).map(number).filter(|number| *number != NONE);
    let numbers: Vec<Option<i32>> = names.map(find).collect();
    let wanted: Vec<u32> = numbers.iter().flatten().map(|number| number.cast_unsigned()).collect();
    Some(Answered { filter: bpf::compile_answered(architecture, &wanted), numbers })
}

fn machines_of(architecture: &str) -> Option<Vec<Machine>> {
    match architecture {
        "x86_64" => Some(vec![x86_64(), machine(AUDIT_I386, |call| call.i386)]),
        "aarch64" => Some(vec![machine(AUDIT_AARCH64, |call| call.aarch64), machine(AUDIT_ARM, |call| call.arm)]),
        _ => None,
    }
}

fn machine(architecture: u32, number: impl Fn(&Call) -> i32) -> Machine {
    let calls = CALLS.iter().filter(|call| number(call) != NONE).map(|call| (number(call) as u32, rule_for(call.name)));
    Machine { architecture, intervals: intervals(0, calls) }
}

/// x86_64 and x32 have one architecture number; a bit in the call's number tells them apart.
fn x86_64() -> Machine {
    let native = CALLS.iter().filter(|call| call.x86_64 != NONE);
    let own = |name: &str| X32_OWN.iter().find(|(own, _)| *own == name).map(|(_, number)| *number);
    let x32 = native
        .clone()
        .filter(|call| !X32_LACKS.contains(&call.name))
        .map(|call| (X32_BIT | own(call.name).unwrap_or(call.x86_64 as u32), rule_for(call.name)));
    let mut all = intervals(0, native.clone().map(|call| (call.x86_64 as u32, rule_for(call.name))));
    all.extend(intervals(X32_BIT, x32));
    Machine { architecture: AUDIT_X86_64, intervals: all }
}

/// The rule of a known call.
fn rule_for(name: &str) -> Rule {
    match SPECIAL.iter().find(|(special, _)| *special == name) {
        Some((_, rule)) => *rule,
        None if ALLOWED.contains(&name) => Rule::Allow,
        None => Rule::Refuse(libc::EPERM),
    }
}

/// Joins neighbours with equal rules, beginning with the number `next`. Holes between known numbers are refused; above
/// the last one nothing exists.
fn intervals(mut next: u32, calls: impl Iterator<Item = (u32, Rule)>) -> Vec<(u32, Rule)> {
    let mut calls: Vec<(u32, Rule)> = calls.collect();
    calls.sort_by_key(|(number, _)| *number);
    let mut marks = Vec::with_capacity(2 * calls.len() + 1);
    for (number, rule) in calls {
        if number > next {
            marks.push((next, Rule::Refuse(libc::EPERM)));
        }
        marks.push((number, rule));
        next = number + 1;
    }
    marks.push((next, Rule::Refuse(libc::ENOSYS)));
    marks.dedup_by(|later, earlier| later.1 == earlier.1);
    marks
}

#[cfg(test)]
mod tests;
