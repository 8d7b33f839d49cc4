//! The bare repository that is kept for a remote between builds.

use std::path::Path;

use solver::{GitOp, OpError};

use crate::source::{blocking, io_error, url};

use super::program::Git;
use super::remote::Resolved;

/// Where fetched commits are held on to, so that they are not loose ends.
const KEPT: &str = "refs/rbuild/";

/// Identity of the repository of `remote` in the store. Credentials in the URL are part of it on purpose: what one user
/// may see is nothing for another one.
pub(super) fn id(remote: &str) -> String {
    let digest = blake3::derive_key("rbuild repository of a git remote, v1", remote.as_bytes());
    format!("git-{}", oci::digest::hex(&digest[..16]))
}

/// Makes sure that the commit with all of its tree is in the repository at `dir`, fetching as little as possible.
pub(super) async fn ensure_commit(git: &Git, dir: &Path, op: &GitOp, resolved: &Resolved) -> Result<(), OpError> {
    let is_usable = git.call(dir, &["rev-parse", "--is-bare-repository"]).await?.is_ok_and(|text| text == "true\n");
    if !is_usable {
        start_over(dir).await?;
        git.run(dir, "make a git repository", &["init", "--quiet", "--bare", "--template="]).await?;
        // Checkouts fetch their commit from here.
        git.run(dir, "configure a git repository", &["config", "uploadpack.allowAnySHA1InWant", "true"]).await?;
    }
    if has_commit(git, dir, &resolved.commit).await? {
        return Ok(());
    }
    remove_stale_locks(dir).await?;
    fetch(git, dir, op, resolved).await
}

async fn has_commit(git: &Git, dir: &Path, commit: &str) -> Result<bool, OpError> {
    Ok(git.call(dir, &["cat-file", "-e", &format!("{commit}^{{commit}}")]).await?.is_ok())
}

async fn fetch(git: &Git, dir: &Path, op: &GitOp, resolved: &Resolved) -> Result<(), OpError> {
    let commit = resolved.commit.as_str();
    let shallow = ["fetch", "--quiet", "--depth=1", "--no-tags", "--force", "--"];
    // By ref first, which every server allows; it may have moved since it was resolved, then by commit.
    let sources = resolved.ref_name.iter().map(String::as_str).chain([commit]);
    for source in sources {
        let refspec = format!("{source}:{KEPT}{commit}");
        let args: Vec<&str> = shallow.iter().copied().chain([op.remote.as_str(), &refspec]).collect();
        let fetched = git.call(dir, &args).await?;
        if fetched.is_ok() && has_commit(git, dir, commit).await? {
            return Ok(());
        }
    }
    // A server that gives no commits by id: everything, until it is there.
    let mut args = vec!["fetch", "--quiet", "--tags", "--force"];
    args.extend(dir.join("shallow").exists().then_some("--unshallow"));
    args.extend(["--", &op.remote, "+refs/heads/*:refs/rbuild/heads/*"]);
    let what = format!("fetch remote {}", url::redacted(&op.remote));
    git.run(dir, &what, &args).await?;
    if has_commit(git, dir, commit).await? {
        return Ok(());
    }
    let name = op.reference.as_deref().unwrap_or(commit);
    Err(OpError::input(format!("repository does not contain ref {name}, output: \"\"")))
}

/// Empties a directory that holds no usable repository (a new one, or what a power cut has left).
async fn start_over(dir: &Path) -> Result<(), OpError> {
    let dir = dir.to_owned();
    blocking(move || {
        for entry in std::fs::read_dir(&dir).map_err(io_error("read", &dir))? {
            let path = entry.map_err(io_error("read", &dir))?.path();
            let is_dir = path.symlink_metadata().map_err(io_error("examine", &path))?.is_dir();
            let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(io_error("remove", &path))?;
        }
        Ok(())
    })
    .await
}

/// Removes the locks of a git that was killed. Nobody else works here: the directory is ours while we hold its lock.
async fn remove_stale_locks(dir: &Path) -> Result<(), OpError> {
    let dir = dir.to_owned();
    blocking(move || {
        let mut todo = vec![dir.clone(), dir.join("refs"), dir.join("objects/info")];
        while let Some(dir) = todo.pop() {
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            for entry in entries {
                let path = entry.map_err(io_error("read", &dir))?.path();
                if path.extension().is_some_and(|extension| extension == "lock") {
                    std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
                } else if dir.components().any(|part| part.as_os_str() == "refs") && path.is_dir() {
                    todo.push(path);
                }
            }
        }
        Ok(())
    })
    .await
}
