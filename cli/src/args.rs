//! The command line as typed: flags and their help, nothing checked beyond syntax. [`crate::request`] checks.

mod explain;
mod images;
mod store;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use executor::cdi::{Catalog, DIRECTORIES};
use executor::sandbox::Confinement;
use executor::sandbox::probe::TierFact;

pub(crate) use explain::*;
pub(crate) use images::*;
pub(crate) use store::*;

/// Build OCI images from Dockerfiles, without a daemon
#[derive(Parser, Debug)]
#[command(
    name = "rbuild",
    version,
    disable_help_subcommand = true,
    override_usage = "rbuild [OPTIONS] PATH|URL|-\n       rbuild COMMAND [OPTIONS]",
    after_help = "`rbuild [OPTIONS] PATH` is short for `rbuild build [OPTIONS] PATH`. A directory that is called like a \
                  command is given as `./images`."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Directory of images, layers and cache [default: $RBUILD_STORE, else /var/lib/rbuild for root, else
    /// $XDG_DATA_HOME/rbuild]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Explain more: expanded warnings, a trace of decisions on standard error
    #[arg(short = 'D', long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", value_parser = boolean, hide_default_value = true, hide_possible_values = true)]
    pub(crate) debug: bool,
    /// How steps are kept apart from this machine: `auto`, `root`, `userns`, `userns-single`, `chroot` or `oci:RUNTIME`
    #[arg(long, global = true, value_name = "MODE", env = "RBUILD_ISOLATION", default_value = "auto")]
    pub(crate) isolation: String,
    /// Directory with descriptions of devices (CDI) for `RUN --device`, in place of /etc/cdi, /var/run/cdi and
    /// /etc/buildkit/cdi; what is in a later one wins (repeatable)
    #[arg(long = "cdi-spec-dir", global = true, value_name = "DIR", env = "RBUILD_CDI_SPEC_DIRS", hide_env_values = true,
        value_delimiter = ':', action = ArgAction::Append)]
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    /// What came of it; found out before anything else is done.
    #[arg(skip)]
    pub(crate) confinement: Confinement,
    /// What could have come of it, for `doctor` alone.
    #[arg(skip)]
    pub(crate) tiers: Vec<TierFact>,
}

impl Global {
    /// The devices that descriptions tell of.
    pub(crate) fn devices(&self) -> Catalog {
        match self.cdi_spec_dirs.is_empty() {
            true => Catalog::new(DIRECTORIES.iter().map(PathBuf::from).collect()),
            false => Catalog::new(self.cdi_spec_dirs.clone()),
        }
    }
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(Box<BuildArgs>),
    /// Run a command in an image
    Run(RunArgs),
    /// List images
    #[command(visible_alias = "ls")]
    Images(ImagesArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Show everything about images as JSON
    Inspect(InspectArgs),
    /// Show how an image came about
    History(HistoryArgs),
    /// Work with images: the same commands by their other names
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Write images into a tar that docker, podman and skopeo read
    Save(SaveArgs),
    /// Read images from a tar: a docker archive or an OCI layout
    Load(LoadArgs),
    /// Copy files out of an image
    Cp(CpArgs),
    /// Show manifests
    Manifest {
        #[command(subcommand)]
        command: ManifestCommand,
    },
    /// Show and combine images in registries, without moving their layers here
    Imagetools {
        #[command(subcommand)]
        command: ImagetoolsCommand,
    },
    /// Show what differs between two images
    Diff(DiffArgs),
    /// Say why steps of a build were performed, and what changed
    Explain(ExplainArgs),
    /// List the last builds
    Builds(BuildsArgs),
    /// Look at build contexts
    Context {
        #[command(subcommand)]
        command: ContextCommand,
    },
    /// Build twice, from nothing but the base images, and show what came out differently
    Repro(ReproArgs),
    /// Combine images of several platforms, built apart, into one
    Merge(MergeArgs),
    /// Send images to their registries
    Push(PushArgs),
    /// Fetch images from registries
    Pull(PullArgs),
    /// Log in to a registry
    Login(LoginArgs),
    /// Log out from a registry
    Logout(LogoutArgs),
    /// Show what the store holds
    Du(DuArgs),
    /// Remove build cache
    Prune(PruneArgs),
    /// Look after the store
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Say what this machine offers for builds, and what is missing
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a directory
    Man {
        /// The directory
        dir: PathBuf,
    },
}

/// `rbuild build`.
#[derive(Args, Debug)]
pub(crate) struct BuildArgs {
    /// The build context: a directory, `-` (a tar, or a Dockerfile, on standard input), a git or http(s) URL
    #[arg(value_name = "PATH|URL|-")]
    pub(crate) context: String,

