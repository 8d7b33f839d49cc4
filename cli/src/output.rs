//! `--output`: where the result goes (`spec/cli.md` §1.4, `spec/engine.md` §1).

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use oci::{Digest, ImageRef};
use solver::OpError;

use crate::annotations::{Annotations, is_annotation};
use crate::csv;
use crate::failure::Failure;
use crate::mistakes;
use crate::request::parse_tag;

/// One destination.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output {
    /// The local image store.
    Image(ImageOptions),
    /// An OCI layout, as tar or directory.
    Oci {
        /// Names and compression.
        options: ImageOptions,
        /// Where.
        dest: Dest,
        /// A tar; otherwise a directory.
        tar: bool,
    },
    /// A tar that `docker load` takes.
    Docker {
        /// Names and compression.
        options: ImageOptions,
        /// Where.
        dest: Dest,
    },
    /// A container engine.
    Load {
        /// Names and compression.
        options: ImageOptions,
        /// Which: a docker context, an address, or a kind of engine. `None` is whichever there is.
        context: Option<String>,
    },
    /// The files of the root, as a directory.
    Local {
        /// Where.
        dest: PathBuf,
        /// A directory for each platform; `None` if there are several.
        split: Option<bool>,
        /// `SOURCE_DATE_EPOCH` of this output, in place of the build's.
        epoch: Option<i64>,
    },
    /// The files of the root, as a tar.
    Tar {
        /// Where.
        dest: Dest,
        /// `SOURCE_DATE_EPOCH` of this output, in place of the build's.
        epoch: Option<i64>,
    },
    /// Nothing.
    CacheOnly,
}

/// A file or standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dest {
    /// `dest=FILE`.
    File(PathBuf),
    /// `dest=-`, or none.
    Stdout,
}

/// Attributes of outputs that are images.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ImageOptions {
    /// Names of the image.
    pub(crate) names: Vec<ImageRef>,
    /// How layers are compressed; `None` is the output's own default.
    pub(crate) codec: Option<cache::Codec>,
    /// Recompress the base image's layers too.
    pub(crate) force_compression: bool,
    /// Docker media types instead of OCI's.
    pub(crate) docker_types: bool,
    /// Annotations of manifests and index.
    pub(crate) annotations: Annotations,
    /// How it goes to the registries that its names say; `None` when it stays.
    pub(crate) push: Option<PushOptions>,
    /// It is not named in the local store.
    pub(crate) is_unnamed: bool,
    /// No time in layers of this build is later than the epoch.
    pub(crate) rewrite_timestamp: bool,
    /// `SOURCE_DATE_EPOCH` of this output, in place of the build's.
    pub(crate) epoch: Option<i64>,
    /// The image is identified by its manifest or index, not by its config.
    pub(crate) prefers_image_digest: bool,
    /// Layers of the base that are not to be pushed stay so.
    pub(crate) keeps_nondistributable: bool,
    /// The image gets the name `PREFIX@DIGEST` as well.
    pub(crate) dangling_prefix: Option<DanglingPrefix>,
}

/// How an image is named by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DanglingPrefix {
    /// What stands before the `@`.
    prefix: ImageRef,
    /// Only an image without another name.
    is_for_nameless: bool,
}

/// How an image goes to registries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PushOptions {
    /// The registries need no valid certificate, and may speak plain HTTP.
    pub(crate) is_insecure: bool,
}

/// How an output is given.
const OUTPUT_FORM: &str =
    "write `-o type=oci,dest=FILE`; types are image, registry, oci, docker, local, tar and cacheonly";

/// Short flags for outputs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shorthands {
    /// `--push`
    pub(crate) push: bool,
    /// `--load`
    pub(crate) load: bool,
}

