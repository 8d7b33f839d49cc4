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
            rule => {
                let rule_for = |action, errno_ret, condition| OciRule {
                    names: vec![name],
                    action,
                    errno_ret,
                    args: vec![condition],
                };
                conditional.extend(conditions(rule).into_iter().map(|one| rule_for(ALLOW, None, one)));
                conditional
                    .extend(counter_conditions(rule).into_iter().map(|one| rule_for(REFUSE, Some(libc::EPERM), one)));
            }
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
    match rule {
        Rule::Allow | Rule::Refuse(_) => Vec::new(),
        Rule::IfOneOf(index, values) => values.iter().map(|value| masked(index, u32::MAX, *value)).collect(),
        // There is no masked inequality: one of the bits has to be another.
        Rule::Unless(index, value) => bits(u32::MAX).map(|mask| masked(index, mask, !value & mask)).collect(),
        Rule::IfClear(index, mask) => vec![masked(index, mask, 0)],
    }
}

/// The conditions of which one holds when none of [`conditions`] does, as far as they can be said. Without them the call
/// would look unknown, which programs take for an older kernel.
fn counter_conditions(rule: Rule) -> Vec<OciCondition> {
    match rule {
        // Everything but a few values would take all their bits together.
        Rule::Allow | Rule::Refuse(_) | Rule::IfOneOf(..) => Vec::new(),
        Rule::Unless(index, value) => vec![masked(index, u32::MAX, value)],
        Rule::IfClear(index, mask) => bits(mask).map(|bit| masked(index, bit, bit)).collect(),
    }
}

fn masked(index: u32, mask: u32, value: u32) -> OciCondition {
    OciCondition { index, value: mask.into(), value_two: value.into(), op: "SCMP_CMP_MASKED_EQ" }
}

/// The bits of a mask, one by one.
fn bits(mask: u32) -> impl Iterator<Item = u32> {
    (0..u32::BITS).map(|shift| 1 << shift).filter(move |bit| mask & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(rule: Rule, argument: u64) -> bool {
        let any = |list: Vec<OciCondition>| list.iter().any(|one| argument & one.value == one.value_two);
        let holds = any(conditions(rule));
        assert!(!(holds && any(counter_conditions(rule))), "{rule:?}, {argument:#x}");
        assert!(matches!(rule, Rule::IfOneOf(..)) || holds || any(counter_conditions(rule)), "{rule:?}, {argument:#x}");
        holds
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
        assert_eq!(text[3], ("clone".to_owned(), REFUSE, Some(libc::EPERM), 1));
        let own = |name: &str| text.iter().filter(|(names, ..)| names == name).count();
        assert_eq!((own("clone"), own("clone3"), own("socket")), (1 + 7, 1, 32 + 1));
        assert!(text.contains(&("clone3".to_owned(), REFUSE, Some(libc::ENOSYS), 0)));
        let named: usize = super::rules(CALLS.iter().map(|call| call.name)).iter().take(2).map(|r| r.names.len()).sum();
        assert!(named > CALLS.len() - 6);
    }
}
