//! Which tiers this process could have.

use crate::sandbox::isolation::{Isolation, missing_for_chroot, missing_privileges};
use crate::sandbox::rootless::{refusal, subordinate_ids};

/// One tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierFact {
    /// Which.
    pub tier: Isolation,
    /// Why it cannot be had, one sentence each; empty when it can, as far as can be told without trying.
    pub obstacles: Vec<String>,
}

/// The tiers, best first. Must be asked before [`crate::sandbox::confine`]: afterwards this process is root of something.
pub fn tiers() -> Vec<TierFact> {
    let needs = |missing: Vec<&'static str>| -> Vec<String> {
        if missing.is_empty() { Vec::new() } else { vec![format!("needs {}", missing.join(", "))] }
    };
    let mut root = needs(missing_privileges());
    // A container may give all privileges over a user namespace and still not be root of the machine.
    if root.is_empty() && Isolation::of_this_process() != Isolation::Root {
        root.push("this process is already in a user namespace".to_owned());
    }
    let refused: Vec<String> = refusal().into_iter().collect();
    let no_range = subordinate_ids().err().map(|error| error.to_string());
    vec![
        TierFact { tier: Isolation::Root, obstacles: root },
        TierFact { tier: Isolation::UserNamespace, obstacles: refused.iter().cloned().chain(no_range).collect() },
        TierFact { tier: Isolation::SingleId, obstacles: refused },
        TierFact { tier: Isolation::Chroot, obstacles: needs(missing_for_chroot()) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_tier_comes_first_and_chroot_last() {
        let order: Vec<_> = tiers().iter().map(|fact| fact.tier.name()).collect();
        assert_eq!(order, ["root", "userns", "userns-single", "chroot"]);
    }
}