/// Parses all `--output` flags. Without any, the result goes to the local store under `tags`; or with `--push` to
/// the registries of those names alone, while images that were to go to the local store go to both; `--load` adds a container
/// engine. Images get `annotations`.
pub(crate) fn parse_all(
    specs: &[String],
    tags: &[ImageRef],
    Shorthands { push, load }: Shorthands,
    annotations: &Annotations,
) -> Result<Vec<Output>, Failure> {
    let mut outputs = parse_specs(specs, tags, push || load)?;
    if load && !outputs.iter().any(|output| matches!(output, Output::Load { .. })) {
        let options = ImageOptions { names: tags.to_vec(), ..ImageOptions::default() };
        outputs.push(Output::Load { options, context: None });
    }
    if push {
        push_images(&mut outputs, tags);
    }
    let is_nameless = |options: &ImageOptions| options.push.is_some() && options.names.is_empty();
    if outputs.iter_mut().filter_map(Output::image_options).any(|options| is_nameless(options)) {
        return Err(Failure::usage("tag is needed when pushing to registry")
            .help("name the image: `-t registry.example.com/team/app:1.0`"));
    }
    // Only `push-by-digest` leaves names without a tag.
    let is_untagged = |options: &ImageOptions| options.names.iter().any(ImageRef::is_name_only);
    if outputs
        .iter_mut()
        .filter_map(Output::image_options)
        .any(|options| options.push.is_none() && is_untagged(options))
    {
        return Err(Failure::usage("push-by-digest means nothing without push=true or --push"));
    }
    if annotations.is_empty() {
        return Ok(outputs);
    }
    let mut images = outputs.iter_mut().filter_map(Output::image_options).peekable();
    if images.peek().is_none() {
        return Err(Failure::usage("--annotation needs an output that is an image"));
    }
    images.try_for_each(|options| options.annotate(annotations))?;
    Ok(outputs)
}

/// What `--push` makes of outputs: those that are images of the store are pushed as well; without one, there is one more.
fn push_images(outputs: &mut Vec<Output>, tags: &[ImageRef]) {
    let push = Some(PushOptions::default());
    let mut is_pushed = false;
    for output in outputs.iter_mut() {
        if let Output::Image(options) = output {
            options.push = options.push.or(push);
            is_pushed = true;
        }
    }
    if !is_pushed {
        outputs.push(Output::Image(ImageOptions {
            names: tags.to_vec(),
            push,
            is_unnamed: true,
            ..ImageOptions::default()
        }));
    }
}

/// `has_others`: a short flag makes an output as well.
fn parse_specs(specs: &[String], tags: &[ImageRef], has_others: bool) -> Result<Vec<Output>, Failure> {
    if specs.is_empty() {
        let local = Output::Image(ImageOptions { names: tags.to_vec(), ..ImageOptions::default() });
        return Ok(if has_others { Vec::new() } else { vec![local] });
    }
    let outputs = specs.iter().map(|spec| parse(spec, tags)).collect::<Result<Vec<_>, _>>()?;
    let stdouts = outputs.iter().filter(|output| output.is_stdout()).count();
    if stdouts > 1 {
        return Err(Failure::usage("multiple outputs configured to write to stdout"));
    }
    if let Some(output) = outputs.iter().find(|output| output.is_stdout())
        && std::io::stdout().is_terminal()
    {
        let kind = output.kind();
        return Err(Failure::usage(format!("dest file is required for {kind} exporter. refusing to write to console")));
    }
    Ok(outputs)
}

impl Output {
    /// Whether standard output is used.
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(
            self,
            Self::Oci { dest: Dest::Stdout, tar: true, .. }
                | Self::Docker { dest: Dest::Stdout, .. }
                | Self::Tar { dest: Dest::Stdout, .. }
        )
    }

    /// Registries that need no valid certificate.
    pub(crate) fn insecure_registries(&self) -> Vec<String> {
        match self {
            Self::Image(ImageOptions { push: Some(PushOptions { is_insecure: true, .. }), names, .. }) => {
                names.iter().map(|name| name.registry().to_owned()).collect()
            }
            _ => Vec::new(),
        }
    }

    fn image_options(&mut self) -> Option<&mut ImageOptions> {
        match self {
            Self::Image(options)
            | Self::Oci { options, .. }
            | Self::Docker { options, .. }
            | Self::Load { options, .. } => Some(options),
            Self::Local { .. } | Self::Tar { .. } | Self::CacheOnly => None,
        }
    }

    /// As written after `type=`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Image(_) => "image",
            Self::Oci { .. } => "oci",
            Self::Docker { .. } | Self::Load { .. } => "docker",
            Self::Local { .. } => "local",
            Self::Tar { .. } => "tar",
            Self::CacheOnly => "cacheonly",
        }
    }
}

impl ImageOptions {
    /// The name that `dangling-name-prefix` asks for.
    pub(crate) fn name_by_digest(&self, digest: &Digest) -> Result<Option<ImageRef>, OpError> {
        let Some(DanglingPrefix { prefix, is_for_nameless }) = &self.dangling_prefix else { return Ok(None) };
        if *is_for_nameless && !self.names.is_empty() {
            return Ok(None);
        }
        let name = ImageRef::parse_normalized(&format!("{prefix}@{digest}"));
        name.map(Some).map_err(|error| OpError::internal(format!("`{prefix}` cannot have a digest: {error}")))
    }

