//! Annotations of images: attributes of outputs, `annotation[-TYPE][[PLATFORM]].KEY=VALUE`, and flags for all outputs,
//! `--annotation [TYPE[PLATFORM][,TYPE…]:]KEY=VALUE` (`spec/engine.md` §1.7).

use executor::export::{ImageAnnotations, IndexAnnotations};
use oci::Platform;
use solver::OpError;

use crate::failure::Failure;

/// How attributes begin that are annotations.
const PREFIX: &str = "annotation";

/// How such an attribute is written.
const FORM: &str = "write `annotation.KEY=VALUE`, or with what it is for: `annotation-index.KEY`, \
                    `annotation-manifest[linux/amd64].KEY`; types are manifest, index, manifest-descriptor and \
                    index-descriptor";

/// How such a flag is written.
const FLAG_FORM: &str = "write `--annotation KEY=VALUE`, or with what it is for: `--annotation index:KEY=VALUE`";

/// The document that an annotation is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Manifest,
    ManifestDescriptor,
    Index,
    IndexDescriptor,
}

/// One annotation.
#[derive(Clone, Debug, PartialEq)]
struct Annotation {
    place: Place,
    /// `None`: every platform.
    platform: Option<Platform>,
    key: String,
    value: String,
}

/// The annotations of one output. Those for one platform come last: they win.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Annotations(Vec<Annotation>);

/// Whether an attribute is an annotation.
pub(crate) fn is_annotation(attribute: &str) -> bool {
    attribute.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(['.', '-', '[']))
}

impl Annotations {
    /// Reads attributes that are annotations.
    pub(crate) fn parse(attributes: impl IntoIterator<Item = (String, String)>) -> Result<Self, Failure> {
        let parsed = attributes.into_iter().map(|(attribute, value)| Annotation::parse(&attribute, value));
        let mut annotations = Self(parsed.collect::<Result<_, _>>()?);
        annotations.sort();
        Ok(annotations)
    }

    /// Reads flags. A flag with several types is an annotation for each.
    pub(crate) fn parse_flags(flags: &[String]) -> Result<Self, Failure> {
        let mut attributes = Vec::new();
        for flag in flags {
            let (key, value) = flag.split_once('=').ok_or_else(|| {
                Failure::usage(format!("invalid annotation \"{flag}\", expected key=value")).help(FLAG_FORM)
            })?;
            let (types, key) = key.split_once(':').unwrap_or(("manifest", key));
            let attribute = |kind: &str| (format!("{PREFIX}-{kind}.{key}"), value.to_owned());
            attributes.extend(types.split(',').map(attribute));
        }
        Self::parse(attributes)
    }

    /// Whether one is for manifests themselves.
    pub(crate) fn has_manifest(&self) -> bool {
        self.0.iter().any(|annotation| annotation.place == Place::Manifest)
    }

    /// Adds annotations, which win over those of the same key and place.
    pub(crate) fn extend(&mut self, more: &Self) {
        self.0.extend(more.0.iter().cloned());
        self.sort();
    }

