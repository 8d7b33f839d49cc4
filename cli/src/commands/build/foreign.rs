//! What a build says about commands for other machines: early, that nothing here can run them, and at the end what
//! emulating them has cost.

use std::collections::BTreeMap;
use std::io::Write as _;

use executor::emulation::{Emulation, EmulationCost, Support};
use solver::plan::Plan;
use solver::{Op, Progress};

use crate::ui;

/// Warns of platforms with commands that nothing can run here, before anything is pulled.
///
/// It is no error: what the cache has need not run, and an image may hold other programs than it says.
pub(super) fn warn(plan: &Plan, emulation: &Emulation, progress: &Progress) {
    let mut commands: BTreeMap<String, (usize, &oci::Platform)> = BTreeMap::new();
    for id in plan.graph.ids() {
        if let Op::Run(run) = &*plan.graph.vertex(id).op {
            commands.entry(run.platform.architecture.clone()).or_insert((0, &run.platform)).0 += 1;
        }
    }
    for (architecture, (n_commands, platform)) in commands {
        if let Support::None(lacking) = emulation.support(platform) {
            let steps = if n_commands == 1 { "a RUN step".to_owned() } else { format!("{n_commands} RUN steps") };
            progress.warn(format!("nothing on this machine runs the programs of {steps} for {platform}: {lacking}"));
            for advice in lacking.advice(&architecture) {
                progress.warn(format!("  {advice}"));
            }
        }
    }
}

/// Says in one line what emulation has cost, if there was any.
pub(super) fn report(cost: &EmulationCost) {
    if cost.n_commands == 0 {
        return;
    }
    ui::stderr(|out| writeln!(out, "{}", text(cost)));
}

fn text(cost: &EmulationCost) -> String {
    let platforms: Vec<String> = cost.architectures.iter().map(|name| format!("linux/{name}")).collect();
    let steps = if cost.n_commands == 1 { "step" } else { "steps" };
    format!(
        "EMULATED: {} {steps} for {} in {:.1}s; a stage `FROM --platform=$BUILDPLATFORM` that cross-compiles runs at full speed",
        cost.n_commands,
        platforms.join(", "),
        cost.time.as_secs_f64(),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_cost_is_one_line() {
        let mut cost = EmulationCost { n_commands: 1, time: Duration::from_millis(1234), architectures: vec!["arm64"] };
        assert!(text(&cost).starts_with("EMULATED: 1 step for linux/arm64 in 1.2s; "));
        cost.n_commands = 3;
        cost.architectures.push("s390x");
        assert!(text(&cost).starts_with("EMULATED: 3 steps for linux/arm64, linux/s390x in 1.2s; "));
    }
}
