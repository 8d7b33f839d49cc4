//! Who a process believes to be, and what it may become: the rules of credentials(7).

use rustix::io::Errno;

/// "As it is", in calls that set several ids.
const KEEP: u32 = u32::MAX;

/// Real, effective and saved id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) real: u32,
    pub(super) effective: u32,
    pub(super) saved: u32,
}

/// The ids of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: Ids,
    pub(super) group: Ids,
    pub(super) groups: Vec<u32>,
}

impl Ids {
    pub(super) fn of(real: u32, effective: u32, saved: u32) -> Self {
        Self { real, effective, saved }
    }

    fn same(id: u32) -> Self {
        Self::of(id, id, id)
    }

    /// What `setuid(2)` asks for: all ids for root, the effective one for others.
    pub(super) fn all_or_effective(id: u32, is_root: bool) -> Self {
        if is_root { Self::same(id) } else { Self::of(KEEP, id, KEEP) }
    }

    /// What `setreuid(2)` asks for: the saved id follows the effective one if the real one is set, or the effective one
    /// becomes another than the real one was.
    pub(super) fn real_effective(real: u32, effective: u32, before: Self) -> Self {
        let next = if effective == KEEP { before.effective } else { effective };
        let saved = if real != KEEP || (effective != KEEP && effective != before.real) { next } else { KEEP };
        Self::of(real, effective, saved)
    }

    fn has(self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    /// These with those of `wanted` that are not to be kept.
    fn changed(self, wanted: Self) -> Self {
        let choose = |wanted: u32, now: u32| if wanted == KEEP { now } else { wanted };
        Self::of(
            choose(wanted.real, self.real),
            choose(wanted.effective, self.effective),
            choose(wanted.saved, self.saved),
        )
    }

    fn may_become(self, wanted: Self) -> bool {
        [wanted.real, wanted.effective, wanted.saved].into_iter().all(|id| id == KEEP || self.has(id))
    }
}

impl Credentials {
    pub(super) fn of_user(uid: u32, gid: u32, groups: &[u32]) -> Self {
        Self { user: Ids::same(uid), group: Ids::same(gid), groups: groups.to_vec() }
    }

    /// Whether it may become anybody.
    pub(super) fn is_root(&self) -> bool {
        self.user.effective == 0
    }

    /// # Errors
    /// `PERM` for what only root may.
    pub(super) fn set_user(&mut self, wanted: Ids) -> Result<(), Errno> {
        if !self.is_root() && !self.user.may_become(wanted) {
            return Err(Errno::PERM);
        }
        self.user = self.user.changed(wanted);
        Ok(())
    }

    /// # Errors
    /// `PERM` for what only root may.
    pub(super) fn set_group(&mut self, wanted: Ids) -> Result<(), Errno> {
        if !self.is_root() && !self.group.may_become(wanted) {
            return Err(Errno::PERM);
        }
        self.group = self.group.changed(wanted);
        Ok(())
    }

    /// # Errors
    /// `PERM` for all but root.
    pub(super) fn set_groups(&mut self, groups: Vec<u32>) -> Result<(), Errno> {
        if !self.is_root() {
            return Err(Errno::PERM);
        }
        self.groups = groups;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_becomes_anybody_and_does_not_come_back() {
        let mut credentials = Credentials::of_user(0, 0, &[0]);
        credentials.set_groups(vec![65_534]).unwrap();
        credentials.set_group(Ids::of(65_534, 65_534, 65_534)).unwrap();
        credentials.set_user(Ids::all_or_effective(100, true)).unwrap();
        assert_eq!(credentials, Credentials { user: Ids::same(100), group: Ids::same(65_534), groups: vec![65_534] });
        assert_eq!(credentials.set_user(Ids::all_or_effective(0, false)), Err(Errno::PERM));
        assert_eq!(credentials.set_groups(Vec::new()), Err(Errno::PERM));
        assert_eq!(credentials.set_group(Ids::of(KEEP, 0, KEEP)), Err(Errno::PERM));
        credentials.set_user(Ids::of(KEEP, 100, KEEP)).unwrap();
    }

    #[test]
    fn a_saved_id_is_a_way_back() {
        let mut credentials = Credentials::of_user(0, 0, &[]);
        credentials.set_user(Ids::of(KEEP, 7, KEEP)).unwrap();
        assert!(!credentials.is_root());
        credentials.set_user(Ids::of(KEEP, 0, KEEP)).unwrap();
        assert!(credentials.is_root());
    }

    #[test]
    fn setreuid_moves_the_saved_id_with_the_effective_one() {
        let root = Ids::same(0);
        let cases =
            [((7, 7), (7, 7, 7)), ((KEEP, 7), (KEEP, 7, 7)), ((7, KEEP), (7, KEEP, 0)), ((KEEP, 0), (KEEP, 0, KEEP))];
        for ((real, effective), (a, b, c)) in cases {
            assert_eq!(Ids::real_effective(real, effective, root), Ids::of(a, b, c), "{real} {effective}");
        }
    }
}
