//! What an API server does to those who follow it changes nothing that was not said.

use std::time::Duration;

use reflector::Timing;
use reflector::scripted::{Server, list};
use serde_json::{Value, json};

use crate::bed::{Following, HASTY, Node, answered, namespace, pod, sandbox, uid};

async fn node_of(names: &[(&str, &str)]) -> Node {
    let mut node = Node::new();
    for (number, (name, address)) in names.iter().enumerate() {
        let netns = node.namespace(name, &[address]).await;
        node.process(100 + number as u32, &uid(name), &netns);
    }
    node
}

fn expired() -> Value {
    json!({"kind": "Status", "status": "Failure", "message": "too old resource version", "code": 410})
}

#[tokio::test]
async fn a_confused_or_overloaded_server_takes_no_pod_away() {
    let node = node_of(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]).await;
    let mut following = Following::start(&node).await;
    let (a, b) = (pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.2"]));
    let (_namespaces, mut pods) = following.listed(vec![namespace(Some("ambient"))], vec![a.clone()]).await;
    following.until(&["a"]).await;
    pods.event("ERROR", expired()).await;
    following.pods.list().await.refuse(429, "slow down").await;
    following.pods.list().await.answer_half(&list("5", "", vec![b.clone()])).await;
    following.pods.list().await.send(503, "no JSON at all", 0).await;
    let last = following.pods.list().await;
    following.stays(&["a"], Duration::from_millis(20)).await;
    last.answer(200, &list("5", "", vec![a, b.clone()])).await;
    following.until(&["a", "b"]).await;
    // And what went meanwhile is gone with the list that does not have it.
    following.pods.watch("5").await.answer(410, &expired()).await;
    following.pods.list().await.answer(200, &list("6", "", vec![b])).await;
    following.until(&["b"]).await;
}

#[tokio::test]
async fn a_watch_that_is_stalled_is_begun_anew() {
    let node = node_of(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]).await;
    let timing = Timing { stalled: Duration::from_millis(50), ..HASTY };
    let mut following = Following::with(&node, Server::start().await, timing, Duration::from_secs(8));
    following.namespaces.list().await.answer(200, &list("1", "", vec![namespace(Some("ambient"))])).await;
    following.pods.list().await.answer(200, &list("1", "", vec![pod("a", &["10.0.0.1"])])).await;
    let silent = following.pods.watch("1").await.open().await;
    following.until(&["a"]).await;
    silent.abandoned().await;
    let mut watch = following.pods.watch("1").await.open().await;
    watch.event("ADDED", pod("b", &["10.0.0.2"])).await;
    following.until(&["a", "b"]).await;
}

#[tokio::test]
async fn nothing_changes_while_the_server_is_away() {
    let node = node_of(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]).await;
    let mut following = Following::start(&node).await;
    let (a, b) = (pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.2"]));
    let watches = following.listed(vec![namespace(Some("ambient"))], vec![a, b.clone()]).await;
    following.until(&["a", "b"]).await;
    following.server.go_away().await;
    drop(watches);
    // Many tries, and a look whether the namespaces are still there.
    following.stays(&["a", "b"], Duration::from_millis(1200)).await;
    following.server.come_back().await;
    following.pods.watch("1").await.answer(410, &expired()).await;
    following.pods.list().await.answer(200, &list("5", "", vec![b])).await;
    following.until(&["b"]).await;
}

/// With the pauses of a node, but for the longest, which is longer than a test waits.
#[tokio::test]
async fn a_minute_without_the_server_loses_nothing_and_starts_no_pod_in_plaintext() {
    let mut node = node_of(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]).await;
    let netns = node.namespace("c", &["10.0.0.3"]).await;
    node.process(102, &uid("c"), &netns);
    let timing = Timing { longest_pause: Duration::from_secs(5), ..Timing::default() };
    let mut following = Following::with(&node, Server::start().await, timing, Duration::from_secs(8));
    let (a, b) = (pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.2"]));
    let watches = following.listed(vec![namespace(Some("ambient"))], vec![a.clone(), b]).await;
    following.until(&["a", "b"]).await;
    following.server.go_away().await;
    drop(watches);
    following.stays(&["a", "b"], Duration::from_secs(30)).await;
    let asked = following.add(sandbox("c", &netns, "10.0.0.3")).await;
    following.stays(&["a", "b"], Duration::from_secs(30)).await;
    let refused = answered(asked).await.expect_err("nobody knows whether it is to be captured");
    assert!(refused.contains("shop/c"), "{refused}");
    following.server.come_back().await;
    following.pods.watch("1").await.answer(410, &expired()).await;
    following.pods.list().await.answer(200, &list("5", "", vec![a, pod("c", &["10.0.0.3"])])).await;
    following.until(&["a", "c"]).await;
}

#[tokio::test]
async fn nothing_is_told_before_everything_was_heard() {
    let node = node_of(&[("a", "10.0.0.1")]).await;
    let mut following = Following::start(&node).await;
    following.namespaces.list().await.answer(200, &list("1", "", vec![namespace(Some("ambient"))])).await;
    following.pods.list().await.answer(200, &list("", "more", vec![pod("a", &["10.0.0.1"])])).await;
    let rest = following.pods.list().await;
    following.stays(&[], Duration::from_millis(20)).await;
    assert!(!following.last.complete);
    rest.answer(200, &list("1", "", vec![])).await;
    assert!(following.next().await.complete);
    assert_eq!(following.names(), ["a"]);
}
