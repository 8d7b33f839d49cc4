//! TLS and connections: which certificates are trusted, and one HTTP client for each way to reach a server.
//!
//! Spec: `spec/engine.md` §4.2, "TLS".

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{NoProxy, Proxy, Url, redirect};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::sync::OnceCell;

use super::config::Extras;
use super::error::RegistryError;
use super::hosts::{Endpoint, certificate_directories, is_this_machine};
use super::options::ClientOptions;

/// Longest wait for TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Makes ring the process-wide TLS provider. Call it first thing in `main`; later calls do nothing.
///
/// This client does not need it, but other users of `reqwest` in the process panic without a provider.
pub fn install_crypto_provider() {
    // An error means that a provider is installed already, which is all we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A way to reach a server: everything that makes connections differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Route {
    is_tls: bool,
    /// `host[:port]` of the server itself.
    target: String,
    /// The registry host that named it; the same, unless a redirect or a token server is followed.
    named_by: String,
    verify: bool,
    /// What the settings of that host say.
    extras: Arc<Extras>,
}

/// The HTTP clients, made when first needed.
pub(super) struct HttpClients {
    system_roots: OnceCell<Arc<RootCertStore>>,
    clients: Mutex<HashMap<Route, reqwest::Client>>,
}

impl HttpClients {
    pub(super) fn new() -> Self {
        Self { system_roots: OnceCell::new(), clients: Mutex::new(HashMap::new()) }
    }

    /// The client for a URL that `endpoint` led to, by itself, by a redirect or as its token server.
    ///
    /// A server without own certificate directories is treated like the host that named it: the CA of a private
    /// registry signs its token server and its storage, too.
    pub(super) async fn client_for(
        &self,
        url: &Url,
        endpoint: &Endpoint,
        options: &Arc<ClientOptions>,
    ) -> Result<reqwest::Client, RegistryError> {
        let is_tls = url.scheme() == "https";
        let route = Route {
            is_tls,
            target: authority(url),
            named_by: endpoint.host.clone(),
            verify: endpoint.verify || !is_tls,
            extras: endpoint.extras.clone(),
        };
        let known = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&route).cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let client = self.build(&route, options).await?;
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(route, client.clone());
        Ok(client)
    }

    async fn build(&self, route: &Route, options: &Arc<ClientOptions>) -> Result<reqwest::Client, RegistryError> {
        let roots = if route.is_tls && route.verify {
            self.system_roots.get_or_try_init(|| load_system_roots(options)).await?.clone()
        } else {
            Arc::new(RootCertStore::empty())
        };
        let (route, options) = (route.clone(), options.clone());
        let build = move || build_client(&route, roots, &options);
        tokio::task::spawn_blocking(build).await.map_err(|error| configuration("TLS settings", &error))?
    }
}

/// Makes the client of a route. Reads certificates.
fn build_client(
    route: &Route,
    roots: Arc<RootCertStore>,
    options: &ClientOptions,
) -> Result<reqwest::Client, RegistryError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls_config(route, roots, options)?)
        // Several connections move layers faster than one multiplexed connection does.
        .http1_only()
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(&options.user_agent);
    if !is_this_machine(&route.target) {
        for proxy in proxies(options)? {
            builder = builder.proxy(proxy);
        }
    }
    builder.build().map_err(|error| configuration("HTTP client settings", &error))
}

/// `host[:port]` of a URL, as in references.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn configuration(path: &str, reason: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Configuration { path: path.to_owned(), reason: reason.to_string() }
}

fn proxies(options: &ClientOptions) -> Result<Vec<Proxy>, RegistryError> {
    let settings = &options.proxies;
    let no_proxy = settings.no_proxy.as_deref().and_then(NoProxy::from_string);
    let http = settings.http.as_deref().map(Proxy::http);
    let https = settings.https.as_deref().map(Proxy::https);
    let usable = |proxy: reqwest::Result<Proxy>| match proxy {
        Ok(proxy) => Ok(proxy.no_proxy(no_proxy.clone())),
        // The URL may hold a password, so it is not repeated.
        Err(error) => Err(configuration("proxy URL", &error.without_url())),
    };
    [http, https].into_iter().flatten().map(usable).collect()
}

