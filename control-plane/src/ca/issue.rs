//! What a CSR asks for and on which terms it is granted. Pure: the clock is the caller's.

use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;
use ztunnel_model::Identity;

use super::authority::{self, Authority, Issued, Leaf, Purpose, SubjectName};

const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const RSA: &str = "1.2.840.113549.1.1.1";
const ED25519: &str = "1.3.101.112";
/// P-256 and P-384.
const CURVES: [&str; 2] = ["1.2.840.10045.3.1.7", "1.3.132.0.34"];
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

/// SHA-256, SHA-384 and SHA-512 with ECDSA and with RSA, and Ed25519, which brings its own.
const SIGNATURES: [&str; 7] = [
    "1.2.840.10045.4.3.2",
    "1.2.840.10045.4.3.3",
    "1.2.840.10045.4.3.4",
    "1.2.840.113549.1.1.11",
    "1.2.840.113549.1.1.12",
    "1.2.840.113549.1.1.13",
    ED25519,
];

/// A CSR whose holder has proved to have the key.
#[derive(Debug)]
pub struct Request {
    pub identity: Identity,
    key: SubjectPublicKeyInfo,
}

/// Why a request is not granted as it stands.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the CSR is not a PEM certificate request: {0}")]
    Unreadable(String),
    #[error("the CSR is not signed with its own key")]
    Signature,
    #[error("the CSR's key is {0}; ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more is needed")]
    Key(String),
    #[error("the CSR is signed with the algorithm {0}, which is weak or unknown; use SHA-256 or better")]
    Algorithm(String),
    #[error("the CSR must name one SPIFFE URI SAN and nothing else; it names {0}")]
    Names(String),
    #[error("the CSR's SAN: {0}")]
    Identity(#[from] ztunnel_model::identity::Error),
    #[error("validity_duration {0} is negative")]
    Validity(i64),
}

impl Request {
    /// Reads and verifies a CSR. Of its content only the identity and the key are ever used.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .map_err(|error| Error::Unreadable(error.to_string()))?;
        let unreadable = |reason: &str| Error::Unreadable(reason.to_owned());
        if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(unreadable("it is PEM of something else"));
        }
        let (rest, csr) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|error| Error::Unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("bytes follow it"));
        }
        let key = &csr.certification_request_info.subject_pki;
        check_key(key)?;
        let algorithm = csr.signature_algorithm.algorithm.to_id_string();
        if !SIGNATURES.contains(&algorithm.as_str()) {
            return Err(Error::Algorithm(algorithm));
        }
        csr.verify_signature().map_err(|_| Error::Signature)?;
        let key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|error| Error::Key(error.to_string()))?;
        Ok(Self { identity: only_identity(&csr)?, key })
    }
}

/// The dates of a certificate: as long as asked for, at most `max`; zero means as long as possible. It is backdated a
/// little for clocks that lag, but by no more than a tenth, so that a short certificate's half life still lies ahead.
pub fn validity(asked_s: i64, max: Duration, now: SystemTime) -> Result<(SystemTime, SystemTime), Error> {
    let asked = match u64::try_from(asked_s) {
        Err(_) => return Err(Error::Validity(asked_s)),
        Ok(0) => max,
        Ok(seconds) => Duration::from_secs(seconds),
    };
    let ttl = asked.min(max);
    let backdate = (ttl / 10).min(Duration::from_secs(60));
    Ok((now - backdate, now + ttl))
}

/// Certifies a verified request.
pub fn certify(
    authority: &Authority,
    request: &Request,
    (not_before, not_after): (SystemTime, SystemTime),
) -> Result<Issued, authority::Error> {
    let names = vec![SubjectName::Uri(request.identity.to_string())];
    authority.issue(&Leaf { names, purpose: Purpose::Workload, not_before, not_after }, &request.key)
}

fn check_key(key: &ParsedKey<'_>) -> Result<(), Error> {
    let algorithm = key.algorithm.algorithm.to_id_string();
    match algorithm.as_str() {
        EC_PUBLIC_KEY => {
            let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            let curve = curve.map(|curve| curve.to_id_string()).unwrap_or_default();
            if CURVES.contains(&curve.as_str()) {
                Ok(())
            } else {
                Err(Error::Key(format!("of the curve {curve}")))
            }
        }
        RSA => match key.parsed() {
            Ok(PublicKey::RSA(rsa)) if RSA_BITS.contains(&rsa.key_size()) => Ok(()),
            Ok(PublicKey::RSA(rsa)) => Err(Error::Key(format!("RSA of {} bits", rsa.key_size()))),
            _ => Err(Error::Key("RSA, but not readable".to_owned())),
        },
        ED25519 => Ok(()),
        other => Err(Error::Key(format!("of the algorithm {other}"))),
    }
}

fn only_identity(csr: &X509CertificationRequest<'_>) -> Result<Identity, Error> {
    let mut names = Vec::new();
    for attribute in csr.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else { continue };
        for extension in &requested.extensions {
            if let ParsedExtension::SubjectAlternativeName(asked) = extension.parsed_extension() {
                names.extend(&asked.general_names);
            }
        }
    }
    match names[..] {
        [GeneralName::URI(uri)] => Ok(uri.parse()?),
        [] => Err(Error::Names("nothing".to_owned())),
        _ => Err(Error::Names(format!("{names:?}"))),
    }
}

#[cfg(test)]
mod tests;
