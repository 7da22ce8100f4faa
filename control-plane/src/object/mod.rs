//! Kubernetes and Istio objects, reduced to what the index reads of them. Sources fill these; nothing here knows where an
//! object came from or how it was written.

mod core;
mod policy;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use self::core::{
    Endpoint, EndpointSlice, Namespace, Node, Owner, Pod, Port, Service, ServiceAccount, Target,
    TrafficDistribution,
};
pub use self::policy::{
    Action, AuthorizationPolicy, Condition, From, Mode, Operation, Part, PeerAuthentication, Rule, Source,
    To, Unread, block, port, service_account, text,
};

pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Node,
    ServiceAccount,
    Pod,
    Service,
    EndpointSlice,
    AuthorizationPolicy,
    PeerAuthentication,
}

/// Namespace and name; the namespace of what has none is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Namespace),
    Node(Node),
    ServiceAccount(ServiceAccount),
    Pod(Box<Pod>),
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    AuthorizationPolicy(AuthorizationPolicy),
    PeerAuthentication(PeerAuthentication),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Set(Object),
    Remove(Key),
}

impl Name {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind.as_str(), self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind.as_str(), self.name),
        }
    }
}

impl Key {
    pub fn new(kind: Kind, name: &Name) -> Self {
        Self { kind, namespace: name.namespace.clone(), name: name.name.clone() }
    }
}

impl Object {
    pub fn is_policy(&self) -> bool {
        matches!(self, Self::AuthorizationPolicy(_) | Self::PeerAuthentication(_))
    }

    /// What of a policy is written but not known.
    pub fn unread_mut(&mut self) -> &mut [Unread] {
        match self {
            Self::AuthorizationPolicy(one) => &mut one.unread,
            Self::PeerAuthentication(one) => &mut one.unread,
            _ => &mut [],
        }
    }

    pub fn key(&self) -> Key {
        let cluster_wide = |kind, name: &Arc<str>| Key { kind, namespace: "".into(), name: name.clone() };
        match self {
            Self::Namespace(one) => cluster_wide(Kind::Namespace, &one.name),
            Self::Node(one) => cluster_wide(Kind::Node, &one.name),
            Self::ServiceAccount(one) => Key::new(Kind::ServiceAccount, &one.name),
            Self::Pod(one) => Key::new(Kind::Pod, &one.name),
            Self::Service(one) => Key::new(Kind::Service, &one.name),
            Self::EndpointSlice(one) => Key::new(Kind::EndpointSlice, &one.name),
            Self::AuthorizationPolicy(one) => Key::new(Kind::AuthorizationPolicy, &one.name),
            Self::PeerAuthentication(one) => Key::new(Kind::PeerAuthentication, &one.name),
        }
    }
}
