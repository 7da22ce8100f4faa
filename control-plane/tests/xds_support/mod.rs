//! A controller that serves xDS on loopback, and clients of it by the real stubs.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control_plane::resource::{Changes, Kind, Resource};
use control_plane::xds::{Authenticate, Caller, Everything, Limits, Service, Writer, service, store};
use futures::StreamExt;
use prost_types::{Struct, Value, value};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status, Streaming};
use xds_client::proto::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds_client::proto::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};

pub const DEADLINE: Duration = Duration::from_secs(60);

/// The bearer token is the node's name; that of nobody is empty.
pub struct TokenIsName;

#[tonic::async_trait]
impl Authenticate for TokenIsName {
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let name = header.and_then(|header| header.strip_prefix("Bearer ")).filter(|name| !name.is_empty());
        let name: Arc<str> = name.ok_or_else(|| Status::unauthenticated("no token"))?.into();
        Ok(Caller { node: Some(Arc::clone(&name)), name, proof: None })
    }
}

pub struct Controller {
    pub address: SocketAddr,
    pub writer: Writer,
    pub service: Service,
    _stop: oneshot::Sender<()>,
}

impl Controller {
    pub async fn start(limits: Limits) -> Self {
        Self::start_with(limits, Arc::new(TokenIsName)).await
    }

    pub async fn start_with(limits: Limits, authenticate: Arc<dyn Authenticate>) -> Self {
        let (mut writer, store) = store();
        writer.complete();
        let service = service(store, authenticate, Arc::new(Everything), limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_service(service.clone())
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async {
                let _ = stopped.await;
            });
        tokio::spawn(server);
        Self { address, writer, service, _stop: stop }
    }

    pub fn set(&mut self, resources: impl IntoIterator<Item = Resource>) {
        self.writer.apply(Changes { set: resources.into_iter().collect(), removed: Vec::new() });
    }

    pub fn remove(&mut self, name: &str) {
        self.writer.apply(Changes { set: Vec::new(), removed: vec![(Kind::Address, name.into())] });
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub async fn client(&self, node: &str) -> Client {
        Client::open(self.channel().await, node).await.unwrap()
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Service) -> bool) {
        let wait = async {
            while !is_so(&self.service) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

pub fn resource(name: &str, body: &str) -> Resource {
    Resource {
        kind: Kind::Address,
        name: name.into(),
        aliases: vec![format!("net/{name}").into()],
        belongs_to: Vec::new(),
        node: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

pub fn node(name: &str) -> proto::Node {
    let value = Value { kind: Some(value::Kind::StringValue(name.to_owned())) };
    let fields = [("NODE_NAME".to_owned(), value)].into();
    proto::Node { id: format!("ztunnel~{name}"), metadata: Some(Struct { fields }), ..Default::default() }
}

/// A stream as a proxy opens it.
pub struct Client {
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
    /// Name to version.
    pub held: BTreeMap<String, String>,
    pub node: String,
}

impl Client {
    pub async fn open(channel: Channel, node: &str) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        let outgoing = futures::stream::unfold(outgoing, |mut outgoing| async move {
            outgoing.recv().await.map(|request| (request, outgoing))
        });
        let mut request = Request::new(outgoing);
        let token = format!("Bearer {node}").parse().unwrap();
        request.metadata_mut().insert("authorization", token);
        let mut stub = AggregatedDiscoveryServiceClient::new(channel);
        let responses = stub.delta_aggregated_resources(request).await?.into_inner();
        Ok(Self { requests, responses, held: BTreeMap::new(), node: node.to_owned() })
    }

    pub async fn say(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// The first request for everything, beside what is held.
    pub async fn begin(&self) {
        self.begin_with(Vec::new(), Vec::new()).await;
    }

    pub async fn begin_with(&self, subscribe: Vec<String>, unsubscribe: Vec<String>) {
        self.say(DeltaDiscoveryRequest {
            node: Some(node(&self.node)),
            type_url: Kind::Address.type_url().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: self.held.clone().into_iter().collect::<HashMap<_, _>>(),
            ..Default::default()
        })
        .await;
    }

    pub async fn hear(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        match tokio::time::timeout(DEADLINE, self.responses.next()).await.expect("an answer in time") {
            Some(response) => response,
            None => Err(Status::ok("the stream is over")),
        }
    }

    /// Applies and acknowledges the next response. Gives its names: "a -b".
    pub async fn told(&mut self) -> String {
        let response = self.hear().await.unwrap();
        self.say(answer(&response)).await;
        self.apply(&response);
        let mut words: Vec<_> = response.resources.into_iter().map(|resource| resource.name).collect();
        words.extend(response.removed_resources.iter().map(|name| format!("-{name}")));
        words.sort();
        words.join(" ")
    }

    /// Hears and acknowledges until so many resources are held.
    pub async fn fill(&mut self, resources: usize) {
        while self.held.len() < resources {
            self.told().await;
        }
    }

    fn apply(&mut self, response: &DeltaDiscoveryResponse) {
        for resource in &response.resources {
            self.held.insert(resource.name.clone(), resource.version.clone());
        }
        for name in &response.removed_resources {
            self.held.remove(name);
        }
    }
}

pub fn answer(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

/// Thousands of connections need descriptors at both ends.
pub fn raise_descriptor_limit(most: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard >= most, "this test needs {most} descriptors: ulimit -Hn");
    setrlimit(Resource::RLIMIT_NOFILE, most, hard).unwrap();
}
