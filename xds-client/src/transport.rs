//! Opens streams to the xDS server: gRPC over HTTP/2 over TLS (interop.md section 4.1).
//!
//! Owns the address, who the server must prove to be (`tls`), what is said about us (`credentials`) and the timers of the
//! connection (`channel`). Must not know types, versions or answers. Roots and token are read anew for every stream, as
//! both are rotated under a running proxy: a stream that is open keeps what it began with.
//!
//! The scripted servers of the tests implement [`Transport`] as well.

mod channel;
mod credentials;
pub mod tls;

use std::path::PathBuf;

use futures::TryStreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tonic::Status;

pub use credentials::TokenSource;

use crate::proto::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use channel::Address;

/// The largest response that is taken: state for a million workloads fits.
const MESSAGE_LIMIT: usize = 200 * 1024 * 1024;

/// Requests that were handed over and not sent yet.
const REQUEST_QUEUE: usize = 16;

/// Opens one stream after another. Dropping the future abandons the try.
pub trait Transport {
    fn open(&mut self) -> impl Future<Output = Result<Stream, Error>>;
}

/// One stream. Dropping it ends it.
pub struct Stream {
    /// Closed when the server no longer takes requests; why is told by `responses`.
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    /// Ends when the server has ended the stream, or after an error.
    pub responses: BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>,
}

/// What the operator decides about the xDS server.
#[derive(Clone, Debug)]
pub struct Config {
    /// XDS_ADDRESS: `https://HOST:PORT`; `http` means plaintext, no scheme means `https`.
    pub address: String,
    /// XDS_ROOT_CA.
    pub roots: RootSource,
    /// ALT_XDS_HOSTNAME: a second name that the server's certificate may carry.
    pub alt_hostname: Option<String>,
    /// XDS_HEADER_*: name and value of extra gRPC metadata.
    pub headers: Vec<(String, Secret)>,
    /// AUTH_TOKEN; `None` sends no authorization.
    pub token: Option<TokenSource>,
    /// CLUSTER_ID.
    pub cluster_id: String,
    /// Largest response in bytes.
    pub message_limit: usize,
}

/// Where the roots come from that the server's certificate must reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// Read again for every connection, so that a rotated file is followed.
    File(PathBuf),
    System,
    /// PEM text.
    Inline(String),
}

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// Why there is no stream. Each says which setting or file to look at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("XDS_ADDRESS \"{address}\" {reason}; write https://HOST:PORT")]
    Address { address: String, reason: &'static str },
    #[error("ALT_XDS_HOSTNAME \"{0}\" is neither a host name nor an IP address")]
    AltHostname(String),
    #[error("the xDS header \"{name}\" is not valid gRPC metadata: {reason}")]
    Header { name: String, reason: &'static str },
    #[error("the xDS token (AUTH_TOKEN) {place} cannot be used: {reason}")]
    Token { place: String, reason: String },
    #[error("the xDS server's roots (XDS_ROOT_CA) in {place} cannot be used: {reason}")]
    Roots { place: String, reason: String },
    #[error("the xDS server {address} cannot be reached: {reason}")]
    Connect { address: String, reason: String },
}

/// gRPC to one server.
pub struct Grpc {
    config: Config,
    address: Address,
}

impl Config {
    pub fn new(address: impl Into<String>, roots: RootSource) -> Self {
        Self {
            address: address.into(),
            roots,
            alt_hostname: None,
            headers: Vec::new(),
            token: None,
            cluster_id: "Kubernetes".to_owned(),
            message_limit: MESSAGE_LIMIT,
        }
    }
}

impl Grpc {
    /// Checks what can be checked without looking at files, so that a typing error is told at the start.
    pub fn new(config: Config) -> Result<Self, Error> {
        let address = Address::parse(&config.address)?;
        if let Some(name) = &config.alt_hostname {
            tls::server_name(name).ok_or_else(|| Error::AltHostname(name.clone()))?;
        }
        credentials::fixed(&config)?;
        Ok(Self { config, address })
    }
}

impl Transport for Grpc {
    async fn open(&mut self) -> Result<Stream, Error> {
        let mut metadata = credentials::fixed(&self.config)?;
        if let Some(source) = &self.config.token {
            metadata.insert("authorization", credentials::bearer(source).await?);
        }
        let channel = channel::connect(&self.address, &self.config).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(self.config.message_limit);
        let (requests, mut queue) = mpsc::channel(REQUEST_QUEUE);
        let mut call = tonic::Request::new(stream::poll_fn(move |context| queue.poll_recv(context)));
        *call.metadata_mut() = metadata;
        // A server may hold its headers back until its first response, which it gives to our first requests: waiting
        // for the headers here would wait for ever.
        let responses = stream::once(async move {
            client.delta_aggregated_resources(call).await.map(tonic::Response::into_inner)
        });
        Ok(Stream { requests, responses: Box::pin(responses.try_flatten()) })
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(redacted)")
    }
}

#[cfg(test)]
mod tests;
