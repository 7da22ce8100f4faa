//! What a cluster would have added to the manifests: on which node a pod runs, its address, a service's address.
//!
//! Pure and deterministic: the same manifests on the same previous cluster give the same plan. What has an address keeps
//! it as long as the lab lives.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::folder::{Body, Folder, Held, Key, Spot};
use super::{Cluster, EXTERNAL, Mistake, Node, PROXY_ANNOTATION, Pod};
use crate::addresses::{
    FIRST_POD, FIRST_SERVICE, LAST_POD, LAST_SERVICE, node_addresses, pod_addresses, service_addresses,
};

const MOST_NODES: usize = 200;
/// The nodes of a folder that has none.
const USUAL_NODES: [&str; 2] = ["node1", "node2"];

#[derive(Debug)]
pub(crate) struct Plan {
    pub cluster: Cluster,
    /// The completed manifests, one `List`.
    pub manifests: Value,
    pub mistakes: Vec<Mistake>,
}

/// A pod that is to be, however it was written.
struct Wanted<'a> {
    manifest: Value,
    held: &'a Held,
}

/// Makes a plan that departs from the previous cluster as little as the manifests allow. `mesh` of its pods is for the
/// controller's index to say; until then it is as it was.
pub(crate) fn plan(folder: &Folder, previous: &Cluster) -> Plan {
    let held = folder.held();
    let mut mistakes = Vec::new();
    let nodes = nodes(held, &previous.nodes, &mut mistakes);
    let mut items: Vec<Value> = nodes.iter().map(node_manifest).collect();
    for ((kind, ..), held) in held {
        match &held.body {
            Body::Manifest(manifest) if kind == "Namespace" => items.push(manifest.clone()),
            // The completed one replaces the node that was made up above.
            Body::Manifest(manifest) if kind == "Node" => {
                items.retain(|item| item["metadata"]["name"] != manifest["metadata"]["name"]);
                items.push(manifest.clone());
            }
            _ => {}
        }
    }
    let (pods, completed) = pods(held, &nodes, previous, &mut mistakes);
    items.extend(completed);
    let owners = owners(&nodes, &pods);
    let (services, completed) = services(held, &previous.services, owners, &mut mistakes);
    items.extend(completed);
    let manifests = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    Plan { cluster: Cluster { nodes, pods, services }, manifests, mistakes }
}

fn nodes(held: &BTreeMap<Key, Held>, previous: &[Node], mistakes: &mut Vec<Mistake>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut last = None;
    for ((_, _, name), held) in held.iter().filter(|((kind, ..), _)| kind == "Node") {
        let Body::Manifest(manifest) = &held.body else { continue };
        let external = manifest["metadata"]["annotations"][PROXY_ANNOTATION] == EXTERNAL;
        nodes.push(Node { name: name.clone(), external });
        last = Some(&held.name);
        if nodes.len() == MOST_NODES + 1 {
            mistakes.push(held.name.mistake(format!("at most {MOST_NODES} nodes fit")));
        }
    }
    nodes.truncate(MOST_NODES);
    if nodes.is_empty() {
        nodes = USUAL_NODES.map(|name| Node { name: name.to_owned(), external: false }).into();
    }
    if previous.is_empty() || previous == nodes {
        return nodes;
    }
    let reason = "nodes are made when the lab comes up; take it down and up again to change them";
    mistakes.extend(last.map(|name| name.mistake(reason)));
    previous.to_vec()
}

fn node_manifest(node: &Node) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node.name } })
}

