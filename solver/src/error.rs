//! Failures of operations, as facts.

use std::fmt;

/// Who can do something about an error. Decides the exit code and the tone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The Dockerfile, the context or a flag is wrong.
    Input,
    /// Registry, disk, kernel, permissions.
    Environment,
    /// A bug of ours.
    Internal,
    /// The user stopped the build.
    Cancelled,
}

/// Why an operation failed.
///
/// `message` is one sentence in lower case without a full stop, BuildKit's wording where it has one; `help` are next
/// steps. Places in the Dockerfile are added by the scheduler from the vertex.
#[derive(Clone, Debug, PartialEq)]
pub struct OpError {
    /// Who can mend it.
    pub tier: Tier,
    /// What is wrong.
    pub message: String,
    /// What to do, one suggestion each.
    pub help: Vec<String>,
    /// The word of the Dockerfile that is at fault, if it is one and no variable stands for it.
    pub word: Option<String>,
    /// Exit code of a failed command.
    pub exit_code: Option<i32>,
    /// What is missing is the result of a step, which can be performed again: another try succeeds.
    pub is_remade: bool,
}

impl OpError {
    /// A fault in the user's input.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Tier::Input, message)
    }

    /// A fault of the machine, the network or a registry.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(Tier::Environment, message)
    }

    /// A bug.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Tier::Internal, message)
    }

    /// The build was stopped.
    pub fn cancelled() -> Self {
        Self::new(Tier::Cancelled, "context canceled")
    }

    /// Adds a suggestion.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// Says which word of the Dockerfile is at fault.
    #[must_use]
    pub fn about(mut self, word: impl Into<String>) -> Self {
        self.word = Some(word.into());
        self
    }

    fn new(tier: Tier, message: impl Into<String>) -> Self {
        Self { tier, message: message.into(), help: Vec::new(), word: None, exit_code: None, is_remade: false }
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpError {}

impl From<cache::StoreError> for OpError {
    fn from(error: cache::StoreError) -> Self {
        Self::environment(error.to_string())
    }
}
