//! Flags of the commands about images.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};

use super::{BuildArgs, PullArgs, PushArgs};

/// `rbuild image …`.
#[derive(Subcommand, Debug)]
pub(crate) enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Show everything about images as JSON
    Inspect(InspectArgs),
    /// Show how an image came about
    History(HistoryArgs),
    /// Send images to their registries
    Push(PushArgs),
    /// Fetch images from registries
    Pull(PullArgs),
    /// Write images into a tar that docker, podman and skopeo read
    Save(SaveArgs),
    /// Read images from a tar: a docker archive or an OCI layout
    Load(LoadArgs),
    /// Remove images without a name, or all of them
    Prune(ImagePruneArgs),
}

/// `rbuild images`.
#[derive(Args, Debug)]
pub(crate) struct ImagesArgs {
    /// Only images with this name: `repository`, `repository:tag`, or a pattern with `*` and `?`
    pub(crate) repository: Option<String>,
    /// Only images that match: `dangling=true`, `label=KEY[=VALUE]`, `reference=PATTERN`, `before=IMAGE`, `since=IMAGE`,
    /// `until=24h` (repeatable)
    #[arg(short, long = "filter", value_name = "FILTER", action = ArgAction::Append)]
    pub(crate) filters: Vec<String>,
    /// Only image IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Whole image IDs
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Show manifest digests
    #[arg(long)]
    pub(crate) digests: bool,
    /// Accepted for habit's sake: there are no hidden intermediate images
    #[arg(short, long)]
    pub(crate) all: bool,
    /// `table`, `json` (one object a line), a Go template, or `table TEMPLATE`. Fields: .ID .Repository .Tag .Digest
    /// .CreatedSince .CreatedAt .Size .Platforms
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub(crate) format: String,
}

/// `rbuild tag`.
#[derive(Args, Debug)]
pub(crate) struct TagArgs {
    /// An image: name, ID or the beginning of an ID
    pub(crate) source: String,
    /// Its new name
    pub(crate) target: String,
}

/// `rbuild rmi`.
#[derive(Args, Debug)]
pub(crate) struct RmiArgs {
    /// Remove all names of an image given by ID; images that are not there are no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Accepted for habit's sake: what an image leaves behind is build cache
    #[arg(long)]
    pub(crate) no_prune: bool,
    /// Images: names, IDs or beginnings of IDs
    #[arg(required = true)]
    pub(crate) images: Vec<String>,
}

/// `rbuild image prune`.
#[derive(Args, Debug)]
pub(crate) struct ImagePruneArgs {
    /// All images, not only those without a name
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only images that match: `until=24h`, `label=KEY[=VALUE]`, `label!=KEY[=VALUE]` (repeatable)
    #[arg(long = "filter", value_name = "FILTER", action = ArgAction::Append)]
    pub(crate) filters: Vec<String>,
}

/// `rbuild inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// Go template instead of JSON: `{{.Config.Env}}`, `{{json .Config}}`; `json` is one object a line
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Which image of several platforms [default: this machine's, else the first]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Kind of object: only `image` is known here
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// Accepted for habit's sake: sizes are always shown
    #[arg(short, long)]
    pub(crate) size: bool,
    /// Images: names, IDs or beginnings of IDs
    #[arg(required = true)]
    pub(crate) images: Vec<String>,
}

/// `rbuild history`.
#[derive(Args, Debug)]
pub(crate) struct HistoryArgs {
    /// Whole IDs and commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Only IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Sizes and times for people; `--human=false` has bytes and dates
    #[arg(short = 'H', long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "true", value_parser = super::boolean, hide_possible_values = true)]
    pub(crate) human: bool,
    /// `table`, `json` (one object a line), a Go template, or `table TEMPLATE`. Fields: .ID .CreatedSince .CreatedAt
    /// .CreatedBy .Size .Comment
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub(crate) format: String,
    /// Which image of several platforms [default: this machine's, else the first]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// An image: name, ID or the beginning of an ID
    pub(crate) image: String,
}

/// `rbuild save`.
#[derive(Args, Debug)]
pub(crate) struct SaveArgs {
    /// The file [default: standard output, unless that is a terminal]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Only the image of this platform
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// How layers that were built here are compressed: `uncompressed`, `gzip` or `zstd` [default: uncompressed, so that
    /// digests stay]
    #[arg(long, value_name = "NAME")]
    pub(crate) compression: Option<String>,
    /// Images: names, IDs or beginnings of IDs
    #[arg(required = true)]
    pub(crate) images: Vec<String>,
}

