use std::sync::{Arc, Mutex};

use super::super::tests::store::{Fault, Store};
use super::*;

const PATH: &str = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/p";
const EVENTS_PATH: &str = "/apis/events.k8s.io/v1/namespaces/shop/events";

struct Mesh {
    all: Arc<Mutex<BTreeMap<Key, Verdict>>>,
    changes: watch::Sender<u64>,
}

impl Mesh {
    fn new() -> Self {
        Self { all: Arc::default(), changes: watch::Sender::new(0) }
    }

    fn set(&self, name: &str, enforced: Enforced, reasons: &[&str]) {
        let key = Key::new(Kind::AuthorizationPolicy, &Name::new("shop", name));
        let reasons = reasons.iter().map(ToString::to_string).collect();
        self.all.lock().expect("no panic").insert(key, Verdict { enforced, reasons });
        self.changes.send_modify(|count| *count += 1);
    }

    fn reporter(&self, store: &Store) -> Reporter {
        let all = self.all.clone();
        let all = Box::new(move || all.lock().expect("no panic").clone());
        let verdicts = Verdicts { all, changes: self.changes.subscribe() };
        Reporter::new(store.api(), "controller-1".to_owned(), verdicts)
    }
}

fn policy() -> Value {
    json!({"metadata": {"name": "p", "namespace": "shop", "uid": "u1", "generation": 3}, "spec": {}})
}

fn held(store: &Store) -> Value {
    store.get(PATH).map(|policy| policy["status"]["conditions"][0].clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_policy_gets_its_condition_once_and_another_when_it_differs() {
    let store = Store::start().await;
    let mesh = Mesh::new();
    store.put(PATH, policy());
    mesh.set("p", Enforced::Fully, &[]);
    mesh.set("of-a-folder", Enforced::Not, &["spec: no"]);
    let mut reporter = mesh.reporter(&store);
    let running = tokio::spawn(async move { reporter.run().await });
    store.until("it has one", |store| held(store)["status"] == "True").await;
    let first = held(&store);
    assert_eq!((&first["type"], &first["reason"]), (&json!("ZtunnelAccepted"), &json!("Accepted")));
    assert_eq!((&first["observedGeneration"], &first["message"]), (&json!(3), &json!("attached to ztunnel")));
    let patch = store.asked("PATCH", "/status");
    assert_eq!(patch.len(), 1);
    assert_eq!(patch[0].query, "fieldManager=ztunnel-controller&force=false");

    mesh.set("p", Enforced::Partly, &["spec.rules[0].frm: unknown key; did you mean from?"]);
    store.until("it is told in part", |store| held(store)["reason"] == "UnsupportedValue").await;
    assert_eq!(held(&store)["status"], "True");
    assert_eq!(held(&store)["lastTransitionTime"], first["lastTransitionTime"], "it is still accepted");
    store.until("there is an event", |store| !store.asked("POST", "/events").is_empty()).await;
    let event = store.asked("POST", EVENTS_PATH).remove(0).body;
    assert_eq!(event["note"], "spec.rules[0].frm: unknown key; did you mean from?");
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("PolicyPartlyEnforced")));
    assert_eq!(event["regarding"]["uid"], "u1");

    mesh.set("p", Enforced::Not, &["spec.action: AUDIT"]);
    store.until("it is refused", |store| held(store)["status"] == "False").await;
    store.until("there is another event", |store| store.asked("POST", "/events").len() == 2).await;
    assert_eq!(store.asked("POST", EVENTS_PATH)[1].body["reason"], "PolicyRefused");
    assert!(store.asked("PATCH", "of-a-folder").is_empty(), "what is not in the cluster has no status");
    running.abort();
}

#[tokio::test]
async fn a_namespace_whose_label_cannot_be_read_gets_an_event_and_no_status() {
    let store = Store::start().await;
    let mesh = Mesh::new();
    store.put("/api/v1/namespaces/shop", json!({"metadata": {"name": "shop", "uid": "u2"}}));
    let key = Key::new(Kind::Namespace, &Name::new("", "shop"));
    let verdict = Verdict { enforced: Enforced::Not, reasons: vec!["write ambient or none".to_owned()] };
    mesh.all.lock().expect("no panic").insert(key, verdict);
    mesh.reporter(&store).all().await.expect("it is well");
    assert!(store.asked("PATCH", "").is_empty());
    let event = store.asked("POST", "/apis/events.k8s.io/v1/namespaces/default/events").remove(0).body;
    assert_eq!((&event["reason"], &event["note"]), (&json!("UnknownLabel"), &json!("write ambient or none")));
    assert_eq!(
        event["regarding"],
        json!({"apiVersion": "v1", "kind": "Namespace", "name": "shop", "namespace": "", "uid": "u2"})
    );
}

