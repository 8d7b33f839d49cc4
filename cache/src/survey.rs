//! The survey behind `du` and behind every collection: all that occupies the disk, cut into units that go as a whole.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci::{DiffId, Digest};
use rusqlite::Connection;

use crate::error::{Fault, Result};
use crate::id::LayerId;
use crate::images::{self, Kept};
use crate::layout::{Bucket, Layout};
use crate::lease::{Kind, session_of};
use crate::mounts::Slot;
use crate::scratch::{disk_bytes, inode_bytes};
use crate::store::{Inner, now, seconds};
use crate::usage::{UsageKind, UsageRecord};
use crate::{schema, session};

/// Documents are smaller than this; an unreferenced blob that is larger was meant to become something and did not.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// How long such a blob is spared: a push or pull that was interrupted may be resumed.
const UNREFERENCED_GRACE_SECONDS: i64 = 3600;
/// What fetching or compressing again costs, for things whose making nobody timed.
const REMAKE_BYTES_PER_MS: u64 = 20_000;

/// Something that stays or goes as a whole.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) record: UsageRecord,
    pub(crate) target: Target,
    /// What it costs to have it again.
    pub(crate) cost_ms: u64,
    /// Nothing leads to it any more.
    pub(crate) is_garbage: bool,
}

/// What a unit consists of.
#[derive(Debug)]
pub(crate) enum Target {
    /// A layer with its tree and records, and the blobs that are its only forms.
    Layer { n: i64, id: LayerId, blobs: Vec<(i64, Digest)> },
    /// A blob that is not the only form of a layer.
    Blob { n: i64, digest: Digest },
    /// One directory of a cache mount.
    Mount(Slot),
    /// A file that nothing else depends on: the index of a context.
    File(PathBuf),
    /// What a dead session left.
    DeadSession { name: String, files: Vec<PathBuf> },
    /// A generation of the index that another has replaced.
    SupersededIndex(PathBuf),
    /// What the store needs to work.
    Housekeeping,
}

/// Everything in a store at one moment.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) units: Vec<Unit>,
    /// A process still works with an index that was lost: what it needs is unknown, so nothing may go.
    pub(crate) is_frozen: bool,
}

impl Survey {
    /// What the whole store occupies.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.units.iter().map(|unit| unit.record.size_bytes).sum()
    }
}

struct LayerFacts {
    n: i64,
    id: LayerId,
    diff_id: Option<Digest>,
    has_tree: bool,
    tree_bytes: Option<u64>,
    created_at: i64,
    used_at: i64,
    uses: u64,
    parents: String,
}

struct BlobFacts {
    n: i64,
    digest: Digest,
    disk_bytes: u64,
    created_at: i64,
    used_at: i64,
    uses: u64,
}

#[derive(Clone, Default)]
struct RecordFacts {
    name: String,
    cost_ms: u64,
}

#[derive(Clone, Copy)]
struct MountFacts {
    /// `None` when somebody has written since the last look.
    disk_bytes: Option<u64>,
    used_at: i64,
    uses: u64,
}

/// What the index says, read in one go.
struct Facts {
    layers: Vec<LayerFacts>,
    blobs: Vec<BlobFacts>,
    /// By the layer's number.
    records: HashMap<i64, RecordFacts>,
    /// Which tars a blob holds compressed.
    variants: HashMap<Digest, Digest>,
    /// By directory name.
    mounts: HashMap<String, MountFacts>,
    leased: HashSet<(i64, i64)>,
    rebuilt_at_ns: i64,
}

