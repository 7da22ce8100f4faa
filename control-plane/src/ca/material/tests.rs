use std::fs;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa};
use rcgen::{KeyUsagePurpose, SignatureAlgorithm};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

type Signer = CertifiedIssuer<'static, KeyPair>;

/// A folder of its own for each test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("material-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with(self, name: &str, text: &str) -> Self {
        fs::write(self.0.join(name), text).unwrap();
        self
    }

    fn read(&self) -> Result<Material, Error> {
        Material::read(&self.0, SystemTime::now())
    }

    fn refusal(&self) -> String {
        self.read().unwrap_err().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + 2 * HOUR).into();
    params
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn p256() -> KeyPair {
    key(&rcgen::PKCS_ECDSA_P256_SHA256)
}

fn root(name: &str) -> Signer {
    CertifiedIssuer::self_signed(params(name), p256()).unwrap()
}

fn below(params: CertificateParams, issuer: &Signer) -> Signer {
    CertifiedIssuer::signed_by(params, p256(), issuer).unwrap()
}

#[test]
fn a_root_that_issues_itself_is_enough() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let root = CertifiedIssuer::self_signed(params("root"), key(algorithm)).unwrap();
        let folder =
            Folder::new("root").with(CERTIFICATE, &root.pem()).with(KEY, &root.key().serialize_pem());
        let material = folder.read().unwrap();
        assert!(material.intermediates.is_empty());
        assert_eq!(certificates(&material.roots).unwrap(), [root.der().clone()]);
        assert!(material.may_sign_crls());
    }
}

#[test]
fn an_intermediate_brings_the_way_to_its_root_and_ends_with_the_first_of_them() {
    let root = root("root");
    let mut upper = params("upper");
    upper.not_after = (SystemTime::now() + HOUR).into();
    let upper = below(upper, &root);
    let lower = below(params("lower"), &upper);
    let folder = Folder::new("way")
        .with(CERTIFICATE, &format!("{}{}{}", lower.pem(), root.pem(), upper.pem()))
        .with(KEY, &lower.key().serialize_pem())
        .with(ROOTS, &root.pem());
    let material = folder.read().unwrap();
    let way: Vec<_> = material.intermediates.iter().map(|pem| certificates(pem).unwrap().remove(0)).collect();
    assert_eq!(way, [lower.der().clone(), upper.der().clone()], "in order and without the root");
    assert!(material.not_after <= SystemTime::now() + HOUR, "the upper one ends first");
    assert_eq!(material.subject(), "CN=lower");
}

#[test]
fn a_key_in_sec1_is_understood() {
    let root = root("root");
    let pkcs8 = root.key().serialize_der();
    // PKCS#8 wraps the key of SEC1, a SEQUENCE that starts with the version 1.
    let at = pkcs8.windows(5).position(|five| five[0] == 0x30 && five[2..] == [0x02, 0x01, 0x01]).unwrap();
    let sec1 = &pkcs8[at..];
    let text = pem::encode(&pem::Pem::new("EC PRIVATE KEY", sec1.to_vec()));
    let folder = Folder::new("sec1").with(CERTIFICATE, &root.pem()).with(KEY, &text);
    folder.read().unwrap();
}

#[test]
fn every_root_is_trusted_once() {
    let (root, old, extra) = (root("root"), root("old"), root("extra"));
    let folder = Folder::new("roots")
        .with(CERTIFICATE, &root.pem())
        .with(KEY, &root.key().serialize_pem())
        .with(ROOTS, &format!("{}{}", root.pem(), old.pem()))
        .with(EXTRA_ROOTS, &format!("{}{}", extra.pem(), root.pem()));
    let roots = certificates(&folder.read().unwrap().roots).unwrap();
    assert_eq!(roots, [root.der().clone(), old.der().clone(), extra.der().clone()]);
}

#[test]
fn what_does_not_fit_together_is_refused_by_file_and_reason() {
    let (root, other) = (root("root"), root("other"));
    let refused = |name: &str, certificate: &str, key: &KeyPair, roots: &str, parts: &[&str]| {
        let folder = Folder::new(name)
            .with(CERTIFICATE, certificate)
            .with(KEY, &key.serialize_pem())
            .with(ROOTS, roots);
        let text = folder.refusal();
        assert!(parts.iter().all(|part| text.contains(part)), "{name}: {text}");
    };
    let (pem, key) = (root.pem(), root.key());
    refused("key", &pem, other.key(), &pem, &[CERTIFICATE, "another key"]);
    refused("roots", &pem, key, &other.pem(), &[CERTIFICATE, "CN=root", "neither"]);
    refused("nothing", "", key, &pem, &[CERTIFICATE, "no certificate"]);
    refused("noise", &pem, key, "noise", &[ROOTS, "no certificate"]);
    let mut over = params("over");
    over.not_after = (SystemTime::now() - HOUR / 2).into();
    let over = below(over, &root);
    refused("over", &over.pem(), over.key(), &pem, &["CN=over", "is over since"]);
    let mut early = params("early");
    early.not_before = (SystemTime::now() + HOUR).into();
    let early = below(early, &root);
    refused("early", &early.pem(), early.key(), &pem, &["CN=early", "not valid before"]);
    let mut leaf = params("leaf");
    leaf.is_ca = IsCa::NoCa;
    let leaf = below(leaf, &root);
    refused("leaf", &leaf.pem(), leaf.key(), &pem, &["CN=leaf", "not a CA"]);
    let mut short = params("short");
    short.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short = below(short, &root);
    let deep = below(params("deep"), &short);
    let chain = format!("{}{}", deep.pem(), short.pem());
    refused("deep", &chain, deep.key(), &pem, &["does not verify under the roots"]);
}

#[test]
fn a_missing_or_unreadable_part_is_named() {
    let root = root("root");
    let folder = Folder::new("missing").with(CERTIFICATE, &root.pem());
    assert!(folder.refusal().contains(KEY));
    let folder = folder.with(KEY, "noise");
    assert!(folder.refusal().contains(KEY));
    let lower = below(params("lower"), &root);
    let folder = folder.with(KEY, &lower.key().serialize_pem()).with(CERTIFICATE, &lower.pem());
    assert!(folder.refusal().contains(ROOTS));
}

#[test]
fn roots_that_are_over_are_left_out_but_one_must_stay() {
    let root = root("root");
    let mut over = params("over");
    over.not_after = (SystemTime::now() - HOUR / 2).into();
    let over = CertifiedIssuer::self_signed(over, p256()).unwrap();
    let folder = Folder::new("root-over")
        .with(CERTIFICATE, &root.pem())
        .with(KEY, &root.key().serialize_pem())
        .with(ROOTS, &format!("{}{}", over.pem(), root.pem()));
    assert_eq!(certificates(&folder.read().unwrap().roots).unwrap(), [root.der().clone()]);
    let text = folder.with(ROOTS, &over.pem()).refusal();
    assert!(text.contains("every one is over"), "{text}");
}

#[test]
fn a_certificate_that_may_not_sign_crls_says_so() {
    let mut plain = params("plain");
    plain.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let plain = CertifiedIssuer::self_signed(plain, p256()).unwrap();
    let folder = Folder::new("crl").with(CERTIFICATE, &plain.pem()).with(KEY, &plain.key().serialize_pem());
    assert!(!folder.read().unwrap().may_sign_crls());
}
