//! AuthorizationPolicy as the proxies' policies (interop.md sections 9.1 to 9.3).
//!
//! What a proxy of layer 4 cannot know (HTTP attributes, values that cannot be read) never makes a policy wider. In an
//! ALLOW policy a rule with an HTTP attribute is left out, an unreadable value allows nobody, and an unreadable `not`
//! value lets its source or operation match nobody. In a DENY policy the unknown part counts as matched: it is left
//! away, and where nothing is left of a source, an operation or a condition, it holds for everyone. (istiod leaves an
//! empty match there, which no connection ever matches, so that such a rule denies nobody.)
//!
//! A part that could not even be read (`unread`) is the same: in an ALLOW policy its rule is left out, or all of them if it
//! stands outside of the rules; in a DENY policy it counts as matched.
//!
//! Which alternatives hold is only ever decided by `decide`; this module writes them down and says what it left out.

mod fields;

use ztunnel_model::policy::{self, Clause, Policy, PolicyKey, Scope};

use self::fields::{Fields, Outcome};
use super::status::Reason;
use crate::object::{Action, AuthorizationPolicy, Condition, Labels, Operation, Part, Rule, Source, Unread};

const WAYPOINT: &str = "is enforced by waypoints only";

pub(super) struct Converted {
    /// `None` when the proxies are not given the policy at all.
    pub policy: Option<Policy>,
    pub reasons: Vec<Reason>,
}

/// The selector of a policy that workloads have to name for it to apply to them.
pub(super) fn attachment(policy: &AuthorizationPolicy) -> Option<&Labels> {
    let enforced = matches!(policy.action, Action::Allow | Action::Deny) && policy.targets.is_empty();
    policy.selector.as_ref().filter(|selector| enforced && !selector.is_empty())
}

/// An empty selector selects everything, as none does.
pub(super) fn scope(policy: &AuthorizationPolicy, root_namespace: &str) -> Scope {
    match &policy.selector {
        Some(selector) if !selector.is_empty() => Scope::WorkloadSelector,
        _ if *policy.name.namespace == *root_namespace => Scope::Global,
        _ => Scope::Namespace,
    }
}

pub(super) fn convert(object: &AuthorizationPolicy, root_namespace: &str) -> Converted {
    let mut reasons = Vec::new();
    let mut say = |field: &str, text: String| reasons.push(Reason { field: field.to_owned(), text });
    let action = match object.action {
        Action::Allow => Some(policy::Action::Allow),
        Action::Deny => Some(policy::Action::Deny),
        Action::Audit | Action::Custom => {
            say(
                "spec.action",
                format!("{} {WAYPOINT}; only ALLOW and DENY are enforced here", word(object.action)),
            );
            None
        }
    };
    if let Some(target) = object.targets.first() {
        say("spec.targetRefs", format!("a policy for {target} {WAYPOINT}; use spec.selector for workloads"));
    }
    let dry_run = match object.dry_run.as_deref() {
        None | Some("" | "0" | "f" | "F" | "false" | "False" | "FALSE") => false,
        Some("1" | "t" | "T" | "true" | "True" | "TRUE") => true,
        Some(other) => {
            let text =
                format!("{other:?} is neither true nor false, so the policy is enforced; write \"true\"");
            say("metadata.annotations[\"istio.io/dry-run\"]", text);
            false
        }
    };
    let enforced = action.filter(|_| object.targets.is_empty());
    reasons.extend(object.unread.iter().map(|unread| unread_reason(unread, enforced)));
    let Some(action) = enforced else {
        return Converted { policy: None, reasons };
    };
    let mut converter = Converter { action, namespace: &object.name.namespace, reasons };
    let allows = action == policy::Action::Allow;
    let is_unread = |index| {
        object
            .unread
            .iter()
            .any(|unread| matches!(unread.part, Part::Whole) || unread.part == Part::Rule(index))
    };
    let rules = object.rules.iter().enumerate().filter(|(index, _)| !(allows && is_unread(*index)));
    let rules = rules.filter_map(|(index, rule)| converter.rule(rule, &format!("spec.rules[{index}]")));
    let policy = Policy {
        key: PolicyKey { namespace: object.name.namespace.to_string(), name: object.name.name.to_string() },
        scope: scope(object, root_namespace),
        action,
        dry_run,
        rules: rules.collect(),
    };
    Converted { policy: Some(policy), reasons: converter.reasons }
}

fn unread_reason(unread: &Unread, action: Option<policy::Action>) -> Reason {
    let consequence = match (action, unread.part) {
        (None, _) => "the policy is not enforced here",
        (Some(policy::Action::Allow), Part::Rule(_)) => "the rule is left out and allows nobody",
        (Some(policy::Action::Allow), Part::Whole) => "the policy allows nobody",
        (Some(policy::Action::Deny), Part::Rule(_)) => "the rule is enforced without it and denies more",
        (Some(policy::Action::Deny), Part::Whole) => "the policy is enforced without it and denies more",
    };
    unread.reason(consequence)
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
        Action::Audit => "AUDIT",
        Action::Custom => "CUSTOM",
    }
}

