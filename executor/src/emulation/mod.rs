//! Commands for other machines: whether this one can run them, and what runs them where it cannot.
//!
//! Programs of another machine run when the kernel knows a handler for them (binfmt_misc). Where the machine has none,
//! an emulator that lies on this machine is made the handler, for the processes of our steps alone: in a user namespace
//! that they enter. Nothing outside of the build changes, and the children of a command are emulated as it is itself.
//! `docs/emulation.md` says why it is done like that. Read [`Emulation::support`] first. Spec: `spec/engine.md` §5.7, §6.3.

mod machine;
mod probe;
mod program;
mod search;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cache::Store;
use oci::Platform;

pub use machine::Machine;
pub(crate) use program::machine_of_command;
pub use search::Lacking;

use crate::sys::handlers::{HandlerNamespace, handler_namespace};

/// How programs of a machine run here.
#[derive(Clone, Debug)]
pub enum Support {
    /// By the processor.
    Native,
    /// By a handler that this machine has for all its programs.
    Registered,
    /// By an emulator, for our steps alone.
    Emulator(Arc<Emulator>),
    /// Not at all.
    None(Lacking),
}

/// An emulator made ready.
#[derive(Debug)]
pub struct Emulator {
    /// Where it lies on this machine.
    pub path: PathBuf,
    /// What commands enter to have it.
    pub handlers: Arc<HandlerNamespace>,
}

/// What emulation has cost so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmulationCost {
    /// Commands that ran to their end, failed ones included.
    pub n_commands: usize,
    /// How long they took, one after the other.
    pub time: Duration,
    /// For which architectures, sorted.
    pub architectures: Vec<&'static str>,
}

/// Finds out and remembers. Cheap to clone; nothing is looked at before somebody asks.
#[derive(Clone)]
pub struct Emulation {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    search: Vec<PathBuf>,
    known: Mutex<HashMap<&'static str, Support>>,
    cost: Mutex<EmulationCost>,
}

impl Emulation {
    /// Emulators are looked for in the directories `search`, the first one counts. `store` has room for trying things out.
    pub fn new(store: Store, search: Vec<PathBuf>) -> Self {
        Self { inner: Arc::new(Inner { store, search, known: Mutex::default(), cost: Mutex::default() }) }
    }

    /// How programs for `platform` run here. Takes some milliseconds when it is asked for the first time for an
    /// architecture that is not this machine's.
    ///
    /// Other operating systems and unknown architectures count as native: nothing is known that would help.
    pub fn support(&self, platform: &Platform) -> Support {
        match Machine::of_architecture(&platform.architecture) {
            Some(machine) if platform.os == "linux" => self.of_machine(machine),
            _ => Support::Native,
        }
    }

    /// As [`Emulation::support`], for a machine.
    pub fn of_machine(&self, machine: &'static Machine) -> Support {
        if Machine::of_this_process() == Some(machine) {
            return Support::Native;
        }
        // Held while it is found out, so that it is found out once.
        let mut known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(machine.architecture).or_insert_with(|| self.find_out(machine)).clone()
    }

    /// What emulated commands have cost.
    pub fn cost(&self) -> EmulationCost {
        self.inner.cost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers that a command for `machine` ran emulated.
    pub(crate) fn add_cost(&self, machine: &Machine, time: Duration) {
        let mut cost = self.inner.cost.lock().unwrap_or_else(PoisonError::into_inner);
        cost.n_commands += 1;
        cost.time += time;
        if let Err(place) = cost.architectures.binary_search(&machine.architecture) {
            cost.architectures.insert(place, machine.architecture);
        }
    }

    fn find_out(&self, machine: &Machine) -> Support {
        let runs = probe::runs_here(&self.inner.store, machine);
        tracing::debug!(machine = machine.architecture, ?runs, "probed");
        match runs {
            Ok(true) if probe::is_of_the_processor(machine) => return Support::Native,
            Ok(true) => return Support::Registered,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "cannot try a program of another machine"),
        }
        match search::emulator(machine, &self.inner.search).and_then(|path| prepare(machine, &path)) {
            Ok(emulator) => Support::Emulator(Arc::new(emulator)),
            Err(lacking) => Support::None(lacking),
        }
    }
}

/// Makes the emulator at `path` the handler for programs of `machine`, for whoever enters its namespace.
fn prepare(machine: &Machine, path: &Path) -> Result<Emulator, Lacking> {
    let refused = |reason: String| Lacking::NotAllowed {
        emulator: path.to_owned(),
        registration: machine.registration(&path.to_string_lossy()),
        reason,
    };
    let interpreter = CString::new(path.as_os_str().as_bytes()).map_err(|error| refused(error.to_string()))?;
    let handlers = handler_namespace(&interpreter, |shared| CString::new(machine.registration(shared)).ok())
        .map_err(|error| refused(error.to_string()))?;
    Ok(Emulator { path: path.to_owned(), handlers: Arc::new(handlers) })
}

#[cfg(test)]
mod tests;
