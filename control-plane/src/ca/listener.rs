//! TLS in front of the gRPC server: a bounded number of connections, and a certificate that changes while they live.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures::Stream;
use futures::stream::unfold;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::authority::{self, ServerCertificate};
use super::running::Ca;

const CONNECTIONS: usize = 8192;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After a certificate could not be made, the old one is served and the next is tried for.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);
/// A certificate that is nearly over from the start (its issuer is) must not be made anew in a tight loop.
const LEAST_RENEWAL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the CA's own server certificate: {0}")]
    Certificate(#[from] authority::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// The server's certificate, made anew when other material signs and before it is over.
#[derive(Debug)]
pub struct ServerTls {
    current: ArcSwap<CertifiedKey>,
    hosts: Vec<String>,
}

impl ServerTls {
    /// With names and addresses under which clients reach the server; tells when to renew.
    pub fn new(ca: &Ca, hosts: Vec<String>) -> Result<(Arc<Self>, SystemTime), Error> {
        let made = ca.authority().server_certificate(&hosts)?;
        let current = ArcSwap::from_pointee(certified(&made)?);
        Ok((Arc::new(Self { current, hosts }), made.renew_at))
    }

    /// For a listener of gRPC.
    pub fn config(self: &Arc<Self>) -> Result<ServerConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// Keeps the certificate fresh for ever.
    pub async fn keep(&self, ca: &Ca, mut renew_at: SystemTime) {
        let mut changes = ca.changes();
        loop {
            let wait = renew_at.duration_since(SystemTime::now()).unwrap_or_default().max(LEAST_RENEWAL);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
                () = tokio::time::sleep(wait) => {}
            }
            match self.renew(ca) {
                Ok(next) => renew_at = next,
                Err(error) => {
                    tracing::error!(%error, "the server's certificate is not renewed; the old one is served");
                    renew_at = SystemTime::now() + RENEWAL_PAUSE;
                }
            }
        }
    }

    fn renew(&self, ca: &Ca) -> Result<SystemTime, Error> {
        let made = ca.authority().server_certificate(&self.hosts)?;
        self.current.store(Arc::new(certified(&made)?));
        tracing::info!("the server's certificate was made anew");
        Ok(made.renew_at)
    }
}

impl ResolvesServerCert for ServerTls {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn certified(made: &ServerCertificate) -> Result<CertifiedKey, Error> {
    let unreadable = |error| rustls::Error::General(format!("{error:?}"));
    let chain = made.chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()));
    let chain = chain.collect::<Result<_, _>>().map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).map_err(unreadable)?;
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(CertifiedKey::new(chain, signer))
}

/// Connections whose handshake is over, never more than the bound at once, those in a handshake included.
pub fn accepted(
    listener: TcpListener,
    config: ServerConfig,
) -> Pin<Box<dyn Stream<Item = io::Result<TlsStream<Admitted>>> + Send>> {
    let (ready, shaken) = mpsc::channel(CONNECTIONS);
    let accepting = accept(listener, TlsAcceptor::from(Arc::new(config)), ready);
    // The accepting ends with the stream that it feeds.
    let accepting = AbortOnDrop(tokio::spawn(accepting));
    Box::pin(unfold((shaken, accepting), |(mut shaken, accepting)| async move {
        let stream: TlsStream<Admitted> = shaken.recv().await?;
        Some((Ok(stream), (shaken, accepting)))
    }))
}

/// An accept that fails (no descriptors left) is tried again after a pause: tonic would end the server.
async fn accept(listener: TcpListener, acceptor: TlsAcceptor, ready: mpsc::Sender<TlsStream<Admitted>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place =
            Arc::clone(&places).acquire_owned().await.expect("invariant: the semaphore is never closed");
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let _ = tcp.set_nodelay(true);
        let (handshake, ready) = (acceptor.accept(Admitted { tcp, _place: place }), ready.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
                Ok(Ok(stream)) => drop(ready.send(stream).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
            }
        });
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection and its place among the permitted number.
pub struct Admitted {
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
