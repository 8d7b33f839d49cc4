//! Layers: one immutable filesystem changeset each, in up to three forms (tree, tar, compressed blobs).
//!
//! Layers that share a diff ID share their forms: the layer of a pulled image has the tree of the layer that was built
//! here with the same bytes, and the other way round.

use std::path::{Path, PathBuf};

use oci::{DiffId, Digest};
use rusqlite::{Connection, OptionalExtension, Row, Transaction};
use serde::{Deserialize, Serialize};

use crate::durability::current_epoch;
use crate::error::{Fault, IoContext, Result, StoreError};
use crate::id::{ContentDigest, Layer, LayerId, parse_hex32};
use crate::layout::Layout;
use crate::lease::Kind;
use crate::scratch::{TreeDraft, remove_tree};
use crate::store::{Store, now};
use crate::{blobs, schema};

/// Everything the store knows about one layer.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// Identity and content.
    pub layer: Layer,
    /// Digest of the uncompressed tar, once it has been written or when it was pulled.
    pub diff_id: Option<DiffId>,
    /// The tree form, if it exists: a directory in overlayfs' own format, ready to be a lower directory.
    pub tree: Option<PathBuf>,
    /// Whether the tree was written by a step of a build here, so that its tar can be made of it again; not when it was
    /// unpacked from a blob, whose bytes may say the same in another way.
    pub is_tree_built: bool,
    /// Whether the blob named by `diff_id` (the plain tar) is stored.
    pub has_tar: bool,
    /// Length of the uncompressed tar, once known.
    pub tar_bytes: Option<u64>,
    /// Seconds since the epoch at which the layer was made.
    pub created_at: i64,
}

/// `layer.json` beside a tree: what an index is rebuilt from. Written before the tree is published, never changed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LayerFile {
    /// 64 hex digits.
    pub(crate) content: String,
    pub(crate) created_at: i64,
    /// When it was written, for [`crate::durability`].
    pub(crate) epoch: i64,
    pub(crate) boot: String,
}

/// `tar.json` beside a tree, once its tar has been written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TarFile {
    pub(crate) diff_id: DiffId,
    pub(crate) tar_bytes: u64,
}

/// One row of the `layer` table.
#[derive(Clone, Debug)]
pub(crate) struct LayerRow {
    pub(crate) n: i64,
    pub(crate) id: LayerId,
    content: ContentDigest,
    pub(crate) diff_id: Option<DiffId>,
    tar_bytes: Option<u64>,
    has_tree: bool,
    created_at: i64,
}

/// The columns that [`LayerRow::read`] expects, in its order.
pub(crate) const LAYER_COLUMNS: &str =
    "layer.n, layer.id, layer.content, layer.diff_id, layer.tar_bytes, layer.has_tree, layer.created_at";

impl Store {
    /// Makes a built tree a layer.
    ///
    /// Visible to all processes when it returns; durable after
    /// [`Store::sync`].
    pub fn commit_tree(&self, draft: TreeDraft, content: ContentDigest) -> Result<LayerInfo> {
        let id = LayerId::of_built(&self.session()?.unique());
        let size_bytes = draft.size_bytes();
        let n = self.inner.index.write("note a layer", |tx| {
            let epoch = current_epoch(tx)?;
            let n = insert(tx, &NewLayer { id: &id, content, diff_id: None, tar_bytes: None, epoch })?;
            tx.prepare_cached("UPDATE layer SET has_tree = 1, tree_bytes = ?2 WHERE n = ?1")?
                .execute((n, size_bytes.map(u64::cast_signed)))?;
            self.inner.note_lease(tx, Kind::Layer, n)?;
            self.place_tree(&draft, &id, content, epoch)?;
            Ok(n)
        })?;
        draft.keep();
        self.inner.remember_noted([(Kind::Layer, n)]);
        let tree = Some(self.inner.layout.tree(&id));
        let layer = Layer { id, content };
        let created_at = now();
        Ok(LayerInfo { layer, diff_id: None, tree, is_tree_built: true, has_tar: false, tar_bytes: None, created_at })
    }