    fn annotate(&mut self, annotations: &Annotations) -> Result<(), Failure> {
        self.annotations.extend(annotations);
        if self.docker_types && !self.annotations.is_empty() {
            return Err(Failure::usage("cannot export annotations with \"oci-mediatypes=false\"")
                .help("documents of Docker's media types have none: leave out one of the two"));
        }
        Ok(())
    }
}

fn parse(spec: &str, tags: &[ImageRef]) -> Result<Output, Failure> {
    if spec == "-" {
        return Ok(Output::Tar { dest: Dest::Stdout, epoch: None });
    }
    if !spec.contains('=') && !spec.contains(',') {
        return local(Some(spec.to_owned()), None, None);
    }
    let mut attributes = BTreeMap::new();
    for field in csv::fields(spec).map_err(|error| Failure::usage(format!("invalid --output `{spec}`: {}", error.0)))? {
        let (key, value) = csv::pair(&field)
            .ok_or_else(|| Failure::usage(format!("--output {spec}: invalid value {field}")).help(OUTPUT_FORM))?;
        attributes.insert(key, value);
    }
    let kind = attributes
        .remove("type")
        .ok_or_else(|| Failure::usage(format!("--output {spec}: type is required for output")).help(OUTPUT_FORM))?;
    let dest = attributes.remove("dest");
    let output = match kind.as_str() {
        "image" => Output::Image(pushed_options(&mut attributes, tags)?),
        "registry" => {
            attributes.insert("push".to_owned(), "true".to_owned());
            Output::Image(ImageOptions { is_unnamed: true, ..pushed_options(&mut attributes, tags)? })
        }
        "oci" => {
            let tar = flag(&mut attributes, "tar")?.unwrap_or(true);
            let options = image_options(&mut attributes, tags)?;
            if !tar && dest.as_deref().is_none_or(|dest| dest == "-") {
                return Err(Failure::usage("dest is required for oci exporter with tar=false"));
            }
            Output::Oci { options, dest: file_or_stdout(dest), tar }
        }
        "docker" => {
            let context = attributes.remove("context");
            let options = image_options(&mut attributes, tags)?;
            match (dest, context) {
                (None, context) => Output::Load { options, context },
                (dest, None) => Output::Docker { options, dest: file_or_stdout(dest) },
                (Some(_), Some(_)) => {
                    return Err(Failure::usage(
                        "an image goes to a file (dest) or to an engine (context), not to both",
                    )
                    .help("write two outputs: `-o type=docker,dest=FILE -o type=docker,context=NAME`"));
                }
            }
        }
        "local" => {
            let split = explicit_flag(&mut attributes, "platform-split")?;
            local(dest, split, epoch(&mut attributes)?)?
        }
        "tar" => Output::Tar { dest: file_or_stdout(dest), epoch: epoch(&mut attributes)? },
        "cacheonly" => Output::CacheOnly,
        other => {
            return Err(Failure::usage(format!("exporter \"{other}\" could not be found"))
                .help("rbuild knows image, registry, oci, docker, local, tar and cacheonly"));
        }
    };
    match attributes.keys().next() {
        Some(unknown) => Err(unknown_attribute(&kind, unknown)),
        None => Ok(output),
    }
}

/// Attributes of the outputs, for suggestions.
const ATTRIBUTES: [&str; 23] = [
    "danging-name-empty-only",
    "dangling-name-prefix",
    "prefer-nondist-layers",
    "attestation-inline",
    "oci-artifact",
    "prefer-image-digest",
    "context",
    "dest",
    "name",
    "tar",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "platform-split",
    "name-canonical",
    "push",
    "push-by-digest",
    "registry.insecure",
    "store",
    "unpack",
    "rewrite-timestamp",
    "source-date-epoch",
];

fn unknown_attribute(kind: &str, key: &str) -> Failure {
    let failure = Failure::usage(format!("the {kind} exporter has no attribute `{key}`"));
    match mistakes::nearest(key, ATTRIBUTES) {
        Some(name) => failure.help(format!("did you mean `{name}`?")),
        None => failure,
    }
}

