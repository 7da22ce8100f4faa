use super::super::tests::store::{Fault, Store};
use super::*;
use crate::ca::{Ca, Files, Folders};

const PATH: &str = "/api/v1/namespaces/ztunnel-system/secrets/ztunnel-ca";
const COLLECTION: &str = "/namespaces/ztunnel-system/secrets";

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("secret-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).expect("it is there")
    }

    fn names(&self) -> Vec<String> {
        let all = fs::read_dir(&self.0).expect("it is there");
        let mut names: Vec<_> =
            all.map(|one| one.expect("readable").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn secret(store: &Store, folder: &Folder) -> SigningSecret {
    let at = Name::new("ztunnel-system", "ztunnel-ca");
    let mut secret = SigningSecret::new(store.api(), at, folder.0.clone()).expect("a folder");
    secret.look = Duration::from_millis(5);
    secret
}

fn set(extra: bool) -> Value {
    let (root, key) = material::new_root().expect("a root");
    let encoded = |text: &str| BASE64_STANDARD.encode(text);
    let mut secret =
        json!({"data": {CERTIFICATE: encoded(&root), KEY: encoded(&key), ROOTS: encoded(&root)}});
    if extra {
        let (other, _) = material::new_root().expect("a root");
        secret["data"][EXTRA_ROOTS] = encoded(&other).into();
    }
    secret
}

fn decoded(secret: &Value, file: &str) -> String {
    let bytes = BASE64_STANDARD.decode(secret["data"][file].as_str().expect("text")).expect("base64");
    String::from_utf8(bytes).expect("text")
}

async fn complete(secret: &mut SigningSecret) {
    tokio::time::timeout(super::super::tests::store::DEADLINE, secret.complete())
        .await
        .expect("it is usable");
}

#[tokio::test]
async fn of_many_that_find_no_secret_one_makes_it_and_all_use_it() {
    let store = Store::start().await;
    let folders: Vec<_> = (0..8).map(|at| Folder::new(&format!("race{at}"))).collect();
    let mut secrets: Vec<_> = folders.iter().map(|folder| secret(&store, folder)).collect();
    futures::future::join_all(secrets.iter_mut().map(complete)).await;
    let made = store.get(PATH).expect("it was made");
    assert_eq!(
        (&made["type"], &made["metadata"]["labels"][MANAGED_BY]),
        (&json!("kubernetes.io/tls"), &json!(MANAGER))
    );
    assert!(store.asked("POST", COLLECTION).len() > 1, "there was a race");
    for folder in &folders {
        for file in [CERTIFICATE, KEY, ROOTS] {
            assert_eq!(folder.read(file), decoded(&made, file), "{file}");
        }
        let mode = fs::metadata(&folder.0).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let mode = fs::metadata(folder.0.join(KEY)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        Material::read(&folder.0, SystemTime::now()).expect("it can sign");
    }
}

#[tokio::test]
async fn a_secret_that_is_there_is_used_and_never_written() {
    let store = Store::start().await;
    let folder = Folder::new("there");
    store.put(PATH, set(true));
    fs::create_dir_all(folder.0.join("..left-over")).expect("a folder");
    let mut secret = secret(&store, &folder);
    complete(&mut secret).await;
    let held = store.get(PATH).expect("it is there");
    assert_eq!(folder.read(KEY), decoded(&held, KEY));
    assert_eq!(folder.read(EXTRA_ROOTS), decoded(&held, EXTRA_ROOTS));

    let ca = Folder::new("there-ca");
    let folders = Folders { material: folder.0.clone(), state: ca.0.clone() };
    let ca = Ca::open(Files { folders, revoked: ca.0.join("revoked.yaml") }).expect("it signs");
    let _following = tokio::spawn(secret.follow());
    let root = ca.authority().root();
    assert_eq!(root.matches("BEGIN CERTIFICATE").count(), 2);
    let new = set(false);
    store.put(PATH, new.clone());
    store.until("it is read again", |_| folder.read(CERTIFICATE) == decoded(&new, CERTIFICATE)).await;
    ca.look(SystemTime::now());
    assert_ne!(ca.authority().root(), root);
    let again = Ca::open(Files {
        folders: Folders { material: folder.0.clone(), state: Folder::new("there-2").0.clone() },
        revoked: folder.0.join("revoked.yaml"),
    });
    assert_eq!(
        again.expect("it signs").authority().root(),
        ca.authority().root(),
        "without the root of before"
    );
    store.until("what was before is gone", |_| folder.names().len() == 6).await;
    assert!(store.asked("POST", "").is_empty() && store.asked("PUT", "").is_empty());
    assert!(store.asked("PATCH", "").is_empty());
}

#[tokio::test]
async fn what_cannot_sign_is_not_taken() {
    let store = Store::start().await;
    let folder = Folder::new("unusable");
    let good = set(false);
    store.put(PATH, good.clone());
    let mut secret = secret(&store, &folder);
    complete(&mut secret).await;
    let mut mixed = set(false);
    mixed["data"][KEY] = good["data"][KEY].clone();
    let mut encoding = good.clone();
    encoding["data"][KEY] = "%%%".into();
    for (bad, told) in [
        (mixed, "certificate chain"),
        (encoding, "tls.key is not base64"),
        (json!({"data": {CERTIFICATE: "", KEY: "", ROOTS: ""}}), "tls.key is missing"),
        (json!({"data": "x"}), "tls.key is missing"),
        (json!({}), "tls.key is missing"),
    ] {
        store.put(PATH, bad.clone());
        let error = secret.take(true).await.expect_err("it is unusable").to_string();
        assert!(error.contains(told), "{error}");
        assert!(!error.contains("PRIVATE KEY"), "{error}");
        assert_eq!(folder.read(KEY), decoded(&good, KEY), "the good one stays");
    }
    store.delete(PATH);
    let error = secret.take(false).await.expect_err("it is gone").to_string();
    assert!(error.starts_with("404"), "{error}");
    assert!(store.get(PATH).is_none(), "another root would be no one's: a running CA makes none");
    assert_eq!(folder.names().len(), 6, "{:?}", folder.names());
}

#[tokio::test]
async fn it_waits_for_the_api_and_says_which_rule_is_missing() {
    let mut store = Store::start().await;
    let folder = Folder::new("waits");
    let mut one = secret(&store, &folder);
    store.fail("GET", COLLECTION, Fault::Refuse(403, "no"));
    let error = one.take(true).await.expect_err("it may not").to_string();
    assert!(error.starts_with("cannot get secrets in ztunnel-system: 403; the Role"), "{error}");
    store.fail("POST", COLLECTION, Fault::Refuse(403, "no"));
    let error = one.take(true).await.expect_err("it may not").to_string();
    assert!(error.starts_with("cannot create secrets in ztunnel-system: 403"), "{error}");
    assert!(!error.contains("PRIVATE"), "{error}");
    store.go_away().await;
    let completing = tokio::spawn(async move {
        complete(&mut one).await;
        one
    });
    tokio::task::yield_now().await;
    store.come_back().await;
    // Made, and then not said: what is there counts.
    store.fail("GET", COLLECTION, Fault::Say("garbage".to_owned()));
    store.fail("POST", COLLECTION, Fault::Lost);
    completing.await.expect("no panic");
    let made = store.get(PATH).expect("it was made");
    assert_eq!(folder.read(KEY), decoded(&made, KEY));
}
