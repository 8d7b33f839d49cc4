//! ADD: URLs, git repositories and local files, which are unpacked when they are archives.
//!
//! Spec: `spec/dockerfile.md` §2.22–2.24.

use oci::Digest;
use oci::digest::DigestError;
use parser::instruction::AddInstruction;

use super::copy::{Actions, Common, Transfer, selection};
use super::error::PlanError;
use super::git_url::{GitUrl, is_http, percent_decode, redacted};
use super::paths;
use super::stage::StageBuilder;
use crate::graph::Input;
use crate::op::{CopyAction, CopySelection, FileAction, HttpOp, Op, Unpack};

/// Name of a file whose URL has none.
const UNNAMED: &str = "__unnamed__";

impl StageBuilder<'_> {
    pub(super) fn add(&mut self, add: &AddInstruction) -> Result<(), PlanError> {
        let transfer = Transfer {
            keyword: "ADD",
            chown: self.expand_opt(add.chown.as_deref())?,
            chmod: self.expand_opt(add.chmod.as_deref())?,
            sources: self.expand_all(&add.sources)?,
            dest: self.expand(&add.dest)?,
            contents: self.contents(&add.contents)?,
            link: add.link,
            parents: false,
            excludes: &add.excludes,
        };
        let checksum = self.expand_opt(add.checksum.as_deref())?;
        if checksum.is_some() {
            check_may_have_checksum(&transfer.sources)?;
        }
        let common = self.common(&transfer)?;
        let mut actions = Actions::default();
        for source in &transfer.sources {
            let action = match GitUrl::parse(source) {
                Some(url) => {
                    let url = url.map_err(|error| PlanError::input(error.to_string()).about(source))?;
                    self.add_git(url, add, checksum.as_deref(), &transfer, &common, &mut actions)?
                }
                None if is_http(source) => self.add_url(source, add, checksum.as_deref(), &common, &mut actions)?,
                None => self.add_local(source, add, &transfer, &common, &mut actions)?,
            };
            actions.list.push(FileAction::Copy(action));
        }
        self.finish_transfer(transfer, common, actions);
        Ok(())
    }

    fn add_local(
        &mut self,
        source: &str,
        add: &AddInstruction,
        transfer: &Transfer,
        common: &Common,
        actions: &mut Actions,
    ) -> Result<CopyAction, PlanError> {
        self.check_ignored(transfer, source);
        let unpack = if add.unpack == Some(false) { Unpack::Never } else { Unpack::IfArchive };
        let input = actions.inputs.index_of(self.context_input());
        self.check_inside(source);
        Ok(CopyAction { unpack, ..common.action(input, selection(source, transfer)?) })
    }

    fn add_url(
        &mut self,
        url: &str,
        add: &AddInstruction,
        checksum: Option<&str>,
        common: &Common,
        actions: &mut Actions,
    ) -> Result<CopyAction, PlanError> {
        let filename = file_name(url);
        let checksum = checksum.map(digest).transpose()?;
        let op = Op::Http(HttpOp { url: url.to_owned(), filename: filename.clone(), checksum });
        let vertex = self.add_source(op, Vec::new(), redacted(url), "source");
        let input = actions.inputs.index_of(Some(Input::Vertex(vertex)));
        let unpack = if add.unpack == Some(true) { Unpack::IfArchive } else { Unpack::Never };
        let file = whole(&format!("/{filename}"), &[]);
        Ok(CopyAction { unpack, keep_source_metadata: true, ..common.action(input, file) })
    }

    fn add_git(
        &mut self,
        mut url: GitUrl,
        add: &AddInstruction,
        checksum: Option<&str>,
        transfer: &Transfer,
        common: &Common,
        actions: &mut Actions,
    ) -> Result<CopyAction, PlanError> {
        if let (Some(flag), Some(query)) = (add.keep_git_dir, url.keep_git_dir)
            && flag != query
        {
            return Err(PlanError::input("inconsistent keep-git-dir configuration"));
        }
        match (checksum, &url.checksum) {
            (Some(flag), Some(query)) if flag != query => {
                return Err(PlanError::input(format!("checksum mismatch \"{flag}\" != \"{query}\"")));
            }
            (Some(flag), _) => url.checksum = Some(flag.to_owned()),
            (None, _) => {}
        }
        if let Some(text) = url.checksum.as_deref().filter(|text| !text.bytes().all(|b| b.is_ascii_hexdigit())) {
            let fault = PlanError::input(format!(
                "failed to load cache key: invalid checksum {text} for Git URL, expected hex commit hash"
            ));
            return Err(fault.about(text).help("give the commit, as `git rev-parse HEAD` prints it"));
        }
        let op = url.to_op(add.keep_git_dir.unwrap_or(false));
        let name = super::git_url::shown(&op);
        let vertex = self.add_source(Op::Git(op), Vec::new(), name, "source");
        let input = actions.inputs.index_of(Some(Input::Vertex(vertex)));
        Ok(common.action(input, whole("/", transfer.excludes)))
    }
}

fn whole(path: &str, excludes: &[String]) -> CopySelection {
    CopySelection { source: path.to_owned(), wildcard: false, excludes: excludes.to_vec(), parents_base: None }
}

fn check_may_have_checksum(sources: &[String]) -> Result<(), PlanError> {
    let [source] = sources else {
        return Err(PlanError::input("checksum can't be specified for multiple sources")
            .about("--checksum")
            .help("write one ADD for each source"));
    };
    if GitUrl::parse(source).is_none() && !is_http(source) {
        return Err(PlanError::input("checksum requires HTTP(S) or Git sources")
            .about("--checksum")
            .help(format!("leave --checksum out: `{source}` is a file of the context")));
    }
    Ok(())
}

fn digest(text: &str) -> Result<Digest, PlanError> {
    text.parse().map_err(|error| {
        let message = match (error, text.split_once(':')) {
            (DigestError::Algorithm { .. }, _) => "unsupported digest algorithm",
            (DigestError::Malformed { .. }, Some((_, hex))) if is_lower_hex(hex) => "invalid checksum digest length",
            (DigestError::Malformed { .. }, _) => "invalid checksum digest format",
        };
        PlanError::input(message).about(text).help("write it as `sha256:` and 64 hex digits")
    })
}

fn is_lower_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The last segment of the URL's path, without query and fragment.
pub(super) fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    let path = percent_decode(path);
    match paths::base_name(&path) {
        "" | "." | ".." => UNNAMED.to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_the_path_of_the_url() {
        let table = [
            ("http://h/a/file.txt", "file.txt"),
            ("http://h/a/data?name=other#frag", "data"),
            ("http://h/a/dir/", "dir"),
            ("http://h/", UNNAMED),
            ("http://h", UNNAMED),
            ("http://h?x=/y", UNNAMED),
            ("http://h/a%20b", "a b"),
            ("http://h/..", UNNAMED),
        ];
        for (url, name) in table {
            assert_eq!(file_name(url), name, "{url}");
        }
    }

    #[test]
    fn checksums_that_are_none_have_buildkits_words() {
        let table = [
            ("md5:d41d8cd98f00b204e9800998ecf8427e", "unsupported digest algorithm"),
            ("abcdef", "invalid checksum digest format"),
            ("sha256:abcdef", "invalid checksum digest length"),
            ("sha256:XYZ", "invalid checksum digest format"),
        ];
        for (text, message) in table {
            assert_eq!(digest(text).expect_err(text).message, message);
        }
        assert!(digest(&Digest::of(b"x").to_string()).is_ok());
    }
}