fn local(dest: Option<String>, split: Option<bool>, epoch: Option<i64>) -> Result<Output, Failure> {
    match dest.as_deref() {
        None | Some("") => {
            Err(Failure::usage("dest is required for local exporter")
                .help("name a directory: `-o type=local,dest=out`"))
        }
        Some("-") => Err(Failure::usage("dest cannot be stdout for local exporter")
            .help("a tar goes to standard output: `-o type=tar,dest=-`")),
        Some(dest) if std::path::Path::new(dest).is_file() => {
            Err(Failure::usage(format!("destination directory {dest} is a file"))
                .help("remove it, or name another directory"))
        }
        Some(dest) => Ok(Output::Local { dest: dest.into(), split, epoch }),
    }
}

fn file_or_stdout(dest: Option<String>) -> Dest {
    dest.filter(|dest| dest != "-").map_or(Dest::Stdout, |dest| Dest::File(dest.into()))
}

/// The options of an image that may be pushed.
fn pushed_options(attributes: &mut BTreeMap<String, String>, tags: &[ImageRef]) -> Result<ImageOptions, Failure> {
    // Layers lie unpacked in the store, and images are found by their digests, whether somebody asks for it or not.
    for attribute in ["unpack", "name-canonical"] {
        let _has_no_effect = flag(attributes, attribute)?;
    }
    let by_digest = flag(attributes, "push-by-digest")?.unwrap_or(false);
    let is_insecure = flag(attributes, "registry.insecure")?.unwrap_or(false);
    let is_pushed = flag(attributes, "push")?.unwrap_or(false);
    let is_unnamed = flag(attributes, "store")? == Some(false);
    let is_for_nameless = flag(attributes, "danging-name-empty-only")?.unwrap_or(false);
    let prefix = attributes.remove("dangling-name-prefix").filter(|prefix| !prefix.is_empty());
    let dangling_prefix = prefix.map(|prefix| repository(&prefix)).transpose()?;
    let dangling_prefix = dangling_prefix.map(|prefix| DanglingPrefix { prefix, is_for_nameless });
    let untagged = match attributes.get("name").filter(|_| by_digest) {
        Some(names) => Some(names.split(',').map(untagged).collect::<Result<Vec<_>, _>>()?),
        None if by_digest => {
            return Err(Failure::usage("push-by-digest needs a name without a tag")
                .help("`-o type=image,name=registry.example.com/team/app,push-by-digest=true,push=true`"));
        }
        None => None,
    };
    if untagged.is_some() {
        attributes.remove("name");
    }
    let options = image_options(attributes, tags)?;
    Ok(ImageOptions {
        is_unnamed: is_unnamed || by_digest,
        push: is_pushed.then_some(PushOptions { is_insecure }),
        names: untagged.unwrap_or(options.names),
        dangling_prefix,
        ..options
    })
}

/// A name without a tag, to which a digest can be added.
fn repository(name: &str) -> Result<ImageRef, Failure> {
    let parsed = parse_name(name)?;
    if parsed.is_name_only() {
        return Ok(parsed);
    }
    Err(Failure::usage(format!("dangling-name-prefix {name} has a tag or a digest")).help("name the repository alone"))
}

fn parse_name(name: &str) -> Result<ImageRef, Failure> {
    ImageRef::parse_normalized(name).map_err(|error| Failure::usage(format!("invalid tag \"{name}\": {error}")))
}

/// A repository.
fn untagged(name: &str) -> Result<ImageRef, Failure> {
    let parsed = parse_name(name)?;
    if parsed.is_name_only() {
        return Ok(parsed);
    }
    Err(Failure::usage(format!("can't push tagged ref {name} by digest")).help("name the repository alone"))
}

