//! Image documents: descriptor, manifest, index and config.
//!
//! Configs and manifests are our own ordered types, because a library that keeps labels in a hash map gives another
//! digest on every run. Maps are `BTreeMap`; fields are declared in the order in which they are written; unknown
//! fields of a config are dropped on purpose (`spec/dockerfile.md` §9.1, typed round trip).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, Digest};
use crate::platform::Platform;
use crate::time::canonical_rfc3339;

/// A typed, sized pointer to bytes. Fields stand in the order in which Go programs write them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the bytes are.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
    /// Their number.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// Places to fetch them from first (foreign layers).
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_to_default")]
    pub urls: Vec<String>,
    /// Free-form facts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_to_default")]
    pub annotations: BTreeMap<String, String>,
    /// The bytes themselves, base64 (tiny blobs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Which platform an index entry is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What an artifact manifest holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor with the three obligatory fields.
    pub fn new(media_type: &str, digest: Digest, size_bytes: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size_bytes,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            platform: None,
            artifact_type: None,
        }
    }
}

/// An image manifest, OCI or Docker schema 2: one platform's config and layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Absent in some OCI manifests of strangers; always written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What an artifact manifest holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Base layer first.
    #[serde(default, deserialize_with = "null_to_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest that this one speaks about (attestations).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form facts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_to_default")]
    pub annotations: BTreeMap<String, String>,
}

/// An image index or manifest list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Absent in some OCI indexes of strangers; always written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// One entry a manifest.
    #[serde(default, deserialize_with = "null_to_default")]
    pub manifests: Vec<Descriptor>,
    /// Free-form facts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_to_default")]
    pub annotations: BTreeMap<String, String>,
}

/// The name of [`ImageConfig::cache`] in JSON.
pub const CACHE_FIELD: &str = "rbuild.cache.v1";

/// Serialises a manifest or index as BuildKit does: two-space indentation, no trailing newline (`spec/engine.md` §1.6).
pub fn to_manifest_json<T: Serialize>(document: &T) -> Vec<u8> {
    escape_as_go(
        serde_json::to_vec_pretty(document).expect("image documents have string keys and no failing serialisers"),
    )
}

/// Serialises a document on one line, with the escapes that Go programs write.
pub fn to_compact_json<T: Serialize>(document: &T) -> Vec<u8> {
    escape_as_go(serde_json::to_vec(document).expect("image documents have string keys and no failing serialisers"))
}

/// Rewrites JSON so that `<`, `>`, `&`, U+2028 and U+2029 are escaped, as Go's encoder does.
///
/// Those characters stand only inside strings in JSON, so a pass over the bytes is exact. Without it, an image with
/// `CMD a && b` would have another digest than the same image from BuildKit.
fn escape_as_go(json: Vec<u8>) -> Vec<u8> {
    const SEPARATORS: [&[u8]; 2] = ["\u{2028}".as_bytes(), "\u{2029}".as_bytes()];
    let needs_escape = |byte: &u8| matches!(byte, b'<' | b'>' | b'&' | 0xe2);
    if !json.iter().any(needs_escape) {
        return json;
    }
    let mut escaped = Vec::with_capacity(json.len() + 64);
    let mut rest = json.as_slice();
    while let Some(at) = rest.iter().position(needs_escape) {
        escaped.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let (escape, len): (&[u8], usize) = match rest {
            [b'<', ..] => (b"\\u003c", 1),
            [b'>', ..] => (b"\\u003e", 1),
            [b'&', ..] => (b"\\u0026", 1),
            _ if rest.starts_with(SEPARATORS[0]) => (b"\\u2028", 3),
            _ if rest.starts_with(SEPARATORS[1]) => (b"\\u2029", 3),
            other => (&other[..1], 1),
        };
        escaped.extend_from_slice(escape);
        rest = &rest[len..];
    }
    escaped.extend_from_slice(rest);
    escaped
}

/// An image config: what a container made from the image looks like, and how the image came about.
///
/// Serialised compactly with top-level keys in alphabetical order (`spec/engine.md` §1.5), hence the field order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// GOARCH name.
    #[serde(default)]
    pub architecture: String,
    /// MAINTAINER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The container part.
    #[serde(default, deserialize_with = "null_to_default")]
    pub config: ContainerConfig,
    /// RFC 3339 time, read and written as Go spells it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "go_time")]
    pub created: Option<String>,
    /// Oldest first.
    #[serde(default, deserialize_with = "null_to_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
    /// GOOS name.
    #[serde(default)]
    pub os: String,
    /// Windows features.
    #[serde(
        rename = "os.features",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_to_default"
    )]
    pub os_features: Vec<String>,
    /// Windows build.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Which steps of which build gave the layers, for a builder's cache; that of a base image does not pass to others.
    #[serde(rename = "rbuild.cache.v1", skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub cache: Option<serde_json::Value>,
    /// The layers.
    #[serde(default, deserialize_with = "null_to_default")]
    pub rootfs: RootFs,
    /// CPU variant, for instance `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl ImageConfig {
    /// The platform that the config names.
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }

    /// Compact JSON, the exact bytes whose digest is the image ID.
    pub fn to_json(&self) -> Vec<u8> {
        to_compact_json(self)
    }
}

