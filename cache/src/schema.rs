//! The tables of the index, and how older ones become current.
//!
//! Times are seconds since the epoch; digests are 32 raw bytes; `epoch` columns are explained in [`crate::durability`].

use rusqlite::Connection;

use crate::durability::BootId;

/// What brings a database from version `n` to `n + 1`, at position `n`; the version is SQLite's `user_version`.
///
/// A database with a *higher* version than this list is long is used as it is: changes that an older program could not
/// live with get a new bucket instead ([`crate::Bucket::Index`]).
pub(crate) const MIGRATIONS: [&str; 6] = ["
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;

-- `id` is the public name.
-- `tree_bytes` is what the tree occupies on disk, NULL until somebody asked.
CREATE TABLE layer(
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    content BLOB NOT NULL,
    diff_id BLOB,
    tar_bytes INTEGER,
    has_tree INTEGER NOT NULL DEFAULT 0,
    tree_bytes INTEGER,
    epoch INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    uses INTEGER NOT NULL DEFAULT 0,
    parents TEXT NOT NULL DEFAULT ''
);
CREATE INDEX layer_by_diff_id ON layer(diff_id) WHERE diff_id IS NOT NULL;

-- `n` grows with time: the newest record of a slot is the one with the highest.
CREATE TABLE record(
    n INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    layer INTEGER NOT NULL REFERENCES layer(n) ON DELETE CASCADE,
    slot TEXT NOT NULL,
    name TEXT NOT NULL,
    cost_ms INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL
);
CREATE INDEX record_by_slot ON record(slot);
CREATE INDEX record_by_layer ON record(layer);
-- Long and seldom read; apart, so that noting a use does not rewrite it and pruning does not read it.
CREATE TABLE ingredients(
    record INTEGER PRIMARY KEY REFERENCES record(n) ON DELETE CASCADE,
    json TEXT NOT NULL
);

-- `verified` is 0 for a file that was found rather than written, until its bytes have been hashed.
CREATE TABLE blob(
    n INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    size_bytes INTEGER NOT NULL,
    disk_bytes INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    verified INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    uses INTEGER NOT NULL DEFAULT 0
);

-- What a tar becomes when it is compressed; outlives the blob, because the bytes always come out the same.
CREATE TABLE variant(
    diff_id BLOB NOT NULL,
    codec TEXT NOT NULL,
    digest BLOB NOT NULL,
    descriptor TEXT NOT NULL,
    PRIMARY KEY(diff_id, codec, digest)
) WITHOUT ROWID;
CREATE INDEX variant_by_digest ON variant(digest);

CREATE TABLE remote(
    diff_id BLOB NOT NULL,
    repository TEXT NOT NULL,
    digest BLOB NOT NULL,
    descriptor TEXT NOT NULL,
    noted_at INTEGER NOT NULL,
    PRIMARY KEY(diff_id, repository, digest)
) WITHOUT ROWID;

CREATE TABLE piece(
    raw BLOB NOT NULL,
    codec TEXT NOT NULL,
    blob INTEGER NOT NULL REFERENCES blob(n) ON DELETE CASCADE,
    offset_bytes INTEGER NOT NULL,
    len_bytes INTEGER NOT NULL,
    PRIMARY KEY(raw, codec)
) WITHOUT ROWID;
CREATE INDEX piece_by_blob ON piece(blob);

-- `slot_dir` is the directory's name; `disk_bytes` is NULL when somebody has written since the last look.
CREATE TABLE mount(
    slot_dir TEXT PRIMARY KEY,
    disk_bytes INTEGER,
    used_at INTEGER NOT NULL,
    uses INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- What live sessions work with. `holder` is `<session>.<period>`; `kind` is 1 for a layer, 2 for a blob; `item` is its `n`.
CREATE TABLE lease(
    holder TEXT NOT NULL,
    kind INTEGER NOT NULL,
    item INTEGER NOT NULL,
    PRIMARY KEY(kind, item, holder)
) WITHOUT ROWID;
CREATE INDEX lease_by_holder ON lease(holder);
", "
-- What a registry said last; `descriptor` is that of a manifest or an index.
CREATE TABLE resolution(reference TEXT PRIMARY KEY, descriptor TEXT NOT NULL) WITHOUT ROWID;
", "
-- The last `n` given to a layer, a record or a blob: see `new_number`.
INSERT INTO meta(name, value) VALUES ('number', 0);
", "
-- See `explanations`: the layers that a step stands on, once for all steps. Lists of older programs hold them in `json`.
CREATE TABLE stack(name BLOB PRIMARY KEY, below BLOB, content BLOB NOT NULL) WITHOUT ROWID;
ALTER TABLE ingredients ADD COLUMN stack BLOB;
ALTER TABLE ingredients ADD COLUMN base_layers INTEGER NOT NULL DEFAULT 0;
", "
-- Which records went together with their layers, and when; only the last 4096 are kept. Replacing a record is no eviction:
-- its layer is still there.
CREATE TABLE evicted(
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    slot TEXT NOT NULL,
    key BLOB NOT NULL,
    at INTEGER NOT NULL
);
CREATE INDEX evicted_by_slot ON evicted(slot);
CREATE INDEX evicted_by_key ON evicted(key);
CREATE TRIGGER layer_evicted BEFORE DELETE ON layer BEGIN
    INSERT INTO evicted(slot, key, at) SELECT slot, key, unixepoch() FROM record WHERE layer = old.n AND slot <> '';
END;
CREATE TRIGGER evicted_bounded AFTER INSERT ON evicted BEGIN
    DELETE FROM evicted WHERE n <= new.n - 4096;
END;
", "
-- What a server that is no registry said last; the question is a digest, as there may be passwords in URLs.
CREATE TABLE answer(question BLOB PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
"];

/// The tables that must be there, as a database that has lost one is as good as none.
const TABLES: i64 = 9;

/// Applies what is missing. Call inside a transaction.
pub(crate) fn migrate(conn: &Connection) -> rusqlite::Result<()> {
    let version = user_version(conn)?;
    for (n_seen, script) in (0_u32..).zip(MIGRATIONS).skip(version as usize) {
        conn.execute_batch(script)?;
        conn.pragma_update(None, "user_version", n_seen + 1)?;
    }
    Ok(())
}

/// How many migrations the database has seen.
pub(crate) fn user_version(conn: &Connection) -> rusqlite::Result<u32> {
    conn.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Whether the database looks like one of ours, without reading more than its first pages.
pub(crate) fn looks_sound(conn: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN
        ('meta', 'layer', 'record', 'ingredients', 'blob', 'variant', 'remote', 'piece', 'lease')";
    let n_tables: i64 = conn.query_row(sql, [], |row| row.get(0))?;
    let n_meta: i64 =
        conn.query_row("SELECT count(*) FROM meta WHERE name IN ('boot', 'epoch')", [], |row| row.get(0))?;
    Ok(n_tables == TABLES && n_meta == 2)
}

/// The facts that a new database starts with.
pub(crate) fn seed(conn: &Connection, boot: &BootId, epoch: i64, rebuilt_at: i64) -> rusqlite::Result<()> {
    let mut insert = conn.prepare("INSERT INTO meta(name, value) VALUES (?1, ?2)")?;
    insert.execute(("boot", boot.as_str()))?;
    insert.execute(("epoch", epoch))?;
    insert.execute(("dirty", 0))?;
    insert.execute(("log", 0))?;
    insert.execute(("rebuilt_at", rebuilt_at))?;
    Ok(())
}

/// A number that no layer, record or blob has had before.
///
/// Who has read a row notes its use later, in a transaction of its own, and under leases of this process only once: a
/// number that came back after a deletion would then stand for something else, and protect that. (SQLite's own
/// `AUTOINCREMENT` would do the same, but cannot be given to tables that are there.)
pub(crate) fn new_number(conn: &Connection) -> rusqlite::Result<i64> {
    // The maxima are for an older program in the same store, which does not count here.
    let sql = "UPDATE meta SET value = 1 + max(value,
            (SELECT ifnull(max(n), 0) FROM layer), (SELECT ifnull(max(n), 0) FROM record),
            (SELECT ifnull(max(n), 0) FROM blob))
        WHERE name = 'number' RETURNING value";
    conn.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

/// One number of the `meta` table; 0 when it is missing.
pub(crate) fn meta(conn: &Connection, name: &str) -> rusqlite::Result<i64> {
    use rusqlite::OptionalExtension;
    let sql = "SELECT value FROM meta WHERE name = ?1";
    Ok(conn.prepare_cached(sql)?.query_row([name], |row| row.get(0)).optional()?.unwrap_or(0))
}
