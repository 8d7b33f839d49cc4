//! Random operations on two handles of one store, compared with a model of what must be there.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::check::{CheckMode, CheckOptions};
use crate::durability::BootId;
use crate::gc::PruneFilter;
use crate::id::Key;
use crate::lease::Lease;
use crate::store::Store;
use crate::testing::{check, content, image, record, reference, tree_with};

#[derive(Clone, Debug)]
enum Operation {
    Build { handle: usize, key: u8 },
    PutBlob { handle: usize, blob: u8 },
    Lookup { handle: usize, key: u8 },
    Tag { handle: usize, name: u8, image: u8 },
    Untag { handle: usize, name: u8 },
    TakeLease { handle: usize },
    DropLease { handle: usize },
    Expect { handle: usize },
    ExpectNoMore { handle: usize },
    Prune { handle: usize },
    Sync { handle: usize },
    Reopen { handle: usize },
    PowerCut,
    Check { handle: usize },
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let handle = 0..2_usize;
    prop_oneof![
        4 => (handle.clone(), 0..6_u8).prop_map(|(handle, key)| Build { handle, key }),
        2 => (handle.clone(), 0..6_u8).prop_map(|(handle, blob)| PutBlob { handle, blob }),
        4 => (handle.clone(), 0..6_u8).prop_map(|(handle, key)| Lookup { handle, key }),
        2 => (handle.clone(), 0..2_u8, 0..3_u8).prop_map(|(handle, name, image)| Tag { handle, name, image }),
        1 => (handle.clone(), 0..2_u8).prop_map(|(handle, name)| Untag { handle, name }),
        2 => handle.clone().prop_map(|handle| TakeLease { handle }),
        2 => handle.clone().prop_map(|handle| DropLease { handle }),
        2 => handle.clone().prop_map(|handle| Expect { handle }),
        1 => handle.clone().prop_map(|handle| ExpectNoMore { handle }),
        2 => handle.clone().prop_map(|handle| Prune { handle }),
        1 => handle.clone().prop_map(|handle| Sync { handle }),
        1 => handle.clone().prop_map(|handle| Reopen { handle }),
        1 => Just(PowerCut),
        1 => handle.prop_map(|handle| Check { handle }),
    ]
}

/// What a key gave or a blob held, and whether it would survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Record(u8),
    Blob(u8),
}