fn image_options(attributes: &mut BTreeMap<String, String>, tags: &[ImageRef]) -> Result<ImageOptions, Failure> {
    let names = match attributes.remove("name") {
        Some(names) => names.split(',').map(parse_tag).collect::<Result<_, _>>()?,
        None => tags.to_vec(),
    };
    let kind = attributes.remove("compression");
    let level = attributes.remove("compression-level");
    let annotations: Vec<String> = attributes.keys().filter(|key| is_annotation(key)).cloned().collect();
    let annotations = annotations.into_iter().filter_map(|key| attributes.remove_entry(&key));
    let annotations = Annotations::parse(annotations)?;
    let docker_types = flag(attributes, "oci-mediatypes")? == Some(false);
    // They are about attestations, of which a build makes none, and about a format that nobody reads any more.
    let _has_no_effect = explicit_flag(attributes, "attestation-inline")?;
    if explicit_flag(attributes, "oci-artifact")? == Some(true) && docker_types {
        return Err(Failure::usage("oci-artifact=true cannot be used with oci-mediatypes=false"));
    }
    for legacy in ["buildinfo", "buildinfo-attrs"] {
        attributes.remove(legacy);
    }
    let mut options = ImageOptions {
        names,
        codec: codec(kind.as_deref(), level.as_deref())?,
        force_compression: flag(attributes, "force-compression")?.unwrap_or(false),
        docker_types,
        annotations: Annotations::default(),
        push: None,
        is_unnamed: false,
        rewrite_timestamp: explicit_flag(attributes, "rewrite-timestamp")?.unwrap_or(false),
        epoch: epoch(attributes)?,
        prefers_image_digest: flag(attributes, "prefer-image-digest")?.unwrap_or(false),
        keeps_nondistributable: explicit_flag(attributes, "prefer-nondist-layers")?.unwrap_or(false),
        dangling_prefix: None,
    };
    if options.docker_types && matches!(options.codec, Some(cache::Codec::Estargz { .. })) {
        return Err(Failure::usage("compression=estargz cannot be used with oci-mediatypes=false")
            .help("Docker's media types have no place for what readers of the format want: leave out one of the two"));
    }
    options.annotate(&annotations)?;
    Ok(options)
}

/// What `compression` and `compression-level` say; `None` when they say nothing.
pub(crate) fn codec(kind: Option<&str>, level: Option<&str>) -> Result<Option<cache::Codec>, Failure> {
    let level = level.map(|text| {
        text.parse::<i32>()
            .map_err(|_| Failure::usage(format!("non-integer value {text} specified for compression-level")))
    });
    let level = level.transpose()?.filter(|level| *level >= 0);
    let clamp = |most: u8, default: u8| level.map_or(default, |level| u8::try_from(level).unwrap_or(most).min(most));
    match kind {
        None if level.is_some() => Ok(Some(cache::Codec::Gzip { level: clamp(9, DEFAULT_GZIP_LEVEL) })),
        None => Ok(None),
        Some("uncompressed") => Ok(Some(cache::Codec::Plain)),
        Some("gzip") => Ok(Some(cache::Codec::Gzip { level: clamp(9, DEFAULT_GZIP_LEVEL) })),
        Some("zstd") => Ok(Some(cache::Codec::Zstd { level: clamp(22, DEFAULT_ZSTD_LEVEL).max(1) })),
        Some("estargz") => Ok(Some(cache::Codec::Estargz { level: clamp(9, DEFAULT_GZIP_LEVEL) })),
        Some(other) => Err(Failure::usage(format!("unsupported compression type {other}"))
            .help("compression is gzip, zstd, estargz or uncompressed")),
    }
}

/// libdeflate's level 4 gives the size of zlib's 6 in a quarter of its time (design, §4.3).
pub(crate) const DEFAULT_GZIP_LEVEL: u8 = 4;
/// zstd's own default.
pub(crate) const DEFAULT_ZSTD_LEVEL: u8 = 3;

/// `source-date-epoch`: seconds.
fn epoch(attributes: &mut BTreeMap<String, String>) -> Result<Option<i64>, Failure> {
    match attributes.remove("source-date-epoch").as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            Failure::usage(format!("invalid value specified for source-date-epoch: {text}"))
                .help("it is a number of seconds since 1970: `source-date-epoch=$(git log -1 --format=%ct)`")
        }),
    }
}

/// A boolean attribute that must have a value (`spec/engine.md` §1.2).
pub(crate) fn explicit_flag(attributes: &mut BTreeMap<String, String>, key: &str) -> Result<Option<bool>, Failure> {
    if attributes.get(key).is_some_and(String::is_empty) {
        return Err(Failure::usage(format!("non-bool value specified for {key}: ")).help(format!("write `{key}=true`")));
    }
    flag(attributes, key)
}

