//! The root key and certificate: made on the first start, kept in a folder, and the only thing that signs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use x509_parser::prelude::X509Certificate;
use zeroize::Zeroizing;

/// Clients read this one to trust the CA.
pub const ROOT_CERTIFICATE: &str = "root-cert.pem";
/// Nobody but the controller reads this one.
pub const ROOT_KEY: &str = "root-key.pem";

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Clocks of a cluster differ a little; a root must be valid on all of them at once.
const ROOT_BACKDATE: Duration = Duration::from_secs(24 * 3600);

/// A certificate authority of one self-signed root.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    not_after: SystemTime,
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

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the CA folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} holds no usable {what}: {reason}; restore it, or remove both root files to make a new root", path.display())]
    Unusable { path: PathBuf, what: &'static str, reason: String },
    #[error("{} exists but {} does not; restore it, or remove both to make a new root", certificate.display(), key.display())]
    KeyMissing { certificate: PathBuf, key: PathBuf },
    #[error("{name:?} cannot be a name in a certificate: {reason}")]
    Name { name: String, reason: String },
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
}

impl Authority {
    /// The root of the folder; both files are made when there are none.
    pub fn create_or_load(folder: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Folder { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        // Two controllers that start at once on one folder must not each write one half of a root.
        let lock = File::open(folder).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let (key_path, certificate_path) = (folder.join(ROOT_KEY), folder.join(ROOT_CERTIFICATE));
        match (read(&key_path)?, read(&certificate_path)?) {
            (Some(key), Some(certificate)) => Self::load(&key, &key_path, &certificate, &certificate_path),
            (None, Some(_)) => Err(Error::KeyMissing { certificate: certificate_path, key: key_path }),
            // A key alone is what a stop between the two writes leaves; no client has seen a certificate of it.
            (Some(key), None) => Self::from_key(parse_key(&key, &key_path)?)?.keep(&certificate_path),
            (None, None) => {
                let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
                write_atomically(&key_path, Zeroizing::new(key.serialize_pem()).as_bytes(), 0o600)?;
                Self::from_key(key)?.keep(&certificate_path)
            }
        }
    }

    /// A root that lives in memory alone.
    pub fn ephemeral() -> Result<Self, Error> {
        Self::from_key(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
    }

    /// The root certificate in PEM.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Certifies a public key: the leaf, then the root, in PEM.
    pub fn issue(&self, leaf: &Leaf, key: &impl PublicKeyData) -> Result<Vec<String>, Error> {
        let mut params = CertificateParams::default();
        // With an empty subject the SAN extension is critical (RFC 5280 section 4.1.2.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = leaf.names.iter().map(subject_alt_name).collect::<Result<_, _>>()?;
        params.not_before = leaf.not_before.into();
        params.not_after = leaf.not_after.min(self.not_after).into();
        params.serial_number = Some(serial_number());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match leaf.purpose {
            Purpose::Workload => {
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
            }
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(vec![certificate.pem(), self.root.clone()])
    }

    /// As `issue`, with a fresh key: the key in PKCS#8 PEM and the chain.
    pub fn issue_with_new_key(&self, leaf: &Leaf) -> Result<(Zeroizing<String>, Vec<String>), Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let chain = self.issue(leaf, &key)?;
        Ok((Zeroizing::new(key.serialize_pem()), chain))
    }

    /// A certificate for the CA's own server, good for as long as the root: it is made anew at every start.
    pub fn server_certificate(&self, hosts: &[String]) -> Result<(Zeroizing<String>, Vec<String>), Error> {
        let names = hosts.iter().cloned().map(SubjectName::Host).collect();
        let not_before = SystemTime::now() - ROOT_BACKDATE;
        let leaf = Leaf { names, purpose: Purpose::Server, not_before, not_after: self.not_after };
        self.issue_with_new_key(&leaf)
    }

    fn from_key(key: KeyPair) -> Result<Self, Error> {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        // The random part keeps two roots apart wherever both are trusted during a change.
        let name = format!("ztunnel-controller root {:016x}", rand::random::<u64>());
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = (now - ROOT_BACKDATE).into();
        params.not_after = (now + ROOT_LIFETIME).into();
        params.serial_number = Some(serial_number());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), root, not_after: now + ROOT_LIFETIME })
    }

    fn keep(self, certificate: &Path) -> Result<Self, Error> {
        write_atomically(certificate, self.root.as_bytes(), 0o644)?;
        Ok(self)
    }

    fn load(key: &str, key_path: &Path, root: &str, root_path: &Path) -> Result<Self, Error> {
        let unusable =
            |reason: String| Error::Unusable { path: root_path.to_owned(), what: "root certificate", reason };
        let key = parse_key(key, key_path)?;
        let (_, block) =
            x509_parser::pem::parse_x509_pem(root.as_bytes()).map_err(|e| unusable(e.to_string()))?;
        let parsed = block.parse_x509().map_err(|error| unusable(error.to_string()))?;
        check_root(&parsed, &key).map_err(|reason| unusable(reason.to_owned()))?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let issuer = Issuer::from_ca_cert_pem(root, key)?;
        Ok(Self { issuer, root: root.to_owned(), not_after })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

fn check_root(root: &X509Certificate<'_>, key: &KeyPair) -> Result<(), &'static str> {
    if root.public_key().raw != key.subject_public_key_info() {
        return Err("it belongs to another key");
    }
    if !root.is_ca() {
        return Err("it is not a CA certificate");
    }
    if !root.validity().is_valid() {
        return Err("it is not valid now");
    }
    Ok(())
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

/// 127 random bits: unique without a register, and positive (RFC 5280 section 4.1.2.2).
fn serial_number() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn parse_key(pem: &str, path: &Path) -> Result<KeyPair, Error> {
    let algorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
    KeyPair::from_pkcs8_pem_and_sign_algo(pem, algorithm).map_err(|error| Error::Unusable {
        path: path.to_owned(),
        what: "ECDSA P-256 key",
        reason: error.to_string(),
    })
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

/// A reader sees the whole file or none, also after a power cut.
fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let unfinished = path.with_extension("pem.new");
    let write = || {
        if let Err(error) = fs::remove_file(&unfinished)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
        // The mode of creation passes through the umask; clients must be able to read the certificate all the same.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests;
