use std::fs;

use rcgen::{BasicConstraints, SanType};
use rcgen::{CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::*;
use crate::ca::authority::ROOT_CERTIFICATE;
use crate::ca::material::{CERTIFICATE, KEY, ROOTS};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";
const HOUR: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(10);

struct Bed {
    folder: PathBuf,
    root: CertifiedIssuer<'static, KeyPair>,
}

fn signer(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn request(identity: &str) -> issue::Request {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    issue::Request::from_pem(&csr).unwrap()
}

fn validity() -> (SystemTime, SystemTime) {
    (SystemTime::now(), SystemTime::now() + HOUR)
}

impl Bed {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("running-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let root = CertifiedIssuer::self_signed(signer("root"), KeyPair::generate().unwrap()).unwrap();
        Self { folder, root }
    }

    /// Replaces the folder's set by a new intermediate, file by file.
    fn rotate(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let issuing = CertifiedIssuer::signed_by(signer(name), key, &self.root).unwrap();
        self.put(KEY, &issuing.key().serialize_pem());
        self.put(CERTIFICATE, &issuing.pem());
        self.put(ROOTS, &self.root.pem());
    }

    fn put(&self, name: &str, text: &str) {
        super::super::files::write_atomically(&self.folder.join(name), text.as_bytes(), 0o600).unwrap();
    }

    fn open(&self) -> Ca {
        let folders = Folders { material: self.folder.clone(), state: self.folder.join("state") };
        Ca::open(Files { folders, revoked: self.folder.join("revoked.yaml") }).unwrap()
    }

    fn crl_file(&self) -> String {
        fs::read_to_string(self.folder.join("state").join(CRL_FILE)).unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn another_usable_set_signs_from_then_on_and_an_unusable_one_never() {
    let bed = Bed::new("sets");
    bed.rotate("first");
    let ca = bed.open();
    let chain = |ca: &Ca| ca.certify(&request(CART), validity()).unwrap().chain;
    let first = chain(&ca);
    assert_eq!(first.len(), 3, "leaf, intermediate, roots");
    ca.look(SystemTime::now());
    assert_eq!((ca.counters().rotations(), &chain(&ca)[1]), (0, &first[1]));

    bed.put(KEY, &KeyPair::generate().unwrap().serialize_pem());
    ca.look(SystemTime::now());
    ca.look(SystemTime::now());
    assert_eq!(&chain(&ca)[1], &first[1], "half a set is not used");
    assert_eq!(ca.counters().unusable(), 1, "and complained of once");

    bed.rotate("second");
    let changes = ca.changes();
    ca.look(SystemTime::now());
    assert!(changes.has_changed().unwrap());
    assert_eq!(ca.counters().rotations(), 1);
    assert_ne!(&chain(&ca)[1], &first[1]);
    assert_eq!(ca.counters().issued(), 4);
}

#[test]
fn clients_find_all_roots_in_one_file() {
    let bed = Bed::new("roots");
    bed.rotate("first");
    let ca = bed.open();
    let file = || fs::read_to_string(bed.folder.join("state").join(ROOT_CERTIFICATE)).unwrap();
    assert_eq!(file(), ca.authority().root());
    let other = CertifiedIssuer::self_signed(signer("other"), KeyPair::generate().unwrap()).unwrap();
    bed.put(ROOTS, &format!("{}{}", other.pem(), bed.root.pem()));
    ca.look(SystemTime::now());
    assert_eq!(file().matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(file(), ca.certify(&request(CART), validity()).unwrap().chain[2]);
}

#[test]
fn a_revoked_identity_is_named_by_the_crl_of_its_own_key_also_after_restarts() {
    let bed = Bed::new("revoked");
    bed.rotate("first");
    let ca = bed.open();
    ca.certify(&request(CART), validity()).unwrap();
    bed.rotate("second");
    ca.look(SystemTime::now());
    ca.certify(&request(CART), validity()).unwrap();
    ca.certify(&request(BANK), validity()).unwrap();
    let crl = ca.crl();
    assert_eq!(crl.borrow().revoked, 0);
    bed.put("revoked.yaml", &format!("identities: [{CART}]\n"));
    ca.look(SystemTime::now());
    assert_eq!(crl.borrow().revoked, 2);
    assert_eq!(crl.borrow().pem, bed.crl_file());
    assert_eq!(
        bed.crl_file().matches("BEGIN X509 CRL").count(),
        2,
        "the first key's certificate still lives"
    );
    let refused = ca.certify(&request(CART), validity()).unwrap_err();
    assert!(matches!(refused, NotCertified::Revoked(_)), "{refused}");
    ca.certify(&request(BANK), validity()).unwrap();

    drop(ca);
    let again = bed.open();
    assert_eq!(again.unexpired(), 4);
    assert_eq!(again.crl().borrow().revoked, 1, "one is of a key that is gone");
    assert_eq!(bed.crl_file().matches("BEGIN X509 CRL").count(), 2, "but its CRL is not");
    bed.put("revoked.yaml", "noise");
    again.look(SystemTime::now());
    assert!(again.is_revoked(&CART.parse().unwrap()), "the last good file stays in force");
    bed.put("revoked.yaml", "");
    again.look(SystemTime::now());
    std::fs::remove_file(bed.folder.join("revoked.yaml")).unwrap();
    again.look(SystemTime::now());
    assert!(
        again.is_revoked(&CART.parse().unwrap()),
        "nothing is taken back by a file that is being replaced"
    );
    bed.put("revoked.yaml", "identities: []");
    again.look(SystemTime::now());
    again.certify(&request(CART), validity()).expect("taken back");
}

#[tokio::test]
async fn changes_are_followed_also_by_the_swap_of_a_link() {
    let bed = Bed::new("link");
    let material = bed.folder.join("mounted");
    let version = |name: &str| {
        let inner = Bed {
            folder: bed.folder.join(name),
            root: CertifiedIssuer::self_signed(signer(name), KeyPair::generate().unwrap()).unwrap(),
        };
        fs::create_dir_all(&inner.folder).unwrap();
        inner.rotate(name);
        inner
    };
    let (_first, _second) = (version("v1"), version("v2"));
    fs::create_dir_all(&material).unwrap();
    // As the kubelet does it: the files are links through ..data, which is swapped.
    let swap = |name: &str| {
        let new = material.join("..data.new");
        std::os::unix::fs::symlink(bed.folder.join(name), &new).unwrap();
        fs::rename(new, material.join("..data")).unwrap();
    };
    swap("v1");
    for name in [KEY, CERTIFICATE, ROOTS] {
        std::os::unix::fs::symlink(Path::new("..data").join(name), material.join(name)).unwrap();
    }
    let folders = Folders { material: material.clone(), state: bed.folder.join("state") };
    let ca = Ca::open(Files { folders, revoked: material.join("revoked.yaml") }).unwrap();
    let mut changes = ca.changes();
    let started = std::time::Instant::now();
    tokio::select! {
        () = ca.follow() => {}
        () = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            swap("v2");
            tokio::time::timeout(DEADLINE, changes.changed()).await.expect("seen").unwrap();
        } => {}
    }
    assert!(started.elapsed() < LOOK / 2, "by the event, not by the clock");
    assert!(ca.authority().root().contains("BEGIN CERTIFICATE"));
    assert_eq!(ca.counters().rotations(), 1);
}
