//! Turns rules by number into a classic BPF program.
//!
//! The numbers of one machine become intervals with the same verdict, and these a binary search, so that a call costs
//! about ten instructions. All jumps lead forward and are relative, so blocks can be built bottom up and concatenated.

use super::profile::Rule;
use crate::sys::spawn::FilterInstruction;

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// What a filter can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Decide by a rule; `Refuse` needs no look at arguments.
    Rule(Rule),
    /// Another machine's calls: end the process.
    Kill,
}

/// The calls of one machine: which verdict from which number on, sorted, beginning with number 0.
pub(super) struct Machine {
    /// `AUDIT_ARCH_*`.
    pub(super) architecture: u32,
    /// (first number, verdict).
    pub(super) intervals: Vec<(u32, Rule)>,
}

/// The whole program: one search a machine.
pub(super) fn compile(machines: &[Machine]) -> Vec<FilterInstruction> {
    // From the back: what follows the last comparison is the end of the process.
    let mut program = answer(Verdict::Kill);
    for machine in machines.iter().rev() {
        let mut block = vec![load(OFFSET_NUMBER)];
        block.extend(search(&machine.intervals));
        program = branch(IF_EQUAL, machine.architecture, block, program);
    }
    program.insert(0, load(OFFSET_ARCHITECTURE));
    program
}

/// A binary search over intervals.
fn search(intervals: &[(u32, Rule)]) -> Vec<FilterInstruction> {
    match intervals {
        [] => answer(Verdict::Kill),
        [(_, rule)] => answer(Verdict::Rule(*rule)),
        _ => {
            let (low, high) = intervals.split_at(intervals.len() / 2);
            let bound = high[0].0;
            branch(IF_AT_LEAST, bound, search(high), search(low))
        }
    }
}

/// `if (accumulator <test> operand) { yes } else { no }`; both blocks end in a verdict.
fn branch(test: u32, operand: u32, yes: Vec<FilterInstruction>, no: Vec<FilterInstruction>) -> Vec<FilterInstruction> {
    let mut code = match u8::try_from(no.len()) {
        Ok(distance) => vec![instruction(test, distance, 0, operand)],
        // Conditional jumps reach 255 instructions; beyond that an unconditional one takes over.
        Err(_) => vec![instruction(test, 0, 1, operand), instruction(JUMP, 0, 0, no.len() as u32)],
    };
    code.extend(no);
    code.extend(yes);
    code
}

fn answer(verdict: Verdict) -> Vec<FilterInstruction> {
    let allow = || vec![instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW)];
    let refuse = |errno: libc::c_int| vec![instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32)];
    let looking_at = |index: u32, test: Vec<FilterInstruction>| {
        let mut code = vec![load(OFFSET_ARGUMENTS + 8 * index)];
        code.extend(test);
        code
    };
    match verdict {
        Verdict::Kill => vec![instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS)],
        Verdict::Rule(Rule::Allow) => allow(),
        Verdict::Rule(Rule::Refuse(errno)) => refuse(errno),
        Verdict::Rule(Rule::Unless(index, value)) => {
            looking_at(index, branch(IF_EQUAL, value, refuse(libc::EPERM), allow()))
        }
        Verdict::Rule(Rule::IfClear(index, bits)) => {
            looking_at(index, branch(IF_ANY_BIT, bits, refuse(libc::EPERM), allow()))
        }
        Verdict::Rule(Rule::IfOneOf(index, values)) => {
            let chain = values
                .iter()
                .fold(refuse(libc::EPERM), |otherwise, &value| branch(IF_EQUAL, value, allow(), otherwise));
            looking_at(index, chain)
        }
    }
}

fn load(offset: u32) -> FilterInstruction {
    instruction(LOAD, 0, 0, offset)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> FilterInstruction {
    // Every code of classic BPF is below 256.
    FilterInstruction { code: code as u16, jt, jf, k }
}
