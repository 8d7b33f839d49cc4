//! `rbuild run`: a command of an image, in the sandbox that RUN steps get. Nothing that it writes is kept.

use std::path::Path;
use std::sync::Arc;

use cache::Store;
use executor::emulation::{Emulation, Support};
use executor::sandbox::{
    Confinement, Exit, GivenDevices, HostNetwork, MountSource, NotStarted, Resources, Sandbox, SandboxMount,
    SandboxSpec, Stdio, Writes,
};
use executor::source::ImageSource;
use executor::source::image::PullPolicy;
use oci::registry::Client;
use oci::{ContainerConfig, Platform};
use solver::{Chain, NetworkMode, Progress, SecurityMode};
use tokio_util::sync::CancellationToken;

use super::build::wire;
use super::image::{Image, PlatformImage, find};
use crate::args::RunArgs;
use crate::env;
use crate::failure::Failure;
use crate::report;
use crate::request::{network, platform};
use crate::ui;

/// Exit code of docker and shells for a program that is not there.
const NOT_FOUND: u8 = 127;
/// The same for one that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// Runs it; its exit code becomes ours.
pub(crate) fn run(store: &Store, args: RunArgs, confinement: &Confinement) -> Result<(), Failure> {
    let whole = find(store, &args.image)?.swap_remove(0);
    let image = chosen(&whole, &args)?;
    let _lease = store.lease()?;
    let runtime = wire::runtime()?;
    let spec = spec(&args, &image.config.config)?;
    let program = spec.args.first().cloned().unwrap_or_default();
    let emulation = Emulation::new(store.clone(), env::emulator_dirs());
    let exit = runtime.block_on(async {
        let lower = trees(store, image, confinement).await?;
        let draft = store.new_tree()?;
        let handlers = match emulation.support(&image.platform()) {
            Support::Emulator(emulator) => Some(emulator.handlers.clone()),
            Support::Native | Support::Registered | Support::None(_) => None,
        };
        let spec = SandboxSpec { lower, upper: draft.tree(), work: draft.work(), handlers, ..spec };
        if !args.interactive {
            close_input()?;
        }
        let sandbox = Sandbox::new(store.scratch_dir()?, Arc::new(HostNetwork), confinement).map_err(fault)?;
        sandbox.run_interactive(spec, &CancellationToken::new()).await.map_err(fault)
    })?;
    for warning in &exit.warnings {
        ui::stderr(|out| std::io::Write::write_all(out, format!("WARN: {warning}\n").as_bytes()));
    }
    match exit.not_started {
        Some(reason) => {
            let (failure, code) = not_started(reason, &program, image, &args.image, &emulation);
            report::failure(&failure);
            Err(Failure::Exit(code))
        }
        None => finish(&exit),
    }
}

/// Says why a program was not started, with the exit code that docker has for it.
fn not_started(
    reason: NotStarted,
    program: &str,
    image: &PlatformImage,
    name: &str,
    emulation: &Emulation,
) -> (Failure, u8) {
    let failure = |why: &str| Failure::input(format!("cannot start `{program}` of `{name}`: {why}"));
    match reason {
        NotStarted::Missing => {
            let failure = failure("there is no such program, or its interpreter is missing");
            (failure.help("the image's PATH is searched; a path begins with `/` or `./`"), NOT_FOUND)
        }
        NotStarted::Denied => (failure("it may not be executed"), NOT_EXECUTABLE),
        NotStarted::WrongFormat => match emulation.support(&image.platform()) {
            Support::None(lacking) => {
                let failure = failure(&format!("nothing runs programs for {} here: {lacking}", image.platform()));
                let advice = lacking.advice(&image.platform().architecture);
                (advice.into_iter().fold(failure, Failure::help), NOT_EXECUTABLE)
            }
            Support::Native | Support::Registered | Support::Emulator(_) => {
                (failure("it is neither a program for this machine nor a script with `#!`"), NOT_EXECUTABLE)
            }
        },
        NotStarted::Other(errno) => {
            let why = std::io::Error::from_raw_os_error(errno).to_string();
            (failure(&why), NOT_EXECUTABLE)
        }
    }
}

fn finish(exit: &Exit) -> Result<(), Failure> {
    match u8::try_from(exit.code) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::Exit(code)),
        Err(_) => Err(Failure::Exit(u8::MAX)),
    }
}

/// The image that runs: for the platform of the flag, else for this machine. One that is no index needs no choice.
fn chosen<'a>(whole: &'a Image, args: &RunArgs) -> Result<&'a PlatformImage, Failure> {
    // An empty variable of the environment says nothing.
    match args.platform.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => whole.for_platform(&platform(text)?, &args.image),
        None if whole.is_index() => whole.for_platform(&Platform::host(), &args.image),
        None => Ok(whole.shown()),
    }
}

/// The trees of the image's layers, unpacked where they are not.
async fn trees(
    store: &Store,
    image: &PlatformImage,
    confinement: &Confinement,
) -> Result<Vec<std::path::PathBuf>, Failure> {
    let diff_ids = image.config.rootfs.diff_ids.iter();
    let layers = diff_ids.map(|diff_id| Ok(store.layer_for_diff_id(diff_id)?.layer));
    let chain = Chain::new(layers.collect::<Result<_, Failure>>()?);
    let client = Client::new(wire::client_options());
    let images = ImageSource::new(store.clone(), client, PullPolicy::Missing, wire::unpack_options(confinement));
    let step = Progress::silent().start("");
    Ok(executor::engine::mountable(images.ensure_trees(&chain, &step, &CancellationToken::new()).await?))
}