/// Reads the CAs of the system, or those that stand for them; Mozilla's list where there are none.
async fn load_system_roots(options: &ClientOptions) -> Result<Arc<RootCertStore>, RegistryError> {
    let (file, dir) = (options.ca_file.clone(), options.ca_dir.clone());
    let load = move || {
        let is_explicit = file.is_some() || dir.is_some();
        let found = if is_explicit {
            rustls_native_certs::load_certs_from_paths(file.as_deref(), dir.as_deref())
        } else {
            rustls_native_certs::load_native_certs()
        };
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        match (added, found.errors.first()) {
            (0, Some(error)) if is_explicit => Err(configuration("CA certificates", error)),
            (0, _) if !is_explicit => {
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
                Ok(Arc::new(roots))
            }
            _ => Ok(Arc::new(roots)),
        }
    };
    tokio::task::spawn_blocking(load).await.map_err(|error| configuration("CA certificates", &error))?
}

fn tls_config(
    route: &Route,
    roots: Arc<RootCertStore>,
    options: &ClientOptions,
) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| configuration("TLS versions", &error))?;
    let own = if route.is_tls { read_certificates(route, options)? } else { HostCertificates::default() };
    let builder = if route.verify {
        builder.with_root_certificates(extend_roots(roots, own.authorities)?)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
    };
    match own.identity {
        Some((path, chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| configuration(&path, &error))
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

#[derive(Default)]
struct HostCertificates {
    authorities: Vec<(String, CertificateDer<'static>)>,
    identity: Option<(String, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

fn extend_roots(
    roots: Arc<RootCertStore>,
    authorities: Vec<(String, CertificateDer<'static>)>,
) -> Result<Arc<RootCertStore>, RegistryError> {
    if authorities.is_empty() {
        return Ok(roots);
    }
    let mut extended = Arc::unwrap_or_clone(roots);
    for (path, certificate) in authorities {
        extended.add(certificate).map_err(|error| configuration(&path, &error))?;
    }
    Ok(Arc::new(extended))
}

/// Reads what the settings of the host name, then the certificate directories of the server, or of the host that named
/// it, in the order of file names; the first client certificate counts.
fn read_certificates(route: &Route, options: &ClientOptions) -> Result<HostCertificates, RegistryError> {
    let mut certificates = HostCertificates::default();
    let files = certificate_files(&route.target, &route.named_by, &route.extras, options)?;
    for path in files.authorities {
        let name = path.display().to_string();
        let read = read_chain(&path)?.into_iter().map(|certificate| (name.clone(), certificate));
        certificates.authorities.extend(read);
    }
    if let Some((path, key_path)) = files.identity {
        let key = PrivateKeyDer::from_pem_file(&key_path)
            .map_err(|error| configuration(&key_path.display().to_string(), &error))?;
        certificates.identity = Some((path.display().to_string(), read_chain(&path)?, key));
    }
    Ok(certificates)
}

/// The files whose certificates count for a server.
#[derive(Default)]
pub(super) struct CertificateFiles {
    /// CAs besides the system's.
    pub(super) authorities: Vec<PathBuf>,
    /// Client certificate and key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

/// Finds them for the server `target`, which is the host `named_by` or one that this host led to.
pub(super) fn certificate_files(
    target: &str,
    named_by: &str,
    extras: &Extras,
    options: &ClientOptions,
) -> Result<CertificateFiles, RegistryError> {
    let identity = extras.identities.first().cloned();
    let mut files = CertificateFiles { authorities: extras.ca_files.clone(), identity };
    let own = certificate_directories(target, options);
    let dirs = if own.is_empty() { certificate_directories(named_by, options) } else { own };
    for dir in extras.certs_dirs.iter().chain(&dirs) {
        let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = entries.map_err(|error| configuration(&dir.display().to_string(), &error))?;
        let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => files.authorities.push(path),
                Some("cert") if files.identity.is_none() => {
                    let key = path.with_extension("key");
                    files.identity = Some((path, key));
                }
                _ => {}
            }
        }
    }
    Ok(files)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| configuration(&path.display().to_string(), &error))
}

/// Accepts every certificate, for hosts that the user declared insecure. Signatures are still checked.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
