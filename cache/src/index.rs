//! The index: one SQLite database shared by all processes. Everything in it can be made again from files, or be lost
//! with nothing worse than a cold cache; so a corrupt one is superseded by a new generation, never repaired in place.
//!
//! File operations that belong to a change of the index happen *inside* its (immediate) transaction, after the SQL:
//! the database's write lock is what keeps a commit and a removal of the same file apart, across processes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::durability::{self, BootId};
use crate::error::{Fault, IoContext, Result};
use crate::layout::{Bucket, Layout};
use crate::{locks, rebuild, schema};

/// Writers hold the database for milliseconds; one that takes longer than this is stuck for another reason.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);
/// The write-ahead log is read by the first process that opens the store, so it must not grow without bound.
const LOG_LIMIT_BYTES: u64 = 1 << 20;
/// A log that once grew to this is cut, slow as that may be.
const LOG_MAX_BYTES: u64 = 32 << 20;
/// A step changes a dozen places in the database; every place costs one page in the log.
const PAGE_BYTES: u64 = 1024;
/// What precedes each page in the log.
const FRAME_HEADER_BYTES: u64 = 24;
/// File systems whose locks or shared memory cannot be trusted between machines: no write-ahead log there.
const NETWORK_FILE_SYSTEMS: [u64; 10] = [
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x00c3_6400, // Ceph
    0x0102_1997, // 9P
    0x6573_5546, // FUSE
    0x5346_414f, // AFS
    0x0bd0_0bd0, // Lustre
    0x4750_4653, // GPFS
];

const SUFFIX: &str = ".sqlite";

/// The database of one store.
pub(crate) struct Index {
    layout: Layout,
    boot: BootId,
    on_network: bool,
    open: Mutex<Open>,
}

struct Open {
    conn: Connection,
    generation: u64,
}

impl Index {
    /// Opens the newest generation, or makes one out of the files that are there.
    ///
    /// What was not yet durable at a power cut is dropped here.
    pub(crate) fn open(layout: &Layout, boot: &BootId) -> Result<Self> {
        let on_network = is_on_network(layout.root());
        let boot = if on_network { BootId::shared_by_machines() } else { boot.clone() };
        let open = match newest_generation(layout)? {
            None => supersede(layout, &boot, on_network, 0)?,
            Some(generation) => match connect(layout, generation, on_network) {
                Ok(conn) => Open { conn, generation },
                Err(fault) if is_corrupt(&fault) => supersede(layout, &boot, on_network, generation)?,
                Err(fault) => return Err(fault.during("open")),
            },
        };
        let index = Self { layout: layout.clone(), boot, on_network, open: Mutex::new(open) };
        durability::forget_what_a_power_cut_took(&index)?;
        Ok(index)
    }

    /// Which boot of the machine this is.
    pub(crate) fn boot(&self) -> &BootId {
        &self.boot
    }

    /// The paths of the store.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Runs queries. `job` may run twice, when the database turns out to be corrupt.
    pub(crate) fn read<T>(
        &self,
        operation: &'static str,
        mut job: impl FnMut(&Connection) -> Result<T, Fault>,
    ) -> Result<T> {
        self.retrying(operation, |conn| job(conn))
    }

    /// Runs changes in one transaction that excludes all other writers. `job` may run twice, as in [`Index::read`].
    pub(crate) fn write<T>(
        &self,
        operation: &'static str,
        mut job: impl FnMut(&Transaction) -> Result<T, Fault>,
    ) -> Result<T> {
        self.retrying(operation, |conn| {
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = job(&tx)?;
            tx.commit()?;
            Ok(value)
        })
    }

    /// A second connection, for long reads that must not hold up other threads.
    pub(crate) fn second_connection(&self) -> Result<Connection> {
        let generation = self.lock().generation;
        connect(&self.layout, generation, self.on_network).map_err(|fault| fault.during("open"))
    }

