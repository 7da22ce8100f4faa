//! What is served over xDS: resources of a few kinds, already encoded. The index makes them, the xDS server sends them;
//! neither knows the other.

use std::sync::Arc;

use bytes::Bytes;

/// A type of resource, and its type URL on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A workload or a service.
    Address,
    Authorization,
    /// What the CA has revoked: one resource, named "default".
    RevocationList,
}

/// One resource as it is to be known to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub kind: Kind,
    /// A workload's uid, a service's `namespace/hostname`, a policy's `namespace/name`.
    pub name: Arc<str>,
    /// Other keys under which an on-demand client may ask for it: `network/ip` for each exact address that leads to it.
    pub aliases: Vec<Arc<str>>,
    /// Names of resources that are of no use without this one: a workload's services. Who asks for one of them gets this
    /// too. They belong to nothing themselves.
    pub belongs_to: Vec<Arc<str>>,
    /// The node that a workload runs on.
    pub node: Option<Arc<str>>,
    /// The encoded message itself, not wrapped in an `Any`.
    pub body: Bytes,
}

/// What differs from before; a resource whose body stayed the same is in neither list. Policies stand before the
/// workloads that name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub set: Vec<Resource>,
    pub removed: Vec<(Kind, Arc<str>)>,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Address, Self::Authorization, Self::RevocationList];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::RevocationList => "type.googleapis.com/ztunnel.ca.RevocationList",
        }
    }

    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}
