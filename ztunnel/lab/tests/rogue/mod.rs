//! A TLS client of the mesh that may lie about anything.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use control_plane::ca::{Authority, Leaf, Purpose, SubjectName};
use http::{Method, Request, StatusCode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Chain, HOUR};

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

pub async fn tls(stream: TcpStream, config: ClientConfig) -> io::Result<TlsStream<tokio::net::TcpStream>> {
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    stream.set_nonblocking(true)?;
    TlsConnector::from(Arc::new(config)).connect(name, tokio::net::TcpStream::from_std(stream)?).await
}

/// A workload certificate with these URIs that was over or will be over `HOUR` after it began.
pub fn mint(authority: &Authority, uris: &[&str], began_before: Duration) -> Chain {
    let names = uris.iter().map(|&uri| SubjectName::Uri(uri.to_owned())).collect();
    leaf(authority, names, Purpose::Workload, began_before)
}

pub fn leaf(
    authority: &Authority,
    names: Vec<SubjectName>,
    purpose: Purpose,
    began_before: Duration,
) -> Chain {
    let not_before = SystemTime::now() - began_before;
    let leaf = Leaf { names, purpose, not_before, not_after: not_before + 2 * HOUR };
    let (key, chain) = authority.issue_with_new_key(&leaf).expect("the CA signs anything it is told to");
    let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is PEM"));
    (chain.collect(), PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("it is PEM"))
}

/// A client that does not care who answers.
pub fn client(certificate: Option<Chain>, alpn: &[&[u8]]) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match certificate {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("key and certificate fit"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

#[derive(Debug)]
pub struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The alert in an error of TLS.
pub fn alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// One request in a tunnel with `content`; the status, and what came back.
pub async fn ask(
    requests: &mut h2::client::SendRequest<Bytes>,
    request: Request<()>,
    content: &'static [u8],
) -> Result<(StatusCode, Vec<u8>), h2::Error> {
    let (response, mut send) = requests.clone().ready().await?.send_request(request, false)?;
    let response = response.await?;
    let status = response.status();
    let mut reply = Vec::new();
    if status == StatusCode::OK {
        send.send_data(Bytes::from_static(content), true)?;
        let mut body = response.into_body();
        while let Some(piece) = body.data().await {
            reply.extend_from_slice(&piece?);
        }
    }
    Ok((status, reply))
}

pub async fn requests(tls: TlsStream<tokio::net::TcpStream>) -> h2::client::SendRequest<Bytes> {
    let (requests, connection) = h2::client::handshake(tls).await.expect("HTTP/2 is spoken");
    tokio::spawn(connection);
    requests
}

pub fn request(method: Method, uri: &str) -> Request<()> {
    Request::builder().method(method).uri(uri).body(()).expect("it is a request")
}
