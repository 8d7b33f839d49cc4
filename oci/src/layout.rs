//! OCI image layouts and docker archives: their documents, and a reader for layouts in a directory.
//!
//! The documents are pure functions from values to bytes; who writes them into a tar or a directory decides about
//! files, modes and locks. [`Layout`] reads a directory and verifies what it reads.
//!
//! Spec: OCI image-spec 1.1, image-layout.md; `spec/engine.md` §1.12 (writing) and §4.4 (reading).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::{Descriptor, Index, null_to_default, to_compact_json};
use crate::media_type::{self, ManifestKindError, OCI_INDEX};
use crate::reference::{DEFAULT_TAG, ImageRef};

/// Name of the file that says that a directory is a layout.
pub const LAYOUT_FILE: &str = "oci-layout";
/// Content of [`LAYOUT_FILE`].
pub const LAYOUT_JSON: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Name of the file that lists the images of a layout.
pub const INDEX_FILE: &str = "index.json";
/// Name of the file that lists the images of a docker archive.
pub const DOCKER_MANIFEST_FILE: &str = "manifest.json";
/// Directory of all blobs whose digest is SHA-256.
pub const BLOBS_DIR: &str = "blobs/sha256";
/// Largest manifest, index or `index.json` that is read, in bytes.
pub const MAX_DOCUMENT_SIZE: u64 = 4 << 20;

/// Annotation: full normalised name of an image, for containerd.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation: the tag of an image.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation: when an image was made, RFC 3339.
pub const CREATED: &str = "org.opencontainers.image.created";

/// Path of a blob inside a layout, with slashes.
pub fn blob_path(digest: &Digest) -> String {
    format!("{BLOBS_DIR}/{}", digest.hex())
}

/// `index.json` for one image: a descriptor for each of its names, or a single one without names.
///
/// `image` is the descriptor of the manifest or index; `created` is an RFC 3339 time.
pub fn image_index(image: &Descriptor, names: &[ImageRef], created: Option<&str>) -> Index {
    let mut unnamed = image.clone();
    unnamed.annotations.extend(created.map(|time| (CREATED.to_owned(), time.to_owned())));
    let manifests =
        if names.is_empty() { vec![unnamed] } else { names.iter().map(|name| named(unnamed.clone(), name)).collect() };
    Index { schema_version: 2, media_type: Some(OCI_INDEX.to_owned()), manifests, annotations: Default::default() }
}

/// `index.json` of a directory after an image has been added to it.
///
/// Entries that had one of the names lose their place to the new ones, which come last. An image without a name gets
/// the tag `latest` and nothing else.
pub fn add_to_index(mut index: Index, image: &Descriptor, names: &[ImageRef], created: Option<&str>) -> Index {
    let mut added = image_index(image, names, created).manifests;
    if names.is_empty() {
        for entry in &mut added {
            entry.annotations.insert(REF_NAME.to_owned(), DEFAULT_TAG.to_owned());
        }
    }
    let replaces = |new: &Descriptor, old: &Descriptor| match (name_of(new), name_of(old)) {
        // The same tag of another image is another name.
        (Some(new_name), Some(old_name)) => new_name == old_name,
        _ => tag_of(new).is_some() && tag_of(new) == tag_of(old),
    };
    index.manifests.retain(|old| !added.iter().any(|new| replaces(new, old)));
    index.manifests.append(&mut added);
    index.schema_version = 2;
    index.media_type.get_or_insert_with(|| OCI_INDEX.to_owned());
    index
}

/// The bytes of `index.json`: compact JSON.
pub fn index_json(index: &Index) -> Vec<u8> {
    to_compact_json(index)
}

fn named(mut image: Descriptor, name: &ImageRef) -> Descriptor {
    image.annotations.insert(IMAGE_NAME.to_owned(), name.to_string());
    image.annotations.extend(name.tag().map(|tag| (REF_NAME.to_owned(), tag.to_owned())));
    image
}

fn name_of(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(IMAGE_NAME).map(String::as_str)
}

fn tag_of(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(REF_NAME).map(String::as_str)
}

/// Picks an image out of `index.json` by tag or full name.
///
/// The entry whose full name is `tag`, else the one whose tag it is, else the only entry, whatever its name: layouts
/// made without a name hold one image. `None` if nothing fits.
pub fn find_image<'a>(index: &'a Index, tag: &str) -> Option<&'a Descriptor> {
    let by = |of: fn(&Descriptor) -> Option<&str>| index.manifests.iter().find(move |entry| of(entry) == Some(tag));
    let only = || match index.manifests.as_slice() {
        [only] => Some(only),
        _ => None,
    };
    by(name_of).or_else(|| by(tag_of)).or_else(only)
}