#[tokio::test]
async fn the_next_leader_repeats_nothing() {
    let store = Store::start().await;
    let mesh = Mesh::new();
    store.put(PATH, policy());
    mesh.set("p", Enforced::Not, &["spec: no"]);
    mesh.reporter(&store).all().await.expect("it is well");
    mesh.reporter(&store).all().await.expect("an event that is there is no trouble");
    assert_eq!(store.asked("PATCH", "").len(), 1);
    let names: HashSet<String> =
        store.asked("POST", "").iter().map(|asked| asked.body["metadata"]["name"].to_string()).collect();
    assert_eq!(names.len(), 1);
    // It was written anew, with the same mistake.
    let mut again = store.get(PATH).expect("it is there");
    again["metadata"]["generation"] = 4.into();
    store.put(PATH, again);
    mesh.reporter(&store).all().await.expect("it is well");
    assert_eq!(held(&store)["observedGeneration"], 4);
}

#[tokio::test]
async fn what_may_not_be_written_is_told_and_keeps_no_other_from_its_own() {
    let store = Store::start().await;
    let mesh = Mesh::new();
    store.put(PATH, policy());
    mesh.set("p", Enforced::Not, &["spec: no"]);
    for (method, part, fault, told) in [
        (
            "GET",
            "authorizationpolicies",
            Fault::Refuse(403, "no"),
            "cannot get authorizationpolicies in shop: 403",
        ),
        (
            "PATCH",
            "/status",
            Fault::Refuse(403, "no"),
            "cannot patch authorizationpolicies/status in shop: 403",
        ),
        ("POST", "/events", Fault::Refuse(403, "no"), "cannot create events in shop: 403"),
        ("PATCH", "/status", Fault::Refuse(500, "etcd"), "500 etcd"),
        ("GET", "authorizationpolicies", Fault::Say("7".to_owned()), "it is no object"),
    ] {
        store.put(PATH, policy());
        store.fail(method, part, fault);
        let trouble = mesh.reporter(&store).all().await.expect_err("it is trouble").to_string();
        assert!(trouble.contains(told), "{trouble}");
    }
    let other = PATH.replace("/p", "/q");
    let mut second = policy();
    (second["metadata"]["name"], second["metadata"]["uid"]) = ("q".into(), "u2".into());
    store.put(&other, second);
    mesh.set("q", Enforced::Not, &["spec: no"]);
    for (method, part, code) in [("GET", "/p", 403), ("PATCH", "/p/status", 422), ("POST", "/events", 403)] {
        store.put(PATH, policy());
        store.fail(method, part, Fault::Refuse(code, "exceeded quota"));
        let mut reporter = mesh.reporter(&store);
        reporter.all().await.expect_err("it is told of the first");
        let key = Key::new(Kind::AuthorizationPolicy, &Name::new("shop", "q"));
        assert!(reporter.reported.contains_key(&key), "and the second is reported: {method} {part}");
        reporter.all().await.expect("and the first is, later");
    }
    for code in [409, 404] {
        store.put(PATH, policy());
        store.fail("PATCH", "/status", Fault::Refuse(code, "another manager, or no such part"));
        let mut reporter = mesh.reporter(&store);
        reporter.all().await.expect("it is left alone");
        assert_eq!(reporter.told.len(), 1);
    }
    assert_eq!(cut("ää", 3), "ä");
    let long = Key::new(Kind::AuthorizationPolicy, &Name::new("shop", format!("{}-b", "a".repeat(199))));
    let verdict = Verdict { enforced: Enforced::Not, reasons: Vec::new() };
    let name = event("me", &long, &policy(), &verdict)["metadata"]["name"].to_string();
    assert!(
        name.contains("aa.") && !name.contains('-'),
        "a part of a name is none where it ends in a hyphen: {name}"
    );
}
