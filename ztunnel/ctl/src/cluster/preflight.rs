//! Whether a cluster can work, before anything is changed.

use reflector::{Client, Keep};
use serde_json::Value;

use super::{ANSWER, Error, of};

/// The first version whose pods can say `appArmorProfile`; DaemonSets with surge are older.
const OLDEST_API: u64 = 30;
/// The first long-term kernel with everything that the rules need.
const OLDEST_KERNEL: (u64, u64) = (6, 1);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Good(String),
    /// Works, and should be known.
    Note(String),
    /// Stands against `install`, and not against this overlay.
    Overlay(String),
    /// Stands against an installation; says what to do.
    Against(String),
}

/// Prints what was found; whether nothing stands against an installation.
pub(super) fn tell(findings: &[Finding]) -> bool {
    for finding in findings {
        match finding {
            Finding::Good(text) => println!("  ok    {text}"),
            Finding::Note(text) | Finding::Overlay(text) => println!("  note  {text}"),
            Finding::Against(text) => println!("  FAIL  {text}"),
        }
    }
    !findings.iter().any(|finding| matches!(finding, Finding::Against(_)))
}

pub(super) async fn look(client: &Client) -> Result<Vec<Finding>, Error> {
    let version = get(client, "/version", Keep::All).await?.unwrap_or_default();
    let nodes = get(client, "/api/v1/nodes", NODES).await?.unwrap_or_default();
    let daemons = get(client, "/apis/apps/v1/daemonsets", DAEMONS).await?.unwrap_or_default();
    let pods = get(client, "/api/v1/pods", PODS).await?.unwrap_or_default();
    let namespaces = get(client, "/api/v1/namespaces", NAMESPACES).await?.unwrap_or_default();
    let mut findings = vec![api(&version)];
    findings.extend(kernels(&nodes));
    findings.extend(other_meshes(&daemons));
    findings.extend(sidecars(&pods, &namespaces));
    let cilium = get(client, "/api/v1/namespaces/kube-system/configmaps/cilium-config", CILIUM).await?;
    findings.extend(cilium_of(&cilium.unwrap_or_default()));
    findings.extend(distributions(&nodes));
    Ok(findings)
}

const NODES: Keep = Keep::Only(&[(
    "items",
    Keep::Only(&[
        ("metadata", Keep::Only(&[("name", Keep::All)])),
        ("status", Keep::Only(&[("nodeInfo", Keep::All)])),
    ]),
)]);
const CILIUM: Keep = Keep::Only(&[(
    "data",
    Keep::Only(&[
        ("cni-exclusive", Keep::All),
        ("kube-proxy-replacement", Keep::All),
        ("bpf-lb-sock-hostns-only", Keep::All),
        ("enable-host-legacy-routing", Keep::All),
    ]),
)]);
const DAEMONS: Keep = Keep::Only(&[(
    "items",
    Keep::Only(&[(
        "metadata",
        Keep::Only(&[("name", Keep::All), ("namespace", Keep::All), ("labels", Keep::All)]),
    )]),
)]);
const CONTAINERS: Keep = Keep::Only(&[("name", Keep::All)]);
const PODS: Keep = Keep::Only(&[(
    "items",
    Keep::Only(&[
        (
            "metadata",
            Keep::Only(&[
                ("name", Keep::All),
                ("namespace", Keep::All),
                ("labels", Keep::All),
                (
                    "annotations",
                    Keep::Only(&[
                        ("sidecar.istio.io/status", Keep::All),
                        ("linkerd.io/proxy-version", Keep::All),
                    ]),
                ),
            ]),
        ),
        ("spec", Keep::Only(&[("containers", CONTAINERS), ("initContainers", CONTAINERS)])),
    ]),
)]);
const NAMESPACES: Keep = Keep::Only(&[(
    "items",
    Keep::Only(&[("metadata", Keep::Only(&[("name", Keep::All), ("labels", Keep::All)]))]),
)]);

