//! Turns rules by number into a classic BPF program.
//!
//! The numbers of one machine become intervals with the same verdict, and these a binary search, so that a call costs
//! about ten instructions. All jumps lead forward and are relative, so blocks can be built apart and concatenated.

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

/// Has the calls of these numbers answered, on one machine; all others pass.
pub(super) fn compile_answered(architecture: u32, numbers: &[u32]) -> Vec<FilterInstruction> {
    let verdict = |verdict: u32| vec![instruction(RETURN, 0, 0, verdict)];
    let pass = || verdict(libc::SECCOMP_RET_ALLOW);
    let mut block = vec![load(OFFSET_NUMBER)];
    block.extend(
        numbers.iter().fold(pass(), |otherwise, &number| {
            branch(IF_EQUAL, number, verdict(libc::SECCOMP_RET_USER_NOTIF), otherwise)
        }),
    );
    let mut program = vec![load(OFFSET_ARCHITECTURE)];
    program.extend(branch(IF_EQUAL, architecture, block, pass()));
    program
}

/// A binary search over intervals, then the answers, each once: the kernel checks, translates and compiles a filter for
/// every step, which takes as long as the filter is.
fn search(intervals: &[(u32, Rule)]) -> Vec<FilterInstruction> {
    let mut answers = Answers { base: intervals.len().saturating_sub(1), code: Vec::new(), starts: Vec::new() };
    let mut code = Vec::new();
    match intervals {
        [] => return answer(Verdict::Kill),
        [(_, only)] => return answer(Verdict::Rule(*only)),
        _ => compare(intervals, &mut code, &mut answers),
    }
    code.extend(answers.code);
    code
}

/// Appends the comparisons of a search; those that follow from a smaller number come first.
fn compare(intervals: &[(u32, Rule)], code: &mut Vec<FilterInstruction>, answers: &mut Answers) {
    let (low, high) = intervals.split_at(intervals.len() / 2);
    let after = code.len() + 1;
    let mut target = |part: &[(u32, Rule)], start: usize| match part {
        [(_, rule)] => answers.place(*rule),
        _ => start,
    };
    // A search among as many intervals has one comparison less.
    let (if_low, if_high) = (target(low, after), target(high, after + low.len() - 1));
    let distance = |target: usize| u8::try_from(target - after).expect("a machine has less than 200 intervals");
    code.push(instruction(IF_AT_LEAST, distance(if_high), distance(if_low), high[0].0));
    for part in [low, high] {
        if part.len() > 1 {
            compare(part, code, answers);
        }
    }
}

/// The answers of a search, behind its comparisons.
struct Answers {
    /// How many comparisons there are.
    base: usize,
    code: Vec<FilterInstruction>,
    starts: Vec<(Rule, usize)>,
}

impl Answers {
    /// Where the answer of a rule begins, counted from the first comparison.
    fn place(&mut self, rule: Rule) -> usize {
        if let Some((_, start)) = self.starts.iter().find(|(known, _)| *known == rule) {
            return *start;
        }
        let start = self.base + self.code.len();
        self.starts.push((rule, start));
        self.code.extend(answer(Verdict::Rule(rule)));
        start
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
