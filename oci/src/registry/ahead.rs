//! Sending a blob that is still being made.
//!
//! Its beginning goes to the registry in chunks before anybody knows its digest. [`Client::push_blob`] finds what was begun
//! by the digest, and sends the rest. What turns out to be there already, or is never finished, is given up: nothing has cost
//! more than the time in which the blob was made. The registry is told so behind the request that is on its way then, because
//! many keep what they have of one that breaks off.
//!
//! Failures are nobody's business here: the push begins anew, and says what is wrong.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Method;
use tokio::sync::watch;

use super::client::Client;
use super::error::Operation;
use super::hosts::{Endpoint, Purpose};
use super::push::BlobReader;
use super::scopes::Scopes;
use super::transport::attempt;
use super::upload::{Feed, Session, upload_request};
use crate::digest::Digest;
use crate::reference::ImageRef;

/// A part of the longest request is the least that is worth one of its own.
const PARTS_OF_REQUEST: u64 = 4;

/// A blob that is being made, on its way to a repository. Dropped before [`Ahead::complete`], it is given up.
pub struct Ahead {
    client: Client,
    start: Arc<HeadStart>,
    is_complete: bool,
}

/// What is known of such a blob by those who send it and those who push it.
pub(super) struct HeadStart {
    target: ImageRef,
    phase: watch::Sender<Phase>,
    /// Held by whoever sends.
    begun: tokio::sync::Mutex<Option<Begun>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// More is to come.
    Growing,
    /// The push does what is left.
    Complete,
    /// Nobody wants it.
    GivenUp,
}

/// An upload that has begun.
pub(super) struct Begun {
    pub(super) endpoint: Endpoint,
    pub(super) session: Session,
    /// What reads the blob; it stands behind what was sent.
    pub(super) feed: Feed,
    /// Whether the session says what the registry has.
    pub(super) is_sound: bool,
}

impl Client {
    /// Prepares to send a blob to the repository of `target` while it is being made.
    pub fn ahead(&self, target: &ImageRef) -> Ahead {
        let phase = watch::Sender::new(Phase::Growing);
        let start = HeadStart { target: target.name_only(), phase, begun: tokio::sync::Mutex::default() };
        Ahead { client: self.clone(), start: Arc::new(start), is_complete: false }
    }

    /// Gives up an upload: the registry need not keep what it has of it. One that knows no giving up forgets it by itself.
    async fn give_up(&self, target: &ImageRef, begun: Begun) {
        let Begun { endpoint, session, is_sound, .. } = begun;
        let attempt = attempt(Operation::UploadBlob, &endpoint, target, String::new());
        let repository = endpoint.repository(target.repository());
        let scopes = Scopes::push(&repository);
        let request = |method, url| upload_request(&endpoint, &attempt, &repository, &scopes, method, url);
        let session = match is_sound {
            true => Some(session),
            false => self.session_as_it_is(session, u64::MAX, &request).await,
        };
        if let Some(session) = session {
            self.end_session(&request(Method::DELETE, session.url)).await;
        }
    }
}

impl Ahead {
    /// Sends what there is of the blob as it grows, until it is complete or given up. `bytes` gives the blob from its start,
    /// as far as it goes; `grown` says how many bytes that are by now.
    ///
    /// # Cancellation
    /// Dropping the future ends the upload; the push begins where it was, or anew.
    pub fn sending(&self, bytes: BlobReader, grown: watch::Receiver<u64>) -> impl Future<Output = ()> + Send + 'static {
        let (client, start) = (self.client.clone(), self.start.clone());
        async move { start.send(&client, bytes, grown).await }
    }

    /// Says that the blob is complete, and what it is.
    pub fn complete(mut self, digest: &Digest) {
        self.is_complete = true;
        self.start.phase.send_replace(Phase::Complete);
        self.client.keep_head_start(&self.start.target, digest, self.start.clone());
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if !self.is_complete {
            self.start.phase.send_replace(Phase::GivenUp);
        }
    }
}

impl HeadStart {
    /// What was sent, once nothing more is on its way.
    pub(super) async fn taken(&self) -> Option<Begun> {
        self.begun.lock().await.take()
    }