/// Everything but the directories. ENTRYPOINT, CMD, ENV, USER and WORKDIR are the image's unless flags say otherwise.
fn spec(args: &RunArgs, config: &ContainerConfig) -> Result<SandboxSpec, Failure> {
    let mode = match network(&args.network)? {
        NetworkMode::Default => NetworkMode::Host,
        mode => mode,
    };
    let stdio = if args.tty { Stdio::Terminal } else { Stdio::Inherit };
    Ok(SandboxSpec {
        lower: Vec::new(),
        upper: Default::default(),
        work: Default::default(),
        args: command(args, config)?,
        env: environment(args, config),
        cwd: args.workdir.clone().unwrap_or_else(|| or_root(&config.working_dir)),
        user: args.user.clone().unwrap_or_else(|| config.user.clone()),
        hostname: args.hostname.clone().unwrap_or_else(|| "rbuild".to_owned()),
        extra_hosts: Vec::new(),
        network: mode,
        security: SecurityMode::Sandbox,
        shm_size_bytes: None,
        ulimits: Vec::new(),
        resources: Resources::default(),
        mounts: args.volumes.iter().map(|volume| mount(volume)).collect::<Result<_, _>>()?,
        given: GivenDevices::default(),
        stdio,
        handlers: None,
    })
}

fn or_root(working_dir: &str) -> String {
    if working_dir.is_empty() { "/".to_owned() } else { working_dir.to_owned() }
}

/// An entrypoint given by flag drops the image's CMD, as docker does.
fn command(args: &RunArgs, config: &ContainerConfig) -> Result<Vec<String>, Failure> {
    let own = config.entrypoint.clone().unwrap_or_default();
    let entrypoint = args.entrypoint.as_ref().map_or(own, |program| vec![program.clone()]);
    let cmd = match (args.command.is_empty(), &args.entrypoint) {
        (false, _) => args.command.clone(),
        (true, Some(_)) => Vec::new(),
        (true, None) => config.cmd.clone().unwrap_or_default(),
    };
    let command: Vec<String> = entrypoint.into_iter().chain(cmd).collect();
    if command.is_empty() {
        return Err(Failure::input(format!("no command specified: `{}` has neither ENTRYPOINT nor CMD", args.image)));
    }
    Ok(command)
}

fn environment(args: &RunArgs, config: &ContainerConfig) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some(pair) => value.clone_into(&mut pair.1),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    for variable in &config.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(name, value);
    }
    if args.tty {
        set("TERM", &env::var("TERM").unwrap_or_else(|| "xterm".to_owned()));
    }
    for variable in &args.env {
        match variable.split_once('=') {
            Some((name, value)) => set(name, value),
            None => {
                if let Some(value) = env::var(variable) {
                    set(variable, &value);
                }
            }
        }
    }
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".to_owned(), executor::sandbox::DEFAULT_PATH.to_owned()));
    }
    env
}

/// `HOST:CONTAINER[:ro]`.
fn mount(text: &str) -> Result<SandboxMount, Failure> {
    let invalid = |reason: &str| Failure::usage(format!("invalid volume `{text}`: {reason}"));
    let (host, rest) = text.split_once(':').ok_or_else(|| invalid("expected HOST:CONTAINER"))?;
    let (target, read_only) = match rest.split_once(':') {
        None => (rest, false),
        Some((target, "ro")) => (target, true),
        Some((target, "rw")) => (target, false),
        Some((_, option)) => return Err(invalid(&format!("unknown option `{option}`"))),
    };
    if !target.starts_with('/') {
        return Err(invalid("the container path must be absolute"));
    }
    let host = Path::new(host).canonicalize().map_err(|error| invalid(&format!("`{host}`: {error}")))?;
    let (root, path) = match (host.is_dir(), host.parent(), host.file_name()) {
        (false, Some(parent), Some(name)) => (parent.to_owned(), format!("/{}", name.to_string_lossy())),
        _ => (host.clone(), "/".to_owned()),
    };
    let source = MountSource::Directory { root, path, writes: Writes::Stay };
    Ok(SandboxMount { target: target.to_owned(), source, read_only })
}

/// Without `-i` the command reads nothing.
fn close_input() -> Result<(), Failure> {
    let fault = |error: std::io::Error| Failure::environment(format!("cannot close standard input: {error}"));
    let null = std::fs::File::open("/dev/null").map_err(fault)?;
    rustix::stdio::dup2_stdin(&null).map_err(|error| fault(error.into()))
}

fn fault(error: executor::sandbox::SandboxError) -> Failure {
    Failure::environment(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(line: &str) -> RunArgs {
        match crate::args::Cli::try_parse_from(line.split(' ')).expect(line).command {
            crate::args::Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn entrypoint_and_command_combine_as_in_docker() {
        let config = ContainerConfig {
            entrypoint: Some(vec!["e".into()]),
            cmd: Some(vec!["c".into()]),
            ..ContainerConfig::default()
        };
        for (line, expected) in [
            ("rbuild run i", vec!["e", "c"]),
            ("rbuild run i x -y", vec!["e", "x", "-y"]),
            ("rbuild run --entrypoint p i", vec!["p"]),
            ("rbuild run --entrypoint p i x", vec!["p", "x"]),
        ] {
            assert_eq!(command(&args(line), &config).expect(line), expected, "{line}");
        }
        assert!(command(&args("rbuild run i"), &ContainerConfig::default()).is_err());
    }

    #[test]
    fn flags_win_over_the_images_environment() {
        let config = ContainerConfig { env: vec!["A=1".into(), "B=2".into()], ..ContainerConfig::default() };
        let env = environment(&args("rbuild run -e B=3 -e C=4 i"), &config);
        let expected = [("A", "1"), ("B", "3"), ("C", "4"), ("PATH", executor::sandbox::DEFAULT_PATH)];
        assert_eq!(env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
