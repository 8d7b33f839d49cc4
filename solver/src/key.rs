//! Keys: what makes two computations the same one.
//!
//! A key is made from an operation and from the *results* of its inputs, by one walk over the ingredients with two
//! sinks: the hasher gives the [`Key`], the list gives the [`Ingredient`]s, so what is explained is what was hashed.
//! Spec: `spec/engine.md` §3.2 and §3.4, `spec/dockerfile.md` §8.9.
//!
//! # Encoding, version 1
//! - BLAKE3 in key-derivation mode with [`DOMAIN`] as context, which holds the version.
//! - First the ordinal of the operation, one byte; then the ingredients in the order of the walk.
//! - An ingredient is the ordinal of its [`Tag`] (one byte), the ordinal of the kind of its value (one byte), the value.
//! - Texts and bytes: their length as u64, then themselves. Numbers: i64. Digests: 32 bytes. Flags: one byte.
//!   Lists: the number of elements as u64, then each as a text. All integers are little-endian and of fixed width.
//! - Ordinals are explicit numbers that are never reused. Labels, which name ingredients for people, are not hashed.
//!
//! # Two keys for one step
//! A step that takes files from another stage has a *definition key*, in which the layers of that stage stand for the
//! files, and a *content key*, in which a digest of the selected files does. The first needs no file to be read (nor an
//! image to be pulled), the second survives changes of that stage which leave the selected files alone. Both lead to
//! the same record. A third one, of the step's *family*, leads to none: it tells whether a content key was ever made.

mod ingredient;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cache::{ContentDigest, Explanation, Key, Store};
use oci::Platform;

use crate::graph::Chain;
use crate::op::{
    CopyAction, CopySelection, Device, ExtraHost, FileAction, FileOp, GitOp, HttpOp, InlineScript, MakeDirAction,
    ModeChange, Mount, MountKind, NetworkMode, Op, Owner, Principal, RunOp, SecurityMode, Ulimit, Unpack,
    WriteFileAction,
};
use crate::traits::Selection;

pub use ingredient::Ingredient;
use ingredient::{Hashing, Listing, Sink, Tag, Value};

/// Name of the ingredient that says which image the base layers are of. For people: it is not hashed.
pub const BASE: &str = "base";

/// Context of the key derivation. The number is the version of the encoding and of the walk: a new one makes every
/// stored record unreachable, which is what a change of either must do.
pub const DOMAIN: &str = "rbuild key of a step, v1";

/// What the walk knows about the results of the inputs.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The root the operation works on, base layer first.
    pub parents: Chain,
    /// How many of them were pulled as the base image: shown as `base image`. Not in the key.
    pub n_base_layers: usize,
    /// Which image that is: `debian:12@sha256:…`. Not in the key.
    pub base: Option<Arc<str>>,
    /// Names of the variables that are build arguments: shown as `ARG`. Not in the key.
    pub build_args: Arc<[String]>,
    /// One for each of [`questions`], in order.
    pub answers: Vec<Answer>,
    /// What [`crate::Executor::probe_source`] said, where [`needs_probe`] asks for it.
    pub probe: Option<String>,
}

/// A content question that a key asks of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Question<'a> {
    /// Index into the vertex's inputs.
    pub input: usize,
    /// What of it.
    pub selection: Selection<'a>,
}

/// What stands in a key for files taken from an input.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// In a content key: the digest of the selected files.
    Content(ContentDigest),
    /// In a definition key: all layers of the input; the selection then counts literally.
    Layers(Chain),
    /// In the key of a family: nothing is known of them.
    Unread,
}

/// The key of `op`; `None` for operations whose results are not recorded (images, local directories, merges).
pub fn key(op: &Op, facts: &Facts) -> Option<Key> {
    let mut sink = Hashing::new(DOMAIN, ordinal(op)?);
    walk(op, facts, &mut sink);
    Some(sink.finish())
}

/// What the content keys of `op` on these parents have in common, whatever files they are made from; `None` where no key
/// depends on files.
///
/// No result is ever taken for it: that something is recorded under it says that a look-up of a content key may succeed.
pub fn family(op: &Op, facts: &Facts) -> Option<Key> {
    let n_questions = questions(op).len();
    let answers = vec![Answer::Unread; n_questions];
    if n_questions == 0 { None } else { key(op, &Facts { answers, ..facts.clone() }) }
}

