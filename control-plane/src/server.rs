//! One TLS listener for both services: Istio's CreateCertificate and delta xDS.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::Server;

use crate::ca::Ca;
use crate::ca::listener::{self, ServerTls};
use crate::ca::server::{self as ca_server, Access};
use crate::xds;

/// A client has a stream for xDS and asks for certificates beside it.
const CALLS_PER_CONNECTION: usize = 32;
const CALL_DEADLINE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stop waits for clients to hang up: calls take milliseconds, and streams are told to end.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// How the controller serves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names and addresses that the server's own certificate carries.
    pub hosts: Vec<String>,
    /// No certificate lives longer.
    pub max_ttl: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tls(#[from] listener::Error),
    #[error("the gRPC server: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves, and follows the CA's files, until `stop` resolves. Without xDS it is a certificate authority alone.
pub async fn serve(
    listener: TcpListener,
    ca: Arc<Ca>,
    access: Access,
    discovery: Option<xds::server::Service>,
    config: Config,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (tls, renew_at) = ServerTls::new(&ca, config.hosts)?;
    let incoming = listener::accepted(listener, tls.config()?);
    let stopping = Arc::new(tokio::sync::Notify::new());
    let server = Server::builder()
        .timeout(CALL_DEADLINE)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(ca_server::service(ca.clone(), access, config.max_ttl))
        .add_optional_service(discovery.clone())
        .serve_with_incoming_shutdown(incoming, {
            let stopping = Arc::clone(&stopping);
            async move { stopping.notified().await }
        });
    let mut server = std::pin::pin!(server);
    tokio::select! {
        result = &mut server => return Ok(result?),
        () = ca.follow() => {}
        () = tls.keep(&ca, renew_at) => {}
        () = stop => {}
    }
    stopping.notify_one();
    if let Some(discovery) = discovery {
        discovery.stop();
    }
    match tokio::time::timeout(STOP_DEADLINE, server).await {
        Ok(result) => Ok(result?),
        Err(_) => {
            tracing::info!("clients still connected at the stop are cut off");
            Ok(())
        }
    }
}
