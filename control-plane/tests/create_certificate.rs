//! CreateCertificate over TLS on loopback, as a proxy calls it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use control_plane::ca::authenticate::{Authenticate, Nodes, Proven, Refused, Residents};
use control_plane::ca::proto::IstioCertificateRequest;
use control_plane::ca::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use control_plane::ca::server::Access;
use control_plane::ca::{Authority, Ca};
use control_plane::server;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use ztunnel_model::Identity;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";
const DEADLINE: Duration = Duration::from_secs(20);

struct Controller {
    address: SocketAddr,
    root: String,
    ca: Arc<Ca>,
    nodes: PathBuf,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), server::Error>>,
}

impl Controller {
    async fn start(name: &str) -> Self {
        let nodes = std::env::temp_dir().join(format!("controller-{name}-{}.json", std::process::id()));
        write_nodes(&nodes, &[CART]);
        let access = Access::of(Arc::new(Nodes::open(&nodes).unwrap()));
        Self::start_with(nodes, access).await
    }

    async fn start_with(nodes: PathBuf, access: Access) -> Self {
        let ca = Arc::new(Ca::ephemeral().unwrap());
        let root = ca.authority().root();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let config = server::Config {
            hosts: vec!["127.0.0.1".to_owned(), "controller.test".to_owned()],
            max_ttl: Duration::from_secs(3600),
        };
        let served = tokio::spawn(server::serve(listener, ca.clone(), access, None, config, async {
            let _ = stopped.await;
        }));
        Self { address, root, ca, nodes, stop, served }
    }

    async fn channel(&self, name: &str, root: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name(name);
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        endpoint.tls_config(tls)?.connect().await
    }

    async fn ask(
        &self,
        token: Option<&str>,
        request: IstioCertificateRequest,
    ) -> Result<Vec<String>, Status> {
        let channel = self.channel("controller.test", &self.root).await.expect("the server is trusted");
        let mut request = Request::new(request);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }

    async fn refusal(&self, token: Option<&str>, request: IstioCertificateRequest, code: Code) -> String {
        let status = self.ask(token, request).await.expect_err("this request is refused");
        assert_eq!(status.code(), code, "{status}");
        status.message().to_owned()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.nodes);
    }
}

fn write_nodes(path: &PathBuf, identities: &[&str]) {
    let file = serde_json::json!({"nodes": [{"name": "node1", "token": "secret", "identities": identities}]});
    let new = path.with_extension("new");
    std::fs::write(&new, file.to_string()).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn request(named: &str, impersonated: Option<&str>, ttl: i64) -> IstioCertificateRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(named.try_into().unwrap())];
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let metadata = impersonated.map(|text| Struct {
        fields: [(
            "ImpersonatedIdentity".to_owned(),
            Value { kind: Some(Kind::StringValue(text.to_owned())) },
        )]
        .into(),
    });
    IstioCertificateRequest { csr, validity_duration: ttl, metadata }
}

fn lifetime_left(pem: &str) -> i64 {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let end = block.parse_x509().unwrap().validity().not_after.timestamp();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    end - i64::try_from(now).unwrap()
}

#[tokio::test]
async fn a_node_gets_certificates_for_its_pods() {
    let controller = Controller::start("granted").await;
    let chain = controller.ask(Some("secret"), request(CART, Some(CART), 20)).await.unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], controller.root);
    assert!((15..=20).contains(&lifetime_left(&chain[0])));
    let chain = controller.ask(Some("secret"), request(CART, None, 24 * 3600)).await.unwrap();
    assert!(lifetime_left(&chain[0]) <= 3600, "the cap holds, and a CSR alone may name the pod");
}

#[tokio::test]
async fn others_are_refused_by_the_right_code() {
    let controller = Controller::start("refused").await;
    let good = || request(CART, Some(CART), 20);
    controller.refusal(None, good(), Code::Unauthenticated).await;
    let message = controller.refusal(Some("guess"), good(), Code::Unauthenticated).await;
    assert!(!message.contains("guess"), "{message}");
    for foreign in [request(BANK, Some(BANK), 20), request(CART, Some(BANK), 20), request(BANK, None, 20)] {
        let message = controller.refusal(Some("secret"), foreign, Code::PermissionDenied).await;
        assert!(message.contains("node1") && message.contains(BANK), "{message}");
    }
    let message =
        controller.refusal(Some("secret"), request(BANK, Some(CART), 20), Code::InvalidArgument).await;
    assert!(message.contains(CART) && message.contains(BANK), "{message}");
    let garbage = IstioCertificateRequest { csr: "garbage".to_owned(), ..good() };
    controller.refusal(Some("secret"), garbage, Code::InvalidArgument).await;
    controller.refusal(Some("secret"), request(CART, Some("nobody"), 20), Code::InvalidArgument).await;
    controller.refusal(Some("secret"), request(CART, Some(CART), -5), Code::InvalidArgument).await;
    let huge = IstioCertificateRequest { csr: "x".repeat(1 << 20), ..good() };
    controller.refusal(Some("secret"), huge, Code::OutOfRange).await;
    controller.ask(Some("secret"), good()).await.expect("the good are unharmed");
    use control_plane::ca::counters::Reason;
    let counters = controller.ca.counters();
    let counted = [
        (Reason::TokenMissing, 1),
        (Reason::TokenUnknown, 1),
        (Reason::NotOnNode, 3),
        (Reason::Mismatch, 1),
        (Reason::Malformed, 2),
        (Reason::Validity, 1),
    ];
    for (reason, count) in counted {
        assert_eq!(counters.refused(reason), count, "{reason:?}");
    }
    assert_eq!(counters.issued(), 1);
}