    fn sort(&mut self) {
        self.0.sort_by_key(|annotation| annotation.platform.is_some());
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses annotations of an index that there will not be, and of platforms that are not built.
    pub(crate) fn check(&self, platforms: &[&Platform], is_index: bool) -> Result<(), OpError> {
        let of_index = |annotation: &&Annotation| matches!(annotation.place, Place::Index | Place::IndexDescriptor);
        if !is_index && self.0.iter().any(|annotation| of_index(&annotation)) {
            return Err(OpError::input("index annotations not supported for single platform export")
                .help("annotate the manifest: `annotation.KEY=VALUE`; several platforms make an index"));
        }
        let of_images = self.0.iter().filter(|annotation| !of_index(annotation));
        let mut named = of_images.filter_map(|annotation| annotation.platform.as_ref());
        match named.find(|platform| !platforms.contains(platform)) {
            None => Ok(()),
            Some(unknown) => {
                let built: Vec<String> = platforms.iter().map(ToString::to_string).collect();
                Err(OpError::input(format!("invalid annotation: no platform {unknown} found in source"))
                    .help(format!("this build is for {}", built.join(", "))))
            }
        }
    }

    /// Those of the image of one platform.
    pub(crate) fn of_image(&self, platform: &Platform) -> ImageAnnotations {
        let mut found = ImageAnnotations::default();
        for annotation in &self.0 {
            let map = match annotation.place {
                Place::Manifest => &mut found.manifest,
                Place::ManifestDescriptor => &mut found.descriptor,
                Place::Index | Place::IndexDescriptor => continue,
            };
            if annotation.platform.as_ref().is_none_or(|wanted| wanted == platform) {
                map.insert(annotation.key.clone(), annotation.value.clone());
            }
        }
        found
    }

    /// Those of the index. Platforms do not count there.
    pub(crate) fn of_index(&self) -> IndexAnnotations {
        let mut found = IndexAnnotations::default();
        for annotation in &self.0 {
            let map = match annotation.place {
                Place::Index => &mut found.index,
                Place::IndexDescriptor => &mut found.descriptor,
                Place::Manifest | Place::ManifestDescriptor => continue,
            };
            map.insert(annotation.key.clone(), annotation.value.clone());
        }
        found
    }
}

impl Annotation {
    fn parse(attribute: &str, value: String) -> Result<Self, Failure> {
        let invalid = |why: String| Failure::usage(format!("invalid annotation `{attribute}`: {why}")).help(FORM);
        let rest = attribute.strip_prefix(PREFIX).unwrap_or(attribute);
        // A type has neither brackets nor dots, a platform may have dots.
        let end = rest.find(['[', '.']).ok_or_else(|| invalid("it has no key".to_owned()))?;
        let (kind, rest) = rest.split_at(end);
        let (platform, rest) = match rest.strip_prefix('[') {
            None => (None, rest),
            Some(rest) => {
                let (text, rest) = rest.split_once(']').ok_or_else(|| invalid("`[` is not closed".to_owned()))?;
                let platform = Platform::parse(text, &Platform::host()).map_err(|error| invalid(error.to_string()))?;
                (Some(platform), rest)
            }
        };
        let key = rest.strip_prefix('.').filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| invalid("it has no key".to_owned()))?.to_owned();
        let place = match kind {
            "" | "-manifest" => Place::Manifest,
            "-manifest-descriptor" => Place::ManifestDescriptor,
            "-index" => Place::Index,
            "-index-descriptor" => Place::IndexDescriptor,
            other => return Err(invalid(format!("unknown type `{}`", other.trim_start_matches('-')))),
        };
        Ok(Self { place, platform, key, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(attributes: &[(&str, &str)]) -> Result<Annotations, Failure> {
        Annotations::parse(attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn annotations_go_where_their_type_says() {
        let annotations = parse(&[
            ("annotation-index.i", "1"),
            ("annotation-index-descriptor[linux/s390x].d", "2"),
            ("annotation-manifest-descriptor.m", "3"),
            ("annotation-manifest[linux/arm64].org.x", "special"),
            ("annotation.org.x", "general"),
        ]);
        let annotations = annotations.expect("all are valid");
        let [amd64, arm64] = ["amd64", "arm64"].map(|architecture| Platform::new("linux", architecture, None));
        assert_eq!(annotations.of_image(&amd64).manifest["org.x"], "general");
        assert_eq!(annotations.of_image(&arm64).manifest["org.x"], "special");
        assert_eq!(annotations.of_image(&arm64).descriptor["m"], "3");
        let of_index = annotations.of_index();
        assert_eq!((of_index.index["i"].as_str(), of_index.descriptor["d"].as_str()), ("1", "2"));
        annotations.check(&[&amd64, &arm64], true).expect("both are built");
        let message = |platforms: &[&Platform], is_index| annotations.check(platforms, is_index).map_err(|e| e.message);
        let missing = "invalid annotation: no platform linux/arm64 found in source";
        assert_eq!(message(&[&amd64], true), Err(missing.to_owned()));
        let single = "index annotations not supported for single platform export";
        assert_eq!(message(&[&arm64], false), Err(single.to_owned()));
    }

    #[test]
    fn flags_are_for_manifests_unless_they_say_otherwise_and_win() {
        let flags =
            |texts: &[&str]| Annotations::parse_flags(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let arm64 = Platform::new("linux", "arm64", None);
        let mut annotations = parse(&[("annotation.url", "old"), ("annotation.kept", "1")]).expect("valid");
        let more =
            ["url=https://x/?a=b", "index,manifest-descriptor[linux/arm64]:both=2", "manifest[linux/s390x]:no=3"];
        annotations.extend(&flags(&more).expect("valid"));
        let of_image = annotations.of_image(&arm64);
        let manifest: Vec<(&str, &str)> = of_image.manifest.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(manifest, [("kept", "1"), ("url", "https://x/?a=b")]);
        assert_eq!((&of_image.descriptor["both"][..], &annotations.of_index().index["both"][..]), ("2", "2"));
        for text in ["novalue", "layer:k=v", "index[:k=v", ":k=v", "=v"] {
            assert!(flags(&[text]).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_annotation_is_refused() {
        for attribute in [
            "annotation-layer.k",
            "annotation[linux/amd64.k",
            "annotation[linux/*].k",
            "annotation.",
            "annotation-index",
        ] {
            assert!(parse(&[(attribute, "v")]).is_err(), "{attribute}");
        }
        assert!(is_annotation("annotation.k") && is_annotation("annotation[p].k") && !is_annotation("annotations"));
    }
}
