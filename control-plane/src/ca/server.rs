//! The gRPC service and its TLS listener.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures::Stream;
use prost_types::value::Kind;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::transport::{Identity as TlsIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};
use ztunnel_model::Identity;

use super::authenticate::{Node, Nodes};
use super::authority::{self, Authority};
use super::issue;
use super::proto::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use super::proto::{IstioCertificateRequest, IstioCertificateResponse};

const CONNECTIONS: usize = 1024;
const CALLS_PER_CONNECTION: usize = 16;
const MESSAGE_BYTES: usize = 64 * 1024;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const CALL_DEADLINE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a stop waits for clients to hang up: the calls themselves take milliseconds.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// How the CA serves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names and addresses that the server's own certificate carries.
    pub hosts: Vec<String>,
    /// No certificate lives longer.
    pub max_ttl: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the CA's own server certificate: {0}")]
    Certificate(#[source] authority::Error),
    #[error("the CA's server: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves until `stop` resolves.
pub async fn serve(
    listener: TcpListener,
    authority: Authority,
    nodes: Nodes,
    config: Config,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (key, chain) = authority.server_certificate(&config.hosts).map_err(Error::Certificate)?;
    // tonic takes the process's provider; naming it here keeps the choice out of the hands of whoever else links rustls.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = ServerTlsConfig::new()
        .identity(TlsIdentity::from_pem(&chain[0], key.as_str()))
        .timeout(HANDSHAKE_DEADLINE);
    let service = Service { authority, nodes, max_ttl: config.max_ttl };
    let stopping = Arc::new(tokio::sync::Notify::new());
    let server = Server::builder()
        .tls_config(tls)?
        .timeout(CALL_DEADLINE)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(IstioCertificateServiceServer::new(service).max_decoding_message_size(MESSAGE_BYTES))
        .serve_with_incoming_shutdown(admitted(listener), {
            let stopping = Arc::clone(&stopping);
            async move { stopping.notified().await }
        });
    let mut server = std::pin::pin!(server);
    tokio::select! {
        result = &mut server => return Ok(result?),
        () = stop => stopping.notify_one(),
    }
    match tokio::time::timeout(STOP_DEADLINE, server).await {
        Ok(result) => Ok(result?),
        Err(_) => {
            tracing::info!("clients still connected at the stop are cut off");
            Ok(())
        }
    }
}

struct Service {
    authority: Authority,
    nodes: Nodes,
    max_ttl: Duration,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.remote_addr();
        let node = self.authenticate(&request).inspect_err(|status| log_refusal(peer, "", status))?;
        let (issued, cert_chain) = self
            .issue(&node, request.get_ref())
            .inspect_err(|status| log_refusal(peer, &node.name, status))?;
        let Issued { identity, ttl } = issued;
        let peer = peer.map(tracing::field::display);
        tracing::info!(node = node.name, %identity, ttl_s = ttl.as_secs(), peer, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

struct Issued {
    identity: Identity,
    ttl: Duration,
}

impl Service {
    fn authenticate(&self, request: &Request<IstioCertificateRequest>) -> Result<Arc<Node>, Status> {
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|header| header.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("the call carries no bearer token"))?;
        self.nodes.authenticate(token).ok_or_else(|| Status::unauthenticated("the bearer token is no node's"))
    }

    fn issue(&self, node: &Node, request: &IstioCertificateRequest) -> Result<(Issued, Vec<String>), Status> {
        let invalid = |error: issue::Error| Status::invalid_argument(error.to_string());
        let asked = impersonated(request)?;
        if let Some(asked) = &asked {
            authorize(node, asked)?;
        }
        let csr = issue::Request::from_pem(&request.csr).map_err(invalid)?;
        if asked.as_ref().is_some_and(|asked| *asked != csr.identity) {
            let (asked, named) = (asked.map(|asked| asked.to_string()).unwrap_or_default(), &csr.identity);
            return Err(Status::invalid_argument(format!(
                "the call asks for {asked} but the CSR for {named}"
            )));
        }
        authorize(node, &csr.identity)?;
        let now = SystemTime::now();
        let validity = issue::validity(request.validity_duration, self.max_ttl, now).map_err(invalid)?;
        let chain = issue::certify(&self.authority, &csr, validity)
            .inspect_err(|error| tracing::error!(%error, "signing failed"))
            .map_err(|_| Status::internal("signing failed; see the log of the controller"))?;
        let ttl = validity.1.duration_since(now).unwrap_or_default();
        Ok((Issued { identity: csr.identity, ttl }, chain))
    }
}

fn authorize(node: &Node, identity: &Identity) -> Result<(), Status> {
    if node.may_ask_for(identity) {
        return Ok(());
    }
    let name = &node.name;
    Err(Status::permission_denied(format!(
        "node {name} may not ask for {identity}: it runs no pod of that identity"
    )))
}

/// For whom the caller asks (interop.md section 5.2); a proxy of one workload says it in the CSR alone.
fn impersonated(request: &IstioCertificateRequest) -> Result<Option<Identity>, Status> {
    let field = request.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
    match field.map(|value| &value.kind) {
        None => Ok(None),
        Some(Some(Kind::StringValue(text))) => text
            .parse()
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("ImpersonatedIdentity: {error}"))),
        Some(_) => Err(Status::invalid_argument("ImpersonatedIdentity is not a string")),
    }
}

/// The message holds what the caller wrote, so it is logged quoted and cut.
fn log_refusal(peer: Option<SocketAddr>, node: &str, status: &Status) {
    let reason: String = status.message().chars().take(300).collect();
    let peer = peer.map(tracing::field::display);
    tracing::warn!(node, code = ?status.code(), reason = ?reason, peer, "certificate refused");
}

/// Accepted connections, never more than the bound at once. An accept that fails (no descriptors left) is tried again after
/// a pause: tonic would end the server.
fn admitted(listener: TcpListener) -> Pin<Box<dyn Stream<Item = io::Result<Admitted>> + Send>> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    Box::pin(futures::stream::unfold((listener, places), |(listener, places)| async move {
        let place =
            Arc::clone(&places).acquire_owned().await.expect("invariant: the semaphore is never closed");
        loop {
            match listener.accept().await {
                Ok((tcp, _)) => {
                    let _ = tcp.set_nodelay(true);
                    return Some((Ok(Admitted { tcp, _place: place }), (listener, places)));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }))
}

/// A connection and its place among the permitted number.
struct Admitted {
    tcp: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for Admitted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp.connect_info()
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