#[tokio::test]
async fn a_pod_that_moves_away_takes_its_identity_with_it() {
    let controller = Controller::start("moved").await;
    controller.ask(Some("secret"), request(CART, Some(CART), 20)).await.unwrap();
    write_nodes(&controller.nodes, &[BANK]);
    controller.refusal(Some("secret"), request(CART, Some(CART), 20), Code::PermissionDenied).await;
    controller.ask(Some("secret"), request(BANK, Some(BANK), 20)).await.unwrap();
}

#[tokio::test]
async fn the_server_proves_its_names_under_its_root_and_no_others() {
    let controller = Controller::start("names").await;
    controller.channel("127.0.0.1", &controller.root).await.expect("the address is a name of the server");
    controller.channel("other.test", &controller.root).await.expect_err("another name");
    let rogue = Authority::ephemeral().unwrap();
    controller.channel("127.0.0.1", &rogue.root()).await.expect_err("another root");
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody_else() {
    let controller = Controller::start("garbage").await;
    let silent = TcpStream::connect(controller.address).await.unwrap();
    let mut rude = TcpStream::connect(controller.address).await.unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(DEADLINE, rude.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "the rude one is cut off");
    controller.ask(Some("secret"), request(CART, Some(CART), 20)).await.expect("the good are unharmed");
    drop(silent);
}

#[tokio::test]
async fn it_stops_when_told_even_with_clients_connected() {
    let mut controller = Controller::start("stop").await;
    let channel = controller.channel("127.0.0.1", &controller.root).await.unwrap();
    let silent = TcpStream::connect(controller.address).await.unwrap();
    let (stop, _) = oneshot::channel();
    std::mem::replace(&mut controller.stop, stop).send(()).unwrap();
    tokio::time::timeout(DEADLINE, &mut controller.served).await.expect("it stops").unwrap().unwrap();
    drop((channel, silent));
}

/// Nobody lives anywhere until it is said.
struct Arriving(watch::Sender<u64>);

impl Residents for Arriving {
    fn may_hold(&self, node: &str, identity: &Identity) -> bool {
        *self.0.borrow() > 1 && node == "node1" && identity.to_string() == CART
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.subscribe())
    }
}

#[tokio::test]
async fn a_pod_that_is_heard_of_a_little_later_gets_its_certificate_all_the_same() {
    let nodes = std::env::temp_dir().join(format!("controller-arriving-{}.json", std::process::id()));
    write_nodes(&nodes, &[]);
    let arriving = Arc::new(Arriving(watch::Sender::new(0)));
    let authenticate = Arc::new(Nodes::open(&nodes).unwrap());
    let access = Access { authenticate, residents: arriving.clone() };
    let controller = Controller::start_with(nodes, access).await;
    let asked = controller.ask(Some("secret"), request(CART, Some(CART), 20));
    let heard = async {
        while arriving.0.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        // Of another pod, and then of this one.
        arriving.0.send_modify(|count| *count += 1);
        tokio::task::yield_now().await;
        arriving.0.send_modify(|count| *count += 1);
    };
    let (answer, ()) = tokio::time::timeout(DEADLINE, async { tokio::join!(asked, heard) }).await.unwrap();
    assert_eq!(answer.unwrap().len(), 2);
    let begun = Instant::now();
    controller.refusal(Some("secret"), request(BANK, Some(BANK), 20), Code::PermissionDenied).await;
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(8), "{waited:?}");
}

/// Knows why it refuses.
struct Refuses(Refused);

#[tonic::async_trait]
impl Authenticate for Refuses {
    async fn node(&self, _: &str) -> Result<Proven, Refused> {
        Err(self.0.clone())
    }
}

#[tokio::test]
async fn why_a_token_is_refused_is_told_and_counted() {
    use control_plane::ca::counters::Reason;
    let account = "system:serviceaccount:shop:cart";
    for (at, (refused, code, reason, told)) in [
        (Refused::Unknown, Code::Unauthenticated, Reason::TokenUnknown, "no node's"),
        (
            Refused::Expired { node: None, ago_s: 9 },
            Code::Unauthenticated,
            Reason::TokenExpired,
            "expired 9 s ago",
        ),
        (
            Refused::NoProxy { account: account.to_owned() },
            Code::PermissionDenied,
            Reason::TokenNoProxy,
            account,
        ),
        (
            Refused::Unavailable { reason: "away".to_owned() },
            Code::Unavailable,
            Reason::TokenUnchecked,
            "away",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let nodes = std::env::temp_dir().join(format!("controller-why{at}-{}.json", std::process::id()));
        write_nodes(&nodes, &[]);
        let residents = Arc::new(Nodes::open(&nodes).unwrap());
        let access = Access { authenticate: Arc::new(Refuses(refused)), residents };
        let controller = Controller::start_with(nodes, access).await;
        let message = controller.refusal(Some("t"), request(CART, Some(CART), 20), code).await;
        assert!(message.contains(told), "{message}");
        assert_eq!(controller.ca.counters().refused(reason), 1, "{reason:?}");
    }
}
