use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::*;

/// A folder in the temporary one, and what a lab would make of it.
struct Bed {
    path: PathBuf,
    folder: Folder,
    cluster: Cluster,
}

impl Bed {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("lab-manifests-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        let bed = Self { folder: Folder::new(&path), path, cluster: Cluster::default() };
        files.iter().for_each(|(name, text)| bed.write(name, text));
        bed
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path.join(file), text).expect("a file");
    }

    /// What is added to the manifests, and all mistakes as texts without the folder.
    fn look(&mut self) -> (Vec<Value>, Vec<String>) {
        self.folder.read();
        let plan = plan(&self.folder, &self.cluster);
        self.cluster = plan.cluster;
        let mistakes = self.folder.mistakes().iter().chain(&plan.mistakes).map(ToString::to_string);
        let folder = format!("{}/", self.path.display());
        let mistakes = mistakes.map(|text| text.replace(&folder, "")).collect();
        (plan.manifests["items"].as_array().cloned().expect("a list"), mistakes)
    }

    fn pods(&self) -> Vec<String> {
        let text = |pod: &Pod| format!("{} {} {} {}", pod.path(), pod.node, pod.addresses[0], pod.netns);
        self.cluster.pods.iter().map(text).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn pod(path: &str) -> String {
    let (namespace, name) = path.split_once('/').expect("a path");
    format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n")
}

fn item<'a>(items: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = items.iter().find(|item| item["kind"] == kind && item["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name} in {items:#?}"))
}

#[test]
fn the_built_in_lab_is_valid_and_meshed_by_the_controllers_rule() {
    let mut bed = Bed::new("builtin", &default::FILES);
    let (items, mistakes) = bed.look();
    assert_eq!(mistakes, Vec::<String>::new());
    assert_eq!(bed.cluster.nodes.iter().map(|node| &node.name[..]).collect::<Vec<_>>(), ["node1", "node2"]);
    bed.write(
        "added.json",
        &serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string(),
    );
    // As in a lab, where the completed manifests lie in a folder of their own.
    for (name, _) in default::FILES {
        fs::remove_file(bed.path.join(name)).expect("it was written");
    }
    let meshed = meshed(&bed.path);
    let inside: Vec<&str> =
        bed.cluster.pods.iter().filter(|pod| meshed.contains(&pod.uid())).map(|pod| &pod.name[..]).collect();
    assert_eq!(inside, ["bench", "intruder", "web", "vault", "cart", "cart-2"]);
}

#[test]
fn pods_get_nodes_in_turn_addresses_and_names_and_keep_them() {
    let files = [("pods.yaml", [pod("b/y"), pod("a/x"), pod("b/x"), pod("a/node1")].concat())];
    let mut bed = Bed::new("turn", &[(files[0].0, &files[0].1)]);
    let (items, mistakes) = bed.look();
    assert_eq!(mistakes, Vec::<String>::new());
    let first = [
        "a/node1 node1 10.244.1.10 a.node1",
        "a/x node2 10.244.2.10 a.x",
        "b/x node1 10.244.1.11 b.x",
        "b/y node2 10.244.2.11 y",
    ];
    assert_eq!(bed.pods(), first);
    let y = item(&items, "Pod", "y");
    assert_eq!(y["spec"]["nodeName"], "node2");
    assert_eq!(y["status"]["podIP"], "10.244.2.11");
    assert_eq!(y["status"]["podIPs"][1]["ip"], "fd00:244:2::b");
    assert_eq!(y["status"]["conditions"][0]["type"], "Ready");
    // One comes that sorts before all, and one goes.
    bed.write("pods.yaml", &[pod("b/y"), pod("a/x"), pod("a/node1"), pod("a/a")].concat());
    bed.look();
    let second = ["a/a node1 10.244.1.11 a", first[0], first[1], first[3]];
    assert_eq!(bed.pods(), second);
    let found = |name: &str| bed.cluster.pod(name).map(Pod::path);
    assert_eq!(found("y").as_deref(), Some("b/y"));
    assert_eq!(found("a/x").as_deref(), Some("a/x"));
    assert_eq!(found("a.node1").as_deref(), Some("a/node1"));
    assert_eq!(found("z"), None);
}

