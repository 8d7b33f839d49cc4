//! `--cache-to` and `--cache-from` (`spec/engine.md` §2.1 and §2.2; `docs/cache.md`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci::ImageRef;

use crate::csv;
use crate::failure::Failure;
use crate::mistakes;
use crate::output::{codec, explicit_flag, flag};

/// Caches of one build.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct CacheFlags {
    /// Places to ask, in the order given.
    pub(crate) from: Vec<CachePlace>,
    /// Places to give results to.
    pub(crate) to: Vec<CacheExport>,
    /// Images say which steps gave their layers.
    pub(crate) is_inline: bool,
}

/// Where results lie.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CachePlace {
    /// A repository; the tag says which builds have a list in common, and may be that of an image.
    Registry {
        /// With a tag.
        reference: ImageRef,
        /// It needs no valid certificate, and may speak plain HTTP.
        is_insecure: bool,
    },
    /// A directory, absolute.
    Directory(PathBuf),
}

/// What goes where.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CacheExport {
    pub(crate) place: CachePlace,
    /// All steps, not only those whose layers are in the result.
    pub(crate) is_max: bool,
    /// `None`: as the image is compressed.
    pub(crate) codec: Option<cache::Codec>,
    pub(crate) force_compression: bool,
    /// The build fails when the cache does not get there.
    pub(crate) is_required: bool,
}

/// Types that BuildKit has besides.
const OTHER_TYPES: [&str; 3] = ["gha", "s3", "azblob"];
const ATTRIBUTES: [&str; 14] = [
    "type",
    "ref",
    "dest",
    "src",
    "mode",
    "tag",
    "digest",
    "ignore-error",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "image-manifest",
    "registry.insecure",
];

/// Which of the two flags.
#[derive(Clone, Copy)]
enum Flag {
    From,
    To,
}

/// The attributes of one place.
struct Spec {
    flag: Flag,
    text: String,
    kind: String,
    attributes: BTreeMap<String, String>,
}

impl CacheFlags {
    /// Reads all values of both flags.
    pub(crate) fn parse(from: &[String], to: &[String]) -> Result<Self, Failure> {
        let mut flags = Self::default();
        for spec in specs(Flag::From, from)? {
            flags.from.push(import(spec)?);
        }
        for spec in specs(Flag::To, to)? {
            let Some(export) = export(spec)? else {
                flags.is_inline = true;
                continue;
            };
            if flags.to.contains(&export) {
                return Err(Failure::usage("duplicate cache exports: two --cache-to say the same"));
            }
            flags.to.push(export);
        }
        Ok(flags)
    }

    /// Registries that need no valid certificate.
    pub(crate) fn insecure_registries(&self) -> impl Iterator<Item = String> {
        let places = self.from.iter().chain(self.to.iter().map(|export| &export.place));
        places.filter_map(|place| match place {
            CachePlace::Registry { reference, is_insecure: true } => Some(reference.registry().to_owned()),
            CachePlace::Registry { .. } | CachePlace::Directory(_) => None,
        })
    }
}

impl Flag {
    fn name(self) -> &'static str {
        match self {
            Self::From => "--cache-from",
            Self::To => "--cache-to",
        }
    }

    fn form(self) -> &'static str {
        match self {
            Self::From => {
                "write --cache-from REF, --cache-from type=registry,ref=REF or --cache-from type=local,src=DIR"
            }
            Self::To => {
                "write --cache-to REF, --cache-to type=registry,ref=REF,mode=max, --cache-to type=local,dest=DIR or --cache-to type=inline"
            }
        }
    }
}

fn specs(flag: Flag, values: &[String]) -> Result<Vec<Spec>, Failure> {
    let mut specs = Vec::new();
    for text in values {
        let fail = |reason: &str| Failure::usage(format!("{} {text}: {reason}", flag.name())).help(flag.form());
        let fields = csv::fields(text).map_err(|error| fail(&error.0))?;
        if fields.iter().all(|field| !field.contains('=')) {
            for reference in fields {
                let attributes = BTreeMap::from([("ref".to_owned(), reference)]);
                specs.push(Spec { flag, text: text.clone(), kind: "registry".to_owned(), attributes });
            }
            continue;
        }
        let mut attributes = BTreeMap::new();
        for field in fields {
            let (key, value) = csv::pair(&field).ok_or_else(|| fail(&format!("invalid value {field}")))?;
            attributes.insert(key, value);
        }
        let kind = attributes.remove("type").filter(|kind| !kind.is_empty()).ok_or_else(|| fail("type is required"))?;
        specs.push(Spec { flag, text: text.clone(), kind, attributes });
    }
    Ok(specs)
}