    #[command(flatten)]
    pub(crate) space: SpaceArgs,
    /// Name of the image: `app:1.0` (repeatable)
    #[arg(short = 't', long = "tag", value_name = "NAME", action = ArgAction::Append)]
    pub(crate) tags: Vec<String>,
    /// The Dockerfile; `-` is standard input [default: PATH/Dockerfile]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) file: Option<String>,
    /// Stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Build argument; without a value it is taken from the environment (repeatable)
    #[arg(long = "build-arg", value_name = "K[=V]", action = ArgAction::Append)]
    pub(crate) build_args: Vec<String>,
    /// Additional context, by name: a path, `docker-image://REF`, `oci-layout://DIR`, a git or http(s) URL (repeatable)
    #[arg(long = "build-context", value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub(crate) build_contexts: Vec<String>,
    /// Platforms of the result: `linux/amd64,linux/arm64`; `local` is this machine's (repeatable) [default:
    /// $DOCKER_DEFAULT_PLATFORM, else this machine's]
    #[arg(long = "platform", value_name = "OS/ARCH[,…]", action = ArgAction::Append)]
    pub(crate) platforms: Vec<String>,

    /// Where the result goes: `type=oci,dest=x.tar`, `type=docker`, `type=local`, `type=tar`, `type=image`,
    /// `type=registry`, `type=cacheonly` (repeatable) [default: the local image store]
    #[arg(short = 'o', long = "output", value_name = "SPEC", action = ArgAction::Append)]
    pub(crate) outputs: Vec<String>,
    /// Push the image to the registries that its names say: short for `--output=type=registry`
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
        value_parser = boolean, hide_default_value = true, hide_possible_values = true)]
    pub(crate) push: bool,
    /// Give the image to the docker, podman or containerd of this machine: short for `--output=type=docker`
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
        value_parser = boolean, hide_default_value = true, hide_possible_values = true)]
    pub(crate) load: bool,
    /// Label of the image (repeatable)
    #[arg(long = "label", value_name = "K=V", action = ArgAction::Append)]
    pub(crate) labels: Vec<String>,
    /// Annotation of the image: `KEY=VALUE`, `index:KEY=VALUE`, `manifest[linux/amd64]:KEY=VALUE` (repeatable)
    #[arg(long = "annotation", value_name = "[TYPE:]K=V", action = ArgAction::Append)]
    pub(crate) annotations: Vec<String>,
    /// Write the image ID to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,
    /// Write facts about the result to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,

    /// Take results of steps from a cache elsewhere: `REF`, `type=registry,ref=REF`, `type=local,src=DIR`
    /// (repeatable); `REF` may be an image made with `--cache-to type=inline`
    #[arg(long, value_name = "CACHE", action = ArgAction::Append)]
    pub(crate) cache_from: Vec<String>,
    /// Give results of steps to a cache elsewhere: `REF`, `type=registry,ref=REF,mode=max`, `type=local,dest=DIR`,
    /// `type=inline` (repeatable)
    #[arg(long, value_name = "CACHE", action = ArgAction::Append)]
    pub(crate) cache_to: Vec<String>,
    /// Ignore the cache in all stages
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
        value_parser = boolean, hide_default_value = true, hide_possible_values = true)]
    pub(crate) no_cache: bool,
    /// Ignore the cache in these stages (repeatable)
    #[arg(long, value_name = "STAGE", action = ArgAction::Append, value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,
    /// Ask the registry again for every image
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
        value_parser = boolean, hide_default_value = true, hide_possible_values = true)]
    pub(crate) pull: bool,

    /// Secret for `RUN --mount=type=secret`: `id=ID[,src=FILE|,env=VAR]` (repeatable)
    #[arg(long = "secret", value_name = "SPEC", action = ArgAction::Append)]
    pub(crate) secrets: Vec<String>,
    /// ssh agent or keys for `RUN --mount=type=ssh`: `default`, `ID=SOCKET|KEY` (repeatable)
    #[arg(long = "ssh", value_name = "SPEC", action = ArgAction::Append)]
    pub(crate) ssh: Vec<String>,
    /// Line of /etc/hosts in RUN: `HOST:IP`, or `HOST:host-gateway` for this machine (repeatable)
    #[arg(long = "add-host", value_name = "HOST:IP", action = ArgAction::Append, value_delimiter = ',')]
    pub(crate) add_hosts: Vec<String>,
    /// Network of RUN: `default` (one of the build's own, see docs/network.md), `none` or `host`
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub(crate) network: String,
    /// Privilege that RUN steps may ask for: `network.host`, `security.insecure`, `device` (all), `device=NAME` (repeatable)
    #[arg(long = "allow", value_name = "NAME", action = ArgAction::Append)]
    pub(crate) allow: Vec<String>,
    /// Size of /dev/shm in RUN: `64m`
    #[arg(long, value_name = "BYTES")]
    pub(crate) shm_size: Option<String>,
    /// Resource limit of RUN: `NAME=SOFT[:HARD]` (repeatable)
    #[arg(long = "ulimit", value_name = "SPEC", action = ArgAction::Append)]
    pub(crate) ulimits: Vec<String>,
    /// Parent control group of RUN
    #[arg(long, value_name = "GROUP")]
    pub(crate) cgroup_parent: Option<String>,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Let RUN steps trust the certificate authorities of this machine, or those in FILE (PEM): for proxies and registries
    /// that no image knows. Nothing of it is in the image
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(crate) host_ca: Option<String>,

    /// Check the Dockerfile and build nothing: short for `--call=check`
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
        value_parser = boolean, hide_default_value = true, hide_possible_values = true)]
    pub(crate) check: bool,
    /// What to do: `build`, `check`, `outline` (what the target can be given), `targets` or `subrequests.describe`;
    /// `check,format=json`, `check,format=sarif`, `check,ignorestatus=true`
    #[arg(long, alias = "print", value_name = "METHOD", default_value = "build")]
    pub(crate) call: String,

    /// How progress is shown: `auto`, `plain`, `tty`, `rawjson`, `quiet` or `none`
    #[arg(long, value_name = "MODE", env = "BUILDKIT_PROGRESS", default_value = "auto")]
    pub(crate) progress: String,
    /// Print only the image ID
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", value_parser = boolean, hide_default_value = true, hide_possible_values = true)]
    pub(crate) quiet: bool,
    /// How many steps run at once [default: twice the number of processors]
    #[arg(short = 'j', long, value_name = "N")]
    pub(crate) jobs: Option<usize>,

    #[command(flatten)]
    pub(crate) inactive: InactiveArgs,
}

