//! Blobs that are sent while they are being made.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::fake::Fake;
use super::server::Answer;
use super::upload::{CHUNK, arrived, blob, in_chunks, push, sent};
use super::{reference, server::Seen};
use crate::image::Descriptor;
use crate::registry::{Ahead, Client, Pushed};

const SIZE: u32 = 900_000;

/// A blob that grows in a file, and its sender.
struct Growing {
    client: Client,
    bytes: Bytes,
    blob: Descriptor,
    file: std::fs::File,
    grown: watch::Sender<u64>,
    ahead: Ahead,
    sending: JoinHandle<()>,
}

impl Growing {
    fn start(fake: &Fake) -> Self {
        let client = in_chunks();
        let (bytes, blob) = blob(SIZE);
        let file = tempfile::NamedTempFile::new().expect("a file");
        let reader = tokio::fs::File::from_std(file.reopen().expect("opens"));
        let grown = watch::Sender::new(0);
        let ahead = client.ahead(&reference(fake.host(), "team/app"));
        let sending = tokio::runtime::Handle::current().spawn(ahead.sending(Box::new(reader), grown.subscribe()));
        Self { client, bytes, blob, file: file.into_file(), grown, ahead, sending }
    }

    fn grow(&mut self, to: usize) {
        let from = *self.grown.borrow() as usize;
        self.file.write_all(&self.bytes[from..to]).expect("written");
        self.grown.send_replace(to as u64);
    }

    /// Completes the blob and pushes it.
    async fn finish(mut self, fake: &Fake) -> io::Result<Pushed> {
        self.grow(SIZE as usize);
        drop(self.grown);
        self.ahead.complete(&self.blob.digest);
        let pushed = push(&self.client, fake.host(), &self.bytes, &self.blob).await.map_err(io::Error::other)?;
        self.sending.await.map_err(io::Error::other)?;
        assert!(arrived(fake, &self.blob));
        Ok(pushed)
    }
}

/// Waits for requests that somebody else makes.
async fn seen(fake: &Fake, what: impl Fn(&[Seen]) -> bool) {
    let patience = async {
        while !what(&fake.server.seen()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), patience).await.expect("it comes");
}

fn count(seen: &[Seen], method: &str) -> usize {
    seen.iter().filter(|seen| seen.method == method).count()
}

#[tokio::test]
async fn what_there_is_goes_before_the_digest_is_known() {
    let fake = Fake::start().await;
    let mut growing = Growing::start(&fake);
    growing.grow(CHUNK as usize / 4 - 1);
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(fake.server.seen().len(), 0, "less is not worth a request");
    growing.grow(CHUNK as usize / 4);
    seen(&fake, |seen| count(seen, "PATCH") >= 1).await;
    growing.grow(600_000);
    seen(&fake, |seen| seen.iter().map(|seen| seen.body.len()).sum::<usize>() == 600_000).await;
    assert!(fake.server.seen().iter().all(|seen| seen.body.len() as u64 <= CHUNK), "chunks have their length");
    assert_eq!(growing.finish(&fake).await.unwrap(), Pushed::Uploaded);
    assert_eq!((sent(&fake), fake.server.count("POST"), fake.server.count("DELETE")), (SIZE as usize, 1, 0));
}

#[tokio::test]
async fn what_the_registry_has_is_given_up() {
    let fake = Fake::start().await;
    let mut growing = Growing::start(&fake);
    growing.grow(600_000);
    seen(&fake, |seen| count(seen, "PATCH") >= 3).await;
    fake.add_blob("team/app", "", &growing.bytes);
    assert_eq!(growing.finish(&fake).await.unwrap(), Pushed::Existed);
    assert_eq!((fake.server.count("DELETE"), fake.state().sessions.len()), (1, 0));
    assert_eq!(sent(&fake), 600_000);
}

#[tokio::test]
async fn what_nobody_pushes_is_given_up() {
    let fake = Fake::start().await;
    let mut growing = Growing::start(&fake);
    growing.grow(600_000);
    seen(&fake, |seen| count(seen, "PATCH") >= 3).await;
    let Growing { client, blob, grown, ahead, sending, .. } = growing;
    drop(grown);
    ahead.complete(&blob.digest);
    sending.await.unwrap();
    assert_eq!(fake.state().sessions.len(), 1);
    client.give_up_unpushed().await;
    assert_eq!((fake.server.count("DELETE"), fake.state().sessions.len()), (1, 0));
}

#[tokio::test]
async fn what_is_never_finished_is_given_up() {
    let fake = Fake::start().await;
    let mut growing = Growing::start(&fake);
    growing.grow(600_000);
    seen(&fake, |seen| count(seen, "PATCH") >= 3).await;
    let Growing { grown, ahead, sending, .. } = growing;
    drop((grown, ahead));
    sending.await.unwrap();
    assert_eq!((fake.server.count("DELETE"), fake.state().sessions.len()), (1, 0));
}

#[tokio::test]
async fn whatever_breaks_the_push_mends() {
    let breaks: [fn(&Seen, Answer) -> Answer; 5] = [
        |_, answer| Answer { close: true, ..answer },
        |_, _| Answer::new(503),
        |_, _| Answer::new(404),
        |_, _| Answer::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
        |_, _| Answer::new(202),
    ];
    for (number, change) in breaks.into_iter().enumerate() {
        for method in ["POST", "PATCH"] {
            let fake = Fake::start().await;
            fake.fault(method, "", 1, change);
            let mut growing = Growing::start(&fake);
            growing.grow(600_000);
            seen(&fake, |seen| count(seen, method) >= 1).await;
            let pushed = growing.finish(&fake).await.unwrap_or_else(|error| panic!("{method} {number}: {error}"));
            assert_eq!(pushed, Pushed::Uploaded, "{method} {number}");
        }
    }
}

#[tokio::test]
async fn a_registry_without_chunks_is_asked_once() {
    let fake = Fake::start().await;
    fake.state().chunks = false;
    let mut growing = Growing::start(&fake);
    growing.grow(600_000);
    seen(&fake, |seen| count(seen, "PATCH") >= 1).await;
    assert_eq!(growing.finish(&fake).await.unwrap(), Pushed::Uploaded);
    assert_eq!((fake.server.count("PATCH"), fake.server.count("PUT")), (1, 1));
}

#[tokio::test]
async fn a_sender_that_is_stopped_leaves_a_push_that_works() {
    let fake = Fake::start().await;
    let mut growing = Growing::start(&fake);
    growing.grow(600_000);
    seen(&fake, |seen| count(seen, "PATCH") >= 2).await;
    growing.sending.abort();
    let Growing { mut file, bytes, blob, client, ahead, grown, .. } = growing;
    file.write_all(&bytes[600_000..]).unwrap();
    drop(grown);
    ahead.complete(&blob.digest);
    assert_eq!(push(&client, fake.host(), &bytes, &blob).await.unwrap(), Pushed::Uploaded);
    assert!(arrived(&fake, &blob));
}
