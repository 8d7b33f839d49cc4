//! `--chmod`: octal and symbolic modes.
//!
//! Symbolic clauses work as BSD's `setmode` (which BuildKit's parser follows): no umask, `X` looks at the mode that the
//! file had before, `s` and `t` mean nothing for `o`. Spec: `spec/dockerfile.md` §2.18.

use solver::{ModeChange, OpError};

use crate::view::NodeKind;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// A `--chmod` that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chmod {
    /// Exactly these bits.
    Octal(u32),
    /// Changes, in order.
    Symbolic(Vec<Change>),
}

/// One operator of a clause with what it applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Bits that the clause may touch.
    who: u32,
    op: Op,
    /// Fixed bits.
    bits: u32,
    /// `X`.
    execute_if_any: bool,
    /// `u`, `g` or `o` on the right: the shift of the class whose bits are copied.
    copy_from: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Add,
    Remove,
    Set,
}

impl Chmod {
    /// Reads what the planner has checked.
    ///
    /// # Errors
    /// `invalid syntax` for text that is no list of clauses.
    pub(super) fn new(change: &ModeChange) -> Result<Self, OpError> {
        match change {
            ModeChange::Octal(bits) => Ok(Self::Octal(bits & 0o7777)),
            ModeChange::Symbolic(text) => {
                parse(text).map(Self::Symbolic).ok_or_else(|| OpError::input("invalid syntax"))
            }
        }
    }

    /// The mode of a copied entry that had `mode`. Links have none to change.
    pub(super) fn apply(&self, mode: u32, kind: NodeKind) -> u32 {
        match self {
            _ if kind == NodeKind::Symlink => mode,
            Self::Octal(bits) => *bits,
            Self::Symbolic(changes) => {
                let has_execute = kind.is_dir() || mode & 0o111 != 0;
                changes.iter().fold(mode, |current, change| change.apply(current, has_execute))
            }
        }
    }

    /// The mode of directories that a copy has to create: only an octal mode reaches them, and only its permissions.
    pub(super) fn of_created_dir(&self) -> u32 {
        match self {
            Self::Octal(bits) => bits & 0o777,
            Self::Symbolic(_) => 0o755,
        }
    }
}

impl Change {
    fn apply(self, mode: u32, has_execute: bool) -> u32 {
        let mut bits = self.bits;
        if self.execute_if_any && has_execute {
            bits |= 0o111;
        }
        if let Some(shift) = self.copy_from {
            let class = mode >> shift & 7;
            bits |= class | class << 3 | class << 6;
        }
        bits &= self.who;
        match self.op {
            Op::Add => mode | bits,
            Op::Remove => mode & !bits,
            // Copying a class leaves the special bits alone.
            Op::Set if self.copy_from.is_some() => mode & !(self.who & 0o777) | bits,
            Op::Set => mode & !self.who | bits,
        }
    }
}

/// Reads comma-separated clauses; `None` when they are malformed.
fn parse(text: &str) -> Option<Vec<Change>> {
    let mut changes = Vec::new();
    for clause in text.split(',') {
        let n_who = clause.find(['+', '-', '='])?;
        let (who, mut rest) = clause.split_at(n_who);
        let who = parse_who(who)?;
        while let Some(op) = rest.chars().next() {
            let op = match op {
                '+' => Op::Add,
                '-' => Op::Remove,
                _ => Op::Set,
            };
            let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
            changes.push(parse_permissions(who, op, &rest[1..end])?);
            rest = &rest[end..];
        }
    }
    Some(changes)
}

/// The bits that `ugoa` letters stand for; none of them is all.
fn parse_who(who: &str) -> Option<u32> {
    if who.is_empty() {
        return Some(0o7777);
    }
    who.chars().try_fold(0, |bits, letter| {
        Some(
            bits | match letter {
                'u' => SETUID | STICKY | 0o700,
                'g' => SETGID | STICKY | 0o070,
                'o' => 0o007,
                'a' => 0o7777,
                _ => return None,
            },
        )
    })
}

fn parse_permissions(who: u32, op: Op, letters: &str) -> Option<Change> {
    let mut change = Change { who, op, bits: 0, execute_if_any: false, copy_from: None };
    for letter in letters.chars() {
        match letter {
            'r' => change.bits |= 0o444,
            'w' => change.bits |= 0o222,
            'x' => change.bits |= 0o111,
            's' => change.bits |= SETUID | SETGID,
            't' => change.bits |= STICKY,
            'X' => change.execute_if_any = true,
            'u' => change.copy_from = Some(6),
            'g' => change.copy_from = Some(3),
            'o' => change.copy_from = Some(0),
            _ => return None,
        }
    }
    // A class on the right stands alone.
    (change.copy_from.is_none() || letters.len() == 1).then_some(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chmod(text: &str, mode: u32, kind: NodeKind) -> u32 {
        Chmod::new(&ModeChange::Symbolic(text.to_owned())).expect(text).apply(mode, kind)
    }

    #[test]
    fn symbolic_changes() {
        let cases = [
            // Recorded with the reference builder.
            ("u+s", 0o644, 0o4644),
            ("+t", 0o644, 0o1644),
            ("o+t", 0o644, 0o644),
            ("ug=rws,o=", 0o644, 0o6660),
            ("a-x,u+X", 0o644, 0o644),
            ("+s", 0o644, 0o6644),
            ("+x", 0o644, 0o755),
            ("a=r", 0o644, 0o444),
            ("u=rwx,g=u,o=", 0o644, 0o770),
            ("g+s,o+t", 0o600, 0o2600),
            ("go-r", 0o644, 0o600),
            ("u+rwX,go=rX", 0o600, 0o644),
            ("u+rwX,go=rX", 0o755, 0o755),
            // Our own.
            ("u+r-w", 0o644, 0o444),
            ("a=", 0o7777, 0),
            ("o=g", 0o640, 0o644),
            ("u-s", 0o4755, 0o755),
        ];
        for (text, mode, want) in cases {
            let got = chmod(text, mode, NodeKind::File);
            assert_eq!(got, want, "{text} on {mode:o} gives {got:o}, not {want:o}");
        }
        assert_eq!(chmod("u+rwX,go=rX", 0o700, NodeKind::Dir), 0o755);
        assert_eq!(chmod("g+s,o+t", 0o700, NodeKind::Dir), 0o2700);
        assert_eq!(chmod("a=r", 0o777, NodeKind::Symlink), 0o777);
    }

    #[test]
    fn malformed_text_is_an_error() {
        for text in ["readable", "", "u", "u+q", "z+r", "u+rg", ",u+r"] {
            assert!(Chmod::new(&ModeChange::Symbolic(text.to_owned())).is_err(), "{text}");
        }
    }

    #[test]
    fn created_directories_get_permissions_only() {
        assert_eq!(Chmod::Octal(0o4751).of_created_dir(), 0o751);
        assert_eq!(Chmod::Symbolic(Vec::new()).of_created_dir(), 0o755);
    }
}
