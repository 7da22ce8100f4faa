//! TLS to the control plane (CA, later xDS): no client certificate; the server's name is checked, as on the web
//! (interop.md section 4.1).

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use xds_client::transport::tls::{self, EitherName};

use super::ALPN_H2;

/// Connects to one control plane host. Cheap to clone.
#[derive(Clone)]
pub struct ControlTls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// Why no channel to the control plane can be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no usable root certificate in {origin}")]
    NoRoots { origin: String },
    #[error("\"{0}\" is neither a host name nor an IP address")]
    Name(String),
    #[error("TLS towards the control plane cannot be set up: {0}")]
    Config(String),
}

impl ControlTls {
    /// `roots` is PEM text that came from `origin`. The server must prove to be `host` or `alt_host`; `host` is sent as SNI.
    pub fn new(roots: &[u8], origin: &str, host: &str, alt_host: Option<&str>) -> Result<Self, Error> {
        let name = server_name(host)?;
        let verifier = EitherName {
            chain: WebPkiServerVerifier::builder_with_provider(
                Arc::new(read_roots(roots, origin)?),
                Arc::new(aws_lc_rs::default_provider()),
            )
            .build()
            .map_err(|error| Error::Config(error.to_string()))?,
            alternative: alt_host.map(server_name).transpose()?,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Config(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    pub async fn connect(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), tcp).await
    }
}

impl fmt::Debug for ControlTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlTls").field("name", &self.name).finish_non_exhaustive()
    }
}

fn read_roots(pem: &[u8], origin: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let (added, skipped) =
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    if skipped > 0 {
        tracing::warn!(origin, skipped, "unusable control plane roots are skipped");
    }
    if added == 0 { Err(Error::NoRoots { origin: origin.to_owned() }) } else { Ok(roots) }
}

fn server_name(host: &str) -> Result<ServerName<'static>, Error> {
    tls::server_name(host).ok_or_else(|| Error::Name(host.to_owned()))
}
