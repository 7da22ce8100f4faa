//! A second evaluator, of the objects as they are written, from the public reference of AuthorizationPolicy: it shares no
//! line with the conversion, nor with the proxies' decision. Values that cannot be read and attributes that cannot be seen
//! are unknown; a policy must hold to the safe side of what is unknown.

use std::net::IpAddr;

use crate::object::{Action, AuthorizationPolicy, Condition, Labels, Operation, Rule, Source};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    False,
    Unknown,
    True,
}

use Truth::{False, True, Unknown};

#[derive(Debug)]
pub(super) struct Request {
    /// Trust domain, namespace and service account; `None` for plaintext.
    pub identity: Option<(&'static str, &'static str, &'static str)>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: u16,
}

pub(super) struct Destination<'a> {
    pub namespace: &'a str,
    pub labels: &'a Labels,
}

/// "If there are any DENY policies that match the request, deny it. If there are no ALLOW policies for the workload,
/// allow it. If any of the ALLOW policies match, allow it. Deny the request."
pub(super) fn allowed(policies: &[AuthorizationPolicy], to: &Destination<'_>, request: &Request) -> bool {
    let applying: Vec<_> = policies.iter().filter(|policy| applies(policy, to)).collect();
    let some = |action| applying.iter().filter(move |policy| policy.action == action);
    if some(Action::Deny).any(|policy| matches(policy, request)) {
        return false;
    }
    some(Action::Allow).next().is_none() || some(Action::Allow).any(|policy| matches(policy, request))
}

fn applies(policy: &AuthorizationPolicy, to: &Destination<'_>) -> bool {
    let here = &*policy.name.namespace == to.namespace || &*policy.name.namespace == "istio-system";
    let selected = |selector: &Labels| selector.iter().all(|(key, value)| to.labels.get(key) == Some(value));
    let enforced = policy.targets.is_empty() && policy.dry_run.as_deref() != Some("true");
    here && enforced && policy.selector.as_ref().is_none_or(selected)
}

fn matches(policy: &AuthorizationPolicy, request: &Request) -> bool {
    let own = &*policy.name.namespace;
    match policy.action {
        Action::Allow => policy.rules.iter().any(|one| !has_unseen(one) && rule(one, own, request) == True),
        _ => policy.rules.iter().any(|one| rule(one, own, request) != False),
    }
}

fn rule(rule: &Rule, own: &str, request: &Request) -> Truth {
    let from = rule.from.iter().map(|one| source(&one.source, own, request)).max().unwrap_or(True);
    let to = rule.to.iter().map(|one| operation(&one.operation, request)).max().unwrap_or(True);
    let when = rule.when.iter().map(|one| condition(one, request)).min().unwrap_or(True);
    from.min(to).min(when)
}

/// Attributes of HTTP requests, and of the trust domain.
fn has_unseen(rule: &Rule) -> bool {
    let source = |one: &Source| {
        let lists = [
            &one.request_principals,
            &one.not_request_principals,
            &one.remote_ip_blocks,
            &one.not_remote_ip_blocks,
            &one.trust_domains,
            &one.not_trust_domains,
        ];
        lists.iter().any(|list| !list.is_empty())
    };
    let operation = |one: &Operation| {
        let lists = [&one.hosts, &one.not_hosts, &one.methods, &one.not_methods, &one.paths, &one.not_paths];
        lists.iter().any(|list| !list.is_empty())
    };
    let seen = ["source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port"];
    rule.from.iter().any(|one| source(&one.source))
        || rule.to.iter().any(|one| operation(&one.operation))
        || rule.when.iter().any(|one| !seen.contains(&one.key.as_str()))
}

/// A field and its opposite: one of the values, and none of the others. Unset fields say nothing.
fn pair(values: &[String], not: &[String], one: impl Fn(&str) -> Truth) -> Truth {
    let among = |list: &[String]| list.iter().map(|value| one(value)).max();
    let negated = match among(not) {
        None | Some(False) => True,
        Some(Unknown) => Unknown,
        Some(True) => False,
    };
    among(values).unwrap_or(True).min(negated)
}

fn unseen(values: &[String], not: &[String]) -> Truth {
    if values.is_empty() && not.is_empty() { True } else { Unknown }
}