struct Converter<'a> {
    action: policy::Action,
    /// A service account without a namespace is of the policy's own.
    namespace: &'a str,
    reasons: Vec<Reason>,
}

impl Converter<'_> {
    /// `None` for a rule that can never match.
    fn rule(&mut self, rule: &Rule, at: &str) -> Option<policy::Rule> {
        let from = rule.from.iter().enumerate();
        let from = from
            .map(|(index, one)| self.source(&one.source, &format!("{at}.from[{index}].source")))
            .collect::<Vec<_>>();
        let to = rule.to.iter().enumerate();
        let to = to
            .map(|(index, one)| self.operation(&one.operation, &format!("{at}.to[{index}].operation")))
            .collect::<Vec<_>>();
        let when = rule.when.iter().enumerate();
        let when = when
            .map(|(index, one)| vec![self.condition(one, &format!("{at}.when[{index}]"))])
            .collect::<Vec<_>>();
        let mut clauses = Vec::new();
        for alternatives in [from, to].into_iter().filter(|list| !list.is_empty()).chain(when) {
            clauses.extend(clause(alternatives)?);
        }
        Some(policy::Rule { clauses })
    }

    fn source(&mut self, source: &Source, at: &str) -> Outcome {
        let namespace = self.namespace;
        let mut fields = Fields::new(self.action, at, &mut self.reasons);
        let matched = policy::Match {
            principals: fields.any("principals", &source.principals, fields::string),
            not_principals: fields.none("notPrincipals", &source.not_principals, fields::string),
            namespaces: fields.any("namespaces", &source.namespaces, fields::string),
            not_namespaces: fields.none("notNamespaces", &source.not_namespaces, fields::string),
            service_accounts: fields
                .any("serviceAccounts", &source.service_accounts, |text| fields::account(text, namespace)),
            not_service_accounts: fields.none("notServiceAccounts", &source.not_service_accounts, |text| {
                fields::account(text, namespace)
            }),
            source_ips: fields.any("ipBlocks", &source.ip_blocks, fields::block),
            not_source_ips: fields.none("notIpBlocks", &source.not_ip_blocks, fields::block),
            ..policy::Match::default()
        };
        for (name, values) in [
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
            ("trustDomains", &source.trust_domains),
            ("notTrustDomains", &source.not_trust_domains),
        ] {
            fields.unknown(name, values);
        }
        fields.finish(matched)
    }

    fn operation(&mut self, operation: &Operation, at: &str) -> Outcome {
        let mut fields = Fields::new(self.action, at, &mut self.reasons);
        let matched = policy::Match {
            destination_ports: fields.any("ports", &operation.ports, crate::object::port),
            not_destination_ports: fields.none("notPorts", &operation.not_ports, crate::object::port),
            ..policy::Match::default()
        };
        for (name, values) in [
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ] {
            fields.unknown(name, values);
        }
        fields.finish(matched)
    }

    fn condition(&mut self, condition: &Condition, at: &str) -> Outcome {
        let Condition { key, values, not_values } = condition;
        let mut fields = Fields::new(self.action, at, &mut self.reasons);
        let mut matched = policy::Match::default();
        match key.as_str() {
            "source.namespace" => {
                matched.namespaces = fields.any("values", values, fields::string);
                matched.not_namespaces = fields.none("notValues", not_values, fields::string);
            }
            "source.principal" => {
                matched.principals = fields.any("values", values, fields::string);
                matched.not_principals = fields.none("notValues", not_values, fields::string);
            }
            "source.ip" => {
                matched.source_ips = fields.any("values", values, fields::block);
                matched.not_source_ips = fields.none("notValues", not_values, fields::block);
            }
            "destination.ip" => {
                matched.destination_ips = fields.any("values", values, fields::block);
                matched.not_destination_ips = fields.none("notValues", not_values, fields::block);
            }
            "destination.port" => {
                matched.destination_ports = fields.any("values", values, crate::object::port);
                matched.not_destination_ports = fields.none("notValues", not_values, crate::object::port);
            }
            _ => fields.unknown("key", std::slice::from_ref(key)),
        }
        fields.finish(matched)
    }
}

/// Alternatives as one clause. Outer `None`: none of them can match. Inner: one of them always does.
fn clause(alternatives: Vec<Outcome>) -> Option<Option<Clause>> {
    let mut matches = Vec::new();
    let mut anyone = false;
    for outcome in alternatives {
        match outcome {
            Outcome::Match(one) => matches.push(*one),
            Outcome::Anyone => anyone = true,
            Outcome::Nobody => {}
            Outcome::NoRule => return None,
        }
    }
    match (anyone, matches.is_empty()) {
        (true, _) => Some(None),
        (false, true) => None,
        (false, false) => Some(Some(Clause { matches })),
    }
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
