//! `cargo xtask demo`: the main job on a real application, from nothing.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::bases;
use crate::process::{release_binary, run_command, say, work_dir, workspace};

const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Builds the two-stage Flask application, shows its layers and runs commands from it.
pub(crate) fn demo() -> Result<()> {
    let rbuild = release_binary()?;
    let store = bases::store_dir();
    bases::ensure(&rbuild, &store, &["debian:bookworm", "python:3.11-slim"])?;
    let application = workspace().join("testdata/real/flask-two-stage");
    let secret = format!("id=ca,src={CA_BUNDLE}");

    show(&rbuild, &store, &["-t", "app:1.0", "--secret", &secret, &application.to_string_lossy()])?;
    say("\nbuilt again: everything comes from the cache");
    show(&rbuild, &store, &["-t", "app:1.0", "--secret", &secret, &application.to_string_lossy()])?;
    show(&rbuild, &store, &["images"])?;
    show(&rbuild, &store, &["history", "app:1.0"])?;
    show(&rbuild, &store, &["run", "--rm", "app:1.0", "--version"])?;
    show(&rbuild, &store, &["run", "--rm", "--entrypoint", "id", "app:1.0"])?;
    let archive = work_dir().join("app.tar");
    let output = format!("type=oci,dest={}", archive.display());
    show(&rbuild, &store, &["-t", "app:1.0", "--secret", &secret, "-o", &output, &application.to_string_lossy()])?;
    say(&format!("\nthe image as an OCI archive: {}", archive.display()));
    say(&format!(
        "try it yourself: {} --store {} run --rm -it --entrypoint bash app:1.0",
        rbuild.display(),
        store.display()
    ));
    Ok(())
}

fn show(rbuild: &Path, store: &Path, args: &[&str]) -> Result<()> {
    say(&format!("\n$ rbuild {}", args.join(" ")));
    run_command(Command::new(rbuild).arg("--store").arg(store).args(args))
}