async fn get(client: &Client, path: &str, keep: Keep) -> Result<Option<Value>, Error> {
    of(path, reflector::get(client, path, keep, ANSWER).await)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn api(version: &Value) -> Finding {
    let digits = |key: &str| {
        let text = version[key].as_str().unwrap_or_default();
        text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap_or(0)
    };
    let (major, minor) = (digits("major"), digits("minor"));
    let told = version["gitVersion"].as_str().unwrap_or("of an unknown version");
    match (major, minor) >= (1, OLDEST_API) {
        true => Finding::Good(format!("Kubernetes {told}")),
        false => Finding::Against(format!("Kubernetes {told}: upgrade to 1.{OLDEST_API} or later")),
    }
}

fn kernels(nodes: &Value) -> Vec<Finding> {
    let (mut good, mut findings) = (0, Vec::new());
    for node in items(nodes) {
        let info = |key: &str| node["status"]["nodeInfo"][key].as_str().unwrap_or_default();
        if info("operatingSystem") != "linux" {
            findings.push(Finding::Note(format!("node {}: not Linux, its pods stay outside", name(node))));
            continue;
        }
        let release = info("kernelVersion");
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u64>().unwrap_or(0));
        if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST_KERNEL {
            let (major, minor) = OLDEST_KERNEL;
            let text = format!("node {}: Linux {release}; {major}.{minor} or later is needed", name(node));
            findings.push(Finding::Against(text));
        } else {
            good += 1;
        }
    }
    match good {
        0 => findings.push(Finding::Against("no node that could run the proxy".to_owned())),
        _ => findings.push(Finding::Good(format!("{good} nodes with a kernel that can capture pods"))),
    }
    findings
}

/// Cilium may take every other CNI configuration away, and decide in eBPF what others decide by rules.
fn cilium_of(config: &Value) -> Vec<Finding> {
    let is = |key: &str, value: &str| config["data"][key] == value;
    let mut findings = Vec::new();
    if is("cni-exclusive", "true") {
        let text = "Cilium removes the CNI configurations of others (cni-exclusive in kube-system/cilium-config): \
            set cni.exclusive=false in its chart";
        findings.push(Finding::Against(text.to_owned()));
    }
    if is("kube-proxy-replacement", "true") && !is("bpf-lb-sock-hostns-only", "true") {
        let text = "Cilium replaces the address of a Service inside the pods: telemetry names no Service there; \
            set socketLB.hostNamespaceOnly=true in its chart";
        findings.push(Finding::Note(text.to_owned()));
    }
    if is("enable-host-legacy-routing", "false") {
        let text = "Cilium's eBPF host routing passes the node's rules by: a pod in quarantine is told, and its TCP not \
            dropped; set bpf.hostLegacyRouting=true in its chart";
        findings.push(Finding::Note(text.to_owned()));
    }
    findings
}

/// Those that have their CNI files elsewhere, or ask for more.
fn distributions(nodes: &Value) -> Vec<Finding> {
    let has = |key: &str, part: &str| {
        let told =
            |node: &Value| node["status"]["nodeInfo"][key].as_str().is_some_and(|text| text.contains(part));
        items(nodes).any(told)
    };
    let known = [
        ("kubeletVersion", "+k3s", "k3s", "k3s"),
        ("kubeletVersion", "-gke.", "GKE", "gke"),
        ("osImage", "Red Hat Enterprise Linux CoreOS", "OpenShift", "openshift"),
    ];
    let found = known.into_iter().filter(|(key, part, ..)| has(key, part));
    found
        .map(|(_, _, name, overlay)| {
            Finding::Overlay(format!(
                "nodes of {name}: install with `kubectl apply -k deploy/overlays/{overlay}`"
            ))
        })
        .collect()
}

