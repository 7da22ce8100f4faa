//! What an installation consists of: the files of `deploy/`, which `kubectl apply -k deploy/` takes too.

use std::path::Path;

use serde_json::{Value, json};

pub const SYSTEM: &str = "ztunnel-system";
pub const IMAGE: &str = concat!("ghcr.io/ztunnel/ztunnel:", env!("CARGO_PKG_VERSION"));
/// On everything that an installation makes.
pub const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "ztunnel");

macro_rules! deploy {
    ($($file:literal),+ $(,)?) => { [$(include_str!(concat!("../../../../deploy/", $file))),+] };
}

/// Istio's own definitions have the same names.
const DEFINITIONS: [&str; 2] = deploy!["crds/authorizationpolicies.yaml", "crds/peerauthentications.yaml"];
/// In the order in which they are made.
const PARTS: [&str; 8] = deploy![
    "base/namespace.yaml",
    "controller/rbac.yaml",
    "controller/priority.yaml",
    "controller/network.yaml",
    "controller/deployment.yaml",
    "node/rbac.yaml",
    "node/network.yaml",
    "node/daemonset.yaml",
];

/// Where the API has objects of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    group: &'static str,
    plural: &'static str,
    namespaced: bool,
}

const KINDS: [Kind; 13] = [
    kind("CustomResourceDefinition", "/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", false),
    kind("Namespace", "/api/v1", "namespaces", false),
    kind("ServiceAccount", "/api/v1", "serviceaccounts", true),
    kind("Service", "/api/v1", "services", true),
    kind("ClusterRole", "/apis/rbac.authorization.k8s.io/v1", "clusterroles", false),
    kind("ClusterRoleBinding", "/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", false),
    kind("Role", "/apis/rbac.authorization.k8s.io/v1", "roles", true),
    kind("RoleBinding", "/apis/rbac.authorization.k8s.io/v1", "rolebindings", true),
    kind("PriorityClass", "/apis/scheduling.k8s.io/v1", "priorityclasses", false),
    kind("NetworkPolicy", "/apis/networking.k8s.io/v1", "networkpolicies", true),
    kind("PodDisruptionBudget", "/apis/policy/v1", "poddisruptionbudgets", true),
    kind("Deployment", "/apis/apps/v1", "deployments", true),
    kind("DaemonSet", "/apis/apps/v1", "daemonsets", true),
];

const fn kind(name: &'static str, group: &'static str, plural: &'static str, namespaced: bool) -> Kind {
    Kind { name, group, plural, namespaced }
}

#[derive(Clone, Debug)]
pub struct Object {
    pub kind: Kind,
    pub value: Value,
}

impl Object {
    fn new(mut value: Value, image: &str) -> Self {
        let kind = KINDS.into_iter().find(|kind| value["kind"] == kind.name);
        let kind = kind.expect("invariant: a test reads every file of deploy/");
        if kind.namespaced {
            value["metadata"]["namespace"] = SYSTEM.into();
        }
        if kind.name != "CustomResourceDefinition" {
            value["metadata"]["labels"][PART_OF.0] = PART_OF.1.into();
        }
        let containers = value.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            container["image"] = image.into();
        }
        Self { kind, value }
    }

    pub fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Where the API has it.
    pub fn path(&self) -> String {
        path(self.kind, self.name())
    }

    pub fn title(&self) -> String {
        format!("{} {}", self.kind.name, self.name())
    }
}

fn path(kind: Kind, name: &str) -> String {
    match kind.namespaced {
        true => format!("{}/namespaces/{SYSTEM}/{}/{name}", kind.group, kind.plural),
        false => format!("{}/{}/{name}", kind.group, kind.plural),
    }
}

pub fn definitions() -> Vec<Object> {
    read(&DEFINITIONS, IMAGE)
}

pub fn parts(image: &str) -> Vec<Object> {
    read(&PARTS, image)
}

