use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::testing::{check, content, diff_id, image, record, reference, store, tree_with};

const LOOK: CheckMode = CheckMode::Look;
const REPAIR: CheckMode = CheckMode::Repair;

fn findings(store: &Store, mode: CheckMode) -> Vec<Finding> {
    let mut findings = store.check(&CheckOptions::silent(mode)).unwrap().findings;
    findings.sort_by_key(|finding| finding.problem.to_string());
    findings
}

#[test]
fn a_sound_store_has_no_problems() {
    let (_dir, store) = store();
    store.tag(&reference("a"), &image(&store, 1)).unwrap();
    let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap().layer;
    store.put_record(&record(1, &layer.id, "slot")).unwrap();
    let done = AtomicU64::new(0);
    let progress = |_, so_far, total| {
        assert!(so_far <= total);
        done.fetch_max(so_far, Ordering::Relaxed);
    };
    let options = CheckOptions { progress: &progress, ..CheckOptions::silent(LOOK) };
    let report = store.check(&options).unwrap();
    assert_eq!((report.n_blobs, report.n_trees, report.n_images, report.n_records), (3, 1, 1, 1));
    assert_eq!(done.into_inner(), report.blob_bytes);
    assert!(report.is_sound() && report.findings.is_empty(), "{report:?}");
}

#[test]
fn what_is_broken_is_named_and_dropped_when_that_is_wanted() {
    let (_dir, store) = store();
    let layout = &store.inner.layout;
    let target = image(&store, 1);
    store.tag(&reference("a"), &target).unwrap();
    let corrupt = store.put_blob(b"bytes").unwrap();
    std::fs::remove_file(layout.blob(&corrupt)).unwrap();
    std::fs::write(layout.blob(&corrupt), "other").unwrap();
    std::fs::remove_file(layout.blob(&target.digest)).unwrap();
    let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap();
    store.put_record(&record(1, &layer.layer.id, "slot")).unwrap();
    std::fs::remove_dir_all(layer.tree.unwrap()).unwrap();
    let stray = layout.blobs().join("stray");
    std::fs::write(&stray, "x").unwrap();
    std::fs::write(layout.bucket(Bucket::Images).join("broken.json"), "{").unwrap();
    let context = layout.bucket(Bucket::Contexts).join("torn.idx");
    std::fs::write(&context, "rbctx").unwrap();
    std::fs::write(layout.bucket(Bucket::Temporary).join("0123456789abcdef-0-draft"), "x").unwrap();

    let lost = Problem::LostTree(layer.layer.id.clone());
    let mut expected = vec![
        (Problem::CorruptBlob(corrupt), true),
        (Problem::LostBlob(target.digest.clone()), true),
        (lost.clone(), true),
        (Problem::Stray(stray.display().to_string()), true),
        (Problem::BrokenImages(1), true),
        (Problem::BrokenContext(context.display().to_string()), true),
        (Problem::Leftovers(1), true),
        (
            Problem::IncompleteImage {
                name: reference("a").to_string(),
                what: "manifest",
                digest: target.digest.clone(),
            },
            false,
        ),
    ];
    expected.sort_by_key(|(problem, _)| problem.to_string());
    let seen = findings(&store, LOOK);
    assert!(seen.iter().all(|finding| !finding.is_repaired));
    let problems: Vec<_> = seen.into_iter().map(|finding| finding.problem).collect();
    assert_eq!(problems, expected.iter().map(|(problem, _)| problem.clone()).collect::<Vec<_>>());
    assert_eq!(findings(&store, LOOK).len(), expected.len(), "looking changes nothing");

    let mut repaired: Vec<_> =
        findings(&store, REPAIR).into_iter().map(|finding| (finding.problem, finding.is_repaired)).collect();
    // Forgetting the tree leaves its layer without any form, and its directory to nobody.
    repaired.retain(|(problem, _)| *problem != Problem::FormlessLayers(1));
    let dir = layout.layer_dir(&layer.layer.id);
    repaired.retain(|(problem, _)| *problem != Problem::Stray(dir.display().to_string()));
    assert_eq!(repaired, expected);
    assert!(store.latest_of_slot("slot").unwrap().is_none(), "the record went with its layer");
    check(&store);
    let left = findings(&store, REPAIR);
    assert!(matches!(&left[..], [Finding { problem: Problem::IncompleteImage { .. }, .. }]), "{left:?}");
}

#[test]
fn a_tree_that_gives_another_tar_than_its_image_says_is_dropped_and_the_image_named() {
    let (_dir, store) = store();
    let layer = store.commit_tree(tree_with(&store, "x"), content(1)).unwrap();
    store.set_diff_id(&layer.layer.id, &diff_id(1), 10).unwrap();
    let target = image(&store, 1);
    store.tag(&reference("a"), &target).unwrap();
    // The image's blob of that layer is none that the store has.
    let bytes = store.read_blob(&target.digest).unwrap().unwrap();
    let manifest: oci::Manifest = serde_json::from_slice(&bytes).unwrap();
    store.drop_blob(&manifest.layers[0].digest).unwrap();
    let rotten = |_: &Path, below: &[PathBuf]| {
        assert!(below.is_empty());
        Some(diff_id(9))
    };
    let sound = |_: &Path, _: &[PathBuf]| Some(diff_id(1));
    let with = |tree_digest, mode| {
        let options = CheckOptions { tree_digest: Some(tree_digest), ..CheckOptions::silent(mode) };
        store.check(&options).unwrap()
    };
    let report = with(&sound, LOOK);
    assert_eq!((report.n_trees_hashed, report.findings), (1, vec![]));
    let report = with(&rotten, LOOK);
    assert!(matches!(&report.findings[..], [Finding { problem: Problem::CorruptTree { .. }, is_repaired: false }]));
    let report = with(&rotten, REPAIR);
    let kinds: Vec<_> = report.findings.iter().map(|finding| finding.problem.kind()).collect();
    assert_eq!(kinds, ["corrupt-tree", "incomplete-image", "formless-layers"]);
    assert!(!report.is_sound());
    check(&store);
}
