//! Many processes on one store, for some seconds; `cargo xtask stress` does it for as long as you like.

use std::time::Duration;

use e2e::stress::{Figures, Medium, Plan, run};

use crate::harness::{Need, Space, find_program, note, rbuild_bin};
use crate::need;

fn stress(medium: Medium, seconds: u64, n_processes: usize) -> Option<Figures> {
    if let Some(lacking) = medium.lacking() {
        note(&format!("skipped stress on {}: {lacking}", medium.name()));
        return None;
    }
    let space = Space::new();
    let plan = Plan {
        rbuild: rbuild_bin(),
        busybox: find_program("busybox").expect("asked for with need!"),
        work: space.path("stress"),
        n_processes,
        time: Duration::from_secs(seconds),
        seed: 1,
        medium,
    };
    match run(&plan, &|_| {}) {
        Ok(figures) => Some(figures),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn many_builds_with_pruning_and_kills() {
    need!(Need::Root, Need::Program("busybox"));
    if let Some(figures) = stress(Medium::Directory, 8, 6) {
        assert!(figures.n_builds > 0 && figures.n_killed > 0 && figures.n_others > 0, "{figures:?}");
    }
}

#[test]
fn a_disk_that_runs_full() {
    need!(Need::Root, Need::Program("busybox"));
    if let Some(figures) = stress(Medium::SmallDisk { mebibytes: 28 }, 6, 4) {
        assert!(figures.n_builds > 0 && figures.n_full > 0, "{figures:?}");
    }
}

#[test]
fn power_cuts() {
    need!(Need::Root, Need::Program("busybox"));
    if let Some(figures) = stress(Medium::PowerCut { mebibytes: 256 }, 6, 4) {
        assert!(figures.n_cuts > 0, "{figures:?}");
    }
}
