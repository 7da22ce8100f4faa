//! The pure decision (interop.md sections 9.2 and 9.3): DENY before ALLOW, and who decided is part of the answer.

use std::fmt;
use std::net::SocketAddr;

use super::{Action, Match, Policy, PolicyKey, ServiceAccountMatch, StringMatch};
use crate::identity::Identity;

/// What is known of a connection when it is authorized.
#[derive(Clone, Debug)]
pub struct Connection<'a> {
    /// Verified identity of the peer; `None` for plaintext.
    pub identity: Option<&'a Identity>,
    /// Peer of the TCP connection.
    pub source: SocketAddr,
    /// Address and real port of the application.
    pub destination: SocketAddr,
}

/// The answer, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No enforced ALLOW policy applies, so everything that is not denied passes.
    AllowedByDefault,
    AllowedBy(PolicyKey),
    DeniedBy(PolicyKey),
    /// Enforced ALLOW policies apply and none matches.
    NoAllowMatched,
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::AllowedByDefault | Self::AllowedBy(_))
    }
}

/// What a dry-run policy would have done; only for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    DenyMatch(PolicyKey),
    AllowMatch(PolicyKey),
    /// Only dry-run ALLOW policies exist and none matches.
    NoAllowMatched,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllowedByDefault => f.write_str("allowed, no allow policy applies"),
            Self::AllowedBy(key) => write!(f, "allowed by: {key}"),
            Self::DeniedBy(key) => write!(f, "explicitly denied by: {key}"),
            Self::NoAllowMatched => f.write_str("allow policies exist, but none allowed"),
        }
    }
}

/// Decides over the policies that apply to the destination. Allocates only when a policy is named.
pub fn decide<'a, I>(policies: I, connection: &Connection<'_>) -> Decision
where
    I: Iterator<Item = &'a Policy>,
{
    let mut allowed_by = None;
    let mut allow_exists = false;
    for policy in policies.filter(|policy| !policy.dry_run) {
        match policy.action {
            Action::Deny if policy.matches(connection) => return Decision::DeniedBy(policy.key.clone()),
            Action::Deny => {}
            Action::Allow => {
                allow_exists = true;
                if allowed_by.is_none() && policy.matches(connection) {
                    allowed_by = Some(&policy.key);
                }
            }
        }
    }
    match (allow_exists, allowed_by) {
        (false, _) => Decision::AllowedByDefault,
        (true, Some(key)) => Decision::AllowedBy(key.clone()),
        (true, None) => Decision::NoAllowMatched,
    }
}

/// What the dry-run policies among those that apply would have said.
pub fn dry_run<'a, I>(policies: I, connection: &Connection<'_>) -> Vec<DryRun>
where
    I: Iterator<Item = &'a Policy>,
{
    let mut outcomes = Vec::new();
    let (mut enforced_allow, mut dry_allow, mut dry_allow_matched) = (false, false, false);
    for policy in policies {
        match (policy.action, policy.dry_run) {
            (Action::Allow, false) => enforced_allow = true,
            (Action::Deny, false) => {}
            (Action::Deny, true) if policy.matches(connection) => {
                outcomes.push(DryRun::DenyMatch(policy.key.clone()))
            }
            (Action::Deny, true) => {}
            (Action::Allow, true) => {
                dry_allow = true;
                if policy.matches(connection) {
                    dry_allow_matched = true;
                    outcomes.push(DryRun::AllowMatch(policy.key.clone()));
                }
            }
        }
    }
    if dry_allow && !dry_allow_matched && !enforced_allow {
        outcomes.push(DryRun::NoAllowMatched);
    }
    outcomes
}

impl Policy {
    fn matches(&self, connection: &Connection<'_>) -> bool {
        self.rules.iter().any(|rule| {
            rule.clauses.iter().all(|clause| {
                clause.matches.is_empty() || clause.matches.iter().any(|one| one.matches(connection))
            })
        })
    }
}

impl Match {
    fn matches(&self, connection: &Connection<'_>) -> bool {
        let identity = connection.identity;
        let namespace = identity.map_or("", Identity::namespace);
        let source = connection.source.ip().to_canonical();
        let destination = connection.destination.ip().to_canonical();
        let port = connection.destination.port();
        let account = |one: &ServiceAccountMatch| {
            identity.is_some_and(|identity| {
                one.namespace == identity.namespace() && one.service_account == identity.service_account()
            })
        };
        !self.is_empty()
            && field(&self.namespaces, &self.not_namespaces, |one| one.matches([namespace]))
            && field(&self.service_accounts, &self.not_service_accounts, account)
            && field(&self.principals, &self.not_principals, |one| {
                identity.is_some_and(|identity| one.matches(principal(identity)))
            })
            && field(&self.source_ips, &self.not_source_ips, |one| one.contains(&source))
            && field(&self.destination_ips, &self.not_destination_ips, |one| one.contains(&destination))
            && field(&self.destination_ports, &self.not_destination_ports, |one| *one == port)
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The pieces of the principal; compared piece by piece, so that no text is made for a decision.
fn principal(identity: &Identity) -> [&str; 5] {
    [identity.trust_domain(), "/ns/", identity.namespace(), "/sa/", identity.service_account()]
}

impl StringMatch {
    fn matches<const N: usize>(&self, pieces: [&str; N]) -> bool {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let bytes = || pieces.iter().flat_map(|piece| piece.bytes());
        match self {
            Self::Exact(text) => text.len() == length && text.bytes().eq(bytes()),
            Self::Prefix(text) => text.len() <= length && text.bytes().eq(bytes().take(text.len())),
            Self::Suffix(text) => text.len() <= length && text.bytes().eq(bytes().skip(length - text.len())),
            Self::Presence => length > 0,
        }
    }
}

/// A field and its `not_` twin: one value of the first matches if it has any, and none of the second.
fn field<T>(positive: &[T], negative: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&matches)) && !negative.iter().any(&matches)
}

#[cfg(test)]
mod tests;