/// The ingredients of [`key`], in the order in which they were hashed, behind the name of the base image; empty where there
/// is no key.
pub fn ingredients(op: &Op, facts: &Facts) -> Vec<Ingredient> {
    let mut sink = Listing::default();
    walk(op, facts, &mut sink);
    let mut list = sink.finish();
    for ingredient in &mut list {
        let variable = ingredient.name.strip_prefix("ENV ");
        if let Some(variable) = variable.filter(|&variable| facts.build_args.iter().any(|arg| arg == variable)) {
            ingredient.name = format!("ARG {variable}");
        }
    }
    if let Some(base) = facts.base.as_ref().filter(|_| facts.n_base_layers > 0) {
        list.insert(0, Ingredient { name: BASE.to_owned(), value: base.to_string() });
    }
    list
}

/// The ingredients of [`key`] as they are stored: [`recorded`] makes the list of it again.
pub fn explanation(op: &Op, facts: &Facts) -> Explanation {
    let mut list = ingredients(op, facts);
    let layers: Vec<ContentDigest> = facts.parents.layers().iter().map(|layer| layer.content).collect();
    if let Some(first) = first_layer(&list) {
        list.drain(first..first + layers.len());
    }
    Explanation {
        ingredients: serde_json::to_string(&list).expect("ingredients are pairs of strings"),
        layers,
        n_base_layers: facts.n_base_layers,
    }
}

/// The ingredients of a key that was recorded; `None` if this version cannot read them.
pub fn recorded(explanation: &Explanation) -> Option<Vec<Ingredient>> {
    let mut list: Vec<Ingredient> = serde_json::from_str(&explanation.ingredients).ok()?;
    let mut layers = Listing::default();
    list_layers(explanation.layers.iter(), explanation.n_base_layers, &mut layers);
    let place = first_layer(&list).unwrap_or(0);
    list.splice(place..place, layers.finish());
    Some(list)
}

/// Where in a list the layers are: behind their number.
fn first_layer(list: &[Ingredient]) -> Option<usize> {
    let count = Tag::ParentCount.name("");
    list.iter().position(|ingredient| ingredient.name == count).map(|place| place + 1)
}

/// The ingredients that were stored with a record; `None` when they cannot be read, or it is a further key of its result.
pub fn stored_ingredients(store: &Store, key: &Key) -> Option<Vec<Ingredient>> {
    recorded(&store.explanation(key).ok()??)
}

/// What must be asked of the inputs before a content key can be made, in the order of the walk.
pub fn questions(op: &Op) -> Vec<Question<'_>> {
    match op {
        Op::Run(run) => run.mounts.iter().filter_map(mount_question).collect(),
        Op::File(file) => file.actions.iter().filter_map(action_question).collect(),
        Op::Image(_) | Op::Local(_) | Op::Http(_) | Op::Git(_) | Op::Merge => Vec::new(),
    }
}

/// Whether the key needs an answer of [`crate::Executor::probe_source`]: sources that can change behind their name.
/// A URL with a checksum cannot.
pub fn needs_probe(op: &Op) -> bool {
    match op {
        Op::Http(http) => http.checksum.is_none(),
        Op::Git(_) => true,
        Op::Image(_) | Op::Local(_) | Op::Run(_) | Op::File(_) | Op::Merge => false,
    }
}

fn mount_question(mount: &Mount) -> Option<Question<'_>> {
    match &mount.kind {
        MountKind::Bind { input, source, .. } | MountKind::Cache { input, source, .. } => {
            input.map(|input| Question { input, selection: Selection::Path(source) })
        }
        MountKind::Tmpfs { .. } | MountKind::Secret { .. } | MountKind::Ssh { .. } => None,
    }
}

fn action_question(action: &FileAction) -> Option<Question<'_>> {
    match action {
        FileAction::Copy(copy) => {
            copy.input.map(|input| Question { input, selection: Selection::Copy(&copy.selection) })
        }
        FileAction::MakeDir(_) | FileAction::WriteFile(_) => None,
    }
}

fn ordinal(op: &Op) -> Option<u8> {
    match op {
        Op::Run(_) => Some(1),
        Op::File(_) => Some(2),
        Op::Http(_) => Some(3),
        Op::Git(_) => Some(4),
        Op::Image(_) | Op::Local(_) | Op::Merge => None,
    }
}

// Every struct below is taken apart without `..`: a new field does not compile until somebody has decided whether it
// counts.

