//! Checked flags. Nothing behind this module sees a flag.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use executor::run::HostCa;
use executor::sandbox::Resources;
use oci::{ImageRef, Platform};
use solver::plan::{ContextKind, GitUrl, is_http};
use solver::{ExtraHost, NetworkMode, Ulimit};

use crate::annotations::Annotations;
use crate::args::BuildArgs;
use crate::attestations;
use crate::cache_flags::CacheFlags;
use crate::call::Call;
use crate::commands::room::SpaceRequest;
use crate::csv;
use crate::env;
use crate::failure::Failure;
use crate::host_ca;
use crate::limits;
use crate::mistakes;
use crate::output::{self, Output, Shorthands};
use crate::proxies;
use crate::ui::Mode;

/// The most bytes of a secret (`spec/cli.md` §1.5).
const MAX_SECRET_BYTES: u64 = 500 * 1024;

/// How a secret is given.
const SECRET_FORM: &str = "write --secret id=NAME,src=FILE or --secret id=NAME,env=VARIABLE";

/// Platforms that people mean when they mistype one.
const COMMON_PLATFORMS: [&str; 9] = [
    "linux/amd64",
    "linux/arm64",
    "linux/arm/v7",
    "linux/arm/v6",
    "linux/386",
    "linux/riscv64",
    "linux/ppc64le",
    "linux/s390x",
    "windows/amd64",
];

/// What `--allow` can give.
const ENTITLEMENTS: [&str; 3] = ["network.host", "security.insecure", "device"];

/// Everything about one build, checked.
#[derive(Debug)]
pub(crate) struct BuildRequest {
    pub(crate) context: ContextArg,
    pub(crate) dockerfile: DockerfileArg,
    pub(crate) target: Option<String>,
    pub(crate) build_args: BTreeMap<String, String>,
    pub(crate) build_contexts: Vec<(String, String)>,
    pub(crate) platforms: Vec<Platform>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) iidfile: Option<PathBuf>,
    pub(crate) metadata_file: Option<PathBuf>,
    pub(crate) caches: CacheFlags,
    pub(crate) no_cache: bool,
    pub(crate) no_cache_filter: Vec<String>,
    pub(crate) pull: bool,
    pub(crate) secrets: Vec<SecretArg>,
    pub(crate) ssh: Vec<SshArg>,
    pub(crate) add_hosts: Vec<ExtraHost>,
    pub(crate) network: NetworkMode,
    pub(crate) allow: Vec<String>,
    pub(crate) shm_size_bytes: Option<u64>,
    pub(crate) ulimits: Vec<Ulimit>,
    pub(crate) cgroup_parent: Option<String>,
    pub(crate) resources: Resources,
    pub(crate) host_ca: Option<HostCa>,
    pub(crate) space: SpaceRequest,
    pub(crate) progress: Mode,
    pub(crate) quiet: bool,
    pub(crate) jobs: Option<usize>,
    /// A question in place of a build.
    pub(crate) call: Option<Call>,
    /// Said once, before the build.
    pub(crate) warnings: Vec<String>,
}

/// The build context as named.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ContextArg {
    /// A directory.
    Dir(PathBuf),
    /// Standard input: a tar, or a Dockerfile.
    Stdin,
    /// A git or http(s) URL.
    Remote {
        /// As written.
        url: String,
        /// What it says.
        kind: ContextKind,
    },
}

/// The Dockerfile as named.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DockerfileArg {
    /// `Dockerfile` (or `dockerfile`) in the context.
    Default,
    /// A path.
    File(String),
    /// `http://…` or `https://…`.
    Url(String),
    /// Standard input.
    Stdin,
}

/// `--secret`. The value is read when a step asks for it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SecretArg {
    pub(crate) id: String,
    pub(crate) source: SecretSource,
}

/// Where a secret comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SecretSource {
    File(PathBuf),
    Env(String),
}

/// `--ssh`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SshArg {
    pub(crate) id: String,
    /// One agent socket, or private keys.
    pub(crate) paths: Vec<PathBuf>,
}

