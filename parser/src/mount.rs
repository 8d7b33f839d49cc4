//! `RUN --mount`: one CSV record of keys and values. Spec: §2.2.1.
//!
//! Syntax is checked twice. [`check_syntax`] holds for every RUN of a file; [`parse_mount`] looks at keys and values,
//! which counts only when the stage is built, and needs a way to expand variables.

use crate::csv;
use crate::expand::ExpandError;
use crate::go::{parse_bool, quote};
use crate::suggest::nearest;

/// What is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountType {
    /// A path of the context, a stage or an image.
    #[default]
    Bind,
    /// A persistent directory.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret as a file or variable.
    Secret,
    /// A forwarded agent.
    Ssh,
}

impl MountType {
    const ALL: [Self; 5] = [Self::Bind, Self::Cache, Self::Tmpfs, Self::Secret, Self::Ssh];

    /// As in a Dockerfile, lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Cache => "cache",
            Self::Tmpfs => "tmpfs",
            Self::Secret => "secret",
            Self::Ssh => "ssh",
        }
    }
}

/// How concurrent users share a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSharing {
    /// At the same time.
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// A checked `--mount`. Absent values are `None`; defaults that depend on other things (WORKDIR, other mounts) are left to
/// whoever plans the step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountSpec {
    /// `type`
    pub kind: MountType,
    /// `from`, not expanded, as written.
    pub from: Option<String>,
    /// `source`, `src`: for a secret its id.
    pub source: Option<String>,
    /// `target`, `dst`, `destination`
    pub target: Option<String>,
    /// `readonly`, `ro`, `readwrite`, `rw`, or the default of the type.
    pub read_only: bool,
    /// `size`; 0 is none.
    pub size_bytes: Option<u64>,
    /// `id`
    pub id: Option<String>,
    /// `sharing`
    pub sharing: Option<CacheSharing>,
    /// `required`
    pub required: bool,
    /// `env`
    pub env: Option<String>,
    /// `mode`
    pub mode: Option<u32>,
    /// `uid`
    pub uid: Option<u32>,
    /// `gid`
    pub gid: Option<u32>,
}