fn walk(op: &Op, facts: &Facts, sink: &mut dyn Sink) {
    let Facts { parents, n_base_layers, base: _, build_args: _, answers, probe } = facts;
    let mut answers = answers.iter();
    match op {
        Op::Run(run) => {
            walk_parents(parents, *n_base_layers, sink);
            walk_run(run, &mut answers, sink);
        }
        Op::File(file) => {
            walk_parents(parents, *n_base_layers, sink);
            walk_file(file, &mut answers, sink);
        }
        Op::Http(http) => walk_http(http, probe.as_deref(), sink),
        Op::Git(git) => walk_git(git, probe.as_deref(), sink),
        Op::Image(_) | Op::Local(_) | Op::Merge => {}
    }
}

fn walk_parents(parents: &Chain, n_base_layers: usize, sink: &mut dyn Sink) {
    let layers = parents.layers();
    sink.add(Tag::ParentCount, "", Value::Number(layers.len() as i64));
    list_layers(layers.iter().map(|layer| &layer.content), n_base_layers, sink);
}

fn list_layers<'a>(layers: impl Iterator<Item = &'a ContentDigest>, n_base_layers: usize, sink: &mut dyn Sink) {
    for (idx, layer) in layers.enumerate() {
        let label = if idx < n_base_layers { String::new() } else { (idx - n_base_layers + 1).to_string() };
        sink.add(Tag::Parent, &label, Value::Content(layer));
    }
}

fn walk_run<'a>(run: &RunOp, answers: &mut impl Iterator<Item = &'a Answer>, sink: &mut dyn Sink) {
    let RunOp {
        args,
        env,
        proxy_env: _, // proxies are how a step reaches the world, not what it computes
        cwd,
        user,
        network,
        security,
        hostname,
        extra_hosts,
        shm_size_bytes,
        ulimits,
        cgroup_parent,
        mounts,
        scripts,
        devices,
        platform,
    } = run;
    sink.add(Tag::Args, "", Value::Texts(args));
    for (name, value) in env {
        sink.add(Tag::Env, name, Value::Named(name, value));
    }
    sink.add(Tag::Cwd, "", Value::Text(cwd));
    sink.add(Tag::User, "", Value::Text(user));
    sink.add(Tag::Network, "", Value::Choice(network_choice(*network)));
    sink.add(Tag::Security, "", Value::Choice(security_choice(*security)));
    sink.add(Tag::Hostname, "", Value::Text(hostname));
    for ExtraHost { name, address: _ } in extra_hosts {
        sink.add(Tag::ExtraHost, name, Value::Text(name));
    }
    if let Some(size) = shm_size_bytes {
        sink.add(Tag::ShmSize, "", Value::Number(*size as i64));
    }
    for Ulimit { name, soft, hard } in ulimits {
        sink.add(Tag::UlimitSoft, name, Value::Named(name, &soft.to_string()));
        sink.add(Tag::UlimitHard, name, Value::Number(*hard));
    }
    if let Some(parent) = cgroup_parent {
        sink.add(Tag::CgroupParent, "", Value::Text(parent));
    }
    for mount in mounts {
        walk_mount(mount, answers, sink);
    }
    for InlineScript { name, content } in scripts {
        sink.add(Tag::ScriptName, name, Value::Text(name));
        sink.add(Tag::Script, name, Value::Bytes(content));
    }
    for Device { name, required } in devices {
        sink.add(Tag::Device, name, Value::Text(name));
        sink.add(Tag::DeviceRequired, name, Value::Flag(*required));
    }
    walk_platform(platform, sink);
}

fn walk_platform(platform: &Platform, sink: &mut dyn Sink) {
    let Platform { architecture, os, os_version, os_features, variant } = platform;
    sink.add(Tag::Os, "", Value::Text(os));
    sink.add(Tag::Architecture, "", Value::Text(architecture));
    sink.add(Tag::Variant, "", Value::Text(variant.as_deref().unwrap_or("")));
    sink.add(Tag::OsVersion, "", Value::Text(os_version.as_deref().unwrap_or("")));
    sink.add(Tag::OsFeatures, "", Value::Texts(os_features));
}