    /// Empties the write-ahead log into the database when it has grown, unless somebody is using it right now.
    ///
    /// Costs an fsync or two; called where nobody waits for microseconds.
    pub(crate) fn tidy(&self) {
        let open = self.lock();
        let log = generation_path(&self.layout, open.generation).with_extension("sqlite-wal");
        let len_bytes = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        if len_bytes > LOG_MAX_BYTES {
            checkpoint(&open.conn, "TRUNCATE");
        } else if len_bytes > LOG_LIMIT_BYTES
            && log_frames(&open.conn) * (PAGE_BYTES + FRAME_HEADER_BYTES) > LOG_LIMIT_BYTES
        {
            checkpoint(&open.conn, "RESTART");
        }
    }

    /// Reads the whole database; whether it is unsound.
    pub(crate) fn is_corrupt(&self) -> bool {
        is_unsound(&self.lock().conn)
    }

    /// Reads the whole database and replaces it if it is not sound. `true` when it was replaced.
    pub(crate) fn replace_if_corrupt(&self) -> Result<bool> {
        let mut open = self.lock();
        let is_corrupt = is_unsound(&open.conn);
        if is_corrupt {
            *open = supersede(&self.layout, &self.boot, self.on_network, open.generation)?;
        }
        Ok(is_corrupt)
    }

    /// Names of superseded generations' files.
    pub(crate) fn superseded(&self) -> Vec<PathBuf> {
        let current = self.lock().generation;
        let entries = std::fs::read_dir(self.layout.bucket(Bucket::Index)).into_iter().flatten().flatten();
        let old =
            entries.filter(|entry| generation_of(&entry.file_name().to_string_lossy()).is_some_and(|g| g < current));
        old.map(|entry| entry.path()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retrying<T>(
        &self,
        operation: &'static str,
        mut job: impl FnMut(&mut Connection) -> Result<T, Fault>,
    ) -> Result<T> {
        let mut open = self.lock();
        match job(&mut open.conn) {
            Err(fault) if is_corrupt(&fault) => {
                tracing::warn!(operation, ?fault, "the store's index is corrupt; making a new one");
                *open = supersede(&self.layout, &self.boot, self.on_network, open.generation)?;
                job(&mut open.conn)
            }
            other => other,
        }
        .map_err(|fault| fault.during(operation))
    }
}

/// Whether a database is corrupt, or has rows that refer to others that are gone.
fn is_unsound(conn: &Connection) -> bool {
    let verdict: rusqlite::Result<String> = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0));
    let orphans = || conn.prepare("PRAGMA foreign_key_check").and_then(|mut select| select.exists([]));
    match verdict.and_then(|verdict| Ok(verdict != "ok" || orphans()?)) {
        Ok(is_unsound) => is_unsound,
        Err(error) => is_corrupt(&Fault::Sql(error)),
    }
}

/// Number of frames in use in the log, which is less than its length once it has been started anew.
fn log_frames(conn: &Connection) -> u64 {
    let frames: rusqlite::Result<i64> = conn.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(1));
    frames.map_or(0, |frames| frames.max(0).cast_unsigned())
}

/// Moves the log's content into the database and starts the log anew, without waiting for other processes.
///
/// `RESTART` leaves the file as long as it is: freeing its blocks is slow where they are discarded at once.
fn checkpoint(conn: &Connection, mode: &str) {
    let _ = conn.busy_timeout(Duration::ZERO);
    let pragma = format!("PRAGMA wal_checkpoint({mode})");
    let restarted: rusqlite::Result<i64> = conn.query_row(&pragma, [], |row| row.get(0));
    let _ = conn.busy_timeout(BUSY_TIMEOUT);
    if restarted == Ok(0) {
        // The first write to a new log is followed by an fsync. Better here than in somebody's hot path. It has to
        // change something, or nothing is written.
        let _ = conn.execute("UPDATE meta SET value = value + 1 WHERE name = 'log'", []);
    }
}

/// Opens one generation, which must exist.
fn connect(layout: &Layout, generation: u64, on_network: bool) -> Result<Connection, Fault> {
    let path = generation_path(layout, generation);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(&path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(64);
    // A statement is compiled once, whatever is bound to it: compiling takes five times as long as running.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.execute_batch(
        "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 0;
         PRAGMA temp_store = MEMORY;",
    )?;
    if on_network {
        conn.pragma_update(None, "journal_mode", "DELETE")?;
    } else {
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    }
    if (schema::user_version(&conn)? as usize) < schema::MIGRATIONS.len() {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        schema::migrate(&tx)?;
        tx.commit()?;
    }
    if schema::looks_sound(&conn)? { Ok(conn) } else { Err(not_ours()) }
}

