//! Leases: what a running build works with cannot be taken from it by anybody's garbage collection.
//!
//! While a process holds a lease, every layer and blob it makes or looks up is noted in the index under its session's
//! name. A collector skips what live sessions have noted; whether a session lives, the kernel says (its flocked file).

use std::collections::HashSet;

use rusqlite::Transaction;

use crate::error::{Fault, Result};
use crate::store::{Inner, Store, lock, now};

/// Protects everything a build touches from garbage collection until it is dropped.
///
/// Leases of one process add up: protection ends with the last one.
#[derive(Debug)]
pub struct Lease {
    store: Store,
}

/// What this process has leased.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    n_held: usize,
    /// Counts the times at which the number held left zero: notes of an earlier time are given up without touching
    /// those of a later one that began meanwhile.
    period: u64,
    /// What has been noted since the first lease was taken; noting it again would tell nobody anything new.
    noted: HashSet<(Kind, i64)>,
}

/// What can be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Layer,
    Blob,
}

impl Kind {
    /// The number in the `lease` table.
    pub(crate) fn code(self) -> i64 {
        match self {
            Self::Layer => 1,
            Self::Blob => 2,
        }
    }

    pub(crate) fn note_use_sql(self) -> &'static str {
        match self {
            Self::Layer => "UPDATE layer SET used_at = ?2, uses = uses + 1 WHERE n = ?1",
            Self::Blob => "UPDATE blob SET used_at = ?2, uses = uses + 1 WHERE n = ?1",
        }
    }
}

impl Store {
    /// Protects what this process touches from now on.
    pub fn lease(&self) -> Result<Lease> {
        self.session()?;
        let mut leases = lock(&self.inner.leases);
        leases.period += u64::from(leases.n_held == 0);
        leases.n_held += 1;
        drop(leases);
        Ok(Lease { store: self.clone() })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let inner = &self.store.inner;
        let ended = {
            let mut leases = lock(&inner.leases);
            leases.n_held -= 1;
            (leases.n_held == 0).then(|| (leases.period, std::mem::take(&mut leases.noted)))
        };
        if let Some((period, noted)) = ended
            && let Some(session) = inner.session_name()
            && let Err(error) = inner.forget_period(&session, period, &noted)
        {
            // The notes die with the session in any case.
            tracing::debug!(%error, "cannot give up the leases");
        }
        inner.index.tidy();
    }
}

impl Inner {
    /// Whether a use of the item still has to be noted by this process.
    pub(crate) fn is_news(&self, kind: Kind, n: i64) -> bool {
        !lock(&self.leases).noted.contains(&(kind, n))
    }

    /// Notes the use of items and leases them. Returns those that are gone.
    ///
    /// Uses that this process has noted under its present leases cost nothing.
    pub(crate) fn touch(&self, items: &[(Kind, i64)]) -> Result<Vec<(Kind, i64)>> {
        let news: Vec<_> = items.iter().copied().filter(|&(kind, n)| self.is_news(kind, n)).collect();
        if news.is_empty() {
            return Ok(Vec::new());
        }
        let gone = self.index.write("note a use", |tx| {
            let mut gone = Vec::new();
            for &(kind, n) in &news {
                if tx.prepare_cached(kind.note_use_sql())?.execute((n, now()))? == 0 {
                    gone.push((kind, n));
                } else {
                    self.note_lease(tx, kind, n)?;
                }
            }
            Ok(gone)
        })?;
        self.remember_noted(news.into_iter().filter(|item| !gone.contains(item)));
        Ok(gone)
    }

    /// Files an item under this session if a lease is held. Call inside the transaction that makes or finds it, and
    /// [`Inner::remember_noted`] after its commit.
    pub(crate) fn note_lease(&self, tx: &Transaction, kind: Kind, n: i64) -> Result<(), Fault> {
        let period = {
            let leases = lock(&self.leases);
            if leases.n_held == 0 {
                return Ok(());
            }
            leases.period
        };
        let holder = holder(self.session()?.name(), period);
        let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO lease(holder, kind, item) VALUES (?1, ?2, ?3)")?;
        insert.execute((holder, kind.code(), n))?;
        Ok(())
    }

    /// Remembers that uses need not be noted again under the present leases.
    pub(crate) fn remember_noted(&self, items: impl IntoIterator<Item = (Kind, i64)>) {
        let mut leases = lock(&self.leases);
        if leases.n_held > 0 {
            leases.noted.extend(items);
        }
    }

    /// Drops all leases of a session.
    pub(crate) fn forget_leases(&self, session: &str) -> Result<()> {
        self.index.write("give up leases", |tx| {
            // `/` follows `.`: the range holds exactly the names that begin with the session's and a full stop.
            let sql = "DELETE FROM lease WHERE holder >= ?1 || '.' AND holder < ?1 || '/'";
            tx.prepare_cached(sql)?.execute([session])?;
            Ok(())
        })
    }

    fn forget_period(&self, session: &str, period: u64, noted: &HashSet<(Kind, i64)>) -> Result<()> {
        if noted.is_empty() {
            return Ok(());
        }
        let holder = holder(session, period);
        self.index.write("give up leases", |tx| {
            let mut delete = tx.prepare_cached("DELETE FROM lease WHERE kind = ?1 AND item = ?2 AND holder = ?3")?;
            for (kind, n) in noted {
                delete.execute((kind.code(), n, &holder))?;
            }
            Ok(())
        })
    }
}

/// What the leases of one period are filed under.
fn holder(session: &str, period: u64) -> String {
    format!("{session}.{period}")
}

/// The session of a holder.
pub(crate) fn session_of(holder: &str) -> &str {
    holder.split_once('.').map_or(holder, |(session, _)| session)
}
