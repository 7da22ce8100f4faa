//! What the agent says on a pod: that it takes tunnels.

use std::time::Duration;

use reflector::scripted::{Ask, Asked, Open};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::bed::{Following, Node, namespace, pod, uid};

const REDIRECTION: &str = "ambient.istio.io/redirection";

fn marked(name: &str, address: &str) -> Value {
    let mut pod = pod(name, &[address]);
    pod["metadata"]["annotations"] = json!({REDIRECTION: "enabled"});
    pod
}

struct Bed {
    following: Following,
    written: Asked,
    namespaces: Open,
    pods: Open,
    _node: Node,
}

async fn bed(pods: Vec<Value>) -> Bed {
    let mut node = Node::new();
    let netns = node.namespace("a", &["10.0.0.1"]).await;
    node.process(100, &uid("a"), &netns);
    let mut following = Following::start(&node).await;
    let written = following.server.asked("status");
    let (namespaces, pods) = following.listed(vec![namespace(Some("ambient"))], pods).await;
    following.until(&["a"]).await;
    Bed { following, written, namespaces, pods, _node: node }
}

impl Bed {
    fn serve(&self, name: &str) {
        self.following.served.send_if_modified(|served| served.insert(uid(name)));
    }

    /// The next one, which says this of the pod.
    async fn says(&mut self, name: &str, value: Value) -> Ask {
        let ask = self.written.next().await;
        assert!(ask.path.ends_with(&format!("/pods/{name}/status")), "{}", ask.path);
        let expected = json!({"metadata": {"uid": uid(name), "annotations": {REDIRECTION: value}}});
        assert_eq!(ask.body, expected);
        ask
    }

    async fn silent(&mut self) {
        let next = timeout(Duration::from_millis(300), self.written.next()).await;
        assert!(next.is_err(), "nothing is to be written: {:?}", next.map(|ask| ask.body));
    }
}

#[tokio::test]
async fn a_pod_is_marked_once_it_is_served_and_until_it_leaves() {
    let mut bed = bed(vec![pod("a", &["10.0.0.1"])]).await;
    bed.silent().await;
    bed.serve("a");
    bed.says("a", json!("enabled")).await.refuse(500, "an accident").await;
    bed.says("a", json!("enabled")).await.answer(200, &json!({})).await;
    bed.pods.event("MODIFIED", marked("a", "10.0.0.1")).await;
    // Its proxy is gone, and it is captured as before.
    bed.following.served.send_modify(|served| served.clear());
    bed.silent().await;
    bed.namespaces.event("MODIFIED", namespace(None)).await;
    bed.says("a", Value::Null).await.answer(200, &json!({})).await;
    bed.pods.event("MODIFIED", pod("a", &["10.0.0.1"])).await;
    bed.silent().await;
}

#[tokio::test]
async fn what_an_earlier_agent_said_stays_until_all_is_known_and_what_somebody_takes_away_comes_back() {
    let mut bed = bed(vec![marked("a", "10.0.0.1"), marked("b", "10.0.0.2")]).await;
    bed.serve("a");
    bed.silent().await;
    bed.pods.event("MODIFIED", pod("a", &["10.0.0.1"])).await;
    bed.says("a", json!("enabled")).await.answer(200, &json!({})).await;
}

#[tokio::test]
async fn a_pod_that_is_no_member_is_unmarked() {
    let mut outside = marked("b", "10.0.0.2");
    outside["metadata"]["labels"] = json!({"istio.io/dataplane-mode": "none"});
    let mut bed = bed(vec![marked("a", "10.0.0.1"), outside]).await;
    bed.says("b", Value::Null).await.answer(200, &json!({})).await;
}
