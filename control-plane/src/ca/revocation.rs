//! Which certificates and identities are revoked, and the CRLs that say so.
//!
//! The operator writes one file; the CA turns identities into the serial numbers that it remembers, and signs one CRL for
//! each key whose certificates may still be in use. All of them are handed out as one text. A key that is no longer in
//! memory after a restart signs no more: its last CRL is taken over from the file as it was.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use serde::Deserialize;
use x509_parser::oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER;
use x509_parser::prelude::{CertificateRevocationList, FromDer};
use ztunnel_model::Identity;
use ztunnel_model::codec::located::{self, Document, Mistake};

use super::ledger::{Entry, Ledger};
use super::material::Material;

/// What proxies read (CRL_PATH).
pub const CRL_FILE: &str = "ca-crl.pem";

/// A CRL is signed anew long before; the proxies of this mesh do not look at its end, others may. The last one of a key
/// that is gone lasts as long.
const LIFETIME: Duration = Duration::from_secs(31 * 24 * 3600);

/// CRLs of keys from before a restart.
const MOST_INHERITED: usize = 32;

/// The CRLs of all issuing keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crl {
    pub pem: String,
    /// How many certificates they name.
    pub revoked: usize,
}

/// What the operator revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    pub identities: HashSet<Identity>,
    /// Serial numbers without leading zeros.
    pub serials: BTreeSet<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the revocation file {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the revocation file cannot be used: {}", lines(.0))]
    Mistakes(Vec<Mistake>),
    #[error("the CRL of {issuer} cannot be signed: {source}")]
    Sign { issuer: String, source: rcgen::Error },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    serials: Vec<String>,
    #[serde(default)]
    identities: Vec<String>,
}

impl Revoked {
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty() && self.identities.is_empty()
    }

    /// `None` if the file is not there or says nothing.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let text =
            super::files::read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let parsed = text.map(|text| Self::parse(&text, &path.display().to_string())).transpose()?;
        Ok(parsed.flatten())
    }

    /// YAML or JSON: `serials` (decimal, or hexadecimal with `0x`, colons or a letter in it) and `identities`.
    /// `None` if there is nothing in it.
    pub fn parse(text: &str, file: &str) -> Result<Option<Self>, Error> {
        let mut mistakes = Vec::new();
        let document = Document::parse(text, file).map_err(|mistake| Error::Mistakes(vec![mistake]))?;
        let root = document.root();
        let empty = root.decode::<Option<BTreeMap<String, serde::de::IgnoredAny>>>(&mut Vec::new());
        if matches!(empty, Some(None)) {
            return Ok(None);
        }
        let written = root.decode::<Written>(&mut mistakes);
        let mut revoked = Self::default();
        for (index, text) in written.iter().flat_map(|written| written.identities.iter().enumerate()) {
            match text.parse() {
                Ok(identity) => drop(revoked.identities.insert(identity)),
                Err(error) => {
                    let error: ztunnel_model::identity::Error = error;
                    mistakes.push(root.key("identities").index(index).mistake(error));
                }
            }
        }
        for (index, text) in written.iter().flat_map(|written| written.serials.iter().enumerate()) {
            match serial(text) {
                Some(serial) => drop(revoked.serials.insert(serial)),
                None => mistakes.push(root.key("serials").index(index).mistake(format!(
                    "\"{text}\" is no serial number: write it decimal, or hexadecimal with 0x before it"
                ))),
            }
        }
        located::sort(&mut mistakes);
        if mistakes.is_empty() { Ok(Some(revoked)) } else { Err(Error::Mistakes(mistakes)) }
    }

    /// Serial numbers per issuing key would not help: an operator who reads one from a log does not know the key, and
    /// numbers of this CA are unique over all keys. Those of identities are known to the ledger with their key.
    fn on(&self, material: &Material, ledger: &Ledger) -> BTreeSet<Vec<u8>> {
        let of_key = |entry: &&Entry| entry.key_id == material.key_id;
        let known = self.identities.iter().flat_map(|identity| ledger.of(identity).iter().filter(of_key));
        known.map(|entry| entry.serial.to_vec()).chain(self.serials.iter().cloned()).collect()
    }
}

