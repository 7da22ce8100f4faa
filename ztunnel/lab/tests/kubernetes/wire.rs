//! What passes between the nodes: tcpdump in the host's network namespace of each node, told apart by what is said there.

use super::apps::{LEGACY, MARKER, image, nodes};
use super::kubectl::{apply, eventually, exec, json, kubectl};

const WATCH: &str = "ztunnel-suite-wire";

/// Begins to watch on every node. Only what comes from or goes to another machine counts, which no address of a pod or node
/// on a virtual interface of its own does.
pub fn watch() {
    let image = image();
    let command = "dev=$(ip route get NODE | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p'); \
        exec tcpdump -i $dev -s 0 -U -w /tmp/wire tcp and not port 6443 and not port 10250";
    let mut manifests = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {LEGACY}}}\n");
    let [first, second] = nodes();
    for (node, other) in [(&first, &second), (&second, &first)] {
        let address = address(other);
        let command = command.replace("NODE", &address);
        manifests += &format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {WATCH}-{node}, namespace: {LEGACY}}}, spec: {{nodeName: {node}, hostNetwork: true, \
             terminationGracePeriodSeconds: 0, tolerations: [{{operator: Exists}}], containers: [{{name: main, image: {image}, securityContext: {{privileged: true}}, command: [sh, -c, {command:?}]}}]}}}}\n"
        );
    }
    apply(&manifests);
    for node in [&first, &second] {
        eventually("the wire is watched", || {
            exec(&format!("{LEGACY}/{WATCH}-{node}"), &["test", "-s", "/tmp/wire"]).map(drop)
        });
    }
}

fn address(node: &str) -> String {
    let node = json(&["get", "node", node]);
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let internal =
        addresses.into_iter().find(|one| one["type"] == "InternalIP").expect("nodes have addresses");
    internal["address"].as_str().expect("a text").to_owned()
}

/// How often the marker was seen in plaintext so far.
pub fn plaintext() -> usize {
    nodes().iter().map(|node| count(node)).sum()
}

/// Of those that one node has seen.
pub fn count(node: &str) -> usize {
    let script = format!("grep -a -o {MARKER} /tmp/wire | wc -l");
    let counted = exec(&format!("{LEGACY}/{WATCH}-{node}"), &["sh", "-c", &script]);
    let counted = counted.unwrap_or_else(|error| panic!("{error}"));
    counted.trim().parse().unwrap_or_else(|_| panic!("wc said {counted:?}"))
}

/// What was seen there is forgotten.
pub fn stop(node: &str) {
    kubectl(&["delete", "pod", "--namespace", LEGACY, &format!("{WATCH}-{node}"), "--ignore-not-found"]);
}
