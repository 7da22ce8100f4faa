pub(super) mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reflector::scripted::{DEADLINE, Server, list};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::ca::authenticate::Residents;
use crate::index;
use crate::mesh::Planned;
use crate::object::{Key, Object};

const HASTY: Timing = Timing {
    answer: DEADLINE,
    watch: Duration::from_secs(120),
    stalled: DEADLINE,
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(10),
    steady: Duration::from_secs(1),
};

/// What the mesh would hold.
struct Following {
    cluster: Cluster,
    objects: BTreeMap<Key, Object>,
}

impl Following {
    fn open(server: &Server, timing: Timing) -> Self {
        let api = Api::open(server.config(), DEADLINE).expect("a client");
        let cluster = Cluster::open(&api, timing);
        Self { cluster, objects: BTreeMap::new() }
    }

    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Set(object) => drop(self.objects.insert(object.key(), object)),
                Change::Remove(key) => {
                    self.objects.remove(&key).expect("what goes was there");
                }
            }
        }
    }

    async fn complete(&mut self) {
        let changes = timeout(DEADLINE, self.cluster.complete()).await.expect("it is heard of in whole");
        self.apply(changes);
    }

    /// Names, until they are these.
    async fn until(&mut self, expected: &[&str]) {
        while self.names() != expected {
            let next = timeout(DEADLINE, self.cluster.next()).await;
            let changes = next.unwrap_or_else(|_| panic!("{:?} is not {expected:?}", self.names()));
            self.apply(changes);
        }
    }

    async fn until_mistakes(&mut self, count: usize) -> Vec<Mistake> {
        while self.cluster.mistakes().len() != count {
            let next = timeout(DEADLINE, self.cluster.next()).await;
            let changes = next.unwrap_or_else(|_| panic!("{:#?}", self.cluster.mistakes()));
            self.apply(changes);
        }
        self.cluster.mistakes()
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(|key| &*key.name).collect()
    }

    fn get(&self, name: &str) -> &Object {
        self.objects.iter().find(|(key, _)| &*key.name == name).expect("it is there").1
    }
}

fn pod(name: &str, version: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "resourceVersion": version, "managedFields": [{"manager": 7}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": 5},
        },
        "spec": {"nodeName": "n1", "serviceAccountName": "default", "containers": [{"name": "c", "env": 9}]},
        "status": {"podIP": "10.0.0.1", "phase": "Running"},
    })
}

fn policy(name: &str, version: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version, "uid": "u", "generation": 1},
        "spec": spec,
    })
}

fn expired() -> Value {
    json!({"kind": "Status", "status": "Failure", "message": "too old resource version", "code": 410})
}