/// A mount that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// Not a CSV record.
    #[error("failed to parse csv mounts: {0}")]
    Csv(String),
    /// A variable in `from`.
    #[error("'from' doesn't support variable expansion, define alias stage instead")]
    VariableInFrom,
    /// A bare key that needs a value.
    #[error("invalid field '{0}' must be a key=value pair")]
    NotAPair(String),
    /// No such key.
    #[error("unexpected key '{key}' in '{field}'{}", suggestion(*.nearest))]
    UnknownKey {
        /// In lower case.
        key: String,
        /// The field it is in.
        field: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
    /// No such type.
    #[error("unsupported mount type {}{}", quote(value), suggestion(*.nearest))]
    UnknownType {
        /// As written.
        value: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
    /// No such way of sharing.
    #[error("unsupported sharing value {}{}", quote(value), suggestion(*.nearest))]
    UnknownSharing {
        /// As written.
        value: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
    /// A key that this type does not have, or that comes before `type`.
    #[error("unexpected key '{key}' for mount type '{}'", kind.name())]
    KeyOfOtherType {
        /// In lower case.
        key: String,
        /// The type as known at that point.
        kind: MountType,
    },
    /// No boolean, or no size.
    #[error("invalid value for {key}: {value}")]
    InvalidValue {
        /// In lower case.
        key: String,
        /// As expanded.
        value: String,
    },
    /// No octal mode, or no id.
    #[error("invalid value {value} for {key}")]
    InvalidNumber {
        /// `mode`, `uid` or `gid`.
        key: &'static str,
        /// As expanded.
        value: String,
    },
    /// `mode`, `uid` or `gid` for a type that has none.
    #[error("{key} not allowed for {} type mounts", quote(kind.name()))]
    NotAllowed {
        /// `mode`, `uid` or `gid`.
        key: &'static str,
        /// The type.
        kind: MountType,
    },
    /// `sharing` for another type than cache.
    #[error("invalid cache sharing set for {} mount", .0.name())]
    SharingOfOtherType(MountType),
    /// `from` of a secret.
    #[error("secret mount should not have a from")]
    SecretFrom,
    /// `sharing` of a secret.
    #[error("secret mount should not define sharing")]
    SecretSharing,
    /// A secret that nothing names.
    #[error("invalid secret mount. one of source, target required")]
    SecretWithoutName,
    /// A secret that is named twice.
    #[error("both source and id can't be set")]
    SecretNamedTwice,
    /// `source` of an agent.
    #[error("ssh does not support source")]
    SshSource,
    /// A value cannot be expanded.
    #[error(transparent)]
    Expand(#[from] ExpandError),
}

impl MountError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Csv(_) => {
                "separate `key=value` pairs by commas, without blanks: `type=cache,target=/root/.cache`".into()
            }
            Self::VariableInFrom => {
                "name a stage by it, `FROM $IMAGE AS files` with a global ARG, and write `from=files`".into()
            }
            Self::NotAPair(field) if field.is_empty() => "let no comma stand at an end, or before a blank".into(),
            Self::NotAPair(field) => match nearest(&field.to_lowercase(), BARE_KEYS) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("write `{field}=value`; only {} stand alone", listed(BARE_KEYS)),
            },
            Self::UnknownKey { .. } => format!("the keys are {}, env", listed(KEYS[..N_PLAIN_KEYS].iter().copied())),
            Self::UnknownType { .. } => format!("the types are {}", listed(MountType::ALL.map(MountType::name))),
            Self::UnknownSharing { .. } => "the values are shared, private and locked".into(),
            Self::KeyOfOtherType { key, .. } => match key.as_str() {
                "size" => "`size` is for `type=tmpfs`, which has to stand before it".into(),
                _ => format!("`{key}` is for `type=secret` and `type=ssh`, which have to stand before it"),
            },
            Self::InvalidValue { key, .. } if key == "size" => "a size is a number with a unit: `size=64m`".into(),
            Self::InvalidValue { key, .. } => format!("write `{key}`, or `{key}=false`"),
            Self::InvalidNumber { key: "mode", .. } => "a mode is octal: `mode=0755`".into(),
            Self::InvalidNumber { key, .. } => format!("give a number: `{key}=1000`"),
            Self::NotAllowed { key, kind } => {
                format!("leave `{key}` out: a {} mount has the modes and owners of its files", kind.name())
            }
            Self::SharingOfOtherType(_) | Self::SecretSharing => "`sharing` is for `type=cache`".into(),
            Self::SecretFrom => "pass the secret with `--secret id=NAME,src=FILE`".into(),
            Self::SecretWithoutName => {
                "name it: `--mount=type=secret,id=token`, and pass `--secret id=token,src=FILE`".into()
            }
            Self::SecretNamedTwice => "`source` is another name of `id`: leave one of them out".into(),
            Self::SshSource => "name the agent by `id`, and where its socket goes by `target`".into(),
            Self::Expand(error) => return error.fault.help(),
        })
    }

    /// What of the mount is at fault, as it stands in the Dockerfile unless it has variables in it.
    pub fn culprit(&self) -> Option<&str> {
        match self {
            Self::NotAPair(word) | Self::UnknownKey { key: word, .. } | Self::KeyOfOtherType { key: word, .. } => {
                Some(word)
            }
            Self::UnknownType { value, .. } | Self::UnknownSharing { value, .. } => Some(value),
            Self::InvalidValue { value, .. } | Self::InvalidNumber { value, .. } => Some(value),
            Self::NotAllowed { key, .. } => Some(key),
            Self::SharingOfOtherType(_) | Self::SecretSharing => Some("sharing"),
            Self::SecretFrom | Self::VariableInFrom => Some("from"),
            Self::SecretNamedTwice | Self::SshSource => Some("source"),
            Self::SecretWithoutName => Some("type=secret"),
            Self::Expand(error) => Some(&error.word),
            Self::Csv(_) => None,
        }
    }
}

fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

/// Every key, the plain names before their short forms.
const KEYS: [&str; 18] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "env",
];

/// How many of [`KEYS`], from the first, are no short forms. `env` is none either, and the last one.
const N_PLAIN_KEYS: usize = 12;

/// Keys that need no value.
const BARE_KEYS: [&str; 5] = ["readonly", "ro", "readwrite", "rw", "required"];

/// Checks what holds for every RUN: the CSV, and that `from` has no variable.
///
/// # Errors
///
/// [`MountError::Csv`] and [`MountError::VariableInFrom`].
pub fn check_syntax(raw: &str) -> Result<(), MountError> {
    for field in csv::fields(raw).map_err(MountError::Csv)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        // A dollar at the very end begins no variable.
        let has_variable = value.find('$').is_some_and(|at| at + 1 != value.len());
        if key.eq_ignore_ascii_case("from") && has_variable {
            return Err(MountError::VariableInFrom);
        }
    }
    Ok(())
}

