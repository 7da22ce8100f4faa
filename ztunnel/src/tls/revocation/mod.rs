//! Which certificates are revoked (interop.md section 5.7), for handshakes and for tunnels that stand already.
//!
//! One [`Revocations`] serves the process. Its CRLs come from a file (`file`) and, beside it, from the control plane; any
//! of either counts. A certificate is looked up by issuer and serial number, which costs a hash for each CRL of its
//! issuer; only one that is named is verified once more with that CRL, which proves the CRL's signature. A CRL that names
//! a certificate and cannot be verified condemns it as well: what cannot be told is refused. A CRL's own end is not
//! looked at, and of whom no CRL speaks is good.
//!
//! A tunnel keeps the chain of its peer ([`Tracked`]) and is judged again after every change, as of the time when it was
//! established: a certificate that has ended since is not an error of the CRL's.

mod file;

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio::sync::watch;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

/// A chain above this is not kept for later. None gets here: TLS messages are no longer than this (rustls refuses them).
const MOST_TRACKED: usize = 64 * 1024;

/// The revocations of the process. Clones are handles to the same ones.
#[derive(Clone, Debug, Default)]
pub struct Revocations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    set: ArcSwap<Set>,
    sources: Mutex<Sources>,
    changed: watch::Sender<()>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { set: ArcSwap::default(), sources: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

type Crls = Vec<Arc<CertRevocationList<'static>>>;

#[derive(Debug, Default)]
struct Sources {
    file: Crls,
    delivered: Crls,
}

/// All CRLs of one moment.
#[derive(Debug, Default)]
struct Set(Crls);

/// Why CRLs cannot be used. The ones before stay in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it is PEM, but no CRL stands in it")]
    NoCrl,
    #[error("CRL {number} is not readable: {reason}")]
    Unreadable { number: usize, reason: String },
}

/// A certificate of a chain that is revoked, or that a CRL names which cannot be verified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate with serial number {serial} is revoked{}", unproven.as_ref().map(|why| format!(" by a CRL that cannot be verified ({why})")).unwrap_or_default())]
pub struct Revoked {
    /// Hexadecimal.
    pub serial: String,
    pub unproven: Option<String>,
}

impl Revocations {
    /// Takes CRLs that came from the control plane, instead of those that came before. An empty text revokes nothing.
    pub fn deliver(&self, text: &str) -> Result<usize, Error> {
        let crls = parse(text.as_bytes())?;
        Ok(self.replace(|sources| sources.delivered = crls))
    }

    fn take_file(&self, content: &[u8]) -> Result<usize, Error> {
        let crls = parse(content)?;
        Ok(self.replace(|sources| sources.file = crls))
    }

    /// Follows a file (CRL_PATH) for ever.
    pub async fn follow_file(self, path: std::path::PathBuf) {
        file::follow(self, path).await;
    }

    /// Tells of every change.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Judges a chain that is otherwise verified under `roots`.
    pub(super) fn check(
        &self,
        roots: &RootCertStore,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        time: UnixTime,
    ) -> Result<(), Revoked> {
        let set = self.0.set.load();
        if set.0.is_empty() {
            return Ok(());
        }
        for der in std::iter::once(leaf).chain(intermediates) {
            // The chain is verified, so whatever is not readable is a stray certificate that no path needs.
            let Ok(certificate) = EndEntityCert::try_from(der) else { continue };
            let naming = set.0.iter().filter(|crl| {
                crl.issuer() == certificate.issuer()
                    && !matches!(crl.find_serial(certificate.serial()), Ok(None))
            });
            let mut unproven = None;
            for crl in naming {
                match confirm(crl, roots, leaf, intermediates, time) {
                    Ok(()) => {}
                    Err(webpki::Error::CertRevoked) => {
                        return Err(Revoked { serial: hex(certificate.serial()), unproven: None });
                    }
                    Err(error) => unproven = Some(error.to_string()),
                }
            }
            if unproven.is_some() {
                return Err(Revoked { serial: hex(certificate.serial()), unproven });
            }
        }
        Ok(())
    }

