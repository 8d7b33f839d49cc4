//! The differences between two lists of ingredients, gathered into what people call one change.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::key::{BASE, Ingredient};

use super::files::{Place, file_changes};

/// Ranks of what tells least.
const MANNER: u8 = 4;
const DERIVED: u8 = 5;

/// One difference between an earlier state of a step and the present one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What kind of thing changed.
    pub what: What,
    /// What it is called: a path, the name of a variable, a step, an ingredient.
    pub name: String,
    /// Its value before; `None` when it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Its value now; `None` when it has gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What is behind it, where another step is: the root cause, in half a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// Kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The content of a file; values are beginnings of digests. Added or removed when one of them is missing.
    File,
    /// The permissions of a file, in octal.
    FileMode,
    /// The owner of a file, `UID:GID`.
    FileOwner,
    /// A file became a directory, a link, ….
    FileKind,
    /// The same content under another path, which is `after`.
    FileRenamed,
    /// Files beyond those that are listed; `after` is their number.
    MoreFiles,
    /// The files of a source, of which no list is kept; values are digests.
    Files,
    /// A build argument.
    Arg,
    /// A variable of the environment.
    Env,
    /// The base image; values are references with digests.
    Base,
    /// An earlier step gave another result, is new, or has gone; values are digests of what it gave.
    Step,
    /// The same things in another order.
    Order,
    /// Any other ingredient.
    Ingredient,
    /// Something that has no name.
    Unknown,
}

impl Change {
    /// A change of `what` without a reason behind it.
    pub fn new(what: What, name: impl Into<String>, before: Option<String>, after: Option<String>) -> Self {
        Self { what, name: name.into(), before, after, because: None }
    }

    /// The lower, the more it tells.
    fn rank(&self) -> u8 {
        match self.what {
            What::Base => 2,
            What::Step => 3,
            What::MoreFiles => 1,
            What::Ingredient if is_derived(&self.name) => DERIVED,
            // How one of several sources is taken, of a source that was not there before or is not now.
            What::Ingredient if is_manner(&self.name) && (self.before.is_none() || self.after.is_none()) => MANNER,
            What::Order | What::Unknown => 3,
            _ => 0,
        }
    }
}

/// What is known of the surroundings of a step.
pub trait Around {
    /// The files behind the digest of a selection, in hex; `None` when no list is kept.
    fn file_list(&self, selection: &str) -> Option<cache::FileList>;

    /// Whether the files taken from the source `label` are in a directory of the client.
    fn is_of_client(&self, label: &str) -> bool;

    /// What became of the step that made a layer of the root, which is the lowest that differs. `position` counts the layers
    /// from the lowest; `after` is the digest of the present one, `before` that of the earlier one.
    fn maker(&self, position: usize, before: Option<&str>, after: Option<&str>) -> Option<Change>;

    /// Why files taken from the source `label` may have changed, if a step made them.
    fn source_reason(&self, label: &str) -> Option<String>;
}

/// The changes between the ingredients of an earlier key and those of the present one, the most telling ones first.
/// Empty when the lists are equal.
pub fn changes(before: &[Ingredient], after: &[Ingredient], around: &dyn Around) -> Vec<Change> {
    if before == after {
        return Vec::new();
    }
    let mut changes = Vec::new();
    let (mut base_layers, mut names_base, mut base) = (None, None, None);
    for (name, old, new) in differences(before, after) {
        if let Some(name) = name.strip_prefix("ARG ") {
            changes.push(Change::new(What::Arg, name, old, new));
        } else if let Some(name) = name.strip_prefix("ENV ") {
            changes.push(Change::new(What::Env, name, old, new));
        } else if name == BASE {
            names_base = Some(Change::new(What::Base, "", old, new));
        } else if name == "base image" {
            base_layers.get_or_insert(Change::new(What::Ingredient, "base image", old, new));
        } else if let Some(label) = name.strip_prefix("files ") {
            changes.extend(of_files(label, old, new, around));
        } else if is_parent(&name) {
            base.get_or_insert(());
        } else if !stands_for_files(&name, before, after) {
            changes.push(Change::new(What::Ingredient, name, old, new));
        }
    }
    if base_layers.is_some() {
        changes.push(names_base.or(base_layers).unwrap_or_else(|| Change::new(What::Base, "", None, None)));
    } else if base.is_some() {
        changes.push(of_parents(before, after, around));
    } else if changes.is_empty() {
        // Of an image, there is nothing else.
        changes.extend(names_base);
    }
    drop_consequences(&mut changes);
    changes.sort_by_key(Change::rank);
    // What is said of the manner of a source goes without saying where the source itself is named.
    let is_source = |change: &Change| change.what == What::Files && (change.before.is_none() || change.after.is_none());
    let most = if changes.iter().any(is_source) { MANNER } else { DERIVED };
    if changes.iter().any(|change| change.rank() < most) {
        changes.retain(|change| change.rank() < most);
    }
    if changes.is_empty() {
        let what = if is_permuted(before, after) { What::Order } else { What::Unknown };
        changes.push(Change::new(what, first_moved(before, after), None, None));
    }
    changes
}

