//! Who the other end is, a [`Peer`]. A [`VerifiedPeer`] is made here and nowhere else, out of a finished handshake, or where both
//! ends are SVIDs of this process, out of the same judgement (`vouch`).
//!
//! Both verifiers first let webpki check the chain (signatures, roots, expiry, key usage), then read the identity. A
//! leaf must hold exactly one SPIFFE URI SAN: with two, the rule that admits the peer and the policy that judges it
//! could look at different ones (interop.md section 14.4).

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use ztunnel_model::{Identity, IdentitySet};

use super::revocation::{Revocations, Revoked};
use super::{describe, mesh_provider};

/// The identity that the other end of a finished handshake has proved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VerifiedPeer {
    identity: Identity,
}

impl VerifiedPeer {
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the certificate behind a finished handshake is over.
    pub(super) fn not_after(session: &rustls::CommonState) -> Result<SystemTime, Refused> {
        let leaf = session.peer_certificates().and_then(<[_]>::first).ok_or(Refused::NoCertificate)?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| Refused::Malformed(error.to_string()))?;
        Ok(describe::system_time(parsed.validity().not_after))
    }

    /// Reads the peer out of a session whose handshake is over, which means that a verifier below has accepted it.
    pub(super) fn of(session: &rustls::CommonState) -> Result<Self, Refused> {
        let leaf = session.peer_certificates().and_then(<[_]>::first).ok_or(Refused::NoCertificate)?;
        Ok(Self { identity: spiffe_identity(leaf)? })
    }
}

/// Who is at the other end of a connection. Policy takes nothing else for it, so that an identity is always a proven one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Verified(VerifiedPeer),
    Plaintext(Unproven),
}

/// Why nobody is known to be at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// It came outside of any tunnel and was captured on the plaintext port.
    OutsideTunnel,
}

impl Peer {
    /// The identity that was proved; nobody's for plaintext.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Verified(peer) => Some(peer.identity()),
            Self::Plaintext(Unproven::OutsideTunnel) => None,
        }
    }
}

/// Why a certificate does not make its holder an acceptable peer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("it presented no certificate")]
    NoCertificate,
    #[error("its certificate is not well-formed: {0}")]
    Malformed(String),
    #[error("its certificate holds {} SPIFFE URI SANs where exactly one is needed: [{}]", .0.len(), .0.join(", "))]
    SpiffeSans(Vec<String>),
    #[error("its certificate names nobody of the mesh: {0}")]
    NotAnIdentity(#[source] ztunnel_model::identity::Error),
    #[error("it is {identity}, and only one of {expected} may answer here")]
    Unexpected { identity: Identity, expected: IdentitySet },
    #[error("it is {identity}, and only trust domain {trust_domain} is served here")]
    TrustDomain { identity: Identity, trust_domain: String },
    #[error("its certificate does not verify: {source} (it claims [{}])", claimed.join(", "))]
    Chain { claimed: Vec<String>, source: rustls::Error },
    #[error(
        "its certificate does not verify (UnknownIssuer): {issuer} is none of the roots trusted here, {trusted}; if the \
         CA's root was changed, hand out the old and the new one together until every certificate of the old one is \
         over (it claims [{}])", claimed.join(", ")
    )]
    UnknownRoot { claimed: Vec<String>, issuer: String, trusted: Arc<str> },
    #[error("{source} (it claims [{}])", claimed.join(", "))]
    Revoked { claimed: Vec<String>, source: Revoked },
}

/// The identity of a leaf: its only SPIFFE URI SAN.
pub(super) fn spiffe_identity(leaf: &CertificateDer<'_>) -> Result<Identity, Refused> {
    let mut sans = spiffe_sans(leaf)?;
    match (sans.pop(), sans.is_empty()) {
        (Some(only), true) => only.parse().map_err(Refused::NotAnIdentity),
        (Some(last), false) => {
            sans.push(last);
            Err(Refused::SpiffeSans(sans))
        }
        (None, _) => Err(Refused::SpiffeSans(sans)),
    }
}

/// Why the verifier refused in the call to rustls that just failed, if it was the verifier.
///
/// rustls carries a verifier's error and the alert to send in one value, so a detailed error would cost the precise
/// alert (unknown_ca, certificate_expired). The verifier therefore leaves its finding in a slot of the thread; nothing
/// runs between `forget_finding`, the call and this, which makes the slot's content that handshake's own.
pub(super) fn finding() -> Option<Refused> {
    FINDING.take()
}