/// Takes stock.
pub(crate) fn survey(inner: &Inner) -> Result<Survey> {
    let layout = &inner.layout;
    let live: HashSet<String> = live_sessions(inner);
    // On a connection of its own, so that the build's lookups go on; the shared one knows what to do about corruption.
    let own_connection = inner
        .index
        .second_connection()
        .and_then(|conn| read_facts(&conn, &live).map_err(|fault| fault.during("take stock")));
    let mut facts = match own_connection {
        Ok(facts) => facts,
        Err(_) => inner.index.read("take stock", |conn| read_facts(conn, &live))?,
    };
    measure_trees(inner, &mut facts)?;
    let kept = images::kept(layout)?;
    let is_older = |name: &String| session::started_at_ns(layout, name).is_some_and(|at| at <= facts.rebuilt_at_ns);
    let is_frozen = facts.rebuilt_at_ns > 0 && live.iter().any(is_older);
    let mut units = layer_units(layout, &facts, &kept);
    units.extend(mount_units(inner, &facts)?);
    units.extend(context_units(layout));
    units.extend(session_units(layout, &live));
    units.extend(index_units(inner));
    units.extend(strange_units(layout));
    units.push(housekeeping(inner));
    if is_frozen {
        units.iter_mut().for_each(|unit| unit.record.in_use = true);
    }
    Ok(Survey { units, is_frozen })
}

/// What the store occupies, nearly: the sum of what is known, without a look at any file that was measured before.
pub(crate) fn quick_total_bytes(inner: &Inner) -> Result<u64> {
    let unmeasured = inner.index.read("add up sizes", |conn| {
        let sql = "SELECT EXISTS(SELECT 1 FROM layer WHERE has_tree AND tree_bytes IS NULL)
                       OR EXISTS(SELECT 1 FROM mount WHERE disk_bytes IS NULL)";
        Ok(conn.query_row(sql, [], |row| row.get::<_, bool>(0))?)
    })?;
    if unmeasured {
        return Ok(survey(inner)?.total_bytes());
    }
    known_total_bytes(inner)
}

/// What the store occupies as far as it has been measured: a lower bound, without a look at any file.
pub(crate) fn known_total_bytes(inner: &Inner) -> Result<u64> {
    let total: i64 = inner.index.read("add up sizes", |conn| {
        let sql = "SELECT (SELECT total(tree_bytes) FROM layer) + (SELECT total(disk_bytes) FROM blob)
                       + (SELECT total(disk_bytes) FROM mount)";
        Ok(conn.query_row(sql, [], |row| row.get::<_, f64>(0))? as i64)
    })?;
    Ok(total.cast_unsigned())
}

/// Names of the sessions whose processes live, this one's included.
pub(crate) fn live_sessions(inner: &Inner) -> HashSet<String> {
    let own = inner.session_name();
    let all = session::all_sessions(&inner.layout).into_keys();
    all.filter(|name| Some(name) == own.as_ref() || session::is_live(&inner.layout, name)).collect()
}

fn read_facts(conn: &Connection, live: &HashSet<String>) -> Result<Facts, Fault> {
    let tx = conn.unchecked_transaction()?;
    Ok(Facts {
        layers: read_layers(&tx)?,
        blobs: read_blobs(&tx)?,
        records: read_records(&tx)?,
        variants: read_variants(&tx)?,
        mounts: read_mounts(&tx)?,
        leased: read_leases(&tx, live)?,
        rebuilt_at_ns: schema::meta(&tx, "rebuilt_at")?,
    })
}

fn read_layers(conn: &Connection) -> rusqlite::Result<Vec<LayerFacts>> {
    let sql = "SELECT n, id, diff_id, has_tree, tree_bytes, created_at, used_at, uses, parents FROM layer";
    let mut select = conn.prepare(sql)?;
    let mut rows = select.query([])?;
    let mut layers = Vec::new();
    while let Some(row) = rows.next()? {
        let Some(id) = LayerId::from_name(row.get_ref(1)?.as_str()?) else { continue };
        layers.push(LayerFacts {
            n: row.get(0)?,
            id,
            diff_id: row.get::<_, Option<[u8; 32]>>(2)?.map(Digest::from_sha256),
            has_tree: row.get(3)?,
            tree_bytes: row.get::<_, Option<i64>>(4)?.map(i64::cast_unsigned),
            created_at: row.get(5)?,
            used_at: row.get(6)?,
            uses: row.get::<_, i64>(7)?.cast_unsigned(),
            parents: row.get(8)?,
        });
    }
    Ok(layers)
}