/// A boolean attribute; empty is true, as for the flags of `spec/engine.md` §1.2.
pub(crate) fn flag(attributes: &mut BTreeMap<String, String>, key: &str) -> Result<Option<bool>, Failure> {
    match attributes.remove(key).as_deref() {
        None => Ok(None),
        Some("" | "1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(Some(true)),
        Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(Some(false)),
        Some(other) => Err(Failure::usage(format!("non-bool value specified for {key}: {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(spec: &str) -> Result<Output, Failure> {
        parse(spec, &[])
    }

    #[test]
    fn forms_of_outputs() {
        assert_eq!(one("out").expect("path"), Output::Local { dest: "out".into(), split: None, epoch: None });
        assert_eq!(one("-").expect("dash"), Output::Tar { dest: Dest::Stdout, epoch: None });
        assert_eq!(one("type=tar,dest=x").expect("tar"), Output::Tar { dest: Dest::File("x".into()), epoch: None });
        assert_eq!(one("type=cacheonly").expect("cacheonly"), Output::CacheOnly);
        match one("type=oci,dest=x.tar,compression=zstd,compression-level=9").expect("oci") {
            Output::Oci { options, dest, tar } => {
                assert_eq!(options.codec, Some(cache::Codec::Zstd { level: 9 }));
                assert_eq!(dest, Dest::File("x.tar".into()));
                assert!(tar);
            }
            other => panic!("{other:?}"),
        }
        match one("type=image,oci-artifact=false,attestation-inline=true,prefer-image-digest=true,buildinfo=1")
            .expect("image")
        {
            Output::Image(options) => assert!(options.prefers_image_digest),
            other => panic!("{other:?}"),
        }
        match one("type=image,compression=estargz").expect("image") {
            Output::Image(options) => assert_eq!(options.codec, Some(cache::Codec::Estargz { level: 4 })),
            other => panic!("{other:?}"),
        }
        match one("type=image,rewrite-timestamp=true,source-date-epoch=5").expect("image") {
            Output::Image(options) => assert_eq!((options.rewrite_timestamp, options.epoch), (true, Some(5))),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            one("type=local,dest=out,source-date-epoch=5,platform-split=false").expect("local"),
            Output::Local { dest: "out".into(), split: Some(false), epoch: Some(5) }
        );
    }

    #[test]
    fn engines_are_named_or_found() {
        for (spec, expected) in [
            ("type=docker", None),
            ("type=docker,context=remote", Some("remote")),
            ("type=docker,context=unix:///run/x.sock", Some("unix:///run/x.sock")),
        ] {
            match one(spec).expect(spec) {
                Output::Load { context, .. } => assert_eq!(context.as_deref(), expected, "{spec}"),
                other => panic!("{other:?}"),
            }
        }
        let all = |specs: &[&str], flags| {
            let specs: Vec<String> = specs.iter().map(|spec| (*spec).to_owned()).collect();
            let tags = [parse_tag("app:1").expect("a tag")];
            let outputs = parse_all(&specs, &tags, flags, &Annotations::default()).expect("outputs");
            outputs.iter().map(|output| (output.kind(), output.is_stdout())).collect::<Vec<_>>()
        };
        let load = Shorthands { load: true, push: false };
        let both = Shorthands { load: true, push: true };
        assert_eq!(all(&[], load), [("docker", false)]);
        assert_eq!(all(&[], both), [("docker", false), ("image", false)]);
        assert_eq!(all(&["type=docker"], load), [("docker", false)]);
        assert_eq!(all(&["type=image"], load), [("image", false), ("docker", false)]);
    }

    #[test]
    fn mistakes_in_outputs() {
        for spec in [
            "type=local",
            "type=local,dest=-",
            "type=nosuch",
            "dest=x",
            "type=oci,dest=x,tar=maybe",
            "type=oci,x",
            "type=oci,dest=x,compression=lzma",
            "type=oci,dest=x,compression=gzip,compression-level=high",
            "type=oci,tar=false",
            "type=tar,dest=x,surprise=1",
            "type=docker,dest=x,context=y",
            "type=oci,dest=x,compression=estargz,oci-mediatypes=false",
            "type=oci,dest=x,oci-artifact=true,oci-mediatypes=false",
            "type=oci,dest=x,attestation-inline=maybe",
            "type=oci,dest=x,context=y",
            "type=tar,dest=x,rewrite-timestamp=true",
            "type=image,rewrite-timestamp",
            "type=image,prefer-nondist-layers",
            "type=image,dangling-name-prefix=a:1",
            "type=oci,dest=x,dangling-name-prefix=a",
            "type=image,rewrite-timestamp=maybe",
            "type=image,source-date-epoch=yesterday",
            "type=local,dest=out,platform-split",
            "type=tar,dest=x,platform-split=false",
            "type=oci,dest=x,oci-mediatypes=false,annotation.k=v",
            "type=oci,dest=x,annotation-layer.k=v",
        ] {
            assert!(one(spec).is_err(), "{spec}");
        }
    }
}
