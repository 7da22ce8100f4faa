//! One document as objects: which kind it is, whether its fields stand where they belong, and what of it is wrong.

use ztunnel_model::codec::located::{Mistake, Place};

use super::text::Meta;
use super::{core, policy};
use crate::object::{Key, Kind, Name, Object};

/// What a document that is read here says.
#[derive(Clone, Debug)]
pub(in crate::source) struct Manifest {
    /// `None` if it does not even say what it describes.
    pub key: Option<Key>,
    /// With mistakes: a policy, as far as it can be held to on the safe side.
    pub object: Option<Object>,
    pub line: usize,
    pub mistakes: Vec<Mistake>,
}

/// Kinds of others that people write beside these, with the fields that they have besides `spec`.
const SPECIFIED: [&str; 12] = [
    "NetworkPolicy",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "Job",
    "CronJob",
    "Ingress",
    "HTTPRoute",
    "Gateway",
    "RequestAuthentication",
    "DestinationRule",
];
const ROOT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
const META: [&str; 16] = [
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
    "clusterName",
];

struct Schema {
    kind: Kind,
    group: &'static str,
    versions: &'static [&'static str],
    /// Top-level keys besides `apiVersion`, `kind` and `metadata`.
    keys: &'static [&'static str],
    namespaced: bool,
}

const fn schema(
    kind: Kind,
    group: &'static str,
    versions: &'static [&'static str],
    keys: &'static [&'static str],
) -> Schema {
    Schema { kind, group, versions, keys, namespaced: !matches!(kind, Kind::Namespace | Kind::Node) }
}

const SECURITY: &str = "security.istio.io";
const SPEC: &[&str] = &["spec", "status"];
const SCHEMAS: [Schema; 8] = [
    schema(Kind::Namespace, "", &["v1"], SPEC),
    schema(Kind::Node, "", &["v1"], SPEC),
    schema(
        Kind::ServiceAccount,
        "",
        &["v1"],
        &["secrets", "imagePullSecrets", "automountServiceAccountToken"],
    ),
    schema(Kind::Pod, "", &["v1"], SPEC),
    schema(Kind::Service, "", &["v1"], SPEC),
    schema(Kind::EndpointSlice, "discovery.k8s.io", &["v1"], &["addressType", "endpoints", "ports"]),
    schema(Kind::AuthorizationPolicy, SECURITY, &["v1", "v1beta1"], SPEC),
    schema(Kind::PeerAuthentication, SECURITY, &["v1", "v1beta1"], SPEC),
];

/// The manifests of a document: one, those of a list, or none if it is of a kind that is not read here.
pub(super) fn read(root: &Place<'_>) -> Vec<Manifest> {
    if root.is_null() {
        return Vec::new();
    }
    let text = |key: &str| root.get(key).and_then(|place| place.text());
    let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        return vec![nameless(root, missing_header(root))];
    };
    if kind == "List" || (kind.ends_with("List") && root.get("items").is_some()) {
        return root.key("items").items().flat_map(|item| read(&item)).collect();
    }
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let Some(schema) = SCHEMAS.iter().find(|one| one.kind.as_str() == kind) else {
        let mistakes = match group {
            SECURITY if kind != "RequestAuthentication" => {
                let known =
                    "AuthorizationPolicy, PeerAuthentication or, not read here, RequestAuthentication";
                vec![root.key("kind").mistake(format!("{kind:?} is no kind of {SECURITY}; write {known}"))]
            }
            _ if SPECIFIED.contains(&kind) => misplaced(root, kind, &ROOT),
            _ => Vec::new(),
        };
        return if mistakes.is_empty() { Vec::new() } else { vec![nameless(root, mistakes)] };
    };
    if schema.group != group && schema.group != SECURITY {
        return Vec::new();
    }
    let mut manifest = read_known(root, schema);
    if schema.group != group || !schema.versions.contains(&version) {
        let known = match schema.group {
            "" => schema.versions.join(" or "),
            group => format!("{group}/{}", schema.versions.join(&format!(" or {group}/"))),
        };
        let reason = format!("a {kind} of this version is not read here; write {known}");
        manifest.mistakes.push(root.key("apiVersion").mistake(reason));
        // What is known of a policy is held to.
        manifest.object.take_if(|object| !object.is_policy());
    }
    vec![manifest]
}

fn nameless(root: &Place<'_>, mistakes: Vec<Mistake>) -> Manifest {
    Manifest { key: None, object: None, line: root.mistake("").line, mistakes }
}

fn missing_header(root: &Place<'_>) -> Vec<Mistake> {
    let missing = ["apiVersion", "kind"].into_iter().filter_map(|key| match root.get(key) {
        Some(place) if place.text().is_some() => None,
        Some(place) => Some(place.mistake("expected a text")),
        None => Some(root.mistake(format!("the key {key:?} is missing: a manifest says what it describes"))),
    });
    missing.collect()
}

