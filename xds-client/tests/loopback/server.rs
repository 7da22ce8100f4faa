//! A scripted xDS server over real TLS, and a relay that can die.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use xds_client::proto::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use xds_client::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// Nothing on a loopback takes this long.
pub const SOON: Duration = Duration::from_secs(20);

/// A root, made for one test.
pub struct Root(CertifiedIssuer<'static, KeyPair>);

impl Root {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        Self(CertifiedIssuer::self_signed(params, key).expect("a root can be made"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's certificate for these names or addresses.
    pub fn certify(&self, names: &[&str]) -> Identity {
        let key = KeyPair::generate().expect("a key can be made");
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.0).expect("a leaf can be made");
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }
}

/// One stream, from the server's end.
pub struct Session {
    pub metadata: MetadataMap,
    pub requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Session {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    pub async fn request(&mut self) -> DeltaDiscoveryRequest {
        let request = tokio::time::timeout(SOON, self.requests.message()).await.expect("in time");
        request.expect("the stream is whole").expect("the client still asks")
    }

    pub async fn send(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.expect("the client still listens");
    }

    pub async fn fail(&self, status: Status) {
        self.responses.send(Err(status)).await.expect("the client still listens");
    }

    /// Nothing was sent but this stream has ended.
    pub async fn ended(mut self) {
        let wait = async { while let Ok(Some(_)) = self.requests.message().await {} };
        tokio::time::timeout(SOON, wait).await.expect("in time");
    }
}

/// Listens on a loopback port until dropped.
pub struct Peer {
    pub address: SocketAddr,
    sessions: mpsc::UnboundedReceiver<Session>,
    task: tokio::task::JoinHandle<()>,
}

impl Peer {
    /// `None` serves plaintext.
    pub async fn start(port: u16, identity: Option<Identity>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port is free");
        let address = listener.local_addr().expect("it listens");
        let (session, sessions) = mpsc::unbounded_channel();
        let mut server = Server::builder();
        if let Some(identity) = identity {
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).expect("TLS can be had");
        }
        let service =
            AggregatedDiscoveryServiceServer::new(Scripted(session)).max_encoding_message_size(usize::MAX);
        let serving = server.add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        let task = tokio::spawn(async move { serving.await.expect("the server runs") });
        Self { address, sessions, task }
    }

    pub async fn session(&mut self) -> Session {
        tokio::time::timeout(SOON, self.sessions.recv()).await.expect("in time").expect("the server runs")
    }

    /// Stops listening; connections that are open stay.
    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

struct Scripted(mpsc::UnboundedSender<Session>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Scripted {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    /// As a Go server does, holds its headers back until it has something to say.
    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, mut sent) = mpsc::channel(16);
        let (metadata, _, requests) = request.into_parts();
        self.0.send(Session { metadata, requests, responses }).map_err(drop).expect("the test listens");
        let mut first = match sent.recv().await {
            Some(Err(status)) => return Err(status),
            first => first,
        };
        let rest = futures::stream::poll_fn(move |context| match first.take() {
            Some(response) => std::task::Poll::Ready(Some(response)),
            None => sent.poll_recv(context),
        });
        Ok(Response::new(Box::pin(rest)))
    }
}

/// Carries one connection after another to `target`; the first dies after that many bytes from the server.
pub async fn dying_relay(target: SocketAddr, bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it listens");
    tokio::spawn(async move {
        let mut left = Some(bytes);
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(target).await.expect("the server listens");
            tokio::spawn(carry(client, server, left.take()));
        }
    });
    address
}

async fn carry(mut client: TcpStream, mut server: TcpStream, limit: Option<usize>) {
    let Some(limit) = limit else {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        return;
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let down = async {
        let mut buffer = [0; 4096];
        let mut carried = 0;
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            carried += count;
            if carried > limit || to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = down => {}
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
    }
}