    /// Makes a layer whose only form is its tar, already stored in blobs (plain, or compressed and remembered with
    /// [`Store::remember_blob`]). A layer of the same bytes and content that exists already is returned as it is.
    pub fn commit_tar(&self, diff_id: &DiffId, tar_bytes: u64, content: ContentDigest) -> Result<LayerInfo> {
        let id = LayerId::of_built(&self.session()?.unique());
        let (row, info) = self.inner.index.write("note a layer", |tx| {
            let sql = format!("SELECT {LAYER_COLUMNS} FROM layer WHERE diff_id = ?1 AND content = ?2 LIMIT 1");
            let same = (diff_id.digest().as_bytes(), content.0);
            let row = match tx.prepare_cached(&sql)?.query_row(same, LayerRow::read).optional()? {
                Some(row) => row,
                None => {
                    let epoch = current_epoch(tx)?;
                    let new = NewLayer { id: &id, content, diff_id: Some(diff_id), tar_bytes: Some(tar_bytes), epoch };
                    insert(tx, &new)?;
                    find_row(tx, &id)?.ok_or_else(|| StoreError::UnknownLayer { id: id.clone() })?
                }
            };
            self.inner.note_lease(tx, Kind::Layer, row.n)?;
            Ok((row.clone(), row.info(tx, &self.inner.layout)?))
        })?;
        self.inner.remember_noted([(Kind::Layer, row.n)]);
        Ok(info)
    }

    /// The layer of a pulled or loaded image, by diff ID; made when unknown. It may have no local form yet.
    pub fn layer_for_diff_id(&self, diff_id: &DiffId) -> Result<LayerInfo> {
        let id = LayerId::of_diff_id(diff_id);
        if let Some(info) = self.layer(&id)? {
            return Ok(info);
        }
        let content = ContentDigest::of_diff_id(diff_id);
        self.inner.index.write("note a layer", |tx| {
            if find_row(tx, &id)?.is_none() {
                let epoch = current_epoch(tx)?;
                insert(tx, &NewLayer { id: &id, content, diff_id: Some(diff_id), tar_bytes: None, epoch })?;
            }
            Ok(())
        })?;
        self.layer(&id)?.ok_or(StoreError::UnknownLayer { id })
    }

    /// Adds the tree form to a layer that has none (unpacked from its blob). Another process may have been quicker;
    /// the result is the tree that counts.
    pub fn attach_tree(&self, layer: &LayerId, draft: TreeDraft) -> Result<PathBuf> {
        let layout = &self.inner.layout;
        let size_bytes = draft.size_bytes();
        let (tree, is_ours, n) =
            self.inner.index.write("note a tree", |tx| {
                let unknown = || StoreError::UnknownLayer { id: layer.clone() };
                let row = find_row(tx, layer)?.ok_or_else(unknown)?;
                self.inner.note_lease(tx, Kind::Layer, row.n)?;
                if let Some(known) = row.tree(tx, layout)? {
                    self.inner.note_lease(tx, Kind::Layer, known.n)?;
                    return Ok((known.path, false, known.n));
                }
                let epoch = current_epoch(tx)?;
                tx.prepare_cached("UPDATE layer SET has_tree = 1, tree_bytes = ?2, epoch = ?3 WHERE n = ?1")?
                    .execute((row.n, size_bytes.map(u64::cast_signed), epoch))?;
                self.place_tree(&draft, layer, row.content, epoch)?;
                Ok((layout.tree(layer), true, row.n))
            })?;
        if is_ours {
            draft.keep();
        }
        self.inner.remember_noted([(Kind::Layer, n)]);
        Ok(tree)
    }

    /// Everything known about a layer; `None` when it is gone. Notes the use.
    pub fn layer(&self, id: &LayerId) -> Result<Option<LayerInfo>> {
        let layout = &self.inner.layout;
        let found = self.inner.index.read("find a layer", |conn| {
            let Some(row) = find_row(conn, id)? else { return Ok(None) };
            Ok(Some((row.users(conn)?, row.info(conn, layout)?)))
        })?;
        let Some((users, info)) = found else { return Ok(None) };
        if self.inner.touch(&users)?.is_empty() { Ok(Some(info)) } else { self.layer(id) }
    }

    /// Notes the diff ID of a layer once its tar has been written.
    ///
    /// # Errors
    /// [`StoreError::UnknownLayer`].
    pub fn set_diff_id(&self, layer: &LayerId, diff_id: &DiffId, tar_bytes: u64) -> Result<()> {
        let dir = self.inner.layout.layer_dir(layer);
        self.inner.index.write("note a diff ID", |tx| {
            let sql = "UPDATE layer SET diff_id = ?2, tar_bytes = ?3 WHERE id = ?1 RETURNING has_tree";
            let values = (layer.as_str(), diff_id.digest().as_bytes(), tar_bytes.cast_signed());
            let has_tree: Option<bool> = tx.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()?;
            let has_tree = has_tree.ok_or_else(|| StoreError::UnknownLayer { id: layer.clone() })?;
            if has_tree {
                write_json(&dir.join("tar.json"), &TarFile { diff_id: diff_id.clone(), tar_bytes })?;
            }
            Ok(())
        })
    }

