//! What differs between two images: config, history and the flattened tree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use e2e::archive::{Entry, Image, Kind, Tree, tree_of};
use e2e::describe;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// No more of a value is shown.
const MAX_SHOWN_CHARS: usize = 300;
/// Texts up to this size are shown, of longer ones size and digest.
const MAX_TEXT_BYTES: usize = 120;

/// One difference.
pub(crate) struct Difference {
    /// `config.Env`, `history[2].created_by`, `/etc/passwd mode`.
    pub(crate) place: String,
    /// What rbuild's image has there.
    pub(crate) ours: String,
    /// What the engine's image has there.
    pub(crate) theirs: String,
}

/// All differences, in the order of a reader: config, history, paths. Times from `begin` on, in seconds, come from the
/// clock and are all the same.
pub(crate) fn differences(ours: &Image, theirs: &Image, begin: u64) -> Vec<Difference> {
    let mut found = Vec::new();
    objects("config", &describe::config(&ours.config), &describe::config(&theirs.config), &mut found);
    let (our_history, their_history) = (describe::history(ours), describe::history(theirs));
    for index in 0..our_history.len().max(their_history.len()) {
        let place = format!("history[{index}]");
        match (our_history.get(index), their_history.get(index)) {
            (Some(ours), Some(theirs)) => objects(&place, ours, theirs, &mut found),
            (ours, theirs) => found.push(Difference { place, ours: value(ours), theirs: value(theirs) }),
        }
    }
    trees(&tree_of(&ours.layers), &tree_of(&theirs.layers), begin, &mut found);
    found
}

fn objects(place: &str, ours: &Map<String, Value>, theirs: &Map<String, Value>, found: &mut Vec<Difference>) {
    let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for key in keys {
        let place = format!("{place}.{key}");
        match (ours.get(key), theirs.get(key)) {
            (Some(Value::Object(ours)), Some(Value::Object(theirs))) => objects(&place, ours, theirs, found),
            (ours, theirs) if ours != theirs => {
                found.push(Difference { place, ours: value(ours), theirs: value(theirs) });
            }
            _ => {}
        }
    }
}

fn value<T: serde::Serialize>(value: Option<&T>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| short(&serde_json::to_string(value).unwrap_or_default()))
}

fn trees(ours: &Tree, theirs: &Tree, begin: u64, found: &mut Vec<Difference>) {
    let (our_names, their_names) = (names(ours), names(theirs));
    let paths: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for path in paths {
        let mut differ = |field: &str, ours: String, theirs: String| {
            if ours != theirs {
                found.push(Difference { place: format!("/{path}{field}"), ours, theirs });
            }
        };
        match (ours.get(path), theirs.get(path)) {
            (Some(our), Some(their)) => {
                if !Arc::ptr_eq(our, their) {
                    entries(our, their, begin, &mut differ);
                }
                let group =
                    |names: &Names, entry: &Arc<Entry>| names.get(&Arc::as_ptr(entry)).map(|names| names.join(" "));
                differ(
                    " names",
                    group(&our_names, our).unwrap_or_default(),
                    group(&their_names, their).unwrap_or_default(),
                );
            }
            (our, their) => differ("", presence(our), presence(their)),
        }
    }
}

/// The names of the files that have several.
type Names = BTreeMap<*const Entry, Vec<String>>;

fn names(tree: &Tree) -> Names {
    let mut names = Names::new();
    for (path, entry) in tree {
        names.entry(Arc::as_ptr(entry)).or_default().push(format!("/{path}"));
    }
    names.retain(|_, names| names.len() > 1);
    names
}

fn entries(ours: &Entry, theirs: &Entry, begin: u64, differ: &mut impl FnMut(&str, String, String)) {
    let pair = |show: fn(&Entry) -> String| (show(ours), show(theirs));
    let mut field = |name: &str, (ours, theirs): (String, String)| differ(name, ours, theirs);
    field(" type", pair(|entry| describe::type_name(&entry.kind).to_owned()));
    field(" mode", pair(|entry| format!("{:04o}", entry.mode)));
    field(" owner", pair(|entry| format!("{}:{}", entry.uid, entry.gid)));
    match (&ours.kind, &theirs.kind) {
        (Kind::File(our), Kind::File(their)) if our != their => field(" content", (content(our), content(their))),
        (Kind::Symlink(our) | Kind::HardLink(our), Kind::Symlink(their) | Kind::HardLink(their)) => {
            field(" target", (our.clone(), their.clone()));
        }
        (Kind::Device(_, major, minor), Kind::Device(_, their_major, their_minor)) => {
            field(" device", (format!("{major}:{minor}"), format!("{their_major}:{their_minor}")));
        }
        _ => {}
    }
    let xattrs: BTreeSet<&String> = ours.xattrs.keys().chain(theirs.xattrs.keys()).collect();
    for name in xattrs {
        let show = |entry: &Entry| entry.xattrs.get(name).map_or_else(|| "nothing".to_owned(), Clone::clone);
        field(&format!(" xattr {name}"), (show(ours), show(theirs)));
    }
    let (our_time, their_time) = (seconds(ours), seconds(theirs));
    let is_clock = |time: i64| time >= i64::try_from(begin).unwrap_or(i64::MAX);
    if !(is_clock(our_time) && is_clock(their_time)) {
        let show = |time| if is_clock(time) { "the build's".to_owned() } else { format!("{time}") };
        let name = if ours.kind == Kind::Dir && theirs.kind == Kind::Dir { " directory mtime" } else { " mtime" };
        field(name, (show(our_time), show(their_time)));
    }
}

/// The whole seconds of an entry's time: the engine writes no more.
fn seconds(entry: &Entry) -> i64 {
    let (whole, fraction) = entry.mtime.split_once('.').unwrap_or((&entry.mtime, ""));
    let seconds = whole.parse().unwrap_or(0);
    // The second before, for times before 1970 with a fraction.
    if whole.starts_with('-') && fraction.bytes().any(|digit| digit != b'0') { seconds - 1 } else { seconds }
}

fn presence(entry: Option<&Arc<Entry>>) -> String {
    entry.map_or_else(
        || "nothing".to_owned(),
        |entry| format!("{} {:04o} {}:{}", describe::type_name(&entry.kind), entry.mode, entry.uid, entry.gid),
    )
}

fn content(data: &[u8]) -> String {
    match str::from_utf8(data) {
        Ok(text) if data.len() <= MAX_TEXT_BYTES => format!("{text:?}"),
        _ => format!("{} bytes sha256:{}", data.len(), e2e::archive::hex(&Sha256::digest(data))),
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
