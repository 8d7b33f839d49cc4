//! Instructions that change the image's config and nothing in its root: ENV, LABEL, ARG, CMD, EXPOSE and the like.
//!
//! Spec: `spec/dockerfile.md` §2.3–2.14.

use oci::image::Healthcheck;
use parser::instruction::{ArgInstruction, Command, HealthcheckInstruction};
use parser::lint::{self, looks_like_secret};
use parser::port::{self, PortError};
use parser::signal;

use super::error::PlanError;
use super::history::{self, PlannedHistory};
use super::outline::OutlineArg;
use super::scope;
use super::stage::StageBuilder;

/// Every port of every protocol. A short file could ask for any number, and each of them is in the history.
const MAX_PORTS: usize = 3 << 16;

impl StageBuilder<'_> {
    pub(super) fn env(&mut self, pairs: &[(String, String)]) -> Result<(), PlanError> {
        let pairs = self.expand_pairs(pairs)?;
        for (key, value) in &pairs {
            self.check_secret("ENV", key);
            self.state.set_env(key, value);
        }
        self.add_metadata(format!("ENV {}", key_values(&pairs)));
        Ok(())
    }

    pub(super) fn label(&mut self, pairs: &[(String, String)]) -> Result<(), PlanError> {
        let pairs = self.expand_pairs(pairs)?;
        self.state.config.config.labels.extend(pairs.iter().cloned());
        self.add_metadata(format!("LABEL {}", key_values(&pairs)));
        Ok(())
    }

    /// All of them with the environment before the instruction.
    fn expand_pairs(&mut self, pairs: &[(String, String)]) -> Result<Vec<(String, String)>, PlanError> {
        pairs.iter().map(|(key, value)| Ok((self.expand(key)?, self.expand(value)?))).collect()
    }

    /// Each argument sees those before it on the line. `comments` are those above the instruction.
    pub(super) fn arg(&mut self, instruction: &ArgInstruction, comments: &[String]) -> Result<(), PlanError> {
        let mut shown = Vec::new();
        for arg in &instruction.args {
            self.check_secret("ARG", &arg.name);
            let globals = &self.target.globals;
            let given = globals.build_args.get(&arg.name);
            let value = match (given, &arg.default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(default)?),
                (None, None) => globals.env.get(&arg.name).map(str::to_owned),
            };
            if let Some(value) = value.as_deref().filter(|_| scope::is_variable(&arg.name)) {
                self.state.env.set(&arg.name, value);
            }
            let is_the_global_one = given.is_none() && arg.default.is_none() && value.is_some();
            let own = (!is_the_global_one).then(|| OutlineArg::new(arg, value.clone(), comments, self.here.lines));
            self.state.facts.note_arg(&arg.name, own);
            shown.push(value.as_ref().map_or_else(|| arg.name.clone(), |value| format!("{}={value}", arg.name)));
            self.state.args.push((arg.name.clone(), value));
        }
        self.add_metadata(format!("ARG {}", shown.join(" ")));
        Ok(())
    }

    fn check_secret(&mut self, keyword: &str, key: &str) {
        if looks_like_secret(key) {
            let (lines, checks) = (self.here.lines, self.here.checks.clone());
            self.findings.raise(lint::Warning::secrets_used(keyword, key, lines, &checks));
        }
    }

    pub(super) fn cmd(&mut self, command: &Command) {
        let words = self.command_words("CMD", command);
        self.add_metadata(format!("CMD {}", history::quoted_list(&words)));
        let config = &mut self.state.config.config;
        config.cmd = Some(words);
        config.args_escaped = true;
        self.has_own_cmd = true;
    }

    pub(super) fn entrypoint(&mut self, command: &Command) {
        let words = self.command_words("ENTRYPOINT", command);
        self.add_metadata(format!("ENTRYPOINT {}", history::quoted_list(&words)));
        let has_own_cmd = self.has_own_cmd;
        let config = &mut self.state.config.config;
        config.entrypoint = Some(words).filter(|words| !words.is_empty());
        // What the base wanted as default arguments was meant for its own entrypoint.
        if !has_own_cmd {
            config.cmd = None;
        }
    }

    fn command_words(&mut self, keyword: &str, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => {
                if self.state.config.config.shell.as_ref().is_none_or(Vec::is_empty) {
                    let (lines, checks) = (self.here.lines, self.here.checks.clone());
                    self.findings.raise(lint::Warning::json_args_recommended(keyword, lines, &checks));
                }
                self.with_shell(text.clone())
            }
        }
    }

    /// The text behind the words of SHELL.
    pub(super) fn with_shell(&self, text: String) -> Vec<String> {
        let set = self.state.config.config.shell.clone().filter(|words| !words.is_empty());
        let default = || match self.state.platform.os.as_str() {
            "windows" => vec!["cmd".to_owned(), "/S".to_owned(), "/C".to_owned()],
            _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        };
        let mut words = set.unwrap_or_else(default);
        words.push(text);
        words
    }

    pub(super) fn healthcheck(&mut self, instruction: &HealthcheckInstruction) {
        let check = Healthcheck {
            test: instruction.test.clone(),
            interval_ns: instruction.interval_ns,
            timeout_ns: instruction.timeout_ns,
            start_period_ns: instruction.start_period_ns,
            start_interval_ns: instruction.start_interval_ns,
            retries: instruction.retries,
        };
        self.add_metadata(format!("HEALTHCHECK {}", history::healthcheck(&check)));
        self.state.config.config.healthcheck = Some(check);
    }

    pub(super) fn volume(&mut self, words: &[String]) -> Result<(), PlanError> {
        let paths: Vec<String> = words.iter().map(|word| self.expand(word)).collect::<Result<_, _>>()?;
        if paths.iter().any(String::is_empty) {
            return Err(PlanError::input("VOLUME specified can not be an empty string")
                .help("name a directory, and give every variable in it a value"));
        }
        paths.iter().for_each(|path| self.state.add_volume(path));
        self.add_metadata(format!("VOLUME {}", history::plain_list(&paths)));
        Ok(())
    }

    pub(super) fn user(&mut self, text: &str) -> Result<(), PlanError> {
        let user = self.expand(text)?;
        self.add_metadata(format!("USER {user}"));
        self.state.config.config.user = user;
        Ok(())
    }

    pub(super) fn stop_signal(&mut self, text: &str) -> Result<(), PlanError> {
        let signal = self.expand(text)?;
        signal::check(&signal).map_err(|error| {
            let help = match signal::nearest(&signal) {
                Some(name) => format!("did you mean {name}?"),
                None => "a signal is a name such as SIGTERM, or its number".to_owned(),
            };
            PlanError::input(error.to_string()).about(text).help(help)
        })?;
        if self.state.platform.os == "windows" {
            return Err(PlanError::input("The daemon on this platform does not support the command STOPSIGNAL"));
        }
        self.add_metadata(format!("STOPSIGNAL {signal}"));
        self.state.config.config.stop_signal = signal;
        Ok(())
    }

    pub(super) fn shell(&mut self, words: &[String]) {
        self.add_metadata(format!("SHELL {}", history::plain_list(words)));
        self.state.config.config.shell = Some(words.to_vec());
    }

    pub(super) fn maintainer(&mut self, author: &str) {
        self.add_metadata(format!("MAINTAINER {author}"));
        self.state.config.author = Some(author.to_owned()).filter(|author| !author.is_empty());
    }

    pub(super) fn onbuild(&mut self, trigger: &str) {
        self.state.config.config.on_build.push(trigger.to_owned());
    }

    /// Words are sorted as they are written; what they stand for is not.
    pub(super) fn expose(&mut self, words: &[String]) -> Result<(), PlanError> {
        let mut sorted = words.to_vec();
        sorted.sort();
        let mut ports = Vec::new();
        for word in &sorted {
            for text in self.expand_words(word)? {
                ports.extend(self.ports(&text)?);
            }
        }
        ports.iter().for_each(|port| self.state.expose(port));
        self.add_metadata(format!("EXPOSE {}", history::plain_list(&ports)));
        Ok(())
    }

    fn ports(&mut self, text: &str) -> Result<Vec<String>, PlanError> {
        let mut warn = |found| self.findings.raise(found);
        let spec = port::parse_port(text, self.here.lines, &self.here.checks, &mut warn).map_err(|error| {
            let help = match error {
                PortError::InvalidProtocol { .. } => "the protocols are tcp, udp and sctp: `53/udp`",
                PortError::RangeMismatch { .. } => "let both ranges have the same length",
                _ => "a port is a number up to 65535, or a range: `8080`, `53/udp`, `8000-8010`",
            };
            PlanError::input(error.to_string()).about(text).help(help)
        })?;
        self.n_ports += spec.ports.len();
        if self.n_ports > MAX_PORTS {
            let fault = PlanError::input("the stage exposes more ports than there are").about(text);
            return Err(fault.help("name each port once: `EXPOSE 0-65535` is all of them"));
        }
        Ok(spec.keys().collect())
    }

    fn add_metadata(&mut self, created_by: String) {
        self.state.history.push(PlannedHistory::metadata(created_by));
    }
}

/// `k=v k2=v2`
fn key_values(pairs: &[(String, String)]) -> String {
    let shown: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    shown.join(" ")
}