fn walk_mount<'a>(mount: &Mount, answers: &mut impl Iterator<Item = &'a Answer>, sink: &mut dyn Sink) {
    let Mount { target, kind } = mount;
    match kind {
        // Where in the source a bind comes from is in the digest of what is there.
        MountKind::Bind { input, source, read_only } => {
            sink.add(Tag::Mount, target, Value::Named(target, "bind"));
            walk_source(source, input.is_some(), Selection::Path(source), answers, sink);
            sink.add(Tag::MountReadOnly, target, Value::Flag(*read_only));
        }
        // Which directory persists, and what is in it by now, is exactly what must not count.
        MountKind::Cache { id: _, sharing: _, input, source, uid, gid, mode, read_only } => {
            sink.add(Tag::Mount, target, Value::Named(target, "cache"));
            walk_source(source, input.is_some(), Selection::Path(source), answers, sink);
            walk_mount_owner(target, *uid, *gid, *mode, sink);
            sink.add(Tag::MountReadOnly, target, Value::Flag(*read_only));
        }
        MountKind::Tmpfs { size_bytes } => {
            sink.add(Tag::Mount, target, Value::Named(target, "tmpfs"));
            if let Some(size) = size_bytes {
                sink.add(Tag::MountSize, target, Value::Number(*size as i64));
            }
        }
        MountKind::Secret { id, env, required, uid, gid, mode } => {
            sink.add(Tag::Mount, target, Value::Named(target, "secret"));
            sink.add(Tag::MountId, target, Value::Text(id));
            if let Some(variable) = env {
                sink.add(Tag::MountVariable, target, Value::Text(variable));
            }
            sink.add(Tag::MountRequired, target, Value::Flag(*required));
            walk_mount_owner(target, *uid, *gid, *mode, sink);
        }
        MountKind::Ssh { id, required, uid, gid, mode } => {
            sink.add(Tag::Mount, target, Value::Named(target, "ssh"));
            sink.add(Tag::MountId, target, Value::Text(id));
            sink.add(Tag::MountRequired, target, Value::Flag(*required));
            walk_mount_owner(target, *uid, *gid, *mode, sink);
        }
    }
}

fn walk_mount_owner(target: &str, uid: u32, gid: u32, mode: u32, sink: &mut dyn Sink) {
    sink.add(Tag::MountUid, target, Value::Number(uid.into()));
    sink.add(Tag::MountGid, target, Value::Number(gid.into()));
    sink.add(Tag::MountMode, target, Value::Mode(mode));
}

/// Files taken from an input: what they are, or (in a definition key) which layers they are picked from and how.
fn walk_source<'a>(
    label: &str,
    has_input: bool,
    selection: Selection<'_>,
    answers: &mut impl Iterator<Item = &'a Answer>,
    sink: &mut dyn Sink,
) {
    let source = match selection {
        Selection::Copy(copy) => copy.source.as_str(),
        Selection::Path(path) => path,
    };
    if !has_input {
        sink.add(Tag::NoSource, label, Value::Flag(true));
        return;
    }
    match answers.next().expect("the caller answered every one of `questions`") {
        Answer::Content(content) => sink.add(Tag::Files, label, Value::Content(content)),
        Answer::Layers(chain) => {
            sink.add(Tag::SourcePath, label, Value::Text(source));
            sink.add(Tag::SourceCount, label, Value::Number(chain.layers().len() as i64));
            for layer in chain.layers() {
                sink.add(Tag::SourceLayer, label, Value::Content(&layer.content));
            }
        }
        Answer::Unread => sink.add(Tag::Unread, label, Value::Flag(true)),
    }
}

fn walk_file<'a>(file: &FileOp, answers: &mut impl Iterator<Item = &'a Answer>, sink: &mut dyn Sink) {
    let FileOp { actions } = file;
    for action in actions {
        match action {
            FileAction::Copy(copy) => walk_copy(copy, answers, sink),
            FileAction::MakeDir(make_dir) => walk_make_dir(make_dir, sink),
            FileAction::WriteFile(write_file) => walk_write_file(write_file, sink),
        }
    }
}

fn walk_copy<'a>(copy: &CopyAction, answers: &mut impl Iterator<Item = &'a Answer>, sink: &mut dyn Sink) {
    let CopyAction { input, selection, dest, owner, mode, unpack, keep_source_metadata } = copy;
    let CopySelection { source, wildcard, excludes, parents_base } = selection;
    sink.add(Tag::Copy, "", Value::Text(dest));
    // A file copied into a directory is named after its source; with `--parents` after all of the path that is kept.
    match parents_base {
        None => sink.add(Tag::SourceName, "", Value::Text(base_name(source))),
        Some(base) => {
            sink.add(Tag::ParentsPivot, "", Value::Text(base));
            sink.add(Tag::SourceName, "", Value::Text(source));
        }
    }
    sink.add(Tag::Wildcard, source, Value::Flag(*wildcard));
    sink.add(Tag::Excludes, source, Value::Texts(excludes));
    walk_source(source, input.is_some(), Selection::Copy(selection), answers, sink);
    walk_owner(owner.as_ref(), sink);
    walk_mode(mode.as_ref(), sink);
    let unpack = match unpack {
        Unpack::Never => (0, "no"),
        Unpack::IfArchive => (1, "if an archive"),
    };
    sink.add(Tag::Unpack, "", Value::Choice(unpack));
    sink.add(Tag::KeepSourceMetadata, "", Value::Flag(*keep_source_metadata));
}

