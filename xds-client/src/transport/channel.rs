//! One HTTP/2 connection to the server, with the timers that notice when it is gone.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use super::tls::ServerTls;
use super::{Config, Error, RootSource};

const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// Name, TCP, TLS and HTTP/2 together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const KEEPALIVE_TIME: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
const KEEPALIVE_RETRIES: u32 = 9;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The first response may have a hundred megabytes: the default window of 64 KiB would cost a round trip for each.
const STREAM_WINDOW: u32 = 4 << 20;

/// The places where distributions keep the system's roots, in the order in which they are tried.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A checked XDS_ADDRESS.
#[derive(Clone, Debug)]
pub(super) struct Address {
    text: String,
    /// With the brackets of an IPv6 address.
    host: String,
    /// To be dialled.
    dial: Uri,
    /// What requests name.
    origin: Uri,
    plaintext: bool,
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |reason| Error::Address { address: text.to_owned(), reason };
        let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let uri: Uri = whole.parse().map_err(|_| invalid("is not a URI"))?;
        let plaintext = match uri.scheme_str() {
            Some("https") => false,
            Some("http") => true,
            _ => return Err(invalid("has a scheme that is neither https nor http")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid("has a path, which is not used"));
        }
        let host =
            uri.host().filter(|host| !host.is_empty()).ok_or_else(|| invalid("names no host"))?.to_owned();
        super::tls::server_name(&host).ok_or_else(|| invalid("names a host that cannot be one"))?;
        let port = uri.port_u16().unwrap_or(if plaintext { 80 } else { 443 });
        let built = |scheme: &str| {
            let authority = format!("{host}:{port}");
            let built = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
            built.map_err(|_| invalid("is not the URI of a host"))
        };
        let (dial, origin) = (built("http")?, built(if plaintext { "http" } else { "https" })?);
        Ok(Self { text: text.to_owned(), dial, origin, plaintext, host })
    }
}

/// A new connection, with the roots as they are now.
pub(super) async fn connect(address: &Address, config: &Config) -> Result<Channel, Error> {
    let tls = if address.plaintext {
        None
    } else {
        let (pem, place) = read_roots(&config.roots).await?;
        let tls = ServerTls::new(&pem, &address.host, config.alt_hostname.as_deref());
        Some(tls.map_err(|reason| Error::Roots { place, reason })?)
    };
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.set_connect_timeout(Some(TCP_TIMEOUT));
    http.set_keepalive(Some(KEEPALIVE_TIME));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    // The endpoint's own scheme is http because the connector brings the TLS; :scheme still says https.
    let endpoint = Endpoint::from(address.dial.clone())
        .origin(address.origin.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(2 * STREAM_WINDOW)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    endpoint
        .connect_with_connector(Connector { http, tls })
        .await
        .map_err(|error| Error::Connect { address: address.text.clone(), reason: causes(&error) })
}

async fn read_roots(source: &RootSource) -> Result<(Vec<u8>, String), Error> {
    let path = match source {
        RootSource::Inline(pem) => return Ok((pem.clone().into_bytes(), "the given text".to_owned())),
        RootSource::File(path) => path.as_path(),
        RootSource::System => {
            let mut places = SYSTEM_ROOTS.iter().map(Path::new);
            places.find(|path| path.exists()).unwrap_or(Path::new(SYSTEM_ROOTS[0]))
        }
    };
    let place = path.display().to_string();
    match tokio::fs::read(path).await {
        Ok(pem) => Ok((pem, place)),
        Err(error) => Err(Error::Roots { place, reason: error.to_string() }),
    }
}

/// Opens TCP, and TLS over it. An own connector because the server may prove either of two names, which tonic's TLS
/// cannot say.
#[derive(Clone)]
struct Connector {
    http: HttpConnector,
    tls: Option<ServerTls>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.http.poll_ready(context).map_err(|error| io::Error::other(causes(&error)))
    }

    fn call(&mut self, dial: Uri) -> Self::Future {
        let (connecting, tls) = (self.http.call(dial), self.tls.clone());
        Box::pin(async move {
            let tcp = connecting.await.map_err(|error| io::Error::other(causes(&error)))?.into_inner();
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

/// An error and what it came from: the cause at the bottom says what to mend.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}