/// What all RUN steps of a build may use together.
#[derive(Args, Debug, Default)]
pub(crate) struct LimitArgs {
    /// Memory of all RUN steps together: `512m`, `2g`
    #[arg(short = 'm', long, value_name = "BYTES")]
    pub(crate) memory: Option<String>,
    /// Memory and swap together; `-1` is unlimited swap [default: twice --memory]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Processors that all RUN steps together may keep busy: `1.5`
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["cpu_quota", "cpu_period"])]
    pub(crate) cpus: Option<String>,
    /// Weight against other programs, 2 to 262144; 1024 is usual
    #[arg(short = 'c', long, value_name = "WEIGHT")]
    pub(crate) cpu_shares: Option<String>,
    /// Length of a scheduling period, microseconds [default: 100000]
    #[arg(long, value_name = "US")]
    pub(crate) cpu_period: Option<String>,
    /// Processor time in a period, microseconds; `-1` is unlimited
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<String>,
    /// Processors to run on: `0-2,4`
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// The same by name: `memory=2g`, `cpu-quota=50000` (repeatable)
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append, value_delimiter = ',')]
    pub(crate) resource: Vec<String>,
}

/// Flags that scripts pass and that have no effect here. Each says so once, except those that mean what rbuild does
/// anyway.
#[derive(Args, Debug, Default)]
pub(crate) struct InactiveArgs {
    /// Accepted for scripts; rbuild has no builders
    #[arg(long, hide = true, env = "BUILDX_BUILDER")]
    pub(crate) builder: Option<String>,
    /// Attestations
    #[arg(long, hide = true, action = ArgAction::Append)]
    pub(crate) attest: Vec<String>,
    /// Provenance attestation
    #[arg(long, hide = true, overrides_with = "provenance")]
    pub(crate) provenance: Option<String>,
    /// SBOM attestation
    #[arg(long, hide = true, overrides_with = "sbom")]
    pub(crate) sbom: Option<String>,
    /// Security options of the classic builder
    #[arg(long, hide = true, action = ArgAction::Append)]
    pub(crate) security_opt: Vec<String>,
    /// One layer
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", value_parser = boolean)]
    pub(crate) squash: bool,
    /// What rbuild does anyway
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(crate) rm: Option<bool>,
    /// What rbuild does anyway
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(crate) force_rm: Option<bool>,
    /// No context is transferred, so there is nothing to compress
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(crate) compress: Option<bool>,
    /// Content trust is gone from docker too
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(crate) disable_content_trust: Option<bool>,
}

