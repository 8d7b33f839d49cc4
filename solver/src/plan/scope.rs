//! Variables: the environment of a stage, the global scope, and build arguments with a meaning.
//!
//! Spec: `spec/dockerfile.md` §3.2–3.8.

use std::collections::BTreeMap;

use oci::Platform;
use parser::expand::{Expander, Lookup};
use parser::instruction::InstructionKind;
use parser::{Dockerfile, suggest};

use super::error::PlanError;
use super::outline::{GlobalArg, OutlineArg};
use super::request::PlanRequest;

/// Seconds since the epoch that times are taken from.
pub(super) const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Variables that are settings of the builder even when they are declared: never in an environment.
const NEVER_IN_ENVIRONMENT: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Proxy variables, in the order in which RUN gets them.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Names of build arguments that are shorter are near to everything.
const MIN_MISTAKEN_CHARS: usize = 4;

/// An ordered environment: a variable that is set again moves to the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Env {
    vars: Vec<(String, String)>,
}

impl Env {
    /// `K=V` strings, as image configs have them.
    pub(super) fn from_config(list: &[String]) -> Self {
        let mut env = Self::default();
        for variable in list {
            let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
            env.set(key, value);
        }
        env
    }

    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.vars.retain(|(known, _)| known != key);
        self.vars.push((key.to_owned(), value.to_owned()));
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.vars.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn unset(&mut self, key: &str) {
        self.vars.retain(|(known, _)| known != key);
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.vars.iter().map(|(key, _)| key.as_str())
    }

    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.vars
    }
}

impl Lookup for Env {
    fn get(&self, name: &str) -> Option<&str> {
        Env::get(self, name)
    }
}

/// Whether declaring `name` makes a variable of it.
pub(super) fn is_variable(name: &str) -> bool {
    !NEVER_IN_ENVIRONMENT.contains(&name)
}

/// What holds for all stages of a file on one platform.
#[derive(Clone, Debug)]
pub(super) struct Globals {
    /// Automatic arguments and global ARGs with a value.
    pub(super) env: Env,
    /// Names of global ARGs without a value.
    pub(super) declared: Vec<String>,
    /// Global ARGs in order, for the outline.
    pub(super) args: Vec<GlobalArg>,
    /// `--build-arg`, the epoch resolved.
    pub(super) build_args: BTreeMap<String, String>,
}

impl Globals {
    /// Evaluates the global ARGs.
    ///
    /// # Errors
    /// A default that cannot be expanded, at its line.
    pub(super) fn evaluate(
        file: &Dockerfile,
        request: &PlanRequest,
        platform: &Platform,
        build_args: &BTreeMap<String, String>,
    ) -> Result<Self, PlanError> {
        let expander = Expander::new(file.directives.escape);
        let mut env = automatic(file, request, platform, build_args);
        let (mut declared, mut args) = (Vec::new(), Vec::new());
        for statement in &file.global_args {
            for arg in &statement.value.args {
                let (value, uses) = match (build_args.get(&arg.name), &arg.default) {
                    (Some(given), _) => (Some(given.clone()), Vec::new()),
                    (None, Some(default)) => {
                        let expanded = expander.process_word(default, &env);
                        let expanded = expanded.map_err(|error| PlanError::from(error).at(statement.lines))?;
                        (Some(expanded.text), expanded.used)
                    }
                    (None, None) => (None, Vec::new()),
                };
                let noted = OutlineArg::new(arg, value.clone(), &statement.comments, statement.lines);
                args.push(GlobalArg { arg: noted, uses });
                match value {
                    Some(value) => env.set(&arg.name, &value),
                    None => declared.push(arg.name.clone()),
                }
            }
        }
        Ok(Self { env, declared, args, build_args: build_args.clone() })
    }

    /// Makes the resolved epoch the value of `SOURCE_DATE_EPOCH`; `None` leaves it unset.
    pub(super) fn set_epoch(&mut self, epoch: Option<i64>) {
        match epoch {
            Some(seconds) => {
                let text = seconds.to_string();
                self.env.set(EPOCH, &text);
                self.build_args.insert(EPOCH.to_owned(), text);
            }
            None => {
                self.env.unset(EPOCH);
                self.build_args.remove(EPOCH);
            }
        }
    }

    /// Names that FROM may use without a warning.
    pub(super) fn known_names(&self) -> impl Iterator<Item = &str> {
        self.env.keys().chain(self.declared.iter().map(String::as_str))
    }

