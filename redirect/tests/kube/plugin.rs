//! What the CNI plugin is answered.

use std::time::Duration;

use redirect::cni::{Request, Sandbox};
use reflector::scripted::{Server, list};

use crate::bed::{Following, HASTY, Node, answered, labelled, namespace, pod, sandbox, uid};

const POD: &str = "/api/v1/namespaces/shop/pods/a";

#[tokio::test]
async fn a_new_pod_is_answered_once_it_is_served() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    let mut following = Following::start(&node).await;
    let _watches = following.listed(vec![namespace(Some("ambient"))], vec![]).await;
    following.until(&[]).await;
    let mut asked = following.server.asked(POD);
    let mut outcome = following.add(sandbox("a", &netns, "10.0.0.1")).await;
    // The watch has not told of it, nor has it an address.
    asked.next().await.answer(200, &pod("a", &[])).await;
    assert!(outcome.try_recv().is_err(), "nobody serves it yet");
    following.serve(&uid("a"), Ok(())).await;
    assert_eq!(following.pod("a").netns.path(), Some(&*netns));
    assert_eq!(following.pod("a").addresses, sandbox("a", &netns, "10.0.0.1").addresses);
    assert_eq!(answered(outcome).await, Ok(()));
}

#[tokio::test]
async fn what_the_agent_cannot_capture_does_not_start() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    let mut following = Following::start(&node).await;
    let _watches =
        following.listed(vec![namespace(Some("ambient"))], vec![pod("a", &[]), pod("b", &[])]).await;
    let outcome = following.add(sandbox("a", &netns, "10.0.0.1")).await;
    following.serve(&uid("a"), Err("the port is taken".to_owned())).await;
    assert_eq!(answered(outcome).await, Err("the port is taken".to_owned()));
    let outcome = following.add(sandbox("b", &netns, "10.0.0.2")).await;
    let why = answered(outcome).await.expect_err("its address is not there");
    assert!(why.contains("10.0.0.2") && why.contains(&*netns.to_string_lossy()), "{why}");
}

#[tokio::test]
async fn a_pod_that_no_proxy_serves_is_refused_in_time() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    let deadline = Duration::from_millis(100);
    let mut following = Following::with(&node, Server::start().await, HASTY, deadline);
    let _watches = following.listed(vec![namespace(Some("ambient"))], vec![pod("a", &[])]).await;
    let outcome = following.add(sandbox("a", &netns, "10.0.0.1")).await;
    let _ask = loop {
        if let Some(ask) = following.next().await.ask.take() {
            break ask;
        }
    };
    assert!(answered(outcome).await.is_err_and(|why| why.contains("no proxy serves the pod")));
}

#[tokio::test]
async fn pods_outside_the_mesh_are_not_kept_waiting() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    let mut following = Following::start(&node).await;
    let listed = vec![labelled(pod("opted-out", &[]), "none")];
    let (mut namespaces, _pods) = following.listed(vec![namespace(Some("ambient"))], listed).await;
    following.until(&[]).await;
    let out = following.add(sandbox("opted-out", &netns, "10.0.0.1")).await;
    assert_eq!(answered(out).await, Ok(()));
    // Of a namespace that is not enrolled nothing needs to be known but that.
    namespaces.event("MODIFIED", namespace(None)).await;
    let mut asked = following.server.asked(POD);
    let outcome = following.add(sandbox("a", &netns, "10.0.0.1")).await;
    asked.next().await.refuse(500, "etcd is away").await;
    assert_eq!(answered(outcome).await, Ok(()));
}

#[tokio::test]
async fn an_older_pod_of_the_same_name_is_not_taken_for_the_new_one() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    let mut following = Following::start(&node).await;
    let (_namespaces, mut pods) =
        following.listed(vec![namespace(Some("ambient"))], vec![pod("a", &[])]).await;
    let mut asked = following.server.asked(POD);
    let newer = Sandbox { uid: Some("newer".to_owned()), ..sandbox("a", &netns, "10.0.0.1") };
    let mut outcome = following.add(newer).await;
    asked.next().await.answer(200, &pod("a", &[])).await;
    asked.next().await.answer(200, &pod("a", &[])).await;
    assert!(outcome.try_recv().is_err());
    let mut object = pod("a", &[]);
    object["metadata"]["uid"] = "newer".into();
    asked.next().await.answer(200, &object).await;
    following.serve("newer", Ok(())).await;
    assert_eq!(answered(outcome).await, Ok(()));
    // The watch is behind: what it tells of the older one is not about the newer one.
    pods.event("MODIFIED", pod("a", &["10.0.0.7"])).await;
    pods.event("DELETED", pod("a", &["10.0.0.7"])).await;
    while following.last.unlocated.iter().any(|pod| pod.uid == uid("a")) {
        following.next().await;
    }
    assert_eq!(following.pod("a").uid, "newer");
}

