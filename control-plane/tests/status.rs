//! What the controller tells over HTTP: metrics and health.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod xds_support;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control_plane::ca::authenticate::Nodes;
use control_plane::ca::proto::IstioCertificateRequest;
use control_plane::ca::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use control_plane::ca::server::{Access, service as ca_service};
use control_plane::ca::{Ca, Files, Folders};
use control_plane::index::Config;
use control_plane::mesh::Planned;
use control_plane::status::{Discovery, Sources, serve};
use control_plane::xds::session::Settings;
use control_plane::xds::{Ended, Everything, Limits, service, store};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use xds_client::proto::{self, DeltaDiscoveryRequest};
use xds_support::{Controller, DEADLINE, TokenIsName, answer, resource};

const MANIFESTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: whole, namespace: shop}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: part, namespace: shop}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: shop}
spec: {action: AUDIT, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: mode, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Pod
metadata: {name: pod, namespace: shop}
spc: {}
";

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("controller-status-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn start(sources: Sources) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, sources, std::future::pending()));
    address
}

/// Head and body.
async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = tokio::time::timeout(DEADLINE, asked).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

async fn until(address: SocketAddr, path: &str, status: &str) -> String {
    let wait = async {
        loop {
            let (head, body) = get(address, path).await;
            if head.starts_with(&format!("HTTP/1.1 {status} ")) {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{path} never answers {status}"))
}

#[track_caller]
fn assert_has(text: &str, lines: &[&str]) {
    for line in lines {
        let line = format!("ztunnel_controller_{line}");
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

/// One certificate issued, one call without a token.
async fn use_ca(ca: &Arc<Ca>, folder: &Folder) {
    let nodes =
        r#"{"nodes":[{"name":"n","token":"t","identities":["spiffe://cluster.local/ns/shop/sa/cart"]}]}"#;
    fs::write(folder.0.join("nodes.json"), nodes).unwrap();
    let access = Access::of(Arc::new(Nodes::open(&folder.0.join("nodes.json")).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = ca_service(ca.clone(), access, Duration::from_secs(3600));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = IstioCertificateServiceClient::new(channel);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let uri = "spiffe://cluster.local/ns/shop/sa/cart".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let request = |token: Option<&str>| {
        let message =
            IstioCertificateRequest { csr: csr.clone(), validity_duration: 60, ..Default::default() };
        let mut request = tonic::Request::new(message);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    };
    client.create_certificate(request(Some("t"))).await.unwrap();
    client.create_certificate(request(None)).await.unwrap_err();
}

#[tokio::test]
async fn what_happens_is_counted() {
    let folder = Folder::new("metrics");
    let manifests = folder.0.join("manifests");
    fs::create_dir_all(&manifests).unwrap();
    fs::write(manifests.join("all.yaml"), MANIFESTS).unwrap();
    let mut controller = Controller::start(Limits::default()).await;
    let (planned, mesh) = Planned::new(Config::default(), store().0);
    let _mesh = planned.start(&[manifests]);
    let ca = Arc::new(Ca::ephemeral().unwrap());
    let discovery = Discovery { mesh, clients: controller.service.clients() };
    let address = start(Sources { ca: ca.clone(), discovery: Some(discovery) }).await;

    let (head, text) = get(address, "/metrics").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert_has(
        &text,
        &[
            &format!("build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
            "ca_requests_total{reason=\"\",result=\"issued\"} 0",
            "ca_requests_total{reason=\"not_on_node\",result=\"refused\"} 0",
            "ca_certificates_unexpired 0",
            "ca_certificates_revoked 0",
            "ca_rotations_total 0",
            "ca_unusable_files_total 0",
            "xds_clients 0",
            "xds_streams_ended_total{reason=\"unread\"} 0",
            "xds_resources{url=\"type.googleapis.com/istio.security.Authorization\"} 0",
            "manifest_mistakes 1",
            "policies{kind=\"AuthorizationPolicy\",status=\"enforced\"} 1",
            "policies{kind=\"AuthorizationPolicy\",status=\"partly_enforced\"} 1",
            "policies{kind=\"AuthorizationPolicy\",status=\"not_enforced\"} 1",
            "policies{kind=\"PeerAuthentication\",status=\"enforced\"} 1",
            "policies{kind=\"PeerAuthentication\",status=\"not_enforced\"} 0",
        ],
    );
    let expiry = text.lines().find(|line| line.starts_with("ztunnel_controller_ca_expiry_seconds{")).unwrap();
    let left: f64 = expiry.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(expiry.contains("role=\"root\"") && left > 24.0 * 3600.0, "{expiry}");

    use_ca(&ca, &folder).await;
    controller.set([resource("a", "1"), resource("b", "1")]);
    let mut client = controller.client("n1").await;
    client.begin().await;
    client.told().await;
    controller.remove("b");
    let response = client.hear().await.unwrap();
    let error_detail = Some(proto::Status { message: "no".to_owned(), ..Default::default() });
    client.say(DeltaDiscoveryRequest { error_detail, ..answer(&response) }).await;
    let address_url = "{url=\"type.googleapis.com/istio.workload.Address\"}";
    controller
        .until("the NACK is counted", |service| {
            service.clients().counters().types.values().any(|of_type| of_type.nacks == 1)
        })
        .await;
    let (_, text) = get(address, "/metrics").await;
    let of_type = |name: &str, value: u64| format!("{name}{address_url} {value}");
    assert_has(
        &text,
        &[
            "ca_requests_total{reason=\"\",result=\"issued\"} 1",
            "ca_requests_total{reason=\"token_missing\",result=\"refused\"} 1",
            "ca_certificates_unexpired 1",
            "xds_clients 1",
            "xds_streams_total 1",
            &of_type("xds_resources", 1),
            &of_type("xds_pushes_total", 2),
            &of_type("xds_pushed_resources_total", 2),
            &of_type("xds_removed_resources_total", 1),
            &of_type("xds_acks_total", 1),
            &of_type("xds_nacks_total", 1),
        ],
    );
    drop(client);
    controller.until("the client is gone", |service| service.clients().counters().connected == 0).await;
    let (_, text) = get(address, "/metrics").await;
    assert_has(&text, &["xds_clients 0", "xds_streams_ended_total{reason=\"closed\"} 1"]);
}

#[tokio::test]
async fn a_client_that_does_not_answer_is_counted_as_such() {
    let answer_deadline = Duration::from_millis(50);
    let session = Settings { answer_deadline, ..Settings::default() };
    let controller = Controller::start(Limits { session, ..Limits::default() }).await;
    let client = controller.client("n1").await;
    client.begin().await;
    let ended = |reason| controller.service.clients().counters().ended.get(&reason).copied();
    controller.until("it is dropped", |_| ended(Ended::Unanswered) == Some(1)).await;
}

#[tokio::test]
async fn ready_after_the_manifests_are_read() {
    let folder = Folder::new("ready");
    let (writer, resources) = store();
    let service = service(resources, Arc::new(TokenIsName), Arc::new(Everything), Limits::default());
    let (planned, mesh) = Planned::new(Config::default(), writer);
    let ca = Arc::new(Ca::ephemeral().unwrap());
    let discovery = Some(Discovery { mesh, clients: service.clients() });
    let address = start(Sources { ca, discovery }).await;
    assert!(get(address, "/healthz/live").await.0.starts_with("HTTP/1.1 200 "));
    let (head, body) = get(address, "/healthz/ready").await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && body.contains("manifests are not read yet"),
        "{head} {body}"
    );
    assert_eq!(get(address, "/policies").await.1, "[]");
    let _mesh = planned.start(std::slice::from_ref(&folder.0));
    assert_eq!(get(address, "/healthz/ready").await.1, "ready\n");
}

#[tokio::test]
async fn not_ready_once_the_ca_is_over() {
    let folder = Folder::new("over");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_after = (SystemTime::now() + Duration::from_secs(3)).into();
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(folder.0.join("tls.key"), root.key().serialize_pem()).unwrap();
    fs::write(folder.0.join("tls.crt"), root.pem()).unwrap();
    fs::write(folder.0.join("ca.crt"), root.pem()).unwrap();
    let folders = Folders { material: folder.0.clone(), state: folder.0.join("state") };
    let ca = Arc::new(Ca::open(Files { folders, revoked: folder.0.join("revoked.yaml") }).unwrap());
    let address = start(Sources { ca, discovery: None }).await;
    assert_eq!(until(address, "/healthz/ready", "200").await, "ready\n");
    assert!(until(address, "/healthz/ready", "503").await.contains("signing material is over"));
    assert!(get(address, "/healthz/live").await.0.starts_with("HTTP/1.1 200 "));
    let (_, text) = get(address, "/metrics").await;
    assert!(!text.contains("ztunnel_controller_xds"), "there is no xDS: {text}");
}
