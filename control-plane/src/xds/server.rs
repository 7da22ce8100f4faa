//! Who is let in, and how many: the gRPC service to be added to a server's router.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use super::clients::{Clients, Connected};
use super::grpc::{Inbound, Outbound};
use super::proof::{self, Proof};
use super::session::{Scope, Session, Settings};
use super::store::Store;
use super::stream::Stream;

const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const AUTHENTICATE_DEADLINE: Duration = Duration::from_secs(10);

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What its streams are counted under and logged as.
    pub name: Arc<str>,
    /// The node that it has proved to be on.
    pub node: Option<Arc<str>>,
    /// What is checked again while its stream is open.
    pub proof: Option<Proof>,
}

/// Tells who calls, by what the call carries. Nothing else of a call is read before that.
#[tonic::async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// Who calls, or UNAUTHENTICATED and why.
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status>;

    /// Whether what a caller has shown still counts. UNAVAILABLE means that it does for now.
    async fn check(&self, caller: &Caller) -> Result<(), Status> {
        let _ = caller;
        Ok(())
    }
}

/// The bounds of all streams together, and of each.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub streams: usize,
    /// Two for an upgrade that overlaps; the others for dead connections that nobody has noticed yet.
    pub streams_per_caller: usize,
    /// The longest request: a client that comes back lists all that it holds.
    pub request_bytes: usize,
    /// How many requests over 256 KiB are read and compared at a time.
    pub large_requests: usize,
    /// How many first answers that are longer than other responses are on their way at a time.
    pub large_answers: usize,
    /// How often the token of an open stream is checked again.
    pub check: Duration,
    pub session: Settings,
}

/// Delta ADS. Stops when told, or when the connections do.
#[derive(Clone)]
pub struct Service(Arc<Shared>);

/// Serves a store. Add it to a `tonic::transport::Server`; keep-alive and TLS are that server's.
pub fn service(
    store: Store,
    authenticate: Arc<dyn Authenticate>,
    scope: Arc<dyn Scope>,
    limits: Limits,
) -> Service {
    Service(Arc::new(Shared {
        clients: Clients::new(store.clone()),
        store,
        authenticate,
        scope,
        limits,
        places: Arc::new(Semaphore::new(limits.streams)),
        large: Arc::new(Semaphore::new(limits.large_requests)),
        rooms: Arc::new(Semaphore::new(limits.large_answers)),
        callers: Arc::default(),
        stop: watch::Sender::new(false),
    }))
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 8192,
            streams_per_caller: 8,
            request_bytes: 200 * 1024 * 1024,
            large_requests: 8,
            large_answers: 16,
            check: Duration::from_secs(600),
            session: Settings::default(),
        }
    }
}

impl Service {
    pub fn clients(&self) -> Clients {
        self.0.clients.clone()
    }

    /// Ends all streams, now and to come, so that clients go elsewhere at once.
    pub fn stop(&self) {
        self.0.stop.send_replace(true);
    }
}

impl NamedService for Service {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl tonic::codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            Ok(shared.open(request).await.unwrap_or_else(|status| {
                shared.clients.count_refused(status.code());
                status.into_http()
            }))
        })
    }
}

struct Shared {
    store: Store,
    clients: Clients,
    authenticate: Arc<dyn Authenticate>,
    scope: Arc<dyn Scope>,
    limits: Limits,
    places: Arc<Semaphore>,
    large: Arc<Semaphore>,
    rooms: Arc<Semaphore>,
    callers: Arc<Callers>,
    stop: watch::Sender<bool>,
}

/// How many streams each caller has.
#[derive(Default)]
struct Callers(Mutex<HashMap<Arc<str>, usize>>);

/// A stream's place among all, and among its caller's.
struct Place {
    _of_all: OwnedSemaphorePermit,
    callers: Arc<Callers>,
    caller: Arc<str>,
}

impl Shared {
    async fn open(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        if request.uri().path() != DELTA {
            return Err(Status::unimplemented(
                "only the delta variant is served: call DeltaAggregatedResources of this service",
            ));
        }
        let peer = peer(request.extensions());
        let (parts, body) = request.into_parts();
        let metadata = MetadataMap::from_headers(parts.headers);
        let caller = self.caller(&metadata).await.inspect_err(|status| {
            let reason: String = status.message().chars().take(300).collect();
            let peer = peer.map(tracing::field::display);
            tracing::warn!(code = ?status.code(), ?reason, peer, "xDS client refused");
        })?;
        let place = self.place(&caller)?;
        let id = self.clients.next_id();
        let node = caller.node.clone();
        let session = Session::new(id, self.limits.session, Arc::clone(&self.scope), node);
        let name = Arc::clone(&caller.name);
        let lost = proof::lost(Arc::clone(&self.authenticate), caller, self.limits.check);
        let (lost, caller) = (Box::pin(lost), name);
        tracing::info!(%caller, peer = peer.map(tracing::field::display), "xDS client connected");
        let (responses, queue) = mpsc::channel(1);
        let (end, taken) = (Arc::new(OnceLock::new()), Arc::default());
        let stream = Stream {
            inbound: Inbound::new(body, self.limits.request_bytes, Arc::clone(&self.large)),
            responses,
            taken: Arc::clone(&taken),
            rooms: Arc::clone(&self.rooms),
            end: Arc::clone(&end),
            store: self.store.clone(),
            changes: self.store.changes(),
            clients: self.clients.clone(),
            registered: self.clients.register(Connected {
                id,
                caller,
                peer,
                since: Instant::now(),
                session: Mutex::new(session),
            }),
            stop: self.stop.subscribe(),
            lost,
        };
        tokio::spawn(stream.run());
        let mut response = http::Response::new(Body::new(Outbound::new(queue, taken, end, place)));
        let grpc = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
        Ok(response)
    }

    async fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let asked = self.authenticate.authenticate(metadata);
        tokio::time::timeout(AUTHENTICATE_DEADLINE, asked)
            .await
            .unwrap_or_else(|_| Err(Status::unavailable("checking the caller's token took too long")))
    }

    fn place(&self, caller: &Caller) -> Result<Place, Status> {
        let of_all = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let most = self.limits.streams;
            tracing::warn!(most, caller = %caller.name, "xDS client refused: all places are taken");
            Status::resource_exhausted(format!("{most} streams are open, as many as are served"))
        })?;
        let name = Arc::clone(&caller.name);
        let most = self.limits.streams_per_caller;
        let mut callers = self.callers.0.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = callers.entry(Arc::clone(&name)).or_default();
        if *streams >= most {
            tracing::warn!(most, caller = %name, "xDS client refused: its places are taken");
            return Err(Status::resource_exhausted(format!(
                "{name} has {most} streams open, as many as one may"
            )));
        }
        *streams += 1;
        Ok(Place { _of_all: of_all, callers: Arc::clone(&self.callers), caller: name })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut callers = self.callers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = callers.get_mut(&self.caller) {
            *streams -= 1;
            if *streams == 0 {
                callers.remove(&self.caller);
            }
        }
    }
}

fn peer(extensions: &http::Extensions) -> Option<SocketAddr> {
    let plain = extensions.get::<TcpConnectInfo>();
    let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>();
    plain.or(tls.map(TlsConnectInfo::get_ref)).and_then(TcpConnectInfo::remote_addr)
}
