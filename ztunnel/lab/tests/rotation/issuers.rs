//! Signing material for the CA of a lab, in the layout of cert-manager's secrets, and what the proxies make of it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa};
use rcgen::{KeyPair, KeyUsagePurpose};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer, X509Certificate};
use ztunnel_lab::process::write_atomically;
use ztunnel_lab::{Lab, wait_until};

/// A key that may sign, and its certificate.
pub struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl Issuer {
    pub fn root(name: &str) -> Self {
        Self(CertifiedIssuer::self_signed(params(name), key()).expect("a root can be made"))
    }

    pub fn intermediate(&self, name: &str) -> Self {
        Self(CertifiedIssuer::signed_by(params(name), key(), &self.0).expect("it can be signed"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// From now on the CA of the lab signs with this one.
    pub fn signs(&self, lab: &Lab) {
        write(lab, "tls.key", &self.0.key().serialize_pem(), 0o600);
        write(lab, "tls.crt", &self.pem(), 0o644);
    }
}

/// The root that the lab came up with.
pub fn first_root(lab: &Lab) -> String {
    std::fs::read_to_string(lab.ca_folder().join("ca.crt")).expect("the controller made it")
}

/// From now on the CA of the lab hands out these roots.
pub fn trust(lab: &Lab, roots: &[&str]) {
    write(lab, "ca.crt", &roots.concat(), 0o644);
}

fn write(lab: &Lab, file: &str, text: &str, mode: u32) {
    write_atomically(&lab.ca_folder().join(file), text, None, mode).expect("the CA's folder can be written");
}

/// A certificate that a proxy holds.
#[derive(Clone, Debug)]
pub struct Held {
    pub identity: String,
    pub serial: String,
    /// The common name of what signed it.
    pub issuer: String,
    /// Common names of the roots that came with it.
    pub roots: Vec<String>,
    pub end: OffsetDateTime,
}

/// Everything that the proxy of a node holds; empty while it does not answer.
pub fn held(lab: &Lab, node: &str) -> Vec<Held> {
    let dump = lab.node(node).config_dump();
    dump["certificates"].as_array().map(|all| all.iter().filter_map(read).collect()).unwrap_or_default()
}

/// Waits until every certificate of these nodes is as wanted.
pub fn until(lab: &Lab, nodes: &[&str], deadline: Duration, what: &str, wanted: impl Fn(&Held) -> bool) {
    let all = || nodes.iter().map(|node| held(lab, node)).collect::<Vec<_>>();
    let done = || all().iter().all(|held| !held.is_empty() && held.iter().all(&wanted));
    assert!(wait_until(deadline, done), "{what}, {deadline:?} later: {:#?}", all());
}

fn read(entry: &Value) -> Option<Held> {
    let leaf = entry["certChain"].get(0)?;
    let text = |key: &str| Some(leaf[key].as_str()?.to_owned());
    let roots = entry["rootCerts"].as_array()?.iter().filter_map(|root| Some(names(root)?.0));
    Some(Held {
        identity: entry["identity"].as_str()?.to_owned(),
        serial: text("serialNumber")?,
        issuer: names(leaf)?.1,
        roots: roots.collect(),
        end: OffsetDateTime::parse(&text("expirationTime")?, &Rfc3339).ok()?,
    })
}

/// Common names of subject and issuer; a leaf has no subject.
fn names(certificate: &Value) -> Option<(String, String)> {
    let pem = STANDARD.decode(certificate["pem"].as_str()?).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, parsed) = X509Certificate::from_der(&pem.contents).ok()?;
    let common = |name: &x509_parser::x509::X509Name<'_>| {
        let first = name.iter_common_name().next().and_then(|one| one.as_str().ok());
        first.unwrap_or_default().to_owned()
    };
    Some((common(parsed.subject()), common(parsed.issuer())))
}

fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key can be made")
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
