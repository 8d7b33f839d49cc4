//! From a commit to the files of a layer.

use std::fs::{Metadata, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use cache::TreeDraft;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use solver::{GitOp, OpError};

use crate::source::{blocking, io_error, url};

use super::program::Git;
use super::remote::Resolved;

/// Checks the commit out and leaves in `draft` what the layer shall hold.
pub(super) async fn checkout(
    git: &Git,
    repository: &Path,
    op: &GitOp,
    resolved: &Resolved,
    draft: &TreeDraft,
) -> Result<(), OpError> {
    // Beside the tree, because only a part of it may be wanted, and because git works there with a `.git`.
    let dir = draft.work().join("checkout");
    std::fs::create_dir(&dir).map_err(io_error("create", &dir))?;
    let keeps_git_dir = op.keep_git_dir && op.subdir.is_none();
    if keeps_git_dir {
        clone(git, repository, &dir, op, resolved).await?;
    } else {
        borrow(git, repository, &dir, resolved).await?;
    }
    let here = git.in_work_tree(&dir.join(".git"), &dir);
    if op.submodules && dir.join(".gitmodules").exists() {
        // Relative URLs of submodules are relative to this one.
        here.run(&dir, "configure the remote", &["config", "remote.origin.url", &op.remote]).await?;
        let args = ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"];
        // The program looks at the current directory alone, and must, for submodules of submodules.
        let what = format!("update submodules for {}", url::redacted(&op.remote));
        git.run(&dir, &what, &args).await?;
        here.run(&dir, "configure the remote", &["config", "remote.origin.url", &url::redacted(&op.remote)]).await?;
    }
    let commit_time = match op.commit_times {
        false => None,
        true => {
            let args = ["show", "--no-patch", "--format=%ct", &resolved.commit, "--"];
            let text = here.run(&dir, "read the time of the commit", &args).await?;
            let time = text.trim().parse::<i64>();
            Some(time.map_err(|_| OpError::environment(format!("git has no time for {}", resolved.commit)))?)
        }
    };
    let (tree, subdir) = (draft.tree(), op.subdir.clone());
    blocking(move || {
        let wanted = match &subdir {
            None => dir.clone(),
            Some(subdir) => find_subdir(&dir, subdir)?,
        };
        normalise(&wanted, keeps_git_dir, commit_time)?;
        move_children(&wanted, &tree)?;
        std::fs::remove_dir_all(&dir).map_err(io_error("remove", &dir))
    })
    .await
}

/// A checkout that uses the objects of `repository` where they are: nothing is copied, and nothing is kept.
async fn borrow(git: &Git, repository: &Path, dir: &Path, resolved: &Resolved) -> Result<(), OpError> {
    git.run(dir, "make a git repository", &["init", "--quiet", "--template="]).await?;
    let alternates = dir.join(".git/objects/info/alternates");
    let objects = repository.join("objects");
    let write = |path: &Path, text: String| {
        let parent = path.parent().expect("a path inside of the checkout");
        std::fs::create_dir_all(parent).and_then(|()| std::fs::write(path, text)).map_err(io_error("write", path))
    };
    write(&alternates, format!("{}\n", objects.display()))?;
    write(&dir.join(".git/shallow"), format!("{}\n", resolved.commit))?;
    check_out_commit(git, dir, resolved).await
}

/// A checkout with a repository of its own: shallow, with the remote without credentials, and without traces of ours.
async fn clone(git: &Git, repository: &Path, dir: &Path, op: &GitOp, resolved: &Resolved) -> Result<(), OpError> {
    git.run(dir, "make a git repository", &["init", "--quiet"]).await?;
    // By protocol and not as a local clone, which would link files of the kept repository into the layer.
    let source = format!("file://{}", repository.display());
    let what = "copy the commit";
    git.run(dir, what, &["fetch", "--quiet", "--update-head-ok", "--depth=1", "--", &source, &resolved.commit]).await?;
    if let Some(name) = &resolved.ref_name {
        let (kind, short) = match name.strip_prefix("refs/tags/") {
            Some(tag) => ("refs/tags/", tag),
            None => ("refs/heads/", name.strip_prefix("refs/heads/").unwrap_or(name)),
        };
        let branch = format!("refs/heads/{short}");
        git.run(dir, "name the branch", &["update-ref", &branch, &resolved.commit]).await?;
        if kind == "refs/tags/" {
            git.run(dir, "name the tag", &["update-ref", &format!("{kind}{short}"), &resolved.commit]).await?;
        }
    }
    check_out_commit(git, dir, resolved).await?;
    git.run(dir, "name the remote", &["remote", "add", "origin", "--", &url::redacted(&op.remote)]).await?;
    // Both tell of times and of directories of this machine.
    git.run(dir, "empty the log", &["reflog", "expire", "--all", "--expire=now"]).await?;
    let fetch_head = dir.join(".git/FETCH_HEAD");
    std::fs::remove_file(&fetch_head).map_err(io_error("remove", &fetch_head))
}

async fn check_out_commit(git: &Git, dir: &Path, resolved: &Resolved) -> Result<(), OpError> {
    let args = ["checkout", "--quiet", "--force", "--detach", &resolved.commit, "--"];
    git.run(dir, "check out the commit", &args).await.map(drop)
}

/// The directory `subdir` of the checkout. No component may be a link: it could lead anywhere.
fn find_subdir(checkout: &Path, subdir: &str) -> Result<PathBuf, OpError> {
    let shown = subdir.trim_matches('/');
    let mut path = checkout.to_owned();
    let mut so_far = PathBuf::new();
    for component in Path::new(shown).components() {
        match component {
            Component::Normal(name) if name != ".git" => {
                path.push(name);
                so_far.push(name);
            }
            Component::CurDir => continue,
            _ => return Err(OpError::input(format!("invalid subdir {shown}"))),
        }
        let at = so_far.display();
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(OpError::input(format!("invalid subdir {shown}: \"{at}\" is not a directory"))),
            Err(_) => {
                let reason = format!("failed to lstat \"{at}\": statat {at}: no such file or directory");
                return Err(OpError::input(format!("invalid subdir {shown}: {reason}")));
            }
        }
    }
    Ok(path)
}

