//! One set of signing material: a folder in the layout of cert-manager's secrets, read, checked and ready to sign.
//!
//! `tls.crt` holds the issuing certificate (a root or an intermediate) and the intermediates above it, `tls.key` its key,
//! `ca.crt` the roots that everybody shall trust, `extra-roots.pem` (optional) further roots. A set is used as a whole or
//! not at all: the key must be the certificate's, the chain must reach one of the roots and be valid now, and a
//! certificate made for trial must verify with the rules by which the mesh judges every other.
//!
//! A set is put together without a lock while others may be writing it, file by file. A mixture of two sets does not pass
//! these checks; the last write of a change leads to another look.

mod chain;
mod make;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest;
use rcgen::{Issuer, KeyPair, KeyUsagePurpose, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::files;

pub use chain::Expiry;
pub use make::new_root;
pub(super) use make::self_made;

pub const CERTIFICATE: &str = "tls.crt";
pub const KEY: &str = "tls.key";
pub const ROOTS: &str = "ca.crt";
pub const EXTRA_ROOTS: &str = "extra-roots.pem";

const LEAST_RSA_BITS: usize = 2048;

/// Names the key that signs: the start of the hash of its public half.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 8]);

/// What signs, and what is handed out with every certificate.
pub struct Material {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) key_id: KeyId,
    /// From the issuing certificate up to below the root, each in PEM; empty when a root itself issues.
    pub(super) intermediates: Vec<String>,
    /// All roots, in PEM.
    pub(super) roots: String,
    /// The first end among the issuing certificate, those above it and its root.
    pub(super) not_after: SystemTime,
    /// Of each intermediate and each root.
    pub(super) expiries: Vec<Expiry>,
    subject: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is missing; a CA folder holds {CERTIFICATE}, {KEY} and {ROOTS}, or none of them to make a new root", path.display())]
    Missing { path: PathBuf },
    #[error("{} holds no usable {what}: {reason}", path.display())]
    Unusable { path: PathBuf, what: &'static str, reason: String },
    #[error("no root can be made: {0}")]
    Make(#[from] rcgen::Error),
}

impl KeyId {
    fn of(key: &KeyPair) -> Self {
        let hash = digest::digest(&digest::SHA256, &key.subject_public_key_info());
        Self(*hash.as_ref().first_chunk().expect("invariant: SHA-256 gives 32 bytes"))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16)?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Material {
    /// The set of a folder as it is now.
    pub fn read(folder: &Path, now: SystemTime) -> Result<Self, Error> {
        let file = |name| {
            let path = folder.join(name);
            files::read(&path).map_err(|source| Error::File { path, source })
        };
        let required = |name| file(name)?.ok_or_else(|| Error::Missing { path: folder.join(name) });
        let unusable =
            |name, what| move |reason: String| Error::Unusable { path: folder.join(name), what, reason };
        let key = parse_key(&required(KEY)?).map_err(unusable(KEY, "key"))?;
        let certificates =
            certificates(&required(CERTIFICATE)?).map_err(unusable(CERTIFICATE, "certificate chain"))?;
        let mut roots = match file(ROOTS)? {
            Some(text) => self::certificates(&text).map_err(unusable(ROOTS, "roots"))?,
            // What cert-manager calls ca.crt, a root that issues itself need not repeat.
            None if chain::is_self_signed(&certificates[0]) => vec![certificates[0].clone()],
            None => return Err(Error::Missing { path: folder.join(ROOTS) }),
        };
        if let Some(text) = file(EXTRA_ROOTS)? {
            roots.extend(self::certificates(&text).map_err(unusable(EXTRA_ROOTS, "roots"))?);
        }
        let roots = chain::usable_roots(roots, now).map_err(unusable(ROOTS, "roots"))?;
        Self::assemble(key, &certificates, &roots, now).map_err(unusable(CERTIFICATE, "certificate chain"))
    }

    /// The issuing certificate, as people know it.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        let parts = |one: &Self| (one.key_id, one.intermediates.clone(), one.roots.clone());
        parts(self) == parts(other)
    }

    /// Whether a CRL of this key counts (RFC 5280 section 4.2.1.3).
    pub(super) fn may_sign_crls(&self) -> bool {
        let usages = self.issuer.key_usages();
        usages.is_empty() || usages.contains(&KeyUsagePurpose::CrlSign)
    }

    fn assemble(
        key: KeyPair,
        certificates: &[CertificateDer<'static>],
        roots: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<Self, String> {
        let path = chain::path(&key, certificates, roots, now)?;
        let key_id = KeyId::of(&key);
        let issuer = Issuer::from_ca_cert_der(&certificates[0], key).map_err(|error| error.to_string())?;
        let intermediates: Vec<_> = path.intermediates.iter().map(pem).collect();
        let mut expiries = chain::expiries("intermediate", &path.intermediates);
        expiries.extend(chain::expiries("root", roots));
        let material = Self {
            issuer,
            key_id,
            intermediates,
            expiries,
            roots: roots.iter().map(pem).collect(),
            not_after: path.not_after,
            subject: path.subject,
        };
        chain::try_out(&material, &path.intermediates, roots, now)?;
        Ok(material)
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("subject", &self.subject).finish_non_exhaustive()
    }
}

fn parse_key(pem: &str) -> Result<KeyPair, String> {
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("{error:?}"))?;
    let key = KeyPair::try_from(&der).map_err(|error| error.to_string())?;
    if key.algorithm() == &rcgen::PKCS_RSA_SHA256 {
        let bits = key.public_key_raw().len() * 8;
        // The raw key also holds the exponent and the frame of both, some tens of bytes.
        if bits < LEAST_RSA_BITS {
            return Err(format!("an RSA key needs at least {LEAST_RSA_BITS} bits"));
        }
    }
    Ok(key)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if found.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{error:?}")),
    }
}

fn pem(der: &CertificateDer<'static>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der.to_vec()), config)
}

#[cfg(test)]
mod tests;