fn pods(
    held: &BTreeMap<Key, Held>,
    nodes: &[Node],
    previous: &Cluster,
    mistakes: &mut Vec<Mistake>,
) -> (Vec<Pod>, Vec<Value>) {
    let wanted = wanted(held, nodes, mistakes);
    let before: BTreeMap<(&str, &str), &Pod> =
        previous.pods.iter().map(|pod| ((pod.namespace.as_str(), pod.name.as_str()), pod)).collect();
    let mut taken: BTreeSet<(String, usize)> = BTreeSet::new();
    let mut names = Names::new(nodes, wanted.keys().map(|(_, name)| name.as_str()));
    for path in wanted.keys() {
        if let Some(pod) = before.get(&(path.0.as_str(), path.1.as_str())) {
            taken.insert((pod.node.clone(), pod.host));
            names.take(&pod.netns);
        }
    }
    let (mut pods, mut completed) = (Vec::new(), Vec::new());
    for (index, ((namespace, name), wanted)) in wanted.into_iter().enumerate() {
        let before = before.get(&(namespace.as_str(), name.as_str())).copied();
        let Some(node) = node_of(&wanted, index, nodes, before, mistakes) else { continue };
        let number =
            1 + nodes.iter().position(|one| one.name == node).expect("invariant: it was chosen of these");
        let host = before
            .filter(|pod| pod.node == node)
            .map(|pod| pod.host)
            .or_else(|| (FIRST_POD..=LAST_POD).find(|&host| taken.insert((node.clone(), host))));
        let Some(host) = host else {
            let room = LAST_POD - FIRST_POD + 1;
            let reason = format!("node {node} has room for {room} pods and no address left for {name}");
            mistakes.push(wanted.held.name.mistake(reason));
            continue;
        };
        let (four, six) = pod_addresses(number, host);
        let account = wanted.manifest["spec"]["serviceAccountName"].as_str().filter(|text| !text.is_empty());
        let pod = Pod {
            service_account: account.unwrap_or("default").to_owned(),
            node,
            host,
            addresses: vec![four.into(), six.into()],
            netns: before.map_or_else(|| names.choose(&namespace, &name), |pod| pod.netns.clone()),
            mesh: before.is_some_and(|pod| pod.mesh),
            name,
            namespace,
        };
        completed.push(completed_pod(wanted.manifest, &pod));
        pods.push(pod);
    }
    (pods, completed)
}

/// All pods by namespace and name. One that is written itself stands before one that a controller would make.
fn wanted<'a>(
    held: &'a BTreeMap<Key, Held>,
    nodes: &[Node],
    mistakes: &mut Vec<Mistake>,
) -> BTreeMap<(String, String), Wanted<'a>> {
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let mut wanted = BTreeMap::new();
    for ((kind, namespace, name), held) in held {
        match &held.body {
            Body::Manifest(manifest) if kind == "Pod" => {
                wanted.insert((namespace.clone(), name.clone()), Wanted { manifest: manifest.clone(), held });
            }
            _ => {}
        }
    }
    for ((kind, namespace, name), held) in held {
        let Body::Controller(controller) = &held.body else { continue };
        for (pod, manifest) in controller.pods(name, &names) {
            match wanted.entry((namespace.clone(), pod)) {
                Entry::Vacant(free) => drop(free.insert(Wanted { manifest, held })),
                Entry::Occupied(taken) => {
                    let pod = &taken.key().1;
                    let reason = format!("its pod {pod} is there already; rename this {kind}");
                    mistakes.push(held.name.mistake(reason));
                }
            }
        }
    }
    wanted
}

/// The node that the manifest names, or where the pod is already, or the next in turn.
fn node_of(
    wanted: &Wanted<'_>,
    index: usize,
    nodes: &[Node],
    before: Option<&Pod>,
    mistakes: &mut Vec<Mistake>,
) -> Option<String> {
    let named = wanted.manifest["spec"]["nodeName"].as_str().filter(|name| !name.is_empty());
    let Some(named) = named else {
        let next = || nodes[index % nodes.len()].name.clone();
        return Some(before.map_or_else(next, |pod| pod.node.clone()));
    };
    if nodes.iter().any(|node| node.name == named) {
        return Some(named.to_owned());
    }
    let known: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let reason = format!("there is no node {named:?} (nodes: {})", known.join(", "));
    mistakes.push(wanted.held.node_name.mistake(reason));
    before.map(|pod| pod.node.clone())
}

fn completed_pod(mut manifest: Value, pod: &Pod) -> Value {
    object(&mut manifest, "spec").insert("nodeName".into(), pod.node.as_str().into());
    let addresses: Vec<Value> = pod.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    manifest["status"] = json!({
        "phase": "Running",
        "podIP": pod.addresses[0],
        "podIPs": addresses,
        "conditions": [{ "type": "Ready", "status": "True" }],
    });
    manifest
}

/// Names of network namespaces: short where that is clear.
struct Names {
    taken: BTreeSet<String>,
    ambiguous: BTreeSet<String>,
}

impl Names {
    fn new<'a>(nodes: &[Node], pods: impl Iterator<Item = &'a str>) -> Self {
        let taken: BTreeSet<String> =
            nodes.iter().map(|node| node.name.clone()).chain([crate::lab::UNDERLAY.to_owned()]).collect();
        let (mut seen, mut ambiguous) = (taken.clone(), BTreeSet::new());
        for pod in pods {
            if !seen.insert(pod.to_owned()) {
                ambiguous.insert(pod.to_owned());
            }
        }
        Self { taken, ambiguous }
    }

    fn take(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    fn choose(&mut self, namespace: &str, pod: &str) -> String {
        let short = !self.ambiguous.contains(pod) && self.taken.insert(pod.to_owned());
        if short { pod.to_owned() } else { format!("{namespace}.{pod}") }
    }
}

