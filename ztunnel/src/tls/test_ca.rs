//! A CA made at run time, for tests of this crate.

use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rcgen::{CertifiedIssuer, KeyPair, KeyUsagePurpose, SanType};
use ztunnel_model::Identity;

use super::revocation::Revocations;
use super::svid::{SecretKey, Svid};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Its SVIDs heed these revocations.
pub(crate) struct TestCa(CertifiedIssuer<'static, KeyPair>, pub(crate) Revocations);

/// What a leaf says; the default of a field is what a good leaf says.
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    pub(crate) fn of(identity: &Identity) -> Self {
        Self {
            uris: vec![identity.to_string()],
            not_before: SystemTime::now() - HOUR,
            not_after: SystemTime::now() + HOUR,
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

pub(crate) fn identity(text: &str) -> Identity {
    text.parse().expect("the test writes a valid identity")
}

impl TestCa {
    pub(crate) fn new(name: &str) -> Self {
        Self(
            CertifiedIssuer::self_signed(ca_params(name), key_pair()).expect("a root can be made"),
            Revocations::default(),
        )
    }

    pub(crate) fn intermediate(&self, name: &str) -> Self {
        Self(
            CertifiedIssuer::signed_by(ca_params(name), key_pair(), &self.0)
                .expect("an intermediate can be made"),
            self.1.clone(),
        )
    }

    /// A CRL that names these certificates.
    pub(crate) fn crl(&self, serials: &[&[u8]]) -> String {
        let now = SystemTime::now();
        let revoked_certs = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: (now - 2 * HOUR).into(),
            // Its end is not looked at.
            next_update: (now - HOUR).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).and_then(|crl| crl.pem()).expect("a CRL can be made")
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// The key in PKCS#8 and the leaf in PEM.
    pub(crate) fn leaf(&self, leaf: &Leaf) -> (Vec<u8>, String) {
        let pair = key_pair();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = leaf.not_before.into();
        params.not_after = leaf.not_after.into();
        params.extended_key_usages = leaf.usages.clone();
        let uri = |uri: &String| SanType::URI(uri.as_str().try_into().expect("the test writes ASCII"));
        params.subject_alt_names = leaf.uris.iter().map(uri).collect();
        let certificate = params.signed_by(&pair, &self.0).expect("a leaf can be made");
        (pair.serialize_der(), certificate.pem())
    }

    /// A good SVID that trusts this CA and `others`.
    pub(crate) fn svid_trusting(&self, leaf: &Leaf, others: &[&Self]) -> Svid {
        let (key, pem) = self.leaf(leaf);
        let roots: String = others.iter().map(|other| other.pem()).chain([self.pem()]).collect();
        let asked = identity(&leaf.uris[0]);
        Svid::new(&asked, SecretKey::from_pkcs8_der(key), &[pem, roots], &self.1)
            .expect("the CA's answer is good")
    }

    /// A good SVID of this intermediate, which also trusts `other`.
    pub(crate) fn svid_below(&self, root: &Self, text: &str, other: &Self) -> Svid {
        let asked = identity(text);
        let (key, pem) = self.leaf(&Leaf::of(&asked));
        let chain = [pem, self.pem(), root.pem() + &other.pem()];
        Svid::new(&asked, SecretKey::from_pkcs8_der(key), &chain, &self.1).expect("the CA's answer is good")
    }

    pub(crate) fn svid(&self, text: &str) -> Svid {
        self.svid_trusting(&Leaf::of(&identity(text)), &[])
    }
}

fn key_pair() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key can be made")
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
