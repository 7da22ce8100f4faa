//! The whole agent: rules in a pod that Kubernetes says is in the mesh, and none in one that is not.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use redirect::agent::{Config, Role, run};
use redirect::client::{Client, Event};
use redirect::netns::Netns;
use redirect::source::kube;
use reflector::scripted::{DEADLINE, Open, Server, list};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::bed::{HASTY, Node, namespace, pod, uid};

async fn rules(netns: &Path) -> Vec<Vec<u8>> {
    let inside = Netns::open(netns).expect("it is there");
    inside.run(|| redirect::rules::dump().expect("a dump")).await.expect("work in the namespace")
}

struct Agent {
    socket: PathBuf,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
    namespaces: Open,
    _pods: Open,
    _server: Server,
}

/// An agent that has heard of these.
async fn agent(node: &Node, namespaces: Vec<Value>, pods: Vec<Value>) -> Agent {
    let server = Server::start().await;
    let (mut asked_pods, mut asked_namespaces) = (server.asked("pods"), server.asked("namespaces"));
    let source = kube::Config {
        api: server.config(),
        timing: HASTY,
        node: "n1".to_owned(),
        locator: node.locator(),
        cni: None,
    };
    let socket = node.folder.join("redirect.sock");
    let role = Role::Kubernetes { source: Box::new(source), socket: None };
    // The tests run as root.
    let config = Config {
        socket: socket.clone(),
        proxy_uid: 0,
        role,
        audit_period: std::time::Duration::from_secs(5),
        probe_uid: 0,
        status: None,
        placed: None,
    };
    let (end, ended) = oneshot::channel::<()>();
    // All of its tasks end with its runtime, as they do with a process.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            tokio::select! {
                outcome = run(config) => drop(outcome.unwrap_or_else(|error| panic!("{error}"))),
                _ = ended => {}
            }
        });
    });
    asked_namespaces.list().await.answer(200, &list("1", "", namespaces)).await;
    asked_pods.list().await.answer(200, &list("1", "", pods)).await;
    let namespaces = asked_namespaces.watch("1").await.open().await;
    let _pods = asked_pods.watch("1").await.open().await;
    Agent { socket, end, thread, namespaces, _pods, _server: server }
}

impl Agent {
    fn end(self) {
        drop(self.end);
        self.thread.join().expect("no panic");
    }

    async fn client(&self) -> Client {
        let connect = async {
            loop {
                match Client::connect(&self.socket, Vec::new()).await {
                    Ok(client) => return client,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        timeout(DEADLINE, connect).await.expect("the agent listens")
    }
}

async fn until(netns: &Path, what: impl Fn(&[Vec<u8>]) -> bool) {
    let waits = async {
        while !what(&rules(netns).await) {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, waits).await.expect("rules as expected");
}

#[tokio::test]
async fn rules_follow_the_label() {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    node.process(100, &uid("a"), &netns);
    let before = rules(&netns).await;
    let listed = vec![pod("a", &["10.0.0.1"])];
    let mut agent = agent(&node, vec![namespace(Some("ambient"))], listed).await;
    let mut client = agent.client().await;
    loop {
        let event = timeout(DEADLINE, client.next()).await.expect("an event comes");
        if let Event::PodAdded(pod) = event.unwrap_or_else(|error| panic!("{error}")) {
            assert_eq!((&*pod.uid, &*pod.name), (&*uid("a"), "a"));
            break;
        }
    }
    assert_ne!(rules(&netns).await, before);
    agent.namespaces.event("MODIFIED", namespace(None)).await;
    loop {
        let event = timeout(DEADLINE, client.next()).await.expect("an event comes");
        if let Event::PodLeaving { uid } = event.unwrap_or_else(|error| panic!("{error}")) {
            assert_ne!(rules(&netns).await, before, "what was captured goes on");
            client.handle().drained(&uid);
            break;
        }
    }
    until(&netns, |now| now == before).await;
    agent.end();
}

#[tokio::test]
async fn a_successor_withdraws_what_left_the_mesh_and_keeps_what_it_cannot_find() {
    let mut node = Node::new();
    // Both are found by a process only; that of one is gone when the successor looks.
    let mut paths = Vec::new();
    for (number, (name, address)) in [("left", "10.0.0.1"), ("lost", "10.0.0.2")].into_iter().enumerate() {
        let netns = node.hidden_namespace(name, &[address]).await;
        node.process(100 + number as u32, &uid(name), &netns);
        paths.push(netns);
    }
    let before = rules(&paths[0]).await;
    let listed = vec![pod("left", &["10.0.0.1"]), pod("lost", &["10.0.0.2"])];
    let first = agent(&node, vec![namespace(Some("ambient"))], listed).await;
    until(&paths[0], |now| now != before).await;
    until(&paths[1], |now| now != before).await;
    first.end();
    assert_ne!(rules(&paths[0]).await, before, "rules outlive the agent");
    node.end_process(101);
    let second = agent(&node, vec![namespace(Some("ambient"))], vec![pod("lost", &["10.0.0.2"])]).await;
    until(&paths[0], |now| now == before).await;
    assert_ne!(rules(&paths[1]).await, before, "it is wanted, wherever it is");
    second.end();
}