/// Makes the generation after `bad` from the files of the store, unless another process already has.
fn supersede(layout: &Layout, boot: &BootId, on_network: bool, bad: u64) -> Result<Open> {
    let _lock = locks::lock(layout, "index")?;
    let newest = newest_generation(layout)?.unwrap_or(0);
    if newest > bad
        && let Ok(conn) = connect(layout, newest, on_network)
    {
        return Ok(Open { conn, generation: newest });
    }
    let generation = newest.max(bad) + 1;
    let path = generation_path(layout, generation);
    let building = path.with_extension("building");
    if newest > 0 {
        tracing::warn!(superseded = newest, "rebuilding the store's index from its files");
    }
    let _ = std::fs::remove_file(&building);
    build(layout, boot, on_network, &building, newest > 0).map_err(|fault| fault.during("rebuild"))?;
    std::fs::rename(&building, &path).during("rename", &building)?;
    let conn = connect(layout, generation, on_network).map_err(|fault| fault.during("open"))?;
    Ok(Open { conn, generation })
}

fn build(layout: &Layout, boot: &BootId, on_network: bool, path: &Path, replaces: bool) -> Result<(), Fault> {
    let mut conn = Connection::open(path)?;
    conn.pragma_update(None, "page_size", PAGE_BYTES.cast_signed())?;
    conn.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")?;
    let tx = conn.transaction()?;
    schema::migrate(&tx)?;
    rebuild::fill(&tx, layout, boot, replaces)?;
    tx.commit()?;
    if !on_network {
        conn.pragma_update(None, "journal_mode", "WAL")?;
    }
    conn.close().map_err(|(_, error)| error)?;
    // The file replaces nothing, so its bytes must be there before its name is.
    let file = std::fs::File::open(path).during("open", path)?;
    file.sync_all().during("sync", path)?;
    Ok(())
}

fn generation_path(layout: &Layout, generation: u64) -> PathBuf {
    layout.bucket(Bucket::Index).join(format!("{generation:08}{SUFFIX}"))
}

fn generation_of(name: &str) -> Option<u64> {
    // `.sqlite`, `.sqlite-wal`, `.sqlite-shm`: all files of a generation begin the same.
    let (number, rest) = name.split_once('.')?;
    rest.starts_with(&SUFFIX[1..]).then(|| number.parse().ok()).flatten()
}

fn newest_generation(layout: &Layout) -> Result<Option<u64>> {
    let dir = layout.bucket(Bucket::Index);
    let mut newest = None;
    for entry in std::fs::read_dir(&dir).during("list", &dir)? {
        let name = entry.during("list", &dir)?.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(SUFFIX) {
            newest = newest.max(generation_of(&name));
        }
    }
    Ok(newest)
}

/// Whether the database itself is beyond use, as opposed to the disk, the request or the permissions.
fn is_corrupt(fault: &Fault) -> bool {
    match fault {
        Fault::Sql(rusqlite::Error::SqliteFailure(error, _)) => {
            matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        Fault::Sql(
            rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::QueryReturnedNoRows,
        ) => true,
        Fault::Sql(_) | Fault::Store(_) => false,
    }
}

/// The failure of a database that is sound but lacks our tables.
pub(crate) fn not_ours() -> Fault {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Fault::Sql(rusqlite::Error::SqliteFailure(code, Some("tables are missing".to_owned())))
}

/// Whether several machines may share the directory.
fn is_on_network(root: &Path) -> bool {
    let Ok(stat) = rustix::fs::statfs(root) else { return false };
    // The kernel's type is signed on some architectures; the magic numbers fit 32 bits everywhere.
    let magic = stat.f_type as u64 & 0xffff_ffff;
    NETWORK_FILE_SYSTEMS.contains(&magic)
}
