//! The same profile for OCI runtimes, which compile it themselves with libseccomp.
//!
//! What the profile refuses is named, and everything else is unknown: so a call that is newer than our table, or that
//! the runtime's library does not know, gets `ENOSYS` as it does from our own filter.

use serde::Serialize;

use super::numbers::CALLS;
use super::profile::Rule;
use super::rule_for;

/// `linux.seccomp` of the OCI runtime specification.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciFilter {
    default_action: &'static str,
    default_errno_ret: libc::c_int,
    architectures: &'static [&'static str],
    syscalls: Vec<OciRule>,
}

/// What happens to some calls.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct OciRule {
    names: Vec<&'static str>,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<libc::c_int>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<OciCondition>,
}

/// `argument & value == value_two`.
#[derive(Clone, Serialize, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct OciCondition {
    index: u32,
    value: u64,
    value_two: u64,
    op: &'static str,
}

/// The filter for this machine; `None` where we know no profile.
pub fn oci_filter() -> Option<OciFilter> {
    let architectures = architectures(std::env::consts::ARCH)?;
    Some(OciFilter {
        default_action: REFUSE,
        default_errno_ret: libc::ENOSYS,
        architectures,
        syscalls: rules(CALLS.iter().map(|call| call.name)),
    })
}

const ALLOW: &str = "SCMP_ACT_ALLOW";
const REFUSE: &str = "SCMP_ACT_ERRNO";

/// The machines that [`super::default_filter`] knows as well.
fn architectures(architecture: &str) -> Option<&'static [&'static str]> {
    match architecture {
        "x86_64" => Some(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => Some(&["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => None,
    }
}

fn rules(names: impl Iterator<Item = &'static str>) -> Vec<OciRule> {
    let (mut allowed, mut refused, mut conditional) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        match rule_for(name) {
            Rule::Allow => allowed.push(name),
            Rule::Refuse(libc::EPERM) => refused.push(name),
            Rule::Refuse(errno) => conditional.push(refuse(vec![name], errno)),
            rule => conditional.extend(conditions(rule).into_iter().map(|condition| OciRule {
                names: vec![name],
                action: ALLOW,
                errno_ret: None,
                args: vec![condition],
            })),
        }
    }
    let mut rules = vec![OciRule { names: allowed, action: ALLOW, errno_ret: None, args: Vec::new() }];
    rules.push(refuse(refused, libc::EPERM));
    rules.extend(conditional);
    rules
}

fn refuse(names: Vec<&'static str>, errno: libc::c_int) -> OciRule {
    OciRule { names, action: REFUSE, errno_ret: Some(errno), args: Vec::new() }
}

/// The conditions of which one must hold. All look at the low 32 bits only, as the kernel does.
fn conditions(rule: Rule) -> Vec<OciCondition> {
    let masked = |index: u32, mask: u32, value: u32| OciCondition {
        index,
        value: mask.into(),
        value_two: value.into(),
        op: "SCMP_CMP_MASKED_EQ",
    };
    match rule {
        Rule::Allow | Rule::Refuse(_) => Vec::new(),
        Rule::IfOneOf(index, values) => values.iter().map(|value| masked(index, u32::MAX, *value)).collect(),
        // There is no masked inequality: one of the bits has to be another.
        Rule::Unless(index, value) => {
            (0..u32::BITS).map(|bit| 1 << bit).map(|mask| masked(index, mask, !value & mask)).collect()
        }
        Rule::IfClear(index, bits) => vec![masked(index, bits, 0)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(rule: Rule, argument: u64) -> bool {
        conditions(rule).iter().any(|condition| argument & condition.value == condition.value_two)
    }

    #[test]
    fn conditions_are_those_of_our_own_filter() {
        let socket = Rule::Unless(0, 40);
        for (argument, want) in [(1, true), (40, false), (41, true), (0x1_0000_0028, false), (0, true)] {
            assert_eq!(holds(socket, argument), want, "socket({argument:#x})");
        }
        let personality = Rule::IfOneOf(0, &[0, 8, 0xffff_ffff]);
        for (argument, want) in [(0, true), (8, true), (9, false), (0xffff_ffff, true), (u64::MAX, true)] {
            assert_eq!(holds(personality, argument), want, "personality({argument:#x})");
        }
        let clone = Rule::IfClear(0, 0x7e02_0000);
        for (argument, want) in [(0x11, true), (0x1000_0011, false), (0x0002_0000, false)] {
            assert_eq!(holds(clone, argument), want, "clone({argument:#x})");
        }
    }

    #[test]
    fn every_known_call_is_named() {
        let rules = rules(["read", "mount", "clone", "clone3", "socket"].into_iter());
        let text: Vec<_> =
            rules.iter().map(|rule| (rule.names.join(","), rule.action, rule.errno_ret, rule.args.len())).collect();
        assert_eq!(text[0], ("read".to_owned(), ALLOW, None, 0));
        assert_eq!(text[1], ("mount".to_owned(), REFUSE, Some(libc::EPERM), 0));
        assert_eq!(text[2], ("clone".to_owned(), ALLOW, None, 1));
        assert_eq!(text[3], ("clone3".to_owned(), REFUSE, Some(libc::ENOSYS), 0));
        assert_eq!(text[4..].len(), 32);
        let named: usize = super::rules(CALLS.iter().map(|call| call.name)).iter().take(2).map(|r| r.names.len()).sum();
        assert!(named > CALLS.len() - 6);
    }
}