/// One image of a docker archive, as in its `manifest.json`. Paths are relative to the archive's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerArchiveImage {
    /// The image config.
    pub config: String,
    /// Familiar names with tags; `null` in JSON when there are none.
    #[serde(default, deserialize_with = "null_to_default", serialize_with = "empty_to_null")]
    pub repo_tags: Vec<String>,
    /// The layers, base layer first; compressed or not.
    #[serde(default, deserialize_with = "null_to_default")]
    pub layers: Vec<String>,
}

impl DockerArchiveImage {
    /// The entry for an image whose blobs lie as in a layout. `layers` are digests of blobs, base layer first; names
    /// without a tag have no place here.
    pub fn in_layout(config: &Digest, layers: &[Digest], names: &[ImageRef]) -> Self {
        let tagged = names.iter().filter_map(|name| name.name_only().with_tag(name.tag()?).ok());
        Self {
            config: blob_path(config),
            repo_tags: tagged.map(|name| name.familiar()).collect(),
            layers: layers.iter().map(blob_path).collect(),
        }
    }
}

/// The bytes of a docker archive's `manifest.json`: compact JSON.
pub fn docker_manifest_json(images: &[DockerArchiveImage]) -> Vec<u8> {
    to_compact_json(&images)
}

/// Go writes an absent list as `null`, and `docker load` is written in Go.
fn empty_to_null<S: serde::Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() { serializer.serialize_none() } else { list.serialize(serializer) }
}

/// Why a layout cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file cannot be opened or read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("`{}` is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The version of the layout is none that we know.
    #[error("`{}` has layout version `{version}`, expected `1.0.0`", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: String,
    },
    /// No image of that name.
    #[error("`{}` has no image `{tag}`: it has {}", dir.display(), if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    NoImage {
        /// The layout.
        dir: PathBuf,
        /// What was asked for.
        tag: String,
        /// The names and tags that it has.
        known: Vec<String>,
    },
    /// The bytes of a blob are others than its name says.
    #[error("`{}` has other content than its name says: got {actual}", path.display())]
    DigestMismatch {
        /// The file.
        path: PathBuf,
        /// The digest of its bytes.
        actual: Digest,
    },
    /// A document is larger than any sane one.
    #[error("`{}` is larger than {limit_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// A manifest is none.
    #[error("`{}`: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestKindError,
    },
}

/// Which image of a layout is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// By tag or full name.
    Tag(String),
    /// By digest; need not be listed in `index.json`.
    Digest(Digest),
}

impl Default for Selector {
    /// The tag `latest`.
    fn default() -> Self {
        Self::Tag(DEFAULT_TAG.to_owned())
    }
}

/// A layout in a directory, open for reading. Every call reads the files anew; nothing is kept.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Opens a layout. A directory without `oci-layout` counts if it has an `index.json`, as cache directories do.
    ///
    /// # Errors
    /// [`LayoutError::Version`] for another version, [`LayoutError::Io`] if neither file is there.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let layout = Self { dir: dir.into() };
        let path = layout.dir.join(LAYOUT_FILE);
        let bytes = match read_limited(&path, MAX_DOCUMENT_SIZE) {
            Err(LayoutError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                layout.index()?;
                return Ok(layout);
            }
            outcome => outcome?,
        };
        let marker: Marker = parse(&path, &bytes)?;
        if marker.image_layout_version.split('.').next() != Some("1") {
            return Err(LayoutError::Version { path, version: marker.image_layout_version });
        }
        Ok(layout)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads `index.json`.
    ///
    /// # Errors
    /// [`LayoutError::Io`], [`LayoutError::Malformed`], [`LayoutError::TooLarge`].
    pub fn index(&self) -> Result<Index, LayoutError> {
        let path = self.dir.join(INDEX_FILE);
        parse(&path, &read_limited(&path, MAX_DOCUMENT_SIZE)?)
    }

    /// Finds the manifest or index that a selector names; its media type is told by its shape.
    ///
    /// # Errors
    /// [`LayoutError::NoImage`] for an unknown tag; else as [`read_manifest`](Self::read_manifest).
    pub fn resolve(&self, selector: &Selector) -> Result<Descriptor, LayoutError> {
        let digest = match selector {
            Selector::Digest(digest) => digest.clone(),
            Selector::Tag(tag) => {
                let index = self.index()?;
                let entry = find_image(&index, tag).ok_or_else(|| LayoutError::NoImage {
                    dir: self.dir.clone(),
                    tag: tag.clone(),
                    known: index
                        .manifests
                        .iter()
                        .filter_map(|entry| name_of(entry).or(tag_of(entry)))
                        .map(str::to_owned)
                        .collect(),
                })?;
                entry.digest.clone()
            }
        };
        let (media_type, bytes) = self.read_manifest(&digest)?;
        Ok(Descriptor::new(&media_type, digest, bytes.len() as u64))
    }

    /// Reads a manifest or index, verified, with its media type.
    ///
    /// # Errors
    /// As [`read_blob`](Self::read_blob), and [`LayoutError::Manifest`] if it is none.
    pub fn read_manifest(&self, digest: &Digest) -> Result<(String, Vec<u8>), LayoutError> {
        let bytes = self.read_blob(digest, MAX_DOCUMENT_SIZE)?;
        let path = self.dir.join(blob_path(digest));
        match media_type::of_manifest(&bytes) {
            Ok(media_type) => Ok((media_type, bytes)),
            Err(source) => Err(LayoutError::Manifest { path, source }),
        }
    }

    /// Reads a blob of at most `limit_bytes` and verifies it.
    ///
    /// # Errors
    /// [`LayoutError::Io`], [`LayoutError::TooLarge`], [`LayoutError::DigestMismatch`].
    pub fn read_blob(&self, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>, LayoutError> {
        let path = self.dir.join(blob_path(digest));
        let bytes = read_limited(&path, limit_bytes)?;
        match Digest::of(&bytes) {
            actual if actual == *digest => Ok(bytes),
            actual => Err(LayoutError::DigestMismatch { path, actual }),
        }
    }

    /// Opens a blob. Its bytes are not verified; whoever reads them must do that.
    ///
    /// # Errors
    /// [`LayoutError::Io`].
    pub fn open_blob(&self, digest: &Digest) -> Result<File, LayoutError> {
        let path = self.dir.join(blob_path(digest));
        File::open(&path).map_err(|source| LayoutError::Io { path, source })
    }
}

