//! Sources: images from the store and from registries, files behind URLs, git trees.
//!
//! Each source answers two questions: what does the name stand for now (cheaply, for keys), and may I have the files.
//! Knows nothing of graphs. Bytes from outside are verified before they get a name in the store.
//!
//! Spec: `spec/engine.md` §4.2, §4.5, §4.6.

pub mod archive;
pub mod git;
pub mod http;
pub mod image;
#[cfg(test)]
mod testing;
mod url;

use std::path::Path;
use std::sync::Arc;

use cache::{LayerInfo, Store, TreeDraft};
use solver::OpError;

pub use git::GitSource;
pub use http::HttpSource;
pub use image::ImageSource;

/// Finds secrets by id (`GIT_AUTH_TOKEN`, `HTTP_AUTH_HEADER_example.com`); `None` when there is none of that name.
pub type SecretLookup = Arc<dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync>;

/// Makes a finished tree a layer, with the content digest of what is in it.
async fn commit(store: &Store, draft: TreeDraft) -> Result<LayerInfo, OpError> {
    let store = store.clone();
    blocking(move || {
        let content = crate::layer::content_digest(&draft.tree(), None)
            .map_err(|error| OpError::environment(error.to_string()))?;
        Ok(store.commit_tree(draft, content)?)
    })
    .await
}

/// Runs work on files or the processor off the runtime's threads.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        // It is never aborted, so it has panicked; that must not pass for an answer.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Says which operation on which path failed.
fn io_error<'a>(operation: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> OpError + use<'a> {
    move |error| OpError::environment(format!("cannot {operation} `{}`: {error}", path.display()))
}
