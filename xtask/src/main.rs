//! Developer commands: `cargo xtask demo`, `test`, `compare`, `bases`, `bench` and `fuzz`.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "developer commands read their own settings")]

mod bases;
mod bench;
mod compare;
mod demo;
mod fuzz;
mod packages;
mod process;
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
  bench [WORKLOAD]... [--peer docker|buildah|buildkit] [--runs N]
                           time the workloads of bench/, as ratios against a peer and a floor; `step`: what one step costs
  fuzz [TARGET]... [--seconds N]
                           fuzz what rbuild reads from strangers: parser, expander, flags, ignore_patterns";

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
        "fuzz" => fuzz::fuzz(rest),
        _ => bail!("unknown command `{command}`\n{USAGE}"),
    }
}