fn read_limited(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, LayoutError> {
    let error = |source| LayoutError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit_bytes + 1).read_to_end(&mut bytes)).map_err(error)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(LayoutError::TooLarge { path: path.to_owned(), limit_bytes });
    }
    Ok(bytes)
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8]) -> Result<T, LayoutError> {
    serde_json::from_slice(bytes)
        .map_err(|error| LayoutError::Malformed { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media_type::{OCI_CONFIG, OCI_MANIFEST};

    fn image(bytes: &[u8]) -> Descriptor {
        Descriptor::new(OCI_MANIFEST, Digest::of(bytes), bytes.len() as u64)
    }

    fn names(list: &[&str]) -> Vec<ImageRef> {
        list.iter().map(|text| ImageRef::parse_normalized(text).expect("a reference").with_default_tag()).collect()
    }

    #[test]
    fn an_index_has_one_entry_a_name() {
        let digest = Digest::of(b"m");
        let json = |list: &[&str]| {
            let index = image_index(&image(b"m"), &names(list), Some("2026-01-01T00:00:00Z"));
            String::from_utf8(index_json(&index)).expect("utf-8")
        };
        let head = format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1,"annotations":{{"#
        );
        let start = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#;
        let first = format!(
            r#"{head}"io.containerd.image.name":"docker.io/library/app:1.0","org.opencontainers.image.created":"2026-01-01T00:00:00Z","org.opencontainers.image.ref.name":"1.0"}}}}"#
        );
        let second =
            first.replace("docker.io/library/app:1.0", "r.example/app:latest").replace("\"1.0\"", "\"latest\"");
        assert_eq!(json(&["app:1.0", "r.example/app"]), format!("{start}{first},{second}]}}"));
        let unnamed = format!(r#"{head}"org.opencontainers.image.created":"2026-01-01T00:00:00Z"}}}}"#);
        assert_eq!(json(&[]), format!("{start}{unnamed}]}}"));
    }

    #[test]
    fn new_images_take_the_names_of_old_ones() {
        let (one, two, three) = (image(b"1"), image(b"2"), image(b"3"));
        let mut index = image_index(&one, &names(&["app:1", "other:1", "app:2"]), None);
        index = add_to_index(index, &two, &names(&["app:1"]), None);
        index = add_to_index(index, &three, &[], None);
        index = add_to_index(index, &two, &[], None);
        let listed: Vec<_> =
            index.manifests.iter().map(|entry| (name_of(entry), tag_of(entry), &entry.digest)).collect();
        let expected = [
            (Some("docker.io/library/other:1"), Some("1"), &one.digest),
            (Some("docker.io/library/app:2"), Some("2"), &one.digest),
            (Some("docker.io/library/app:1"), Some("1"), &two.digest),
            (None, Some("latest"), &two.digest),
        ];
        assert_eq!(listed, expected);
    }

    #[test]
    fn images_are_found_by_name_then_tag_then_being_alone() {
        let mut index = image_index(&image(b"1"), &names(&["app:1"]), None);
        assert!(find_image(&index, "latest").is_some(), "the only one");
        index = add_to_index(index, &image(b"2"), &names(&["app:2"]), None);
        let mut tag_like_name = image(b"3");
        tag_like_name.annotations.insert(REF_NAME.to_owned(), "docker.io/library/app:2".to_owned());
        index.manifests.insert(0, tag_like_name);
        let find = |tag| find_image(&index, tag).map(|entry| entry.digest.clone());
        assert_eq!(find("1"), Some(Digest::of(b"1")));
        assert_eq!(find("docker.io/library/app:2"), Some(Digest::of(b"2")), "full names come first");
        assert_eq!(find("latest"), None);
    }

    #[test]
    fn docker_archives_name_images_as_people_do() {
        let (config, layer) = (Digest::of(b"config"), Digest::of(b"layer"));
        let json = |list: &[&str]| {
            let entry = DockerArchiveImage::in_layout(&config, std::slice::from_ref(&layer), &names(list));
            String::from_utf8(docker_manifest_json(&[entry])).expect("utf-8")
        };
        let expected = |tags: &str| {
            format!(
                r#"[{{"Config":"blobs/sha256/{}","RepoTags":{tags},"Layers":["blobs/sha256/{}"]}}]"#,
                config.hex(),
                layer.hex()
            )
        };
        assert_eq!(json(&["app:1.0", "r.example/a/b"]), expected(r#"["app:1.0","r.example/a/b:latest"]"#));
        assert_eq!(json(&[]), expected("null"));
        assert_eq!(json(&[&format!("app@{config}")]), expected("null"), "no tag, no name");
        let parsed: Vec<DockerArchiveImage> = serde_json::from_str(&json(&[])).expect("parses");
        assert!(parsed[0].repo_tags.is_empty());
    }

    fn write_layout(dir: &Path, manifests: &[&[u8]]) -> Layout {
        std::fs::create_dir_all(dir.join(BLOBS_DIR)).expect("a directory");
        std::fs::write(dir.join(LAYOUT_FILE), LAYOUT_JSON).expect("a file");
        let mut index = image_index(&image(b""), &[], None);
        index.manifests.clear();
        for (at, bytes) in manifests.iter().enumerate() {
            std::fs::write(dir.join(blob_path(&Digest::of(bytes))), bytes).expect("a file");
            index = add_to_index(index, &image(bytes), &names(&[&format!("app:{at}")]), None);
        }
        std::fs::write(dir.join(INDEX_FILE), index_json(&index)).expect("a file");
        Layout::open(dir).expect("a layout")
    }

    #[test]
    fn a_directory_is_read_and_verified() {
        let dir = tempfile::tempdir().expect("a directory");
        let manifest = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
        let list = br#"{"schemaVersion":2,"manifests":[]}"#;
        let layout = write_layout(dir.path(), &[manifest, list, b"{}"]);
        let tag = |text: &str| Selector::Tag(text.to_owned());
        assert_eq!(layout.resolve(&tag("0")).expect("resolves"), image(manifest));
        assert_eq!(layout.resolve(&Selector::Digest(Digest::of(list))).expect("resolves").media_type, OCI_INDEX);
        assert!(matches!(layout.resolve(&tag("2")), Err(LayoutError::Manifest { .. })));
        let error = layout.resolve(&Selector::default()).expect_err("no such tag").to_string();
        assert!(error.ends_with("has no image `latest`: it has docker.io/library/app:0, docker.io/library/app:1, docker.io/library/app:2"), "{error}");
        let absent = Selector::Digest(Digest::of(OCI_CONFIG.as_bytes()));
        assert!(matches!(layout.resolve(&absent), Err(LayoutError::Io { .. })));

        let digest = Digest::of(manifest);
        assert_eq!(layout.read_blob(&digest, 1000).expect("a blob"), manifest);
        assert!(matches!(layout.read_blob(&digest, 5), Err(LayoutError::TooLarge { limit_bytes: 5, .. })));
        std::fs::write(dir.path().join(blob_path(&digest)), "other").expect("a file");
        assert!(matches!(layout.read_blob(&digest, 1000), Err(LayoutError::DigestMismatch { .. })));
    }

    #[test]
    fn other_directories_are_no_layouts() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(matches!(Layout::open(dir.path()), Err(LayoutError::Io { .. })));
        std::fs::write(dir.path().join(INDEX_FILE), "{").expect("a file");
        assert!(matches!(Layout::open(dir.path()), Err(LayoutError::Malformed { .. })));
        std::fs::write(dir.path().join(INDEX_FILE), r#"{"schemaVersion":2,"manifests":[]}"#).expect("a file");
        Layout::open(dir.path()).expect("an index is enough");
        std::fs::write(dir.path().join(LAYOUT_FILE), r#"{"imageLayoutVersion":"2.0.0"}"#).expect("a file");
        assert!(matches!(Layout::open(dir.path()), Err(LayoutError::Version { .. })));
    }
}
