//! What is asked of the agent over HTTP. Read only; meant for a loopback or the node's own address.
//!
//! | Path | Answer |
//! |---|---|
//! | `/pods` | each pod: how its capture is and why, who serves it (JSON) |
//! | `/metrics` | all of it in numbers, for Prometheus: see [`metrics`] |
//! | `/healthz/live` | 200 as long as the process answers |
//! | `/healthz/ready` | 200 once the source has told every pod, while the CNI plugin is in its place; never depends on how any pod fares |
//!
//! Bounded in connections, in the size of a request's head, and in every wait. The agent is asked only when somebody asks
//! here, and knows nothing of HTTP.

pub mod metrics;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::agent::Counts;
use crate::broker::server::ProxyId;

/// Connections at a time; further ones wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 64;
/// Questions that wait for the agent.
pub(crate) const MOST_ASKING: usize = MOST_CONNECTIONS;
/// For each request's head; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
const HEAD_SIZE: usize = 8 * 1024;
/// A client that reads slower than this loses its connection.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);
/// For the agent to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// After accept failed for want of memory or descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
#[error("listening on {address}: {source}; choose another --status-listen")]
pub struct Error {
    address: SocketAddr,
    source: std::io::Error,
}

/// How the agent is.
pub(crate) struct Snapshot {
    pub(crate) pods: Vec<PodStatus>,
    pub(crate) counts: Counts,
    pub(crate) host_repairs: u64,
    pub(crate) proxies: usize,
    pub(crate) handed_out: u64,
    pub(crate) namespaces: usize,
}

/// How one pod is.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct PodStatus {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) strict: bool,
    pub(crate) state: State,
    /// Why it is not captured, or not surely.
    pub(crate) reason: Option<String>,
    /// Connected proxies that serve it.
    pub(crate) proxies: Vec<ProxyId>,
    pub(crate) repairs: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Captured,
    #[default]
    Pending,
    /// Its rules are there, and it is not sure that they work.
    Unproven,
    /// Pending or unproven, and its TCP is dropped.
    Quarantined,
    /// No longer wanted, and its rules could not be removed yet.
    Leaving,
}

impl State {
    pub(crate) const ALL: [Self; 5] =
        [Self::Captured, Self::Pending, Self::Unproven, Self::Quarantined, Self::Leaving];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Pending => "pending",
            Self::Unproven => "unproven",
            Self::Quarantined => "quarantined",
            Self::Leaving => "leaving",
        }
    }
}

/// Asks the agent.
pub(crate) type Ask = mpsc::Sender<oneshot::Sender<Snapshot>>;

/// What must hold before the agent is ready.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    /// The source has told every pod.
    pub(crate) known: watch::Receiver<bool>,
    /// The CNI plugin is where the runtime finds it. Without it new pods would start in plaintext.
    pub(crate) placed: watch::Receiver<bool>,
}

impl Ready {
    /// Why not.
    fn hindrance(&self) -> Option<&'static str> {
        if !*self.known.borrow() {
            Some("not ready: the source has not told every pod yet\n")
        } else if !*self.placed.borrow() {
            Some("not ready: the CNI plugin is not installed, the log says why\n")
        } else {
            None
        }
    }
}

/// A listening server.
#[derive(Debug)]
pub(crate) struct Server(TcpListener);

/// Listens in the network namespace of the calling thread.
pub fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address).or_else(|error| without_ipv6(address, error))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source| Error { address, source })
}

/// `[::]` means every address, also where the kernel has no IPv6.
fn without_ipv6(address: SocketAddr, error: std::io::Error) -> std::io::Result<std::net::TcpListener> {
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        && error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
    {
        return std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()));
    }
    Err(error)
}

impl Server {
    pub(crate) fn on(listener: std::net::TcpListener) -> std::io::Result<Self> {
        TcpListener::from_std(listener).map(Self)
    }

    /// Serves for ever.
    pub(crate) async fn serve(self, ask: Ask, ready: Ready) {
        let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let place =
                places.clone().acquire_owned().await.expect("invariant: the semaphore is never closed");
            match self.0.accept().await {
                Ok((stream, _)) => {
                    let connection = connection(stream, ask.clone(), ready.clone());
                    tokio::spawn(async move {
                        // Whoever is cut off asks again.
                        let _ = tokio::time::timeout(CONNECTION_LIFETIME, connection).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a status connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, ask: Ask, ready: Ready) {
    let service = service_fn(|request| {
        let (ask, hindrance) = (ask.clone(), ready.hindrance());
        async move { Ok::<_, Infallible>(answer(&request, &ask, hindrance).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_SIZE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "status connection ended");
    }
}

async fn answer(
    request: &Request<Incoming>,
    ask: &Ask,
    hindrance: Option<&'static str>,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match (request.uri().path(), hindrance) {
        ("/healthz/live", _) => text(StatusCode::OK, "live\n"),
        ("/healthz/ready", None) => text(StatusCode::OK, "ready\n"),
        ("/healthz/ready", Some(hindrance)) => text(StatusCode::SERVICE_UNAVAILABLE, hindrance),
        ("/pods", _) => match snapshot(ask).await {
            Some(snapshot) => page("application/json", pods(&snapshot)),
            None => busy(),
        },
        ("/metrics", _) => match snapshot(ask).await {
            Some(snapshot) => page(metrics::CONTENT_TYPE, metrics::render(&snapshot)),
            None => busy(),
        },
        _ => text(StatusCode::NOT_FOUND, "/pods /metrics /healthz/live /healthz/ready\n"),
    }
}

async fn snapshot(ask: &Ask) -> Option<Snapshot> {
    let asked = async {
        let (answer, answered) = oneshot::channel();
        ask.send(answer).await.ok()?;
        answered.await.ok()
    };
    tokio::time::timeout(ANSWER_DEADLINE, asked).await.ok()?
}

fn pods(snapshot: &Snapshot) -> String {
    serde_json::to_string(&snapshot.pods).expect("invariant: only text and numbers")
}

fn busy() -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, "the agent does not answer\n")
}

fn text(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    let mut response = page("text/plain; charset=utf-8", words);
    *response.status_mut() = status;
    response
}

fn page(kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
/// Answers that everything is done, for as long as it is polled.
pub async fn serve_done(listener: std::net::TcpListener) -> std::io::Result<()> {
    let (ask, _asked) = mpsc::channel(1);
    let (_tell, yes) = watch::channel(true);
    Server::on(listener)?.serve(ask, Ready { known: yes.clone(), placed: yes }).await;
    Ok(())
}
