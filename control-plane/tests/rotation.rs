//! The CA's files change while it serves: signing material, roots and revocations.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_plane::ca::authenticate::Nodes;
use control_plane::ca::proto::IstioCertificateRequest;
use control_plane::ca::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use control_plane::ca::server::Access;
use control_plane::ca::{Ca, Files, Folders};
use control_plane::server::{Config, serve};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::net::TcpListener;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
/// What a proxy may notice a change after.
const SOON: Duration = Duration::from_secs(2);

type Signer = CertifiedIssuer<'static, KeyPair>;

struct Bed {
    folder: PathBuf,
    address: SocketAddr,
    ca: Arc<Ca>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root(name: &str) -> Signer {
    CertifiedIssuer::self_signed(params(name), KeyPair::generate().unwrap()).unwrap()
}

fn put(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join("new"), text).unwrap();
    fs::rename(folder.join("new"), folder.join(name)).unwrap();
}

fn install(folder: &Path, issuing: &Signer, roots: &[&Signer]) {
    put(folder, "tls.key", &issuing.key().serialize_pem());
    put(folder, "tls.crt", &issuing.pem());
    put(folder, "ca.crt", &roots.iter().map(|root| root.pem()).collect::<String>());
}

impl Bed {
    async fn start(name: &str, issuing: &Signer, roots: &[&Signer]) -> Self {
        let folder = std::env::temp_dir().join(format!("rotation-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        install(&folder, issuing, roots);
        let nodes = format!(r#"{{"nodes":[{{"name":"n","token":"secret","identities":["{CART}"]}}]}}"#);
        put(&folder, "nodes.json", &nodes);
        let folders = Folders { material: folder.clone(), state: folder.join("state") };
        let ca = Arc::new(Ca::open(Files { folders, revoked: folder.join("revoked.yaml") }).unwrap());
        let access = Access::of(Arc::new(Nodes::open(&folder.join("nodes.json")).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Config { hosts: vec!["127.0.0.1".to_owned()], max_ttl: Duration::from_secs(3600) };
        tokio::spawn(serve(listener, ca.clone(), access, None, config, std::future::pending()));
        Self { folder, address, ca }
    }

    async fn channel(&self, root: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name("127.0.0.1");
        Endpoint::from_shared(format!("https://{}", self.address)).unwrap().tls_config(tls)?.connect().await
    }

    fn published_roots(&self) -> String {
        fs::read_to_string(self.folder.join("state/root-cert.pem")).unwrap()
    }

    async fn rotated(&self, times: u64) {
        let end = Instant::now() + SOON;
        while self.ca.counters().rotations() < times {
            assert!(Instant::now() < end, "not rotated in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn ask(channel: Channel) -> Result<Vec<String>, Status> {
    let mut asked = CertificateParams::default();
    asked.distinguished_name = DistinguishedName::new();
    asked.subject_alt_names = vec![SanType::URI(CART.try_into().unwrap())];
    let csr = asked.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let mut request = Request::new(IstioCertificateRequest {
        csr,
        validity_duration: 60,
        ..IstioCertificateRequest::default()
    });
    request.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
    Ok(answer.into_inner().cert_chain)
}

#[tokio::test]
async fn a_new_intermediate_signs_without_a_restart_and_no_connection_breaks() {
    let root = root("root");
    let issuing =
        |name: &str| CertifiedIssuer::signed_by(params(name), KeyPair::generate().unwrap(), &root).unwrap();
    let bed = Bed::start("intermediate", &issuing("a"), &[&root]).await;
    let kept = bed.channel(&root.pem()).await.unwrap();
    let mut seen = vec![ask(kept.clone()).await.unwrap()[1].clone()];
    for (times, name) in (1..).zip(["b", "c", "d"]) {
        install(&bed.folder, &issuing(name), &[&root]);
        bed.rotated(times).await;
        let chain = ask(kept.clone()).await.expect("an open connection goes on");
        assert_eq!(chain.len(), 3);
        assert!(!seen.contains(&chain[1]), "another one signs");
        seen.push(chain[1].clone());
        ask(bed.channel(&root.pem()).await.expect("the server is trusted")).await.unwrap();
    }
}

#[tokio::test]
async fn a_root_is_rotated_with_overlap() {
    let (old, new) = (root("old"), root("new"));
    let bed = Bed::start("overlap", &old, &[&old]).await;
    assert_eq!(ask(bed.channel(&old.pem()).await.unwrap()).await.unwrap()[1], bed.published_roots());
    // First everybody learns the new root, then it signs, then the old one goes.
    install(&bed.folder, &old, &[&old, &new]);
    bed.rotated(1).await;
    let chain =
        ask(bed.channel(&old.pem()).await.expect("the old root still proves the server")).await.unwrap();
    assert_eq!((chain.len(), &chain[1]), (2, &bed.published_roots()));
    assert_eq!(chain[1].matches("BEGIN CERTIFICATE").count(), 2);
    install(&bed.folder, &new, &[&old, &new]);
    bed.rotated(2).await;
    let channel = bed.channel(&bed.published_roots()).await.expect("the file of before is enough");
    ask(channel).await.unwrap();
    bed.channel(&old.pem()).await.expect_err("the server's own certificate is the new root's");
    install(&bed.folder, &new, &[&new]);
    bed.rotated(3).await;
    let chain = ask(bed.channel(&new.pem()).await.unwrap()).await.unwrap();
    assert_eq!(chain[1].matches("BEGIN CERTIFICATE").count(), 1);
}

#[tokio::test]
async fn a_revoked_identity_is_refused_and_in_the_crl_soon() {
    let root = root("root");
    let bed = Bed::start("revoked", &root, &[&root]).await;
    let channel = bed.channel(&root.pem()).await.unwrap();
    ask(channel.clone()).await.unwrap();
    let mut crl = bed.ca.crl();
    crl.mark_unchanged();
    put(&bed.folder, "revoked.yaml", &format!("identities: [{CART}]\n"));
    tokio::time::timeout(SOON, crl.changed()).await.expect("signed soon").unwrap();
    assert_eq!(crl.borrow().revoked, 1);
    assert_eq!(fs::read_to_string(bed.folder.join("state/ca-crl.pem")).unwrap(), crl.borrow().pem);
    let status = ask(channel).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("revoked") && status.message().contains(CART), "{status}");
}
