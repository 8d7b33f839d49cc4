//! `--chown` and the owner of WORKDIR's directories. Spec: `spec/dockerfile.md` §2.17.

use solver::{OpError, Owner, Principal};

use crate::view::RootView;
use crate::view::passwd::Accounts;

/// Looks owners up, reading the account files of the root at most once and only when a name asks for them.
#[derive(Default)]
pub(super) struct Owners {
    accounts: Option<Accounts>,
}

impl Owners {
    /// User and group of `owner` in `root`, as it was before the operation.
    ///
    /// # Errors
    /// A name other than `root` on a root without layers, in BuildKit's words; account files that are none.
    pub(super) fn look_up(&mut self, root: &RootView, owner: &Owner) -> Result<(u32, u32), OpError> {
        let needs_files = is_name(&owner.user) || owner.group.as_ref().is_some_and(is_name);
        if !needs_files {
            return Ok(Accounts::default().copy_owner(owner));
        }
        if root.is_scratch() {
            return Err(OpError::input("invalid user index: -1")
                .help("names are looked up in the root that is written to, which is empty here; give numbers"));
        }
        let accounts = match &mut self.accounts {
            Some(accounts) => accounts,
            slot => slot.insert(Accounts::load(root)?),
        };
        Ok(accounts.copy_owner(owner))
    }
}

/// Whether the account files decide. `root` is 0 everywhere.
fn is_name(principal: &Principal) -> bool {
    matches!(principal, Principal::Name(name) if name != "root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_root_knows_root_only() {
        let name = |text: &str| Principal::Name(text.to_owned());
        let mut owners = Owners::default();
        let root = Owner { user: name("root"), group: Some(name("root")) };
        assert_eq!(owners.look_up(&RootView::empty(), &root).expect("root"), (0, 0));
        let numbers = Owner { user: Principal::Id(4), group: None };
        assert_eq!(owners.look_up(&RootView::empty(), &numbers).expect("numbers"), (4, 4));
        let ghost = Owner { user: name("ghost"), group: None };
        let error = owners.look_up(&RootView::empty(), &ghost).expect_err("a name");
        assert_eq!(error.message, "invalid user index: -1");
    }
}