/// A step below that changed for the same reason tells nothing more.
fn drop_consequences(changes: &mut Vec<Change>) {
    let own: Vec<Change> = changes.iter().filter(|change| change.rank() == 0).cloned().collect();
    let roots = [
        super::words::brief(&own),
        own.first().map(|first| super::words::brief(std::slice::from_ref(first))).unwrap_or_default(),
    ];
    changes.retain(|change| {
        change.what != What::Step || !change.because.as_ref().is_some_and(|because| roots.contains(because))
    });
}

/// Whether the two lists would give different keys: what they say of the name of the base image does not count.
pub fn is_differing(before: &[Ingredient], after: &[Ingredient]) -> bool {
    let counts = |ingredient: &&Ingredient| ingredient.name != BASE;
    !before.iter().filter(counts).eq(after.iter().filter(counts))
}

/// Name, value before and value now of everything that differs: first what has changed or is new, in the order of `after`;
/// then what has gone, in the order of `before`. Ingredients of one name (several files of one path) are compared in order.
fn differences(before: &[Ingredient], after: &[Ingredient]) -> Vec<(String, Option<String>, Option<String>)> {
    let before = numbered(before);
    let after = numbered(after);
    let earlier: BTreeMap<_, _> = before.iter().copied().collect();
    let present: BTreeMap<_, _> = after.iter().copied().collect();
    let changed = after.iter().filter(|(id, value)| earlier.get(id) != Some(value)).map(|(id, value)| {
        (id.0.to_owned(), earlier.get(id).map(|&value| value.to_owned()), Some((*value).to_owned()))
    });
    let gone = before.iter().filter(|(id, _)| !present.contains_key(id));
    changed.chain(gone.map(|(id, value)| (id.0.to_owned(), Some((*value).to_owned()), None))).collect()
}

/// Tells ingredients of one name apart by their number among those of the name.
fn numbered(ingredients: &[Ingredient]) -> Vec<((&str, usize), &str)> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    ingredients
        .iter()
        .map(|ingredient| {
            let count = seen.entry(&ingredient.name).or_default();
            *count += 1;
            ((ingredient.name.as_str(), *count), ingredient.value.as_str())
        })
        .collect()
}

fn of_files(label: &str, old: Option<String>, new: Option<String>, around: &dyn Around) -> Vec<Change> {
    let because = around.source_reason(label);
    let place = Place { source: label, is_of_client: around.is_of_client(label) };
    let lists = old.as_deref().zip(new.as_deref()).map(|(old, new)| (around.file_list(old), around.file_list(new)));
    let mut changes = match lists {
        Some((Some(before), Some(after))) => file_changes(&before, &after, &place),
        _ => Vec::new(),
    };
    if changes.is_empty() {
        changes.push(Change::new(What::Files, place.selected(), old, new));
    }
    for change in &mut changes {
        change.because.clone_from(&because);
    }
    changes
}

/// The lowest layer that is another one, and who made it.
fn of_parents(before: &[Ingredient], after: &[Ingredient], around: &dyn Around) -> Change {
    let layers = |list: &[Ingredient]| -> Vec<String> {
        list.iter().filter(|it| is_layer(&it.name)).map(|it| it.value.clone()).collect()
    };
    let (before, after) = (layers(before), layers(after));
    let n_equal = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let (old, new) = (before.get(n_equal).cloned(), after.get(n_equal).cloned());
    around
        .maker(n_equal, old.as_deref(), new.as_deref())
        .unwrap_or_else(|| Change::new(What::Step, format!("the step that makes layer {}", n_equal + 1), old, new))
}

fn is_layer(name: &str) -> bool {
    name == "base image" || name.starts_with("parent layer ")
}

fn is_parent(name: &str) -> bool {
    name.starts_with("parent layer ")
}

/// A count never tells more than what was counted.
fn is_derived(name: &str) -> bool {
    name.starts_with("number of ")
}

/// Whether an ingredient says how a source is taken.
fn is_manner(name: &str) -> bool {
    ["destination", "wildcard in ", "--exclude of ", "--unpack", "source's own ", "name of source"]
        .iter()
        .any(|it| name.starts_with(it))
}

/// Whether an ingredient of a definition key says what a digest of files says in a content key.
fn stands_for_files(name: &str, before: &[Ingredient], after: &[Ingredient]) -> bool {
    ["source ", "layer behind ", "number of layers behind "].iter().any(|prefix| {
        let files = name.strip_prefix(prefix).map(|label| format!("files {label}"));
        files.is_some_and(|files| before.iter().chain(after).any(|it| it.name == files))
    })
}

fn is_permuted(before: &[Ingredient], after: &[Ingredient]) -> bool {
    let sorted = |list: &[Ingredient]| {
        let mut pairs: Vec<_> = list.iter().map(|it| (it.name.clone(), it.value.clone())).collect();
        pairs.sort();
        pairs
    };
    sorted(before) == sorted(after)
}

fn first_moved(before: &[Ingredient], after: &[Ingredient]) -> String {
    let moved = before.iter().zip(after).find(|(a, b)| a != b);
    moved.map(|(_, now)| now.name.clone()).unwrap_or_default()
}