/// The layers of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Base layer first.
    #[serde(default, deserialize_with = "null_to_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// `config` inside an image config, with Docker's extensions.
///
/// Spec: `spec/engine.md` §1.5, `spec/dockerfile.md` §9.1. Fields without a value are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// `USER`, verbatim.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_to_default")]
    pub user: String,
    /// `{"80/tcp":{}}`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_to_default")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `K=V`, in order of first definition.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_to_default")]
    pub env: Vec<String>,
    /// What runs.
    #[serde(skip_serializing_if = "is_none_or_empty")]
    pub entrypoint: Option<Vec<String>>,
    /// Its default arguments.
    #[serde(skip_serializing_if = "is_none_or_empty")]
    pub cmd: Option<Vec<String>>,
    /// `{"/data":{}}`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_to_default")]
    pub volumes: BTreeMap<String, Empty>,
    /// Absolute.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_to_default")]
    pub working_dir: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_to_default")]
    pub labels: BTreeMap<String, String>,
    /// As written in the Dockerfile.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_to_default")]
    pub stop_signal: String,
    /// True after `CMD`.
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "null_to_default")]
    pub args_escaped: bool,
    /// `HEALTHCHECK`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Triggers for a child build.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_to_default")]
    pub on_build: Vec<String>,
    /// `SHELL`.
    #[serde(skip_serializing_if = "is_none_or_empty")]
    pub shell: Option<Vec<String>>,
}

/// The `{}` of Docker's sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A health check; durations in nanoseconds, zero is unset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", "text"]`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_to_default")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(rename = "Interval", skip_serializing_if = "is_zero")]
    pub interval_ns: i64,
    /// Time for one check.
    #[serde(rename = "Timeout", skip_serializing_if = "is_zero")]
    pub timeout_ns: i64,
    /// Grace at the start.
    #[serde(rename = "StartPeriod", skip_serializing_if = "is_zero")]
    pub start_period_ns: i64,
    /// Time between checks during the grace.
    #[serde(rename = "StartInterval", skip_serializing_if = "is_zero")]
    pub start_interval_ns: i64,
    /// Failures before unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// One line of `docker history`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// RFC 3339 time, read and written as Go spells it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "go_time")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// MAINTAINER at that point.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Which builder wrote it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// True for metadata: no layer belongs to the entry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

