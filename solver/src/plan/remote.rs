//! Contexts that lie elsewhere, as vertices: a git tree, or a file behind a URL that is unpacked when it is an archive.
//!
//! They are wanted twice. Before there is a plan somebody has to look into them, because the Dockerfile is in there, or
//! because a time is taken from them; [`RemoteFiles`] is a graph for that. Then they are inputs of the plan's steps. Both
//! times the operations are the same, so the second time finds what the first has made.
//!
//! Spec: `spec/dockerfile.md` §3.8, §4.7, §6.

use std::sync::Arc;

use super::git_url::{self, GitUrl, GitUrlError, is_http};
use super::paths;
use super::request::ContextKind;
use crate::graph::{Graph, Input, Vertex, VertexMeta};
use crate::op::{CopyAction, CopySelection, FileAction, FileOp, GitOp, HttpOp, Op, Unpack};

/// Name of the file that a URL context consists of when it is no archive.
pub const URL_CONTEXT_FILE: &str = "context";

/// Remote files in a graph of their own.
#[derive(Clone, Debug)]
pub struct RemoteFiles {
    /// What has to be done for them.
    pub graph: Graph,
    /// What is fetched: a git tree, or a root with the one file [`URL_CONTEXT_FILE`].
    pub fetched: Input,
    /// The files: the git tree, the archive unpacked, or that one file.
    pub files: Input,
}

impl RemoteFiles {
    /// The main context; `None` when it lies here.
    pub fn of_context(kind: &ContextKind) -> Option<Self> {
        match kind {
            ContextKind::None | ContextKind::Local(_) => None,
            ContextKind::Git(git) => Some(Self::of_git(git, git_name(git))),
            ContextKind::Http(url) => Some(Self::of_url(url, UrlNames::main_context())),
        }
    }

    /// A Dockerfile behind a URL: a root with the one file `Dockerfile`.
    pub fn of_dockerfile(url: &str) -> Self {
        let mut graph = Graph::default();
        let op = Op::Http(HttpOp { url: url.to_owned(), filename: "Dockerfile".to_owned(), checksum: None });
        let name = format!("[internal] load build definition from {}", git_url::redacted(url));
        let file = add(&mut graph, op, Vec::new(), name);
        Self { graph, fetched: file, files: file }
    }

    /// A git tree.
    pub(super) fn of_git(git: &GitOp, name: String) -> Self {
        let mut graph = Graph::default();
        let tree = add(&mut graph, Op::Git(git.clone()), Vec::new(), name);
        Self { graph, fetched: tree, files: tree }
    }

    /// The file behind a URL, under the name that ADD gives it.
    pub(super) fn of_file(url: &str) -> Self {
        let mut graph = Graph::default();
        let op = Op::Http(HttpOp { url: url.to_owned(), filename: super::add::file_name(url), checksum: None });
        let file = add(&mut graph, op, Vec::new(), git_url::redacted(url));
        Self { graph, fetched: file, files: file }
    }

    /// A file behind a URL that is unpacked when it is an archive.
    pub(super) fn of_url(url: &str, names: UrlNames) -> Self {
        let mut graph = Graph::default();
        let fetched = add(&mut graph, url_op(url), Vec::new(), names.load);
        let files = add(&mut graph, unpack_op(), vec![Input::Scratch, fetched], names.unpack);
        Self { graph, fetched, files }
    }
}

impl ContextKind {
    /// Reads a context that lies elsewhere; `None` when the text is a path. `keep_git_dir` where a git URL does not say.
    ///
    /// # Errors
    /// [`GitUrlError`], for a git URL that asks for something impossible.
    pub fn parse_remote(text: &str, keep_git_dir: bool) -> Option<Result<Self, GitUrlError>> {
        match GitUrl::parse_context(text) {
            Some(url) => Some(url.map(|url| Self::Git(url.to_op(keep_git_dir)))),
            None => is_http(text).then(|| Ok(Self::Http(text.to_owned()))),
        }
    }
}

/// What the two steps of a URL are called.
pub(super) struct UrlNames {
    pub(super) load: String,
    pub(super) unpack: String,
}

impl UrlNames {
    pub(super) fn main_context() -> Self {
        Self {
            load: "[internal] load remote build context".to_owned(),
            unpack: "[internal] load build context".to_owned(),
        }
    }

    pub(super) fn named_context(name: &str, url: &str) -> Self {
        Self {
            load: format!("[context {name}] load from {}", git_url::redacted(url)),
            unpack: format!("[context {name}] extract"),
        }
    }
}

/// What the step of a git tree as the main context is called.
pub(super) fn git_name(git: &GitOp) -> String {
    format!("[internal] load git source {}", git_url::shown(git))
}

/// What the step of a git tree as a named context is called.
pub(super) fn named_git_name(name: &str, git: &GitOp) -> String {
    format!("[context {name}] load from git {}", git_url::shown(git))
}

/// Fetches the file behind a URL context.
pub(super) fn url_op(url: &str) -> Op {
    Op::Http(HttpOp { url: url.to_owned(), filename: URL_CONTEXT_FILE.to_owned(), checksum: None })
}

/// Makes the files of a URL context (input 0 is an empty root, input 1 what [`url_op`] fetched).
pub(super) fn unpack_op() -> Op {
    let action = CopyAction {
        unpack: Unpack::IfArchive,
        keep_source_metadata: true,
        ..plain_copy(&format!("/{URL_CONTEXT_FILE}"))
    };
    Op::File(FileOp { actions: vec![FileAction::Copy(action)] })
}

/// A copy of one path of input 1 into the root directory.
pub(super) fn plain_copy(source: &str) -> CopyAction {
    CopyAction {
        input: Some(1),
        selection: CopySelection {
            source: paths::clean(source),
            wildcard: false,
            excludes: Vec::new(),
            parents_base: None,
        },
        dest: "/".to_owned(),
        owner: None,
        mode: None,
        unpack: Unpack::Never,
        keep_source_metadata: false,
    }
}

fn add(graph: &mut Graph, op: Op, inputs: Vec<Input>, name: String) -> Input {
    let meta = VertexMeta { slot: name.clone(), name, ..VertexMeta::default() };
    Input::Vertex(graph.add(Vertex { op: Arc::new(op), inputs, meta }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_elsewhere_are_told_from_paths() {
        for path in [".", "./r.git", "/x", "a/b", "user@host", "http:/x", "file:///x", "HTTP://x"] {
            assert_eq!(ContextKind::parse_remote(path, false), None, "{path}");
        }
        for git in ["https://h/r.git#main:sub", "git@h:a/b.git", "github.com/a/b", "ssh://h/r", "git://h/r"] {
            assert!(matches!(ContextKind::parse_remote(git, false), Some(Ok(ContextKind::Git(_)))), "{git}");
        }
        let url = "https://h/x.tar.gz?a=b";
        assert_eq!(ContextKind::parse_remote(url, false), Some(Ok(ContextKind::Http(url.to_owned()))));
        assert!(matches!(ContextKind::parse_remote("https://h/r.git?x=1", false), Some(Err(_))));
        let kept = ContextKind::parse_remote("https://h/r.git", true);
        assert!(matches!(kept, Some(Ok(ContextKind::Git(git))) if git.keep_git_dir));
    }

    #[test]
    fn contexts_here_have_nothing_to_fetch() {
        assert!(RemoteFiles::of_context(&ContextKind::None).is_none());
        assert!(RemoteFiles::of_context(&ContextKind::Local("context".to_owned())).is_none());
    }
}
