//! How a registry is reached, for people who ask why it is not: which file said what, and whether it answers.

use std::path::PathBuf;

use bytes::Bytes;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};

use super::client::{Client, Slot};
use super::config::Extras;
use super::credentials::{Credential, Found};
use super::error::{Attempt, Operation, RegistryError};
use super::hosts::{Endpoint, Purpose, endpoints, is_this_machine};
use super::options::Proxies;
use super::scopes::Scopes;
use super::tls::{authority, certificate_files};
use super::transport::{Request, protocol};
use crate::reference::ImageRef;

/// How the repository of a reference is reached, before anything is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The file that decided which hosts serve, and the part of it; `no file` if none knows the registry.
    pub source: String,
    /// The hosts in the order in which they are tried. One that may be asked in two ways is there twice.
    pub hosts: Vec<HostFacts>,
}

/// A host that serves the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// URL of its API.
    pub url: String,
    /// The repository, as the host calls it.
    pub repository: String,
    /// Whether it stands in for the registry.
    pub is_mirror: bool,
    /// Whether it is asked for what is pulled.
    pub pulls: bool,
    /// Whether what is pushed goes there.
    pub pushes: bool,
    /// Whether its certificate has to be valid; `false` also for plain HTTP.
    pub verifies: bool,
    /// Files of CAs that count besides the system's.
    pub authorities: Vec<PathBuf>,
    /// File of the client certificate.
    pub identity: Option<PathBuf>,
    /// Names of the headers that it is sent.
    pub headers: Vec<String>,
    /// The proxy on the way, without its password.
    pub proxy: Option<String>,
    /// What we would log in with, or why that cannot be told.
    pub credentials: Result<Option<CredentialFacts>, String>,
}

/// A credential without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFacts {
    /// The user; `None` for a token.
    pub username: Option<String>,
    /// What it is: `password`, `identity token`, `registry token`.
    pub kind: &'static str,
    /// File and part of it, or helper.
    pub origin: String,
}

/// An answer to the question whether a registry is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// What was asked.
    pub url: String,
    /// HTTP status.
    pub status: u16,
    /// How the host lets people in; `None` if everybody is.
    pub authentication: Option<String>,
}

impl Client {
    /// Says how the repository of `reference` would be reached. Asks credential helpers, but no registry.
    ///
    /// # Errors
    /// [`RegistryError::Configuration`]: a file is broken, or blocks the registry.
    pub async fn explain(&self, reference: &ImageRef) -> Result<Explanation, RegistryError> {
        let settings = self.settings(reference)?;
        let of = |purpose| endpoints(reference, purpose, &settings, self.options());
        let (resolving, pulling, pushing) = (of(Purpose::Resolve), of(Purpose::Pull), of(Purpose::Push));
        let mut all: Vec<&Endpoint> = Vec::new();
        for endpoint in resolving.iter().chain(&pulling).chain(&pushing) {
            if !all.contains(&endpoint) {
                all.push(endpoint);
            }
        }
        let mut hosts = Vec::with_capacity(all.len());
        for endpoint in all {
            let pulls = resolving.contains(endpoint) || pulling.contains(endpoint);
            hosts.push(self.host_facts(endpoint, reference, pulls, pushing.contains(endpoint)).await?);
        }
        Ok(Explanation { source: settings.source.clone(), hosts })
    }

    async fn host_facts(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        pulls: bool,
        pushes: bool,
    ) -> Result<HostFacts, RegistryError> {
        let Some(url) = endpoint.root_url() else {
            let reason = "it is not a host name with an optional port".to_owned();
            return Err(RegistryError::Configuration { path: endpoint.host.clone(), reason });
        };
        let Extras { headers, .. } = &*endpoint.extras;
        let is_tls = endpoint.scheme == "https";
        let files = match is_tls {
            true => certificate_files(&authority(&url), &endpoint.host, &endpoint.extras, self.options())?,
            false => Default::default(),
        };
        let repository = endpoint.repository(reference.repository());
        let credentials = self.find_credential(endpoint, &repository).await;
        Ok(HostFacts {
            is_mirror: endpoint.is_mirror,
            pulls,
            pushes,
            verifies: is_tls && endpoint.verify,
            authorities: files.authorities,
            identity: files.identity.map(|(certificate, _)| certificate),
            headers: headers.iter().map(|(name, _)| name.clone()).collect(),
            proxy: proxy_for(&url, &self.options().proxies),
            credentials: credentials.map(|found| found.map(facts)).map_err(|error| error.to_string()),
            url: url.to_string(),
            repository,
        })
    }

