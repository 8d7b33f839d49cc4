//! `--chown`, `--chmod` and the owner that USER gives to directories. Spec: `spec/dockerfile.md` §2.9, §2.17, §2.18.

use crate::op::{ModeChange, Owner, Principal};

/// Largest value of `--chmod`.
const MAX_MODE: u32 = 0o7777;

/// What BuildKit says when a name has to be looked up where there is no root to look into.
const NO_ACCOUNTS: &str = "invalid user index: -1";

/// Whether the files are written to a root that may have `/etc/passwd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accounts {
    /// Names are looked up in the root.
    OfRoot,
    /// The root is still empty (or `--link`): only numbers and `root` are known.
    None,
}

/// Reads `user[:group]`, each a number or a name; an empty user is root.
pub(super) fn owner(text: &str, accounts: Accounts) -> Result<Owner, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = match user {
        // `root` is 0 even without a passwd file.
        "" | "root" => Principal::Id(0),
        user => principal(user),
    };
    let group = group.map(|group| match principal(group) {
        Principal::Name(name) if name == "root" && accounts == Accounts::None => Principal::Id(0),
        group => group,
    });
    let unknown = [Some(&user), group.as_ref()].into_iter().flatten().any(|it| matches!(it, Principal::Name(_)));
    if unknown && accounts == Accounts::None {
        return Err(NO_ACCOUNTS.to_owned());
    }
    Ok(Owner { user, group })
}

fn principal(text: &str) -> Principal {
    match text.parse() {
        Ok(id) => Principal::Id(id),
        Err(_) => Principal::Name(text.to_owned()),
    }
}

/// Reads `--chmod`: octal digits, or symbolic clauses.
pub(super) fn mode(text: &str) -> Result<ModeChange, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= MAX_MODE && !text.starts_with('+') => Ok(ModeChange::Octal(mode)),
        _ if text.starts_with(|c: char| c.is_ascii_digit()) => {
            Err(format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"))
        }
        _ if text.split(',').all(is_clause) => Ok(ModeChange::Symbolic(text.to_owned())),
        _ => Err("invalid syntax".to_owned()),
    }
}

/// `[ugoa…](+|-|=)` and then permission letters, or one of `u`, `g`, `o` (take theirs).
fn is_clause(clause: &str) -> bool {
    let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    let Some(permissions) = rest.strip_prefix(['+', '-', '=']) else { return false };
    matches!(permissions, "u" | "g" | "o") || permissions.chars().all(|c| "rwxXst".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_numbers_or_names() {
        let id = Principal::Id;
        let name = |text: &str| Principal::Name(text.to_owned());
        let table = [
            ("1000", id(1000), None),
            ("1000:7", id(1000), Some(id(7))),
            ("www", name("www"), None),
            ("www:ops", name("www"), Some(name("ops"))),
            (":ops", id(0), Some(name("ops"))),
            ("root", id(0), None),
            ("root:root", id(0), Some(name("root"))),
            ("5:", id(5), None),
            ("99999999999", name("99999999999"), None),
        ];
        for (text, user, group) in table {
            assert_eq!(owner(text, Accounts::OfRoot), Ok(Owner { user, group }), "{text}");
        }
    }

    #[test]
    fn without_a_root_only_numbers_and_root_are_known() {
        for text in ["1:2", "root", "root:root", ":0", ""] {
            assert!(owner(text, Accounts::None).is_ok(), "{text}");
        }
        for text in ["ghost", "1:ghosts", ":ghosts"] {
            assert_eq!(owner(text, Accounts::None), Err("invalid user index: -1".to_owned()), "{text}");
        }
    }

    #[test]
    fn modes_are_octal_or_symbolic() {
        let octal = "it should be octal string and between 0 and 07777";
        let table: &[(&str, Result<ModeChange, &str>)] = &[
            ("755", Ok(ModeChange::Octal(0o755))),
            ("04755", Ok(ModeChange::Octal(0o4755))),
            ("0", Ok(ModeChange::Octal(0))),
            ("10000", Err(octal)),
            ("64a", Err(octal)),
            ("8", Err(octal)),
            ("u+rwX,go=rX", Ok(ModeChange::Symbolic("u+rwX,go=rX".to_owned()))),
            ("+x", Ok(ModeChange::Symbolic("+x".to_owned()))),
            ("u=rw,go=", Ok(ModeChange::Symbolic("u=rw,go=".to_owned()))),
            ("g=u", Ok(ModeChange::Symbolic("g=u".to_owned()))),
            ("o+t", Ok(ModeChange::Symbolic("o+t".to_owned()))),
            ("readable", Err("invalid syntax")),
            ("a", Err("invalid syntax")),
            ("u+rw,", Err("invalid syntax")),
            ("g=uo", Err("invalid syntax")),
        ];
        for (text, wanted) in table {
            match (mode(text), wanted) {
                (Ok(got), Ok(wanted)) => assert_eq!(&got, wanted, "{text}"),
                (Err(got), Err(wanted)) => assert!(got.contains(wanted), "{text}: {got}"),
                (got, wanted) => panic!("{text}: {got:?}, wanted {wanted:?}"),
            }
        }
    }
}
