//! The public part of certificates as /config_dump shows it (interop.md section 11.5).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{ASN1Time, FromDer, ParsedExtension, X509Certificate};

/// A certificate chain (leaf first) and the roots it is trusted by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    pub cert_chain: Vec<CertificateDescription>,
    pub root_certs: Vec<CertificateDescription>,
}

/// One certificate: its PEM text in base64, serial number in decimal, and validity in RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDescription {
    pub pem: String,
    pub serial_number: String,
    pub valid_from: String,
    pub expiration_time: String,
}

pub(super) fn certificate(der: &CertificateDer<'_>) -> CertificateDescription {
    let parsed = X509Certificate::from_der(der).ok().map(|(_, parsed)| parsed);
    let written = |read: fn(&X509Certificate<'_>) -> String| parsed.as_ref().map(read).unwrap_or_default();
    CertificateDescription {
        pem: STANDARD.encode(pem(der)),
        serial_number: written(|parsed| parsed.tbs_certificate.serial.to_string()),
        valid_from: written(|parsed| rfc3339(parsed.validity().not_before)),
        expiration_time: written(|parsed| rfc3339(parsed.validity().not_after)),
    }
}

pub(super) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = Duration::from_secs(time.timestamp().unsigned_abs());
    if time.timestamp() < 0 { UNIX_EPOCH - seconds } else { UNIX_EPOCH + seconds }
}

/// Who issued the last certificate of a chain that is not issued by another of it.
pub(super) fn top_issuer(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> String {
    let parse = |der| X509Certificate::from_der(der).ok().map(|(_, parsed)| parsed);
    let Some(mut top) = parse(leaf) else { return "its issuer".to_owned() };
    let mut above: Vec<_> = intermediates.iter().filter_map(|der| parse(der)).collect();
    while let Some(next) = above.iter().position(|one| one.subject().as_raw() == top.issuer().as_raw()) {
        top = above.swap_remove(next);
    }
    let key = top.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|key| hex(key.0)),
        _ => None,
    });
    named(&top.issuer().to_string(), key)
}

/// A root as a log names it.
pub(super) fn root(der: &CertificateDer<'_>) -> String {
    let Ok((_, root)) = X509Certificate::from_der(der) else { return "an unreadable root".to_owned() };
    let key = root.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(key) => Some(hex(key.0)),
        _ => None,
    });
    named(&root.subject().to_string(), key)
}

fn named(subject: &str, key: Option<String>) -> String {
    match key {
        Some(key) => format!("\"{subject}\" (key id {key})"),
        None => format!("\"{subject}\""),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rfc3339(time: ASN1Time) -> String {
    OffsetDateTime::from_unix_timestamp(time.timestamp())
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn pem(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
