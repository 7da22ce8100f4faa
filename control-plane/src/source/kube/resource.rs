//! The kinds that are followed: where the API has them, and what is read of them.

use reflector::Keep::{self, All, But, Nothing, Only};
use serde_json::Value;

use crate::object::{Key, Kind, Name};
use crate::source::file::{Manifest, read_json};

#[derive(Debug)]
pub(super) struct Resource {
    pub kind: Kind,
    pub version: &'static str,
    /// The list of all of them.
    pub path: &'static str,
    /// The API server is asked for no more than the metadata.
    pub metadata_only: bool,
    /// Made by a CustomResourceDefinition, which may not be there.
    pub custom: bool,
    pub keep: Keep,
}

/// ServiceAccounts are not among them: pods name theirs, and the index reads nothing of the objects.
pub(super) const RESOURCES: [Resource; 7] = [
    Resource {
        kind: Kind::Namespace,
        version: "v1",
        path: "/api/v1/namespaces",
        metadata_only: true,
        custom: false,
        keep: METADATA_ONLY,
    },
    Resource {
        kind: Kind::Node,
        version: "v1",
        path: "/api/v1/nodes",
        metadata_only: true,
        custom: false,
        keep: METADATA_ONLY,
    },
    Resource {
        kind: Kind::Pod,
        version: "v1",
        path: "/api/v1/pods",
        metadata_only: false,
        custom: false,
        keep: POD,
    },
    Resource {
        kind: Kind::Service,
        version: "v1",
        path: "/api/v1/services",
        metadata_only: false,
        custom: false,
        keep: Only(&[("metadata", METADATA), ("spec", All), ("status", All)]),
    },
    Resource {
        kind: Kind::EndpointSlice,
        version: "discovery.k8s.io/v1",
        path: "/apis/discovery.k8s.io/v1/endpointslices",
        metadata_only: false,
        custom: false,
        keep: Only(&[("metadata", METADATA), ("addressType", All), ("endpoints", All), ("ports", All)]),
    },
    Resource {
        kind: Kind::AuthorizationPolicy,
        version: SECURITY,
        path: "/apis/security.istio.io/v1/authorizationpolicies",
        metadata_only: false,
        custom: true,
        keep: POLICY,
    },
    Resource {
        kind: Kind::PeerAuthentication,
        version: SECURITY,
        path: "/apis/security.istio.io/v1/peerauthentications",
        metadata_only: false,
        custom: true,
        keep: POLICY,
    },
];

const SECURITY: &str = "security.istio.io/v1";

/// Annotations can be long, as the manifest that kubectl leaves there.
const ANNOTATIONS: Keep = Only(&[
    ("sidecar.istio.io/status", All),
    ("ambient.istio.io/redirection", All),
    ("networking.istio.io/traffic-distribution", All),
    ("istio.io/dry-run", All),
]);
const METADATA: Keep = Only(&[
    ("name", All),
    ("namespace", All),
    ("labels", All),
    ("annotations", ANNOTATIONS),
    ("creationTimestamp", All),
    ("deletionTimestamp", All),
    ("ownerReferences", Only(&[("kind", All), ("name", All), ("controller", All)])),
    ("resourceVersion", All),
]);
const METADATA_ONLY: Keep = Only(&[("metadata", METADATA)]);
const CONTAINERS: Keep = Only(&[("ports", All), ("restartPolicy", All)]);
const POD: Keep = Only(&[
    ("metadata", METADATA),
    (
        "spec",
        Only(&[
            ("nodeName", All),
            ("serviceAccountName", All),
            ("hostNetwork", All),
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
        ]),
    ),
    (
        "status",
        Only(&[
            ("phase", All),
            ("podIP", All),
            ("podIPs", All),
            ("conditions", Only(&[("type", All), ("status", All)])),
        ]),
    ),
]);
/// Everything in a policy is read: what is not known there is a mistake.
const POLICY: Keep = But(&[("metadata", METADATA), ("status", Nothing)]);

impl Resource {
    pub(super) fn of(kind: Kind) -> &'static Self {
        RESOURCES.iter().find(|one| one.kind == kind).expect("invariant: only these are followed")
    }

    pub(super) fn followed(&self) -> reflector::Resource {
        reflector::Resource {
            name: self.kind.as_str(),
            path: self.path.into(),
            metadata_only: self.metadata_only,
            custom: self.custom,
            keep: self.keep,
            field_selector: None,
        }
    }

    pub(super) fn read(&self, object: Value) -> Manifest {
        let key = Key::new(self.kind, &name(&object));
        let object = self.complete(object);
        read_json(&object.to_string(), &format!("Kubernetes: {key}"))
    }

    /// The API leaves them out in lists, and names others where only the metadata was asked for.
    fn complete(&self, mut object: Value) -> Value {
        if let Value::Object(fields) = &mut object {
            fields.insert("apiVersion".to_owned(), self.version.into());
            fields.insert("kind".to_owned(), self.kind.as_str().into());
        }
        object
    }
}

pub(super) fn name(object: &Value) -> Name {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    Name::new(text("namespace"), text("name"))
}