pub(super) fn forget_finding() {
    FINDING.take();
}

/// What one SVID trusts, in both directions: the roots of its own CA response and, while the SVID before it is still
/// valid, the roots of that one's response.
///
/// The second part is for peers whose certificates outlast their root's place in the bundle: pods renew one after the
/// other, so for a while some still show a certificate of the root that the newest answers no longer name. It is never
/// more than the proxy trusted already, it does not pass from one answer to the next (only the direct predecessor's own
/// roots count), and it ends with the predecessor's certificate, which is when a proxy that could not renew would have
/// stopped to trust them as well. Who must be rid of a root sooner revokes what it signed.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    roots: Arc<RootCertStore>,
    former: Option<Former>,
    /// Of the roots, for people.
    names: Arc<str>,
    algorithms: WebPkiSupportedAlgorithms,
    revocations: Revocations,
}

#[derive(Debug, Clone)]
struct Former {
    with_current: Arc<RootCertStore>,
    /// Of all these, for people.
    names: Arc<str>,
    until: UnixTime,
}

impl Trust {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        names: Arc<str>,
        algorithms: WebPkiSupportedAlgorithms,
        revocations: Revocations,
    ) -> Self {
        Self { roots, former: None, names, algorithms, revocations }
    }

    /// Also trusts what a predecessor trusted, for as long as that one is valid.
    pub(super) fn with_former(
        self,
        with_current: Arc<RootCertStore>,
        names: Arc<str>,
        until: UnixTime,
    ) -> Self {
        Self { former: Some(Former { with_current, names, until }), ..self }
    }

    /// Everything that may be trusted at some time.
    pub(super) fn widest(&self) -> &Arc<RootCertStore> {
        self.former.as_ref().map_or(&self.roots, |former| &former.with_current)
    }

    pub(super) fn roots_at(&self, now: UnixTime) -> &Arc<RootCertStore> {
        self.former_at(now).map_or(&self.roots, |former| &former.with_current)
    }

    fn names_at(&self, now: UnixTime) -> &Arc<str> {
        self.former_at(now).map_or(&self.names, |former| &former.names)
    }

    fn former_at(&self, now: UnixTime) -> Option<&Former> {
        self.former.as_ref().filter(|former| now <= former.until)
    }

    pub(super) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    pub(super) fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    pub(super) fn check_revocation(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Revoked> {
        self.revocations.check(self.roots_at(now), leaf, intermediates, now)
    }

    /// The last check of a chain that is good otherwise.
    fn refuse_revoked(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.check_revocation(leaf, intermediates, now).map_err(|source| {
            let claimed = spiffe_sans(leaf).unwrap_or_default();
            FINDING.set(Some(Refused::Revoked { claimed, source }));
            CertificateError::Revoked.into()
        })
    }

    /// A root that is not trusted is what a rotation gone wrong looks like, so it is named.
    fn note_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        error: rustls::Error,
    ) -> rustls::Error {
        let claimed = spiffe_sans(leaf).unwrap_or_default();
        let refused = match &error {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                let issuer = describe::top_issuer(leaf, intermediates);
                Refused::UnknownRoot { claimed, issuer, trusted: Arc::clone(self.names_at(now)) }
            }
            _ => Refused::Chain { claimed, source: error.clone() },
        };
        FINDING.set(Some(refused));
        error
    }

    /// Checks a chain as a server's: signatures up to a root, validity at `now`, and serverAuth if the leaf limits its use.
    pub(super) fn check_server_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, self.roots_at(now), intermediates, now, algorithms)
    }
}

/// Accepts a server whose identity is one of those that the hop expects.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    trust: Trust,
    expected: IdentitySet,
}

impl ServerVerifier {
    pub(super) fn new(trust: Trust, expected: IdentitySet) -> Self {
        Self { trust, expected }
    }
}