    /// Asks the first host that answers whether it is a registry, with what it wants to let us in.
    ///
    /// A refusal is an answer: many registries let nobody in who says nothing of a repository.
    ///
    /// # Errors
    /// [`RegistryError`]; of several hosts, that of the last.
    pub async fn ping(&self, reference: &ImageRef) -> Result<Ping, RegistryError> {
        let (mut endpoint, mut others) = self.endpoints(reference, Purpose::Resolve)?;
        loop {
            match self.ping_at(&endpoint, reference).await {
                Ok(ping) => return Ok(ping),
                Err(error) => endpoint = self.fall_back(&endpoint, &mut others, error)?,
            }
        }
    }

    async fn ping_at(&self, endpoint: &Endpoint, reference: &ImageRef) -> Result<Ping, RegistryError> {
        let attempt = Attempt {
            operation: Operation::Ping,
            host: endpoint.host.clone(),
            repository: reference.registry().to_owned(),
            object: String::new(),
        }
        .into();
        let url = endpoint.root_url().ok_or_else(|| protocol(&attempt, "its name makes no URL"))?;
        let repository = endpoint.repository(reference.repository());
        let request = Request {
            endpoint,
            attempt: &attempt,
            repository: &repository,
            // The token that the manifest will need.
            scopes: &Scopes::pull(&repository),
            slot: Slot::Small,
            method: Method::GET,
            url: url.clone(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        let reply = self.send(request.clone()).await?;
        let status = reply.status();
        if !status.is_success() && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.status_error(&request, reply).await);
        }
        let authentication = self.scheme_of(endpoint).await;
        Ok(Ping { url: url.to_string(), status: status.as_u16(), authentication })
    }
}

fn facts(found: Found) -> CredentialFacts {
    let (username, kind) = match found.credential {
        Credential::Password { username, .. } => (Some(username), "password"),
        Credential::IdentityToken(_) => (None, "identity token"),
        Credential::RegistryToken(_) => (None, "registry token"),
    };
    CredentialFacts { username, kind, origin: found.origin }
}

/// The proxy that a request to `url` goes through.
fn proxy_for(url: &Url, proxies: &Proxies) -> Option<String> {
    if is_this_machine(&authority(url)) {
        return None;
    }
    let mut matcher = Matcher::builder();
    if let Some(proxy) = &proxies.http {
        matcher = matcher.http(proxy.as_str());
    }
    if let Some(proxy) = &proxies.https {
        matcher = matcher.https(proxy.as_str());
    }
    if let Some(direct) = &proxies.no_proxy {
        matcher = matcher.no(direct.as_str());
    }
    let intercept = matcher.build().intercept(&url.as_str().parse().ok()?)?;
    let uri = intercept.uri();
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{}://{}{port}", uri.scheme_str().unwrap_or("http"), uri.host()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_have_exceptions_and_keep_their_secrets() {
        let proxies = Proxies {
            http: Some("http://user:secret@p.example:3128".to_owned()),
            https: Some("http://q.example:3128".to_owned()),
            no_proxy: Some("10.0.0.0/8,.inner.example,host.example".to_owned()),
        };
        let cases = [
            ("http://r.example/v2/", Some("http://p.example:3128")),
            ("https://r.example/v2/", Some("http://q.example:3128")),
            ("https://10.1.2.3:5000/v2/", None),
            ("https://11.1.2.3:5000/v2/", Some("http://q.example:3128")),
            ("https://a.inner.example/v2/", None),
            ("https://host.example/v2/", None),
            ("http://localhost:5000/v2/", None),
        ];
        for (url, expected) in cases {
            assert_eq!(proxy_for(&Url::parse(url).expect("a URL"), &proxies).as_deref(), expected, "{url}");
        }
        assert_eq!(proxy_for(&Url::parse("https://r.example").expect("a URL"), &Proxies::default()), None);
    }
}