#[test]
fn services_get_addresses_unless_they_have_or_want_none() {
    let service = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: n}}\nspec: {{{spec}, ports: [{{port: 80}}]}}\n"
        )
    };
    let text = [
        service("b", "selector: {app: x}"),
        service("a", "selector: {app: x}"),
        service("headless", "clusterIP: None"),
        service("own", "clusterIP: 10.96.1.2"),
        service("six", "ipFamilies: [IPv6]"),
        service("elsewhere", "type: ExternalName, externalName: example.org"),
    ]
    .concat();
    let mut bed = Bed::new("services", &[("s.yaml", &text)]);
    let (items, mistakes) = bed.look();
    assert_eq!(mistakes, Vec::<String>::new());
    let addresses =
        |items: &[Value], name: &str| item(items, "Service", name)["spec"]["clusterIPs"].to_string();
    assert_eq!(addresses(&items, "a"), r#"["10.96.1.1","fd00:96::101"]"#);
    assert_eq!(addresses(&items, "b"), r#"["10.96.1.3","fd00:96::103"]"#, "another has chosen the second");
    assert_eq!(addresses(&items, "six"), r#"["fd00:96::104"]"#);
    for name in ["headless", "own", "elsewhere"] {
        assert!(items.iter().all(|item| item["metadata"]["name"] != name), "{name} is complete");
    }
    bed.write("s.yaml", &[service("new", "selector: {}"), service("b", "selector: {}")].concat());
    let (items, _) = bed.look();
    assert_eq!(addresses(&items, "b"), r#"["10.96.1.3","fd00:96::103"]"#, "it keeps its address");
    assert_eq!(addresses(&items, "new"), r#"["10.96.1.1","fd00:96::101"]"#);
    bed.write(
        "t.yaml",
        &[service("p", "clusterIP: 10.96.0.9"), service("q", "clusterIP: 10.96.0.9")].concat(),
    );
    let (_, mistakes) = bed.look();
    assert_eq!(
        mistakes,
        [
            "t.yaml:10:19: document 2: spec.clusterIP: 10.96.0.9 is the address of the Service n/p (t.yaml:4) already; \
          choose another one for the Service n/q, or leave it out and the lab chooses"
        ]
    );
}

#[test]
fn a_service_cannot_have_the_address_of_a_pod_or_a_node() {
    let service = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: n}}\nspec: {{{spec}}}\n"
        )
    };
    let services = [
        service("a", "clusterIP: 10.244.1.10"),
        service("b", "clusterIPs: [10.96.0.9, 'fd00:244:1::a']"),
        service("c", "clusterIP: 172.30.0.12"),
        service("d", "clusterIP: 10.244.1.11"),
    ];
    let mut bed = Bed::new("taken", &[("p.yaml", &pod("n/x")), ("s.yaml", &services.concat())]);
    let told = |place: &str, ip: &str, owner: &str, name: &str| {
        format!(
            "s.yaml:{place}: {ip} is the address of {owner} already; choose another one for the Service n/{name}, or leave \
             it out and the lab chooses"
        )
    };
    let mut wanted = vec![
        told("5:19: document 1: spec.clusterIP", "10.244.1.10", "the Pod n/x", "a"),
        told("10:20: document 2: spec.clusterIPs", "fd00:244:1::a", "the Pod n/x", "b"),
        told("15:19: document 3: spec.clusterIP", "172.30.0.12", "the Node node2", "c"),
    ];
    let mut mistakes = bed.look().1;
    mistakes.sort();
    wanted.sort();
    assert_eq!(mistakes, wanted);
    // A pod that comes takes the address that nobody minded before.
    bed.write("p.yaml", &[pod("n/x"), pod("n/y"), pod("n/z")].concat());
    let last = told("20:19: document 4: spec.clusterIP", "10.244.1.11", "the Pod n/z", "d");
    assert!(bed.look().1.contains(&last));
}

#[test]
fn controllers_become_their_pods() {
    let controller = |kind: &str, version: &str, spec: &str| {
        format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {}, namespace: n}}\nspec:\n  {spec}\n  \
             template:\n    metadata: {{labels: {{app: x}}}}\n    spec:\n      serviceAccountName: sa\n      \
             containers: [{{name: c, image: i, ports: [{{name: web, containerPort: 8080}}]}}]\n",
            kind.to_lowercase()
        )
    };
    let text = [
        controller("Deployment", "apps/v1", "replicas: 2"),
        controller("StatefulSet", "apps/v1", "serviceName: s"),
        controller("DaemonSet", "apps/v1", "minReadySeconds: 1"),
        controller("Job", "batch/v1", "parallelism: 1"),
    ]
    .concat();
    let mut bed = Bed::new("controllers", &[("c.yaml", &text)]);
    let (items, mistakes) = bed.look();
    assert_eq!(mistakes, Vec::<String>::new());
    let names: Vec<&str> = bed.cluster.pods.iter().map(|pod| &pod.name[..]).collect();
    let expected = ["daemonset-0", "daemonset-1", "deployment-0", "deployment-1", "job-0", "statefulset-0"];
    assert_eq!(names, expected);
    let nodes: Vec<&str> = bed.cluster.pods.iter().map(|pod| &pod.node[..]).collect();
    assert_eq!(nodes[..2], ["node1", "node2"]);
    let one = item(&items, "Pod", "deployment-1");
    assert_eq!(one["metadata"]["ownerReferences"][0]["kind"], "Deployment");
    assert_eq!(one["metadata"]["labels"]["app"], "x");
    assert_eq!(one["spec"]["serviceAccountName"], "sa");
    assert_eq!(one["spec"]["containers"][0]["ports"][0]["containerPort"], 8080);
    bed.write("c.yaml", &controller("Deployment", "apps/v1", "replicas: 1"));
    bed.look();
    assert_eq!(bed.pods().len(), 1);
    bed.write("c.yaml", &controller("Deployment", "apps/v1", "replicas: many"));
    let (_, mistakes) = bed.look();
    assert!(mistakes[0].starts_with("c.yaml:6:13: document 1: spec.replicas: "), "{mistakes:#?}");
    assert_eq!(bed.pods().len(), 1, "what worked stays");
}