/// On every node where these node pods run: the same agent takes out what it left there, after which its pod is ready. Needs
/// nothing of the network that it takes itself out of.
pub fn cleaner(node: &Object) -> Object {
    let mut pod = node.value["spec"]["template"]["spec"].clone();
    let containers = pod["containers"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let mut agent = containers.into_iter().find(|one| one["name"] == "agent").unwrap_or_default();
    let mut rest = agent.clone();
    if let Some(rest) = rest.as_object_mut() {
        rest.retain(|key, _| ["image", "imagePullPolicy", "resources"].contains(&key.as_str()));
    }
    rest["name"] = "done".into();
    rest["command"] = json!(["/ztunnel-redirect", "rest"]);
    rest["securityContext"] = json!({
        "runAsNonRoot": true,
        "runAsUser": 1337,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    agent["command"] = json!(["/ztunnel-redirect", "uninstall"]);
    let kept = ["--host-netns", "--host-proc", "--netns-dir", "--socket", "--cni-", "--enrolled"];
    if let Some(arguments) = agent["args"].as_array_mut() {
        arguments.retain(|one| kept.iter().any(|kept| one.as_str().is_some_and(|one| one.starts_with(kept))));
    }
    if let Some(agent) = agent.as_object_mut() {
        agent.retain(|key, _| key != "ports" && !key.ends_with("Probe"));
    }
    agent["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    pod["hostNetwork"] = true.into();
    pod["terminationGracePeriodSeconds"] = 1.into();
    let volumes = pod["volumes"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let mut volumes: Vec<Value> =
        volumes.into_iter().filter(|volume| volume["name"] != "root" && volume["name"] != "token").collect();
    // The kubelet made these two for the node pods; what is mounted cannot be removed but from where it stands.
    for volume in volumes.clone() {
        let (name, path) = (&volume["name"], volume["hostPath"]["path"].as_str().map(Path::new));
        let Some((parent, folder)) = path.and_then(|path| path.parent().zip(path.file_name())) else {
            continue;
        };
        if *name != "run" && *name != "state" {
            continue;
        }
        let (beside, at) =
            (format!("{}-parent", name.as_str().unwrap_or_default()), format!("/host{}", parent.display()));
        let arguments = agent["args"].as_array_mut().map(std::mem::take).unwrap_or_default().into_iter();
        let removes = format!("--remove-dir={}", Path::new(&at).join(folder).display());
        agent["args"] = arguments.chain([removes.into()]).collect();
        if let Some(mounts) = agent["volumeMounts"].as_array_mut() {
            mounts.push(json!({ "name": beside, "mountPath": at }));
        }
        volumes.push(json!({ "name": beside, "hostPath": { "path": parent, "type": "Directory" } }));
    }
    pod["volumes"] = volumes.into();
    pod["initContainers"] = json!([agent]);
    pod["containers"] = json!([rest]);
    let labels = json!({ "app.kubernetes.io/name": CLEANER, "istio.io/dataplane-mode": "none" });
    let value = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": CLEANER, "namespace": SYSTEM, "labels": { PART_OF.0: PART_OF.1 } },
        "spec": {
            "selector": { "matchLabels": { "app.kubernetes.io/name": CLEANER } },
            "template": { "metadata": { "labels": labels }, "spec": pod },
        },
    });
    Object { kind: node.kind, value }
}

/// What an earlier attempt applied, to be applied again.
pub fn again(cleaner: &Object, image: Option<&str>) -> Object {
    let mut template = cleaner.value["spec"]["template"].clone();
    for container in ["initContainers", "containers"] {
        if let (Some(image), Some(one)) = (image, template["spec"][container].get_mut(0)) {
            one["image"] = image.into();
        }
    }
    let metadata = json!({ "name": CLEANER, "namespace": SYSTEM, "labels": { PART_OF.0: PART_OF.1 } });
    let spec = json!({ "selector": cleaner.value["spec"]["selector"], "template": template });
    let value = json!({ "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": spec });
    Object { kind: cleaner.kind, value }
}

const CLEANER: &str = "ztunnel-uninstall";

fn read(files: &[&str], image: &str) -> Vec<Object> {
    let documents = files.iter().flat_map(|file| {
        serde_saphyr::from_multiple::<Value>(file).expect("invariant: a test reads every file of deploy/")
    });
    documents.map(|value| Object::new(value, image)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_read_and_every_object_has_its_place() {
        let all: Vec<Object> = definitions().into_iter().chain(parts("here/it:1")).collect();
        let titles: Vec<String> = all.iter().map(Object::title).collect();
        assert_eq!(titles.len(), 18, "{titles:?}");
        let found = |title: &str| all.iter().find(|object| object.title() == title).expect("it is there");
        assert_eq!(
            found("DaemonSet ztunnel").path(),
            "/apis/apps/v1/namespaces/ztunnel-system/daemonsets/ztunnel"
        );
        assert_eq!(found("Namespace ztunnel-system").path(), "/api/v1/namespaces/ztunnel-system");
        let images = all.iter().filter_map(|object| object.value.pointer("/spec/template/spec/containers"));
        let mut images = images.flat_map(|containers| containers.as_array().into_iter().flatten());
        assert!(images.all(|container| container["image"] == "here/it:1"));
    }

    #[test]
    fn an_attempt_that_was_not_done_is_repeated_with_its_own_folders() {
        let parts = parts("here/it:1");
        let mut node = parts.into_iter().find(|object| object.kind.name == "DaemonSet").expect("node pods");
        let volumes = node.value.pointer_mut("/spec/template/spec/volumes").and_then(Value::as_array_mut);
        let bin = volumes.into_iter().flatten().find(|one| one["name"] == "cni-bin").expect("a folder");
        bin["hostPath"]["path"] = "/var/lib/rancher/cni/bin".into();
        let mut there = cleaner(&node);
        there.value["metadata"]["managedFields"] = json!([{}]);
        there.value["status"] = json!({ "numberReady": 1 });
        let again = again(&there, Some("here/it:2")).value;
        assert!(again["status"].is_null() && again["metadata"]["managedFields"].is_null());
        let pod = &again["spec"]["template"]["spec"];
        assert_eq!(pod["initContainers"][0]["image"], "here/it:2");
        assert_eq!(pod["containers"][0]["image"], "here/it:2");
        let mut volumes = pod["volumes"].as_array().expect("a list").iter();
        assert!(volumes.any(|one| one["hostPath"]["path"] == "/var/lib/rancher/cni/bin"));
    }

    #[test]
    fn the_cleaner_is_the_agent_and_nothing_else() {
        let parts = parts("here/it:1");
        let node = parts.iter().find(|object| object.kind.name == "DaemonSet").expect("node pods");
        let cleaner = cleaner(node).value;
        let pod = &cleaner["spec"]["template"]["spec"];
        let only = |key: &str| match pod[key].as_array().map(Vec::as_slice) {
            Some([one]) => one.clone(),
            other => panic!("{key}: {other:?}"),
        };
        let (cleans, rests) = (only("initContainers"), only("containers"));
        assert_eq!(cleans["command"], json!(["/ztunnel-redirect", "uninstall"]));
        assert_eq!(rests["command"], json!(["/ztunnel-redirect", "rest"]));
        assert_eq!(rests["image"], "here/it:1");
        let arguments = cleans["args"].to_string();
        for folder in ["/host/var/run/ztunnel", "/host/var/lib/ztunnel"] {
            assert!(arguments.contains(&format!("--remove-dir={folder}")), "{arguments}");
        }
        assert!(cleans["volumeMounts"].to_string().contains("/host/var/lib\""), "{cleans}");
        assert!(pod["hostNetwork"] == true && cleans["readinessProbe"].is_null(), "it asks nobody's network");
    }
}
