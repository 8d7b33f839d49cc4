//! Leases: what a running build works with cannot be taken from it by anybody's garbage collection.
//!
//! While a process holds a lease, every layer and blob it makes or looks up is noted in the index under its session's
//! name. A collector skips what live sessions have noted; whether a session lives, the kernel says (its flocked file).
//!
//! What a build will most likely look up is leased in one go before it begins ([`Store::expect_results`]). The uses of
//! that are noted in one go when the last lease ends: a build that finds everything writes twice, not once a step. One
//! that does not gives up what it has not used ([`Store::expect_no_more`]), so that it can make room for the new.

use std::collections::{HashMap, HashSet};

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
    /// What has been leased since the first lease was taken; leasing it again would tell nobody anything new.
    held: HashMap<(Kind, i64), Use>,
    /// Numbers of records that were found without a word to the index, because what they need was leased.
    found: HashSet<i64>,
}

/// What the index knows of the use of something leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It has not been used.
    Expected,
    /// It has been used; the index is told when the last lease ends.
    Pending,
    /// The index has been told.
    Noted,
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

/// Notes the use of a record: its number, the time.
pub(crate) const NOTE_RECORD_SQL: &str = "UPDATE record SET used_at = ?2 WHERE n = ?1";

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
            let period = leases.period;
            (leases.n_held == 0).then(|| std::mem::replace(&mut *leases, Leases { period, ..Leases::default() }))
        };
        if let Some(ended) = ended
            && let Some(session) = inner.session_name()
            && let Err(error) = inner.end_period(&session, &ended)
        {
            // The leases die with the session in any case; a use that nobody is told of makes something look older.
            tracing::debug!(%error, "cannot give up the leases");
        }
        inner.index.tidy();
    }
}

impl Inner {
    /// Uses what is leased; the items that are not, whose use the index has to be told of at once.
    pub(crate) fn use_leased(&self, items: &[(Kind, i64)]) -> Vec<(Kind, i64)> {
        let mut leases = lock(&self.leases);
        let mut news = Vec::new();
        for item in items {
            match leases.held.get_mut(item) {
                Some(state @ Use::Expected) => *state = Use::Pending,
                Some(Use::Pending | Use::Noted) => {}
                None => news.push(*item),
            }
        }
        news
    }

    /// A record was found, and everything that it needs is leased.
    pub(crate) fn use_record(&self, n: i64) {
        let mut leases = lock(&self.leases);
        if leases.n_held > 0 {
            leases.found.insert(n);
        }
    }

    /// Notes the use of items and leases them. Returns those that are gone.
    ///
    /// Uses of what this process has leased cost nothing.
    pub(crate) fn touch(&self, items: &[(Kind, i64)]) -> Result<Vec<(Kind, i64)>> {
        let news = self.use_leased(items);
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

    /// Leases in one go what `find` names, to be used without a word to the index. Does nothing without a lease.
    pub(crate) fn expect(&self, mut find: impl FnMut(&Transaction) -> Result<Vec<(Kind, i64)>, Fault>) -> Result<()> {
        if lock(&self.leases).n_held == 0 {
            return Ok(());
        }
        let expected = self.index.write("lease what will be used", |tx| {
            let expected = find(tx)?;
            for &(kind, n) in &expected {
                self.note_lease(tx, kind, n)?;
            }
            Ok(expected)
        })?;
        self.remember(expected, Use::Expected);
        Ok(())
    }

    /// Gives up what was expected and has not been used.
    pub(crate) fn expect_no_more(&self) -> Result<()> {
        let Some(session) = self.session_name() else { return Ok(()) };
        self.index.write("give up what is not used", |tx| {
            // In here, so that who finds one of these meanwhile leases it after us.
            let mut leases = lock(&self.leases);
            let holder = holder(&session, leases.period);
            let unused: Vec<_> =
                leases.held.extract_if(|_, state| *state == Use::Expected).map(|(item, _)| item).collect();
            drop(leases);
            let mut delete = tx.prepare_cached("DELETE FROM lease WHERE kind = ?1 AND item = ?2 AND holder = ?3")?;
            for (kind, n) in unused {
                delete.execute((kind.code(), n, &holder))?;
            }
            Ok(())
        })
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
        self.remember(items, Use::Noted);
    }

    fn remember(&self, items: impl IntoIterator<Item = (Kind, i64)>, state: Use) {
        let mut leases = lock(&self.leases);
        if leases.n_held == 0 {
            return;
        }
        for item in items {
            leases.held.entry(item).or_insert(state);
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

    /// Gives up the leases of a period, and tells the index of the uses that it does not know of.
    fn end_period(&self, session: &str, ended: &Leases) -> Result<()> {
        if ended.held.is_empty() {
            return Ok(());
        }
        self.index.write("give up leases", |tx| {
            let at = now();
            for n in &ended.found {
                tx.prepare_cached(NOTE_RECORD_SQL)?.execute((n, at))?;
            }
            for (&(kind, n), _) in ended.held.iter().filter(|&(_, state)| *state == Use::Pending) {
                tx.prepare_cached(kind.note_use_sql())?.execute((n, at))?;
            }
            tx.prepare_cached("DELETE FROM lease WHERE holder = ?1")?.execute([holder(session, ended.period)])?;
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