fn source(source: &Source, own: &str, request: &Request) -> Truth {
    if *source == Source::default() {
        return Unknown;
    }
    [
        pair(&source.principals, &source.not_principals, |value| principal(value, request)),
        pair(&source.namespaces, &source.not_namespaces, |value| namespace(value, request)),
        pair(&source.service_accounts, &source.not_service_accounts, |value| account(value, own, request)),
        pair(&source.ip_blocks, &source.not_ip_blocks, |value| within(value, request.source)),
        unseen(&source.request_principals, &source.not_request_principals),
        unseen(&source.remote_ip_blocks, &source.not_remote_ip_blocks),
        unseen(&source.trust_domains, &source.not_trust_domains),
    ]
    .into_iter()
    .fold(True, Truth::min)
}

fn operation(operation: &Operation, request: &Request) -> Truth {
    if *operation == Operation::default() {
        return Unknown;
    }
    let seen = pair(&operation.ports, &operation.not_ports, |value| same_port(value, request));
    seen.min(unseen(&operation.hosts, &operation.not_hosts))
        .min(unseen(&operation.methods, &operation.not_methods))
        .min(unseen(&operation.paths, &operation.not_paths))
}

fn condition(condition: &Condition, request: &Request) -> Truth {
    let (values, not) = (&condition.values, &condition.not_values);
    if values.is_empty() && not.is_empty() {
        return Unknown;
    }
    match condition.key.as_str() {
        "source.ip" => pair(values, not, |value| within(value, request.source)),
        "source.namespace" => pair(values, not, |value| namespace(value, request)),
        "source.principal" => pair(values, not, |value| principal(value, request)),
        "destination.ip" => pair(values, not, |value| within(value, request.destination)),
        "destination.port" => pair(values, not, |value| same_port(value, request)),
        _ => Unknown,
    }
}

/// "Exact match, prefix match, suffix match and presence match."
fn text(pattern: &str, value: Option<&str>) -> Truth {
    if pattern.is_empty() {
        return Unknown;
    }
    let Some(value) = value else { return False };
    let matched = if pattern == "*" {
        !value.is_empty()
    } else if let Some(end) = pattern.strip_prefix('*') {
        value.ends_with(end)
    } else if let Some(start) = pattern.strip_suffix('*') {
        value.starts_with(start)
    } else {
        pattern == value
    };
    if matched { True } else { False }
}

fn principal(pattern: &str, request: &Request) -> Truth {
    let written =
        request.identity.map(|(domain, namespace, account)| format!("{domain}/ns/{namespace}/sa/{account}"));
    text(pattern, written.as_deref())
}

fn namespace(pattern: &str, request: &Request) -> Truth {
    text(pattern, Some(request.identity.map_or("", |(_, namespace, _)| namespace)))
}

fn account(written: &str, own: &str, request: &Request) -> Truth {
    let parts: Vec<&str> = written.split('/').collect();
    let (namespace, account) = match parts[..] {
        [account] => (own, account),
        [namespace, account] => (namespace, account),
        _ => return Unknown,
    };
    if namespace.is_empty() || account.is_empty() || written.contains('*') {
        return Unknown;
    }
    match request.identity {
        Some((_, peer, name)) if (peer, name) == (namespace, account) => True,
        _ => False,
    }
}

fn same_port(written: &str, request: &Request) -> Truth {
    match written.parse::<u32>() {
        Ok(port @ 1..=65535) if port == u32::from(request.port) => True,
        Ok(1..=65535) => False,
        _ => Unknown,
    }
}

/// Bit by bit, so that nothing of a library for prefixes is believed.
fn within(block: &str, address: IpAddr) -> Truth {
    let (base, length) = match block.split_once('/') {
        Some((base, length)) => (base, length.parse::<u32>().ok()),
        None => (block, Some(128)),
    };
    let (Ok(base), Some(length)) = (base.parse::<IpAddr>(), length) else { return Unknown };
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let ((base_bits, width), (bits, _)) = (bits(base), bits(address));
    if block.contains('/') && length > width {
        return Unknown;
    }
    let length = length.min(width);
    let same = length == 0 || (base_bits ^ bits) >> (128 - length) == 0;
    if same && base.is_ipv4() == address.is_ipv4() { True } else { False }
}
