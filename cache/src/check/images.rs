//! Images: whether all that they are made of is there, and whether the trees among it are what they were.

use std::collections::HashSet;
use std::path::PathBuf;

use oci::{Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, media_type};
use rusqlite::{Connection, OptionalExtension};

use super::{CheckMode, CheckOptions, CheckPart, CheckReport, Problem, pool};
use crate::error::{Fault, Result};
use crate::id::LayerId;
use crate::images::{self, StoredImage};
use crate::store::Store;
use crate::{blobs, layers};

/// A tree whose tar must have a certain digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Claim {
    id: LayerId,
    tree: PathBuf,
    /// Base first.
    below: Vec<PathBuf>,
    expected: DiffId,
}

/// Something that an image lacks.
type Lack = (&'static str, Digest);

impl Store {
    pub(super) fn check_images(&self, options: &CheckOptions<'_>, report: &mut CheckReport) -> Result<()> {
        let stored = {
            let _lock = images::lock_images(&self.inner.layout)?;
            self.check_image_files(options, report)?;
            images::list(&self.inner.layout)?
        };
        report.n_images = stored.len();
        let mut claims = Vec::new();
        for image in &stored {
            claims.extend(self.manifests(image)?.iter().flat_map(|manifest| self.claims(manifest)));
        }
        self.check_claims(claims, options, report)?;
        // After the trees, which may have turned out to be nothing.
        for image in &stored {
            for (what, digest) in self.lacks(image)? {
                let name = image.reference.as_ref().map_or_else(|| "<none>".to_owned(), ToString::to_string);
                report.found(Problem::IncompleteImage { name, what, digest }, false);
            }
        }
        Ok(())
    }

    fn check_image_files(&self, options: &CheckOptions<'_>, report: &mut CheckReport) -> Result<()> {
        let layout = &self.inner.layout;
        let n_broken = match options.mode {
            CheckMode::Look => images::n_broken_files(layout)?,
            CheckMode::Repair => self.inner.index.write("check images", |tx| {
                images::drop_broken_files(layout, &|target| Ok(blobs::is_known(tx, target)?))
            })?,
        };
        if n_broken > 0 {
            report.found(Problem::BrokenImages(n_broken), options.mode == CheckMode::Repair);
        }
        Ok(())
    }

    /// The manifests of an image that are stored. An index that was pulled for one platform has those of others elsewhere.
    fn manifests(&self, image: &StoredImage) -> Result<Vec<Manifest>> {
        let mut manifests = Vec::new();
        let mut targets = vec![image.target.clone()];
        let mut seen: HashSet<Digest> = HashSet::new();
        while let Some(target) = targets.pop() {
            if !seen.insert(target.digest.clone()) {
                continue;
            }
            if media_type::is_index(&target.media_type) {
                let index: Option<Index> = self.document(&target.digest)?;
                targets.extend(index.into_iter().flat_map(|index| index.manifests));
            } else {
                manifests.extend(self.document::<Manifest>(&target.digest)?);
            }
        }
        Ok(manifests)
    }

    /// What an image needs and the store does not have.
    fn lacks(&self, image: &StoredImage) -> Result<Vec<Lack>> {
        let manifests = self.manifests(image)?;
        if manifests.is_empty() {
            // Something else than an image may have a name, too; of that, nothing is known but its bytes.
            let is_whole = !media_type::is_index(&image.target.media_type) && self.has_blob(&image.target.digest)?;
            return Ok(if is_whole { Vec::new() } else { vec![("manifest", image.target.digest.clone())] });
        }
        let mut lacks = Vec::new();
        for manifest in manifests {
            if !self.has_blob(&manifest.config.digest)? {
                lacks.push(("config", manifest.config.digest.clone()));
            }
            let diff_ids = self.diff_ids(&manifest)?;
            for (number, layer) in manifest.layers.iter().enumerate() {
                if !self.has_blob(&layer.digest)? && !self.has_layer(layer, diff_ids.get(number))? {
                    let diff_id = diff_ids.get(number).map(|diff_id| diff_id.digest().clone());
                    lacks.push(("layer", diff_id.unwrap_or_else(|| layer.digest.clone())));
                }
            }
        }
        lacks.dedup();
        Ok(lacks)
    }

    fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let is_known = self.inner.index.read("find a blob", |conn| Ok(blobs::is_known(conn, digest)?))?;
        Ok(is_known && self.inner.layout.blob(digest).is_file())
    }

    /// Whether a layer is here in some form, or where it can be fetched from is known.
    fn has_layer(&self, blob: &Descriptor, diff_id: Option<&DiffId>) -> Result<bool> {
        let layout = &self.inner.layout;
        let look = |conn: &Connection| -> Result<bool, Fault> {
            let tar_of_blob = "SELECT diff_id FROM variant WHERE digest = ?1 LIMIT 1";
            let of_blob: Option<[u8; 32]> =
                conn.prepare_cached(tar_of_blob)?.query_row([blob.digest.as_bytes()], |row| row.get(0)).optional()?;
            let of_blob = of_blob.map(|raw| DiffId::of_uncompressed(Digest::from_sha256(raw)));
            for diff_id in [diff_id, of_blob.as_ref()].into_iter().flatten() {
                if layers::is_to_be_had(conn, layout, diff_id)? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        self.inner.index.read("find a layer", look)
    }

    /// The diff IDs of an image's layers, base first; none for what is no image (attestations).
    fn diff_ids(&self, manifest: &Manifest) -> Result<Vec<DiffId>> {
        let config: Option<ImageConfig> = self.document(&manifest.config.digest)?;
        let diff_ids = config.map(|config| config.rootfs.diff_ids).unwrap_or_default();
        Ok(if diff_ids.len() == manifest.layers.len() { diff_ids } else { Vec::new() })
    }

    fn document<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<Option<T>> {
        if !self.has_blob(digest)? {
            return Ok(None);
        }
        Ok(images::read_document(&self.inner.layout, digest))
    }

    /// What the config of an image says of trees that were built here. A tree that was unpacked does not give the bytes of
    /// its tar again; one whose layers below have no trees cannot be told.
    fn claims(&self, manifest: &Manifest) -> Vec<Claim> {
        let mut claims = Vec::new();
        let mut below = Vec::new();
        for expected in self.diff_ids(manifest).unwrap_or_default() {
            let tree =
                self.inner.index.read("find a tree", |conn| Ok(layers::any_tree(conn, &self.inner.layout, &expected)?));
            let Ok(Some((id, tree))) = tree else { break };
            if id.is_built() {
                claims.push(Claim { id, tree: tree.clone(), below: below.clone(), expected });
            }
            below.push(tree);
        }
        claims
    }

    fn check_claims(&self, claims: Vec<Claim>, options: &CheckOptions<'_>, report: &mut CheckReport) -> Result<()> {
        let Some(tree_digest) = options.tree_digest else { return Ok(()) };
        let mut seen = HashSet::new();
        let claims: Vec<Claim> = claims.into_iter().filter(|claim| seen.insert(claim.id.clone())).collect();
        let total = claims.len() as u64;
        let progress = |done| (options.progress)(CheckPart::Trees, done, total);
        let verdicts = pool::map(
            &claims,
            |_| 1,
            &progress,
            |claim| {
                let got = tree_digest(&claim.tree, &claim.below)?;
                // A layer may have been put there without a look at what lies below (`COPY --link`).
                if got == claim.expected {
                    Some(got)
                } else {
                    tree_digest(&claim.tree, &[]).filter(|alone| *alone == claim.expected).or(Some(got))
                }
            },
        );
        for (claim, got) in claims.iter().zip(verdicts) {
            match got {
                Some(got) if got == claim.expected => report.n_trees_hashed += 1,
                Some(got) if claim.tree.is_dir() => {
                    if options.mode == CheckMode::Repair {
                        self.drop_tree(&claim.id)?;
                    }
                    let (expected, got) = (claim.expected.digest().clone(), got.digest().clone());
                    let problem = Problem::CorruptTree { id: claim.id.clone(), expected, got };
                    report.found(problem, options.mode == CheckMode::Repair);
                }
                // Somebody has removed it meanwhile.
                _ => {}
            }
        }
        Ok(())
    }
}
