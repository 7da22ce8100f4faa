//! What became of each policy, in words for the one who wrote it.

use std::fmt;
use std::sync::Arc;

use ztunnel_model::policy::Scope;

use super::{Index, authorization, peer};
use crate::object::{Key, Kind, Name, Unread};
use crate::resource;

const SHADOWED: &str = "has no effect:";

/// How much of a policy the proxies enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    Full,
    /// A part is left out or cannot be enforced; the rest is not wider for it.
    Partial,
    None,
}

/// A field that is not enforced as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// For example `spec.rules[0].to[1].operation.methods`.
    pub field: String,
    /// Why, what comes of it, and what to do.
    pub text: String,
}

/// The status line of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyStatus {
    /// `AuthorizationPolicy` or `PeerAuthentication`.
    pub kind: &'static str,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub enforcement: Enforcement,
    /// Names of the resources that it became.
    pub resources: Vec<Arc<str>>,
    pub reasons: Vec<Reason>,
    /// How many workloads it applies to.
    pub workloads: usize,
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "enforced",
            Self::Partial => "partly enforced",
            Self::None => "not enforced",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}

impl Unread {
    /// Where it stands, what is wrong with it, and what comes of it.
    pub(super) fn reason(&self, consequence: &str) -> Reason {
        let at = &self.at;
        let place = match self.document {
            0 => at.file.clone(),
            document => format!("{}:{}:{}, document {document}", at.file, at.line, at.column),
        };
        let text = format!("{}; {consequence} ({place})", at.reason);
        let field = if at.path.is_empty() { "spec" } else { &at.path };
        Reason { field: field.to_owned(), text }
    }
}

impl Index {
    /// What became of each policy, in no particular order.
    pub fn statuses(&self) -> impl Iterator<Item = PolicyStatus> {
        let authorizations = self.held.authorizations.keys().map(|name| self.authorization_status(name));
        authorizations.chain(self.held.peers.keys().map(|name| self.peer_status(name)))
    }

    /// That another PeerAuthentication of the same level is in force instead.
    pub(super) fn shadowed(&self, name: &Name) -> Option<Reason> {
        let object = self.held.peers.get(name).filter(|object| peer::selector(object).is_none())?;
        let winner = self.held.peer_in_force(&name.namespace).filter(|winner| winner.name != object.name)?;
        let text = format!(
            "{SHADOWED} {} comes first and is in force for the same namespace; keep one of them",
            winner.name
        );
        Some(Reason { field: "spec".to_owned(), text })
    }

    fn authorization_status(&self, name: &Name) -> PolicyStatus {
        let object = &self.held.authorizations[name];
        let key = Key::new(Kind::AuthorizationPolicy, name);
        let reasons = self.reasons.get(&key).cloned().unwrap_or_default();
        let resource: Arc<str> = name.to_string().as_str().into();
        let emitted = self.emitted.contains(resource::Kind::Authorization, &resource);
        let workloads = match authorization::scope(object, &self.config.root_namespace) {
            _ if !emitted => 0,
            Scope::WorkloadSelector => self.attached.get(&key).copied().unwrap_or(0),
            Scope::Namespace => self.workloads.get(&name.namespace).copied().unwrap_or(0),
            Scope::Global => self.workloads.values().sum(),
        };
        let resources = if emitted { vec![resource] } else { Vec::new() };
        self.status(key, emitted, resources, reasons, workloads)
    }

    fn peer_status(&self, name: &Name) -> PolicyStatus {
        let object = &self.held.peers[name];
        let key = Key::new(Kind::PeerAuthentication, name);
        let root = &self.config.root_namespace;
        let in_root = *name.namespace == **root;
        let mut reasons = self.reasons.get(&key).cloned().unwrap_or_default();
        let (in_force, strict, workloads) = if peer::selector(object).is_some() {
            let strict = peer::verdict(object, self.held.is_strict(&name.namespace));
            let count = self.attached.get(&key).copied().unwrap_or(0);
            (!in_root, strict == peer::Verdict::Strict, count)
        } else {
            let shadow = self.shadowed(name);
            let in_force = shadow.is_none();
            // Another policy may have come or gone since this one was looked at.
            reasons.retain(|reason| !reason.text.starts_with(SHADOWED));
            reasons.extend(shadow);
            let count = match (in_force, in_root) {
                (false, _) => 0,
                (true, true) => self.workloads.values().sum(),
                (true, false) => self.workloads.get(&name.namespace).copied().unwrap_or(0),
            };
            (in_force, self.held.is_strict(&name.namespace), count)
        };
        let shared = peer::strict_key(root).to_string().as_str().into();
        let own = peer::own_key(name).to_string().as_str().into();
        let resources = [(shared, in_force && strict), (own, true)];
        let resources = resources.into_iter().filter(|(name, names_it)| {
            *names_it && self.emitted.contains(resource::Kind::Authorization, name)
        });
        let resources = resources.map(|(name, _)| name).collect();
        self.status(key, in_force, resources, reasons, workloads)
    }

    fn status(
        &self,
        key: Key,
        enforced: bool,
        resources: Vec<Arc<str>>,
        reasons: Vec<Reason>,
        workloads: usize,
    ) -> PolicyStatus {
        let enforcement = match (enforced, reasons.is_empty()) {
            (false, _) => Enforcement::None,
            (true, true) => Enforcement::Full,
            (true, false) => Enforcement::Partial,
        };
        PolicyStatus {
            kind: key.kind.as_str(),
            namespace: key.namespace,
            name: key.name,
            enforcement,
            resources,
            reasons,
            workloads,
        }
    }
}
