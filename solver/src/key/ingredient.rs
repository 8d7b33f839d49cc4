//! The two sinks of the walk, and what passes through it.

use std::borrow::Cow;

use cache::{ContentDigest, Key};
use serde::{Deserialize, Serialize};

/// Longest value kept for explanations, in bytes; a longer one is cut and gets a digest of the whole.
const LONGEST_VALUE: usize = 1024;

/// One thing a key was made of, for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ingredient {
    /// What it is: `argv`, `ARG VERSION`, `ENV PATH`, `parent layer 3`, `files /src/`.
    pub name: String,
    /// What it was; long ones are cut.
    pub value: String,
}

/// Receives ingredients in the order of the walk.
pub(super) trait Sink {
    /// `label` tells ingredients of one tag apart for people; it is never hashed.
    fn add(&mut self, tag: Tag, label: &str, value: Value<'_>);
}

/// What an ingredient is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    ParentCount,
    Parent,
    Args,
    Env,
    Cwd,
    User,
    Network,
    Security,
    Hostname,
    ExtraHost,
    ShmSize,
    UlimitSoft,
    UlimitHard,
    CgroupParent,
    ScriptName,
    Script,
    Device,
    DeviceRequired,
    Os,
    Architecture,
    Variant,
    OsVersion,
    OsFeatures,
    Mount,
    MountReadOnly,
    MountUid,
    MountGid,
    MountMode,
    MountSize,
    MountId,
    MountVariable,
    MountRequired,
    NoSource,
    Files,
    SourcePath,
    SourceCount,
    SourceLayer,
    Unread,
    Copy,
    SourceName,
    ParentsPivot,
    Wildcard,
    Excludes,
    Unpack,
    KeepSourceMetadata,
    MakeDir,
    MakeDirMode,
    WriteFile,
    WriteFileName,
    WriteFileContent,
    Mtime,
    Chown,
    ChownGroup,
    Chmod,
    HttpFilename,
    HttpChecksum,
    HttpUrl,
    HttpProbe,
    GitCommit,
    GitSubdir,
    GitKeepDir,
    GitRemote,
    GitReference,
    GitSubmodules,
    GitCommitTimes,
}

impl Tag {
    /// The number that is hashed, and the name for people. Numbers are never reused.
    fn row(self) -> (u8, &'static str) {
        match self {
            Self::ParentCount => (1, "number of parent layers"),
            Self::Parent => (2, "parent layer"),
            Self::Args => (10, "argv"),
            Self::Env => (11, "ENV"),
            Self::Cwd => (12, "working directory"),
            Self::User => (13, "user"),
            Self::Network => (14, "network"),
            Self::Security => (15, "security"),
            Self::Hostname => (16, "hostname"),
            Self::ExtraHost => (17, "extra host"),
            Self::ShmSize => (18, "size of /dev/shm"),
            Self::UlimitSoft => (19, "soft ulimit"),
            Self::UlimitHard => (20, "hard ulimit"),
            Self::CgroupParent => (21, "cgroup parent"),
            Self::ScriptName => (22, "name of script"),
            Self::Script => (23, "script"),
            Self::Device => (24, "device"),
            Self::DeviceRequired => (25, "required device"),
            Self::Os => (30, "operating system"),
            Self::Architecture => (31, "architecture"),
            Self::Variant => (32, "architecture variant"),
            Self::OsVersion => (33, "operating system version"),
            Self::OsFeatures => (34, "operating system features"),
            Self::Mount => (40, "mount"),
            Self::MountReadOnly => (41, "read-only mount"),
            Self::MountUid => (42, "uid of mount"),
            Self::MountGid => (43, "gid of mount"),
            Self::MountMode => (44, "mode of mount"),
            Self::MountSize => (45, "size of mount"),
            Self::MountId => (46, "id of mount"),
            Self::MountVariable => (47, "variable of mount"),
            Self::MountRequired => (48, "required mount"),
            Self::NoSource => (50, "empty source"),
            Self::Files => (51, "files"),
            Self::SourcePath => (52, "source"),
            Self::SourceCount => (53, "number of layers behind"),
            Self::SourceLayer => (54, "layer behind"),
            Self::Unread => (55, "files not looked at"),
            Self::Copy => (60, "destination"),
            Self::SourceName => (61, "name of source"),
            Self::ParentsPivot => (62, "--parents base"),
            Self::Wildcard => (63, "wildcard in"),
            Self::Excludes => (64, "--exclude of"),
            Self::Unpack => (65, "--unpack"),
            Self::KeepSourceMetadata => (66, "source's own mode and owner"),
            Self::MakeDir => (67, "directory"),
            Self::MakeDirMode => (68, "mode of directory"),
            Self::WriteFile => (69, "destination of inline file"),
            Self::WriteFileName => (70, "name of inline file"),
            Self::WriteFileContent => (71, "inline file"),
            Self::Mtime => (72, "file time"),
            Self::Chown => (73, "--chown"),
            Self::ChownGroup => (74, "--chown group"),
            Self::Chmod => (75, "--chmod"),
            Self::HttpFilename => (80, "file name"),
            Self::HttpChecksum => (81, "--checksum"),
            Self::HttpUrl => (82, "URL"),
            Self::HttpProbe => (83, "content of"),
            Self::GitCommit => (90, "commit"),
            Self::GitSubdir => (91, "subdirectory"),
            Self::GitKeepDir => (92, "--keep-git-dir"),
            Self::GitRemote => (93, "git remote"),
            Self::GitReference => (94, "git ref"),
            Self::GitSubmodules => (95, "submodules"),
            Self::GitCommitTimes => (96, "commit times"),
        }
    }

