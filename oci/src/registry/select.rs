//! Choosing one image out of an index.

use crate::attestation::is_image;
use crate::image::{Descriptor, Index};
use crate::platform::Platform;

/// The entry of an index that serves `wanted` best; the first of equals.
///
/// Attestations and artifacts are never candidates. Entries that name no platform come last. `None` if nothing runs on
/// `wanted`.
///
/// Spec: `spec/engine.md` §4.2, "Platform choice".
pub fn select_platform<'a>(index: &'a Index, wanted: &Platform) -> Option<&'a Descriptor> {
    let rank = |entry: &Descriptor| match &entry.platform {
        Some(platform) => wanted.match_rank(platform),
        None => Some(usize::MAX),
    };
    index
        .manifests
        .iter()
        .filter(|entry| is_image(entry))
        .filter_map(|entry| rank(entry).map(|rank| (rank, entry)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry)
}

/// The platforms that an index has images for, in its order. Entries that name none are not among them.
pub fn image_platforms(index: &Index) -> impl Iterator<Item = &Platform> {
    index.manifests.iter().filter(|entry| is_image(entry)).filter_map(|entry| entry.platform.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attestation::REFERENCE_TYPE;
    use crate::digest::Digest;
    use crate::media_type::{OCI_LAYER, OCI_MANIFEST};

    fn entry(name: &str, platform: Option<&str>) -> Descriptor {
        let mut entry = Descriptor::new(OCI_MANIFEST, Digest::of(name.as_bytes()), 1);
        let host = Platform::new("linux", "amd64", None);
        entry.platform = platform.map(|text| Platform::parse(text, &host).expect("a platform"));
        entry
    }

    fn index(manifests: Vec<Descriptor>) -> Index {
        Index { schema_version: 2, media_type: None, manifests, annotations: Default::default() }
    }

    fn choose(index: &Index, wanted: &str) -> Option<usize> {
        let host = Platform::new("linux", "amd64", None);
        let chosen = select_platform(index, &Platform::parse(wanted, &host).expect("a platform"))?;
        index.manifests.iter().position(|entry| std::ptr::eq(entry, chosen))
    }

    #[test]
    fn the_best_entry_wins_and_the_first_of_equals() {
        let index = index(vec![
            entry("386", Some("linux/386")),
            entry("v6", Some("linux/arm/v6")),
            entry("amd64", Some("linux/amd64")),
            entry("amd64 again", Some("linux/amd64")),
            entry("v7", Some("linux/arm/v7")),
            entry("v3", Some("linux/amd64/v3")),
        ]);
        let cases = [
            ("linux/amd64", Some(2)),
            ("linux/amd64/v3", Some(5)),
            ("linux/amd64/v2", Some(2)),
            ("linux/386", Some(0)),
            ("linux/arm/v7", Some(4)),
            ("linux/arm64", Some(4)),
            ("linux/arm/v6", Some(1)),
            ("linux/s390x", None),
            ("windows/amd64", None),
        ];
        for (wanted, expected) in cases {
            assert_eq!(choose(&index, wanted), expected, "{wanted}");
        }
        let platforms: Vec<String> = image_platforms(&index).map(Platform::to_string).collect();
        let expected = ["linux/386", "linux/arm/v6", "linux/amd64", "linux/amd64", "linux/arm/v7", "linux/amd64/v3"];
        assert_eq!(platforms, expected);
    }

    #[test]
    fn attestations_and_other_things_are_no_candidates() {
        let mut attestation = entry("attestation", None);
        attestation.platform = Some(Platform::new("unknown", "unknown", None));
        attestation.annotations.insert(REFERENCE_TYPE.to_owned(), "attestation-manifest".to_owned());
        let mut sneaky = entry("sneaky", Some("linux/amd64"));
        sneaky.annotations.insert(REFERENCE_TYPE.to_owned(), "attestation-manifest".to_owned());
        let mut layer = entry("layer", None);
        layer.media_type = OCI_LAYER.to_owned();
        let others = vec![attestation, sneaky, layer];
        assert_eq!(choose(&index(others.clone()), "linux/amd64"), None);
        assert_eq!(image_platforms(&index(others.clone())).count(), 0);
        let with_plain = [others, vec![entry("no platform", None)]].concat();
        assert_eq!(choose(&index(with_plain.clone()), "linux/amd64"), Some(3), "better than nothing");
        let with_exact = [with_plain, vec![entry("exact", Some("linux/amd64"))]].concat();
        assert_eq!(choose(&index(with_exact), "linux/amd64"), Some(4));
    }
}