fn walk_make_dir(make_dir: &MakeDirAction, sink: &mut dyn Sink) {
    let MakeDirAction { path, mode, owner, mtime } = make_dir;
    sink.add(Tag::MakeDir, "", Value::Text(path));
    sink.add(Tag::MakeDirMode, "", Value::Mode(*mode));
    walk_owner(owner.as_ref(), sink);
    walk_mtime(*mtime, sink);
}

fn walk_write_file(write_file: &WriteFileAction, sink: &mut dyn Sink) {
    let WriteFileAction { dest, name, content, owner, mode, mtime } = write_file;
    sink.add(Tag::WriteFile, "", Value::Text(dest));
    sink.add(Tag::WriteFileName, "", Value::Text(name));
    sink.add(Tag::WriteFileContent, name, Value::Bytes(content));
    walk_owner(owner.as_ref(), sink);
    walk_mode(mode.as_ref(), sink);
    walk_mtime(*mtime, sink);
}

/// A time that the author asked for (`SOURCE_DATE_EPOCH`) counts; "now" does not.
fn walk_mtime(mtime: Option<i64>, sink: &mut dyn Sink) {
    if let Some(seconds) = mtime {
        sink.add(Tag::Mtime, "", Value::Number(seconds));
    }
}

/// Names are looked up in the root, whose layers count already.
fn walk_owner(owner: Option<&Owner>, sink: &mut dyn Sink) {
    let Some(Owner { user, group }) = owner else { return };
    walk_principal(Tag::Chown, user, sink);
    if let Some(group) = group {
        walk_principal(Tag::ChownGroup, group, sink);
    }
}

fn walk_principal(tag: Tag, principal: &Principal, sink: &mut dyn Sink) {
    match principal {
        Principal::Id(id) => sink.add(tag, "", Value::Number((*id).into())),
        Principal::Name(name) => sink.add(tag, "", Value::Text(name)),
    }
}

fn walk_mode(mode: Option<&ModeChange>, sink: &mut dyn Sink) {
    match mode {
        None => {}
        Some(ModeChange::Octal(bits)) => sink.add(Tag::Chmod, "", Value::Mode(*bits)),
        Some(ModeChange::Symbolic(clauses)) => sink.add(Tag::Chmod, "", Value::Text(clauses)),
    }
}

fn walk_http(http: &HttpOp, probe: Option<&str>, sink: &mut dyn Sink) {
    let HttpOp { url, filename, checksum } = http;
    sink.add(Tag::HttpFilename, "", Value::Text(filename));
    match checksum {
        // The bytes are known, so where they come from is not part of what they are.
        Some(checksum) => sink.add(Tag::HttpChecksum, "", Value::Bytes(checksum.as_bytes())),
        None => {
            sink.add(Tag::HttpUrl, "", Value::Text(url));
            sink.add(Tag::HttpProbe, url, Value::Text(probe.unwrap_or("")));
        }
    }
}

fn walk_git(git: &GitOp, commit: Option<&str>, sink: &mut dyn Sink) {
    // The expected checksum is compared with the commit whenever the source is probed.
    let GitOp { remote, reference, subdir, checksum: _, keep_git_dir, submodules, commit_times } = git;
    sink.add(Tag::GitCommit, "", Value::Text(commit.unwrap_or("")));
    sink.add(Tag::GitSubdir, "", Value::Text(subdir.as_deref().unwrap_or("")));
    sink.add(Tag::GitKeepDir, "", Value::Flag(*keep_git_dir));
    if *keep_git_dir {
        // Both are written into the repository that is kept.
        sink.add(Tag::GitRemote, "", Value::Text(remote));
        sink.add(Tag::GitReference, "", Value::Text(reference.as_deref().unwrap_or("")));
    }
    sink.add(Tag::GitSubmodules, "", Value::Flag(*submodules));
    sink.add(Tag::GitCommitTimes, "", Value::Flag(*commit_times));
}

fn network_choice(mode: NetworkMode) -> (u8, &'static str) {
    match mode {
        NetworkMode::Default => (0, "default"),
        NetworkMode::None => (1, "none"),
        NetworkMode::Host => (2, "host"),
    }
}

fn security_choice(mode: SecurityMode) -> (u8, &'static str) {
    match mode {
        SecurityMode::Sandbox => (0, "sandbox"),
        SecurityMode::Insecure => (1, "insecure"),
    }
}

fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or("")
}