    /// Proxy variables for RUN, each in upper and in lower case.
    ///
    /// Build arguments name them in any letter case; of several spellings the last in byte order wins.
    pub(super) fn proxies(&self) -> Vec<(String, String)> {
        let given = |proxy: &str| {
            let mut spelled = self.build_args.iter().rev().filter(|(key, _)| key.eq_ignore_ascii_case(proxy));
            spelled.next().map(|(_, value)| value.clone())
        };
        let found = PROXIES.iter().filter_map(|proxy| given(proxy).map(|value| (*proxy, value)));
        found.flat_map(|(proxy, value)| [(proxy.to_owned(), value.clone()), (proxy.to_lowercase(), value)]).collect()
    }

    /// A build argument that is a setting.
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.build_args.get(name).map(String::as_str)
    }
}

/// The automatic arguments; build arguments of the same names change their text.
fn automatic(
    file: &Dockerfile,
    request: &PlanRequest,
    platform: &Platform,
    build_args: &BTreeMap<String, String>,
) -> Env {
    let last_stage = || file.stages.last().and_then(|stage| stage.name.as_deref()).unwrap_or("default");
    let target_stage = request.target.as_deref().filter(|target| !target.is_empty()).unwrap_or_else(last_stage);
    let build = &request.build_platform;
    let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
    let list = [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", or_empty(&build.os_version)),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", or_empty(&build.variant)),
        ("TARGETPLATFORM", with_version(platform)),
        ("TARGETOS", platform.os.clone()),
        ("TARGETOSVERSION", or_empty(&platform.os_version)),
        ("TARGETARCH", platform.architecture.clone()),
        ("TARGETVARIANT", or_empty(&platform.variant)),
        ("TARGETSTAGE", target_stage.to_owned()),
    ];
    let mut env = Env::default();
    for (name, value) in list {
        env.set(name, build_args.get(name).unwrap_or(&value));
    }
    env
}

/// `os[(version)]/arch[/variant]`.
fn with_version(platform: &Platform) -> String {
    match &platform.os_version {
        Some(version) => platform.to_string().replacen(&platform.os, &format!("{}({version})", platform.os), 1),
        None => platform.to_string(),
    }
}

/// What to say of build arguments that no ARG takes although one is called nearly so. Others may be meant for other files.
pub(super) fn mistaken_build_args(request: &PlanRequest, file: &Dockerfile) -> Vec<String> {
    let of_stages = file.stages.iter().flat_map(|stage| &stage.instructions).filter_map(|it| match &it.kind {
        InstructionKind::Arg(arg) => Some(arg),
        _ => None,
    });
    let instructions = file.global_args.iter().map(|arg| &arg.value).chain(of_stages);
    let declared: Vec<&str> = instructions.flat_map(|arg| &arg.args).map(|arg| arg.name.as_str()).collect();
    let names = request.build_args.keys().filter(|name| name.len() >= MIN_MISTAKEN_CHARS && !is_predefined(name));
    let mistaken = names.filter_map(|name| {
        // Nothing is near to a name that is declared.
        let nearest = suggest::nearest(name, declared.iter().copied())?;
        Some(format!("no ARG takes the build argument {name} (did you mean {nearest}?)"))
    });
    mistaken.collect()
}

/// Whether a build argument has a meaning without any ARG.
fn is_predefined(name: &str) -> bool {
    name == EPOCH || name.starts_with("BUILDKIT_") || PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_a_variable_again_moves_it_to_the_end() {
        let mut env = Env::from_config(&["A=1".to_owned(), "B=2".to_owned(), "C".to_owned()]);
        env.set("A", "3");
        let keys: Vec<&str> = env.keys().collect();
        assert_eq!(keys, ["B", "C", "A"]);
        assert_eq!(env.get("A"), Some("3"));
        assert_eq!(env.get("C"), Some(""));
        assert_eq!(env.get("D"), None);
    }

    #[test]
    fn proxies_come_in_both_letter_cases() {
        let build_args = [("http_proxy", "lower"), ("HTTP_PROXY", "upper"), ("No_Proxy", "a,b"), ("OTHER", "x")];
        let build_args = build_args.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let globals = Globals { env: Env::default(), declared: Vec::new(), args: Vec::new(), build_args };
        let pairs = globals.proxies();
        let shown: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(shown, ["HTTP_PROXY=lower", "http_proxy=lower", "NO_PROXY=a,b", "no_proxy=a,b"]);
    }

    #[test]
    fn versions_of_windows_are_part_of_the_platform() {
        let mut platform = Platform::new("windows", "amd64", None);
        assert_eq!(with_version(&platform), "windows/amd64");
        platform.os_version = Some("10.0.20348".to_owned());
        assert_eq!(with_version(&platform), "windows(10.0.20348)/amd64");
    }
}