#[test]
fn every_mistake_is_told_with_its_place_and_the_rest_is_kept() {
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: only}\n";
    let good = [node, &pod("n/a"), &pod("n/b")].concat();
    let mut bed = Bed::new("mistakes", &[("all.yaml", &good)]);
    assert_eq!(bed.look().1, Vec::<String>::new());
    let before = bed.pods();
    let deployment = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {template: {spec: {hostNetwork: true}}}\n";
    let bad = [
        node.replace("only", "ca"),
        pod("n/a").replace("}\n", "}\nspec: {nodeName: nowhere}\n"),
        pod("n/B"),
        pod("n/b").replace("}\n", "}\nspec: {hostNetwork: true}\n"),
        deployment.to_owned(),
        "---\napiVersion: v1\nkind: Node\nmetadata: {name: m, annotations: {lab.ztunnel/proxy: extrenal}}\n"
            .to_owned(),
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n".to_owned(),
        "---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i}\n".to_owned(),
    ]
    .concat();
    bed.write("more.yaml", &bad);
    let (_, mistakes) = bed.look();
    for part in [
        "more.yaml:4:18: document 1: metadata.name: the lab itself needs the name ca",
        "more.yaml:13:18: document 3: metadata.name: ",
        "hostNetwork: a pod in its node's own network cannot be in a lab",
        "document 5: spec.template.spec.hostNetwork: ",
        "the one value is \"external\"",
        "stands in",
    ] {
        assert!(mistakes.iter().any(|text| text.contains(part)), "{part} is not in {mistakes:#?}");
    }
    assert_eq!(bed.pods(), before);
    assert_eq!(
        bed.folder.unread().iter().map(|(kind, n)| format!("{kind} {n}")).collect::<Vec<_>>(),
        ["ConfigMap 1", "Ingress 1"]
    );
    // Both readings find a key that stands twice.
    bed.write("more.yaml", &pod("n/c").replace("kind: Pod", "kind: Pod\nkind: Pod"));
    assert_eq!(bed.look().1.len(), 1);
    fs::remove_file(bed.path.join("more.yaml")).expect("it was written");
    // A document that is no YAML, a file that is empty for a moment: nothing is lost.
    for text in [&good.replace("name: b", "name: [b")[..], ""] {
        bed.write("all.yaml", text);
        assert_eq!(bed.look().1.len(), 1);
        assert_eq!(bed.pods(), before);
    }
    bed.write("all.yaml", &[node, &pod("n/b").replace("}\n", "}\nspec: {nodeName: nowhere}\n")].concat());
    let (_, mistakes) = bed.look();
    assert_eq!(
        mistakes,
        ["all.yaml:9:18: document 2: spec.nodeName: there is no node \"nowhere\" (nodes: only)"]
    );
    assert_eq!(bed.pods(), before[1..], "a pod goes with its document, and stays with a mistake");
}

#[test]
fn nodes_are_made_once_and_may_have_a_proxy_of_somebody_else() {
    let node = |name: &str| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    let external = node("b").replace("}\n", ", annotations: {lab.ztunnel/proxy: external}}\n");
    let mut bed = Bed::new("nodes", &[("nodes.yaml", &[external, node("a")].concat())]);
    assert_eq!(bed.look().1, Vec::<String>::new());
    let expected =
        [("a", false), ("b", true)].map(|(name, external)| Node { name: name.to_owned(), external });
    assert_eq!(bed.cluster.nodes, expected);
    bed.write("nodes.yaml", &[node("a"), node("b"), node("c")].concat());
    let (_, mistakes) = bed.look();
    assert!(mistakes[0].contains("nodes are made when the lab comes up"), "{mistakes:#?}");
    assert_eq!(bed.cluster.nodes, expected);
}
