//! Platforms: operating system, architecture, variant.
//!
//! [`Platform::parse`] reads what people write, [`Platform::match_rank`] says how well an image's platform serves a
//! wanted one. Names are Go's (`GOOS`, `GOARCH`), because registries speak them.
//!
//! Spec: `spec/engine.md` §6.1.

use std::fmt;

use nom::IResult;
use nom::Parser;
use nom::bytes::complete::{take_while, take_while1};
use nom::character::complete::char;
use nom::combinator::{all_consuming, opt};
use nom::multi::many0;
use nom::sequence::{delimited, preceded};
use serde::{Deserialize, Serialize};

/// A platform in GOOS and GOARCH terms.
///
/// Values from [`parse`](Self::parse), [`host`](Self::host) and [`normalized`](Self::normalized) are in normal form;
/// those of strangers' documents are as written there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH name, for instance `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// GOOS name, for instance `linux`.
    #[serde(default)]
    pub os: String,
    /// Windows build.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Windows features.
    #[serde(
        rename = "os.features",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "crate::image::null_to_default"
    )]
    pub os_features: Vec<String>,
    /// CPU variant, for instance `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Text that is not a platform. The wording is what users of other builders know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// A `*` in the text.
    #[error("\"{text}\": wildcards not yet supported: invalid argument")]
    Wildcard {
        /// What was given.
        text: String,
    },
    /// The first component is not `os[(version[+feature…])]`.
    #[error("\"{component}\" is an invalid OS component of \"{text}\": invalid argument")]
    Os {
        /// The component.
        component: String,
        /// What was given.
        text: String,
    },
    /// Another component has characters outside `A-Za-z0-9_.-`, or none.
    #[error("\"{component}\" is an invalid component of \"{text}\": invalid argument")]
    Component {
        /// The component.
        component: String,
        /// What was given.
        text: String,
    },
    /// A single word that is neither a known operating system nor a known architecture.
    #[error("\"{text}\": unknown operating system or architecture: invalid argument")]
    Unknown {
        /// What was given.
        text: String,
    },
    /// More than three components.
    #[error("\"{text}\": cannot parse platform specifier: invalid argument")]
    TooManyComponents {
        /// What was given.
        text: String,
    },
}

const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
    "zos",
];

const KNOWN_ARCHITECTURES: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "arm64",
    "arm64be",
    "armbe",
    "loong64",
    "mips",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "mipsle",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

