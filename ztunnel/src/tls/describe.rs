//! The public part of certificates as /config_dump shows it (interop.md section 11.5).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

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
