//! What can go wrong with a sandbox, as facts.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::copy_out::CopyError;
use crate::view::passwd::AccountsError;

/// Why a command was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A file operation on the host failed.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A step of setting the sandbox up failed.
    #[error("cannot {stage}: {errno}")]
    Setup {
        /// What was tried, as a verb with its object.
        stage: &'static str,
        /// Why it failed.
        errno: Errno,
    },
    /// A mount failed.
    #[error("cannot mount {what} on `{target}`: {errno}")]
    Mount {
        /// What was to be mounted.
        what: String,
        /// Where, inside the root.
        target: String,
        /// Why it failed.
        errno: Errno,
    },
    /// The source of a bind mount does not exist.
    #[error("\"{source_path}\": not found")]
    SourceMissing {
        /// As asked for, inside its root.
        source_path: String,
    },
    /// `USER` names nobody, or the account files of the root cannot be used.
    #[error(transparent)]
    User(#[from] AccountsError),
    /// The working directory cannot be made or entered.
    #[error("cannot use working directory `{path}`: {errno}")]
    Directory {
        /// The path inside the root.
        path: String,
        /// Why not.
        errno: Errno,
    },
    /// Files could not be copied where nothing can be mounted.
    #[error(transparent)]
    Copy(CopyError),
    /// The machine allows too little for what is asked for.
    #[error("{what} is not to be had with --isolation={tier}")]
    NotInThisTier {
        /// What, with its article.
        what: &'static str,
        /// The tier, as on the command line.
        tier: &'static str,
    },
    /// The machine allows no commands.
    #[error(
        "this user may neither make namespaces nor change the root: no RUN step can be kept apart from this machine"
    )]
    NoCommands,
    /// An argument, variable or path contains a NUL byte.
    #[error("{what} contains a NUL byte")]
    NulByte {
        /// Which sort of text.
        what: &'static str,
    },
    /// A resource limit has a name that Linux does not know.
    #[error("invalid ulimit type: {name}")]
    UnknownLimit {
        /// The name.
        name: String,
    },
    /// A device node cannot be made.
    #[error("cannot make the device node `{path}`: {errno}")]
    Node {
        /// Where, inside the root.
        path: String,
        /// Why not.
        errno: Errno,
    },
    /// This machine has another device where one was described.
    #[error(
        "the device node `{path}` is described as {}:{}, and `{}` on this machine is {}:{}",
        want.0, want.1, host_path.display(), have.0, have.1
    )]
    OtherDevice {
        /// Where it was to be, inside the root.
        path: String,
        /// Where it is on this machine.
        host_path: PathBuf,
        /// Major and minor number as described.
        want: (u32, u32),
        /// As found.
        have: (u32, u32),
    },
    /// A program that a device needs run has failed.
    #[error(
        "the {moment} hook `{}` of a device failed: {reason}{}{output}",
        hook.display(), if output.is_empty() { "" } else { ": " }
    )]
    Hook {
        /// The program.
        hook: PathBuf,
        /// When it is run.
        moment: &'static str,
        /// How it ended, or why it did not begin.
        reason: String,
        /// The last line that it has written.
        output: String,
    },
    /// A device needs a program run at a moment when only a runtime can.
    #[error("a device needs `{}` run at {moment}, which only an OCI runtime does", hook.display())]
    HookMoment {
        /// The program.
        hook: PathBuf,
        /// When it was to be run.
        moment: &'static str,
    },
    /// The OCI runtime did not start the command, or was lost.
    #[error("`{}` did not run the command: {message}", program.display())]
    Runtime {
        /// The runtime.
        program: PathBuf,
        /// Why, in its own words where it has any.
        message: String,
    },
    /// The step was cancelled.
    #[error("context canceled")]
    Cancelled,
    /// The thread that ran the step ended without a result: a bug.
    #[error("the sandbox's thread ended without a result")]
    Lost,
}

impl From<CopyError> for SandboxError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Missing { path } => Self::SourceMissing { source_path: path },
            CopyError::Stopped => Self::Cancelled,
            other => Self::Copy(other),
        }
    }
}

impl SandboxError {
    /// A file operation that failed.
    pub(super) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    /// A kernel call on a path of the host that failed.
    pub(super) fn call(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io { operation, path, source: errno.into() }
    }

    /// A step of the set-up that failed.
    pub(super) fn setup(stage: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Setup { stage, errno }
    }
}