impl Platform {
    /// A platform in normal form from its three usual parts.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = normalize_architecture(architecture, variant.unwrap_or_default());
        Self { architecture, os: normalize_os(os), os_version: None, os_features: Vec::new(), variant }
    }

    /// Parses `os`, `arch` or `os[(version[+feature…])]/arch[/variant]` into normal form.
    ///
    /// A missing half is taken from `host`.
    ///
    /// # Errors
    /// [`PlatformError`], with the reason.
    pub fn parse(text: &str, host: &Platform) -> Result<Self, PlatformError> {
        if text.contains('*') {
            return Err(PlatformError::Wildcard { text: text.to_owned() });
        }
        let components: Vec<&str> = text.splitn(4, '/').collect();
        let (first, rest) = components.split_first().expect("splitting gives at least one part");
        let os = parse_os(first)
            .ok_or_else(|| PlatformError::Os { component: (*first).to_owned(), text: text.to_owned() })?;
        if let Some(component) = rest.iter().find(|component| !is_component(component)) {
            return Err(PlatformError::Component { component: (*component).to_owned(), text: text.to_owned() });
        }
        let platform = match *rest {
            [] if KNOWN_OS.contains(&os.name.as_str()) => {
                let variant = host.variant.as_deref().filter(|_| host.architecture == "arm");
                Self::new(&os.name, &host.architecture, variant)
            }
            [] => {
                let platform = Self::new(&host.os, first, None);
                if !KNOWN_ARCHITECTURES.contains(&platform.architecture.as_str()) {
                    return Err(PlatformError::Unknown { text: text.to_owned() });
                }
                return Ok(platform);
            }
            [architecture] => Self::new(&os.name, architecture, None),
            [architecture, variant] => Self::new(&os.name, architecture, Some(variant)),
            _ => return Err(PlatformError::TooManyComponents { text: text.to_owned() }),
        };
        Ok(Self { os_version: os.version, os_features: os.features, ..platform })
    }

    /// The platform this program was compiled for. Asks nothing of the machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, None)
    }

    /// The same platform in normal form: Go's spelling of the architecture, no redundant variant, sorted features.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        let os_version = self.os_version.clone().filter(|version| !version.is_empty());
        Self { os_version, os_features, ..Self::new(&self.os, &self.architecture, self.variant.as_deref()) }
    }

    /// Whether operating system and architecture are ones that Go knows. Others are allowed, and mostly a slip.
    pub fn is_known(&self) -> bool {
        KNOWN_OS.contains(&self.os.as_str()) && KNOWN_ARCHITECTURES.contains(&self.architecture.as_str())
    }

    /// Everything that tells platforms apart, as [`parse`](Self::parse) reads it: `windows(10.0.17763.1)/amd64`, where
    /// [`Display`](fmt::Display) has `windows/amd64`.
    pub fn qualified(&self) -> String {
        let plain = self.to_string();
        if self.os_version.is_none() && self.os_features.is_empty() {
            return plain;
        }
        let version = percent_encode(self.os_version.as_deref().unwrap_or_default());
        let features: String = self.os_features.iter().map(|feature| format!("+{}", percent_encode(feature))).collect();
        let (os, rest) = plain.split_at(plain.find('/').unwrap_or(plain.len()));
        format!("{os}({version}{features}){rest}")
    }

    /// How well an image for `candidate` serves this wanted platform.
    ///
    /// 0 is exact, larger is worse, `None` does not run here at all.
    pub fn match_rank(&self, candidate: &Platform) -> Option<usize> {
        let wanted = self.normalized();
        let candidate = candidate.normalized();
        if wanted.os != candidate.os || !wanted.accepts_os_version(&candidate) {
            return None;
        }
        if !candidate.os_features.iter().all(|feature| wanted.os_features.contains(feature)) {
            return None;
        }
        wanted.preferences().iter().position(|(architecture, variant)| {
            *architecture == candidate.architecture && *variant == candidate.variant
        })
    }

    /// The (architecture, variant) pairs that run on this platform, best first.
    fn preferences(&self) -> Vec<(&str, Option<String>)> {
        let architecture = self.architecture.as_str();
        let mut list = vec![(architecture, self.variant.clone())];
        let variant = self.variant.as_deref().and_then(Version::of_variant);
        match architecture {
            "amd64" => {
                let newest = variant.map_or(1, |version| version.major);
                list.extend((2..newest).rev().map(|n| ("amd64", Some(format!("v{n}")))));
                list.extend((newest > 1).then_some(("amd64", None)));
                list.push(("386", None));
            }
            "arm" => list.extend(arm_variants_below(variant.map_or(0, |version| version.major))),
            "arm64" => {
                list.extend(arm64_variants_below(variant.unwrap_or(Version { major: 8, minor: 0 })));
                list.extend(arm_variants_below(9));
            }
            _ => {}
        }
        list
    }

    /// Windows images run on hosts of the same major, minor and build number; the revision does not matter.
    fn accepts_os_version(&self, candidate: &Platform) -> bool {
        let (Some(wanted), Some(given)) = (&self.os_version, &candidate.os_version) else {
            return true;
        };
        self.os != "windows" || wanted.split('.').take(3).eq(given.split('.').take(3))
    }
}

/// `v9.2` as numbers.
#[derive(Clone, Copy)]
struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// Bounds what a stranger's variant can make the preference list grow to.
    const MAX: u32 = 16;

    fn of_variant(variant: &str) -> Option<Self> {
        let text = variant.strip_prefix('v')?;
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        let version = Self { major: major.parse().ok()?, minor: minor.parse().ok()? };
        (version.major <= Self::MAX && version.minor <= Self::MAX).then_some(version)
    }
}

/// 32-bit variants older than `major`, newest first, down to v5.
fn arm_variants_below<'a>(major: u32) -> impl Iterator<Item = (&'a str, Option<String>)> {
    (5..major).rev().map(|n| ("arm", Some(format!("v{n}"))))
}

/// 64-bit variants that `version` includes, newest first. v9.N contains v8.(N+5), and v8 ends at v8.9.
fn arm64_variants_below<'a>(version: Version) -> Vec<(&'a str, Option<String>)> {
    let spell = |major: u32, minor: u32| match (major, minor) {
        (8, 0) => None,
        (_, 0) => Some(format!("v{major}")),
        _ => Some(format!("v{major}.{minor}")),
    };
    let mut list: Vec<(u32, u32)> = (0..version.minor).rev().map(|minor| (version.major, minor)).collect();
    if version.major == 9 {
        list.extend((0..=(version.minor + 5).min(9)).rev().map(|minor| (8, minor)));
    }
    list.into_iter().map(|(major, minor)| ("arm64", spell(major, minor))).collect()
}

struct Os {
    name: String,
    version: Option<String>,
    features: Vec<String>,
}

/// Parses `os[(version[+feature…])]`; values inside the parentheses may be percent-encoded.
fn parse_os(component: &str) -> Option<Os> {
    let word = |input| take_while1(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')).parse(input);
    let is_option = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '%' | '-');
    let options = (take_while(is_option), many0(preceded(char('+'), take_while1(is_option))));
    let parsed: IResult<_, _> = all_consuming((word, opt(delimited(char('('), options, char(')'))))).parse(component);
    let (_, (name, options)) = parsed.ok()?;
    let (version, features) = options.unwrap_or_default();
    let version = percent_decode(version)?;
    let features: Option<Vec<String>> = features.into_iter().map(percent_decode).collect();
    Some(Os { name: normalize_os(name), version: Some(version).filter(|text| !text.is_empty()), features: features? })
}