    pub(super) fn name(self, label: &str) -> String {
        match (self, label) {
            // Layers of the base image have no number of their own: to its user it is one thing.
            (Self::Parent, "") => "base image".to_owned(),
            (_, "") => self.row().1.to_owned(),
            _ => format!("{} {label}", self.row().1),
        }
    }
}

/// The value of an ingredient.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Flag(bool),
    Number(i64),
    /// Permission bits; a number that people read in octal.
    Mode(u32),
    /// A variant of one of our enums, by explicit number and by word.
    Choice((u8, &'static str)),
    Text(&'a str),
    /// A name and a value which both count.
    Named(&'a str, &'a str),
    Texts(&'a [String]),
    Bytes(&'a [u8]),
    Content(&'a ContentDigest),
}

/// Hashes.
pub(super) struct Hashing(blake3::Hasher);

impl Hashing {
    pub(super) fn new(domain: &str, op_ordinal: u8) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(domain);
        hasher.update(&[op_ordinal]);
        Self(hasher)
    }

    pub(super) fn finish(self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn length(&mut self, length: usize) {
        self.raw(&(length as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.raw(bytes);
    }
}

impl Sink for Hashing {
    fn add(&mut self, tag: Tag, _label: &str, value: Value<'_>) {
        let kind = match value {
            Value::Flag(_) => 1,
            Value::Number(_) => 2,
            Value::Mode(_) => 3,
            Value::Choice(_) => 4,
            Value::Text(_) => 5,
            Value::Named(..) => 6,
            Value::Texts(_) => 7,
            Value::Bytes(_) => 8,
            Value::Content(_) => 9,
        };
        self.raw(&[tag.row().0, kind]);
        match value {
            Value::Flag(flag) => self.raw(&[u8::from(flag)]),
            Value::Number(number) => self.raw(&number.to_le_bytes()),
            Value::Mode(bits) => self.raw(&i64::from(bits).to_le_bytes()),
            Value::Choice((number, _)) => self.raw(&[number]),
            Value::Text(text) => self.bytes(text.as_bytes()),
            Value::Named(name, text) => {
                self.bytes(name.as_bytes());
                self.bytes(text.as_bytes());
            }
            Value::Texts(texts) => {
                self.length(texts.len());
                texts.iter().for_each(|text| self.bytes(text.as_bytes()));
            }
            Value::Bytes(bytes) => self.bytes(bytes),
            Value::Content(content) => self.raw(&content.0),
        }
    }
}

/// Lists.
#[derive(Default)]
pub(super) struct Listing(Vec<Ingredient>);

impl Listing {
    pub(super) fn finish(self) -> Vec<Ingredient> {
        self.0
    }
}

impl Sink for Listing {
    fn add(&mut self, tag: Tag, label: &str, value: Value<'_>) {
        let value = match value {
            Value::Flag(flag) => if flag { "yes" } else { "no" }.to_owned(),
            Value::Number(number) => number.to_string(),
            Value::Mode(bits) => format!("{bits:04o}"),
            Value::Choice((_, word)) => word.to_owned(),
            Value::Text(text) => shorten(text),
            Value::Named(name, text) if tag == Tag::Env && sounds_secret(name) => {
                format!("(hidden, {})", short_digest(text.as_bytes()))
            }
            Value::Named(_, text) => shorten(text),
            Value::Texts(texts) => shorten(&texts.iter().map(|text| quote(text)).collect::<Vec<_>>().join(" ")),
            Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) if tag != Tag::HttpChecksum => shorten(text),
                Ok(_) => oci::digest::hex(bytes),
                Err(_) => format!("({} bytes, {})", bytes.len(), short_digest(bytes)),
            },
            Value::Content(content) => oci::digest::hex(&content.0),
        };
        self.0.push(Ingredient { name: tag.name(label), value });
    }
}

/// Ingredients are stored and shown in logs, where the value of a build argument like `API_TOKEN` has no place.
fn sounds_secret(variable: &str) -> bool {
    let variable = variable.to_ascii_lowercase();
    ["secret", "token", "passw", "credential", "auth", "apikey", "_key", "pword"]
        .iter()
        .any(|word| variable.contains(word))
}

/// A word as a shell would want it, so that words with blanks in them can be told from several words.
fn quote(word: &str) -> Cow<'_, str> {
    let is_plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c == '\'');
    if is_plain { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")).into() }
}

fn shorten(text: &str) -> String {
    if text.len() <= LONGEST_VALUE {
        return text.to_owned();
    }
    let cut = text.floor_char_boundary(LONGEST_VALUE);
    format!("{}… ({} bytes, {})", &text[..cut], text.len(), short_digest(text.as_bytes()))
}

fn short_digest(bytes: &[u8]) -> String {
    let digest = blake3::derive_key("rbuild digest of a long ingredient, v1", bytes);
    oci::digest::hex(&digest[..8])
}