/// Signs one CRL for each key; a key that may not sign CRLs is passed over, which was said when it was taken up.
pub(super) fn sign<'a>(
    revoked: &Revoked,
    ledger: &Ledger,
    materials: impl Iterator<Item = &'a Material>,
    inherited: &[Inherited],
    now: SystemTime,
) -> Result<Crl, Error> {
    let mut crl = Crl::default();
    let mut named = BTreeSet::new();
    let mut signers = HashSet::new();
    let number = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    for material in materials.filter(|material| material.may_sign_crls()) {
        let failed = |source| Error::Sign { issuer: material.subject().to_owned(), source };
        let serials = revoked.on(material, ledger);
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + LIFETIME).into(),
            crl_number: SerialNumber::from_slice(&significant(&number.to_be_bytes())),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(|serial| revoked_certificate(serial, now)).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = params.signed_by(&material.issuer).map_err(failed)?;
        signers.extend(signer(signed.der()));
        crl.pem.push_str(&signed.pem().map_err(failed)?.replace("\r\n", "\n"));
        named.extend(serials);
    }
    for old in inherited.iter().filter(|old| !signers.contains(&old.signer)) {
        crl.pem.push_str(&old.pem);
    }
    crl.revoked = named.len();
    Ok(crl)
}

/// A CRL of a key that is gone, as it was found.
#[derive(Clone, Debug)]
pub(super) struct Inherited {
    signer: Vec<u8>,
    pem: String,
}

/// The CRLs of the file as an earlier process left it that are not past their end.
pub(super) fn inherit(text: &str, now: SystemTime) -> Vec<Inherited> {
    let mut found = Vec::new();
    for block in pem::parse_many(text).unwrap_or_default() {
        let Ok((_, parsed)) = CertificateRevocationList::from_der(block.contents()) else { continue };
        let end = parsed.next_update().map_or(0, |end| end.timestamp());
        let is_over = u64::try_from(end).is_ok_and(|end| UNIX_EPOCH + Duration::from_secs(end) < now);
        if !is_over && parsed.iter_revoked_certificates().next().is_some() && found.len() < MOST_INHERITED {
            let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
            let Some(signer) = signer(block.contents()) else { continue };
            found.push(Inherited { signer, pem: pem::encode_config(&block, config) });
        }
    }
    found
}

/// Name and key: a key that is renewed often keeps the name.
fn signer(der: &[u8]) -> Option<Vec<u8>> {
    let (_, crl) = CertificateRevocationList::from_der(der).ok()?;
    let key = crl.extensions().iter().find(|one| one.oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER)?;
    Some([crl.issuer().as_raw(), key.value].concat())
}

fn revoked_certificate(serial: &[u8], now: SystemTime) -> RevokedCertParams {
    RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: now.into(),
        reason_code: None,
        invalidity_date: None,
    }
}

fn serial(text: &str) -> Option<Vec<u8>> {
    let bare = text.trim().to_ascii_lowercase();
    let (digits, radix) = match bare.strip_prefix("0x") {
        Some(digits) => (digits.to_owned(), 16),
        None if bare.bytes().all(|byte| byte.is_ascii_digit()) => (bare, 10),
        None => (bare.replace(':', ""), 16),
    };
    if digits.is_empty() || digits.len() > 64 || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let mut bytes: Vec<u8> = Vec::new();
    for digit in digits.chars().filter_map(|digit| digit.to_digit(radix)) {
        // Schoolbook: the number so far times the radix, plus the digit.
        let mut carry = digit;
        for byte in bytes.iter_mut().rev() {
            let value = u32::from(*byte) * radix + carry;
            *byte = value as u8;
            carry = value >> 8;
        }
        if carry > 0 {
            bytes.insert(0, carry as u8);
        }
    }
    // RFC 5280 section 4.1.2.2: positive, and at most 20 bytes.
    (!bytes.is_empty() && bytes.len() <= 20).then_some(bytes)
}

fn significant(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