fn is_component(text: &&str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn percent_encode(text: &str) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let encoded = text.bytes().map(|byte| match is_plain(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02x}"),
    });
    encoded.collect()
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// An empty name in a stranger's document means the host's system, and that is Linux here.
fn normalize_os(os: &str) -> String {
    match os.to_ascii_lowercase().as_str() {
        "" => "linux".to_owned(),
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

fn normalize_architecture(architecture: &str, variant: &str) -> (String, Option<String>) {
    let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386" | "386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        (architecture, variant) => (architecture, variant),
    };
    (architecture.to_owned(), Some(variant.to_owned()).filter(|variant| !variant.is_empty()))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.os.is_empty() {
            return f.write_str("unknown");
        }
        f.write_str(&self.os)?;
        for part in [Some(&self.architecture), self.variant.as_ref()].into_iter().flatten() {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host() -> Platform {
        Platform::new("linux", "amd64", None)
    }

    #[test]
    fn every_spelling_has_its_normal_form() {
        let cases = [
            ("x86_64", "linux/amd64"),
            ("x86-64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("AMD64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v2", "linux/amd64/v2"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/amd64/v4", "linux/amd64/v4"),
            ("i386", "linux/386"),
            ("386", "linux/386"),
            ("linux/386/v1", "linux/386"),
            ("aarch64", "linux/arm64"),
            ("arm64", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v8.0", "linux/arm64"),
            ("linux/arm64/v8.2", "linux/arm64/v8.2"),
            ("linux/arm64/9", "linux/arm64/v9"),
            ("linux/arm64/v9.0", "linux/arm64/v9"),
            ("armhf", "linux/arm/v7"),
            ("arm", "linux/arm/v7"),
            ("linux/arm/7", "linux/arm/v7"),
            ("linux/arm", "linux/arm/v7"),
            ("armel", "linux/arm/v6"),
            ("linux/arm/v5", "linux/arm/v5"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/arm/v8", "linux/arm/v8"),
            ("riscv64", "linux/riscv64"),
            ("ppc64le", "linux/ppc64le"),
            ("s390x", "linux/s390x"),
            ("mips64le", "linux/mips64le"),
            ("loong64", "linux/loong64"),
            ("macos/arm64", "darwin/arm64"),
            ("macos", "darwin/amd64"),
            ("linux", "linux/amd64"),
            ("Windows", "windows/amd64"),
            ("Linux/ARM/V7", "linux/arm/v7"),
            ("plan10/z80", "plan10/z80"),
        ];
        for (text, expected) in cases {
            let platform = Platform::parse(text, &host()).expect(text);
            assert_eq!(platform.to_string(), expected, "{text}");
            assert_eq!(platform, platform.normalized(), "{text}");
            assert_eq!(platform.is_known(), text != "plan10/z80", "{text}");
        }
    }

    #[test]
    fn the_host_fills_the_missing_half() {
        let arm = Platform::new("linux", "arm", Some("v6"));
        assert_eq!(Platform::parse("linux", &arm).expect("parses").to_string(), "linux/arm/v6");
        let amd64_v3 = Platform::new("linux", "amd64", Some("v3"));
        assert_eq!(Platform::parse("linux", &amd64_v3).expect("parses").to_string(), "linux/amd64");
        assert!(KNOWN_OS.contains(&Platform::host().os.as_str()));
        assert!(KNOWN_ARCHITECTURES.contains(&Platform::host().architecture.as_str()));
    }

    #[test]
    fn windows_versions_and_features_are_kept() {
        let platform = Platform::parse("windows(10.0.17763.1+win32k+a%2Bb)/amd64", &host()).expect("parses");
        assert_eq!(platform.os_version.as_deref(), Some("10.0.17763.1"));
        assert_eq!(platform.os_features, ["win32k", "a+b"]);
        assert_eq!(platform.to_string(), "windows/amd64");
        assert_eq!(platform.qualified(), "windows(10.0.17763.1+win32k+a%2bb)/amd64");
        assert_eq!(host().qualified(), "linux/amd64");
    }

    #[test]
    fn malformed_text_is_refused_with_its_reason() {
        let cases = [
            ("a/b/c/d", "\"a/b/c/d\": cannot parse platform specifier: invalid argument"),
            ("z80", "\"z80\": unknown operating system or architecture: invalid argument"),
            ("linux/*", "\"linux/*\": wildcards not yet supported: invalid argument"),
            ("linux/", "\"\" is an invalid component of \"linux/\": invalid argument"),
            ("linux/a d", "\"a d\" is an invalid component of \"linux/a d\": invalid argument"),
            ("", "\"\" is an invalid OS component of \"\": invalid argument"),
            ("li nux/amd64", "\"li nux\" is an invalid OS component of \"li nux/amd64\": invalid argument"),
            ("windows(1/amd64", "\"windows(1\" is an invalid OS component of \"windows(1/amd64\": invalid argument"),
            ("windows(%zz)/a", "\"windows(%zz)\" is an invalid OS component of \"windows(%zz)/a\": invalid argument"),
        ];
        for (text, message) in cases {
            assert_eq!(Platform::parse(text, &host()).expect_err(text).to_string(), message);
        }
    }

    #[test]
    fn candidates_are_ranked_in_the_order_of_the_table() {
        let cases: &[(&str, &[&str])] = &[
            ("linux/amd64", &["linux/amd64", "linux/386"]),
            ("linux/amd64/v3", &["linux/amd64/v3", "linux/amd64/v2", "linux/amd64/v1", "linux/386"]),
            ("linux/386", &["linux/386"]),
            ("linux/arm/v7", &["linux/arm", "linux/arm/v6", "linux/arm/v5"]),
            ("linux/arm/v5", &["linux/arm/v5"]),
            ("linux/arm64", &["linux/arm64/v8", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
            (
                "linux/arm64/v8.2",
                &["linux/arm64/v8.2", "linux/arm64/v8.1", "linux/arm64", "linux/arm/v8", "linux/arm/v7"],
            ),
            (
                "linux/arm64/v9",
                &[
                    "linux/arm64/v9",
                    "linux/arm64/v8.5",
                    "linux/arm64/v8.4",
                    "linux/arm64/v8.3",
                    "linux/arm64/v8.2",
                    "linux/arm64/v8.1",
                    "linux/arm64/v8",
                    "linux/arm/v8",
                    "linux/arm/v7",
                    "linux/arm/v6",
                    "linux/arm/v5",
                ],
            ),
            ("linux/arm64/v9.6", &["linux/arm64/v9.6", "linux/arm64/v9.5"]),
            ("linux/riscv64", &["linux/riscv64"]),
        ];
        for (wanted, candidates) in cases {
            let wanted = Platform::parse(wanted, &host()).expect("parses");
            for (rank, text) in candidates.iter().enumerate() {
                let candidate = Platform::parse(text, &host()).expect("parses");
                assert_eq!(wanted.match_rank(&candidate), Some(rank), "{wanted} from {text}");
            }
        }
        let rank = |wanted: &str, candidate: &str| {
            let parse = |text| Platform::parse(text, &host()).expect("parses");
            parse(wanted).match_rank(&parse(candidate))
        };
        assert_eq!(rank("linux/arm64/v9.6", "linux/arm64/v8.9"), Some(7), "v8 ends at v8.9");
        assert_eq!(rank("linux/arm64/v9.6", "linux/arm64/v8.10"), None);
        for (wanted, candidate) in [
            ("linux/amd64", "linux/amd64/v2"),
            ("linux/386", "linux/amd64"),
            ("linux/amd64", "windows/amd64"),
            ("linux/arm/v6", "linux/arm/v7"),
            ("linux/arm/v7", "linux/arm64"),
            ("linux/amd64", "unknown/unknown"),
        ] {
            assert_eq!(rank(wanted, candidate), None, "{wanted} from {candidate}");
        }
    }

    #[test]
    fn documents_of_strangers_are_normalised_before_matching() {
        let candidate: Platform =
            serde_json::from_str(r#"{"architecture":"x86_64","os":"Linux","variant":"","os.features":null}"#)
                .expect("parses");
        assert_eq!(host().match_rank(&candidate), Some(0));
        let demanding: Platform =
            serde_json::from_str(r#"{"architecture":"amd64","os":"linux","os.features":["erofs"]}"#).expect("parses");
        assert_eq!(host().match_rank(&demanding), None, "features that nobody offered");
    }

    #[test]
    fn windows_builds_must_agree_but_revisions_need_not() {
        let platform = |text| Platform::parse(text, &host()).expect("parses");
        let wanted = platform("windows(10.0.20348.1)/amd64");
        assert_eq!(wanted.match_rank(&platform("windows(10.0.20348.2700)/amd64")), Some(0));
        assert_eq!(wanted.match_rank(&platform("windows(10.0.17763.1)/amd64")), None);
        assert_eq!(wanted.match_rank(&platform("windows/amd64")), Some(0));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_is_normal(text in "[a-z0-9/().+%_v*-]{0,24}") {
            if let Ok(platform) = Platform::parse(&text, &host()) {
                prop_assert_eq!(platform.match_rank(&platform), Some(0));
            }
        }
    }
}
