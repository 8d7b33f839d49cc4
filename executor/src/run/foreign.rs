//! Commands that were made for another machine than this one.

use std::time::Instant;

use oci::Platform;
use solver::{OpError, RunOp, Step};

use super::{RunOptions, Runner};
use crate::emulation::{Emulation, Lacking, Machine, Support, machine_of_command};
use crate::engine::blocking;
use crate::sandbox::{DEFAULT_PATH, Exit, SandboxSpec};

/// What is known of a command's machine.
pub(super) struct Foreign {
    /// For which machine the command was made, if it is another one and known.
    machine: Option<&'static Machine>,
    is_emulated: bool,
    lacking: Option<Lacking>,
    began: Instant,
}

/// A command that cannot be run here, and why not.
pub(super) struct NoEmulator {
    pub(super) architecture: &'static str,
    pub(super) lacking: Option<Lacking>,
}

impl Runner {
    /// Looks whether a command is for another machine, and gives it what it needs then.
    pub(super) async fn foreign(&self, op: &RunOp, spec: &mut SandboxSpec, step: &Step) -> Result<Foreign, OpError> {
        let mut foreign = Foreign { machine: None, is_emulated: false, lacking: None, began: Instant::now() };
        let is_ours = op.platform.architecture == Platform::host().architecture;
        let Some(emulation) = self.options.emulation.clone().filter(|_| !is_ours) else { return Ok(foreign) };
        let (trees, args, platform) = (spec.lower.clone(), spec.args.clone(), op.platform.clone());
        let path = spec.env.iter().rfind(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
        let (machine, support) = blocking(move || {
            // What the program says counts more than what the image says.
            let path = path.as_deref().unwrap_or(DEFAULT_PATH);
            let claimed = Machine::of_architecture(&platform.architecture);
            let machine = machine_of_command(&trees, &args, path).or(claimed);
            let support = |machine: Option<_>| machine.map_or(Support::Native, |machine| emulation.of_machine(machine));
            Ok(match support(machine) {
                // What a program of this machine starts may still be for the other one.
                Support::Native => (None, support(claimed)),
                support => (machine, support),
            })
        })
        .await?;
        foreign.machine = machine;
        match support {
            Support::Native => {}
            Support::Registered => foreign.is_emulated = machine.is_some(),
            Support::Emulator(emulator) => {
                foreign.is_emulated = machine.is_some();
                spec.handlers = Some(emulator.handlers.clone());
            }
            Support::None(lacking) => foreign.lacking = Some(lacking),
        }
        if let Some(machine) = machine.filter(|_| foreign.is_emulated) {
            step.emulated(machine.architecture);
        }
        foreign.began = Instant::now();
        Ok(foreign)
    }
}

impl Foreign {
    /// Takes note of what an emulated command has cost; says what was lacking for one that could not be run.
    pub(super) fn finish(self, options: &RunOptions, exit: Option<&Exit>) -> Option<NoEmulator> {
        let machine = self.machine?;
        if let (true, Some(emulation), Some(_)) = (self.is_emulated, &options.emulation, exit) {
            Emulation::add_cost(emulation, machine, self.began.elapsed());
        }
        Some(NoEmulator { architecture: machine.architecture, lacking: self.lacking })
    }
}