fn is_none_or_empty(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Go writes an absent map or list as `null`; both mean empty.
pub(crate) fn null_to_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a time into the text that a Go program would write for it, so that a base image's history comes out the same
/// as from BuildKit. Text that is no time is kept: a stranger's sloppiness is no reason to refuse the image.
fn go_time<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    Ok(text.map(|text| canonical_rfc3339(&text).unwrap_or(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A config as BuildKit writes it, with every field that we know.
    const CONFIG: &str = concat!(
        r#"{"architecture":"arm","author":"A \u003ca@b\u003e","config":{"User":"1000:1000","#,
        r#""ExposedPorts":{"443/tcp":{},"80/tcp":{}},"Env":["PATH=/bin","E=a\u0026b"],"Entrypoint":["/e"],"#,
        r#""Cmd":["sh","-c","a \u0026\u0026 b \u003e c \u2028\u2029é"],"Volumes":{"/v":{}},"WorkingDir":"/w","#,
        r#""Labels":{"a":"1","b":""},"StopSignal":"SIGINT","ArgsEscaped":true,"#,
        r#""Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":1000000000,"Timeout":2,"StartPeriod":3,"#,
        r#""StartInterval":4,"Retries":5},"OnBuild":["RUN a"],"Shell":["/bin/bash","-c"]},"#,
        r#""created":"2026-01-31T08:00:00.12Z","history":[{"created":"2026-01-31T08:00:00Z","#,
        r#""created_by":"RUN /bin/sh -c a \u003e b # buildkit","comment":"buildkit.dockerfile.v0"},"#,
        r#"{"created":"2026-01-31T08:00:00.12Z","created_by":"CMD [\"sh\"]","author":"me","comment":"c","empty_layer":true}],"#,
        r#""os":"linux","os.features":["f"],"os.version":"1.2","rootfs":{"type":"layers","diff_ids":["#,
        r#""sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"variant":"v7"}"#
    );

    #[test]
    fn a_full_config_survives_byte_for_byte() {
        let config: ImageConfig = serde_json::from_str(CONFIG).expect("parses");
        assert_eq!(String::from_utf8(config.to_json()).expect("utf-8"), CONFIG);
        assert_eq!(config.config.cmd.as_ref().expect("a command")[2], "a && b > c \u{2028}\u{2029}é");
        assert_eq!(config.platform().to_string(), "linux/arm/v7");
    }

    #[test]
    fn control_characters_and_other_text_are_escaped_as_go_does() {
        let text = "\u{1}\u{8}\u{c}\n\r\t\u{1f}\u{7f}\"\\/â€…\u{2027}\u{202a}😀";
        let json = String::from_utf8(to_compact_json(&text)).expect("utf-8");
        let expected = "\"\\u0001\\b\\f\\n\\r\\t\\u001f\u{7f}\\\"\\\\/â€…\u{2027}\u{202a}😀\"";
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<String>(&json).expect("parses"), text);
    }

    #[test]
    fn nulls_empty_lists_and_absent_fields_mean_the_same() {
        let nulls = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":null,"Entrypoint":null,
            "Labels":null,"Volumes":null,"ExposedPorts":null,"OnBuild":null,"Shell":null,"User":null,
            "Healthcheck":{"Test":null}},"history":null,"rootfs":{"type":"layers","diff_ids":null},"os.features":null}"#;
        let config: ImageConfig = serde_json::from_str(nulls).expect("parses");
        assert_eq!(config.config.cmd, None);
        let written = r#"{"architecture":"amd64","config":{"Healthcheck":{}},"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert_eq!(String::from_utf8(config.to_json()).expect("utf-8"), written);

        let empties =
            r#"{"architecture":"amd64","os":"linux","config":{"Cmd":[],"Entrypoint":[],"Shell":[]},"rootfs":null}"#;
        let config: ImageConfig = serde_json::from_str(empties).expect("parses");
        assert_eq!(config.rootfs, RootFs::default());
        let written = r#"{"architecture":"amd64","config":{},"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert_eq!(String::from_utf8(config.to_json()).expect("utf-8"), written);
        let absent: ImageConfig = serde_json::from_str(r#"{"config":null}"#).expect("parses");
        assert_eq!(absent, ImageConfig::default());
    }

    #[test]
    fn unknown_fields_are_dropped_and_times_take_gos_spelling() {
        let text = r#"{"architecture":"amd64","os":"linux","docker_version":"20","container_config":{},
            "config":{"Hostname":"x","Tty":false},"created":"2026-01-31T08:00:00.500+00:00",
            "history":[{"created":"2026-01-31T10:00:00.10+02:00","empty_layer":true},{"created":"once"}]}"#;
        let config: ImageConfig = serde_json::from_str(text).expect("parses");
        assert_eq!(config.created.as_deref(), Some("2026-01-31T08:00:00.5Z"));
        assert_eq!(config.history[0].created.as_deref(), Some("2026-01-31T10:00:00.1+02:00"));
        assert_eq!(config.history[1].created.as_deref(), Some("once"));
        assert!(!String::from_utf8(config.to_json()).expect("utf-8").contains("Hostname"));
    }

    #[test]
    fn manifests_are_indented_by_two_spaces_in_gos_order() {
        let digest = Digest::of(b"");
        let mut layer = Descriptor::new(crate::media_type::OCI_LAYER_GZIP, digest.clone(), 3);
        layer.annotations.insert("k".to_owned(), "<v>".to_owned());
        layer.platform = Some(Platform::new("linux", "amd64", None));
        layer.data = Some("e30=".to_owned());
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(crate::media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::new(crate::media_type::OCI_CONFIG, digest.clone(), 2),
            layers: vec![layer],
            subject: None,
            annotations: BTreeMap::new(),
        };
        let expected = format!(
            r#"{{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {{
    "mediaType": "application/vnd.oci.image.config.v1+json",
    "digest": "{digest}",
    "size": 2
  }},
  "layers": [
    {{
      "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
      "digest": "{digest}",
      "size": 3,
      "annotations": {{
        "k": "\u003cv\u003e"
      }},
      "data": "e30=",
      "platform": {{
        "architecture": "amd64",
        "os": "linux"
      }}
    }}
  ]
}}"#
        );
        let json = to_manifest_json(&manifest);
        assert_eq!(String::from_utf8(json.clone()).expect("utf-8"), expected);
        assert_eq!(serde_json::from_slice::<Manifest>(&json).expect("parses"), manifest);
    }

    #[test]
    fn manifests_of_strangers_may_hold_nulls() {
        let text = r#"{"schemaVersion":2,"config":{"mediaType":"m","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"urls":null,"annotations":null},"layers":null,"annotations":null}"#;
        let manifest: Manifest = serde_json::from_str(text).expect("parses");
        assert!(manifest.layers.is_empty() && manifest.media_type.is_none());
        let index: Index =
            serde_json::from_str(r#"{"schemaVersion":2,"manifests":null,"annotations":null}"#).expect("parses");
        assert!(index.manifests.is_empty());
        assert!(serde_json::from_str::<Manifest>(&text.replace("\"size\":0", "\"size\":-1")).is_err());
    }
}
