//! Random edits of random builds; `cargo xtask property` is the long form.

use crate::harness::{Need, Space, find_program, rbuild_bin};
use crate::need;

#[test]
fn a_warm_store_never_shows_and_nothing_runs_without_a_reason() {
    need!(Need::Root, Need::Program("busybox"));
    let space = Space::new();
    std::fs::create_dir(space.path("property")).expect("directory");
    let busybox = find_program("busybox").expect("asked for with need!");
    let summary = e2e::property::run(&rbuild_bin(), &busybox, &space.path("property"), 5, 120);
    let summary = summary.unwrap_or_else(|fault| panic!("{fault}"));
    assert!(summary.cached > summary.ran && summary.ran > 60 && summary.cut_off > 0, "{summary:?}");
}