    /// Moves a draft to where the tree of a layer belongs, with its description.
    fn place_tree(&self, draft: &TreeDraft, id: &LayerId, content: ContentDigest, epoch: i64) -> Result<()> {
        let dir = self.inner.layout.layer_dir(id);
        let file = LayerFile {
            content: oci::digest::hex(&content.0),
            created_at: now(),
            epoch,
            boot: self.inner.index.boot().as_str().to_owned(),
        };
        write_json(&draft.path().join("layer.json"), &file)?;
        if dir.exists() {
            // Left by a process that died between removing the row and the directory, or by a lost index.
            let trash = self.inner.trash_path()?;
            std::fs::rename(&dir, &trash).during("rename", &dir)?;
            remove_tree(&trash);
        }
        std::fs::rename(draft.path(), &dir).during("rename", draft.path())
    }
}

/// A tree on disk, and the layer that it belongs to.
struct KnownTree {
    path: PathBuf,
    n: i64,
    is_built: bool,
}

/// A row of the `layer` table that is to be made.
pub(crate) struct NewLayer<'a> {
    pub(crate) id: &'a LayerId,
    pub(crate) content: ContentDigest,
    pub(crate) diff_id: Option<&'a DiffId>,
    pub(crate) tar_bytes: Option<u64>,
    pub(crate) epoch: i64,
}

/// Makes a row; its number.
pub(crate) fn insert(tx: &Transaction, new: &NewLayer<'_>) -> Result<i64, Fault> {
    let sql = "INSERT INTO layer(n, id, content, diff_id, tar_bytes, epoch, created_at, used_at, uses)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, 1)";
    let n = schema::new_number(tx)?;
    let diff_id = new.diff_id.map(|diff_id| diff_id.digest().as_bytes());
    let values = (n, new.id.as_str(), new.content.0, diff_id, new.tar_bytes.map(u64::cast_signed), new.epoch, now());
    tx.prepare_cached(sql)?.execute(values)?;
    Ok(n)
}

/// Notes which layers lie directly below a layer.
pub(crate) fn set_parents(tx: &Transaction, n: i64, parents: &[LayerId]) -> rusqlite::Result<()> {
    let text = parents.iter().map(LayerId::as_str).collect::<Vec<_>>().join(";");
    tx.prepare_cached("UPDATE layer SET parents = ?2 WHERE n = ?1")?.execute((n, &text))?;
    Ok(())
}

/// The row of a layer.
pub(crate) fn find_row(conn: &Connection, id: &LayerId) -> rusqlite::Result<Option<LayerRow>> {
    let sql = format!("SELECT {LAYER_COLUMNS} FROM layer WHERE id = ?1");
    conn.prepare_cached(&sql)?.query_row([id.as_str()], LayerRow::read).optional()
}

