use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType, SignatureAlgorithm};

use super::*;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn csr(algorithm: &'static SignatureAlgorithm, names: Vec<SanType>) -> String {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn good() -> String {
    csr(&rcgen::PKCS_ECDSA_P256_SHA256, vec![uri(CART)])
}

#[test]
fn a_good_csr_becomes_a_workload_certificate_for_its_key() {
    let authority = Authority::ephemeral().unwrap();
    let request = Request::from_pem(&good()).unwrap();
    let now = SystemTime::now();
    let terms = validity(3600, Duration::from_secs(24 * 3600), now).unwrap();
    let Issued { chain, serial, .. } = certify(&authority, &request, terms).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], authority.root());
    let (_, block) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
    let leaf = block.parse_x509().unwrap();
    assert_eq!(leaf.raw_serial(), serial);
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI(CART)]);
    let usages = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usages.client_auth && usages.server_auth);
    assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
    assert!(!leaf.is_ca());
    let key: &SubjectPublicKeyInfo = &request.key;
    assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(key));
    let seconds = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert!((3659..=3661).contains(&seconds), "{seconds}");
}

#[test]
fn serial_numbers_do_not_repeat_for_one_key() {
    let authority = Authority::ephemeral().unwrap();
    let request = Request::from_pem(&good()).unwrap();
    let terms = validity(60, Duration::from_secs(3600), SystemTime::now()).unwrap();
    let serial = || {
        let chain = certify(&authority, &request, terms).unwrap().chain;
        let (_, block) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
        let serial = block.parse_x509().unwrap().raw_serial().to_vec();
        assert!(serial.len() == 16 && serial[0] < 0x80, "{serial:x?} is positive");
        serial
    };
    assert_ne!(serial(), serial());
}

#[test]
fn the_terms_follow_the_request_up_to_the_cap() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let max = Duration::from_secs(24 * 3600);
    let span = |asked| {
        let (from, to) = validity(asked, max, now).unwrap();
        (now.duration_since(from).unwrap().as_secs(), to.duration_since(now).unwrap().as_secs())
    };
    assert_eq!(span(20), (2, 20), "a short certificate is backdated by a tenth");
    assert_eq!(span(3600), (60, 3600), "a long one by a minute");
    assert_eq!(span(10 * 24 * 3600), (60, 24 * 3600), "the cap holds");
    assert_eq!(span(i64::MAX), (60, 24 * 3600));
    assert_eq!(span(0), (60, 24 * 3600), "zero means as long as possible");
    assert!(matches!(validity(-1, max, now), Err(Error::Validity(-1))));
}

#[test]
fn good_keys_are_certified() {
    let now = SystemTime::now();
    let authority = Authority::ephemeral().unwrap();
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let request = Request::from_pem(&csr(algorithm, vec![uri(CART)])).unwrap();
        certify(&authority, &request, (now, now + Duration::from_secs(60))).unwrap();
    }
}

#[test]
fn weak_and_unknown_keys_and_digests_are_refused() {
    let error = Request::from_pem(&csr(&rcgen::PKCS_ECDSA_P521_SHA512, vec![uri(CART)])).unwrap_err();
    assert!(matches!(error, Error::Key(_)) && error.to_string().contains("1.3.132.0.35"), "{error}");
    let short = rsa_key(128);
    let (_, key) = ParsedKey::from_der(&short).unwrap();
    let error = check_key(&key).unwrap_err();
    assert!(error.to_string().contains("RSA of 1024 bits"), "{error}");
    let long = rsa_key(256);
    let (_, key) = ParsedKey::from_der(&long).unwrap();
    check_key(&key).unwrap();
    // The algorithm of the signature, which stands once behind the signed part: ECDSA with SHA-1 instead of SHA-256.
    let (_, mut block) = x509_parser::pem::parse_x509_pem(good().as_bytes()).unwrap();
    let sha256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let at = block.contents.windows(8).rposition(|eight| eight == sha256).unwrap();
    block.contents[at + 7] = 1;
    let error = Request::from_pem(&pem(&block.contents)).unwrap_err();
    assert!(matches!(error, Error::Algorithm(_)), "{error}");
}

#[test]
fn a_csr_names_one_identity_and_nothing_else() {
    let algorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
    let dns = || SanType::DnsName("cart.shop".try_into().unwrap());
    for names in [vec![], vec![dns()], vec![uri(CART), dns()], vec![uri(CART), uri(CART)]] {
        let error = Request::from_pem(&csr(algorithm, names)).unwrap_err();
        assert!(matches!(error, Error::Names(_)), "{error}");
    }
    let error = Request::from_pem(&csr(algorithm, vec![uri("spiffe://td/other")])).unwrap_err();
    assert!(matches!(error, Error::Identity(_)), "{error}");
}

#[test]
fn garbage_is_refused() {
    let certificate = Authority::ephemeral().unwrap().root().to_owned();
    for text in ["", "garbage", certificate.as_str()] {
        let error = Request::from_pem(text).unwrap_err();
        assert!(matches!(error, Error::Unreadable(_)), "{error}");
    }
}

#[test]
fn a_csr_signed_with_another_key_is_refused() {
    let (_, mut block) = x509_parser::pem::parse_x509_pem(good().as_bytes()).unwrap();
    let mut refused = 0;
    // The last bytes are the signature; every damage to it must show.
    for at in block.contents.len() - 8..block.contents.len() {
        block.contents[at] ^= 1;
        let text = pem(&block.contents);
        block.contents[at] ^= 1;
        let error = Request::from_pem(&text).unwrap_err();
        refused += usize::from(matches!(error, Error::Signature));
    }
    assert_eq!(refused, 8);
}

/// A public RSA key with a modulus of so many bytes; nobody has made one so short in the tests' libraries.
fn rsa_key(bytes: usize) -> Vec<u8> {
    let der = |tag: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82], &length[..], content].concat()
    };
    let modulus = [&[0, 0x80][..], &vec![1; bytes - 1]].concat();
    let key = der(0x30, &[der(0x02, &modulus), vec![2, 3, 1, 0, 1]].concat());
    let algorithm = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
    der(0x30, &[&algorithm[..], &der(0x03, &[&[0], &key[..]].concat())].concat())
}

/// PEM of a certificate request, with a base64 of its own: the crate writes PEM only of what it has made.
fn pem(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for chunk in der.chunks(3) {
        let bits = (0..3).fold(0_usize, |bits, at| bits << 8 | usize::from(*chunk.get(at).unwrap_or(&0)));
        for at in 0..4 {
            let digit = char::from(ALPHABET[bits >> (18 - 6 * at) & 63]);
            text.push(if at > chunk.len() { '=' } else { digit });
        }
    }
    text.push_str("\n-----END CERTIFICATE REQUEST-----\n");
    text
}