impl Spec {
    fn fail(&self, reason: &str) -> Failure {
        Failure::usage(format!("{} {}: {reason}", self.flag.name(), self.text))
    }

    fn required(&mut self, key: &str) -> Result<String, Failure> {
        let value = self.attributes.remove(key).filter(|value| !value.is_empty());
        value.ok_or_else(|| self.fail(&format!("{key} is required")).help(self.flag.form()))
    }

    fn registry(&mut self) -> Result<CachePlace, Failure> {
        let text = self.required("ref")?;
        let reference = ImageRef::parse_normalized(&text)
            .map_err(|error| self.fail(&format!("invalid ref \"{text}\": {error}")))?;
        if reference.digest().is_some() {
            return Err(self
                .fail("a cache grows, so that a digest names none")
                .help("name a repository, or a tag in it"));
        }
        let is_insecure = flag(&mut self.attributes, "registry.insecure")?.unwrap_or(false);
        Ok(CachePlace::Registry { reference: reference.with_default_tag(), is_insecure })
    }

    fn directory(&mut self, key: &str) -> Result<CachePlace, Failure> {
        let dir = self.required(key)?;
        // Every key has a file of its own, whatever list it would be in elsewhere.
        self.attributes.remove("tag");
        let path = std::path::absolute(&dir).map_err(|error| self.fail(&format!("cannot resolve `{dir}`: {error}")))?;
        Ok(CachePlace::Directory(path))
    }

    fn unknown_type(&self) -> Failure {
        let Self { kind, .. } = self;
        if OTHER_TYPES.contains(&kind.as_str()) {
            return self
                .fail(&format!("caches of type {kind} are not supported yet"))
                .help("a registry that all jobs can reach does as well: type=registry,ref=REF; so does a directory that the CI system keeps: type=local");
        }
        let types = match self.flag {
            Flag::From => "registry and local",
            Flag::To => "registry, local and inline",
        };
        self.fail(&format!("unknown cache type {kind}")).help(format!("types are {types}"))
    }

    /// Refuses what nobody has asked for.
    fn end(&self) -> Result<(), Failure> {
        let Some(unknown) = self.attributes.keys().next() else { return Ok(()) };
        let failure = self.fail(&format!("caches of type {} have no attribute `{unknown}` here", self.kind));
        Err(match mistakes::nearest(unknown, ATTRIBUTES) {
            Some(name) if name != unknown => failure.help(format!("did you mean `{name}`?")),
            _ => failure,
        })
    }
}

fn import(mut spec: Spec) -> Result<CachePlace, Failure> {
    let place = match spec.kind.as_str() {
        "registry" => spec.registry()?,
        "local" => {
            let place = spec.directory("src")?;
            if let Some(digest) = spec.attributes.remove("digest")
                && digest.parse::<oci::Digest>().is_err()
            {
                return Err(spec.fail(&format!("`{digest}` is no digest")));
            }
            place
        }
        "inline" => {
            return Err(spec
                .fail("the cache in an image is found by the image's name")
                .help("write --cache-from type=registry,ref=IMAGE"));
        }
        _ => return Err(spec.unknown_type()),
    };
    spec.end()?;
    Ok(place)
}

