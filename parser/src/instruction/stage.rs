//! FROM. Spec: §2.1.

use super::words_of;
use crate::ast::Stage;
use crate::flags::{FlagKind, FlagTable, Flags};
use crate::go;
use crate::lexer::LogicalLine;
use crate::lint::CheckConfig;
use crate::node::Fault;

pub(super) const FLAGS: FlagTable = &[("platform", FlagKind::Text)];

/// Checks a FROM and opens its stage.
pub(crate) fn parse_stage(line: &LogicalLine) -> Result<Stage, Fault> {
    let (base, name) = match words_of(&line.node.args) {
        [base] => (base, None),
        [base, as_, name] if as_.eq_ignore_ascii_case("as") => (base, Some(name)),
        words => {
            let fault = Fault::new("FROM requires either one or three arguments")
                .help("write `FROM image` or `FROM image AS name`");
            return Err(fault.about(words.get(1).map_or(&line.node.keyword, |surplus| surplus)));
        }
    };
    let lowered = name.map(|name| stage_name(name)).transpose()?;
    let flags = Flags::check("FROM", &line.node.flags, FLAGS)?;
    Ok(Stage {
        name: lowered,
        name_as_written: name.cloned(),
        base: base.clone(),
        platform: flags.text("platform"),
        location: line.lines,
        comments: line.comments.clone(),
        checks: CheckConfig::from_comments(&line.comments),
        from_text: line.text.trim().to_owned(),
        keyword_as_written: line.node.keyword.clone(),
        instructions: Vec::new(),
    })
}

/// Lower-cases a stage name and checks it: a letter, then letters, digits, `-`, `_` and `.`.
fn stage_name(name: &str) -> Result<String, Fault> {
    let lowered = name.to_lowercase();
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if lowered.starts_with(|c: char| c.is_ascii_lowercase()) && lowered.chars().all(is_inner) {
        return Ok(lowered);
    }
    let quoted = go::quote(name);
    let message = format!("invalid name for build stage: {quoted}, name can't start with a number or contain symbols");
    let help = "begin the name with a letter; letters, digits, `-`, `_` and `.` may follow";
    Err(Fault::new(message).about(name).help(help))
}
