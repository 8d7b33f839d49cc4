//! Writing: blobs and manifests.
//!
//! A blob is asked for, then mounted from another repository, then sent (`upload`).
//!
//! Spec: `spec/engine.md` §4.3.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use tokio::io::AsyncRead;

use super::ahead::HeadStart;
use super::client::{Client, Slot};
use super::error::{Attempt, Operation, RegistryError};
use super::hosts::{Endpoint, Purpose};
use super::scopes::Scopes;
use super::transport::{Request, attempt, endpoint_url, protocol};
use super::upload::{Feed, MAX_SIZES, Progress, Session, Stop, Upload, session_of, upload_request};
use crate::digest::Digest;
use crate::image::Descriptor;
use crate::reference::ImageRef;

/// Times that a manifest is sent to a registry that does not know its blobs. Docker's registry misses one for as long as
/// somebody else writes it to the same repository; others are a moment late by design.
const MAX_BLOBS_UNKNOWN: u32 = 5;

/// The bytes of a blob, from the start.
pub type BlobReader = Box<dyn AsyncRead + Send + Unpin>;

/// How a blob came to be in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was taken over from another repository of the registry.
    Mounted {
        /// That repository.
        from: String,
    },
    /// It was sent.
    Uploaded,
}

/// What came of asking for a mount.
enum Mount {
    Done,
    /// The registry wants the bytes, here.
    UploadTo(Session),
    /// We may not read the other repository.
    Denied,
}