/// `None` for the cache inside the image.
fn export(mut spec: Spec) -> Result<Option<CacheExport>, Failure> {
    let place = match spec.kind.as_str() {
        "registry" => Some(spec.registry()?),
        "local" => Some(spec.directory("dest")?),
        "inline" => None,
        _ => return Err(spec.unknown_type()),
    };
    let is_max = match spec.attributes.remove("mode").as_deref() {
        None | Some("" | "min") => false,
        Some("max") => true,
        Some(other) => return Err(spec.fail(&format!("unknown mode `{other}`")).help("modes are min and max")),
    };
    let Some(place) = place else {
        spec.end()?;
        return Ok(None);
    };
    let attributes = &mut spec.attributes;
    let ignores_errors = explicit_flag(attributes, "ignore-error")?;
    // Entries are OCI manifests of images, which every registry takes.
    let oci_types = explicit_flag(attributes, "oci-mediatypes")?;
    if explicit_flag(attributes, "image-manifest")? == Some(true) && oci_types == Some(false) {
        return Err(spec.fail("image-manifest=true needs oci-mediatypes=true"));
    }
    let (kind, level) = (attributes.remove("compression"), attributes.remove("compression-level"));
    let export = CacheExport {
        place,
        is_max,
        codec: codec(kind.as_deref(), level.as_deref())?,
        force_compression: flag(attributes, "force-compression")?.unwrap_or(false),
        is_required: ignores_errors == Some(false),
    };
    spec.end()?;
    Ok(Some(export))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(from: &[&str], to: &[&str]) -> Result<CacheFlags, String> {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        CacheFlags::parse(&own(from), &own(to)).map_err(|failure| format!("{failure:?}"))
    }

    fn registry(name: &str) -> CachePlace {
        let reference = ImageRef::parse_normalized(name).expect(name);
        CachePlace::Registry { reference, is_insecure: false }
    }

    #[test]
    fn bare_names_are_repositories() {
        let flags = both(&["a/b,host.example/c:d", "type=registry,ref=e"], &["f"]).expect("valid");
        let expected = ["a/b:latest", "host.example/c:d", "e:latest"].map(registry);
        assert_eq!(flags.from, expected);
        assert_eq!(flags.to[0].place, registry("f:latest"));
        assert!(!flags.to[0].is_max && !flags.to[0].is_required && !flags.is_inline);
    }

    #[test]
    fn attributes_are_those_of_buildx() {
        let to = [
            "type=local,dest=/x,mode=max,tag=t,compression=zstd,compression-level=7,force-compression=true,oci-mediatypes=true",
            "type=registry,ref=r:1,mode=min,ignore-error=false,image-manifest=true,registry.insecure=true",
            "type=inline",
            "type=inline,mode=min",
        ];
        let flags = both(&["type=local,src=/y,tag=t"], &to).expect("valid");
        assert_eq!(flags.from, [CachePlace::Directory("/y".into())]);
        let [local, remote] = &flags.to[..] else { panic!("two places: {flags:?}") };
        assert_eq!(local.place, CachePlace::Directory("/x".into()));
        assert_eq!((local.is_max, local.codec), (true, Some(cache::Codec::Zstd { level: 7 })));
        assert!(local.force_compression && !local.is_required);
        assert!(remote.is_required && flags.is_inline);
        assert_eq!(flags.insecure_registries().collect::<Vec<_>>(), ["docker.io"]);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let cases: [(&[&str], &[&str], &str); 13] = [
            (&["type=gha"], &[], "caches of type gha are not supported yet"),
            (&[], &["type=s3,bucket=b"], "caches of type s3 are not supported yet"),
            (&[], &["type=azblob"], "not supported yet"),
            (&["type=inline"], &[], "--cache-from type=registry,ref=IMAGE"),
            (&["type=nosuch"], &[], "unknown cache type nosuch"),
            (&["src=x"], &[], "type is required"),
            (&["type=local"], &[], "src is required"),
            (&[], &["type=local,src=x"], "dest is required"),
            (&[], &["type=registry,ref=a,mode=most"], "unknown mode `most`"),
            (&[], &["type=registry,ref=a,ingore-error=true"], "did you mean `ignore-error`?"),
            (&[], &["type=registry,ref=A"], "invalid ref"),
            (&[], &["a,a"], "duplicate cache exports"),
            (&["type=registry,ref=a,mode=max"], &[], "have no attribute `mode` here"),
        ];
        for (from, to, expected) in cases {
            let error = both(from, to).expect_err(expected);
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