    /// Gives the upload up; whoever is sending does that after the request that is on its way.
    pub(super) async fn give_up(&self, client: &Client) {
        self.phase.send_replace(Phase::GivenUp);
        self.end_if_given_up(client).await;
    }

    /// Unless somebody is sending, who comes here afterwards.
    async fn end_if_given_up(&self, client: &Client) {
        let begun = match self.begun.try_lock() {
            Ok(mut begun) if *self.phase.borrow() == Phase::GivenUp => begun.take(),
            _ => None,
        };
        if let Some(begun) = begun {
            client.give_up(&self.target, begun).await;
        }
    }

    async fn send(&self, client: &Client, bytes: BlobReader, grown: watch::Receiver<u64>) {
        self.send_growing(client, bytes, grown).await;
        self.end_if_given_up(client).await;
    }

    async fn send_growing(&self, client: &Client, bytes: BlobReader, mut grown: watch::Receiver<u64>) {
        let mut begun = self.begun.lock().await;
        let mut phase = self.phase.subscribe();
        let bytes = Mutex::new(Some(bytes));
        let open = || {
            let bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner).take();
            bytes.ok_or_else(|| io::Error::other("it is read once"))
        };
        loop {
            let n_sent = begun.as_ref().map_or(0, |begun| begun.session.offset_bytes);
            let least = client.options().upload_chunk_bytes / PARTS_OF_REQUEST;
            let least = begun.as_ref().map_or(least, |begun| least.max(begun.session.min_chunk_bytes)).max(1);
            let n_bytes = tokio::select! {
                biased;
                () = reached(&mut phase, |phase| phase != Phase::Growing) => break,
                n_bytes = grown_to(&mut grown, n_sent + least) => n_bytes,
            };
            let sent = match n_bytes {
                Some(n_bytes) => self.send_on(client, &mut begun, n_bytes - n_sent, &open).await,
                None => None,
            };
            if sent.is_none() {
                // There is no more, or no way: what becomes of it is others' choice.
                reached(&mut phase, |phase| phase != Phase::Growing).await;
                break;
            }
        }
    }

    /// Sends a chunk of at most `n_bytes`. `None` if that did not go well.
    async fn send_on(
        &self,
        client: &Client,
        begun: &mut Option<Begun>,
        n_bytes: u64,
        open: &(dyn Fn() -> io::Result<BlobReader> + Send + Sync),
    ) -> Option<()> {
        let endpoint = match &*begun {
            Some(begun) => begun.endpoint.clone(),
            None => client.endpoints(&self.target, Purpose::Push).ok()?.0,
        };
        let attempt = attempt(Operation::UploadBlob, &endpoint, &self.target, String::new());
        let repository = endpoint.repository(self.target.repository());
        let scopes = Scopes::push(&repository);
        let most = client.chunk_bytes(&endpoint);
        if most == u64::MAX {
            // It takes no chunks.
            return None;
        }
        let begun = match begun {
            Some(begun) => begun,
            None => {
                let session = client.open_session(&endpoint, &self.target, &attempt, &scopes).await.ok()?;
                let (endpoint, feed) = (endpoint.clone(), Feed::default());
                begun.insert(Begun { endpoint, session, feed, is_sound: true })
            }
        };
        let Begun { session, feed, is_sound, .. } = begun;
        let n_bytes = n_bytes.min(most.max(session.min_chunk_bytes));
        let end = session.offset_bytes + n_bytes;
        let request = upload_request(&endpoint, &attempt, &repository, &scopes, Method::PATCH, session.url.clone());
        *is_sound = false;
        client.send_chunk(session, n_bytes, feed, (open, end), request, &mut |_| ()).await.ok()?;
        *is_sound = true;
        Some(())
    }
}

/// Waits for a phase; the sender lives as long as whoever waits.
async fn reached(phase: &mut watch::Receiver<Phase>, is_it: impl Fn(Phase) -> bool) {
    drop(phase.wait_for(|phase| is_it(*phase)).await);
}

/// Waits until the blob has at least so many bytes. How many it has then; `None` if it will not have them.
async fn grown_to(grown: &mut watch::Receiver<u64>, least: u64) -> Option<u64> {
    grown.wait_for(|n_bytes| *n_bytes >= least).await.ok().map(|n_bytes| *n_bytes)
}