/// Whose address is whose: what a Service must not choose.
fn owners(nodes: &[Node], pods: &[Pod]) -> BTreeMap<IpAddr, String> {
    let of_nodes = nodes.iter().enumerate().flat_map(|(index, node)| {
        let (outside, inside) = (node_addresses(index + 1), pod_addresses(index + 1, 1));
        let all: [IpAddr; 4] = [outside.0.into(), outside.1.into(), inside.0.into(), inside.1.into()];
        all.map(|ip| (ip, format!("the Node {}", node.name)))
    });
    let of_pods = pods
        .iter()
        .flat_map(|pod| pod.addresses.iter().map(move |&ip| (ip, format!("the Pod {}", pod.path()))));
    of_nodes.chain(of_pods).collect()
}

fn services(
    held: &BTreeMap<Key, Held>,
    previous: &BTreeMap<String, u16>,
    mut owners: BTreeMap<IpAddr, String>,
    mistakes: &mut Vec<Mistake>,
) -> (BTreeMap<String, u16>, Vec<Value>) {
    let all = held.iter().filter(|((kind, ..), _)| kind == "Service");
    let all: Vec<_> = all
        .filter_map(|((_, namespace, name), held)| match &held.body {
            Body::Manifest(manifest) => Some((format!("{namespace}/{name}"), manifest, held)),
            Body::Controller(_) => None,
        })
        .collect();
    for (path, manifest, held) in &all {
        for ip in own_addresses(manifest) {
            match owners.entry(ip) {
                Entry::Vacant(free) => {
                    free.insert(format!("the Service {path} ({})", held.name.place()));
                }
                Entry::Occupied(owner) => {
                    let reason = format!(
                        "{ip} is the address of {} already; choose another one for the Service {path}, or leave it out \
                         and the lab chooses",
                        owner.get()
                    );
                    mistakes.push(held.cluster_ip.mistake(reason));
                }
            }
        }
    }
    let needs: Vec<_> = all.iter().filter(|(_, manifest, _)| needs_address(manifest)).collect();
    let free = |number: &u16| service_addresses(*number).iter().all(|ip| !owners.contains_key(ip));
    let mut numbers: BTreeMap<String, u16> = needs
        .iter()
        .filter_map(|(path, ..)| Some((path.clone(), *previous.get(path).filter(|number| free(number))?)))
        .collect();
    let mut used: BTreeSet<u16> = numbers.values().copied().collect();
    let mut completed = Vec::new();
    for (path, manifest, held) in needs {
        let known = numbers.get(path).copied();
        let number = known
            .or_else(|| (FIRST_SERVICE..=LAST_SERVICE).filter(|one| free(one)).find(|one| used.insert(*one)));
        let Some(number) = number else {
            mistakes.push(Spot::mistake(&held.name, "no address is left for this service"));
            continue;
        };
        numbers.insert(path.clone(), number);
        completed.push(completed_service(manifest, number));
    }
    (numbers, completed)
}

fn own_addresses(manifest: &Value) -> Vec<IpAddr> {
    let spec = &manifest["spec"];
    let list = spec["clusterIPs"].as_array().map_or(&[][..], Vec::as_slice).iter();
    let texts = list.chain([&spec["clusterIP"]]).filter_map(Value::as_str);
    let all: BTreeSet<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    all.into_iter().collect()
}

/// Not one that is only another name, and not one that wants no address or has its own.
fn needs_address(manifest: &Value) -> bool {
    let spec = &manifest["spec"];
    let says = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    spec["type"] != "ExternalName"
        && !says(&spec["clusterIP"])
        && !spec["clusterIPs"].as_array().is_some_and(|list| list.iter().any(says))
}

fn completed_service(manifest: &Value, number: u16) -> Value {
    let mut manifest = manifest.clone();
    let families = manifest["spec"]["ipFamilies"].as_array().cloned().unwrap_or_default();
    let asked = |name: &str| families.is_empty() || families.iter().any(|family| family == name);
    let addresses: Vec<IpAddr> = service_addresses(number)
        .into_iter()
        .filter(|ip| asked(if ip.is_ipv4() { "IPv4" } else { "IPv6" }))
        .collect();
    let spec = object(&mut manifest, "spec");
    spec.insert("clusterIP".into(), json!(addresses.first()));
    spec.insert("clusterIPs".into(), json!(addresses));
    manifest
}

/// The mapping of a key; made if there is none.
fn object<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    let inner = &mut value[key];
    if !inner.is_object() {
        *inner = Value::Object(Map::new());
    }
    inner.as_object_mut().expect("invariant: it was just made one")
}