impl BuildRequest {
    /// Checks everything that can be checked before anything is done.
    pub(crate) fn check(args: BuildArgs) -> Result<Self, Failure> {
        let mut warnings = inactive_warnings(&args)?;
        let mut build_args = build_args(&args.build_args);
        proxies::add(&mut build_args, env::docker_config_dir().as_deref(), &mut warnings);
        let context = context(&args.context, &build_args)?;
        let build_contexts = build_contexts(&args.build_contexts)?;
        let dockerfile = match args.file.as_deref() {
            None => DockerfileArg::Default,
            Some("-") if context == ContextArg::Stdin => {
                return Err(Failure::usage("invalid argument: can't use stdin for both build context and dockerfile"));
            }
            Some("-") => DockerfileArg::Stdin,
            Some(url) if is_http(url) => DockerfileArg::Url(url.to_owned()),
            Some(path) => DockerfileArg::File(path.to_owned()),
        };
        if args.no_cache && !args.no_cache_filter.is_empty() {
            return Err(Failure::usage("--no-cache and --no-cache-filter cannot currently be used together"));
        }
        let caches = CacheFlags::parse(&args.cache_from, &args.cache_to)?;
        let asks_inline = build_args.get("BUILDKIT_INLINE_CACHE").is_some_and(|value| is_true(value));
        let tags = args.tags.iter().map(|tag| parse_tag(tag)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            dockerfile,
            target: args.target,
            build_args,
            platforms: platforms(&args.platforms, &mut warnings)?,
            outputs: output::parse_all(
                &args.outputs,
                &tags,
                Shorthands { push: args.push, load: args.load },
                &Annotations::parse_flags(&args.annotations)?,
            )?,
            labels: args.labels.iter().map(|label| key_value(label)).collect(),
            iidfile: args.iidfile,
            metadata_file: args.metadata_file,
            caches: CacheFlags { is_inline: caches.is_inline || asks_inline, ..caches },
            no_cache: args.no_cache,
            no_cache_filter: args.no_cache_filter,
            pull: args.pull,
            secrets: args.secrets.iter().map(|spec| secret(spec)).collect::<Result<_, _>>()?,
            ssh: all_ssh(&args.ssh, &context, &build_contexts)?,
            build_contexts,
            add_hosts: args.add_hosts.iter().map(|host| add_host(host)).collect::<Result<_, _>>()?,
            network: network(&args.network)?,
            allow: args.allow.into_iter().map(entitlement).collect::<Result<_, _>>()?,
            shm_size_bytes: args.shm_size.as_deref().map(parse_bytes).transpose()?,
            ulimits: args.ulimits.iter().map(|limit| ulimit(limit)).collect::<Result<_, _>>()?,
            cgroup_parent: args.cgroup_parent,
            resources: limits::check(&args.limits)?,
            host_ca: args.host_ca.as_deref().map(|path| host_ca::read(Path::new(path))).transpose()?,
            space: SpaceRequest::check(&args.space)?,
            progress: progress(&args.progress, args.quiet)?,
            quiet: args.quiet || args.progress == "quiet",
            jobs: args.jobs,
            call: Call::parse(&args.call, args.check)?,
            context,
            warnings,
        })
    }
}

/// A name given with `--tag`.
pub(crate) fn parse_tag(tag: &str) -> Result<ImageRef, Failure> {
    let parsed =
        ImageRef::parse_normalized(tag).map_err(|error| Failure::usage(format!("invalid tag \"{tag}\": {error}")))?;
    if parsed.digest().is_some() {
        return Err(Failure::usage(format!("invalid tag \"{tag}\": a tag cannot name a digest")));
    }
    Ok(parsed.with_default_tag())
}