    fn replace(&self, change: impl FnOnce(&mut Sources)) -> usize {
        let mut sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut sources);
        let all: Crls = sources.file.iter().chain(&sources.delivered).cloned().collect();
        let count = all.len();
        self.0.set.store(Arc::new(Set(all)));
        self.0.changed.send_replace(());
        count
    }
}

/// The peer of a tunnel that stands, as far as its revocation goes.
#[derive(Clone, Debug)]
pub struct Tracked(Arc<Peer>);

#[derive(Debug)]
struct Peer {
    chain: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    established: UnixTime,
    revocations: Revocations,
}

impl Tracked {
    /// `None` when the chain is too long to be kept.
    pub(super) fn new(
        chain: &[CertificateDer<'static>],
        roots: Arc<RootCertStore>,
        established: UnixTime,
        revocations: Revocations,
    ) -> Option<Self> {
        let size: usize = chain.iter().map(|der| der.len()).sum();
        let chain = chain.to_vec();
        (size <= MOST_TRACKED && !chain.is_empty())
            .then(|| Self(Arc::new(Peer { chain, roots, established, revocations })))
    }

    /// Resolves when the peer is revoked, which may be at once: the CRLs may have changed since its handshake.
    pub async fn revoked(&self) -> Revoked {
        let Peer { chain, roots, established, revocations } = &*self.0;
        let mut changes = revocations.changes();
        loop {
            if let Err(revoked) = revocations.check(roots, &chain[0], &chain[1..], *established) {
                return revoked;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// As [`Tracked::revoked`]; a peer that is not tracked never is.
pub async fn revoked(tracked: Option<&Tracked>) -> Revoked {
    match tracked {
        Some(tracked) => tracked.revoked().await,
        None => std::future::pending().await,
    }
}

/// The purpose of the leaf was judged by whoever verified the chain.
struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn confirm(
    crl: &CertRevocationList<'static>,
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    time: UnixTime,
) -> Result<(), webpki::Error> {
    let crls = [crl];
    let options = RevocationOptionsBuilder::new(&crls)
        .expect("invariant: there is one CRL")
        .with_depth(RevocationCheckDepth::Chain)
        .with_status_policy(UnknownStatusPolicy::Allow)
        .with_expiration_policy(ExpirationPolicy::Ignore)
        .build();
    let algorithms = super::mesh_provider().signature_verification_algorithms.all;
    EndEntityCert::try_from(leaf)?
        .verify_for_usage(algorithms, &roots.roots, intermediates, time, AnyPurpose, Some(options), None)
        .map(drop)
}

/// PEM with any number of CRLs among other blocks, or one DER; empty for none.
fn parse(content: &[u8]) -> Result<Crls, Error> {
    const BEGIN: &[u8] = b"-----BEGIN";
    if content.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let unreadable = |number: usize, reason: String| Error::Unreadable { number, reason };
    let read = |(index, der): (usize, Result<CertificateRevocationListDer<'_>, String>)| {
        let der = der.map_err(|reason| unreadable(index + 1, reason))?;
        let crl = OwnedCertRevocationList::from_der(&der)
            .map_err(|error| unreadable(index + 1, error.to_string()))?;
        Ok(Arc::new(CertRevocationList::from(crl)))
    };
    if !content.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Ok(vec![read((0, Ok(CertificateRevocationListDer::from(content))))?]);
    }
    let blocks = CertificateRevocationListDer::pem_slice_iter(content);
    let blocks = blocks.map(|block| block.map_err(|error| format!("{error:?}")));
    let crls = blocks.enumerate().map(read).collect::<Result<Crls, _>>()?;
    if crls.is_empty() { Err(Error::NoCrl) } else { Ok(crls) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