#[tokio::test]
async fn all_pages_of_all_kinds_are_read_before_it_is_complete() {
    let server = Server::start().await;
    let (mut pods, mut namespaces) = (server.asked("pods"), server.asked("namespaces"));
    let mut following = Following::open(&server, HASTY);
    let first = pods.list().await;
    assert!(first.query.contains("limit=250") && !first.query.contains("continue"), "{}", first.query);
    first.answer(200, &list("", "token/1", [pod("a", "1"), pod("b", "2")])).await;
    let second = pods.list().await;
    assert!(second.query.contains("continue=token%2F1"), "{}", second.query);
    second.answer(200, &list("9", "", [pod("c", "3")])).await;
    let _watch = pods.watch("9").await.open().await;
    let namespace = namespaces.list().await;
    assert!(namespace.accept.contains("as=PartialObjectMetadata"), "{}", namespace.accept);
    assert!(!following.cluster.held.is_complete(RESOURCES.iter().map(|one| one.kind)));
    let mut shop = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"});
    shop["metadata"] = json!({"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}});
    namespace.answer(200, &list("4", "", [shop])).await;
    following.complete().await;
    assert_eq!(following.names(), ["shop", "a", "b", "c"]);
    let Object::Pod(pod) = following.get("a") else { panic!("not a pod") };
    assert_eq!((&*pod.node, pod.addresses[0].to_string()), ("n1", "10.0.0.1".to_owned()));
    assert!(following.cluster.mistakes().is_empty(), "{:#?}", following.cluster.mistakes());
}

#[tokio::test]
async fn changes_come_and_a_watch_goes_on_from_the_last_bookmark() {
    let server = Server::start().await;
    let mut pods = server.asked("pods");
    let mut following = Following::open(&server, HASTY);
    pods.list().await.answer(200, &list("1", "", [pod("a", "1")])).await;
    let mut watch = pods.watch("1").await.open().await;
    following.complete().await;
    watch.event("ADDED", pod("b", "2")).await;
    following.until(&["a", "b"]).await;
    watch.event("DELETED", pod("a", "3")).await;
    following.until(&["b"]).await;
    watch.event("BOOKMARK", json!({"kind": "Pod", "metadata": {"resourceVersion": "77"}})).await;
    watch.end().await;
    let mut watch = pods.watch("77").await.open().await;
    watch.event("MODIFIED", pod("c", "78")).await;
    // Broken off in the middle of a line.
    watch.line("{\"type\":\"ADDED\",\"obj").await;
    drop(watch);
    let _watch = pods.watch("78").await.open().await;
    following.until(&["b", "c"]).await;
}

#[tokio::test]
async fn what_went_while_the_version_expired_is_gone_after_the_next_list() {
    let server = Server::start().await;
    let mut pods = server.asked("pods");
    let mut following = Following::open(&server, HASTY);
    pods.list().await.answer(200, &list("1", "", [pod("a", "1"), pod("b", "1")])).await;
    let mut watch = pods.watch("1").await.open().await;
    following.complete().await;
    watch.event("ERROR", expired()).await;
    pods.list().await.answer(200, &list("5", "", [pod("b", "1"), pod("c", "5")])).await;
    following.until(&["b", "c"]).await;
    // As an answer to the watch, and in the middle of the list.
    pods.watch("5").await.answer(410, &expired()).await;
    pods.list().await.answer(200, &list("", "more", [pod("d", "6")])).await;
    pods.list().await.answer(410, &expired()).await;
    let again = pods.list().await;
    assert!(!again.query.contains("continue"), "{}", again.query);
    following.until(&["b", "c", "d"]).await;
    again.answer(200, &list("7", "", [pod("c", "5"), pod("e", "7")])).await;
    following.until(&["c", "e"]).await;
}

#[tokio::test]
async fn a_watch_on_which_nothing_is_heard_is_given_up() {
    let server = Server::start().await;
    let mut pods = server.asked("pods");
    let timing = Timing { stalled: Duration::from_millis(50), ..HASTY };
    let mut following = Following::open(&server, timing);
    pods.list().await.answer(200, &list("1", "", [pod("a", "1")])).await;
    let silent = pods.watch("1").await.open().await;
    following.complete().await;
    silent.abandoned().await;
    let mut watch = pods.watch("1").await.open().await;
    watch.event("ADDED", pod("b", "2")).await;
    following.until(&["a", "b"]).await;
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_given_up() {
    let server = Server::start().await;
    let mut pods = server.asked("pods");
    let timing = Timing { answer: Duration::from_millis(200), ..HASTY };
    let mut following = Following::open(&server, timing);
    let silent = pods.list().await;
    let again = pods.list().await;
    drop(silent);
    again.answer(200, &list("1", "", [pod("a", "1")])).await;
    following.complete().await;
    assert_eq!(following.names(), ["a"]);
}

#[tokio::test]
async fn an_overloaded_and_confused_server_takes_nothing_away() {
    let server = Server::start().await;
    let mut pods = server.asked("pods");
    let mut following = Following::open(&server, HASTY);
    pods.list().await.answer(200, &list("1", "", [pod("a", "1"), pod("b", "1")])).await;
    let mut watch = pods.watch("1").await.open().await;
    following.complete().await;
    watch.event("ERROR", expired()).await;
    let whole = list("5", "", [pod("b", "1"), pod("c", "5")]);
    pods.list().await.refuse(429, "slow down").await;
    pods.list().await.refuse(500, "etcd is away").await;
    pods.list().await.send(503, "no JSON at all", 0).await;
    pods.list().await.answer_half(&whole).await;
    // As long as it was announced, and yet not whole.
    pods.list().await.send(200, &whole.to_string()[..90], 0).await;
    pods.list().await.answer(200, &json!({"metadata": {"resourceVersion": "5"}})).await;
    pods.list().await.answer(200, &json!({"metadata": {}, "items": []})).await;
    pods.list().await.send(200, "", 0).await;
    drop(pods.list().await);
    let last = pods.list().await;
    assert!(timeout(Duration::from_millis(1), following.cluster.next()).await.is_err(), "nothing differs");
    last.answer(200, &whole).await;
    following.until(&["b", "c"]).await;
    // The watch is asked for again from where it was: no list is needed for these.
    pods.watch("5").await.refuse(429, "slow down").await;
    pods.watch("5").await.refuse(503, "no").await;
    drop(pods.watch("5").await);
    let mut watch = pods.watch("5").await.open().await;
    watch.event("ADDED", pod("d", "6")).await;
    following.until(&["b", "c", "d"]).await;
    watch.event("NOVELTY", pod("x", "6")).await;
    let _watch = pods.watch("6").await.open().await;
}

#[tokio::test]
async fn a_version_that_is_refused_again_and_again_is_given_up() {
    let server = Server::start().await;
    let mut pods = server.asked("pods");
    let mut following = Following::open(&server, HASTY);
    pods.list().await.answer(200, &list("900", "", [pod("a", "1")])).await;
    for _ in 0..3 {
        pods.watch("900").await.refuse(504, "Timeout: Too large resource version: 900, current: 5").await;
    }
    pods.list().await.answer(200, &list("5", "", [pod("b", "2")])).await;
    let _watch = pods.watch("5").await.open().await;
    following.complete().await;
    following.until(&["b"]).await;
}

#[tokio::test]
async fn what_is_known_stays_while_the_server_is_away() {
    let mut server = Server::start().await;
    let mut pods = server.asked("pods");
    let mut following = Following::open(&server, HASTY);
    pods.list().await.answer(200, &list("1", "", [pod("a", "1"), pod("b", "1")])).await;
    let watch = pods.watch("1").await.open().await;
    following.complete().await;
    server.go_away().await;
    drop(watch);
    // Many pauses, each of 10 ms at most.
    let silence = timeout(Duration::from_millis(200), following.cluster.next()).await;
    assert!(silence.is_err(), "its absence changes nothing");
    server.come_back().await;
    pods.watch("1").await.answer(410, &expired()).await;
    pods.list().await.answer(200, &list("5", "", [pod("b", "1")])).await;
    following.until(&["b"]).await;
}

#[tokio::test]
async fn a_kind_that_is_not_installed_is_followed_once_it_is() {
    let server = Server::start().await;
    let mut policies = server.asked("authorizationpolicies");
    let mut following = Following::open(&server, HASTY);
    for _ in 0..3 {
        policies.list().await.send(404, "404 page not found\n", 0).await;
    }
    following.complete().await;
    policies.list().await.answer(200, &list("3", "", [policy("p", "3", json!({}))])).await;
    following.until(&["p"]).await;
    // Its definition goes with all objects, and the kind is absent again.
    let mut watch = policies.watch("3").await.open().await;
    watch.event("DELETED", policy("p", "4", json!({}))).await;
    watch.end().await;
    following.until(&[]).await;
    policies.watch("4").await.send(404, "404 page not found\n", 0).await;
    policies.list().await.send(404, "404 page not found\n", 0).await;
    policies.list().await.answer(200, &list("8", "", [policy("q", "8", json!({}))])).await;
    following.until(&["q"]).await;
}

#[tokio::test]
async fn a_kind_of_kubernetes_itself_is_waited_for() {
    let server = Server::start().await;
    let mut pods = server.asked("pods");
    let mut following = Following::open(&server, HASTY);
    pods.list().await.send(404, "404 page not found\n", 0).await;
    pods.list().await.refuse(403, "pods is forbidden").await;
    let last = pods.list().await;
    assert!(timeout(Duration::from_millis(20), following.cluster.complete()).await.is_err());
    last.answer(200, &list("1", "", [])).await;
    following.complete().await;
}

#[tokio::test]
async fn a_bad_object_is_named_and_the_others_are_in_force() {
    let server = Server::start().await;
    let (mut pods, mut policies) = (server.asked("pods"), server.asked("authorizationpolicies"));
    let mut following = Following::open(&server, HASTY);
    let mut bad = pod("bad", "1");
    bad["status"]["podIP"] = json!("10.0.0.x");
    pods.list().await.answer(200, &list("1", "", [bad, pod("good", "1"), json!(null), json!({})])).await;
    let misspelt =
        json!({"action": "ALLOW", "rules": [{"frm": []}, {"to": [{"operation": {"ports": ["80"]}}]}]});
    policies.list().await.answer(200, &list("1", "", [policy("p", "1", misspelt.clone())])).await;
    let mut watch = policies.watch("1").await.open().await;
    following.complete().await;
    assert_eq!(following.names(), ["good", "p"]);
    let mistakes = following.cluster.mistakes();
    let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("Kubernetes: Pod shop/bad: status.podIP: "), "{}", told[0]);
    let named = "Kubernetes: AuthorizationPolicy shop/p: spec.rules[0].frm: unknown key \"frm\"";
    assert!(told[1].starts_with(named), "{}", told[1]);
    assert_eq!(mistakes[1].object.as_ref().map(|key| &*key.name), Some("p"));
    let Object::AuthorizationPolicy(held) = following.get("p") else { panic!("not a policy") };
    assert_eq!(held.unread.len(), 1, "it is in force as far as it could be read, and the rest is closed");

    watch.event("MODIFIED", policy("p", "2", json!({"action": "DENY", "rules": [{}]}))).await;
    following.until_mistakes(1).await;
    let good = following.get("p").clone();
    watch.event("MODIFIED", policy("p", "3", misspelt)).await;
    following.until_mistakes(2).await;
    assert_eq!(*following.get("p"), good, "what was good stays in force");
    watch.event("DELETED", policy("p", "4", json!({}))).await;
    following.until_mistakes(1).await;
    assert_eq!(following.names(), ["good"]);
}

#[tokio::test]
async fn the_mesh_is_served_once_all_kinds_are_read() {
    let server = Server::start().await;
    let (mut pods, mut namespaces) = (server.asked("pods"), server.asked("namespaces"));
    let cluster = Following::open(&server, HASTY).cluster;
    let (writer, store) = crate::xds::store();
    let (planned, view) = Planned::new(index::Config::default(), writer);
    let started = tokio::spawn(planned.start_with(Vec::new(), Some(cluster)));
    let shop = json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}});
    namespaces.list().await.answer(200, &list("1", "", [shop])).await;
    let _namespaces = namespaces.watch("1").await.open().await;
    let last = pods.list().await;
    let identity = "spiffe://cluster.local/ns/shop/sa/default".parse().expect("it is an identity");
    assert!(!store.is_complete() && !view.may_hold("n1", &identity));
    last.answer(200, &list("1", "", [pod("a", "1")])).await;
    let mesh = timeout(DEADLINE, started).await.expect("it is heard of in whole").expect("no panic");
    assert!(store.is_complete() && view.may_hold("n1", &identity) && !view.may_hold("n2", &identity));

    // Its proxy asks for a certificate before the pod has an address.
    let mut watch = pods.watch("1").await.open().await;
    let _following = tokio::spawn(mesh.follow(tokio::sync::watch::channel(Arc::default()).1));
    let mut changes = view.changes();
    let mut early = json!({"metadata": {"name": "b", "namespace": "shop", "resourceVersion": "2"}});
    early["spec"] = json!({"serviceAccountName": "default", "containers": [{"name": "c"}]});
    early["status"] = json!({"phase": "Pending"});
    watch.event("ADDED", early.clone()).await;
    let mut changed =
        async || timeout(DEADLINE, changes.changed()).await.expect("it is heard of").expect("it is told");
    changed().await;
    assert!(!view.may_hold("n2", &identity), "it is on no node yet");
    early["spec"]["nodeName"] = "n2".into();
    watch.event("MODIFIED", early).await;
    changed().await;
    assert!(view.may_hold("n2", &identity));
}