fn read_blobs(conn: &Connection) -> rusqlite::Result<Vec<BlobFacts>> {
    let mut select = conn.prepare("SELECT n, digest, disk_bytes, created_at, used_at, uses FROM blob")?;
    let rows = select.query_map([], |row| {
        Ok(BlobFacts {
            n: row.get(0)?,
            digest: Digest::from_sha256(row.get(1)?),
            disk_bytes: row.get::<_, i64>(2)?.cast_unsigned(),
            created_at: row.get(3)?,
            used_at: row.get(4)?,
            uses: row.get::<_, i64>(5)?.cast_unsigned(),
        })
    })?;
    rows.collect()
}

fn read_records(conn: &Connection) -> rusqlite::Result<HashMap<i64, RecordFacts>> {
    // A step has several keys, and only the record of one of them says what the step is and what it cost. SQLite takes the
    // bare columns from the row that has the maximum.
    let sql = "SELECT layer, name, cost_ms, max(2 * cost_ms + (name <> '')) FROM record GROUP BY layer";
    let mut select = conn.prepare(sql)?;
    let rows = select.query_map([], |row| {
        let cost_ms = row.get::<_, i64>(2)?.cast_unsigned();
        Ok((row.get(0)?, RecordFacts { name: row.get(1)?, cost_ms }))
    })?;
    rows.collect()
}

fn read_variants(conn: &Connection) -> rusqlite::Result<HashMap<Digest, Digest>> {
    let mut select = conn.prepare("SELECT digest, diff_id FROM variant")?;
    let rows = select.query_map([], |row| Ok((Digest::from_sha256(row.get(0)?), Digest::from_sha256(row.get(1)?))))?;
    rows.collect()
}

fn read_mounts(conn: &Connection) -> rusqlite::Result<HashMap<String, MountFacts>> {
    let mut select = conn.prepare("SELECT slot_dir, disk_bytes, used_at, uses FROM mount")?;
    let rows = select.query_map([], |row| {
        let facts = MountFacts {
            disk_bytes: row.get::<_, Option<i64>>(1)?.map(i64::cast_unsigned),
            used_at: row.get(2)?,
            uses: row.get::<_, i64>(3)?.cast_unsigned(),
        };
        Ok((row.get(0)?, facts))
    })?;
    rows.collect()
}

fn read_leases(conn: &Connection, live: &HashSet<String>) -> rusqlite::Result<HashSet<(i64, i64)>> {
    let mut select = conn.prepare("SELECT kind, item, holder FROM lease")?;
    let mut rows = select.query([])?;
    let mut leased = HashSet::new();
    while let Some(row) = rows.next()? {
        if live.contains(session_of(row.get_ref(2)?.as_str()?)) {
            leased.insert((row.get(0)?, row.get(1)?));
        }
    }
    Ok(leased)
}

/// Fills in the sizes of trees that nobody has measured, and stores them: trees never change.
fn measure_trees(inner: &Inner, facts: &mut Facts) -> Result<()> {
    let mut measured = Vec::new();
    for layer in facts.layers.iter_mut().filter(|layer| layer.has_tree && layer.tree_bytes.is_none()) {
        let size_bytes = disk_bytes(&inner.layout.tree(&layer.id));
        layer.tree_bytes = Some(size_bytes);
        measured.push((layer.n, size_bytes));
    }
    if measured.is_empty() {
        return Ok(());
    }
    inner.index.write("note sizes", |tx| {
        for &(n, size_bytes) in &measured {
            tx.prepare_cached("UPDATE layer SET tree_bytes = ?2 WHERE n = ?1")?
                .execute((n, size_bytes.cast_signed()))?;
        }
        Ok(())
    })
}

