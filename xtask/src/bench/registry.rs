//! `cargo xtask bench registry`: images out of and into a registry on this machine, against docker's engine.
//!
//! Debian's docker-registry serves plain HTTP on loopback, so that the network costs nothing and what the builders do
//! counts. It is emptied before what must not be there.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::engine::{self, Engine};

use super::measure::{Sample, sample, summary};
use super::{Runner, inputs};
use crate::bases;
use crate::process::{output, run_command, say};

/// The image that others stand on: some 110 MB compressed.
const BASE: &str = "python:3.11-slim";
/// Which image is made of the workloads that are pushed.
const BIG: &str = "big:1";

/// A workload: what happens before a sample of either, and what is measured.
struct Row<'a> {
    name: &'static str,
    before: Box<dyn Fn() -> Result<()> + 'a>,
    ours: Box<dyn Fn() -> Command + 'a>,
    /// Before a sample of the peer.
    before_theirs: Box<dyn Fn() -> Result<()> + 'a>,
    theirs: Box<dyn Fn() -> Command + 'a>,
}

/// Measures all rows and prints their table.
pub(super) fn table(runner: &Runner<'_>) -> Result<()> {
    let work = runner.work;
    let mut peer =
        runner.peer.map(|_| Engine::of_machine(&work.join("dockerd.log"))).transpose().map_err(anyhow::Error::msg)?;
    let version = peer.as_mut().map(|engine| engine.version()).unwrap_or_default();
    let registry = Registry::start(work)?;
    registry.fill(runner.rbuild)?;
    let base = format!("{}/base:1", registry.host());
    let big = inputs::big_files(work)?;
    let run = inputs::dockerfile(work, "pull", &format!("FROM {base}\nRUN true\n"))?;
    let onto = inputs::dockerfile(work, "onto-base", &format!("FROM {base}\nCOPY Dockerfile /app/\n"))?;
    let linked = inputs::dockerfile(work, "onto-base-linked", &format!("FROM {base}\nCOPY --link Dockerfile /app/\n"))?;
    let listed_base = format!("{}/base:estargz", registry.host());
    let onto_listed = inputs::dockerfile(work, "onto-listed", &format!("FROM {listed_base}\nCOPY Dockerfile /app/\n"))?;

    let build = |context: &Path, rest: &[&str]| {
        let mut command = Command::new(runner.rbuild);
        command.arg("--store").arg(runner.store()).arg("--progress=plain").args(rest).arg(context);
        command
    };
    let docker = |text: String| {
        let mut command = Command::new("sh");
        command.env("DOCKER_BUILDKIT", "1").args(["-ec", &text.replace("docker ", &format!("{} ", engine::program()))]);
        command
    };
    let onto_name = format!("{}/onto:1", registry.host());
    let docker_onto = |context: &Path| {
        docker(format!("docker build -q -t {onto_name} {} && docker push -q {onto_name}", context.display()))
    };
    // Every image that has a layer of the base keeps it.
    let forget = || {
        let names = format!("{base} {listed_base} {onto_name} bench");
        let text = format!("docker rmi -f {names} > /dev/null 2>&1 || true; docker builder prune -af > /dev/null");
        run_command(&mut docker(text))
    };
    let push_big = |flags: &'static str| {
        let name = format!("type=image,name={}/{BIG},push=true{flags}", registry.host());
        build(&big, &["-o", &name])
    };
    let docker_big = |cache: &str| {
        let name = format!("{}/{BIG}", registry.host());
        docker(format!("docker build -q {cache} -t {name} {} && docker push -q {name}", big.display()))
    };
    // As many as there are samples, so that no two are the same.
    let changes = std::cell::Cell::new(0_u64);
    let change = || {
        changes.set(changes.get() + 1);
        change_one(&big.join("files/big-3"), changes.get())
    };
    let fresh = || runner.prepare_store();
    let fresh_onto = || fresh().and_then(|()| registry.forget("onto:1"));
    let forget_onto = || forget().and_then(|()| registry.forget("onto:1"));
    let rows = [
        Row {
            name: "pull, unpack and `RUN true`",
            before: Box::new(fresh),
            ours: Box::new(|| build(&run, &["-t", "bench"])),
            before_theirs: Box::new(forget),
            theirs: Box::new(|| docker(format!("docker build -q -t bench {}", run.display()))),
        },
        Row {
            name: "one small COPY onto it, pushed to its registry",
            before: Box::new(fresh_onto),
            ours: Box::new(|| build(&onto, &["-t", &onto_name, "--push"])),
            before_theirs: Box::new(forget_onto),
            theirs: Box::new(|| docker_onto(&onto)),
        },
        Row {
            name: "the same with `COPY --link` (docker: without)",
            before: Box::new(fresh_onto),
            ours: Box::new(|| build(&linked, &["-t", &onto_name, "--push"])),
            before_theirs: Box::new(forget_onto),
            theirs: Box::new(|| docker_onto(&onto)),
        },
        Row {
            name: "the same onto a base in eStargz",
            before: Box::new(fresh_onto),
            ours: Box::new(|| build(&onto_listed, &["-t", &onto_name, "--push"])),
            before_theirs: Box::new(forget_onto),
            theirs: Box::new(|| docker_onto(&onto_listed)),
        },
        Row {
            name: "1 GiB COPY, pushed with zstd (docker: gzip)",
            before: Box::new(|| fresh().and_then(|()| registry.forget(BIG))),
            ours: Box::new(|| push_big(",compression=zstd")),
            before_theirs: Box::new(|| registry.forget(BIG)),
            theirs: Box::new(|| docker_big("--no-cache")),
        },
        Row {
            name: "1 GiB COPY, pushed with gzip",
            before: Box::new(|| fresh().and_then(|()| registry.forget(BIG))),
            ours: Box::new(|| push_big("")),
            before_theirs: Box::new(|| registry.forget(BIG)),
            theirs: Box::new(|| docker_big("--no-cache")),
        },
        Row {
            name: "the same again, one file changed, gzip",
            before: Box::new(change),
            ours: Box::new(|| push_big("")),
            before_theirs: Box::new(change),
            theirs: Box::new(|| docker_big("")),
        },
        Row {
            name: "the same again, unchanged",
            before: Box::new(|| run_command(push_big("").stderr(Stdio::null()))),
            ours: Box::new(|| push_big("")),
            before_theirs: Box::new(|| run_command(docker_big("").stdout(Stdio::null()).stderr(Stdio::null()))),
            theirs: Box::new(|| docker_big("")),
        },
    ];
    say(&format!("peer: docker engine {version}\n"));
    say("| workload | rbuild s | peak MiB | docker s | ratio |");
    say("|---|---|---|---|---|");
    for row in &rows {
        say(&measure(row, runner.n_runs, peer.is_some())?);
    }
    Ok(())
}