/// A directory is one whatever it is called; then URLs are told by their form.
fn context(text: &str, build_args: &BTreeMap<String, String>) -> Result<ContextArg, Failure> {
    if text == "-" {
        return Ok(ContextArg::Stdin);
    }
    let keep_git_dir = build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR").is_some_and(|value| is_true(value));
    let remote = ContextKind::parse_remote(text, keep_git_dir).filter(|_| !Path::new(text).is_dir());
    let Some(kind) = remote else { return Ok(ContextArg::Dir(text.into())) };
    let mut kind = kind.map_err(|error| {
        Failure::usage(format!("invalid build context {}: {error}", solver::plan::redacted(text)))
            .help("git contexts look like https://HOST/REPO.git#REF:DIR or https://HOST/REPO.git?ref=REF&subdir=DIR")
    })?;
    if let ContextKind::Git(git) = &mut kind {
        // The plan will want the files with this time; asked for at once, they are checked out only once.
        git.commit_times |= build_args.get("SOURCE_DATE_EPOCH").is_some_and(|epoch| epoch == "context");
    }
    Ok(ContextArg::Remote { url: text.to_owned(), kind })
}

/// As Go reads booleans.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// `--allow`: a device may be named.
fn entitlement(text: String) -> Result<String, Failure> {
    let device = text.strip_prefix("device=");
    let wrong = device.and_then(|device| device.split(',').skip(1).find(|field| !field.starts_with("alias=")));
    if let Some(field) = wrong {
        return Err(Failure::usage(format!("--allow {text}: unknown device config key \"{field}\""))
            .help("a device is allowed with --allow device=NAME or --allow device=NAME,alias=VENDOR/CLASS=NAME"));
    }
    if device.is_some() || ENTITLEMENTS.iter().any(|name| text == *name) {
        return Ok(text);
    }
    let failure = Failure::usage(format!("--allow {text}: unknown entitlement"));
    Err(failure.help(format!("--allow takes {}", ENTITLEMENTS.join(", "))))
}

/// `K=V`; a bare `K` takes the environment's value and is dropped when there is none. The epoch comes along.
fn build_args(list: &[String]) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    if let Some(epoch) = env::var("SOURCE_DATE_EPOCH") {
        map.insert("SOURCE_DATE_EPOCH".to_owned(), epoch);
    }
    for arg in list {
        match arg.split_once('=') {
            Some((key, value)) => map.insert(key.to_owned(), value.to_owned()),
            None => env::var(arg).and_then(|value| map.insert(arg.clone(), value)),
        };
    }
    map
}

fn build_contexts(list: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let split = |item: &String| {
        let pair = item.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty());
        pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .ok_or_else(|| Failure::usage(format!("invalid context value: {item}, expected key=value")))
    };
    list.iter().map(split).collect()
}

