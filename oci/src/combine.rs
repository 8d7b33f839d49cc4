//! One index out of the images of several sources. Pure: who reads the sources and sends the result is elsewhere.
//!
//! Attestations stay with what they describe. Spec: `spec/cli.md` §5.1 (`imagetools create`).

use std::collections::BTreeMap;

use crate::attestation::{described, is_attestation, is_image};
use crate::digest::Digest;
use crate::image::{Descriptor, Index};
use crate::media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, is_index};
use crate::platform::Platform;

/// An entry of the new index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The manifest, with the platform of an image.
    pub entry: Descriptor,
    /// Where it is from, as people call it.
    pub origin: String,
}

/// Why images cannot be combined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CombineError {
    /// An index would list an index.
    #[error("{origin} lists another index, {digest}: indexes inside of indexes are not supported")]
    Nested {
        /// Where it is from.
        origin: String,
        /// The inner one.
        digest: Digest,
    },
    /// Two different images are for the same platform.
    #[error("there are two images for {platform}: of {first} and of {second}")]
    SamePlatform {
        /// The platform.
        platform: Box<Platform>,
        /// Where the first one is from.
        first: String,
        /// Where the other is from.
        second: String,
    },
    /// No image is for a platform that is wanted.
    #[error("there is no image for {wanted}: there are {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    NoPlatform {
        /// As asked for.
        wanted: Box<Platform>,
        /// Those that are there.
        known: Vec<String>,
    },
    /// Nothing to combine.
    #[error("there is no image to make an index of")]
    Nothing,
}

/// The entries without those that come again, in their order; the first one's facts count, and the other's fill its gaps.
///
/// # Errors
/// [`CombineError::Nested`], [`CombineError::Nothing`].
pub fn distinct(entries: Vec<Listed>) -> Result<Vec<Listed>, CombineError> {
    let mut kept: Vec<Listed> = Vec::new();
    for Listed { entry, origin } in entries {
        if is_index(&entry.media_type) {
            return Err(CombineError::Nested { origin, digest: entry.digest });
        }
        match kept.iter_mut().find(|known| known.entry.digest == entry.digest) {
            None => kept.push(Listed { entry, origin }),
            Some(known) => {
                known.entry.platform = known.entry.platform.take().or(entry.platform);
                for (key, value) in entry.annotations {
                    known.entry.annotations.entry(key).or_insert(value);
                }
            }
        }
    }
    if kept.is_empty() { Err(CombineError::Nothing) } else { Ok(kept) }
}

/// Only the images for `platforms`, with what speaks about them.
///
/// # Errors
/// [`CombineError::NoPlatform`].
pub fn for_platforms(entries: Vec<Listed>, platforms: &[Platform]) -> Result<Vec<Listed>, CombineError> {
    let of = |listed: &Listed| listed.entry.platform.as_ref().map(Platform::normalized);
    let images = || entries.iter().filter(|listed| is_image(&listed.entry));
    for wanted in platforms {
        if !images().any(|listed| of(listed).is_some_and(|platform| platform == *wanted)) {
            let known = images().filter_map(of).map(|platform| platform.to_string()).collect();
            return Err(CombineError::NoPlatform { wanted: Box::new(wanted.clone()), known });
        }
    }
    let wanted = |listed: &&Listed| of(listed).is_some_and(|platform| platforms.contains(&platform));
    let chosen: Vec<Digest> = images().filter(wanted).map(|listed| listed.entry.digest.clone()).collect();
    let is_kept = |entry: &Descriptor| match described(entry) {
        Some(of) => chosen.contains(&of),
        None => chosen.contains(&entry.digest),
    };
    Ok(entries.into_iter().filter(|listed| is_kept(&listed.entry)).collect())
}

/// Makes sure that no two images are for the same platform, and puts the images before what speaks about them.
///
/// # Errors
/// [`CombineError::SamePlatform`].
pub fn one_a_platform(entries: Vec<Listed>) -> Result<Vec<Listed>, CombineError> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for Listed { entry, origin } in entries.iter().filter(|listed| is_image(&listed.entry)) {
        let Some(platform) = entry.platform.as_ref().map(Platform::normalized) else { continue };
        if let Some(first) = seen.insert(platform.qualified(), origin.clone()) {
            return Err(CombineError::SamePlatform { platform: Box::new(platform), first, second: origin.clone() });
        }
    }
    let (others, images): (Vec<_>, Vec<_>) = entries.into_iter().partition(|listed| is_attestation(&listed.entry));
    Ok(images.into_iter().chain(others).collect())
}

/// The index of `entries`. It is docker's list if all of them are docker's and there are no annotations.
pub fn index(entries: &[Listed], annotations: BTreeMap<String, String>) -> Index {
    let is_docker = annotations.is_empty() && entries.iter().all(|listed| listed.entry.media_type == DOCKER_MANIFEST);
    Index {
        schema_version: 2,
        media_type: Some(if is_docker { DOCKER_LIST } else { OCI_INDEX }.to_owned()),
        manifests: entries.iter().map(|listed| listed.entry.clone()).collect(),
        annotations,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attestation;
    use crate::media_type::OCI_MANIFEST;

    fn image(name: &str, platform: &str) -> Listed {
        let mut entry = Descriptor::new(OCI_MANIFEST, Digest::of(name.as_bytes()), 1);
        entry.platform = Some(Platform::parse(platform, &Platform::host()).expect("a platform"));
        Listed { entry, origin: name.to_owned() }
    }

    fn about(image: &Listed) -> Listed {
        let manifest = Descriptor::new(OCI_MANIFEST, Digest::of(format!("about {}", image.origin).as_bytes()), 1);
        let entry = attestation::entry(&manifest, &image.entry.digest);
        Listed { entry, origin: format!("about {}", image.origin) }
    }

    fn shown(entries: &[Listed]) -> String {
        entries.iter().map(|listed| listed.origin.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn attestations_follow_their_images() {
        let (amd, arm) = (image("amd", "linux/amd64"), image("arm", "linux/arm64"));
        let all = vec![amd.clone(), about(&amd), arm.clone(), about(&arm), amd.clone()];
        let all = distinct(all).expect("distinct");
        assert_eq!(shown(&all), "amd about amd arm about arm");
        let arm64 = Platform::new("linux", "arm64", None);
        assert_eq!(shown(&for_platforms(all.clone(), &[arm64]).expect("there is one")), "arm about arm");
        assert_eq!(shown(&one_a_platform(all.clone()).expect("they differ")), "amd arm about amd about arm");
        assert_eq!(index(&all, BTreeMap::new()).media_type.as_deref(), Some(OCI_INDEX));
    }

    #[test]
    fn what_cannot_be_combined_is_named() {
        let (one, two) = (image("one", "linux/amd64"), image("two", "linux/amd64"));
        let error = one_a_platform(vec![one.clone(), two]).expect_err("the same platform").to_string();
        assert_eq!(error, "there are two images for linux/amd64: of one and of two");
        let s390x = Platform::new("linux", "s390x", None);
        let error = for_platforms(vec![one], &[s390x]).expect_err("no such platform").to_string();
        assert_eq!(error, "there is no image for linux/s390x: there are linux/amd64");
        let mut inner = image("inner", "linux/amd64");
        inner.entry.media_type = OCI_INDEX.to_owned();
        assert!(matches!(distinct(vec![inner]), Err(CombineError::Nested { .. })));
        assert_eq!(distinct(Vec::new()), Err(CombineError::Nothing));
    }
}