/// Gives everything below `dir` the modes git knows (0755 and 0644), whatever the umask is, and the time of the
/// commit if it is wanted; removes what git has put there for itself unless it is kept.
fn normalise(dir: &Path, keeps_git_dir: bool, time: Option<i64>) -> Result<(), OpError> {
    for entry in std::fs::read_dir(dir).map_err(io_error("read", dir))? {
        let entry = entry.map_err(io_error("read", dir))?;
        let path = entry.path();
        let metadata = path.symlink_metadata().map_err(io_error("examine", &path))?;
        if entry.file_name() == ".git" && !keeps_git_dir {
            // The repository itself, or the pointer of a submodule: no tree can have an entry of that name.
            let removed = if metadata.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(io_error("remove", &path))?;
            continue;
        }
        if metadata.is_dir() {
            normalise(&path, keeps_git_dir, time)?;
        }
        set_mode(&path, &metadata)?;
        set_time(&path, time)?;
    }
    Ok(())
}

fn set_mode(path: &Path, metadata: &Metadata) -> Result<(), OpError> {
    if metadata.is_symlink() {
        return Ok(());
    }
    let mode = metadata.permissions().mode();
    // Objects of a kept repository are read-only, which is how git wants them.
    let wanted = match (metadata.is_dir(), mode & 0o100 != 0, mode & 0o200 != 0) {
        (true, _, _) | (false, true, true) => 0o755,
        (false, false, true) => 0o644,
        (false, true, false) => 0o555,
        (false, false, false) => 0o444,
    };
    if mode & 0o7777 == wanted {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(wanted)).map_err(io_error("set the mode of", path))
}

fn set_time(path: &Path, time: Option<i64>) -> Result<(), OpError> {
    let Some(seconds) = time else { return Ok(()) };
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| io_error("set the time of", path)(errno.into()))
}

fn move_children(from: &Path, to: &Path) -> Result<(), OpError> {
    for entry in std::fs::read_dir(from).map_err(io_error("read", from))? {
        let entry = entry.map_err(io_error("read", from))?;
        let path = entry.path();
        std::fs::rename(&path, to.join(entry.file_name())).map_err(io_error("move", &path))?;
    }
    Ok(())
}
