//! Token scopes: what a token is good for.
//!
//! Spec: distribution's token scope documentation; `spec/engine.md` §4.2, "Scopes".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A set of scopes in normal form: one entry a resource, actions sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    /// Reading a repository.
    pub(super) fn pull(repository: &str) -> Self {
        Self::default().and(repository, &["pull"])
    }

    /// Reading and writing a repository.
    pub(super) fn push(repository: &str) -> Self {
        Self::default().and(repository, &["pull", "push"])
    }

    /// Adds actions on one more repository.
    pub(super) fn and(mut self, repository: &str, actions: &[&str]) -> Self {
        let known = self.0.entry(format!("repository:{repository}")).or_default();
        known.extend(actions.iter().map(|action| (*action).to_owned()));
        self
    }

    /// Adds the scopes of a challenge: space-separated `type:name:action,action`, where the name may hold colons.
    pub(super) fn with_text(mut self, text: &str) -> Self {
        for scope in text.split_ascii_whitespace() {
            if let Some((resource, actions)) = scope.rsplit_once(':') {
                let actions = actions.split(',').filter(|action| !action.is_empty()).map(str::to_owned);
                self.0.entry(resource.to_owned()).or_default().extend(actions);
            }
        }
        self
    }

    /// Whether a token for these scopes serves for `other`, too.
    pub(super) fn cover(&self, other: &Self) -> bool {
        other.0.iter().all(|(resource, actions)| self.0.get(resource).is_some_and(|known| known.is_superset(actions)))
    }

    /// One text a resource.
    pub(super) fn texts(&self) -> Vec<String> {
        let join = |actions: &BTreeSet<String>| actions.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        self.0.iter().map(|(resource, actions)| format!("{resource}:{}", join(actions))).collect()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_merged_and_sorted() {
        let scopes =
            Scopes::pull("z").and("a/b", &["push", "pull"]).with_text("repository:z:push registry:catalog:* bad");
        assert_eq!(scopes.to_string(), "registry:catalog:* repository:a/b:pull,push repository:z:pull,push");
        assert_eq!(
            Scopes::default().with_text("repository:host:5000/a:pull").to_string(),
            "repository:host:5000/a:pull"
        );
    }

    #[test]
    fn larger_tokens_serve_for_smaller_needs() {
        assert!(Scopes::push("a").cover(&Scopes::pull("a")));
        assert!(!Scopes::pull("a").cover(&Scopes::push("a")));
        assert!(!Scopes::push("a").cover(&Scopes::push("a").and("b", &["pull"])));
        assert!(Scopes::default().cover(&Scopes::default()));
    }
}