/// Units of layers and blobs: a blob goes with its layer when the layer has no tree, else on its own.
fn layer_units(layout: &Layout, facts: &Facts, kept: &Kept) -> Vec<Unit> {
    let has_tree: HashSet<&Digest> =
        facts.layers.iter().filter(|layer| layer.has_tree).filter_map(|layer| layer.diff_id.as_ref()).collect();
    // The first layer of a diff ID owns the blobs.
    let mut owner: HashMap<&Digest, i64> = HashMap::new();
    for layer in facts.layers.iter().filter(|layer| !layer.has_tree) {
        if let Some(diff_id) = layer.diff_id.as_ref().filter(|diff_id| !has_tree.contains(diff_id)) {
            owner.entry(diff_id).or_insert(layer.n);
        }
    }
    let mut owned: HashMap<i64, Vec<&BlobFacts>> = HashMap::new();
    let mut units = Vec::new();
    for blob in &facts.blobs {
        let tar = facts.variants.get(&blob.digest).unwrap_or(&blob.digest);
        match owner.get(tar) {
            Some(&n) => owned.entry(n).or_default().push(blob),
            None => units.push(blob_unit(facts, kept, blob, has_tree.contains(tar))),
        }
    }
    for layer in &facts.layers {
        let blobs = owned.remove(&layer.n).unwrap_or_default();
        units.push(layer_unit(layout, facts, kept, layer, &blobs));
    }
    units
}

fn blob_unit(facts: &Facts, kept: &Kept, blob: &BlobFacts, is_variant: bool) -> Unit {
    let shared = kept.blobs.contains(&blob.digest);
    let in_use = shared || facts.leased.contains(&(Kind::Blob.code(), blob.n));
    let is_variant = is_variant || facts.variants.contains_key(&blob.digest);
    let is_document = !is_variant && blob.disk_bytes <= MAX_DOCUMENT_BYTES;
    let (kind, description) = match (is_document, is_variant) {
        (true, _) => (UsageKind::Internal, format!("document {}", blob.digest)),
        (false, true) => (UsageKind::Regular, format!("packed layer {}", blob.digest)),
        (false, false) => (UsageKind::Regular, format!("blob {}", blob.digest)),
    };
    let is_abandoned = !is_document && !is_variant && blob.used_at < now() - UNREFERENCED_GRACE_SECONDS;
    Unit {
        record: UsageRecord {
            id: blob.digest.to_string(),
            kind,
            size_bytes: blob.disk_bytes,
            created_at: blob.created_at,
            last_used_at: blob.used_at,
            usage_count: blob.uses,
            description,
            in_use,
            shared,
            mutable: false,
            parents: Vec::new(),
        },
        target: Target::Blob { n: blob.n, digest: blob.digest.clone() },
        cost_ms: remake_ms(blob.disk_bytes),
        is_garbage: is_abandoned,
    }
}

fn layer_unit(layout: &Layout, facts: &Facts, kept: &Kept, layer: &LayerFacts, blobs: &[&BlobFacts]) -> Unit {
    let diff_id = layer.diff_id.clone().map(DiffId::of_uncompressed);
    let shared = diff_id.is_some_and(|diff_id| kept.diff_ids.contains(&diff_id))
        || blobs.iter().any(|blob| kept.blobs.contains(&blob.digest));
    let in_use = shared
        || facts.leased.contains(&(Kind::Layer.code(), layer.n))
        || blobs.iter().any(|blob| facts.leased.contains(&(Kind::Blob.code(), blob.n)));
    let tree_bytes =
        if layer.has_tree { layer.tree_bytes.unwrap_or(0) + described_bytes(&layout.layer_dir(&layer.id)) } else { 0 };
    let size_bytes = tree_bytes + blobs.iter().map(|blob| blob.disk_bytes).sum::<u64>();
    let record = facts.records.get(&layer.n);
    let description = match (record, &layer.diff_id) {
        (Some(record), _) => record.name.clone(),
        (None, Some(diff_id)) => format!("layer {diff_id}"),
        (None, None) => "result of an unfinished build".to_owned(),
    };
    Unit {
        record: UsageRecord {
            id: layer.id.to_string(),
            kind: UsageKind::Regular,
            size_bytes,
            created_at: layer.created_at,
            last_used_at: blobs.iter().map(|blob| blob.used_at).fold(layer.used_at, i64::max),
            usage_count: layer.uses,
            description,
            in_use,
            shared,
            mutable: false,
            parents: layer.parents.split(';').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        },
        target: Target::Layer {
            n: layer.n,
            id: layer.id.clone(),
            blobs: blobs.iter().map(|blob| (blob.n, blob.digest.clone())).collect(),
        },
        cost_ms: record.map_or_else(|| remake_ms(size_bytes), |record| record.cost_ms),
        is_garbage: layer.id.is_built() && record.is_none(),
    }
}

