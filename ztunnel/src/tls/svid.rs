//! One pod's certificate, key and roots, checked to belong together, with the TLS configs made from them once.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;
use ztunnel_model::{Identity, IdentitySet};

use super::revocation::{Revocations, Revoked, Tracked};
use super::verify::{self, ClientVerifier, Refused, ServerVerifier, Trust};
use super::{ALPN_H2, describe, mesh_provider};

pub use super::describe::{CertificateDescription, Description};

/// A private key in PKCS#8 DER. It cannot be copied or printed, and its memory is zeroed when it goes.
pub struct SecretKey(Zeroizing<Vec<u8>>);

impl SecretKey {
    pub fn from_pkcs8_der(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(redacted)")
    }
}

/// A SPIFFE verifiable identity document: leaf, intermediates, key and the roots that came with them. It only exists
/// when all of them agree with each other and with the identity that was asked for.
pub struct Svid {
    identity: Identity,
    not_before: SystemTime,
    not_after: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    /// The one that its chain leads to, for people.
    root: Arc<str>,
    trust: Trust,
    resolver: Arc<SingleCertAndKey>,
    server: Arc<ServerConfig>,
    client: ClientConfig,
}

/// Why a CA's answer is no SVID.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the CA's answer holds {0} certificate entries; a leaf and, last, its roots are needed")]
    TooFewEntries(usize),
    #[error("entry {entry} of the CA's answer holds no readable certificate: {reason}")]
    Unreadable { entry: usize, reason: String },
    #[error("the last entry of the CA's answer holds no usable root")]
    NoRoots,
    #[error("the CA was asked for {asked}, but its certificate is unfit: {source}")]
    Leaf { asked: Identity, source: Box<Refused> },
    #[error("the CA was asked for {asked} but certified {given}")]
    WrongIdentity { asked: Identity, given: Identity },
    #[error("the certificate for {asked} is not for the key of the request: {source}")]
    WrongKey { asked: Identity, source: rustls::Error },
    #[error(
        "the certificate for {asked} does not verify as a {role}'s against the roots of its own answer: {source}"
    )]
    Chain { asked: Identity, role: &'static str, source: Box<rustls::Error> },
    #[error("TLS cannot be set up for {asked}: {source}")]
    Config { asked: Identity, source: rustls::Error },
}

impl Svid {
    /// Checks a CA's answer: `chain` is leaf, intermediates, and last the roots, each entry PEM (interop.md section 5.4).
    /// Peers that `revocations` names are refused by it.
    pub fn new(
        asked: &Identity,
        key: SecretKey,
        chain: &[String],
        revocations: &Revocations,
    ) -> Result<Self, Error> {
        let (entries, bundle) = match chain {
            [entries @ .., bundle] if !entries.is_empty() => (entries, bundle),
            _ => return Err(Error::TooFewEntries(chain.len())),
        };
        let chain = entries.iter().enumerate().map(first_certificate).collect::<Result<Vec<_>, _>>()?;
        let (roots, store) = read_roots(bundle)?;
        let validity = check_leaf(asked, &chain[0])?;
        let keyed = certified_key(asked, key, chain.clone())?;
        let provider = mesh_provider();
        let algorithms = provider.signature_verification_algorithms;
        let trust = Trust::new(store, root_names(&roots), algorithms, revocations.clone());
        check_chain(asked, &trust, &chain, &validity)?;
        let resolver = Arc::new(SingleCertAndKey::from(keyed));
        Ok(Self {
            identity: asked.clone(),
            not_before: validity.not_before,
            not_after: validity.not_after,
            server: Arc::new(server_config(asked, &trust, Arc::clone(&resolver))?),
            client: client_config(asked, &trust, Arc::clone(&resolver))?,
            resolver,
            root: describe::top_issuer(&chain[0], &chain[1..]).into(),
            chain,
            roots,
            trust,
        })
    }

    /// Also accepts peers under the roots that came with its predecessor, until that one's end (see [`Trust`]).
    pub fn succeeding(self, predecessor: &Self) -> Result<Self, Error> {
        if predecessor.roots.iter().all(|root| self.roots.contains(root)) {
            return Ok(self);
        }
        let mut both = RootCertStore::clone(self.trust.roots());
        both.add_parsable_certificates(predecessor.roots.iter().cloned());
        let former = predecessor.roots.iter().filter(|root| !self.roots.contains(root));
        let names = root_names(self.roots.iter().chain(former));
        let until = unix_time(predecessor.not_after);
        let trust = self.trust.clone().with_former(Arc::new(both), names, until);
        Ok(Self {
            server: Arc::new(server_config(&self.identity, &trust, Arc::clone(&self.resolver))?),
            client: client_config(&self.identity, &trust, Arc::clone(&self.resolver))?,
            trust,
            ..self
        })
    }

    /// Whether this very certificate is revoked, as others will find.
    pub fn revoked(&self) -> Result<(), Revoked> {
        let now = SystemTime::now().min(self.not_after).max(self.not_before);
        self.trust.check_revocation(&self.chain[0], &self.chain[1..], unix_time(now))
    }