struct World {
    dir: tempfile::TempDir,
    boot: u32,
    handles: Vec<(Store, Option<Lease>)>,
    /// Must be there; the value says whether it is durable.
    things: BTreeMap<Thing, bool>,
    /// What each handle has touched under its lease.
    leased: Vec<BTreeSet<Thing>>,
    /// What each handle expects to touch under its lease.
    expected: Vec<BTreeSet<Thing>>,
    names: BTreeMap<u8, u8>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            dir: tempfile::tempdir().unwrap(),
            boot: 0,
            handles: Vec::new(),
            things: BTreeMap::new(),
            leased: vec![BTreeSet::new(); 2],
            expected: vec![BTreeSet::new(); 2],
            names: BTreeMap::new(),
        };
        world.handles = (0..2).map(|_| (world.open(), None)).collect();
        world
    }

    fn open(&self) -> Store {
        let boot = BootId::named(&self.boot.to_string());
        Store::open_in(&self.dir.path().join("store"), &boot).unwrap()
    }

    /// A thing was made or used through a handle.
    fn touched(&mut self, handle: usize, thing: Thing) {
        self.things.entry(thing).or_insert(false);
        if self.handles[handle].1.is_some() {
            self.leased[handle].insert(thing);
        }
    }

    fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::Build { handle, key } => self.build(handle, key),
            Operation::PutBlob { handle, blob } => {
                self.handles[handle].0.put_blob(&[blob; 64]).unwrap();
                self.touched(handle, Thing::Blob(blob));
            }
            Operation::Lookup { handle, key } => {
                if self.handles[handle].0.find_record(&Key([key; 32])).unwrap().is_some() {
                    assert!(self.things.contains_key(&Thing::Record(key)), "record {key} came back from nowhere");
                    self.touched(handle, Thing::Record(key));
                }
            }
            Operation::Tag { handle, name, image: seed } => {
                let store = &self.handles[handle].0;
                let target = image(store, seed + 100);
                store.tag(&reference(&format!("name{name}")), &target).unwrap();
                self.names.insert(name, seed);
                self.things.values_mut().for_each(|durable| *durable = true);
            }
            Operation::Untag { handle, name } => {
                let was_there = self.handles[handle].0.untag(&reference(&format!("name{name}"))).unwrap();
                assert_eq!(was_there, self.names.remove(&name).is_some());
            }
            Operation::TakeLease { handle } => {
                let lease = self.handles[handle].0.lease().unwrap();
                self.handles[handle].1 = Some(lease);
            }
            Operation::DropLease { handle } => {
                self.handles[handle].1 = None;
                self.leased[handle].clear();
                self.expected[handle].clear();
            }
            Operation::Expect { handle } => {
                let store = &self.handles[handle].0;
                store.expect_results(&["slot", "none"]).unwrap();
                if let (Some(newest), (_, Some(_))) = (store.latest_of_slot("slot").unwrap(), &self.handles[handle]) {
                    let thing = Thing::Record(newest.key.0[0]);
                    self.things.entry(thing).or_insert(false);
                    self.expected[handle].insert(thing);
                }
            }
            Operation::ExpectNoMore { handle } => {
                self.handles[handle].0.expect_no_more().unwrap();
                self.expected[handle].clear();
            }
            Operation::Prune { handle } => self.prune(handle),
            Operation::Sync { handle } => {
                self.handles[handle].0.sync().unwrap();
                self.things.values_mut().for_each(|durable| *durable = true);
            }
            Operation::Reopen { handle } => {
                self.leased[handle].clear();
                self.expected[handle].clear();
                self.handles[handle].1 = None;
                self.handles[handle].0 = self.open();
            }
            Operation::PowerCut => self.power_cut(),
            Operation::Check { handle } => {
                assert_eq!(
                    self.handles[handle].0.check(&CheckOptions::silent(CheckMode::Repair)).unwrap().findings,
                    []
                );
            }
        }
    }

    fn build(&mut self, handle: usize, key: u8) {
        let store = &self.handles[handle].0;
        if store.find_record(&Key([key; 32])).unwrap().is_none() {
            assert!(!self.things.contains_key(&Thing::Record(key)), "record {key} is lost");
            let layer = store.commit_tree(tree_with(store, &key.to_string()), content(key)).unwrap().layer;
            store.put_record(&record(key, &layer.id, "slot")).unwrap();
        }
        self.touched(handle, Thing::Record(key));
    }

    fn prune(&mut self, handle: usize) {
        let everything = PruneFilter { all: true, ..PruneFilter::default() };
        self.handles[handle].0.prune(&everything, false).unwrap();
        self.things.retain(|thing, _| self.leased.iter().chain(&self.expected).any(|held| held.contains(thing)));
    }

    fn power_cut(&mut self) {
        self.boot += 1;
        self.handles.clear();
        self.leased.iter_mut().chain(&mut self.expected).for_each(BTreeSet::clear);
        self.things.retain(|_, durable| *durable);
        self.handles = (0..2).map(|_| (self.open(), None)).collect();
    }

    /// Everything that must be there is there and right, through both handles.
    fn check(&self) {
        for (store, _) in &self.handles {
            check(store);
            for thing in self.things.keys() {
                match *thing {
                    Thing::Record(key) => {
                        // Not through `find_record`, which would lease it.
                        let sql = "SELECT 1 FROM record JOIN layer ON layer.n = record.layer
                                   WHERE record.key = ?1 AND layer.content = ?1 AND layer.has_tree";
                        let is_there =
                            store.inner.index.read("look", |conn| Ok(conn.prepare(sql)?.exists([[key; 32]])?));
                        assert!(is_there.unwrap(), "record {key} is lost");
                    }
                    Thing::Blob(blob) => {
                        let digest = oci::Digest::of(&[blob; 64]);
                        assert!(store.inner.layout.blob(&digest).is_file(), "blob {blob} is lost");
                    }
                }
            }
            let mut named: Vec<_> = store.images().unwrap().into_iter().filter_map(|image| image.reference).collect();
            named.sort();
            let mut expected: Vec<_> = self.names.keys().map(|name| reference(&format!("name{name}"))).collect();
            expected.sort();
            assert_eq!(named, expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_store_keeps_what_it_must_and_serves_nothing_wrong(operations in prop::collection::vec(operation(), 1..40)) {
        let mut world = World::new();
        for operation in &operations {
            world.apply(operation);
            world.check();
        }
    }
}
