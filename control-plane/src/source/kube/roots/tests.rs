use std::sync::Mutex;

use super::super::tests::store::{DEADLINE, Fault, Store};
use super::*;

const NAME: &str = "istio-ca-root-cert";

/// What the mesh is.
struct Mesh {
    roots: Arc<Mutex<String>>,
    namespaces: Arc<Mutex<Vec<Arc<str>>>>,
    changes: watch::Sender<u64>,
}

fn mesh(namespaces: &[&str]) -> Mesh {
    Mesh {
        roots: Arc::new(Mutex::new("root 1".to_owned())),
        namespaces: Arc::new(Mutex::new(namespaces.iter().map(|one| Arc::from(*one)).collect())),
        changes: watch::Sender::new(0),
    }
}

fn publisher(store: &Store, mesh: &Mesh, look: Duration) -> RootPublisher {
    let (roots, namespaces) = (mesh.roots.clone(), mesh.namespaces.clone());
    let wanted = Wanted {
        roots: Box::new(move || roots.lock().expect("no panic").clone()),
        namespaces: Box::new(move || namespaces.lock().expect("no panic").clone()),
        changes: [mesh.changes.subscribe(), mesh.changes.subscribe()],
    };
    let mut publisher = RootPublisher::new(store.api(), NAME.to_owned(), "ztunnel-system".to_owned(), wanted);
    publisher.look = look;
    publisher
}

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps/{NAME}")
}

fn content(store: &Store, namespace: &str) -> Option<String> {
    store.get(&path(namespace)).and_then(|held| held["data"][KEY].as_str().map(str::to_owned))
}

fn made_by(labels: &Value, namespace: &str, roots: &str) -> Value {
    json!({"metadata": {"name": NAME, "namespace": namespace, "labels": labels}, "data": {KEY: roots}})
}

#[tokio::test]
async fn every_namespace_gets_the_roots_its_own_first_and_they_are_kept_right() {
    let store = Store::start().await;
    let mesh = mesh(&["default", "shop", "ztunnel-system"]);
    let mut publisher = publisher(&store, &mesh, Duration::from_millis(5));
    let running = tokio::spawn(async move { publisher.run().await });
    let all = ["default", "shop", "ztunnel-system"];
    let so = |roots: &'static str| {
        move |store: &Store| all.iter().all(|namespace| content(store, namespace).as_deref() == Some(roots))
    };
    store.until("all have it", so("root 1")).await;
    let written = store.asked("PATCH", "configmaps");
    assert!(written[0].path.contains("/ztunnel-system/"), "{written:?}");
    assert_eq!(written[0].kind, "application/apply-patch+yaml");
    assert_eq!(written[0].query, "fieldManager=ztunnel-controller&force=false");
    assert_eq!(written[0].body["metadata"]["labels"], json!({MANAGED_BY: MANAGER}));

    store.delete(&path("shop"));
    store.until("it is there again", so("root 1")).await;
    let mut edited = store.get(&path("default")).expect("it is there");
    edited["data"][KEY] = "rogue".into();
    edited["metadata"]["labels"] = json!({});
    edited["metadata"]["managedFields"] =
        json!([{"manager": MANAGER, "operation": "Apply"}, {"manager": "kubectl"}]);
    store.put(&path("default"), edited);
    store.until("it is corrected", so("root 1")).await;
    assert!(store.asked("PATCH", "/default/").last().expect("some").query.ends_with("force=true"));
    "root 2".clone_into(&mut mesh.roots.lock().expect("no panic"));
    store.until("the new roots are there", so("root 2")).await;

    let looks = |store: &Store| store.asked("GET", "configmaps").len();
    let (written, looked) = (store.asked("PATCH", "").len(), looks(&store));
    store.until("it is looked at again", |store| looks(store) > looked + 3).await;
    assert_eq!(store.asked("PATCH", "").len(), written, "what is right is not written");
    running.abort();
}