fn read_known(root: &Place<'_>, schema: &Schema) -> Manifest {
    let kind = schema.kind.as_str();
    let known: Vec<&str> = ["apiVersion", "kind", "metadata"].iter().chain(schema.keys).copied().collect();
    let mut mistakes = misplaced(root, kind, &known);
    let metadata = root.key("metadata");
    let name = metadata.get("name").and_then(|place| place.text()).filter(|name| !name.is_empty());
    let namespace = metadata.get("namespace").and_then(|place| place.text());
    let namespace = match namespace {
        _ if !schema.namespaced => "",
        Some("") | None => "default",
        Some(namespace) => namespace,
    };
    let key = name.map(|name| Key::new(schema.kind, &Name::new(namespace, name)));
    let meta = meta(root, schema, &mut mistakes);
    // A policy closes as much as it should even where a part of it is not known. Only where it stands must be.
    let is_policy = matches!(schema.kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication);
    let safe = is_policy && is_placed(&metadata);
    // Read even without its metadata: all mistakes are named at once.
    let meta = meta.unwrap_or_default();
    let object =
        object(root, schema.kind, Name::new(namespace, name.unwrap_or_default()), &meta, &mut mistakes);
    let object = object.filter(|_| mistakes.is_empty() || safe);
    Manifest { key, object, line: root.mistake("").line, mistakes }
}

fn object(
    root: &Place<'_>,
    kind: Kind,
    name: Name,
    meta: &Meta,
    mistakes: &mut Vec<Mistake>,
) -> Option<Object> {
    Some(match kind {
        Kind::Namespace => Object::Namespace(core::namespace(name, meta)),
        Kind::Node => Object::Node(core::node(name, meta)),
        Kind::ServiceAccount => Object::ServiceAccount(crate::object::ServiceAccount { name }),
        Kind::Pod => Object::Pod(Box::new(core::pod(root, name, meta, mistakes)?)),
        Kind::Service => Object::Service(Box::new(core::service(root, name, meta, mistakes)?)),
        Kind::EndpointSlice => Object::EndpointSlice(core::slice(root, name, meta, mistakes)?),
        Kind::AuthorizationPolicy => {
            Object::AuthorizationPolicy(policy::authorization(root, name, meta, mistakes))
        }
        Kind::PeerAuthentication => Object::PeerAuthentication(policy::peer(root, name, meta, mistakes)),
    })
}

fn meta(root: &Place<'_>, schema: &Schema, mistakes: &mut Vec<Mistake>) -> Option<Meta> {
    let Some(place) = root.get("metadata") else {
        mistakes.push(root.mistake("the key \"metadata\" is missing; write metadata: with name: under it"));
        return None;
    };
    place.only_keys(&META, mistakes);
    let labels_only = matches!(schema.kind, Kind::Namespace | Kind::Service);
    let text = |key: &str| place.get(key).and_then(|place| place.text());
    if let Some(name) = text("name").filter(|name| !is_name(name, labels_only)) {
        mistakes.push(place.key("name").mistake(not_a_name(name)));
    }
    match text("namespace") {
        Some(namespace) if !schema.namespaced && !namespace.is_empty() => {
            let reason = format!("a {} has no namespace; remove it", schema.kind.as_str());
            mistakes.push(place.key_mistake("namespace", reason));
        }
        Some(namespace) if !namespace.is_empty() && !is_name(namespace, true) => {
            mistakes.push(place.key("namespace").mistake(not_a_name(namespace)));
        }
        _ => {}
    }
    place.decode_known(mistakes)
}

/// Whether the name and the namespace of a policy are known for certain.
fn is_placed(metadata: &Place<'_>) -> bool {
    let is_named =
        metadata.get("name").and_then(|place| place.text()).is_some_and(|name| is_name(name, false));
    is_named
        && match metadata.get("namespace") {
            Some(place) if place.is_null() => true,
            Some(place) => place.text().is_some_and(|name| name.is_empty() || is_name(name, true)),
            // It may be misspelt.
            None => metadata.keys().all(|key| META.contains(&key)),
        }
}

fn not_a_name(name: &str) -> String {
    format!(
        "{name:?} is not a name; write lower-case letters, digits and '-', with a letter or digit at both ends"
    )
}

fn is_name(name: &str, is_label: bool) -> bool {
    let label = |label: &str| {
        let edge =
            |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && edge(label.bytes().next())
            && edge(label.bytes().last())
    };
    if is_label { name.len() <= 63 && label(name) } else { name.len() <= 253 && name.split('.').all(label) }
}

/// Keys at the top that belong below it.
fn misplaced(root: &Place<'_>, kind: &str, known: &[&str]) -> Vec<Mistake> {
    let mistake = |key: &str| {
        let reason = if META.contains(&key) {
            format!("{key:?} does not stand at the top of a {kind}; move it under metadata:")
        } else if known.contains(&"spec") {
            format!(
                "{key:?} does not stand at the top of a {kind}; its fields stand under spec: move it there"
            )
        } else {
            format!("unknown key {key:?} (known: {})", known.join(", "))
        };
        root.key_mistake(key, reason)
    };
    root.keys().filter(|key| !known.contains(key)).map(mistake).collect()
}