impl Client {
    /// Asks whether a blob is in the repository of `target`.
    ///
    /// # Errors
    /// [`RegistryError`]; absence is none.
    pub async fn blob_exists(&self, target: &ImageRef, digest: &Digest) -> Result<bool, RegistryError> {
        let (mut endpoint, mut others) = self.endpoints(target, Purpose::Push)?;
        loop {
            match self.check_blob(&endpoint, target, digest, Operation::CheckBlob).await {
                Ok(exists) => return Ok(exists),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    /// Asks whether blobs may be sent to the repository of `target`: begins an upload, and gives it up.
    ///
    /// # Errors
    /// [`RegistryError`]: they may not, or the registry cannot be asked.
    pub async fn check_push(&self, target: &ImageRef) -> Result<(), RegistryError> {
        let (mut endpoint, mut others) = self.endpoints(target, Purpose::Push)?;
        loop {
            match self.check_push_at(&endpoint, target).await {
                Ok(()) => return Ok(()),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    async fn check_push_at(&self, endpoint: &Endpoint, target: &ImageRef) -> Result<(), RegistryError> {
        let attempt = attempt(Operation::UploadBlob, endpoint, target, target.manifest_reference());
        let repository = endpoint.repository(target.repository());
        let scopes = Scopes::push(&repository);
        let session = self.open_session(endpoint, target, &attempt, &scopes).await?;
        self.end_session(&upload_request(endpoint, &attempt, &repository, &scopes, Method::DELETE, session.url)).await;
        Ok(())
    }

    /// Brings a blob into the repository of `target`, sending it only if there is no other way.
    ///
    /// `open` gives the blob's bytes from the start; it is called once a try. `mounts` are repositories of the same
    /// registry that are known to have the blob; the one most like the target is tried. `progress` is told the bytes
    /// sent so far, and may be told less after a failed try.
    ///
    /// What was sent of it while it was made ([`Client::ahead`]) is not sent again.
    ///
    /// A blob goes to a repository once, however many ask for it, at the same time or later: the others wait, and hear
    /// that it is there. After a failure or a cancellation, the next one tries.
    ///
    /// # Errors
    /// [`RegistryError`], after several tries if the reason may pass.
    ///
    /// # Cancellation
    /// Dropping the future ends the upload; the registry forgets the unfinished part after a while.
    pub async fn push_blob(
        &self,
        target: &ImageRef,
        blob: &Descriptor,
        open: &(dyn Fn() -> io::Result<BlobReader> + Send + Sync),
        mounts: &[String],
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<Pushed, RegistryError> {
        let mut is_there = self.gate(target, &blob.digest).await;
        let mut head_start = self.take_head_start(target, &blob.digest);
        if *is_there {
            self.give_up_ahead(&mut head_start).await;
            return Ok(Pushed::Existed);
        }
        let (mut endpoint, mut others) = self.endpoints(target, Purpose::Push)?;
        let mount = best_mount(target.repository(), mounts);
        let upload = Upload { target, blob, open };
        loop {
            match self.push_blob_at(&endpoint, mount, &mut head_start, upload, &mut progress).await {
                Ok(pushed) => {
                    *is_there = true;
                    return Ok(pushed);
                }
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    /// [`push_blob`](Self::push_blob) for bytes in memory, such as an image config.
    ///
    /// # Errors
    /// As [`push_blob`](Self::push_blob).
    pub async fn push_small_blob(
        &self,
        target: &ImageRef,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Descriptor, RegistryError> {
        let blob = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        let open = || -> io::Result<BlobReader> { Ok(Box::new(io::Cursor::new(bytes.clone()))) };
        self.push_blob(target, &blob, &open, &[], |_| ()).await?;
        Ok(blob)
    }

    /// Puts a manifest or index under the tag of `target`, or under its digest if there is no tag.
    ///
    /// Everything that it names must be there already. Nothing is sent if the registry has just this under that name.
    /// A registry that does not see a blob which it took a moment ago is asked again.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::DigestMismatch`] also if `target` names another digest than that of `bytes`.
    pub async fn push_manifest(
        &self,
        target: &ImageRef,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Descriptor, RegistryError> {
        let manifest = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        let (mut endpoint, mut others) = self.endpoints(target, Purpose::Push)?;
        loop {
            match self.push_manifest_at(&endpoint, target, &manifest, &bytes).await {
                Ok(()) => return Ok(manifest),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    async fn push_manifest_at(
        &self,
        endpoint: &Endpoint,
        target: &ImageRef,
        manifest: &Descriptor,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let object = target.tag().map_or_else(|| manifest.digest.to_string(), str::to_owned);
        let attempt = attempt(Operation::PutManifest, endpoint, target, object.clone());
        if let Some(expected) = target.digest().filter(|digest| **digest != manifest.digest).cloned() {
            return Err(RegistryError::DigestMismatch { attempt, expected, actual: manifest.digest.clone() });
        }
        let named = target.name_only();
        let named = match target.tag() {
            Some(tag) => named.with_tag(tag).expect("the tag of a reference is well formed"),
            None => named.with_digest(manifest.digest.clone()),
        };
        match self.head_manifest(endpoint, &named, Operation::PutManifest).await {
            Ok(Some(found)) if found.digest == manifest.digest && found.media_type == manifest.media_type => {
                return Ok(());
            }
            Ok(_) | Err(RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let repository = endpoint.repository(target.repository());
        let content_type = HeaderValue::from_str(&manifest.media_type)
            .map_err(|_| protocol(&attempt, "the media type cannot stand in a header"))?;
        let request = Request {
            endpoint,
            attempt: &attempt,
            repository: &repository,
            scopes: &Scopes::push(&repository),
            slot: Slot::Small,
            method: Method::PUT,
            url: endpoint_url(endpoint, target, &format!("manifests/{object}"), &attempt)?,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, content_type)]),
            body: bytes.clone(),
        };
        let mut failures = 0;
        loop {
            let reply = self.send(request.clone()).await?;
            if reply.status().is_success() {
                return Ok(());
            }
            let error = self.status_error(&request, reply).await;
            failures += 1;
            if !error.misses_blobs() || failures >= MAX_BLOBS_UNKNOWN {
                return Err(error);
            }
            self.pause_after_break(error, failures).await?;
        }
    }

    async fn push_blob_at(
        &self,
        endpoint: &Endpoint,
        mount: Option<&str>,
        head_start: &mut Option<Arc<HeadStart>>,
        upload: Upload<'_>,
        progress: Progress<'_>,
    ) -> Result<Pushed, RegistryError> {
        let attempt = attempt(Operation::UploadBlob, endpoint, upload.target, upload.blob.digest.to_string());
        let repository = endpoint.repository(upload.target.repository());
        let scopes = Scopes::push(&repository);
        let request = |method, url| upload_request(endpoint, &attempt, &repository, &scopes, method, url);
        let mut mount = mount;
        let mut session: Option<Session> = None;
        let mut feed = Feed::default();
        let (mut failures, mut n_challenges, mut n_sizes) = (0, 0, 0);
        loop {
            let mut current = match session.take() {
                Some(session) => session,
                None => {
                    // Also after a failed try: the blob may be complete although the answer was lost.
                    if self.check_blob(endpoint, upload.target, &upload.blob.digest, Operation::UploadBlob).await? {
                        self.give_up_ahead(head_start).await;
                        return Ok(Pushed::Existed);
                    }
                    let mounted = match mount.take() {
                        Some(from) => match self.mount(endpoint, upload, &attempt, from).await? {
                            Mount::Done => {
                                self.give_up_ahead(head_start).await;
                                return Ok(Pushed::Mounted { from: from.to_owned() });
                            }
                            Mount::UploadTo(session) => Some(session),
                            Mount::Denied => None,
                        },
                        None => None,
                    };
                    let begun = match head_start.take() {
                        Some(start) => start.taken().await.filter(|begun| begun.endpoint == *endpoint),
                        None => None,
                    };
                    let begun = match begun {
                        Some(begun) => {
                            feed = begun.feed;
                            match begun.is_sound {
                                true => Some(begun.session),
                                false => self.session_as_it_is(begun.session, upload.blob.size_bytes, &request).await,
                            }
                        }
                        None => None,
                    };
                    match begun.or(mounted) {
                        Some(session) => session,
                        None => self.open_session(endpoint, upload.target, &attempt, &scopes).await?,
                    }
                }
            };
            let before = current.offset_bytes;
            let stop = match self.send_rest(&mut current, &mut feed, upload, &request, progress).await {
                Ok(()) => return Ok(Pushed::Uploaded),
                Err(stop) => stop,
            };
            if current.offset_bytes > before {
                (failures, n_challenges) = (0, 0);
            }
            let (error, delay) = match stop {
                Stop::Unauthorized(refused) => {
                    let (refused, reply) = *refused;
                    n_challenges += 1;
                    let rejected = self.authorization(refused.need()).await?;
                    let answer = match n_challenges {
                        1 => self.reauthorize(&refused, &reply, rejected.as_ref()).await?,
                        _ => None,
                    };
                    if answer.is_none() {
                        return Err(self.status_error(&refused, reply).await);
                    }
                    session = self.session_as_it_is(current, upload.blob.size_bytes, &request).await;
                    continue;
                }
                Stop::OtherSize(error) if n_sizes >= MAX_SIZES => return Err(error),
                Stop::OtherSize(_) => {
                    n_sizes += 1;
                    continue;
                }
                Stop::Fatal(error) => return Err(error),
                Stop::Passing(error, delay) => (error, delay),
            };
            failures += 1;
            let delay = delay.unwrap_or_else(|| self.options().retry.delay(failures));
            self.pause(error, failures, delay).await?;
            session = self.session_as_it_is(current, upload.blob.size_bytes, &request).await;
        }
    }

    async fn give_up_ahead(&self, head_start: &mut Option<Arc<HeadStart>>) {
        if let Some(start) = head_start.take() {
            start.give_up(self).await;
        }
    }

    async fn check_blob(
        &self,
        endpoint: &Endpoint,
        target: &ImageRef,
        digest: &Digest,
        operation: Operation,
    ) -> Result<bool, RegistryError> {
        let attempt = attempt(operation, endpoint, target, digest.to_string());
        let repository = endpoint.repository(target.repository());
        let scopes = match operation {
            // One token for the question and for what follows from it.
            Operation::UploadBlob => Scopes::push(&repository),
            _ => Scopes::pull(&repository),
        };
        let url = endpoint_url(endpoint, target, &format!("blobs/{digest}"), &attempt)?;
        let request = upload_request(endpoint, &attempt, &repository, &scopes, Method::HEAD, url);
        let reply = self.send(request.clone()).await?;
        match reply.status() {
            status if status.is_success() => Ok(true),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.status_error(&request, reply).await),
            // Whatever else it is, the upload will tell.
            _ => Ok(false),
        }
    }

    /// Asks the registry to take the blob over from another repository.
    async fn mount(
        &self,
        endpoint: &Endpoint,
        upload: Upload<'_>,
        attempt: &Arc<Attempt>,
        from: &str,
    ) -> Result<Mount, RegistryError> {
        let repository = endpoint.repository(upload.target.repository());
        let scopes = Scopes::push(&repository).and(from, &["pull"]);
        let mut url = endpoint_url(endpoint, upload.target, "blobs/uploads/", attempt)?;
        url.query_pairs_mut().append_pair("mount", &upload.blob.digest.to_string()).append_pair("from", from);
        let request = upload_request(endpoint, attempt, &repository, &scopes, Method::POST, url);
        let reply = match self.send(request).await {
            Err(error) if error.is_unauthorized() => return Ok(Mount::Denied),
            outcome => outcome?,
        };
        match reply.status() {
            StatusCode::CREATED => Ok(Mount::Done),
            StatusCode::ACCEPTED => session_of(&reply, endpoint, attempt).map(Mount::UploadTo),
            _ => Ok(Mount::Denied),
        }
    }

    pub(super) async fn open_session(
        &self,
        endpoint: &Endpoint,
        target: &ImageRef,
        attempt: &Arc<Attempt>,
        scopes: &Scopes,
    ) -> Result<Session, RegistryError> {
        let repository = endpoint.repository(target.repository());
        let url = endpoint_url(endpoint, target, "blobs/uploads/", attempt)?;
        let request = upload_request(endpoint, attempt, &repository, scopes, Method::POST, url);
        let reply = self.send(request.clone()).await?;
        if !reply.status().is_success() {
            return Err(self.status_error(&request, reply).await);
        }
        session_of(&reply, endpoint, attempt)
    }
}

/// The repository with the longest common path with `target`; the first of equals, never the target itself.
fn best_mount<'a>(target: &str, candidates: &'a [String]) -> Option<&'a str> {
    let common = |other: &str| target.split('/').zip(other.split('/')).take_while(|(a, b)| a == b).count();
    candidates
        .iter()
        .filter(|candidate| *candidate != target)
        .rev()
        .max_by_key(|candidate| common(candidate))
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_repository_is_mounted_from() {
        let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let cases: [(&[&str], Option<&str>); 5] = [
            (&[], None),
            (&["team/app"], None),
            (&["x/y", "team/base", "team/other"], Some("team/base")),
            (&["x/y", "z"], Some("x/y")),
            (&["team", "team/app/cache"], Some("team/app/cache")),
        ];
        for (candidates, expected) in cases {
            assert_eq!(best_mount("team/app", &own(candidates)), expected, "{candidates:?}");
        }
    }
}