/// `rbuild load`.
#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// The file, or the directory of an OCI layout [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Only the image of this platform
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Do not say what was loaded
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `rbuild cp`.
#[derive(Args, Debug)]
pub(crate) struct CpArgs {
    /// Keep owners
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Follow the link that the path ends with
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// Accepted for habit's sake: nothing is printed anyway
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Which image of several platforms [default: this machine's, else the first]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// What: a path in an image
    #[arg(value_name = "IMAGE:PATH")]
    pub(crate) source: String,
    /// Where to; `-` writes a tar to standard output
    #[arg(value_name = "DEST|-")]
    pub(crate) dest: String,
}

/// `rbuild manifest …`.
#[derive(Subcommand, Debug)]
pub(crate) enum ManifestCommand {
    /// Print the manifest or index of an image, as it is here or in its registry
    Inspect(ManifestInspectArgs),
}

/// `rbuild manifest inspect`.
#[derive(Args, Debug)]
pub(crate) struct ManifestInspectArgs {
    /// With the manifests that an index lists, and where they are
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Allow plain HTTP and unverified TLS
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Name of an image
    pub(crate) name: String,
}

/// `rbuild imagetools …`.
#[derive(Subcommand, Debug)]
pub(crate) enum ImagetoolsCommand {
    /// Show an image of a registry
    Inspect(ImagetoolsInspectArgs),
    /// Make an image of other images
    Create(ImagetoolsCreateArgs),
}

/// `rbuild imagetools inspect`.
#[derive(Args, Debug)]
pub(crate) struct ImagetoolsInspectArgs {
    /// Print the exact bytes of the manifest or index
    #[arg(long, conflicts_with = "format")]
    pub(crate) raw: bool,
    /// Go template. Fields: .Name .Manifest .Image .Provenance .SBOM
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Accepted for scripts; rbuild has no builders
    #[arg(long, hide = true)]
    pub(crate) builder: Option<String>,
    /// Name of an image
    pub(crate) name: String,
}

/// `rbuild imagetools create`.
#[derive(Args, Debug)]
pub(crate) struct ImagetoolsCreateArgs {
    /// Name of the result (repeatable)
    #[arg(short = 't', long = "tag", value_name = "NAME", action = ArgAction::Append)]
    pub(crate) tags: Vec<String>,
    /// File with a descriptor, or with an index, as a source (repeatable)
    #[arg(short = 'f', long = "file", value_name = "FILE", action = ArgAction::Append)]
    pub(crate) files: Vec<PathBuf>,
    /// Add to what the name stands for already
    #[arg(long)]
    pub(crate) append: bool,
    /// Annotation: `KEY=VALUE`, `index:KEY=VALUE`, `manifest-descriptor[linux/amd64]:KEY=VALUE` (repeatable)
    #[arg(long = "annotation", value_name = "[TYPE:]K=V", action = ArgAction::Append)]
    pub(crate) annotations: Vec<String>,
    /// Only these platforms of the sources (repeatable)
    #[arg(short = 'p', long = "platform", value_name = "OS/ARCH[,…]", action = ArgAction::Append, value_delimiter = ',')]
    pub(crate) platforms: Vec<String>,
    /// Make an index also of one manifest; `--prefer-index=false` copies it as it is
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true",
        value_parser = super::boolean, hide_possible_values = true)]
    pub(crate) prefer_index: bool,
    /// Print what would be pushed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write facts about the result to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Accepted for scripts; rbuild has no builders
    #[arg(long, hide = true)]
    pub(crate) builder: Option<String>,
    /// How progress is shown: `auto`, `plain`, `tty`, `rawjson`, `quiet` or `none`
    #[arg(long, value_name = "MODE", env = "BUILDKIT_PROGRESS", default_value = "auto")]
    pub(crate) progress: String,
    /// Names of images, or digests in the repository of the result
    #[arg(value_name = "SOURCE")]
    pub(crate) sources: Vec<String>,
}

/// `rbuild merge`.
#[derive(Args, Debug)]
pub(crate) struct MergeArgs {
    /// Name of the result (repeatable)
    #[arg(short = 't', long = "tag", value_name = "NAME", action = ArgAction::Append, required = true)]
    pub(crate) tags: Vec<String>,
    /// Push the result to the registries that its names say; without it the result is a local image
    #[arg(long)]
    pub(crate) push: bool,
    /// Annotation: `KEY=VALUE`, `index:KEY=VALUE`, `manifest-descriptor[linux/amd64]:KEY=VALUE` (repeatable)
    #[arg(long = "annotation", value_name = "[TYPE:]K=V", action = ArgAction::Append)]
    pub(crate) annotations: Vec<String>,
    /// Write facts about the result to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Print only the digest
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Images: local names and IDs, `docker://REF` or names in registries, OCI layouts and archives by path, or digests in
    /// the repository of the result
    #[arg(required = true, value_name = "SOURCE")]
    pub(crate) sources: Vec<String>,
}

/// `rbuild diff`.
#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// `text` or `json`
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    pub(crate) format: String,
    /// Which image of several platforms [default: this machine's, else the first]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// An image: local name or ID, OCI layout or archive by path, or a name in a registry
    pub(crate) a: String,
    /// Another
    pub(crate) b: String,
}

/// `rbuild repro`.
#[derive(Args, Debug)]
pub(crate) struct ReproArgs {
    /// `text` or `json`
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    pub(crate) format: String,
    #[command(flatten)]
    pub(crate) build: Box<BuildArgs>,
}