impl LayerRow {
    /// Reads [`LAYER_COLUMNS`].
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let name: String = row.get(1)?;
        let unreadable = || rusqlite::Error::InvalidColumnType(1, "id".to_owned(), rusqlite::types::Type::Text);
        Ok(Self {
            n: row.get(0)?,
            id: LayerId::from_name(&name).ok_or_else(unreadable)?,
            content: ContentDigest(row.get(2)?),
            diff_id: row.get::<_, Option<[u8; 32]>>(3)?.map(|raw| DiffId::of_uncompressed(Digest::from_sha256(raw))),
            tar_bytes: row.get::<_, Option<i64>>(4)?.map(i64::cast_unsigned),
            has_tree: row.get(5)?,
            created_at: row.get(6)?,
        })
    }

    /// The tree that this layer may use: its own, or that of a layer with the same diff ID.
    fn tree(&self, conn: &Connection, layout: &Layout) -> rusqlite::Result<Option<KnownTree>> {
        let known = |id: &LayerId, n| {
            let path = layout.tree(id);
            path.is_dir().then(|| KnownTree { path, n, is_built: id.is_built() })
        };
        if self.has_tree
            && let Some(own) = known(&self.id, self.n)
        {
            return Ok(Some(own));
        }
        let Some(diff_id) = &self.diff_id else { return Ok(None) };
        let mut twins = conn.prepare_cached("SELECT id, n FROM layer WHERE diff_id = ?1 AND has_tree AND n <> ?2")?;
        let mut rows = twins.query((diff_id.digest().as_bytes(), self.n))?;
        while let Some(row) = rows.next()? {
            let (name, n): (String, i64) = (row.get(0)?, row.get(1)?);
            if let Some(tree) = LayerId::from_name(&name).and_then(|id| known(&id, n)) {
                return Ok(Some(tree));
            }
        }
        Ok(None)
    }

    /// The length of the tar, known of this layer or of one with the same diff ID.
    fn tar_bytes(&self, conn: &Connection) -> rusqlite::Result<Option<u64>> {
        let (None, Some(diff_id)) = (self.tar_bytes, &self.diff_id) else { return Ok(self.tar_bytes) };
        let sql = "SELECT tar_bytes FROM layer WHERE diff_id = ?1 AND tar_bytes IS NOT NULL LIMIT 1";
        let known = conn.prepare_cached(sql)?.query_row([diff_id.digest().as_bytes()], |row| row.get::<_, i64>(0));
        Ok(known.optional()?.map(i64::cast_unsigned))
    }

    /// What has to be touched so that the forms of this layer stay: the layer and its twins.
    pub(crate) fn users(&self, conn: &Connection) -> rusqlite::Result<Vec<(Kind, i64)>> {
        let mut users = vec![(Kind::Layer, self.n)];
        if let Some(diff_id) = &self.diff_id
            && !self.has_tree
        {
            let mut twins = conn.prepare_cached("SELECT n FROM layer WHERE diff_id = ?1 AND has_tree AND n <> ?2")?;
            for n in twins.query_map((diff_id.digest().as_bytes(), self.n), |row| row.get(0))? {
                users.push((Kind::Layer, n?));
            }
        }
        Ok(users)
    }

    /// The public form.
    pub(crate) fn info(&self, conn: &Connection, layout: &Layout) -> rusqlite::Result<LayerInfo> {
        let has_tar = match &self.diff_id {
            Some(diff_id) => blobs::is_known(conn, diff_id.digest())? && layout.blob(diff_id.digest()).is_file(),
            None => false,
        };
        let tree = self.tree(conn, layout)?;
        Ok(LayerInfo {
            layer: Layer { id: self.id.clone(), content: self.content },
            diff_id: self.diff_id.clone(),
            is_tree_built: tree.as_ref().is_some_and(|tree| tree.is_built),
            tree: tree.map(|tree| tree.path),
            has_tar,
            tar_bytes: self.tar_bytes(conn)?,
            created_at: self.created_at,
        })
    }
}

/// A tree of the layers with that diff ID, and whose it is: one that was built here, if there is one.
pub(crate) fn any_tree(
    conn: &Connection,
    layout: &Layout,
    diff_id: &DiffId,
) -> rusqlite::Result<Option<(LayerId, PathBuf)>> {
    let sql = "SELECT id FROM layer WHERE diff_id = ?1 AND has_tree ORDER BY id DESC";
    let mut select = conn.prepare_cached(sql)?;
    let names = select.query_map([diff_id.digest().as_bytes()], |row| row.get::<_, String>(0))?;
    for name in names {
        let Some(id) = LayerId::from_name(&name?) else { continue };
        let tree = layout.tree(&id);
        if tree.is_dir() {
            return Ok(Some((id, tree)));
        }
    }
    Ok(None)
}

/// Whether the layer with that diff ID is here in some form, or where to fetch it from is known.
pub(crate) fn is_to_be_had(conn: &Connection, layout: &Layout, diff_id: &DiffId) -> rusqlite::Result<bool> {
    let digest = diff_id.digest();
    if any_tree(conn, layout, diff_id)?.is_some() || (blobs::is_known(conn, digest)? && layout.blob(digest).is_file()) {
        return Ok(true);
    }
    let sql = "SELECT 1 FROM remote WHERE diff_id = ?1
               UNION ALL SELECT 1 FROM variant JOIN blob USING (digest) WHERE variant.diff_id = ?1";
    conn.prepare_cached(sql)?.exists([digest.as_bytes()])
}

impl LayerFile {
    /// Reads the description beside a tree; `None` when it is missing or unreadable.
    pub(crate) fn read(dir: &Path) -> Option<(Self, ContentDigest)> {
        let file: Self = serde_json::from_slice(&std::fs::read(dir.join("layer.json")).ok()?).ok()?;
        let content = ContentDigest(parse_hex32(&file.content)?);
        Some((file, content))
    }
}

impl TarFile {
    /// Reads what is noted about a tree's tar; `None` when nothing is.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join("tar.json")).ok()?).ok()
    }
}

