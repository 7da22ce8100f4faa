//! The pods of the story: real programs, in a namespace that joins the mesh and in one that never does.

use serde_json::Value;

use super::kubectl::{self, apply, eventually, exec, json, kubectl, require};

pub const SHOP: &str = "ztunnel-suite-shop";
pub const LEGACY: &str = "ztunnel-suite-legacy";
/// Asks nginx on the other node as soon as it runs, and goes on.
pub const EARLY: &str = "ztunnel-suite-shop/early";
/// Passes over the wire in every request, so that plaintext is recognised.
pub const MARKER: &str = "plaintext-marker-4711";

/// Of the pods of the story, and of those that watch the wire.
pub fn image() -> String {
    std::env::var("ZTUNNEL_SUITE_IMAGE").unwrap_or_else(|_| "localhost/apps:1".to_owned())
}

/// The names of two nodes that run pods, in order.
pub fn nodes() -> [String; 2] {
    let nodes = json(&["get", "nodes"]);
    let names =
        nodes["items"].as_array().into_iter().flatten().filter_map(|node| node["metadata"]["name"].as_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names.truncate(2);
    names.try_into().expect("the suite needs a cluster of two nodes")
}

/// A pod that a node runs for ever; `command` is a shell's.
fn pod(namespace: &str, name: &str, node: &str, command: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}, \
         spec: {{nodeName: {node}, terminationGracePeriodSeconds: 1, containers: [{{name: main, image: {}, \
         command: [sh, -c, {command:?}]}}]}}}}\n",
        image()
    )
}

const NGINX: &str = "printf 'events {} http { access_log off; server { listen 8080; listen [::]:8080; location / { add_header \
    X-Server $hostname; return 200 \"MARKER\\n\"; } } }' > /tmp/nginx.conf && exec nginx -g 'daemon off; pid /tmp/nginx.pid;' -c /tmp/nginx.conf";

/// nginx on every node behind a Service, probed by HTTP; clients, redis, and iperf3; nothing of it in the mesh yet.
pub fn create() {
    let [first, second] = nodes();
    let nginx = NGINX.replace("MARKER", MARKER);
    let mut manifests = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {SHOP}}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {LEGACY}}}\n---\n\
         {{apiVersion: v1, kind: Service, metadata: {{name: nginx, namespace: {SHOP}}}, spec: {{ipFamilyPolicy: PreferDualStack, selector: {{app: nginx}}, ports: [{{port: 80, targetPort: 8080}}]}}}}\n"
    );
    manifests += &pod(SHOP, "client", &first, "exec sleep 1000000");
    manifests += &pod(LEGACY, "legacy", &first, "exec sleep 1000000");
    manifests +=
        &pod(SHOP, "redis", &second, "exec redis-server --bind '* -::*' --protected-mode no --save ''");
    manifests += &pod(
        SHOP,
        "early",
        &second,
        &format!(
            "while :; do curl --silent --max-time 1 http://${{NGINX_SERVICE_HOST:-nginx}}/?{MARKER}; sleep 0.02; done"
        ),
    );
    manifests += &pod(SHOP, "iperf", &second, "exec iperf3 --server");
    manifests += &format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: nginx, namespace: {SHOP}}}\nspec:\n  replicas: 2\n  \
         selector: {{matchLabels: {{app: nginx}}}}\n  strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}\n  template:\n    metadata: {{labels: {{app: nginx}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 10\n      topologySpreadConstraints:\n      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {{matchLabels: {{app: nginx}}}}}}\n      \
         containers:\n      - name: main\n        image: {image}\n        command: [sh, -c, {nginx:?}]\n        lifecycle: {{preStop: {{exec: {{command: [sleep, '5']}}}}}}\n        \
         readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}\n        livenessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1, failureThreshold: 3}}\n        \
         startupProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1, failureThreshold: 60}}\n",
        image = image(),
    );
    apply(&manifests);
    ready();
}

/// Waits until every pod of the story is ready.
pub fn ready() {
    for namespace in [SHOP, LEGACY] {
        eventually("the pods of the story are ready", || {
            let pods = pods(namespace);
            let waiting: Vec<&str> = pods.iter().filter(|pod| !is_ready(pod)).map(name).collect();
            require(!pods.is_empty() && waiting.is_empty(), format!("{namespace}: {waiting:?}"))
        });
    }
}

pub fn pods(namespace: &str) -> Vec<Value> {
    match json(&["get", "pods", "--namespace", namespace])["items"].take() {
        Value::Array(pods) => pods,
        other => panic!("a list of pods is {other}"),
    }
}

pub fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().expect("pods have names")
}

pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// Uid and restarts of each pod: equal as long as none was started again.
pub fn lives(namespace: &str) -> Vec<(String, u64)> {
    let restarts = |pod: &Value| {
        let containers = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        containers.filter_map(|one| one["restartCount"].as_u64()).sum()
    };
    pods(namespace).iter().map(|pod| (pod["metadata"]["uid"].to_string(), restarts(pod))).collect()
}

/// How often the container of a pod was started again.
pub fn starts(pod: &str) -> u64 {
    let (namespace, name) = pod.split_once('/').expect("NAMESPACE/NAME");
    let pod = json(&["get", "pod", "--namespace", namespace, name]);
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

pub fn addresses(pod: &str) -> Vec<String> {
    let (namespace, name) = pod.split_once('/').expect("NAMESPACE/NAME");
    let pod = json(&["get", "pod", "--namespace", namespace, name]);
    let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
    addresses.filter_map(|one| one["ip"].as_str().map(str::to_owned)).collect()
}

/// Asks nginx by its Service, and says the marker over the wire.
pub fn ask(from: &str) -> Result<String, String> {
    exec(from, &["curl", "--silent", "--show-error", "--fail", "--max-time", "5", &url()])
}

/// Of nginx by its Service, with the marker in it.
pub fn url() -> String {
    let service = json(&["get", "service", "--namespace", SHOP, "nginx"]);
    format!("http://{}/?{MARKER}", service["spec"]["clusterIP"].as_str().expect("it has an address"))
}

pub fn label(namespace: &str, mode: Option<&str>) {
    let label =
        mode.map_or("istio.io/dataplane-mode-".to_owned(), |mode| format!("istio.io/dataplane-mode={mode}"));
    kubectl(&["label", "namespace", namespace, &label, "--overwrite"]);
}

pub fn delete() {
    kubectl(&["delete", "namespace", SHOP, LEGACY, "--ignore-not-found", "--wait=true"]);
}

/// The sum of a metric over the proxies of all nodes.
pub fn proxies(metric: &str, labels: &[&str]) -> f64 {
    let pods =
        json(&["get", "pods", "--namespace", super::SYSTEM, "--selector", "app.kubernetes.io/name=ztunnel"]);
    let pods = pods["items"].as_array().into_iter().flatten();
    let names = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).map(name);
    let sum = |text: String| -> f64 {
        let lines = text
            .lines()
            .filter(|line| line.starts_with(metric) && labels.iter().all(|label| line.contains(label)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    names
        .map(|pod| eventually("its metrics", || kubectl::get(super::SYSTEM, pod, 15020, "/metrics")))
        .map(sum)
        .sum()
}
