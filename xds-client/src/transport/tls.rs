//! TLS to the server: no client certificate; the chain must reach the roots, and the certificate must carry the host of
//! the address or the alternative name.

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connects to one server. Cheap to clone.
#[derive(Clone)]
pub(super) struct ServerTls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl ServerTls {
    /// `roots` is PEM text. `host` is also sent as SNI. The error says what is wrong with the roots: the names were
    /// checked before.
    pub(super) fn new(roots: &[u8], host: &str, alternative: Option<&str>) -> Result<Self, String> {
        let name = server_name(host).ok_or_else(|| format!("\"{host}\" is no host"))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain =
            WebPkiServerVerifier::builder_with_provider(Arc::new(read_roots(roots)?), provider.clone())
                .build()
                .map_err(|error| error.to_string())?;
        let verifier = EitherName { chain, alternative: alternative.and_then(server_name) };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    pub(super) async fn connect(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), tcp).await
    }
}

/// The name that a certificate carries for a host of a URI, where an IPv6 address stands in brackets.
pub fn server_name(host: &str) -> Option<ServerName<'static>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(bare.to_owned()).ok()
}

/// The chain must verify and one of two names must match (interop.md section 4.1).
#[derive(Debug)]
pub struct EitherName {
    pub chain: Arc<WebPkiServerVerifier>,
    pub alternative: Option<ServerName<'static>>,
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.chain.verify_server_cert(leaf, intermediates, name, ocsp, now);
        match (&verified, &self.alternative) {
            (
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )),
                Some(alternative),
            ) => self.chain.verify_server_cert(leaf, intermediates, alternative, ocsp, now),
            _ => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn read_roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let (added, skipped) =
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    if skipped > 0 {
        tracing::warn!(skipped, "unusable roots of the xDS server are skipped");
    }
    if added == 0 { Err("it holds no usable certificate; PEM is expected".to_owned()) } else { Ok(roots) }
}