#[tokio::test]
async fn who_a_pod_is_is_waited_for_and_then_it_does_not_start() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    let deadline = Duration::from_millis(300);
    let mut following = Following::with(&node, Server::start().await, HASTY, deadline);
    let _watches = following.listed(vec![namespace(Some("ambient"))], vec![]).await;
    following.until(&[]).await;
    let mut asked = following.server.asked(POD);
    let mut outcome = following.add(sandbox("a", &netns, "10.0.0.1")).await;
    let answer = loop {
        tokio::select! {
            ask = asked.next() => ask.refuse(500, "etcd is away").await,
            answer = &mut outcome => break answer,
        }
    };
    let why = answer.expect("the source lives").expect_err("it is meshed and nobody knows as whom");
    assert!(why.contains("shop/a") && why.contains("etcd is away"), "{why}");
}

#[tokio::test]
async fn after_a_reboot_without_the_api_only_what_was_enrolled_is_held() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    std::fs::write(node.folder.join("enrolled"), r#"{"namespaces":["shop"]}"#).expect("written");
    let mut server = Server::start().await;
    server.go_away().await;
    let deadline = Duration::from_millis(300);
    let following = Following::with(&node, server, HASTY, deadline);
    let held = following.add(sandbox("a", &netns, "10.0.0.1")).await;
    let other = Sandbox { namespace: "other".to_owned(), ..sandbox("b", &netns, "10.0.0.2") };
    let passed = following.add(other).await;
    assert_eq!(answered(passed).await, Ok(()));
    let why = answered(held).await.expect_err("it may be meshed");
    assert!(why.contains("shop/a") && why.contains("cannot be reached"), "{why}");
}

#[tokio::test]
async fn before_the_first_list_a_new_pod_is_captured_and_nothing_else_is_said() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    let mut following = Following::start(&node).await;
    following.namespaces.list().await.answer(200, &list("1", "", vec![namespace(Some("ambient"))])).await;
    let rest = following.pods.list().await;
    let mut asked = following.server.asked(POD);
    let outcome = following.add(sandbox("a", &netns, "10.0.0.1")).await;
    asked.next().await.answer(200, &pod("a", &[])).await;
    following.serve(&uid("a"), Ok(())).await;
    assert!(!following.last.complete, "an earlier agent's pods are not known yet");
    assert_eq!(answered(outcome).await, Ok(()));
    rest.answer(200, &list("3", "", vec![pod("a", &["10.0.0.1"])])).await;
    assert!(following.next().await.complete);
    assert_eq!(following.names(), ["a"]);
}

#[tokio::test]
async fn a_sandbox_that_goes_lets_go_of_its_namespace_and_not_of_its_successors() {
    let mut node = Node::new();
    let (first, second) =
        (node.namespace("1", &["10.0.0.1"]).await, node.namespace("2", &["10.0.0.2"]).await);
    let mut following = Following::start(&node).await;
    let _watches = following.listed(vec![namespace(Some("ambient"))], vec![pod("a", &[])]).await;
    let outcome = following.add(sandbox("a", &first, "10.0.0.1")).await;
    following.serve(&uid("a"), Ok(())).await;
    assert_eq!(answered(outcome).await, Ok(()));
    let gone = |container: &str| Request::Del {
        container_id: container.to_owned(),
        namespace: "shop".to_owned(),
        name: "a".to_owned(),
        uid: None,
    };
    following.requests.send(gone("container-a")).await.expect("the source lives");
    following.until_unlocated(&[&uid("a")]).await;
    let successor = Sandbox { container_id: "next".to_owned(), ..sandbox("a", &second, "10.0.0.2") };
    let outcome = following.add(successor).await;
    following.serve(&uid("a"), Ok(())).await;
    assert_eq!(answered(outcome).await, Ok(()));
    following.requests.send(gone("container-a")).await.expect("the source lives");
    following.stays(&["a"], Duration::from_millis(20)).await;
    assert_eq!(following.pod("a").netns.path(), Some(&*second));
}

#[tokio::test]
async fn the_plugin_is_told_which_namespaces_are_enrolled() {
    let node = Node::new();
    let mut following = Following::start(&node).await;
    let (mut namespaces, _pods) = following.listed(vec![namespace(Some("ambient"))], vec![]).await;
    following.until(&[]).await;
    let told = || std::fs::read_to_string(&following.enrolled).unwrap_or_default();
    assert_eq!(told(), r#"{"namespaces":["shop"]}"#);
    namespaces.event("MODIFIED", namespace(None)).await;
    let until = tokio::time::Instant::now() + reflector::scripted::DEADLINE;
    while told() != r#"{"namespaces":[]}"# {
        assert!(tokio::time::Instant::now() < until, "it is told");
        tokio::task::yield_now().await;
    }
}
