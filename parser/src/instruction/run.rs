//! RUN. Spec: §1.9, §2.2.

use super::{Command, RunDevice, RunInstruction, RunNetwork, RunScript, RunSecurity, command_of};
use crate::csv;
use crate::flags::{FlagKind, FlagTable, Flags};
use crate::go;
use crate::lexer::{Heredoc, heredoc_word};
use crate::mount;
use crate::node::{Fault, Node};

pub(super) const FLAGS: FlagTable =
    &[("mount", FlagKind::List), ("network", FlagKind::Text), ("security", FlagKind::Text), ("device", FlagKind::List)];

/// Checks a RUN. The keys of mounts are not looked at: they count only when the stage is built.
pub(super) fn parse_run(node: &Node, heredocs: &[Heredoc]) -> Result<RunInstruction, Fault> {
    let flags = Flags::check("RUN", &node.flags, FLAGS)?;
    let devices = flags.list("device").iter().map(|device| parse_device(device)).collect::<Result<_, _>>()?;
    let mounts = flags.list("mount");
    for raw in &mounts {
        mount::check_syntax(raw).map_err(|error| {
            let fault = Fault::new(error.to_string()).about(raw.clone());
            match error.help() {
                Some(help) => fault.help(help),
                None => fault,
            }
        })?;
    }
    Ok(RunInstruction {
        command: command_of(&node.args),
        heredocs: heredocs.to_vec(),
        mounts,
        network: parse_network(flags.text("network").as_deref())?,
        security: parse_security(flags.text("security").as_deref())?,
        devices,
    })
}

fn parse_network(value: Option<&str>) -> Result<RunNetwork, Fault> {
    match value {
        None | Some("default") => Ok(RunNetwork::Default),
        Some("none") => Ok(RunNetwork::None),
        Some("host") => Ok(RunNetwork::Host),
        Some(other) => Err(Fault::new(format!("invalid network mode {}", go::quote(other)))
            .about(other)
            .help("the modes are `default`, `none` and `host`")),
    }
}

fn parse_security(value: Option<&str>) -> Result<RunSecurity, Fault> {
    match value {
        None | Some("sandbox") => Ok(RunSecurity::Sandbox),
        Some("insecure") => Ok(RunSecurity::Insecure),
        Some(other) => Err(Fault::new(format!("security {} is not valid", go::quote(other)))
            .about(other)
            .help("the modes are `sandbox` and `insecure`")),
    }
}

/// `name[,required[=bool]]`; the name may also be given as `name=…`. Spec: §2.2.10.
fn parse_device(raw: &str) -> Result<RunDevice, Fault> {
    let about = |message: String| Fault::new(message).about(raw);
    let fields = csv::fields(raw).map_err(|error| about(format!("failed to parse csv devices: {error}")))?;
    let mut device = RunDevice { name: String::new(), required: false };
    for field in &fields {
        // A device is `vendor.com/class=name`, so that `=` alone does not make a key.
        let (key, value) = match field.split_once('=') {
            Some((key, value)) if !key.contains('/') => (key.to_ascii_lowercase(), Some(value)),
            Some(_) => ("name".to_owned(), Some(field.as_str())),
            None if field.eq_ignore_ascii_case("required") => ("required".to_owned(), None),
            None => ("name".to_owned(), Some(field.as_str())),
        };
        match (key.as_str(), value) {
            ("name", Some(name)) if device.name.is_empty() => name.clone_into(&mut device.name),
            ("name", _) => return Err(about(format!("device name already set to {}", device.name))),
            ("required", None) => device.required = true,
            ("required", Some(text)) => {
                device.required =
                    go::parse_bool(text).ok_or_else(|| about(format!("invalid value for required: {text}")))?;
            }
            (key, _) => return Err(about(format!("unexpected key '{key}' in '{field}'"))),
        }
    }
    Ok(device)
}

impl RunInstruction {
    /// The heredoc that is the whole command, if it is one: `RUN <<EOF`.
    pub fn sole_heredoc(&self) -> Option<&Heredoc> {
        let (Command::Shell(text), [heredoc]) = (&self.command, self.heredocs.as_slice()) else { return None };
        let whole = heredoc_word(text).ok()??;
        (whole.name == heredoc.name).then_some(heredoc)
    }

    /// How the command is to be run.
    pub fn script(&self) -> RunScript {
        let text = match &self.command {
            Command::Exec(words) => return RunScript::Exec(words.clone()),
            Command::Shell(text) => text,
        };
        let Some(heredoc) = self.sole_heredoc() else {
            return RunScript::Shell(self.text_with_bodies(text));
        };
        let body = heredoc.body();
        if body.starts_with(b"#!") {
            RunScript::File { name: heredoc.name.clone(), content: body }
        } else {
            RunScript::Shell(String::from_utf8_lossy(&body).into_owned())
        }
    }

    /// The first line of the first heredoc, for a progress name.
    pub fn first_body_line(&self) -> Option<String> {
        let body = self.heredocs.first()?.body();
        let line = body.split(|&byte| byte == b'\n').next()?;
        Some(String::from_utf8_lossy(line).trim_end_matches('\r').to_owned())
    }

    /// The command line, and behind it each body and its delimiter.
    fn text_with_bodies(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for heredoc in &self.heredocs {
            out.push('\n');
            out.push_str(&String::from_utf8_lossy(&heredoc.content));
            out.push_str(&heredoc.name);
        }
        out
    }
}
