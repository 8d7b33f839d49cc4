//! HEALTHCHECK. Spec: §2.13.

use super::{Command, HealthcheckInstruction, at_least_one, command_of, with_example};
use crate::duration;
use crate::flags::{FlagKind, FlagTable, Flags};
use crate::go;
use crate::node::{Args, Fault, Node};

pub(super) const FLAGS: FlagTable = &[
    ("interval", FlagKind::Text),
    ("timeout", FlagKind::Text),
    ("start-period", FlagKind::Text),
    ("start-interval", FlagKind::Text),
    ("retries", FlagKind::Text),
];

/// The shortest duration that is not "unset": a millisecond.
const MINIMUM_NS: i64 = 1_000_000;

pub(super) fn parse_healthcheck(node: &Node) -> Result<HealthcheckInstruction, Fault> {
    let Args::Healthcheck { kind, command } = &node.args else { return Err(at_least_one("HEALTHCHECK")) };
    if kind.eq_ignore_ascii_case("none") {
        // The flags of `HEALTHCHECK NONE` are not looked at, and lost.
        return match **command {
            Args::None => Ok(unset(vec!["NONE".to_owned()])),
            _ => Err(Fault::new("HEALTHCHECK NONE takes no arguments")
                .help("to check with a command: `HEALTHCHECK CMD command`")),
        };
    }
    let flags = Flags::check("HEALTHCHECK", &node.flags, FLAGS)?;
    if !kind.eq_ignore_ascii_case("cmd") {
        let quoted = go::quote(&kind.to_uppercase());
        return Err(Fault::new(format!("Unknown type {quoted} in HEALTHCHECK (try CMD)"))
            .about(kind.clone())
            .help("write `HEALTHCHECK CMD` and the command, or `HEALTHCHECK NONE`"));
    }
    let test = match command_of(command) {
        Command::Exec(words) if !words.is_empty() => std::iter::once("CMD".to_owned()).chain(words).collect(),
        Command::Shell(text) if !text.is_empty() => vec!["CMD-SHELL".to_owned(), text],
        _ => return Err(with_example(Fault::new("Missing command after HEALTHCHECK CMD"), "HEALTHCHECK").about(kind)),
    };
    Ok(HealthcheckInstruction {
        interval_ns: interval(&flags, "interval")?,
        timeout_ns: interval(&flags, "timeout")?,
        start_period_ns: interval(&flags, "start-period")?,
        start_interval_ns: interval(&flags, "start-interval")?,
        retries: retries(&flags)?,
        ..unset(test)
    })
}

fn unset(test: Vec<String>) -> HealthcheckInstruction {
    HealthcheckInstruction { test, interval_ns: 0, timeout_ns: 0, start_period_ns: 0, start_interval_ns: 0, retries: 0 }
}

fn interval(flags: &Flags, name: &str) -> Result<i64, Fault> {
    let Some(text) = flags.text(name) else { return Ok(0) };
    let ns = duration::parse(&text).map_err(|error| {
        let help = "a duration is a number with its unit: `500ms`, `30s`, `1m30s`";
        Fault::new(error.to_string()).about(text.clone()).help(help)
    })?;
    if ns != 0 && ns < MINIMUM_NS {
        return Err(Fault::new(format!("Interval \"{name}\" cannot be less than 1ms"))
            .about(text)
            .help("the shortest is `1ms`"));
    }
    Ok(ns)
}

/// What `--retries` takes.
const RETRIES: &str = "give a count, for instance `--retries=3`";

fn retries(flags: &Flags) -> Result<i64, Fault> {
    let Some(text) = flags.text("retries") else { return Ok(0) };
    let count = go::parse_int32(&text).map_err(|error| Fault::new(error).about(text.clone()).help(RETRIES))?;
    if count < 0 {
        return Err(Fault::new(format!("--retries cannot be negative ({count})")).about(text).help(RETRIES));
    }
    Ok(i64::from(count))
}
