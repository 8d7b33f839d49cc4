//! Developer commands: `cargo xtask demo`, `test`, `compare`, `bases`, `bench`, `property`, `fuzz` and `stress`.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "developer commands read their own settings")]

mod bases;
mod bench;
mod compare;
mod demo;
mod fuzz;
mod packages;
mod process;
mod property;
mod stress;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask COMMAND

  demo                     install what is needed, make base images, build and run a real application
  test [FILTER]            everything that CI runs: format, lints, unit tests, end-to-end tests
  compare [CASE]... [--all] [--keep]
                           build the cases of testdata/compare with rbuild and with docker, and print what differs; --all
                           adds real applications and golden cases, --keep leaves contexts and archives
  bases                    make the base images that tests and the demo stand on
  bench [WORKLOAD]... [--peer docker|buildah|buildkit] [--runs N] [--dev]
                           time the workloads of bench/, as ratios against a peer and a floor; `step`: what one step costs;
                           `registry`: pulling and pushing; `store`: what a large store costs; --dev measures the build
                           that tests run
  property [--rounds N] [--seed S]
                           random edits of random builds: a warm store must give the image that a cold one gives, and run
                           no step of which nothing has changed
  fuzz [TARGET]... [--seconds N]
                           fuzz what rbuild reads from strangers: parser, expander, flags, ignore_patterns
  stress [--minutes N] [--processes N] [--seed N] [--store-on dir|tmpfs|loop|flaky]... [--size MIB]
                           many builds on one store with pruning, kills, full disks and power cuts, compared with what each
                           build gives alone";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            process::say(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let Some((command, rest)) = args.split_first() else {
        bail!("{USAGE}");
    };
    match command.as_str() {
        "demo" => demo::demo(),
        "test" => test::test(rest),
        "compare" => compare::compare(rest),
        "bases" => bases::ensure_all(&process::test_binary()?, &bases::store_dir()).map(drop),
        "bench" => bench::bench(rest),
        "property" => property::property(rest),
        "fuzz" => fuzz::fuzz(rest),
        "stress" => stress::stress(rest),
        _ => bail!("unknown command `{command}`\n{USAGE}"),
    }
}
