//! A root of our own, for a mesh that brings none.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{CERTIFICATE, Error, KEY, Material, ROOTS, files, parse_key};

const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Clocks of a cluster differ a little; a root must be valid on all of them at once.
const BACKDATE: Duration = Duration::from_secs(24 * 3600);

/// A root that lives in memory alone.
pub(in crate::ca) fn self_made() -> Result<Material, Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let root = certificate(&key)?;
    let roots = [root];
    Material::assemble(key, &roots, &roots, SystemTime::now()).map_err(|reason| Error::Unusable {
        path: CERTIFICATE.into(),
        what: "root",
        reason,
    })
}

/// A new root in PEM, in the parts of a set: certificate and key.
pub fn new_root() -> Result<(String, Zeroizing<String>), Error> {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let root = super::pem(&certificate(&pair)?);
    Ok((root, Zeroizing::new(pair.serialize_pem())))
}

impl Material {
    /// Makes a root in a folder that holds nothing of a set, or the key of one alone, as a stop between two writes leaves
    /// it; no client has seen a certificate of that key.
    pub(in crate::ca) fn make_if_absent(folder: &Path) -> Result<(), Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { path, source }
        };
        fs::create_dir_all(folder).map_err(failed(folder))?;
        // Two controllers that start at once on one folder must not each write one half of a root. A folder that cannot
        // be locked cannot be written either.
        let lock = File::open(folder).map_err(failed(folder))?;
        lock.lock().map_err(failed(folder))?;
        let [certificate, key, roots] = [CERTIFICATE, KEY, ROOTS].map(|name| folder.join(name));
        if certificate.exists() || roots.exists() {
            return Ok(());
        }
        let pair = match files::read(&key).map_err(failed(&key))? {
            Some(text) => parse_key(&text).map_err(|reason| Error::Unusable {
                path: key.clone(),
                what: "key",
                reason,
            })?,
            None => {
                let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
                let text = Zeroizing::new(pair.serialize_pem());
                files::write_atomically(&key, text.as_bytes(), 0o600).map_err(failed(&key))?;
                pair
            }
        };
        let root = super::pem(&self::certificate(&pair)?);
        for path in [certificate, roots] {
            files::write_atomically(&path, root.as_bytes(), 0o644).map_err(failed(&path))?;
        }
        tracing::info!(folder = %folder.display(), "a new root was made");
        Ok(())
    }
}

fn certificate(key: &KeyPair) -> Result<CertificateDer<'static>, rcgen::Error> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    // The random part keeps two roots apart wherever both are trusted during a change.
    let name = format!("ztunnel-controller root {:016x}", rand::random::<u64>());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LIFETIME).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?.der().clone())
}