    /// Keeps the chain of a peer that this SVID's verifier has just accepted, to judge it again later.
    pub(super) fn track(&self, chain: &[CertificateDer<'static>]) -> Option<Tracked> {
        let now = UnixTime::now();
        Tracked::new(chain, Arc::clone(self.trust.roots_at(now)), now, self.trust.revocations().clone())
    }

    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The root that its own chain leads to, for people.
    pub(super) fn root(&self) -> &Arc<str> {
        &self.root
    }

    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// The server's config: made once, shared by every handshake.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// The client's config for one dial: a shallow copy of the one made once, with a verifier that wants `expected`.
    pub fn client_config(&self, expected: &IdentitySet) -> ClientConfig {
        let mut config = self.client.clone();
        let verifier = ServerVerifier::new(self.trust.clone(), expected.clone());
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        config
    }

    /// The leaf's serial number.
    #[cfg(test)]
    pub(crate) fn serial(&self) -> Vec<u8> {
        self.serial_of(0)
    }

    #[cfg(test)]
    pub(crate) fn serial_of(&self, index: usize) -> Vec<u8> {
        let (_, parsed) = X509Certificate::from_der(&self.chain[index]).expect("it was parsed before");
        parsed.raw_serial().to_vec()
    }

    /// The public part, for people and for /config_dump.
    pub fn describe(&self) -> Description {
        Description {
            cert_chain: self.chain.iter().map(describe::certificate).collect(),
            root_certs: self.roots.iter().map(describe::certificate).collect(),
        }
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

fn first_certificate((index, pem): (usize, &String)) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Error::Unreadable { entry: index + 1, reason: format!("{error:?}") })
}

/// Every usable root of the bundle. One bad root must not take the good ones with it: CAs rotate by handing out both.
fn read_roots(bundle: &str) -> Result<(Vec<CertificateDer<'static>>, Arc<RootCertStore>), Error> {
    let mut store = RootCertStore::empty();
    let mut roots = Vec::new();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        let added = root.map_err(|error| format!("{error:?}")).and_then(|root| {
            store.add(root.clone()).map_err(|error| error.to_string())?;
            Ok(root)
        });
        match added {
            Ok(root) => roots.push(root),
            Err(error) => tracing::warn!(error, "a root in the CA's answer is skipped"),
        }
    }
    if roots.is_empty() {
        return Err(Error::NoRoots);
    }
    Ok((roots, Arc::new(store)))
}

fn check_leaf(asked: &Identity, leaf: &CertificateDer<'_>) -> Result<Validity, Error> {
    let given = verify::spiffe_identity(leaf)
        .map_err(|source| Error::Leaf { asked: asked.clone(), source: Box::new(source) })?;
    if given != *asked {
        return Err(Error::WrongIdentity { asked: asked.clone(), given });
    }
    let (_, parsed) = X509Certificate::from_der(leaf)
        .map_err(|error| Error::Unreadable { entry: 1, reason: error.to_string() })?;
    let validity = parsed.validity();
    Ok(Validity {
        not_before: describe::system_time(validity.not_before),
        not_after: describe::system_time(validity.not_after),
    })
}

fn certified_key(
    asked: &Identity,
    key: SecretKey,
    chain: Vec<CertificateDer<'static>>,
) -> Result<CertifiedKey, Error> {
    let wrong_key = |source| Error::WrongKey { asked: asked.clone(), source };
    // Borrowed, so that no second copy of the key is left behind unzeroed.
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.0.as_slice()));
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(wrong_key)?;
    let keyed = CertifiedKey::new(chain, signer);
    keyed.keys_match().map_err(wrong_key)?;
    Ok(keyed)
}

/// Own certificates serve in both roles, so both are checked here rather than by each peer later. The clock is held
/// inside the leaf's validity: whether it is valid *now* is the schedule's question, asked again and again.
fn check_chain(
    asked: &Identity,
    trust: &Trust,
    chain: &[CertificateDer<'_>],
    validity: &Validity,
) -> Result<(), Error> {
    let failed = |role| move |source| Error::Chain { asked: asked.clone(), role, source: Box::new(source) };
    let (leaf, intermediates) = (&chain[0], &chain[1..]);
    let now = SystemTime::now().min(validity.not_after).max(validity.not_before);
    let now = unix_time(now);
    trust.check_server_chain(leaf, intermediates, now).map_err(failed("server"))?;
    let client = client_verifier(asked, trust)?;
    client.check_chain(leaf, intermediates, now).map_err(failed("client"))?;
    Ok(())
}

fn client_verifier(asked: &Identity, trust: &Trust) -> Result<ClientVerifier, Error> {
    ClientVerifier::new(trust, asked.trust_domain()).map_err(|error| config_error(asked, error))
}

fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

fn root_names<'a>(roots: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> Arc<str> {
    roots.into_iter().map(describe::root).collect::<Vec<_>>().join(", ").into()
}

fn server_config(
    asked: &Identity,
    trust: &Trust,
    resolver: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(client_verifier(asked, trust)?);
    let mut config = ServerConfig::builder_with_provider(mesh_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| config_error(asked, error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.send_tls13_tickets = 0;
    // For `record`, which seals and opens what follows the handshake.
    config.enable_secret_extraction = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

fn client_config(
    asked: &Identity,
    trust: &Trust,
    resolver: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, Error> {
    // The verifier of this base is replaced at every dial; it wants the pod itself, which is nobody to dial.
    let verifier = ServerVerifier::new(trust.clone(), IdentitySet::one(asked.clone()));
    let mut config = ClientConfig::builder_with_provider(mesh_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| config_error(asked, error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    config.enable_sni = false;
    Ok(config)
}

fn config_error(asked: &Identity, source: rustls::Error) -> Error {
    Error::Config { asked: asked.clone(), source }
}

#[cfg(test)]
mod tests;