/// What lies around a tree: the layer's directory and its descriptions.
fn described_bytes(dir: &Path) -> u64 {
    let paths = [dir.to_owned(), dir.join("layer.json"), dir.join("tar.json"), dir.join("work"), dir.join("work/work")];
    paths.iter().filter_map(|path| std::fs::symlink_metadata(path).ok()).map(|metadata| inode_bytes(&metadata)).sum()
}

fn remake_ms(size_bytes: u64) -> u64 {
    size_bytes / REMAKE_BYTES_PER_MS
}

fn mount_units(inner: &Inner, facts: &Facts) -> Result<Vec<Unit>> {
    let mut measured = Vec::new();
    let units: Vec<_> = Slot::all(&inner.layout)
        .into_iter()
        .map(|slot| {
            // Given back at once: who finds it taken would go for another directory.
            let in_use = !matches!(slot.try_take_exclusive(), Ok(Some(_)));
            let name = slot.name();
            let known = facts.mounts.get(&name);
            let size_bytes = known.and_then(|facts| facts.disk_bytes).unwrap_or_else(|| disk_bytes(&slot.dir));
            // While somebody holds it the size may be stale as soon as it is known.
            if !in_use && known.is_none_or(|facts| facts.disk_bytes.is_none()) {
                measured.push((name, size_bytes, known.map_or(0, |facts| facts.uses)));
            }
            mount_unit(slot, size_bytes, known, in_use)
        })
        .collect();
    if !measured.is_empty() {
        inner.index.write("note sizes", |tx| {
            // Not if somebody has taken it since.
            let sql = "INSERT INTO mount(slot_dir, disk_bytes, used_at, uses) VALUES (?1, ?2, ?3, ?4)
                       ON CONFLICT(slot_dir) DO UPDATE SET disk_bytes = ?2 WHERE uses = ?4";
            for (name, size_bytes, uses) in &measured {
                let values = (name, size_bytes.cast_signed(), now(), uses.cast_signed());
                tx.prepare_cached(sql)?.execute(values)?;
            }
            Ok(())
        })?;
    }
    Ok(units)
}

fn mount_unit(slot: Slot, size_bytes: u64, known: Option<&MountFacts>, in_use: bool) -> Unit {
    let file = slot.description();
    let created_at = file.as_ref().map_or(0, |file| file.created_at);
    Unit {
        record: UsageRecord {
            id: slot.name(),
            kind: file.as_ref().map_or(UsageKind::CacheMount, |file| file.kind),
            size_bytes,
            created_at,
            last_used_at: known.map_or(created_at, |facts| facts.used_at),
            usage_count: known.map_or(0, |facts| facts.uses),
            description: file.map_or_else(|| "unreadable cache mount".to_owned(), |file| file.description),
            in_use,
            shared: false,
            mutable: true,
            parents: Vec::new(),
        },
        target: Target::Mount(slot),
        cost_ms: remake_ms(size_bytes),
        is_garbage: false,
    }
}

/// A unit that is no more than a path.
fn path_unit(path: &Path, kind: UsageKind, description: &str, target: Target) -> Unit {
    let metadata = std::fs::symlink_metadata(path);
    let changed_at = metadata.and_then(|metadata| metadata.modified()).map_or(0, seconds);
    let size_bytes = disk_bytes(path);
    Unit {
        record: UsageRecord {
            id: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            kind,
            size_bytes,
            created_at: changed_at,
            last_used_at: changed_at,
            usage_count: 1,
            description: description.to_owned(),
            in_use: false,
            shared: false,
            mutable: true,
            parents: Vec::new(),
        },
        is_garbage: !matches!(target, Target::File(_)),
        target,
        cost_ms: remake_ms(size_bytes),
    }
}