/// What a client with this trust finds of a server's chain, which is not empty.
pub(super) fn judge_server(
    trust: &Trust,
    expected: &IdentitySet,
    chain: &[CertificateDer<'_>],
) -> Result<(), Refused> {
    let verifier = ServerVerifier::new(trust.clone(), expected.clone());
    let unnamed = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let (leaf, intermediates) = chain.split_first().ok_or(Refused::NoCertificate)?;
    forget_finding();
    let verdict = verifier.verify_server_cert(leaf, intermediates, &unnamed, &[], UnixTime::now());
    verdict.map(drop).map_err(|error| found(leaf, error))
}

/// What a server with this trust finds of a client's chain.
pub(super) fn judge_client(
    trust: &Trust,
    trust_domain: &str,
    chain: &[CertificateDer<'_>],
) -> Result<VerifiedPeer, Refused> {
    let (leaf, intermediates) = chain.split_first().ok_or(Refused::NoCertificate)?;
    forget_finding();
    ClientVerifier::new(trust, trust_domain)
        .and_then(|verifier| verifier.verify_client_cert(leaf, intermediates, UnixTime::now()))
        .map_err(|error| found(leaf, error))?;
    Ok(VerifiedPeer { identity: spiffe_identity(leaf)? })
}

fn found(leaf: &CertificateDer<'_>, source: rustls::Error) -> Refused {
    finding().unwrap_or_else(|| Refused::Chain { claimed: spiffe_sans(leaf).unwrap_or_default(), source })
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust
            .check_server_chain(leaf, intermediates, now)
            .map_err(|error| self.trust.note_chain(leaf, intermediates, now, error))?;
        self.trust.refuse_revoked(leaf, intermediates, now)?;
        let identity = spiffe_identity(leaf).map_err(note)?;
        if !self.expected.contains(&identity) {
            return Err(note(Refused::Unexpected { identity, expected: self.expected.clone() }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// Accepts a client whose identity belongs to the server's own trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    trust: Trust,
    /// Of the SVID's own roots, and of those together with its predecessor's.
    chain: Arc<dyn ClientCertVerifier>,
    widest: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
}

impl ClientVerifier {
    pub(super) fn new(trust: &Trust, trust_domain: &str) -> Result<Self, rustls::Error> {
        let chain = client_chain(trust.roots())?;
        let widest = if trust.former.is_some() { client_chain(trust.widest())? } else { Arc::clone(&chain) };
        Ok(Self { trust: trust.clone(), chain, widest, trust_domain: trust_domain.to_owned() })
    }

    fn chain_at(&self, now: UnixTime) -> &Arc<dyn ClientCertVerifier> {
        if Arc::ptr_eq(self.trust.roots_at(now), self.trust.roots()) { &self.chain } else { &self.widest }
    }

    /// Checks a chain as a client's.
    pub(super) fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.chain_at(now).verify_client_cert(leaf, intermediates, now)
    }
}

/// It makes a client certificate mandatory.
fn client_chain(roots: &Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), mesh_provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.widest.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .check_chain(leaf, intermediates, now)
            .map_err(|error| self.trust.note_chain(leaf, intermediates, now, error))?;
        self.trust.refuse_revoked(leaf, intermediates, now)?;
        let identity = spiffe_identity(leaf).map_err(note)?;
        if identity.trust_domain() != self.trust_domain {
            return Err(note(Refused::TrustDomain { identity, trust_domain: self.trust_domain.clone() }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
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

thread_local! {
    static FINDING: RefCell<Option<Refused>> = const { RefCell::new(None) };
}

/// The certificate is good but its holder is not wanted: that is what the alert access_denied says (RFC 8446 section 6.2).
fn note(refused: Refused) -> rustls::Error {
    FINDING.set(Some(refused));
    CertificateError::ApplicationVerificationFailure.into()
}

fn only_tls13() -> rustls::Error {
    rustls::PeerIncompatible::Tls12NotOffered.into()
}

/// Every URI SAN of the SPIFFE scheme, whether or not it is an identity of ours: an odd one must not hide beside a good one.
fn spiffe_sans(leaf: &CertificateDer<'_>) -> Result<Vec<String>, Refused> {
    let (rest, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| Refused::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(Refused::Malformed(format!("{} stray bytes follow it", rest.len())));
    }
    let names = parsed.subject_alternative_name().map_err(|error| Refused::Malformed(error.to_string()))?;
    let mut found = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) if is_spiffe(uri) => found.push((*uri).to_owned()),
            GeneralName::Invalid(tag, _) => {
                return Err(Refused::Malformed(format!("a SAN with tag {tag} is not readable")));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn is_spiffe(uri: &str) -> bool {
    uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
}
