//! What is read of pods and namespaces.

use std::net::IpAddr;

use reflector::Keep::{self, All, Only};
use reflector::Resource;
use serde_json::Value;

/// Whether a pod or a namespace says that it belongs to the mesh.
pub(super) const MODE: &str = "istio.io/dataplane-mode";
/// Left by those who put Istio's or Linkerd's proxy into a pod.
const ISTIO: &str = "sidecar.istio.io/status";
const LINKERD: &str = "linkerd.io/proxy-version";
/// `permissive`: what cannot be captured passes in plaintext, rather than not at all.
pub(super) const CAPTURE: &str = "ztunnel.io/capture";
/// `enabled`: the pod is captured and takes tunnels. Written by who captures it, read by controllers (interop.md §7).
pub(super) const REDIRECTION: &str = "ambient.istio.io/redirection";
pub(super) const ENABLED: &str = "enabled";
/// On the mirror of a static pod: what the kubelet takes for its uid.
const MIRROR: &str = "kubernetes.io/config.mirror";
const LINKERD_CONTAINER: &str = "linkerd-proxy";
/// On the pod in which KubeVirt runs a machine.
const KUBEVIRT: &str = "kubevirt.io/domain";
/// How runtime classes are called whose pods have a kernel of their own, by their authors' documentation.
const SANDBOXES: [&str; 4] = ["kata", "gvisor", "runsc", "firecracker"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    Ambient,
    None,
    /// A value that nobody knows.
    Other(String),
}

/// A pod, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub uid: String,
    /// The uid by which the kubelet and the runtime know it: of a static pod the API server has only a mirror, with a uid of
    /// its own.
    pub known_as: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub addresses: Vec<IpAddr>,
    pub mode: Option<Mode>,
    pub host_network: bool,
    /// It will never run again.
    pub finished: bool,
    /// It is being deleted.
    pub leaving: bool,
    /// Its TCP is dropped rather than passed while it is not sure to be captured.
    pub strict: bool,
    /// A value of the annotation about that which nobody knows.
    pub unknown_capture: Option<String>,
    /// The API server says that it is captured.
    pub marked: bool,
    pub obstacle: Option<Obstacle>,
}

/// Why a pod cannot be captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Somebody's proxy is in it.
    Sidecar(&'static str),
    /// Its applications talk through another kernel than the node's, past the sockets and rules of its network namespace.
    OwnKernel(String),
}

/// Whose objects are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Namespace,
    Pod,
}

pub(super) const NAMESPACE: Keep =
    Only(&[("metadata", Only(&[("name", All), ("labels", Only(&[(MODE, All)])), ("resourceVersion", All)]))]);

const CONTAINERS: Keep = Only(&[("name", All)]);

pub(super) const POD: Keep = Only(&[
    (
        "metadata",
        Only(&[
            ("uid", All),
            ("name", All),
            ("namespace", All),
            ("labels", Only(&[(MODE, All)])),
            (
                "annotations",
                Only(&[
                    (ISTIO, All),
                    (LINKERD, All),
                    (KUBEVIRT, All),
                    (CAPTURE, All),
                    (REDIRECTION, All),
                    (MIRROR, All),
                ]),
            ),
            ("deletionTimestamp", All),
            ("resourceVersion", All),
        ]),
    ),
    (
        "spec",
        Only(&[
            ("serviceAccountName", All),
            ("hostNetwork", All),
            ("runtimeClassName", All),
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
        ]),
    ),
    ("status", Only(&[("phase", All), ("podIP", All), ("podIPs", All)])),
]);

pub(super) fn namespaces() -> Resource {
    Resource {
        name: "Namespace",
        path: "/api/v1/namespaces".into(),
        metadata_only: true,
        custom: false,
        keep: NAMESPACE,
        field_selector: None,
    }
}

pub(super) fn pods_of(node: &str) -> Resource {
    Resource {
        name: "Pod",
        path: "/api/v1/pods".into(),
        metadata_only: false,
        custom: false,
        keep: POD,
        field_selector: Some(format!("spec.nodeName={node}")),
    }
}

impl Mode {
    pub(super) fn of(object: &Value) -> Option<Self> {
        object["metadata"]["labels"][MODE].as_str().map(|value| match value {
            "ambient" => Self::Ambient,
            "none" => Self::None,
            other => Self::Other(other.to_owned()),
        })
    }
}

impl Seen {
    /// `None` for what is no pod.
    pub(super) fn read(object: &Value) -> Option<Self> {
        let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let several = status["podIPs"].as_array().into_iter().flatten().map(|one| &one["ip"]);
        let one = Some(&status["podIP"]).filter(|_| status["podIPs"].is_null());
        let addresses = several.chain(one).filter_map(|ip| ip.as_str()?.parse().ok()).collect();
        let uid = text(&metadata["uid"])?;
        Some(Self {
            known_as: text(&metadata["annotations"][MIRROR]).unwrap_or_else(|| uid.clone()),
            uid,
            namespace: text(&metadata["namespace"])?,
            name: text(&metadata["name"])?,
            service_account: text(&spec["serviceAccountName"]).unwrap_or_else(|| "default".to_owned()),
            addresses,
            mode: Mode::of(object),
            host_network: spec["hostNetwork"] == true,
            finished: matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")),
            leaving: !metadata["deletionTimestamp"].is_null(),
            strict: metadata["annotations"][CAPTURE] != "permissive",
            unknown_capture: text(&metadata["annotations"][CAPTURE])
                .filter(|value| !["permissive", "strict"].contains(&value.as_str())),
            marked: metadata["annotations"][REDIRECTION] == ENABLED,
            obstacle: Obstacle::find(object),
        })
    }
}

impl Obstacle {
    fn find(pod: &Value) -> Option<Self> {
        let (spec, annotations) = (&pod["spec"], &pod["metadata"]["annotations"]);
        let containers = ["containers", "initContainers"].into_iter();
        let mut containers = containers.flat_map(|key| spec[key].as_array().into_iter().flatten());
        if !annotations[ISTIO].is_null() {
            return Some(Self::Sidecar("Istio's"));
        }
        if !annotations[LINKERD].is_null() || containers.any(|one| one["name"] == LINKERD_CONTAINER) {
            return Some(Self::Sidecar("Linkerd's"));
        }
        if !annotations[KUBEVIRT].is_null() {
            return Some(Self::OwnKernel("a virtual machine of KubeVirt".to_owned()));
        }
        let class = spec["runtimeClassName"].as_str()?;
        let sandboxed = SANDBOXES.iter().any(|name| class.contains(name));
        sandboxed.then(|| Self::OwnKernel(format!("a pod of the runtime class {class}")))
    }
}
