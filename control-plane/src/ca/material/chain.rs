//! The way from the issuing certificate to a root, and the proof that it holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, PublicKeyData, SanType};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Material;

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Path {
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    pub(super) not_after: SystemTime,
    pub(super) subject: String,
}

/// When a certificate of the chain, or a root, is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// `root` or `intermediate`.
    pub role: &'static str,
    pub subject: String,
    /// In hexadecimal digits: two roots may have one subject.
    pub serial: String,
    pub not_after: SystemTime,
}

pub(super) fn expiries(role: &'static str, certificates: &[CertificateDer<'_>]) -> Vec<Expiry> {
    let parsed = certificates.iter().filter_map(|der| parse(der).ok());
    let expiry = |one: X509Certificate<'_>| Expiry {
        role,
        subject: one.subject().to_string(),
        serial: one.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        not_after: not_after(&one),
    };
    parsed.map(expiry).collect()
}

pub(super) fn is_self_signed(der: &CertificateDer<'_>) -> bool {
    parse(der).is_ok_and(|one| one.subject().as_raw() == one.issuer().as_raw())
}

/// Each root once, without those that are over: they would be trusted by nobody.
pub(super) fn usable_roots(
    roots: Vec<CertificateDer<'static>>,
    now: SystemTime,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut usable: Vec<CertificateDer<'static>> = Vec::new();
    for root in roots {
        let parsed = parse(&root)?;
        if not_after(&parsed) < now {
            tracing::warn!(root = %parsed.subject(), "a root that is over is left out");
        } else if !usable.contains(&root) {
            RootCertStore::empty().add(root.clone()).map_err(|error| error.to_string())?;
            usable.push(root);
        }
    }
    if usable.is_empty() { Err("every one is over".to_owned()) } else { Ok(usable) }
}

/// Goes up from the issuing certificate, the first, until a root is met.
pub(super) fn path(
    key: &KeyPair,
    certificates: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<Path, String> {
    let parsed: Vec<_> = certificates.iter().map(parse).collect::<Result<_, _>>()?;
    let anchors: Vec<_> = roots.iter().map(parse).collect::<Result<_, _>>()?;
    let issuing = &parsed[0];
    if issuing.public_key().raw != key.subject_public_key_info() {
        return Err("its first certificate belongs to another key than the one in tls.key".to_owned());
    }
    let (mut at, mut passed, mut end) = (0, Vec::new(), None::<SystemTime>);
    loop {
        let current = &parsed[at];
        check(current, now)?;
        end = Some(end.map_or(not_after(current), |end| end.min(not_after(current))));
        if roots.contains(&certificates[at]) {
            break;
        }
        passed.push(at);
        if let Some(root) = anchors.iter().find(|root| signs(root, current)) {
            end = end.map(|end| end.min(not_after(root)));
            break;
        }
        let next = (0..parsed.len()).find(|next| !passed.contains(next) && signs(&parsed[*next], current));
        at = next.ok_or_else(|| {
            format!(
                "\"{}\" was issued by \"{}\", which is neither in it nor among the roots",
                current.subject(),
                current.issuer()
            )
        })?;
    }
    Ok(Path {
        intermediates: passed.into_iter().map(|at| certificates[at].clone()).collect(),
        not_after: end.unwrap_or(now),
        subject: issuing.subject().to_string(),
    })
}

/// Signs a certificate as the mesh will see them and judges it as the mesh will.
pub(super) fn try_out(
    material: &Material,
    intermediates: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<(), String> {
    let issued = || {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI("spiffe://trial/ns/trial/sa/trial".try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = (now - DAY).into();
        params.not_after = (now + DAY).into();
        params.signed_by(&key, &material.issuer)
    };
    let leaf = issued().map_err(|error| format!("it cannot sign: {error}"))?;
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    ParsedCertificate::try_from(leaf.der())
        .and_then(|leaf| {
            verify_server_cert_signed_by_trust_anchor(&leaf, &store, intermediates, now, algorithms)
        })
        .map_err(|error| format!("what it signs does not verify under the roots: {error}"))
}

fn check(certificate: &X509Certificate<'_>, now: SystemTime) -> Result<(), String> {
    let name = certificate.subject();
    if !certificate.is_ca() {
        return Err(format!("\"{name}\" is not a CA certificate"));
    }
    if now < time(certificate.validity().not_before.timestamp()) {
        return Err(format!("\"{name}\" is not valid before {}", certificate.validity().not_before));
    }
    if now > not_after(certificate) {
        return Err(format!("\"{name}\" is over since {}", certificate.validity().not_after));
    }
    Ok(())
}

fn signs(issuer: &X509Certificate<'_>, certificate: &X509Certificate<'_>) -> bool {
    issuer.subject().as_raw() == certificate.issuer().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|error| error.to_string())
}

fn not_after(certificate: &X509Certificate<'_>) -> SystemTime {
    time(certificate.validity().not_after.timestamp())
}

fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
