//! What signs: the material in use, those that were in use before, and the change from one to the next without a restart.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use zeroize::Zeroizing;

use super::files;
use super::material::{self, KeyId, Material};

/// Clients read this one to trust the control plane: every root, as handed out with each certificate.
pub const ROOT_CERTIFICATE: &str = "root-cert.pem";

/// Clocks of a cluster differ a little; the server's own certificate must be valid on all of them at once.
const SERVER_BACKDATE: Duration = Duration::from_secs(24 * 3600);
/// The server's own certificate is made anew long before, so that a lost timer shows in no handshake.
const SERVER_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// Sets that no longer sign certificates are kept for their CRLs; the oldest goes first.
const MOST_RETIRED: usize = 32;

/// The certificate authority: signs with the set of its folder as it is now.
pub struct Authority {
    current: ArcSwap<Material>,
    retired: Mutex<Vec<Arc<Material>>>,
    folders: Option<Folders>,
}

/// Where an authority keeps what.
#[derive(Clone, Debug)]
pub struct Folders {
    /// `tls.crt`, `tls.key`, `ca.crt`: may be a mounted secret that cannot be written.
    pub material: PathBuf,
    /// What the CA writes itself.
    pub state: PathBuf,
}

/// What a certificate says of its holder. Nothing here is judged: that is `issue`'s and `authenticate`'s work.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub names: Vec<SubjectName>,
    pub purpose: Purpose,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// One subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectName {
    Uri(String),
    /// A DNS name or an IP address.
    Host(String),
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Both ends of mTLS: every pod dials and is dialled.
    Workload,
    /// The CA's own TLS server.
    Server,
}

/// A certificate that was just signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf, intermediates, and last all roots in one text, each entry in PEM (interop.md section 5.4).
    pub chain: Vec<String>,
    pub serial: Serial,
    /// Which key signed it.
    pub key_id: KeyId,
    pub not_after: SystemTime,
}

pub type Serial = [u8; 16];

/// Key and chain of the CA's own server, for now.
pub struct ServerCertificate {
    pub key: Zeroizing<String>,
    /// Leaf and intermediates, each in PEM.
    pub chain: Vec<String>,
    /// When it must be made anew at the latest.
    pub renew_at: SystemTime,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Material(#[from] material::Error),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{name:?} cannot be a name in a certificate: {reason}")]
    Name { name: String, reason: String },
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("the issuing certificate is over")]
    Over,
}

impl Authority {
    /// The set of one folder; a root is made when it holds none.
    pub fn create_or_load(folder: &Path) -> Result<Self, Error> {
        Self::open(Folders { material: folder.to_owned(), state: folder.to_owned() })
    }

    /// The set of a folder that may be read-only; a root is made when it holds none.
    pub fn open(folders: Folders) -> Result<Self, Error> {
        Material::make_if_absent(&folders.material)?;
        let material = Material::read(&folders.material, SystemTime::now())?;
        let failed = |source| Error::File { path: folders.state.clone(), source };
        std::fs::create_dir_all(&folders.state).map_err(failed)?;
        let authority = Self {
            current: ArcSwap::from_pointee(material),
            retired: Mutex::default(),
            folders: Some(folders),
        };
        authority.publish_roots(&authority.current.load())?;
        Ok(authority)
    }

    /// A root that lives in memory alone.
    pub fn ephemeral() -> Result<Self, Error> {
        let current = ArcSwap::from_pointee(material::self_made()?);
        Ok(Self { current, retired: Mutex::default(), folders: None })
    }

    /// The roots in PEM: what everybody shall trust.
    pub fn root(&self) -> String {
        self.current.load().roots.clone()
    }

    pub fn folders(&self) -> Option<&Folders> {
        self.folders.as_ref()
    }