#[tokio::test]
async fn a_new_namespace_and_new_roots_are_seen_to_without_a_look_at_all() {
    let store = Store::start().await;
    let mesh = mesh(&["a"]);
    let mut publisher = publisher(&store, &mesh, Duration::from_secs(3600));
    let running = tokio::spawn(async move { publisher.run().await });
    store.until("it has it", |store| content(store, "a").is_some()).await;
    let added = async {
        mesh.namespaces.lock().expect("no panic").push("b".into());
        mesh.changes.send_modify(|count| *count += 1);
        store.until("the new one has it", |store| content(store, "b").is_some()).await;
        "root 2".clone_into(&mut mesh.roots.lock().expect("no panic"));
        mesh.changes.send_modify(|count| *count += 1);
        store.until("they have it", |store| content(store, "b").as_deref() == Some("root 2")).await;
    };
    tokio::time::timeout(DEADLINE, added).await.expect("it is seen to");
    running.abort();
}

#[tokio::test]
async fn what_another_one_made_is_left_alone() {
    let store = Store::start().await;
    let mesh = mesh(&["equal", "istio", "marked", "ours"]);
    let istio = json!({"istio.io/config": "true"});
    store.put(&path("equal"), made_by(&json!({}), "equal", "root 1"));
    store.put(&path("istio"), made_by(&istio, "istio", "istio's root"));
    let mut marked = made_by(&istio, "marked", "istio's root");
    marked["metadata"]["labels"][MANAGED_BY] = MANAGER.into();
    store.put(&path("marked"), marked);
    let mut publisher = publisher(&store, &mesh, LOOK);
    publisher.all().await.expect("it is well");
    assert_eq!(content(&store, "istio").as_deref(), Some("istio's root"));
    assert_eq!(content(&store, "marked").as_deref(), Some("istio's root"));
    assert_eq!(content(&store, "ours").as_deref(), Some("root 1"));
    assert_eq!(store.asked("PATCH", "").len(), 1);
    assert_eq!(publisher.told.len(), 3);
}

#[tokio::test]
async fn what_is_wrong_in_one_namespace_keeps_no_other_from_its_own() {
    let store = Store::start().await;
    let mesh = mesh(&["a", "b", "c", "d"]);
    store.fail("PATCH", "/a/", Fault::Refuse(404, "namespaces \"a\" not found"));
    store.fail("PATCH", "/b/", Fault::Refuse(403, "unable to create: namespace b is being terminated"));
    store.fail("PATCH", "/c/", Fault::Refuse(409, "conflict"));
    let mut publisher = publisher(&store, &mesh, LOOK);
    publisher.all().await.expect("none of these is trouble");
    assert_eq!(content(&store, "d").as_deref(), Some("root 1"));
    publisher.all().await.expect("it is well");
    assert_eq!(content(&store, "c").as_deref(), Some("root 1"));
    ["a", "b", "d"]
        .iter()
        .filter(|one| content(&store, one).is_some())
        .for_each(|one| store.delete(&path(one)));
    store.fail(
        "PATCH",
        "/a/",
        Fault::Refuse(403, "exceeded quota: objects, used: configmaps=10, limited: configmaps=10"),
    );
    publisher.all().await.expect_err("it is told");
    assert_eq!(content(&store, "b").as_deref(), Some("root 1"), "and the others have it");
    publisher.all().await.expect("it is well");
    for (method, fault, told) in [
        ("GET", Fault::Refuse(403, "no"), "cannot list configmaps in the cluster: 403; the ClusterRole"),
        ("GET", Fault::Say("{\"items\":{}}".to_owned()), "a list without items"),
        ("GET", Fault::Say("garbage".to_owned()), "no JSON"),
        ("GET", Fault::Hang, "cannot be reached"),
        ("PATCH", Fault::Refuse(403, "no"), "cannot patch configmaps in d: 403; the Role or ClusterRole"),
    ] {
        if store.get(&path("d")).is_some() {
            store.delete(&path("d"));
        }
        store.fail(method, "configmaps", fault);
        let trouble = publisher.all().await.expect_err("it is trouble").to_string();
        assert!(trouble.contains(told), "{trouble}");
    }
    publisher.all().await.expect("it is well");
    assert_eq!(content(&store, "d").as_deref(), Some("root 1"));
}
