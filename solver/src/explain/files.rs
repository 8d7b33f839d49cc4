//! The differences between two lists of files.

use std::collections::HashMap;

use cache::{FileList, ListShape, ListedFile};

use super::change::{Change, What};

/// So many files are named; of the others, only the number is.
pub const MOST_FILES: usize = 100;

/// What happened to the files of a selection, in the order of the present list, then what was removed.
///
/// A file that is gone while another of the same content is new was renamed. Directories are named for their own mode and
/// owner only: what is in them is listed itself. `place` says where the files are.
pub fn file_changes(before: &FileList, after: &FileList, place: &Place<'_>) -> Vec<Change> {
    let FileList { shape, files: after } = after;
    let (before, after) = differing(&before.files, after);
    let shown = |file: &ListedFile| place.shown(*shape, file);
    let earlier: HashMap<&[u8], &ListedFile> = before.iter().map(|file| (&*file.path, file)).collect();
    let present: HashMap<&[u8], &ListedFile> = after.iter().map(|file| (&*file.path, file)).collect();
    let mut gone: HashMap<Identity, Vec<&ListedFile>> = HashMap::new();
    for file in before.iter().filter(|file| !present.contains_key(&*file.path)) {
        gone.entry(identity(file)).or_default().push(file);
    }
    let mut renamed = std::collections::HashSet::new();
    let mut changes = Vec::new();
    for file in after {
        match earlier.get(&*file.path) {
            Some(old) if *old == file => {}
            Some(old) => changes.push(of_file(old, file, shown(file))),
            None => {
                let source = gone.get_mut(&identity(file)).filter(|_| file.kind != b'5').and_then(Vec::pop);
                changes.push(match source {
                    Some(source) => {
                        renamed.insert(&*source.path);
                        Change::new(What::FileRenamed, shown(source), None, Some(shown(file)))
                    }
                    None => Change::new(What::File, shown(file), None, Some(content(file))),
                });
            }
        }
    }
    let removed = before.iter().filter(|file| !present.contains_key(&*file.path) && !renamed.contains(&*file.path));
    changes.extend(removed.map(|file| Change::new(What::File, shown(file), Some(content(file)), None)));
    // A directory that came or went is told by what came or went in it.
    let has_files = changes.iter().any(|change| !change.name.ends_with('/'));
    if has_files {
        changes.retain(|change| change.what != What::File || !change.name.ends_with('/'));
    }
    if changes.len() > MOST_FILES {
        let n_more = changes.len() - MOST_FILES;
        changes.truncate(MOST_FILES);
        changes.push(Change::new(What::MoreFiles, "", None, Some(n_more.to_string())));
    }
    changes
}

/// Both lists without what they begin and end with alike: of very many files, few change.
fn differing<'a>(before: &'a [ListedFile], after: &'a [ListedFile]) -> (&'a [ListedFile], &'a [ListedFile]) {
    let n_front = before.iter().zip(after).take_while(|(a, b)| a == b).count();
    let (before, after) = (&before[n_front..], &after[n_front..]);
    let n_back = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
    (&before[..before.len() - n_back], &after[..after.len() - n_back])
}

/// What makes a file the same one under another path.
type Identity = (u8, u32, [u8; 8]);

fn identity(file: &ListedFile) -> Identity {
    (file.kind, file.mode, file.content)
}

fn of_file(old: &ListedFile, new: &ListedFile, name: String) -> Change {
    let change = |what, before, after| Change::new(what, name.clone(), Some(before), Some(after));
    if old.kind != new.kind {
        change(What::FileKind, kind(old).to_owned(), kind(new).to_owned())
    } else if old.content != new.content {
        change(What::File, content(old), content(new))
    } else if old.mode != new.mode {
        change(What::FileMode, format!("{:04o}", old.mode), format!("{:04o}", new.mode))
    } else {
        let owner = |file: &ListedFile| format!("{}:{}", file.uid, file.gid);
        change(What::FileOwner, owner(old), owner(new))
    }
}

/// Where the files of a list are.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The path that was selected, as the plan has it.
    pub source: &'a str,
    /// Whether it is in a directory of the client; paths of stages and images begin with a slash.
    pub is_of_client: bool,
}

impl Place<'_> {
    /// The path of a file for people; directories end with a slash.
    fn shown(&self, shape: ListShape, file: &ListedFile) -> String {
        let source = self.source.trim_matches('/');
        let dir = match shape {
            ListShape::Contents => source,
            ListShape::Items => source.rsplit_once('/').map_or("", |(dir, _)| dir),
            ListShape::Root => "",
        };
        let name = String::from_utf8_lossy(&file.path);
        let parts = [dir, &name].into_iter().filter(|part| !part.is_empty() && *part != ".");
        let mut path = parts.collect::<Vec<_>>().join("/");
        if file.kind == b'5' {
            path.push('/');
        }
        if self.is_of_client || path.starts_with('/') { path } else { format!("/{path}") }
    }

    /// What was selected, for people.
    pub fn selected(&self) -> String {
        match (self.source.trim_matches('/'), self.is_of_client) {
            ("" | ".", true) => "the context".to_owned(),
            (source, true) => source.to_owned(),
            (source, false) => format!("/{source}"),
        }
    }
}

fn content(file: &ListedFile) -> String {
    oci::digest::hex(&file.content)
}

fn kind(file: &ListedFile) -> &'static str {
    match file.kind {
        b'0' => "file",
        b'2' => "link",
        b'3' | b'4' => "device",
        b'5' => "directory",
        b'6' => "pipe",
        _ => "socket",
    }
}
