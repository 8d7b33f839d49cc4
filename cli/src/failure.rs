//! Failures of the program, with their exit codes (`shared` house style: 1 build or input, 2 usage, 3 environment,
//! 70 a bug, 130 stopped by the user).

use solver::plan::Culprit;
use solver::{Location, OpError, Tier};

use crate::report::advice_on_room;

/// Exit codes.
pub(crate) mod exit {
    /// The command line is wrong.
    pub(crate) const USAGE: u8 = 2;
}

/// Why the program ends without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is wrong.
    Usage {
        /// One sentence.
        message: String,
        /// Next steps.
        help: Vec<String>,
    },
    /// A command failed.
    Failed(Box<Report>),
    /// Everything has been said; the exit code of `rbuild run`'s command, or of a check that has findings.
    Exit(u8),
}

/// A failure with everything that is known about it.
#[derive(Debug)]
pub(crate) struct Report {
    /// Who can mend it.
    pub(crate) tier: Tier,
    /// One sentence; for builds BuildKit's wording.
    pub(crate) message: String,
    /// Next steps.
    pub(crate) help: Vec<String>,
    /// Places in the Dockerfile.
    pub(crate) locations: Vec<Location>,
    /// The word at fault; one that is not known by its place is looked for in the lines at those places.
    pub(crate) culprit: Option<Culprit>,
    /// The Dockerfile, for the excerpt.
    pub(crate) source: Option<Source>,
    /// Whether it is the failure of a build, which is introduced as BuildKit does.
    pub(crate) of_build: bool,
}

/// A Dockerfile that was read.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// As shown.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: String,
}

impl Failure {
    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), help: Vec::new() }
    }

    /// The user's input is wrong.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::report(Tier::Input, message)
    }

    /// The machine, the disk or the network is.
    pub(crate) fn environment(message: impl Into<String>) -> Self {
        Self::report(Tier::Environment, message)
    }

    /// Adds a next step.
    #[must_use]
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Usage { help, .. } => help.push(text.into()),
            Self::Failed(report) => report.help.push(text.into()),
            Self::Exit(_) => {}
        }
        self
    }

    /// Whether it is for lack of room on a disk that something failed. Says what to do about it when nobody has.
    pub(crate) fn is_about_room(&mut self) -> bool {
        let Self::Failed(report) = self else { return false };
        if report.help.is_empty()
            && let Some(advice) = advice_on_room(&report.message)
        {
            report.help.push(advice.to_owned());
        }
        report.help.iter().any(|help| help.contains("`rbuild prune`"))
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage { .. } => exit::USAGE,
            Self::Exit(code) => *code,
            Self::Failed(report) => match report.tier {
                Tier::Input => 1,
                Tier::Environment => 3,
                Tier::Internal => 70,
                Tier::Cancelled => 130,
            },
        }
    }

    fn report(tier: Tier, message: impl Into<String>) -> Self {
        Self::Failed(Box::new(Report {
            tier,
            message: message.into(),
            help: Vec::new(),
            locations: Vec::new(),
            culprit: None,
            source: None,
            of_build: false,
        }))
    }
}

impl From<OpError> for Failure {
    fn from(error: OpError) -> Self {
        let report = Report {
            tier: error.tier,
            message: error.message,
            help: error.help,
            locations: Vec::new(),
            culprit: error.word.map(Culprit::Word),
            source: None,
            of_build: false,
        };
        Self::Failed(Box::new(report))
    }
}

impl From<cache::StoreError> for Failure {
    fn from(error: cache::StoreError) -> Self {
        OpError::from(error).into()
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::environment(format!("cannot write to standard output: {error}"))
    }
}
