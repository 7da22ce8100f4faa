use super::super::test_ca::{HOUR, Leaf, TestCa, identity};
use super::*;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";

/// An SVID for CART out of a leaf of `issuer` and the other entries of an answer.
fn answer(issuer: &TestCa, leaf: &Leaf, rest: &[String]) -> Result<Svid, Error> {
    let (key, pem) = issuer.leaf(leaf);
    let chain: Vec<String> = [pem].into_iter().chain(rest.iter().cloned()).collect();
    Svid::new(&identity(CART), SecretKey::from_pkcs8_der(key), &chain, &Revocations::default())
}

fn good() -> Leaf {
    Leaf::of(&identity(CART))
}

#[test]
fn a_good_answer_is_an_svid() {
    let ca = TestCa::new("root");
    let svid = answer(&ca, &good(), &[ca.pem()]).expect("the answer is good");
    assert_eq!(svid.identity(), &identity(CART));
    assert!(svid.is_valid_at(SystemTime::now()));
    assert!(!svid.is_valid_at(SystemTime::now() + 2 * HOUR));
    assert!(!svid.is_valid_at(SystemTime::now() - 2 * HOUR));
    assert!(Arc::ptr_eq(&svid.server_config(), &svid.server_config()), "made once");
    assert_eq!(svid.server_config().send_tls13_tickets, 0, "nothing can be resumed");
}

#[test]
fn another_identity_or_another_number_of_them_is_refused() {
    let ca = TestCa::new("root");
    let error = answer(&ca, &Leaf::of(&identity(BANK)), &[ca.pem()]).expect_err("another identity");
    assert!(matches!(error, Error::WrongIdentity { .. }), "{error}");
    let two = Leaf { uris: vec![CART.to_owned(), BANK.to_owned()], ..good() };
    let error = answer(&ca, &two, &[ca.pem()]).expect_err("two identities");
    assert!(matches!(error, Error::Leaf { .. }), "{error}");
    let none = Leaf { uris: Vec::new(), ..good() };
    let error = answer(&ca, &none, &[ca.pem()]).expect_err("no identity");
    assert!(matches!(error, Error::Leaf { .. }), "{error}");
}

#[test]
fn a_key_that_is_not_the_leafs_is_refused() {
    let ca = TestCa::new("root");
    let (other_key, _) = ca.leaf(&good());
    let (_, leaf) = ca.leaf(&good());
    let error = Svid::new(
        &identity(CART),
        SecretKey::from_pkcs8_der(other_key),
        &[leaf.clone(), ca.pem()],
        &Revocations::default(),
    )
    .expect_err("the key of another leaf");
    assert!(matches!(error, Error::WrongKey { .. }), "{error}");
    let error = Svid::new(
        &identity(CART),
        SecretKey::from_pkcs8_der(vec![1, 2, 3]),
        &[leaf, ca.pem()],
        &Revocations::default(),
    )
    .expect_err("no key at all");
    assert!(matches!(error, Error::WrongKey { .. }), "{error}");
}

#[test]
fn a_chain_that_does_not_reach_its_own_roots_is_refused() {
    let (ca, other) = (TestCa::new("root"), TestCa::new("other"));
    let error = answer(&ca, &good(), &[other.pem()]).expect_err("foreign roots");
    assert!(matches!(error, Error::Chain { .. }), "{error}");
    let intermediate = ca.intermediate("intermediate");
    let error = answer(&intermediate, &good(), &[ca.pem()]).expect_err("the intermediate is missing");
    assert!(matches!(error, Error::Chain { .. }), "{error}");
    answer(&intermediate, &good(), &[intermediate.pem(), ca.pem()]).expect("the intermediate is there");
}

#[test]
fn a_certificate_for_one_role_alone_is_refused() {
    let ca = TestCa::new("root");
    let leaf = Leaf { usages: vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth], ..good() };
    let error = answer(&ca, &leaf, &[ca.pem()]).expect_err("no client could be this pod");
    assert!(matches!(error, Error::Chain { role: "client", .. }), "{error}");
}

#[test]
fn an_answer_needs_a_leaf_and_roots() {
    let ca = TestCa::new("root");
    let (key, _) = ca.leaf(&good());
    let error = Svid::new(&identity(CART), SecretKey::from_pkcs8_der(key), &[], &Revocations::default())
        .expect_err("nothing");
    assert!(matches!(error, Error::TooFewEntries(0)), "{error}");
    let error = answer(&ca, &good(), &[]).expect_err("no roots");
    assert!(matches!(error, Error::TooFewEntries(1)), "{error}");
    let error = answer(&ca, &good(), &["not PEM".to_owned()]).expect_err("no readable root");
    assert!(matches!(error, Error::NoRoots), "{error}");
    let error = answer(&ca, &good(), &["not PEM".to_owned(), ca.pem()]).expect_err("a broken intermediate");
    assert!(matches!(error, Error::Unreadable { entry: 2, .. }), "{error}");
}

#[test]
fn several_roots_are_trusted_and_broken_ones_skipped() {
    let (ca, other) = (TestCa::new("root"), TestCa::new("other"));
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let not_base64 = "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
    let bundle = format!("{}{not_der}{not_base64}{}", other.pem(), ca.pem());
    let svid = answer(&ca, &good(), &[bundle]).expect("the good roots count");
    assert_eq!(svid.describe().root_certs.len(), 2);
}

#[test]
fn only_the_first_block_of_an_entry_counts() {
    let ca = TestCa::new("root");
    let intermediate = ca.intermediate("intermediate");
    let (key, leaf) = intermediate.leaf(&good());
    let joined = format!("{leaf}{}", intermediate.pem());
    let error = Svid::new(
        &identity(CART),
        SecretKey::from_pkcs8_der(key),
        &[joined, ca.pem()],
        &Revocations::default(),
    )
    .expect_err("the second block of the leaf's entry is not an intermediate");
    assert!(matches!(error, Error::Chain { .. }), "{error}");
}

#[test]
fn the_description_is_that_of_the_dump() {
    let ca = TestCa::new("root");
    let leaf = Leaf {
        not_before: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        not_after: UNIX_EPOCH + Duration::from_secs(1_700_086_400),
        ..good()
    };
    let svid = answer(&ca, &leaf, &[ca.pem()]).expect("validity is not judged here");
    let json = serde_json::to_value(svid.describe()).expect("it serializes");
    let first = &json["certChain"][0];
    assert_eq!(first["validFrom"], "2023-11-14T22:13:20Z");
    assert_eq!(first["expirationTime"], "2023-11-15T22:13:20Z");
    assert!(first["serialNumber"].as_str().is_some_and(|serial| serial.bytes().all(|b| b.is_ascii_digit())));
    use base64::Engine;
    let pem = base64::engine::general_purpose::STANDARD
        .decode(first["pem"].as_str().expect("a text"))
        .expect("base64");
    assert_eq!(CertificateDer::from_pem_slice(&pem).expect("PEM"), svid.chain[0]);
    assert_eq!(json["rootCerts"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_key_is_never_printed() {
    assert_eq!(format!("{:?}", SecretKey::from_pkcs8_der(vec![7; 32])), "SecretKey(redacted)");
}
