//! Inputs of the workloads, generated from a fixed seed: the same bytes on every machine.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;

/// SplitMix64: small, fast and the same everywhere. Not for secrets.
pub(crate) struct Random(u64);

impl Random {
    /// Starts at `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal (Box–Muller).
    fn normal(&mut self) -> f64 {
        let (u, v) = (self.unit().max(1e-12), self.unit());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// 500 directories of 100 files that look like JavaScript; log-normal sizes, median about 1.5 kB, 120 MB in all.
pub(crate) fn many_files(root: &Path) -> Result<PathBuf> {
    const DIRECTORIES: usize = 500;
    const FILES: usize = 100;
    // exp(sigma²/2) is the ratio of mean to median: 2.4 kB to 1.5 kB.
    const MEDIAN_BYTES: f64 = 1500.0;
    const SIGMA: f64 = 0.97;
    let context = root.join("many-files");
    generate_once(&context, |partial| {
        let mut random = Random::new(1);
        for directory in 0..DIRECTORIES {
            let directory = partial.join(format!("files/package-{directory:03}"));
            fs::create_dir_all(&directory)?;
            for file in 0..FILES {
                let bytes = (MEDIAN_BYTES * (SIGMA * random.normal()).exp()).clamp(20.0, 1e6) as usize;
                fs::write(directory.join(format!("module-{file:02}.js")), javascript(&mut random, bytes))?;
            }
        }
        fs::write(partial.join("Dockerfile"), "FROM busybox\nCOPY files /files\n")?;
        Ok(())
    })
}

/// Eight files of 128 MB, alternately 512 kB of random bytes and 512 kB of log lines.
pub(crate) fn big_files(root: &Path) -> Result<PathBuf> {
    const FILES: u64 = 8;
    const BLOCK: usize = 512 * 1000;
    const BLOCKS: usize = 250;
    let context = root.join("big-files");
    generate_once(&context, |partial| {
        fs::create_dir_all(partial.join("files"))?;
        for file in 0..FILES {
            let mut random = Random::new(100 + file);
            let mut out = BufWriter::new(fs::File::create(partial.join(format!("files/big-{file}")))?);
            for block in 0..BLOCKS {
                let bytes = if block % 2 == 0 { noise(&mut random, BLOCK) } else { log_lines(&mut random, BLOCK) };
                out.write_all(&bytes)?;
            }
            out.flush()?;
        }
        fs::write(partial.join("Dockerfile"), "FROM busybox\nCOPY files /files\n")?;
        Ok(())
    })
}

/// A Dockerfile alone.
pub(crate) fn dockerfile(root: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let context = root.join(name);
    fs::create_dir_all(&context)?;
    fs::write(context.join("Dockerfile"), text)?;
    Ok(context)
}

/// Fifty small steps.
pub(crate) fn steps() -> String {
    let runs: String = (1..=50).map(|n| format!("RUN echo {n} > /f{n}\n")).collect();
    format!("FROM busybox\n{runs}")
}

/// Four stages of two seconds, joined.
pub(crate) fn stages() -> String {
    let stages: String = (1..=4).map(|n| format!("FROM busybox AS s{n}\nRUN sleep 2; echo {n} > /o{n}\n")).collect();
    let copies: String = (1..=4).map(|n| format!("COPY --from=s{n} /o{n} /\n")).collect();
    format!("{stages}FROM scratch\n{copies}")
}

/// A step that writes 6,000 files and one that changes one of them.
pub(crate) fn rewrite() -> String {
    let write = "RUN mkdir /d && i=0 && while [ $i -lt 6000 ]; do echo \"file $i of many\" > /d/$i; i=$((i+1)); done";
    format!("FROM busybox\n{write}\nRUN echo changed > /d/17\n")
}

fn generate_once(context: &Path, generate: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if !context.is_dir() {
        let partial = context.with_extension("partial");
        drop(fs::remove_dir_all(&partial));
        fs::create_dir_all(&partial)?;
        generate(&partial)?;
        fs::rename(&partial, context)?;
    }
    Ok(context.to_owned())
}

fn javascript(random: &mut Random, bytes: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "function",
        "return",
        "const",
        "value",
        "index",
        "options",
        "callback",
        "module",
        "require",
        "exports",
        "prototype",
        "length",
        "undefined",
        "Promise",
        "async",
        "buffer",
    ];
    let mut text = Vec::with_capacity(bytes + 80);
    while text.len() < bytes {
        let word = |random: &mut Random| WORDS[(random.next() % 16) as usize];
        let (a, b, c, n) = (word(random), word(random), word(random), random.next() % 10_000);
        text.extend_from_slice(format!("  {a}.{b}{n} = ({c}) => {{ return {b}[{n}] }};\n").as_bytes());
    }
    text.truncate(bytes);
    text
}

fn noise(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut data: Vec<u8> =
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(bytes / 8 + 1).flatten().collect();
    data.truncate(bytes);
    data
}

fn log_lines(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 120);
    let mut second = random.next() % 86_400;
    while text.len() < bytes {
        second += random.next() % 3;
        let (id, ms) = (random.next() % 100_000, random.next() % 900);
        let line = format!(
            "2026-01-01T{:02}:{:02}:{:02}Z INFO request id={id} path=/api/v1/items status=200 took={ms}ms\n",
            second / 3600 % 24,
            second / 60 % 60,
            second % 60
        );
        text.extend_from_slice(line.as_bytes());
    }
    text.truncate(bytes);
    text
}