fn context_units(layout: &Layout) -> Vec<Unit> {
    let entries = std::fs::read_dir(layout.bucket(Bucket::Contexts)).into_iter().flatten().flatten();
    let unit = |path: PathBuf| {
        path_unit(&path, UsageKind::SourceLocal, "index of a local context", Target::File(path.clone()))
    };
    entries.map(|entry| unit(entry.path())).collect()
}

fn session_units(layout: &Layout, live: &HashSet<String>) -> Vec<Unit> {
    let dir = layout.bucket(Bucket::Temporary);
    let unit = |(name, files): (String, Vec<PathBuf>)| {
        let is_live = live.contains(&name);
        let size_bytes = files.iter().map(|path| disk_bytes(path)).sum();
        let description = if is_live { "work of a running build" } else { "leftovers of a dead build" };
        let path = dir.join(&name);
        let target = if is_live { Target::Housekeeping } else { Target::DeadSession { name, files } };
        let mut unit = path_unit(&path, UsageKind::Internal, description, target);
        unit.record.size_bytes = size_bytes;
        unit.record.in_use = is_live;
        unit.is_garbage = !is_live;
        unit
    };
    session::all_sessions(layout).into_iter().map(unit).collect()
}

fn index_units(inner: &Inner) -> Vec<Unit> {
    let paths = inner.index.superseded().into_iter();
    let unit = |path: PathBuf| {
        path_unit(&path, UsageKind::Internal, "superseded index", Target::SupersededIndex(path.clone()))
    };
    paths.map(unit).collect()
}

/// What other versions of this program keep in the same directory: counted, and left alone.
fn strange_units(layout: &Layout) -> Vec<Unit> {
    let entries = std::fs::read_dir(layout.root()).into_iter().flatten().flatten();
    let strange = entries.filter(|entry| !Bucket::ALL.iter().any(|bucket| entry.file_name() == bucket.name()));
    let unit = |path: PathBuf| {
        let mut unit = path_unit(&path, UsageKind::Internal, "of another version", Target::Housekeeping);
        unit.record.in_use = true;
        unit.is_garbage = false;
        unit
    };
    strange.map(|entry| unit(entry.path())).collect()
}

/// Everything that belongs to no other unit: the database, locks, images, and the directories themselves.
fn housekeeping(inner: &Inner) -> Unit {
    let layout = &inner.layout;
    let mut unit =
        path_unit(&layout.bucket(Bucket::Index), UsageKind::Internal, "index of the store", Target::Housekeeping);
    let superseded: u64 = inner.index.superseded().iter().map(|path| disk_bytes(path)).sum();
    let whole = [
        Bucket::Images,
        Bucket::Pushes,
        Bucket::Locks,
        Bucket::Durable,
        Bucket::Style,
        Bucket::Reserve,
        Bucket::FileLists,
        Bucket::Builds,
    ];
    let whole = whole.map(|bucket| layout.bucket(bucket));
    let buckets = [Bucket::Blobs, Bucket::Trees, Bucket::Mounts, Bucket::Contexts, Bucket::Temporary];
    let mut inodes = buckets.map(|bucket| layout.bucket(bucket)).to_vec();
    inodes.extend([layout.root().to_owned(), layout.blobs().to_owned()]);
    let inodes = inodes.iter().filter_map(|path| std::fs::symlink_metadata(path).ok());
    unit.record.size_bytes = unit.record.size_bytes.saturating_sub(superseded)
        + whole.iter().map(|path| disk_bytes(path)).sum::<u64>()
        + inodes.map(|metadata| inode_bytes(&metadata)).sum::<u64>();
    unit.record.in_use = true;
    unit.is_garbage = false;
    unit
}
