use x509_parser::prelude::X509Certificate;

use super::*;
use crate::ca::authority::{Authority, Leaf, Purpose, SubjectName};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";

fn hex_of(serials: &BTreeSet<Vec<u8>>) -> Vec<String> {
    serials.iter().map(|serial| super::super::ledger::hex(serial)).collect()
}

/// The serial numbers of each CRL in a text.
fn named(pem: &str) -> Vec<Vec<Vec<u8>>> {
    let blocks = pem::parse_many(pem).unwrap();
    blocks
        .iter()
        .map(|block| {
            assert_eq!(block.tag(), "X509 CRL");
            let (_, crl) = CertificateRevocationList::from_der(block.contents()).unwrap();
            crl.iter_revoked_certificates().map(|one| significant(one.raw_serial())).collect()
        })
        .collect()
}

fn issue(authority: &Authority, ledger: &mut Ledger, identity: &str) -> Vec<u8> {
    let now = SystemTime::now();
    let leaf = Leaf {
        names: vec![SubjectName::Uri(identity.to_owned())],
        purpose: Purpose::Workload,
        not_before: now,
        not_after: now + Duration::from_secs(3600),
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let issued = authority.issue(&leaf, &key).unwrap();
    ledger.record(&identity.parse().unwrap(), &issued).unwrap();
    issued.serial.to_vec()
}

fn signed(authority: &Authority, ledger: &Ledger, revoked: &Revoked, inherited: &[Inherited]) -> Crl {
    let materials = authority.materials();
    let materials = materials.iter().map(|material| -> &Material { material });
    sign(revoked, ledger, materials, inherited, SystemTime::now()).unwrap()
}

#[test]
fn serial_numbers_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("0x1a2B", vec![0x1a, 0x2b]),
        ("1a:2b:0C", vec![0x1a, 0x2b, 0x0c]),
        ("6699", vec![0x1a, 0x2b]),
        ("000ff", vec![0xff]),
        ("340282366920938463463374607431768211455", vec![0xff; 16]),
    ] {
        assert_eq!(serial(text), Some(bytes), "{text}");
    }
    for text in ["", "0x", "0", "0x0", "xyz", "-5", "1.5", &"f".repeat(41)] {
        assert_eq!(serial(text), None, "{text}");
    }
}

#[test]
fn the_file_is_yaml_or_json_and_all_its_mistakes_are_told() {
    let yaml = format!("serials:\n- \"6699\"\nidentities: [{CART}]\n");
    let json = format!(r#"{{"serials": ["0x1a2b"], "identities": ["{CART}"]}}"#);
    let revoked = Revoked::parse(&yaml, "revoked.yaml").unwrap().unwrap();
    assert_eq!(revoked, Revoked::parse(&json, "revoked.json").unwrap().unwrap());
    assert_eq!(hex_of(&revoked.serials), ["1a2b"]);
    assert!(revoked.identities.contains(&CART.parse().unwrap()));
    for empty in ["", "# nothing yet\n", "{}", "serials: []\n"] {
        assert_eq!(Revoked::parse(empty, "f").unwrap().unwrap_or_default(), Revoked::default(), "{empty:?}");
    }
    let error = Revoked::parse("serials: [\"no\"]\nidentities: [spiffe://x]\n", "f").unwrap_err().to_string();
    assert!(
        ["f:1:", "serials[0]", "f:2:", "identities[0]"].iter().all(|part| error.contains(part)),
        "{error}"
    );
    for wrong in ["serial: []", "serials: 5", "[]", "serials: [1, 2"] {
        Revoked::parse(wrong, "f").unwrap_err();
    }
}

#[test]
fn a_crl_names_every_certificate_of_a_revoked_identity_and_verifies() {
    let authority = Authority::ephemeral().unwrap();
    let mut ledger = Ledger::ephemeral();
    let first = issue(&authority, &mut ledger, CART);
    let second = issue(&authority, &mut ledger, CART);
    issue(&authority, &mut ledger, BANK);
    let mut revoked = Revoked::default();
    assert_eq!(named(&signed(&authority, &ledger, &revoked, &[]).pem), [Vec::<Vec<u8>>::new()]);
    revoked.identities.insert(CART.parse().unwrap());
    revoked.serials.insert(vec![0x80, 1]);
    let crl = signed(&authority, &ledger, &revoked, &[]);
    assert_eq!(crl.revoked, 3);
    let mut expected = vec![first, second, vec![0x80, 1]];
    let mut found = named(&crl.pem).remove(0);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let block = pem::parse(&crl.pem).unwrap();
    let (_, parsed) = CertificateRevocationList::from_der(block.contents()).unwrap();
    let root = pem::parse(authority.root()).unwrap();
    let (_, root) = X509Certificate::from_der(root.contents()).unwrap();
    parsed.verify_signature(root.public_key()).unwrap();
    assert_eq!(parsed.issuer().as_raw(), root.subject().as_raw());
}

#[test]
fn the_crl_of_a_key_that_is_gone_is_taken_over() {
    let (old, new) = (Authority::ephemeral().unwrap(), Authority::ephemeral().unwrap());
    let mut ledger = Ledger::ephemeral();
    let serial = issue(&old, &mut ledger, CART);
    let revoked = Revoked { identities: [CART.parse().unwrap()].into(), ..Revoked::default() };
    let left = signed(&old, &ledger, &revoked, &[]).pem;
    let inherited = inherit(&left, SystemTime::now());
    let crl = signed(&new, &ledger, &revoked, &inherited);
    assert_eq!(named(&crl.pem), [vec![], vec![serial.clone()]]);
    // A key that still signs replaces what it signed before.
    assert_eq!(named(&signed(&old, &ledger, &revoked, &inherited).pem), [vec![serial]]);
    assert!(inherit(&left, SystemTime::now() + 2 * LIFETIME).is_empty(), "it is over");
    assert!(inherit("noise", SystemTime::now()).is_empty());
}
