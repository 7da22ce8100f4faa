//! PeerAuthentication as the proxies' policies (interop.md section 9.5).
//!
//! Port before workload before namespace before mesh; of several on one level the oldest wins, and of equally old ones
//! the first by name; UNSET inherits, and where nothing is said the mode is PERMISSIVE. DISABLE is as PERMISSIVE: whether
//! a peer may speak plaintext is all that a policy of layer 4 says.

use std::sync::Arc;

use ztunnel_model::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};

use super::status::Reason;
use crate::object::{Labels, Mode, Name, PeerAuthentication};

/// Names have an underscore, so that no object of Kubernetes can have one of them.
const STATIC_STRICT: &str = "istio_converted_static_strict";
const CONVERTED: &str = "converted_peer_authentication_";

/// What a PeerAuthentication says to the workloads it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Permissive,
    /// The policy that all strict workloads share.
    Strict,
    /// Its own policy, because ports differ.
    Own,
}

/// Which one wins on a level: the smallest. One that cannot be read in whole comes before all that can, because it may
/// close what they leave open.
pub(super) type Seniority = (bool, Option<i64>, Arc<str>);

pub(super) fn seniority(peer: &PeerAuthentication) -> Seniority {
    (peer.unread.is_empty(), peer.created, peer.name.name.clone())
}

pub(super) fn selector(peer: &PeerAuthentication) -> Option<&Labels> {
    peer.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// Whether plaintext is refused under a mode, given what holds above it.
pub(super) fn is_strict(mode: Mode, above: bool) -> bool {
    match mode {
        Mode::Unset => above,
        Mode::Strict => true,
        Mode::Permissive | Mode::Disable => false,
    }
}

/// What workloads get whose decisive PeerAuthentication with a selector is this one.
pub(super) fn verdict(peer: &PeerAuthentication, above: bool) -> Verdict {
    let strict = is_strict(peer.mode, above);
    match (strict, exceptions(peer, strict).next()) {
        (_, Some(_)) => Verdict::Own,
        (true, None) => Verdict::Strict,
        (false, None) => Verdict::Permissive,
    }
}

pub(super) fn strict_key(root_namespace: &str) -> PolicyKey {
    PolicyKey { namespace: root_namespace.to_owned(), name: STATIC_STRICT.to_owned() }
}

pub(super) fn own_key(peer: &Name) -> PolicyKey {
    PolicyKey { namespace: peer.namespace.to_string(), name: format!("{CONVERTED}{}", peer.name) }
}

/// Denies everyone without an identity.
pub(super) fn strict_policy(root_namespace: &str) -> Policy {
    deny(strict_key(root_namespace), vec![rule([no_identity()])])
}

/// The policy of a PeerAuthentication whose ports differ from its own mode; `None` if none does.
pub(super) fn own_policy(peer: &PeerAuthentication, above: bool) -> Option<Policy> {
    let strict = is_strict(peer.mode, above);
    let ports: Vec<u16> = exceptions(peer, strict).collect();
    if ports.is_empty() {
        return None;
    }
    let rules = if strict {
        // Every permissive port is one more condition for refusing.
        let elsewhere = |port| Match { not_destination_ports: vec![port], ..Match::default() };
        vec![rule([no_identity()].into_iter().chain(ports.into_iter().map(elsewhere)))]
    } else {
        let there = |port| Match { destination_ports: vec![port], ..no_identity() };
        ports.into_iter().map(|port| rule([there(port)])).collect()
    };
    Some(deny(own_key(&peer.name), rules))
}

/// Why parts of a PeerAuthentication have no effect.
pub(super) fn reasons(peer: &PeerAuthentication, root_namespace: &str) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut say = |field: &str, text: &str| {
        reasons.push(Reason { field: field.to_owned(), text: text.to_owned() });
    };
    let selects = selector(peer).is_some();
    if selects && *peer.name.namespace == *root_namespace {
        say(
            "spec.selector",
            "has no effect in the root namespace, whose policies are for the whole mesh; move the policy to the \
             namespace of the workloads",
        );
    }
    let consequence = "the mode is STRICT until it is mended";
    reasons.extend(peer.unread.iter().map(|unread| unread.reason(consequence)));
    let mut say = |field: &str, text: &str| {
        reasons.push(Reason { field: field.to_owned(), text: text.to_owned() });
    };
    if !selects && !peer.ports.is_empty() {
        say("spec.portLevelMtls", "has no effect without a selector; add spec.selector.matchLabels");
    }
    reasons
}

fn exceptions(peer: &PeerAuthentication, strict: bool) -> impl Iterator<Item = u16> {
    peer.ports.iter().filter(move |(_, mode)| is_strict(**mode, strict) != strict).map(|(port, _)| *port)
}

fn no_identity() -> Match {
    Match { not_principals: vec![StringMatch::Presence], ..Match::default() }
}

fn rule(matches: impl IntoIterator<Item = Match>) -> Rule {
    Rule { clauses: matches.into_iter().map(|one| Clause { matches: vec![one] }).collect() }
}

fn deny(key: PolicyKey, rules: Vec<Rule>) -> Policy {
    Policy { key, scope: Scope::WorkloadSelector, action: Action::Deny, dry_run: false, rules }
}

#[cfg(test)]
mod tests;
