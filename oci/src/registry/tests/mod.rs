//! The client against an in-process registry with faults, and against Debian's `docker-registry` where it is installed.

mod ahead;
mod auth;
mod docker_registry;
mod examine;
mod fake;
mod faults;
mod pull;
mod push;
mod server;
mod upload;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Client, ClientOptions, Notice, RetryPolicy};
use crate::reference::ImageRef;

/// Patience for tests: the same number of tries, hardly any pauses.
fn quick() -> RetryPolicy {
    RetryPolicy {
        first_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(5),
        stall_timeout: Duration::from_millis(500),
        ..RetryPolicy::default()
    }
}

fn options() -> ClientOptions {
    ClientOptions { retry: quick(), ..ClientOptions::default() }
}

fn client() -> Client {
    Client::new(options())
}

/// A client that collects what its observer is told.
fn observed(client: &Client) -> (Client, Arc<Mutex<Vec<String>>>) {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let sink = notices.clone();
    let client = client.observed_by(Arc::new(move |notice: &Notice<'_>| {
        let text = match notice {
            Notice::Retry { error, delay } => format!("retry in {delay:?}: {error}"),
            Notice::Fallback { error, next_host } => format!("next {next_host}: {error}"),
            Notice::Token { host, scopes } => format!("token {host} {scopes}"),
            Notice::Credentials { host, reason } => format!("credentials {host}: {reason}"),
        };
        sink.lock().expect("no panic").push(text);
    }));
    (client, notices)
}

fn reference(host: &str, rest: &str) -> ImageRef {
    ImageRef::parse_normalized(&format!("{host}/{rest}")).expect("a reference")
}
