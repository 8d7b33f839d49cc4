//! Who we measure against: what is found on the machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use e2e::engine::{self, Engine};

use crate::process::{is_installed, run_command};

/// Where a result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    /// The local image store.
    LocalImage,
    /// A gzip-compressed OCI (or docker) archive.
    Archive,
}

/// A builder other than ours.
pub(crate) trait Peer {
    /// Its name and version.
    fn name(&self) -> String;
    /// The command of one build. `cold` forbids its cache.
    fn build(&self, context: &Path, product: Product, cold: bool) -> Command;
    /// Why it cannot do a workload, if it cannot.
    fn lacks(&self, _product: Product) -> Option<&'static str> {
        None
    }
}

/// Chooses a peer by name, or the first that is installed, and makes `busybox` known to it.
pub(crate) fn choose(name: Option<&str>, busybox_tar: &Path, work: &Path) -> Result<Box<dyn Peer>> {
    let name = match name {
        Some(name) => name,
        None if is_installed("docker") && is_installed("dockerd") => "docker",
        None if is_installed("buildah") => "buildah",
        None => bail!("no peer found: install docker.io or buildah"),
    };
    match name {
        "docker" => Ok(Box::new(Docker::start(busybox_tar, work)?)),
        "buildah" => Ok(Box::new(Buildah::prepare(busybox_tar, work)?)),
        "buildkit" => Ok(Box::new(BuildKit::find()?)),
        other => bail!("unknown peer `{other}`: expected docker, buildah or buildkit"),
    }
}

/// Debian's docker engine with its embedded BuildKit.
struct Docker {
    engine: Engine,
    program: &'static str,
    archive: PathBuf,
}

impl Docker {
    fn start(busybox_tar: &Path, work: &Path) -> Result<Self> {
        let engine = Engine::of_machine(&work.join("dockerd.log")).map_err(anyhow::Error::msg)?;
        run_command(engine.client().arg("import").arg(busybox_tar).arg("busybox").stdout(Stdio::null()))?;
        Ok(Self { program: engine::program(), engine, archive: work.join("peer.tar") })
    }
}

impl Peer for Docker {
    fn name(&self) -> String {
        format!("docker engine {} (its embedded BuildKit)", self.engine.version())
    }

    fn build(&self, context: &Path, product: Product, cold: bool) -> Command {
        let cache = if cold { "--no-cache" } else { "" };
        let build = format!("{} build -q {cache} -t bench {}", self.program, context.display());
        let text = match product {
            Product::LocalImage => build,
            // Its BuildKit writes no OCI archives: what its users do instead.
            Product::Archive => {
                format!("{build} && {} save bench | gzip > {}", self.program, self.archive.display())
            }
        };
        let mut command = Command::new("sh");
        command.env("DOCKER_BUILDKIT", "1").args(["-ec", &text]);
        command
    }
}

/// Buildah with overlay storage.
struct Buildah {
    archive: PathBuf,
}

impl Buildah {
    fn prepare(busybox_tar: &Path, work: &Path) -> Result<Self> {
        let text = format!(
            "c=$(buildah from scratch) && buildah add -q $c {} / && buildah config --cmd sh $c && buildah commit -q $c busybox \
             && buildah rm $c",
            busybox_tar.display()
        );
        run_command(Command::new("sh").args(["-ec", &text]).stdout(Stdio::null()))?;
        Ok(Self { archive: work.join("peer.tar") })
    }
}

impl Peer for Buildah {
    fn name(&self) -> String {
        version("buildah", &["--version"])
    }

    fn build(&self, context: &Path, product: Product, cold: bool) -> Command {
        let cache = if cold { "--no-cache" } else { "" };
        let build =
            format!("buildah bud --layers --isolation=oci --network=host -q {cache} -t bench {}", context.display());
        let text = match product {
            Product::LocalImage => build,
            Product::Archive => {
                format!("rm -f {0}; {build} && buildah push -q bench oci-archive:{0}", self.archive.display())
            }
        };
        let mut command = Command::new("sh");
        command.args(["-ec", &text]);
        command
    }
}

/// A current BuildKit, whose `buildctl` is given by `$BUILDCTL`.
struct BuildKit {
    buildctl: String,
}

impl BuildKit {
    fn find() -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "a developer command's own setting")]
        let buildctl = std::env::var("BUILDCTL").context("name a buildctl: BUILDCTL='buildctl --addr …'")?;
        Ok(Self { buildctl })
    }
}

impl Peer for BuildKit {
    fn name(&self) -> String {
        version("sh", &["-c", &format!("{} --version", self.buildctl)])
    }

    fn build(&self, context: &Path, product: Product, cold: bool) -> Command {
        let context = context.display();
        let cache = if cold { "--no-cache" } else { "" };
        let output = match product {
            Product::LocalImage => "type=image,name=bench".to_owned(),
            Product::Archive => "type=oci,dest=/dev/null".to_owned(),
        };
        let text = format!(
            "{} build --progress=plain --frontend dockerfile.v0 --local context={context} --local dockerfile={context} {cache} \
             --output {output}",
            self.buildctl
        );
        let mut command = Command::new("sh");
        command.args(["-ec", &text]);
        command
    }
}

fn version(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