/// What a mount takes its files from: the last `from`, as written. Looks at nothing else, so that it can be asked before
/// values are known. `None` for what is no CSV.
pub fn from_of(raw: &str) -> Option<String> {
    let fields = csv::fields(raw).ok()?;
    let pairs = fields.iter().filter_map(|field| field.split_once('='));
    let mut values = pairs.filter(|(key, _)| key.eq_ignore_ascii_case("from")).map(|(_, value)| value);
    values.next_back().map(str::to_owned).and_then(non_empty)
}

/// Parses a mount. `expand` is called for every value except that of `from`, in order.
///
/// Fields are handled left to right; the last of a repeated key counts. `required` and `size` look at the type as known so
/// far.
///
/// # Errors
///
/// See [`MountError`].
pub fn parse_mount(
    raw: &str,
    expand: &mut dyn FnMut(&str) -> Result<String, ExpandError>,
) -> Result<MountSpec, MountError> {
    check_syntax(raw)?;
    let mut parser = FieldParser { spec: MountSpec::default(), read_only: None };
    for field in csv::fields(raw).map_err(MountError::Csv)? {
        match field.split_once('=') {
            None => parser.bare(&field)?,
            Some((key, value)) => {
                let key = key.to_lowercase();
                let value = if key == "from" { value.to_owned() } else { expand(value)? };
                parser.pair(&key, value, &field)?;
            }
        }
    }
    parser.finish()
}

struct FieldParser {
    spec: MountSpec,
    read_only: Option<bool>,
}

impl FieldParser {
    fn bare(&mut self, field: &str) -> Result<(), MountError> {
        match field.to_lowercase().as_str() {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" => {
                self.only_for("required", &[MountType::Secret, MountType::Ssh])?;
                self.spec.required = true;
            }
            _ => return Err(MountError::NotAPair(field.to_owned())),
        }
        Ok(())
    }

    fn pair(&mut self, key: &str, value: String, field: &str) -> Result<(), MountError> {
        let spec = &mut self.spec;
        match key {
            "type" => spec.kind = parse_type(value)?,
            "from" => spec.from = non_empty(value),
            "source" | "src" => spec.source = non_empty(value),
            "target" | "dst" | "destination" => spec.target = non_empty(value),
            "readonly" | "ro" => self.read_only = Some(parse_flag(key, value)?),
            "readwrite" | "rw" => self.read_only = Some(!parse_flag(key, value)?),
            "required" => {
                self.only_for(key, &[MountType::Secret, MountType::Ssh])?;
                self.spec.required = parse_flag(key, value)?;
            }
            "size" => {
                self.only_for(key, &[MountType::Tmpfs])?;
                let invalid = || MountError::InvalidValue { key: key.to_owned(), value: value.clone() };
                self.spec.size_bytes = Some(parse_size(&value).ok_or_else(invalid)?);
            }
            "id" => spec.id = non_empty(value),
            "sharing" => spec.sharing = Some(parse_sharing(value)?),
            "mode" => spec.mode = Some(parse_number("mode", 8, value)?),
            "uid" => spec.uid = Some(parse_number("uid", 10, value)?),
            "gid" => spec.gid = Some(parse_number("gid", 10, value)?),
            "env" => spec.env = Some(value),
            _ => {
                let nearest = nearest(key, KEYS);
                return Err(MountError::UnknownKey { key: key.to_owned(), field: field.to_owned(), nearest });
            }
        }
        Ok(())
    }

    fn only_for(&self, key: &str, kinds: &[MountType]) -> Result<(), MountError> {
        let kind = self.spec.kind;
        if kinds.contains(&kind) { Ok(()) } else { Err(MountError::KeyOfOtherType { key: key.to_owned(), kind }) }
    }

    /// What can only be said when all fields are known.
    fn finish(self) -> Result<MountSpec, MountError> {
        use MountType::{Bind, Cache, Secret, Ssh, Tmpfs};
        let mut spec = self.spec;
        let kind = spec.kind;
        if matches!(kind, Bind | Tmpfs) {
            for (key, value) in [("mode", spec.mode), ("uid", spec.uid), ("gid", spec.gid)] {
                if value.is_some() {
                    return Err(MountError::NotAllowed { key, kind });
                }
            }
        }
        spec.read_only = self.read_only.unwrap_or(!matches!(kind, Cache | Tmpfs));
        if kind == Secret {
            check_secret(&spec)?;
        }
        if kind != Cache && spec.sharing.is_some() {
            return Err(MountError::SharingOfOtherType(kind));
        }
        if kind == Ssh && spec.source.is_some() {
            return Err(MountError::SshSource);
        }
        Ok(spec)
    }
}