/// Two that capture the same pods would undo each other's rules.
fn other_meshes(daemons: &Value) -> Vec<Finding> {
    let is_ours = |one: &Value| one["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ztunnel";
    let others = items(daemons).filter(|one| !is_ours(one)).filter_map(|one| {
        let place = format!("{}/{}", one["metadata"]["namespace"].as_str().unwrap_or_default(), name(one));
        match name(one) {
            "istio-cni-node" | "ztunnel" => Some(format!(
                "{place}: Istio's ambient mode captures pods here; use deploy/overlays/istiod, or remove it first"
            )),
            "kmesh" => Some(format!("{place}: Kmesh captures pods here; remove it first")),
            _ => None,
        }
    });
    others.map(Finding::Against).collect()
}

/// Pods that something else captures already. They are never captured twice: the agent refuses them with an event.
fn sidecars(pods: &Value, namespaces: &Value) -> Vec<Finding> {
    const MODE: &str = "istio.io/dataplane-mode";
    let enrolled: Vec<&str> =
        items(namespaces).filter(|one| one["metadata"]["labels"][MODE] == "ambient").map(name).collect();
    let mut findings = Vec::new();
    for pod in items(pods) {
        let annotations = &pod["metadata"]["annotations"];
        let by = match () {
            () if annotations["sidecar.istio.io/status"].is_string() => "a sidecar of Istio",
            () if annotations["linkerd.io/proxy-version"].is_string() || runs(pod, "linkerd-proxy") => {
                "Linkerd"
            }
            () => continue,
        };
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let place = format!("pod {namespace}/{}: captured by {by}", name(pod));
        findings.push(match enrolled.contains(&namespace) {
            true => Finding::Against(format!(
                "{place}, in a namespace labelled {MODE}=ambient: remove one of them"
            )),
            false => Finding::Note(format!("{place}; it stays outside unless that is removed")),
        });
    }
    findings
}

fn runs(pod: &Value, container: &str) -> bool {
    let kinds = ["containers", "initContainers"].into_iter();
    let mut containers = kinds.flat_map(|kind| pod["spec"][kind].as_array().into_iter().flatten());
    containers.any(|one| one["name"] == container)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn against(finding: &Finding) -> bool {
        matches!(finding, Finding::Against(_))
    }

    #[test]
    fn what_a_distribution_or_another_cni_needs_is_told() {
        let config = |key: &str, value: &str| cilium_of(&json!({ "data": { key: value } }));
        assert!(matches!(&config("cni-exclusive", "true")[..], [finding] if against(finding)));
        for key in ["kube-proxy-replacement", "enable-host-legacy-routing"] {
            let noted: Vec<_> = ["true", "false"].into_iter().flat_map(|value| config(key, value)).collect();
            assert!(matches!(&noted[..], [Finding::Note(_)]), "{noted:?}");
        }
        assert_eq!((config("cni-exclusive", "false"), cilium_of(&json!({}))), (vec![], vec![]));
        let node = json!({ "items": [{ "status": { "nodeInfo": { "kubeletVersion": "v1.34.1+k3s1" } } }] });
        let found = distributions(&node);
        assert!(matches!(&found[..], [Finding::Overlay(text)] if text.contains("overlays/k3s")), "{found:?}");
        let image = "Red Hat Enterprise Linux CoreOS 9.6.20250826-1 (Plow)";
        let node = json!({ "items": [{ "status": { "nodeInfo": { "osImage": image } } }] });
        let found = distributions(&node);
        assert!(matches!(&found[..], [Finding::Overlay(text)] if text.contains("openshift")), "{found:?}");
        let pod = json!({ "metadata": { "name": "p", "namespace": "n" },
            "spec": { "initContainers": [{ "name": "linkerd-proxy" }] } });
        let found = sidecars(&json!({ "items": [pod] }), &json!({}));
        assert!(matches!(&found[..], [Finding::Note(text)] if text.contains("Linkerd")), "{found:?}");
    }

    #[test]
    fn old_api_servers_and_kernels_are_named_with_what_is_needed() {
        assert!(!against(&api(&json!({ "major": "1", "minor": "34+", "gitVersion": "v1.34.1-gke" }))));
        assert!(against(&api(&json!({ "major": "1", "minor": "29", "gitVersion": "v1.29.0" }))));
        assert!(against(&api(&json!({}))));
        let node = |name: &str, kernel: &str| {
            json!({ "metadata": { "name": name },
            "status": { "nodeInfo": { "operatingSystem": "linux", "kernelVersion": kernel } } })
        };
        let found =
            kernels(&json!({ "items": [node("new", "6.18.5-fc"), node("old", "5.15.0-91-generic")] }));
        let expected =
            Finding::Against("node old: Linux 5.15.0-91-generic; 6.1 or later is needed".to_owned());
        assert!(found.contains(&expected), "{found:?}");
        assert!(kernels(&json!({ "items": [] })).iter().any(against), "a cluster without a node");
    }

    #[test]
    fn pods_that_another_mesh_captures_are_refused_where_they_would_be_captured_twice() {
        let pod = |namespace: &str, key: &str| {
            json!({ "metadata": { "name": "p", "namespace": namespace,
            "annotations": { key: "x" } } })
        };
        let namespaces = json!({ "items": [
            { "metadata": { "name": "in", "labels": { "istio.io/dataplane-mode": "ambient" } } },
            { "metadata": { "name": "out" } },
        ] });
        for key in ["sidecar.istio.io/status", "linkerd.io/proxy-version"] {
            assert!(against(&sidecars(&json!({ "items": [pod("in", key)] }), &namespaces)[0]), "{key}");
            assert!(!against(&sidecars(&json!({ "items": [pod("out", key)] }), &namespaces)[0]), "{key}");
        }
        let daemon = |labels: Value| json!({ "items": [{ "metadata": { "name": "ztunnel", "namespace": "x", "labels": labels } }] });
        assert_eq!(other_meshes(&daemon(json!({ "app.kubernetes.io/part-of": "ztunnel" }))), []);
        assert!(against(&other_meshes(&daemon(json!({ "app": "ztunnel" })))[0]));
    }
}
