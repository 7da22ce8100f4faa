//! The namespace that is captured is the pod's, or none.

use std::path::Path;
use std::time::Duration;

use redirect::locate::{Error, Wanted};

use crate::bed::{Following, Node, namespace, pod, uid};

fn wanted(name: &str, addresses: &[&str]) -> Wanted {
    let addresses = addresses.iter().map(|ip| ip.parse().expect("an address")).collect();
    Wanted { uid: uid(name), known_as: uid(name), addresses }
}

#[tokio::test]
async fn a_namespace_is_the_pods_only_if_its_addresses_are_inside() {
    let mut node = Node::new();
    let right = node.namespace("right", &["10.0.0.1"]).await;
    let wrong = node.namespace("wrong", &["10.0.0.9"]).await;
    let hidden = node.hidden_namespace("hidden", &["10.0.0.3"]).await;
    let own = Path::new("/proc/self/ns/net");
    node.process(10, &uid("several"), own);
    node.process(11, &uid("several"), &wrong);
    node.process(12, &uid("several"), &right);
    node.process(13, &uid("host"), own);
    node.process(14, &uid("moved"), &wrong);
    node.process(15, &uid("hidden"), &hidden);
    std::fs::create_dir(node.folder.join("proc/16")).expect("a process that has just ended");
    let locator = node.locator();
    let found = locator
        .find(vec![
            wanted("several", &["10.0.0.1"]),
            wanted("host", &["127.0.0.1"]),
            wanted("moved", &["10.0.0.1"]),
            wanted("half", &["10.0.0.1"]),
            wanted("hidden", &["10.0.0.3"]),
        ])
        .await;
    let mut found = found.into_iter().map(|(_, outcome)| outcome);
    let mut next = || found.next().expect("one for each");
    assert_eq!(next().expect("one of them is right").place.path(), Some(&*right));
    assert!(matches!(next(), Err(Error::Hosts { .. })));
    assert!(matches!(next(), Err(Error::Foreign { .. })));
    assert!(matches!(next(), Err(Error::NoProcess { .. })));
    let by_process = next().expect("found by its process");
    assert_eq!(by_process.place.path(), Some(&*node.folder.join("proc/15/ns/net")));
    assert!(by_process.is_there());
    node.end_process(15);
    assert!(!by_process.is_there(), "the path ends with the process");
    let two = locator.find(vec![wanted("several", &["10.0.0.1", "10.0.0.9"])]).await;
    assert!(matches!(two[0].1, Err(Error::Foreign { .. })), "each address must be inside");
    let none = locator.find(vec![wanted("several", &[])]).await;
    assert!(matches!(none[0].1, Err(Error::NoAddress)));
}

#[tokio::test]
async fn what_the_plugin_tells_is_not_believed_either() {
    let mut node = Node::new();
    let right = node.namespace("right", &["10.0.0.1"]).await;
    let locator = node.locator();
    let address = ["10.0.0.1".parse().expect("an address")];
    assert!(locator.prove(&right, &address).await.is_ok());
    let other = ["10.0.0.2".parse().expect("an address")];
    assert!(matches!(locator.prove(&right, &other).await, Err(Error::Foreign { .. })));
    let own = locator.prove(Path::new("/proc/self/ns/net"), &address).await;
    assert!(matches!(own, Err(Error::Hosts { .. })));
    let missing = locator.prove(Path::new("/nowhere"), &address).await;
    assert!(matches!(missing, Err(Error::Namespace(error)) if error.is_gone()));
}

#[tokio::test]
async fn one_bad_pod_keeps_no_other_waiting_and_is_named() {
    let mut node = Node::new();
    let mut listed = Vec::new();
    for number in 0..50 {
        let (name, address) = (format!("good-{number:02}"), format!("10.0.0.{}", number + 1));
        let netns = node.namespace(&name, &[&address]).await;
        node.process(100 + number, &uid(&name), &netns);
        listed.push(pod(&name, &[&address]));
    }
    let wrong = node.namespace("wrong", &["10.0.1.9"]).await;
    node.process(200, &uid("wrong"), &wrong);
    node.process(201, &uid("host"), Path::new("/proc/self/ns/net"));
    listed.extend([pod("wrong", &["10.0.1.1"]), pod("host", &["10.0.1.2"]), pod("lost", &["10.0.1.3"])]);
    let mut following = Following::start(&node).await;
    let mut events = following.server.asked("events");
    let begun = tokio::time::Instant::now();
    let _watches = following.listed(vec![namespace(Some("ambient"))], listed).await;
    following.next().await;
    assert_eq!(following.last.pods.len(), 50, "in the first list");
    assert_eq!(following.last.unlocated.len(), 3, "and the others are known as wanted");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let mut named = Vec::new();
    for _ in 0..3 {
        let event = events.next().await;
        let body = event.body.clone();
        named.push(body["involvedObject"]["name"].as_str().unwrap_or_default().to_owned());
        assert!(body["message"].as_str().is_some_and(|text| text.contains("namespace")), "{body}");
        event.answer(201, &body).await;
    }
    named.sort();
    assert_eq!(named, ["host", "lost", "wrong"]);
    while following.last.unlocated.iter().any(|pod| pod.reason.is_none()) {
        following.next().await;
    }
    assert!(following.last.unlocated.iter().all(|pod| pod.strict && pod.addresses.len() == 1));
}

/// Not one list for each pod, nor one look.
#[tokio::test]
async fn pods_that_come_at_once_are_told_at_once() {
    const PODS: u32 = 250;
    let mut node = Node::new();
    let mut following = Following::start(&node).await;
    let (_namespaces, mut pods) = following.listed(vec![namespace(Some("ambient"))], vec![]).await;
    following.until(&[]).await;
    let mut expected = Vec::new();
    for number in 0..PODS {
        let (name, address) = (format!("p{number:03}"), format!("10.0.0.{number}"));
        let netns = node.namespace(&name, &[&address]).await;
        node.process(100 + number, &uid(&name), &netns);
        expected.push((name, address));
    }
    let begun = tokio::time::Instant::now();
    for (name, address) in &expected {
        pods.event("ADDED", pod(name, &[address])).await;
    }
    let mut lists = 0;
    while following.next().await.pods.len() < PODS as usize {
        lists += 1;
    }
    let took = begun.elapsed();
    println!("{PODS} pods told in {took:?} with {lists} lists before the last");
    assert!(lists < 50 && took < Duration::from_secs(5), "{lists} lists, {took:?}");
}

#[tokio::test]
async fn a_namespace_that_is_gone_is_let_go_and_its_successor_found() {
    let mut node = Node::new();
    let first = node.namespace("first", &["10.0.0.1"]).await;
    node.process(100, &uid("a"), &first);
    let mut following = Following::start(&node).await;
    let (_namespaces, mut pods) =
        following.listed(vec![namespace(Some("ambient"))], vec![pod("a", &["10.0.0.1"])]).await;
    following.until(&["a"]).await;
    node.end_process(100);
    node.remove(&first);
    following.until_unlocated(&[&uid("a")]).await;
    let second = node.namespace("second", &["10.0.0.2"]).await;
    node.process(101, &uid("a"), &second);
    pods.event("MODIFIED", pod("a", &["10.0.0.2"])).await;
    following.until(&["a"]).await;
    assert_eq!(following.pod("a").netns.path(), Some(&*second));
}
