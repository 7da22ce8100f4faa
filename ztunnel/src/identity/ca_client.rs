//! Asks the CA for one certificate: `istio.v1.auth.IstioCertificateService/CreateCertificate` (interop.md section 5).

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::codegen::Service;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use ztunnel_model::Identity;

use super::{Config, RootSource, TokenSource};
use crate::tls::control::{self, ControlTls};
use crate::tls::revocation::Revocations;
use crate::tls::svid::{self, SecretKey, Svid};

mod proto {
    tonic::include_proto!("istio.v1.auth");
}

use proto::IstioCertificateRequest;
use proto::istio_certificate_service_client::IstioCertificateServiceClient;

/// Short, so that an attempt that began while the CA was away does not outlast its return for long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const TOKEN_LIMIT: u64 = 64 * 1024;

/// The places where distributions keep the system's roots, in the order in which they are tried.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why the CA gave no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("CA_ADDRESS \"{address}\" {reason}; write https://HOST:PORT")]
    Address { address: String, reason: &'static str },
    #[error("the CA header \"{name}\" is not valid gRPC metadata: {reason}")]
    Header { name: String, reason: &'static str },
    #[error("the token file {path} cannot be used: {reason}")]
    Token { path: String, reason: String },
    #[error("the CA's roots in {path} cannot be read: {source}")]
    Roots { path: String, source: io::Error },
    #[error("the channel to the CA at {address} cannot be set up: {source}")]
    Tls { address: String, source: control::Error },
    #[error("no key and CSR for {identity}: {source}")]
    Csr { identity: Identity, source: rcgen::Error },
    #[error("the CA at {address} did not certify {identity}: {}", describe(status))]
    Refused { address: String, identity: Identity, status: Box<tonic::Status> },
    #[error(transparent)]
    Answer(#[from] svid::Error),
}

impl Error {
    /// The CA was not reached, or said that it cannot answer now: nothing is wrong with the request.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if is_outage(status.code()))
    }
}

fn is_outage(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

/// One CA. The channel is made on first use, kept, and made again when the CA's roots change.
pub struct CaClient {
    config: Config,
    revocations: Revocations,
    channel: Mutex<Option<Connected>>,
}

struct Connected {
    roots: Vec<u8>,
    channel: Channel,
}

impl CaClient {
    /// Certificates that it fetches heed `revocations`.
    pub fn new(config: Config, revocations: Revocations) -> Self {
        Self { config, revocations, channel: Mutex::new(None) }
    }

    /// One request: a fresh key, a CSR, the CA's answer checked.
    pub async fn fetch(&self, identity: &Identity) -> Result<Svid, Error> {
        let (key, csr) =
            new_csr(identity).map_err(|source| Error::Csr { identity: identity.clone(), source })?;
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.config.secret_ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonate(identity)),
        });
        self.authenticate(request.metadata_mut()).await?;
        request.set_timeout(REQUEST_TIMEOUT);
        let mut client = IstioCertificateServiceClient::new(self.channel().await?);
        // The channel's own timeout covers the call alone; this one also covers waiting for a connection.
        let answer =
            tokio::time::timeout(CONNECT_TIMEOUT + REQUEST_TIMEOUT, client.create_certificate(request))
                .await
                .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")))
                .inspect_err(|status| {
                    if is_outage(status.code()) {
                        // A connection that has died without a word would hold up every later request.
                        *self.lock() = None;
                    }
                })
                .map_err(|status| Error::Refused {
                    address: self.config.ca_address.to_string(),
                    identity: identity.clone(),
                    status: Box::new(status),
                })?;
        Ok(Svid::new(identity, key, &answer.into_inner().cert_chain, &self.revocations)?)
    }

    async fn authenticate(&self, metadata: &mut MetadataMap) -> Result<(), Error> {
        let invalid = |name: &str, reason| Error::Header { name: name.to_owned(), reason };
        for (name, value) in &self.config.headers {
            let key = MetadataKey::<Ascii>::from_bytes(name.to_ascii_lowercase().as_bytes())
                .map_err(|_| invalid(name, "the name holds a character that header names cannot hold"))?;
            metadata
                .insert(key, ascii(value).ok_or_else(|| invalid(name, "the value is not printable ASCII"))?);
        }
        let cluster = ascii(&self.config.cluster_id)
            .ok_or_else(|| invalid("clusterid", "it is not printable ASCII"))?;
        metadata.insert("clusterid", cluster);
        if let Some(source) = &self.config.token {
            let token = read_token(source).await?;
            let mut bearer = ascii(&format!("Bearer {token}"))
                .ok_or_else(|| invalid("authorization", "the token is not printable ASCII"))?;
            bearer.set_sensitive(true);
            metadata.insert("authorization", bearer);
        }
        Ok(())
    }

    /// The channel for the roots as they are now. Roots that cannot be used leave an existing channel as it is.
    async fn channel(&self) -> Result<Channel, Error> {
        let made = match self.read_roots().await {
            Ok(roots) => match self.lock().as_ref() {
                Some(connected) if connected.roots == roots => return Ok(connected.channel.clone()),
                _ => self.connect_lazily(&roots).map(|channel| Connected { roots, channel }),
            },
            Err(error) => Err(error),
        };
        let mut kept = self.lock();
        match (made, kept.as_ref()) {
            (Ok(connected), _) => {
                let channel = connected.channel.clone();
                *kept = Some(connected);
                Ok(channel)
            }
            (Err(error), Some(old)) => {
                tracing::warn!(%error, "the roots of the CA changed but are unusable; the old channel is kept");
                Ok(old.channel.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn connect_lazily(&self, roots: &[u8]) -> Result<Channel, Error> {
        let address = &self.config.ca_address;
        let invalid = |reason| Error::Address { address: address.to_string(), reason };
        let host = address.host().ok_or_else(|| invalid("names no host"))?.to_owned();
        let plaintext = address.scheme_str() == Some("http");
        let port = address.port_u16().unwrap_or(if plaintext { 80 } else { 443 });
        let tls = (!plaintext)
            .then(|| ControlTls::new(roots, &self.roots_origin(), &host, self.config.alt_hostname.as_deref()))
            .transpose()
            .map_err(|source| Error::Tls { address: address.to_string(), source })?;
        let origin = |scheme| {
            Uri::builder()
                .scheme(scheme)
                .authority(format!("{host}:{port}"))
                .path_and_query("/")
                .build()
                .map_err(|_| invalid("is not a URI of a host"))
        };
        // The endpoint's own scheme is http because the connector below brings the TLS; :scheme still says https.
        let endpoint = Endpoint::from(origin("http")?)
            .origin(origin(if plaintext { "http" } else { "https" })?)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(endpoint.connect_with_connector_lazy(Connector { host, port, tls }))
    }

    async fn read_roots(&self) -> Result<Vec<u8>, Error> {
        let read = async |path: &Path| {
            tokio::fs::read(path)
                .await
                .map_err(|source| Error::Roots { path: path.display().to_string(), source })
        };
        if self.config.ca_address.scheme_str() == Some("http") {
            return Ok(Vec::new());
        }
        match &self.config.ca_root {
            RootSource::Inline(pem) => Ok(pem.clone().into_bytes()),
            RootSource::Path(path) => read(path).await,
            RootSource::System => {
                let found =
                    SYSTEM_ROOTS.iter().find(|path| Path::new(path).exists()).unwrap_or(&SYSTEM_ROOTS[0]);
                read(Path::new(found)).await
            }
        }
    }

    fn roots_origin(&self) -> String {
        match &self.config.ca_root {
            RootSource::Inline(_) => "the text of CA_ROOT_CA".to_owned(),
            RootSource::Path(path) => path.display().to_string(),
            RootSource::System => "the system's roots".to_owned(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Connected>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fresh ECDSA P-256 key and a PEM CSR for it: empty subject and the identity as its only, critical, SAN.
pub fn new_csr(identity: &Identity) -> Result<(SecretKey, String), rcgen::Error> {
    let mut pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().as_str().try_into()?)];
    let csr = params.serialize_request(&pair).and_then(|csr| csr.pem());
    let key = SecretKey::from_pkcs8_der(pair.serialize_der());
    zeroize::Zeroize::zeroize(&mut pair);
    Ok((key, csr?))
}

/// Opens TCP, and TLS over it, to the CA. An own connector because the CA may prove either of two names, which tonic's
/// TLS cannot say.
#[derive(Clone)]
struct Connector {
    host: String,
    port: u16,
    tls: Option<ControlTls>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { host, port, tls } = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            let io: Box<dyn Io> = match tls {
                Some(tls) => Box::new(tls.connect(tcp).await?),
                None => Box::new(tcp),
            };
            Ok(TokioIo::new(io))
        })
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The CA is asked by the node for a pod, so the request names whom it is for (interop.md section 5.2).
fn impersonate(identity: &Identity) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() }
}

async fn read_token(source: &TokenSource) -> Result<String, Error> {
    let path = match source {
        TokenSource::Literal(token) => return Ok(token.trim().to_owned()),
        TokenSource::Path(path) => path,
    };
    let unusable = |reason: String| Error::Token { path: path.display().to_string(), reason };
    let size = tokio::fs::metadata(path).await.map_err(|error| unusable(error.to_string()))?.len();
    if size > TOKEN_LIMIT {
        return Err(unusable(format!("it holds {size} bytes, which no token does")));
    }
    let token = tokio::fs::read_to_string(path).await.map_err(|error| unusable(error.to_string()))?;
    match token.trim() {
        "" => Err(unusable("it is empty".to_owned())),
        token => Ok(token.to_owned()),
    }
}

fn ascii(text: &str) -> Option<MetadataValue<Ascii>> {
    MetadataValue::try_from(text).ok()
}

/// Code and message, and for a channel that could not be made the cause at the bottom, which says what to mend.
fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
