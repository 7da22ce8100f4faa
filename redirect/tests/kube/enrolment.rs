//! Labels decide, both ways.

use reflector::scripted::DEADLINE;
use serde_json::json;
use tokio::time::timeout;

use crate::bed::{Following, Node, labelled, namespace, notice, pod, uid};

#[tokio::test]
async fn a_label_on_the_namespace_counts_both_ways_without_a_restart() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1", "fd00::1"]).await;
    node.process(100, &uid("a"), &netns);
    let mut following = Following::start(&node).await;
    let (mut namespaces, _pods) =
        following.listed(vec![namespace(None)], vec![pod("a", &["10.0.0.1", "fd00::1"])]).await;
    following.until(&[]).await;
    for _ in 0..3 {
        namespaces.event("MODIFIED", namespace(Some("ambient"))).await;
        following.until(&["a"]).await;
        let told = following.pod("a");
        assert_eq!((&*told.uid, &*told.service_account, &*told.namespace), (&*uid("a"), "web", "shop"));
        assert_eq!(told.netns.path(), Some(&*netns));
        assert_eq!(told.addresses.len(), 2);
        namespaces.event("MODIFIED", namespace(Some("none"))).await;
        following.until(&[]).await;
    }
    // What nobody knows enrols nobody.
    namespaces.event("MODIFIED", namespace(Some("ambient"))).await;
    following.until(&["a"]).await;
    namespaces.event("MODIFIED", namespace(Some("sidecar"))).await;
    following.until(&[]).await;
}

#[tokio::test]
async fn a_label_on_the_pod_decides_before_its_namespace() {
    let mut node = Node::new();
    for (number, (name, address)) in [("in", "10.0.0.1"), ("out", "10.0.0.2")].into_iter().enumerate() {
        let netns = node.namespace(name, &[address]).await;
        node.process(100 + number as u32, &uid(name), &netns);
    }
    let mut following = Following::start(&node).await;
    let (inside, outside) = (pod("in", &["10.0.0.1"]), pod("out", &["10.0.0.2"]));
    let listed = vec![labelled(inside.clone(), "ambient"), labelled(outside.clone(), "none")];
    let (mut namespaces, mut pods) = following.listed(vec![namespace(None)], listed).await;
    following.until(&["in"]).await;
    namespaces.event("MODIFIED", namespace(Some("ambient"))).await;
    pods.event("MODIFIED", outside).await;
    following.until(&["in", "out"]).await;
    pods.event("MODIFIED", labelled(inside, "none")).await;
    following.until(&["out"]).await;
}

#[tokio::test]
async fn a_pod_that_ends_leaves_the_mesh() {
    let mut node = Node::new();
    let netns = node.namespace("job", &["10.0.0.1"]).await;
    node.process(100, &uid("job"), &netns);
    let mut following = Following::start(&node).await;
    let mut job = pod("job", &["10.0.0.1"]);
    let (_namespaces, mut pods) = following.listed(vec![namespace(Some("ambient"))], vec![job.clone()]).await;
    following.until(&["job"]).await;
    job["status"]["phase"] = json!("Succeeded");
    pods.event("MODIFIED", job).await;
    following.until(&[]).await;
}

#[tokio::test]
async fn what_cannot_be_done_is_told_on_the_pod_and_once() {
    let node = Node::new();
    let mut following = Following::start(&node).await;
    let mut events = following.server.asked("events");
    let mut sidecar = pod("sidecar", &["10.0.0.1"]);
    sidecar["metadata"]["annotations"] = json!({"sidecar.istio.io/status": "{}"});
    let odd = labelled(pod("odd", &[]), "Ambient");
    let (_namespaces, mut pods) =
        following.listed(vec![namespace(Some("ambient"))], vec![sidecar.clone(), odd.clone()]).await;
    following.until(&[]).await;
    let mut posted = Vec::new();
    for _ in 0..2 {
        let event = events.next().await;
        assert_eq!(event.path, "/api/v1/namespaces/shop/events");
        let body = event.body.clone();
        posted.push((
            body["involvedObject"]["name"].as_str().unwrap_or_default().to_owned(),
            body["reason"].as_str().unwrap_or_default().to_owned(),
        ));
        assert_eq!((&body["type"], &body["involvedObject"]["kind"]), (&json!("Warning"), &json!("Pod")));
        assert_eq!(body["involvedObject"]["uid"], json!(uid(&posted[posted.len() - 1].0)));
        event.answer(201, &body).await;
    }
    posted.sort();
    let expected = [("odd", "UnknownLabel"), ("sidecar", "NotCaptured")];
    assert_eq!(posted, expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())));
    // Said again by the API server; a notice that comes after it is the next event.
    sidecar["metadata"]["resourceVersion"] = json!("3");
    pods.event("MODIFIED", sidecar).await;
    following.notices.tell(notice("stranger", "nobody knows it"));
    following.notices.tell(notice("odd", "by the agent"));
    following.notices.tell(notice("odd", "by the agent"));
    let event = events.next().await;
    assert_eq!(event.body["message"], json!("by the agent"));
    event.answer(201, &json!({})).await;
    following.notices.tell(notice("odd", "something else"));
    let event = timeout(DEADLINE, events.next()).await.expect("an event");
    assert_eq!(event.body["message"], json!("something else"));
}