    /// Reads the folder again and, if it holds another usable set, signs with that from now on. `true` when it changed.
    pub fn reload(&self) -> Result<bool, Error> {
        let Some(folders) = &self.folders else { return Ok(false) };
        let new = Material::read(&folders.material, SystemTime::now())?;
        let old = self.current.load_full();
        if new.same_as(&old) {
            return Ok(false);
        }
        // Whoever checks the server's next certificate reads this file, so it comes first.
        self.publish_roots(&new)?;
        tracing::info!(issuer = new.subject(), key = %new.key_id, before = %old.key_id, "signing material changed");
        if !new.may_sign_crls() {
            tracing::warn!(
                issuer = new.subject(),
                "the issuing certificate may not sign CRLs: what it issues cannot be revoked"
            );
        }
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|one| one.key_id != new.key_id && one.key_id != old.key_id);
        if new.key_id != old.key_id {
            retired.push(old);
        }
        let surplus = retired.len().saturating_sub(MOST_RETIRED);
        retired.drain(..surplus);
        self.current.store(Arc::new(new));
        Ok(true)
    }

    /// Certifies a public key. No certificate outlives what signed it.
    pub fn issue(&self, leaf: &Leaf, key: &impl PublicKeyData) -> Result<Issued, Error> {
        let material = self.current.load();
        let not_after = leaf.not_after.min(material.not_after);
        if not_after <= leaf.not_before {
            return Err(Error::Over);
        }
        let mut params = CertificateParams::default();
        // With an empty subject the SAN extension is critical (RFC 5280 section 4.1.2.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = leaf.names.iter().map(subject_alt_name).collect::<Result<_, _>>()?;
        params.not_before = leaf.not_before.into();
        params.not_after = not_after.into();
        let serial = serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match leaf.purpose {
            Purpose::Workload => {
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
            }
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let mut chain = vec![params.signed_by(key, &material.issuer)?.pem()];
        chain.extend(material.intermediates.iter().cloned());
        chain.push(material.roots.clone());
        Ok(Issued { chain, serial, key_id: material.key_id, not_after })
    }

    /// As `issue`, with a fresh key: the key in PKCS#8 PEM and the chain.
    pub fn issue_with_new_key(&self, leaf: &Leaf) -> Result<(Zeroizing<String>, Vec<String>), Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let chain = self.issue(leaf, &key)?.chain;
        Ok((Zeroizing::new(key.serialize_pem()), chain))
    }

    /// A certificate for the CA's own server, by the set in use.
    pub fn server_certificate(&self, hosts: &[String]) -> Result<ServerCertificate, Error> {
        let names = hosts.iter().cloned().map(SubjectName::Host).collect();
        let now = SystemTime::now();
        let leaf = Leaf {
            names,
            purpose: Purpose::Server,
            not_before: now - SERVER_BACKDATE,
            not_after: now + SERVER_LIFETIME,
        };
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut issued = self.issue(&leaf, &key)?;
        issued.chain.pop();
        let left = issued.not_after.duration_since(now).unwrap_or_default();
        Ok(ServerCertificate {
            key: Zeroizing::new(key.serialize_pem()),
            chain: issued.chain,
            renew_at: now + left / 2,
        })
    }

    pub(super) fn current(&self) -> Arc<Material> {
        self.current.load_full()
    }

    /// Every set whose certificates may still be in use: the current one first.
    pub(super) fn materials(&self) -> Vec<Arc<Material>> {
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(self.current.load_full()).chain(retired.iter().rev().cloned()).collect()
    }

    fn publish_roots(&self, material: &Material) -> Result<(), Error> {
        let Some(folders) = &self.folders else { return Ok(()) };
        let path = folders.state.join(ROOT_CERTIFICATE);
        let failed = |source| Error::File { path: path.clone(), source };
        if files::read(&path).map_err(failed)?.is_some_and(|held| **held == material.roots) {
            return Ok(());
        }
        files::write_atomically(&path, material.roots.as_bytes(), 0o644).map_err(failed)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("current", &self.current.load()).finish_non_exhaustive()
    }
}

fn subject_alt_name(name: &SubjectName) -> Result<SanType, Error> {
    let (SubjectName::Uri(text) | SubjectName::Host(text)) = name;
    let unfit = |error: rcgen::Error| Error::Name { name: text.clone(), reason: error.to_string() };
    match name {
        SubjectName::Uri(uri) => Ok(SanType::URI(uri.as_str().try_into().map_err(unfit)?)),
        SubjectName::Host(host) => match host.parse::<IpAddr>() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => Ok(SanType::DnsName(host.as_str().try_into().map_err(unfit)?)),
        },
    }
}

/// 126 random bits: unique without a register, and positive (RFC 5280 section 4.1.2.2).
fn serial() -> Serial {
    let mut bytes: Serial = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes
}

#[cfg(test)]
mod tests;