/// `rbuild run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Accepted for habit's sake: nothing is ever kept
    #[arg(long)]
    pub(crate) rm: bool,
    /// Environment variable; without a value it is taken from this environment (repeatable)
    #[arg(short, long = "env", value_name = "K[=V]", action = ArgAction::Append)]
    pub(crate) env: Vec<String>,
    /// User and group: `USER[:GROUP]`
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Replaces the image's ENTRYPOINT
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Host directory or file to mount: `HOST:CONTAINER[:ro]` (repeatable)
    #[arg(short, long = "volume", value_name = "HOST:CONTAINER", action = ArgAction::Append)]
    pub(crate) volumes: Vec<String>,
    /// Network: `host` or `none`
    #[arg(long, value_name = "MODE", default_value = "host")]
    pub(crate) network: String,
    /// Host name inside
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Which image of several platforms [default: this machine's]
    #[arg(long, value_name = "OS/ARCH", env = "DOCKER_DEFAULT_PLATFORM")]
    pub(crate) platform: Option<String>,
    /// The image
    pub(crate) image: String,
    /// Command and arguments instead of the image's CMD
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// `rbuild push`.
#[derive(Args, Debug)]
pub(crate) struct PushArgs {
    /// Every tag of the repository
    #[arg(short, long)]
    pub(crate) all_tags: bool,
    /// How layers that were built here are compressed: `gzip`, `zstd` or `uncompressed` [default: gzip]
    #[arg(long, value_name = "NAME")]
    pub(crate) compression: Option<String>,
    /// How hard: 0 to 9 for gzip, 1 to 22 for zstd
    #[arg(long, value_name = "N")]
    pub(crate) compression_level: Option<String>,
    /// Print only the names
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Names of images: `registry.example.com/team/app:1.0`
    #[arg(required = true, value_name = "NAME")]
    pub(crate) images: Vec<String>,
}

/// `rbuild pull`.
#[derive(Args, Debug)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    pub(crate) space: SpaceArgs,
    /// Platform of the image [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// All platforms of the image, and what else its index lists
    #[arg(long, conflicts_with = "platform")]
    pub(crate) all_platforms: bool,
    /// Print only the names
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Names of images
    #[arg(required = true, value_name = "NAME")]
    pub(crate) images: Vec<String>,
}

/// `rbuild login`.
#[derive(Args, Debug)]
pub(crate) struct LoginArgs {
    /// The user
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// The password; others on this machine can see it: better `--password-stdin`
    #[arg(short, long, value_name = "PASSWORD")]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// Host of the registry [default: docker.io]
    pub(crate) server: Option<String>,
}

/// `rbuild logout`.
#[derive(Args, Debug)]
pub(crate) struct LogoutArgs {
    /// Host of the registry [default: docker.io]
    pub(crate) server: Option<String>,
}

/// `rbuild doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Say how the registry of this image is reached, and ask it
    #[arg(value_name = "REF")]
    pub(crate) reference: Option<String>,
    /// `table` or `json`
    #[arg(long, default_value = "table", value_parser = ["table", "json"])]
    pub(crate) format: String,
}

/// Booleans as Go's `strconv.ParseBool` takes them.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Puts `build` in front of arguments that name no command: `rbuild -t app .` is `rbuild build -t app .`.
///
/// A command's name wins over a directory of that name. Flags of every command may stand before the command.
pub(crate) fn with_default_command(mut args: Vec<String>) -> Vec<String> {
    let command = <Cli as clap::CommandFactory>::command();
    let is_command = |word: &str| {
        let mut commands = command.get_subcommands();
        commands.any(|sub| sub.get_name() == word || sub.get_all_aliases().any(|alias| alias == word))
    };
    let mut index = 1;
    while let Some(word) = args.get(index) {
        match word.as_str() {
            "-h" | "--help" | "-V" | "--version" => return args,
            "--store" | "--isolation" | "--cdi-spec-dir" => index += 2,
            "-D" | "--debug" => index += 1,
            word if ["--store=", "--debug=", "--isolation=", "--cdi-spec-dir="]
                .iter()
                .any(|flag| word.starts_with(flag)) =>
            {
                index += 1
            }
            word if is_command(word) => return args,
            _ => break,
        }
    }
    if args.len() > 1 {
        args.insert(index.min(args.len()), "build".to_owned());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(line: &str) -> String {
        let args = line.split(' ').map(str::to_owned).collect();
        with_default_command(args).join(" ")
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn build_is_the_default_command() {
        assert_eq!(routed("rbuild -t app:1.0 ."), "rbuild build -t app:1.0 .");
        assert_eq!(routed("rbuild ."), "rbuild build .");
        assert_eq!(routed("rbuild --store /s ."), "rbuild --store /s build .");
        assert_eq!(routed("rbuild ./images"), "rbuild build ./images");
        assert_eq!(routed("rbuild images"), "rbuild images");
        assert_eq!(routed("rbuild --store=/s images"), "rbuild --store=/s images");
        assert_eq!(routed("rbuild --help"), "rbuild --help");
        assert_eq!(routed("rbuild"), "rbuild");
    }
}