/// The platforms of the result, each once: one that is given again is built once, with a warning.
fn platforms(list: &[String], warnings: &mut Vec<String>) -> Result<Vec<Platform>, Failure> {
    let default = env::var("DOCKER_DEFAULT_PLATFORM").filter(|value| !value.is_empty());
    let default = default.iter().filter(|_| list.is_empty());
    let given = list.iter().chain(default).flat_map(|text| text.split(','));
    let mut platforms = Vec::new();
    for text in given {
        let platform = platform(text)?;
        if !platform.is_known() {
            let meant = mistakes::nearest(&platform.to_string(), COMMON_PLATFORMS);
            let meant = meant.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            warnings.push(format!("{platform} is no platform that anything is known to run on{meant}"));
        }
        if platforms.contains(&platform) {
            warnings.push(format!("Duplicate platform result requested \"{platform}\""));
        } else {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// One value of `--platform`.
pub(crate) fn platform(text: &str) -> Result<Platform, Failure> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("local") {
        return Ok(Platform::host());
    }
    let failure = match Platform::parse(text, &Platform::host()) {
        Ok(platform) => return Ok(platform),
        Err(_) if text.is_empty() => Failure::usage("empty value for --platform"),
        Err(error) => Failure::usage(format!("invalid value `{text}` for --platform: {error}")),
    };
    if let Some(name) = mistakes::nearest(&format!("linux/{text}"), COMMON_PLATFORMS) {
        return Err(failure.help(format!("did you mean {name}?")));
    }
    Err(failure.help("platforms look like linux/amd64 or linux/arm/v7; several: --platform linux/amd64,linux/arm64"))
}

fn key_value(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

fn secret(spec: &str) -> Result<SecretArg, Failure> {
    let (mut id, mut source, mut env_name, mut kind) = (None, None, None, None);
    let wrong = |message: String| Failure::usage(format!("--secret {spec}: {message}")).help(SECRET_FORM);
    for field in csv::fields(spec).map_err(|error| wrong(error.0))? {
        let Some((key, value)) = csv::pair(&field) else {
            return Err(wrong(format!("invalid field '{field}' must be a key=value pair")));
        };
        match key.as_str() {
            "id" => id = Some(value),
            "src" | "source" => source = Some(value),
            "env" => env_name = Some(value),
            "type" if value == "file" || value == "env" => kind = Some(value),
            "type" => return Err(wrong(format!("unsupported secret type \"{value}\""))),
            _ => return Err(wrong(format!("unexpected key '{key}' in '{field}'"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| wrong("secret missing ID".to_owned()))?;
    if kind.as_deref() == Some("env") && env_name.is_none() {
        env_name = source.take();
    }
    let source = match (source, env_name) {
        (Some(path), _) => SecretSource::File(path.into()),
        (None, Some(name)) => SecretSource::Env(name),
        (None, None) if env::var_os(&id).is_some() => SecretSource::Env(id.clone()),
        (None, None) => SecretSource::File(id.clone().into()),
    };
    if let SecretSource::File(path) = &source {
        let missing = |error| {
            Failure::input(format!("--secret {spec}: failed to stat {}: {error}", path.display())).help(format!(
                "write the secret to that file, or take it from a variable: --secret id={id},env=VARIABLE"
            ))
        };
        let size = std::fs::metadata(path).map_err(missing)?.len();
        if size > MAX_SECRET_BYTES {
            return Err(Failure::input(format!("secret {id} too big. max size 500KiB")));
        }
    }
    Ok(SecretArg { id, source })
}

/// Contexts that are fetched over ssh bring the user's agent with them.
fn all_ssh(list: &[String], context: &ContextArg, build_contexts: &[(String, String)]) -> Result<Vec<SshArg>, Failure> {
    let mut all: Vec<SshArg> = Vec::new();
    for spec in list {
        let arg = ssh(spec)?;
        if all.iter().any(|other| other.id == arg.id) {
            return Err(Failure::usage(format!("duplicate agent ID \"{}\"", arg.id)));
        }
        all.push(arg);
    }
    let main = matches!(context, ContextArg::Remote { kind: ContextKind::Git(git), .. } if is_over_ssh(&git.remote));
    let is_over_ssh = main
        || build_contexts
            .iter()
            .any(|(_, value)| matches!(GitUrl::parse(value), Some(Ok(git)) if is_over_ssh(&git.remote)));
    if is_over_ssh && all.is_empty() && env::var("SSH_AUTH_SOCK").is_some() {
        all.push(ssh("default")?);
    }
    Ok(all)
}

/// Whether git asks ssh for it: by its scheme, or as `user@host:path`.
fn is_over_ssh(remote: &str) -> bool {
    remote.starts_with("ssh://") || !remote.contains("://")
}

fn ssh(spec: &str) -> Result<SshArg, Failure> {
    let (id, paths) = spec.split_once('=').unwrap_or((spec, ""));
    let mut paths: Vec<PathBuf> = paths.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        let socket = env::var("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).ok_or_else(|| {
            Failure::usage("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
                .help("start an agent with `eval $(ssh-agent)`, or name a key: `--ssh default=$HOME/.ssh/id_ed25519`")
        })?;
        paths.push(socket.into());
    }
    let id = if id.is_empty() { "default" } else { id };
    Ok(SshArg { id: id.to_owned(), paths })
}

fn add_host(text: &str) -> Result<ExtraHost, Failure> {
    let invalid = || Failure::usage(format!("bad format for add-host: \"{text}\": expected HOST:IP"));
    let split = text.find(['=', ':']).ok_or_else(invalid)?;
    let (name, address) = (&text[..split], &text[split + 1..]);
    let address = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    if name.is_empty() {
        return Err(invalid());
    }
    if address == "host-gateway" {
        let address = executor::sandbox::host_address().ok_or_else(|| {
            Failure::environment(format!("--add-host {text}: this machine has no address of IPv4 but loopback ones"))
                .help("name an address yourself, or connect the machine to a network")
        })?;
        return Ok(ExtraHost { name: name.to_ascii_lowercase(), address: address.to_string() });
    }
    if address.parse::<IpAddr>().is_err() {
        return Err(Failure::usage(format!("invalid IP address in add-host: \"{address}\"")));
    }
    Ok(ExtraHost { name: name.to_ascii_lowercase(), address: address.to_owned() })
}

/// `default`, `none` or `host`.
pub(crate) fn network(text: &str) -> Result<NetworkMode, Failure> {
    match text {
        "" | "default" => Ok(NetworkMode::Default),
        "none" => Ok(NetworkMode::None),
        "host" => Ok(NetworkMode::Host),
        other => Err(Failure::usage(format!("network mode \"{other}\" not supported: expected default, none or host"))),
    }
}

/// Bytes with an optional binary unit: `64m`, `1g`, `10GB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, Failure> {
    let invalid = || Failure::usage(format!("invalid size: '{text}'"));
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let unit = unit.trim().trim_end_matches("ib").trim_end_matches('b');
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit).ok_or_else(invalid)?;
    Ok((number * 1024_f64.powi(power as i32)) as u64)
}

fn ulimit(text: &str) -> Result<Ulimit, Failure> {
    const NAMES: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let (name, value) =
        text.split_once('=').ok_or_else(|| Failure::usage(format!("invalid ulimit argument: {text}")))?;
    if !NAMES.contains(&name) {
        return Err(Failure::usage(format!("invalid ulimit type: {name}")));
    }
    let number = |text: &str| {
        text.parse::<i64>().ok().filter(|value| *value >= -1).ok_or_else(|| {
            Failure::usage(format!("invalid ulimit value `{text}` for {name}: expected a number, -1 for unlimited"))
        })
    };
    let (soft, hard) = match value.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(value)?, number(value)?),
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(Failure::usage(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

fn progress(name: &str, quiet: bool) -> Result<Mode, Failure> {
    if quiet {
        return match name {
            "auto" | "quiet" => Ok(Mode::Silent),
            other => Err(Failure::usage(format!("progress={other} and quiet cannot be used together"))),
        };
    }
    Mode::choose(name).map_err(Failure::usage)
}

/// Flags that have no effect: some are errors because their absence would be a lie, the others are said once.
fn inactive_warnings(args: &BuildArgs) -> Result<Vec<String>, Failure> {
    let inactive = &args.inactive;
    attestations::check(inactive)?;
    let ignored = [("--security-opt", !inactive.security_opt.is_empty()), ("--squash", inactive.squash)];
    let mut warnings: Vec<String> =
        ignored.iter().filter(|(_, given)| *given).map(|(flag, _)| format!("{flag} has no effect yet")).collect();
    if inactive.builder.is_some() {
        warnings.push("--builder has no effect: rbuild needs no builder".to_owned());
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_told_apart_by_their_form() {
        let none = BTreeMap::new();
        let of = |text: &str| context(text, &none).expect(text);
        assert_eq!(of("-"), ContextArg::Stdin);
        assert_eq!(of("."), ContextArg::Dir(".".into()));
        assert_eq!(of("./images"), ContextArg::Dir("./images".into()));
        for text in ["https://x/y.git#main:sub", "git@host:a/b.git", "github.com/a/b", "http://x/y.tar"] {
            assert!(matches!(of(text), ContextArg::Remote { url, .. } if url == text), "{text}");
        }
        assert!(context("https://x/y.git?what=1", &none).is_err());
    }

    #[test]
    fn platforms_are_normalised_and_built_once() {
        let given = |list: &[&str]| {
            let mut warnings = Vec::new();
            let list: Vec<String> = list.iter().map(|text| (*text).to_owned()).collect();
            let platforms = platforms(&list, &mut warnings).expect("valid");
            (platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), warnings.len())
        };
        let host = Platform::host().to_string();
        for (list, expected, n_warnings) in [
            (&["linux/amd64,linux/arm64"][..], "linux/amd64 linux/arm64", 0),
            (&["linux/arm64/v8", " aarch64 ", "linux/armhf,armel"], "linux/arm64 linux/arm/v7 linux/arm/v6", 1),
            (&["x86_64,linux/amd64/v1,linux/amd64/v2"], "linux/amd64 linux/amd64/v2", 1),
            (&["local"], host.as_str(), 0),
            (&["LOCAL,local"], host.as_str(), 1),
        ] {
            assert_eq!(given(list), (expected.to_owned(), n_warnings), "{list:?}");
        }
        for text in ["", "linux/amd64,", "linux/amd64 linux/arm64", "linux/a/b/c", "*"] {
            assert!(platforms(&[text.to_owned()], &mut Vec::new()).is_err(), "{text}");
        }
    }

    #[test]
    fn build_arguments_decide_how_a_git_context_is_checked_out() {
        let given = [("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "1"), ("SOURCE_DATE_EPOCH", "context")];
        let args = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        for (args, expected) in [(args, true), (BTreeMap::new(), false)] {
            let ContextArg::Remote { kind: ContextKind::Git(git), .. } = context("git@h:r", &args).expect("git") else {
                panic!("it is git");
            };
            assert_eq!((git.keep_git_dir, git.commit_times), (expected, expected));
        }
    }

    #[test]
    fn the_way_to_a_repository_is_seen() {
        for (remote, expected) in
            [("ssh://h/r", true), ("git@h:r", true), ("https://u@h/r.git", false), ("git://h/r", false)]
        {
            assert_eq!(is_over_ssh(remote), expected, "{remote}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in
            [("64m", 64 << 20), ("1g", 1 << 30), ("10", 10), ("1.5k", 1536), ("2GiB", 2 << 30), ("3MB", 3 << 20)]
        {
            assert_eq!(parse_bytes(text).expect(text), bytes);
        }
        assert!(parse_bytes("x").is_err());
        assert!(parse_bytes("1z").is_err());
    }

    #[test]
    fn hosts_may_be_written_in_several_ways() {
        for text in ["db:10.0.0.1", "db=10.0.0.1"] {
            assert_eq!(add_host(text).expect(text), ExtraHost { name: "db".into(), address: "10.0.0.1".into() });
        }
        assert_eq!(add_host("Db:[::1]").expect("bracketed"), ExtraHost { name: "db".into(), address: "::1".into() });
        assert_eq!(add_host("db:::1").expect("bare"), ExtraHost { name: "db".into(), address: "::1".into() });
        assert!(add_host("db").is_err());
        assert!(add_host("db:nowhere").is_err());
    }

    #[test]
    fn limits_are_checked() {
        assert_eq!(ulimit("nofile=10:20").expect("pair"), Ulimit { name: "nofile".into(), soft: 10, hard: 20 });
        assert_eq!(ulimit("core=-1").expect("one"), Ulimit { name: "core".into(), soft: -1, hard: -1 });
        for text in ["nofile", "nosuch=1", "nofile=x", "nofile=2:1"] {
            assert!(ulimit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_without_a_source_is_the_file_of_its_name() {
        assert!(secret("id=no-such-file-here").is_err());
        assert!(secret("src=x").is_err());
        assert!(secret("id=a,type=x").is_err());
        assert!(secret("id=a,foo").is_err());
    }
}
