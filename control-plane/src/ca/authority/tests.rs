use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::ca::material::{CERTIFICATE, KEY, ROOTS};

/// A folder of its own for each test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("controller-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn mode(&self, file: &str) -> u32 {
        fs::metadata(self.0.join(file)).unwrap().permissions().mode() & 0o777
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn workload(names: Vec<SubjectName>) -> Leaf {
    let now = SystemTime::now();
    Leaf { names, purpose: Purpose::Workload, not_before: now, not_after: now + Duration::from_secs(3600) }
}

#[test]
fn the_root_is_made_once_and_found_again() {
    let folder = Folder::new("again");
    let first = Authority::create_or_load(&folder.0).unwrap();
    assert_eq!((folder.mode(KEY), folder.mode(CERTIFICATE), folder.mode(ROOTS)), (0o600, 0o644, 0o644));
    let second = Authority::create_or_load(&folder.0).unwrap();
    assert_eq!(first.root(), second.root());
    assert_eq!(fs::read_to_string(folder.0.join(ROOT_CERTIFICATE)).unwrap(), first.root());
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 4, "no half-written file is left");
}

#[test]
fn a_loaded_root_still_signs_what_verifies_under_it() {
    let folder = Folder::new("signs");
    drop(Authority::create_or_load(&folder.0).unwrap());
    let authority = Authority::create_or_load(&folder.0).unwrap();
    let (_, chain) = authority
        .issue_with_new_key(&workload(vec![SubjectName::Uri("spiffe://td/ns/a/sa/b".to_owned())]))
        .unwrap();
    let (_, root) = x509_parser::pem::parse_x509_pem(chain[1].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
    let (root, leaf) = (root.parse_x509().unwrap(), leaf.parse_x509().unwrap());
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(leaf.issuer(), root.subject());
}

#[test]
fn a_key_without_its_certificate_gets_a_new_one() {
    let folder = Folder::new("half");
    Authority::create_or_load(&folder.0).unwrap();
    let key = fs::read(folder.0.join(KEY)).unwrap();
    fs::remove_file(folder.0.join(CERTIFICATE)).unwrap();
    fs::remove_file(folder.0.join(ROOTS)).unwrap();
    let again = Authority::create_or_load(&folder.0).unwrap();
    assert_eq!(fs::read_to_string(folder.0.join(ROOT_CERTIFICATE)).unwrap(), again.root());
    assert_eq!(fs::read(folder.0.join(KEY)).unwrap(), key);
}

#[test]
fn a_certificate_whose_key_is_lost_is_not_replaced() {
    let folder = Folder::new("lost");
    Authority::create_or_load(&folder.0).unwrap();
    fs::remove_file(folder.0.join(KEY)).unwrap();
    let error = Authority::create_or_load(&folder.0).unwrap_err().to_string();
    assert!(error.contains(KEY) && error.contains("missing"), "{error}");
    assert!(!folder.0.join(KEY).exists());
}

#[test]
fn a_leaf_never_outlives_the_root_and_bad_names_are_refused() {
    let authority = Authority::ephemeral().unwrap();
    let mut leaf = workload(vec![SubjectName::Host("127.0.0.1".to_owned())]);
    leaf.not_after = SystemTime::now() + 100 * 365 * SERVER_LIFETIME / 7;
    let (_, chain) = authority.issue_with_new_key(&leaf).unwrap();
    let (_, block) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
    let (_, root) = x509_parser::pem::parse_x509_pem(chain[1].as_bytes()).unwrap();
    let (leaf, root) = (block.parse_x509().unwrap(), root.parse_x509().unwrap());
    assert!(leaf.validity().not_after <= root.validity().not_after);
    let error =
        authority.issue_with_new_key(&workload(vec![SubjectName::Host("ümlaut".to_owned())])).unwrap_err();
    assert!(matches!(error, Error::Name { .. }), "{error}");
}

#[test]
fn every_root_has_a_name_of_its_own_and_no_key_is_printed() {
    let (a, b) = (Authority::ephemeral().unwrap(), Authority::ephemeral().unwrap());
    let subject = |authority: &Authority| {
        let (_, block) = x509_parser::pem::parse_x509_pem(authority.root().as_bytes()).unwrap();
        block.parse_x509().unwrap().subject().to_string()
    };
    assert_ne!(subject(&a), subject(&b));
    assert!(!format!("{a:?}").contains("PRIVATE"));
}

#[test]
fn the_servers_certificate_is_renewed_long_before_its_end() {
    let authority = Authority::ephemeral().unwrap();
    let made = authority.server_certificate(&["127.0.0.1".to_owned()]).unwrap();
    assert_eq!(made.chain.len(), 1, "the roots are the client's own business");
    let left = made.renew_at.duration_since(SystemTime::now()).unwrap();
    assert!(left > SERVER_LIFETIME / 3 && left <= SERVER_LIFETIME / 2, "{left:?}");
}
