//! The instructions that are a list, a text or a few pairs.

use super::{ArgDefinition, ArgInstruction, Command, at_least_one, command_of, exactly_one, refuse_flags, words_of};
use crate::lexer::LogicalLine;
use crate::node::{Args, Fault, Node};
use crate::words::split_keyword;

/// ARG. Flags are not looked at, and lost.
pub(super) fn parse_arg(node: &Node) -> Result<ArgInstruction, Fault> {
    let words = words_of(&node.args);
    if words.is_empty() {
        return Err(at_least_one("ARG"));
    }
    let mut args = Vec::with_capacity(words.len());
    for word in words {
        let (name, default) = match word.split_once('=') {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (word.as_str(), None),
        };
        if name.is_empty() {
            return Err(blank_name("ARG").about(word.clone()));
        }
        args.push(ArgDefinition { name: name.to_owned(), default });
    }
    Ok(ArgInstruction { args })
}

/// ENV and LABEL.
pub(super) fn parse_pairs(keyword: &str, node: &Node) -> Result<Vec<(String, String)>, Fault> {
    let Args::Pairs { pairs, .. } = &node.args else { return Err(at_least_one(keyword)) };
    refuse_flags(keyword, node)?;
    match pairs.iter().find(|(key, _)| key.is_empty()) {
        Some((_, value)) => Err(blank_name(keyword).about(format!("={value}"))),
        None => Ok(pairs.clone()),
    }
}

fn blank_name(keyword: &str) -> Fault {
    Fault::new(format!("{keyword} names can not be blank"))
        .help(format!("write `{keyword} NAME=value`, without a blank before `=`"))
}

/// MAINTAINER, USER and WORKDIR: the rest of the line.
pub(super) fn parse_text(keyword: &str, node: &Node) -> Result<String, Fault> {
    let Args::Text(text) = &node.args else {
        return Err(exactly_one(keyword));
    };
    refuse_flags(keyword, node)?;
    Ok(text.clone())
}

/// STOPSIGNAL. Flags are not looked at, and lost.
pub(super) fn parse_stopsignal(node: &Node) -> Result<String, Fault> {
    match &node.args {
        Args::Text(text) => Ok(text.clone()),
        _ => Err(exactly_one("STOPSIGNAL")),
    }
}

/// CMD and ENTRYPOINT; nothing is the plain form with an empty text.
pub(super) fn parse_command(keyword: &str, node: &Node) -> Result<Command, Fault> {
    refuse_flags(keyword, node)?;
    Ok(command_of(&node.args))
}

/// SHELL: JSON form only.
pub(super) fn parse_shell(node: &Node) -> Result<Vec<String>, Fault> {
    refuse_flags("SHELL", node)?;
    match &node.args {
        Args::Json(words) if !words.is_empty() => Ok(words.clone()),
        Args::Json(_) | Args::None => Err(at_least_one("SHELL")),
        args => {
            let fault = Fault::new("SHELL requires the arguments to be in JSON form")
                .help("write it like `SHELL [\"/bin/bash\", \"-c\"]`");
            Err(match args {
                Args::Text(text) => fault.about(text),
                _ => fault,
            })
        }
    }
}

/// EXPOSE: the words in the order in which they are handled, which is that of their bytes.
pub(super) fn parse_expose(node: &Node) -> Result<Vec<String>, Fault> {
    let mut words = words_of(&node.args).to_vec();
    if words.is_empty() {
        return Err(at_least_one("EXPOSE"));
    }
    refuse_flags("EXPOSE", node)?;
    words.sort();
    Ok(words)
}

/// VOLUME: the words, trimmed.
pub(super) fn parse_volume(node: &Node) -> Result<Vec<String>, Fault> {
    let words = words_of(&node.args);
    if words.is_empty() {
        return Err(at_least_one("VOLUME"));
    }
    refuse_flags("VOLUME", node)?;
    let trimmed: Vec<String> = words.iter().map(|word| word.trim().to_owned()).collect();
    if trimmed.iter().any(String::is_empty) {
        return Err(Fault::new("VOLUME specified can not be an empty string").help("name a directory: `VOLUME /data`"));
    }
    Ok(trimmed)
}

/// ONBUILD: the trigger as it is stored, with its heredocs put back. Spec: §1.10.
pub(super) fn parse_onbuild(line: &LogicalLine) -> Result<String, Fault> {
    let Args::Trigger(trigger) = &line.node.args else { return Err(at_least_one("ONBUILD")) };
    refuse_flags("ONBUILD", &line.node)?;
    let keyword = trigger.keyword.to_ascii_uppercase();
    match keyword.as_str() {
        "ONBUILD" => {
            let fault = Fault::new("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed");
            return Err(fault.about(trigger.keyword.clone()).help("write ONBUILD once"));
        }
        "FROM" | "MAINTAINER" => {
            let message = format!("{keyword} isn't allowed as an ONBUILD trigger");
            let help = "every other instruction is, but for ONBUILD itself: `ONBUILD RUN make`";
            return Err(Fault::new(message).about(trigger.keyword.clone()).help(help));
        }
        _ => {}
    }
    let mut text = split_keyword(line.text.trim_start()).1.to_owned();
    for heredoc in &line.heredocs {
        text.push('\n');
        text.push_str(&String::from_utf8_lossy(&heredoc.content));
        text.push_str(&heredoc.name);
    }
    Ok(text)
}
