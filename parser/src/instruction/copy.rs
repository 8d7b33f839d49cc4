//! COPY and ADD. Spec: §1.9, §2.15–2.24.

use std::collections::HashMap;
use std::sync::Arc;

use super::{AddInstruction, CopyInstruction, SourceContent, with_example, words_of};
use crate::flags::{FlagKind, FlagTable, Flags};
use crate::lexer::{Heredoc, heredoc_word, strip_tabs};
use crate::node::{Fault, Node};

pub(super) const COPY_FLAGS: FlagTable = &[
    ("from", FlagKind::Text),
    ("chown", FlagKind::Text),
    ("chmod", FlagKind::Text),
    ("link", FlagKind::Bool),
    ("parents", FlagKind::Bool),
    ("exclude", FlagKind::List),
];

pub(super) const ADD_FLAGS: FlagTable = &[
    ("chown", FlagKind::Text),
    ("chmod", FlagKind::Text),
    ("link", FlagKind::Bool),
    ("keep-git-dir", FlagKind::Bool),
    ("checksum", FlagKind::Text),
    ("unpack", FlagKind::Bool),
    ("exclude", FlagKind::List),
];

pub(super) fn parse_copy(node: &Node, heredocs: &[Heredoc]) -> Result<CopyInstruction, Fault> {
    let (source_words, dest_word) = sources_and_dest("COPY", node)?;
    let flags = Flags::check("COPY", &node.flags, COPY_FLAGS)?;
    let (sources, contents) = split_sources("COPY", source_words, dest_word, heredocs)?;
    Ok(CopyInstruction {
        sources,
        contents,
        dest: dest_word.clone(),
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.bool("link").unwrap_or(false),
        parents: flags.bool("parents").unwrap_or(false),
        excludes: flags.list("exclude"),
    })
}

pub(super) fn parse_add(node: &Node, heredocs: &[Heredoc]) -> Result<AddInstruction, Fault> {
    let (source_words, dest_word) = sources_and_dest("ADD", node)?;
    let flags = Flags::check("ADD", &node.flags, ADD_FLAGS)?;
    let (sources, contents) = split_sources("ADD", source_words, dest_word, heredocs)?;
    Ok(AddInstruction {
        sources,
        contents,
        dest: dest_word.clone(),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.bool("link").unwrap_or(false),
        keep_git_dir: flags.bool("keep-git-dir"),
        checksum: flags.text("checksum"),
        unpack: flags.bool("unpack"),
        excludes: flags.list("exclude"),
    })
}

fn sources_and_dest<'a>(keyword: &str, node: &'a Node) -> Result<(&'a [String], &'a String), Fault> {
    match words_of(&node.args) {
        [sources @ .., dest] if !sources.is_empty() => Ok((sources, dest)),
        words => {
            let fault = Fault::new(format!(
                "{keyword} requires at least two arguments, but only one was provided. Destination could not be determined"
            ));
            Err(match words {
                [source, ..] => fault.about(source).help(format!("say where it goes: `{keyword} {source} /app/`")),
                [] => with_example(fault, keyword),
            })
        }
    }
}

/// Tells paths from heredocs. A heredoc word without a body (the JSON form has none) is an empty file.
fn split_sources(
    keyword: &str,
    words: &[String],
    dest: &str,
    heredocs: &[Heredoc],
) -> Result<(Vec<String>, Vec<SourceContent>), Fault> {
    // A word with unbalanced quotes is no heredoc; expansion will say what is wrong with it.
    let as_heredoc = |word: &str| heredoc_word(word).ok().flatten();
    if as_heredoc(dest).is_some() {
        let fault = Fault::new(format!("{keyword} cannot accept a heredoc as a destination")).about(dest);
        return Err(fault.help(format!("name the file behind it: `{keyword} {dest} /app/file`")));
    }
    // Of two bodies with one delimiter the last one counts, for both.
    let bodies: HashMap<&str, &Heredoc> = heredocs.iter().map(|body| (body.name.as_str(), body)).collect();
    // By name and whether tabs are stripped: a body that is named a thousand times is in memory once or twice.
    let mut shared: HashMap<(String, bool), Arc<[u8]>> = HashMap::new();
    let mut paths = Vec::new();
    let mut contents = Vec::new();
    for word in words {
        match as_heredoc(word) {
            None => paths.push(word.clone()),
            Some(heredoc) => {
                let content = bodies.get(heredoc.name.as_str()).map_or(&[][..], |body| &body.content);
                let stripped = || if heredoc.strip_tabs { strip_tabs(content).into() } else { content.into() };
                let data = shared.entry((heredoc.name.clone(), heredoc.strip_tabs)).or_insert_with(stripped).clone();
                contents.push(SourceContent { path: heredoc.name, data, expand: heredoc.expand });
            }
        }
    }
    Ok((paths, contents))
}
