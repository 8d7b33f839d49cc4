//! Engines without an API: a program reads the archive from its standard input.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use cache::Store;
use solver::{OpError, Step};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::stream;
use crate::export::Archive;

/// Runs the program and gives it the archive.
pub(super) async fn load(
    program: &Path,
    args: &[String],
    archive: Archive,
    store: &Store,
    step: &Step,
) -> Result<(), OpError> {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let fault =
        |operation: &str, error: std::io::Error| OpError::environment(format!("cannot {operation} {name}: {error}"));
    let mut child = command.spawn().map_err(|error| fault("start", error))?;
    let stdin = child.stdin.take();
    let (mut pieces, writer) = stream::write(archive, BTreeSet::new(), store, step);
    let send = async move {
        let mut stdin = stdin?;
        while let Some(piece) = pieces.recv().await {
            // A program that has gone says why in its own words.
            stdin.write_all(&piece).await.ok()?;
        }
        stdin.shutdown().await.ok()
    };
    let (_, output) = tokio::join!(send, child.wait_with_output());
    let output = output.map_err(|error| fault("wait for", error))?;
    let written = writer.await.map_err(|_| OpError::cancelled())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let reason = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        let refused = OpError::environment(format!("{name} does not take the image ({}): {reason}", output.status));
        // An archive that was cut short on our side is refused, too.
        return Err(written.err().filter(|error| !stream::is_broken_pipe(error)).unwrap_or(refused));
    }
    written
}