/// Adds a layer whose tree was found on disk.
pub(crate) fn insert_found(tx: &Transaction, id: &LayerId, dir: &Path) -> Result<(), Fault> {
    let Some((file, content)) = LayerFile::read(dir) else { return Ok(()) };
    let tar = TarFile::read(dir);
    let own = LayerId::from_name(id.as_str()).filter(|id| !id.is_built());
    let diff_id = own.and_then(|id| parse_hex32(&id.as_str()[2..])).map(Digest::from_sha256);
    let diff_id = diff_id.map(DiffId::of_uncompressed).or_else(|| tar.as_ref().map(|tar| tar.diff_id.clone()));
    let epoch = file.epoch.min(schema::meta(tx, "epoch")?);
    let tar_bytes = tar.map(|tar| tar.tar_bytes);
    let n = insert(tx, &NewLayer { id, content, diff_id: diff_id.as_ref(), tar_bytes, epoch })?;
    tx.execute("UPDATE layer SET has_tree = 1, created_at = ?2 WHERE n = ?1", (n, file.created_at))?;
    Ok(())
}

/// Forgets that a layer has a tree. `false` when it had none.
pub(crate) fn forget_tree(tx: &Transaction, id: &LayerId) -> rusqlite::Result<bool> {
    let sql = "UPDATE layer SET has_tree = 0, tree_bytes = NULL WHERE id = ?1 AND has_tree";
    Ok(tx.execute(sql, [id.as_str()])? > 0)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(std::io::Error::from).during("encode", path)?;
    std::fs::write(path, bytes).during("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, content, diff_id, store, tree_with};

    #[test]
    fn a_committed_tree_is_found_with_its_files() {
        let (_dir, store) = store();
        let info = store.commit_tree(tree_with(&store, "hello"), content(1)).unwrap();
        let tree = store.layer(&info.layer.id).unwrap().unwrap().tree.unwrap();
        assert_eq!(std::fs::read_to_string(tree.join("file")).unwrap(), "hello");
        check(&store);
    }

    #[test]
    fn layers_of_one_diff_id_share_their_forms() {
        let (_dir, store) = store();
        let built = store.commit_tree(tree_with(&store, "a"), content(1)).unwrap();
        let pulled = store.layer_for_diff_id(&diff_id(7)).unwrap();
        assert_eq!(pulled.tree, None);
        store.set_diff_id(&built.layer.id, &diff_id(7), 1024).unwrap();
        let pulled = store.layer_for_diff_id(&diff_id(7)).unwrap();
        assert_eq!(pulled.tree, built.tree);
        assert_ne!(pulled.layer, built.layer);
        assert_eq!(pulled.layer.content, ContentDigest::of_diff_id(&diff_id(7)));
        let draft = tree_with(&store, "b");
        assert_eq!(Some(store.attach_tree(&pulled.layer.id, draft).unwrap()), built.tree, "the first tree counts");
        check(&store);
    }

    #[test]
    fn a_pulled_layer_gets_a_tree_once() {
        let (_dir, store) = store();
        let pulled = store.layer_for_diff_id(&diff_id(1)).unwrap();
        let first = store.attach_tree(&pulled.layer.id, tree_with(&store, "first")).unwrap();
        let second = store.attach_tree(&pulled.layer.id, tree_with(&store, "second")).unwrap();
        assert_eq!(first, second);
        assert_eq!(std::fs::read_to_string(first.join("file")).unwrap(), "first");
        check(&store);
    }

    #[test]
    fn the_same_tar_is_one_layer() {
        let (_dir, store) = store();
        let digest = store.put_blob(b"tar").unwrap();
        let diff_id = DiffId::of_uncompressed(digest);
        let first = store.commit_tar(&diff_id, 3, content(1)).unwrap();
        let second = store.commit_tar(&diff_id, 3, content(1)).unwrap();
        assert_eq!(first.layer, second.layer);
        assert!(first.has_tar);
        assert_eq!(first.tar_bytes, Some(3));
        check(&store);
    }

    #[test]
    fn an_unknown_layer_is_an_error_where_one_is_needed() {
        let (_dir, store) = store();
        let id = LayerId::of_built("0");
        assert!(store.layer(&id).unwrap().is_none());
        assert!(matches!(store.set_diff_id(&id, &diff_id(1), 1), Err(StoreError::UnknownLayer { .. })));
        let draft = store.new_tree().unwrap();
        assert!(matches!(store.attach_tree(&id, draft), Err(StoreError::UnknownLayer { .. })));
    }
}