fn check_secret(spec: &MountSpec) -> Result<(), MountError> {
    if spec.from.is_some() {
        Err(MountError::SecretFrom)
    } else if spec.sharing.is_some() {
        Err(MountError::SecretSharing)
    } else if spec.source.is_none() && spec.target.is_none() && spec.id.is_none() {
        Err(MountError::SecretWithoutName)
    } else if spec.source.is_some() && spec.id.is_some() {
        Err(MountError::SecretNamedTwice)
    } else {
        Ok(())
    }
}

fn non_empty(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

fn parse_type(value: String) -> Result<MountType, MountError> {
    let found = MountType::ALL.into_iter().find(|kind| value.eq_ignore_ascii_case(kind.name()));
    found.ok_or_else(|| {
        let nearest = nearest(&value, MountType::ALL.map(MountType::name));
        MountError::UnknownType { value, nearest }
    })
}

fn parse_sharing(value: String) -> Result<CacheSharing, MountError> {
    match value.to_ascii_lowercase().as_str() {
        "shared" => Ok(CacheSharing::Shared),
        "private" => Ok(CacheSharing::Private),
        "locked" => Ok(CacheSharing::Locked),
        _ => {
            let nearest = nearest(&value, ["shared", "private", "locked"]);
            Err(MountError::UnknownSharing { value, nearest })
        }
    }
}

fn parse_flag(key: &str, value: String) -> Result<bool, MountError> {
    parse_bool(&value).ok_or_else(|| MountError::InvalidValue { key: key.to_owned(), value })
}

fn parse_number(key: &'static str, radix: u32, value: String) -> Result<u32, MountError> {
    let is_number = !value.is_empty() && value.chars().all(|c| c.is_digit(radix));
    let number = is_number.then(|| u32::from_str_radix(&value, radix).ok()).flatten();
    number.ok_or(MountError::InvalidNumber { key, value })
}

/// Bytes: a number, perhaps with a fraction, and an optional unit `k`, `m`, `g`, `t` or `p` (multiples of 1024), each also
/// with `b` or `ib`.
fn parse_size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let factor = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit == "ib" => return None,
        "" => 1_u64,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        "p" => 1 << 50,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).filter(|size| i64::try_from(*size).is_ok());
    }
    // Only texts with a fraction come here. A float is exact up to 2^53 and precise enough beyond.
    let size = number.parse::<f64>().ok()? * factor as f64;
    (size.is_finite() && size < i64::MAX as f64).then_some(size as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::expand::Expander;

    fn parse(raw: &str) -> Result<MountSpec, String> {
        let env = vec![("X", "y"), ("SIZE", "64m")];
        let mut expand = |value: &str| Expander::new('\\').process_word(value, &env).map(|expanded| expanded.text);
        parse_mount(raw, &mut expand).map_err(|error| error.to_string())
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn sources_are_known_before_anything_else() {
        let table = [
            ("type=bind,from=stage,target=/x", some("stage")),
            ("type=$T,nonsense=1,From=a,from=B", some("B")),
            ("target=/x", None),
            ("from=,target=/x", None),
            ("a\"b", None),
        ];
        for (raw, want) in table {
            assert_eq!(from_of(raw), want, "{raw}");
        }
    }

    #[test]
    fn accepted() {
        let bind = MountSpec { read_only: true, ..MountSpec::default() };
        let of = |kind: MountType, read_only| MountSpec { kind, read_only, ..MountSpec::default() };
        let table = [
            ("target=/x", MountSpec { target: some("/x"), ..bind.clone() }),
            (
                "type=BIND,dst=/x,src=a,from=Stage",
                MountSpec { target: some("/x"), source: some("a"), from: some("Stage"), ..bind.clone() },
            ),
            ("destination=/$X,rw", MountSpec { target: some("/y"), read_only: false, ..bind.clone() }),
            ("target=/x,rw,ro", MountSpec { target: some("/x"), ..bind.clone() }),
            ("target=/x,ro=false", MountSpec { target: some("/x"), read_only: false, ..bind.clone() }),
            ("target=/x,readwrite=1", MountSpec { target: some("/x"), read_only: false, ..bind.clone() }),
            ("\"target=/a,b\"", MountSpec { target: some("/a,b"), ..bind.clone() }),
            ("TARGET=/a,target=/b,target=", MountSpec { ..bind.clone() }),
            ("from=x$,target=/x", MountSpec { from: some("x$"), target: some("/x"), ..bind }),
            (
                "type=cache,id=a,sharing=Locked,target=/c,mode=0700,uid=1,gid=2",
                MountSpec {
                    id: some("a"),
                    sharing: Some(CacheSharing::Locked),
                    target: some("/c"),
                    mode: Some(0o700),
                    uid: Some(1),
                    gid: Some(2),
                    ..of(MountType::Cache, false)
                },
            ),
            ("type=tmpfs,size=$SIZE", MountSpec { size_bytes: Some(64 << 20), ..of(MountType::Tmpfs, false) }),
            (
                "type=secret,id=k,required,env=K",
                MountSpec { id: some("k"), required: true, env: some("K"), ..of(MountType::Secret, true) },
            ),
            ("type=ssh,required=false", of(MountType::Ssh, true)),
        ];
        for (raw, want) in table {
            assert_eq!(parse(raw), Ok(want), "{raw}");
        }
    }

    #[test]
    fn refused() {
        let table = [
            ("typ=tmpfs,target=/x", "unexpected key 'typ' in 'typ=tmpfs' (did you mean type?)"),
            ("nonsense=1", "unexpected key 'nonsense' in 'nonsense=1'"),
            ("type=tmp,target=/x", "unsupported mount type \"tmp\" (did you mean tmpfs?)"),
            ("type=nonsense", "unsupported mount type \"nonsense\""),
            ("type=cache,target=/x,sharing=x", "unsupported sharing value \"x\""),
            ("type=cache,sharing=share", "unsupported sharing value \"share\" (did you mean shared?)"),
            ("target=/x,size=1", "unexpected key 'size' for mount type 'bind'"),
            ("target=/x,required", "unexpected key 'required' for mount type 'bind'"),
            ("target=/x,required=true", "unexpected key 'required' for mount type 'bind'"),
            ("size=1m,type=tmpfs", "unexpected key 'size' for mount type 'bind'"),
            ("type=cache,mode=9", "invalid value 9 for mode"),
            ("type=cache,uid=x", "invalid value x for uid"),
            ("type=cache,uid=4294967296", "invalid value 4294967296 for uid"),
            ("type=cache,uid=+1", "invalid value +1 for uid"),
            ("type=secret,id=x,gid=-1", "invalid value -1 for gid"),
            ("target=/x,mode=700", "mode not allowed for \"bind\" type mounts"),
            ("type=tmpfs,target=/x,uid=1", "uid not allowed for \"tmpfs\" type mounts"),
            ("target=/x,gid=1", "gid not allowed for \"bind\" type mounts"),
            ("target=/x,sharing=locked", "invalid cache sharing set for bind mount"),
            ("type=ssh,sharing=locked", "invalid cache sharing set for ssh mount"),
            ("type=secret,id=x,from=busybox", "secret mount should not have a from"),
            ("type=secret,id=x,sharing=shared", "secret mount should not define sharing"),
            ("type=secret", "invalid secret mount. one of source, target required"),
            ("type=secret,env=X", "invalid secret mount. one of source, target required"),
            ("type=secret,id=x,source=y", "both source and id can't be set"),
            ("type=ssh,source=x", "ssh does not support source"),
            ("type=tmpfs,target", "invalid field 'target' must be a key=value pair"),
            ("type=secret,id=a,env", "invalid field 'env' must be a key=value pair"),
            ("target=/x,ro=maybe", "invalid value for ro: maybe"),
            ("type=tmpfs,size=big", "invalid value for size: big"),
            ("type=tmpfs,size=-1", "invalid value for size: -1"),
            ("target=a\"b", "failed to parse csv mounts: parse error on line 1, column 9: bare \" in non-quoted-field"),
            ("", "failed to parse csv mounts: EOF"),
            ("from=$X,target=/x", "'from' doesn't support variable expansion, define alias stage instead"),
            ("target=${X", "failed to process \"${X\": unsupported modifier (\u{fffd}) in substitution"),
        ];
        for (raw, want) in table {
            assert_eq!(parse(raw), Err(want.to_owned()), "{raw}");
        }
    }

    #[test]
    fn sizes() {
        let table = [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("1k", Some(1024)),
            ("128m", Some(128 << 20)),
            ("1.5G", Some(3 << 29)),
            ("64MiB", Some(64 << 20)),
            ("64 mb", Some(64 << 20)),
            ("2t", Some(2 << 40)),
            ("10b", Some(10)),
            ("10ib", None),
            ("1.2.3", None),
            (".", None),
            ("m", None),
            ("", None),
            ("1x", None),
            ("9999999p", None),
        ];
        for (text, want) in table {
            assert_eq!(parse_size(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_ends(raw in "[a-z=,\"$ /0-9]{0,40}") {
            drop(parse(&raw));
        }
    }
}