fn measure(row: &Row<'_>, n_runs: usize, with_peer: bool) -> Result<String> {
    let (mut ours, mut theirs): (Vec<Sample>, Vec<Sample>) = Default::default();
    for _ in 0..n_runs {
        (row.before)()?;
        ours.push(sample(&mut (row.ours)())?);
        if with_peer {
            (row.before_theirs)()?;
            theirs.push(sample(&mut (row.theirs)())?);
        }
    }
    let ours = summary(&ours);
    let seconds = ours.wall.as_secs_f64();
    let (their_seconds, ratio) = match theirs.as_slice() {
        [] => ("–".to_owned(), "–".to_owned()),
        theirs => {
            let theirs = summary(theirs).wall.as_secs_f64();
            (format!("{theirs:.2}"), format!("{:.1}×", theirs / seconds))
        }
    };
    Ok(format!("| {} | {seconds:.3} | {} | {their_seconds} | {ratio} |", row.name, ours.peak_kib / 1024))
}

/// Other bytes of the same length in the middle of a file.
fn change_one(file: &Path, number: u64) -> Result<()> {
    let mut file = std::fs::File::options().write(true).open(file).context("open a file of the workload")?;
    file.seek(SeekFrom::Start(50_000_000))?;
    writeln!(file, "changed for run {number:>10} of process {:>10}", std::process::id())?;
    Ok(())
}

/// A registry that ends with its handle.
struct Registry {
    server: Child,
    port: u16,
    data: PathBuf,
}

impl Registry {
    fn start(work: &Path) -> Result<Self> {
        let program = e2e::find_program("docker-registry").context("needs the program docker-registry")?;
        let dir = work.join("registry");
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir)?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let data = dir.join("data");
        let config = dir.join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: '{}'}}}}\nhttp: {{addr: '127.0.0.1:{port}', secret: x}}\n",
                data.display()
            ),
        )?;
        let mut command = Command::new(program);
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
        let server =
            command.stderr(std::fs::File::create(dir.join("log"))?).spawn().context("start docker-registry")?;
        let registry = Self { server, port, data };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                bail!("docker-registry does not answer");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes the base.
    fn fill(&self, rbuild: &Path) -> Result<()> {
        bases::ensure(rbuild, &bases::store_dir(), &[BASE])?;
        let name = format!("{}/base:1", self.host());
        let on_bases = |args: &[&str]| {
            let mut command = Command::new(rbuild);
            output(command.arg("--store").arg(bases::store_dir()).args(args)).map(drop)
        };
        on_bases(&["tag", BASE, &name])?;
        on_bases(&["push", &name])?;
        on_bases(&["rmi", &name])?;
        // The same in a compression that lists what it holds.
        let context = self.data.with_file_name("estargz");
        std::fs::create_dir_all(&context)?;
        std::fs::write(context.join("Dockerfile"), format!("FROM {BASE}\n"))?;
        let listed = format!(
            "type=image,name={}/base:estargz,push=true,store=false,compression=estargz,force-compression=true",
            self.host()
        );
        on_bases(&["build", "-q", "-o", &listed, &context.display().to_string()])
    }

    /// Removes a repository and the large blobs that only it needs. The registry looks at its files each time.
    fn forget(&self, image: &str) -> Result<()> {
        const LARGE_BYTES: u64 = 200 << 20;
        let root = self.data.join("docker/registry/v2");
        let repository = image.split(':').next().unwrap_or(image);
        drop(std::fs::remove_dir_all(root.join("repositories").join(repository)));
        for prefix in std::fs::read_dir(root.join("blobs/sha256"))?.flatten() {
            for blob in std::fs::read_dir(prefix.path())?.flatten() {
                if std::fs::metadata(blob.path().join("data")).is_ok_and(|data| data.len() > LARGE_BYTES) {
                    std::fs::remove_dir_all(blob.path())?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}
