//! Contexts that lie elsewhere: fetched through the engine before there is a plan, because the Dockerfile is in them
//! (`spec/dockerfile.md` §6).

use std::path::Path;

use executor::engine::Engine;
use executor::fetched::{FetchedFiles, Found};
use executor::source::archive;
use solver::plan::{ContextKind, RemoteFiles, URL_CONTEXT_FILE, redacted};
use solver::{OpError, Tier};

use super::context::{self, Dockerfile};
use crate::failure::Failure;
use crate::request::DockerfileArg;

/// Fetches the context at `url` and reads the Dockerfile in it. The plan finds what was fetched in the store.
pub(super) async fn dockerfile(
    engine: &Engine,
    url: &str,
    kind: &ContextKind,
    named: &DockerfileArg,
) -> Result<Dockerfile, Failure> {
    let place = redacted(url);
    let Some(remote) = RemoteFiles::of_context(kind) else {
        return Err(OpError::internal(format!("the context {place} is not elsewhere")).into());
    };
    if let ContextKind::Git(_) = kind {
        let files = engine.fetch(&remote.graph, [remote.files]).await;
        let [files] = files.map_err(|error| during("failed to read dockerfile", error))?;
        return context::dockerfile_in(&files, named, &place);
    }
    let both = engine.fetch(&remote.graph, [remote.fetched, remote.files]).await;
    let [fetched, files] = both.map_err(|error| during("failed to read downloaded context", error))?;
    match lone_dockerfile(&fetched)? {
        Some(text) => Ok(Dockerfile { name: URL_CONTEXT_FILE.to_owned(), text, identity: place }),
        None => context::dockerfile_in(&files, named, &place),
    }
}

/// Fetches the Dockerfile at `url`, which is no part of the context.
pub(super) async fn dockerfile_at(engine: &Engine, url: &str) -> Result<Dockerfile, Failure> {
    let remote = RemoteFiles::of_dockerfile(url);
    let files = engine.fetch(&remote.graph, [remote.files]).await;
    let [files] = files.map_err(|error| during("failed to read dockerfile", error))?;
    let place = redacted(url);
    let found = context::dockerfile_in(&files, &DockerfileArg::Default, &place)?;
    Ok(Dockerfile { identity: place, ..found })
}

/// What is behind a URL, unless it is an archive: then it is the Dockerfile, whatever its name.
fn lone_dockerfile(fetched: &FetchedFiles) -> Result<Option<Vec<u8>>, Failure> {
    let read = |most_bytes| match fetched.read(Path::new(URL_CONTEXT_FILE), most_bytes)? {
        Found::File(bytes) => Ok(bytes),
        Found::NoFile | Found::Nothing => Err(OpError::internal("what was downloaded is no file")),
    };
    if archive::is_archive(&read(archive::HEAD_BYTES as u64)?) {
        return Ok(None);
    }
    let text = read(context::MAX_REMOTE_DOCKERFILE)?;
    context::check_size(&text, Path::new(URL_CONTEXT_FILE))?;
    Ok(Some(text))
}

/// Says at what an operation has failed.
fn during(what: &str, error: OpError) -> Failure {
    match error.tier {
        Tier::Cancelled => error.into(),
        _ => OpError { message: format!("{what}: {}", error.message), ..error }.into(),
    }
}
