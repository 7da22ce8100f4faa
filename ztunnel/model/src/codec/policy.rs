//! `istio.security.Authorization` and the model's `Policy`.

use ipnet::IpNet;
use prost::Message;

use super::proto::security as proto;
use super::{Error, fields, undecodable};
use crate::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
};

pub fn decode(bytes: &[u8]) -> Result<Policy, Error> {
    from_proto(proto::Authorization::decode(bytes).map_err(|error| undecodable(bytes, &error))?)
}

pub fn encode(policy: &Policy) -> Vec<u8> {
    to_proto(policy).encode_to_vec()
}

pub fn from_proto(message: proto::Authorization) -> Result<Policy, Error> {
    if message.name.is_empty() {
        return Err(Error::new("name", "\"\"", "a policy has a name"));
    }
    Ok(Policy {
        key: PolicyKey { namespace: message.namespace, name: message.name },
        scope: fields::enumeration("scope", message.scope, |value| match value {
            proto::Scope::Global => Some(Scope::Global),
            proto::Scope::Namespace => Some(Scope::Namespace),
            proto::Scope::WorkloadSelector => Some(Scope::WorkloadSelector),
        })?,
        action: fields::enumeration("action", message.action, |value| match value {
            proto::Action::Allow => Some(Action::Allow),
            proto::Action::Deny => Some(Action::Deny),
        })?,
        dry_run: message.dry_run,
        rules: fields::list("rules", message.rules, |rule| {
            let clauses = fields::list("clauses", rule.clauses, |clause| {
                Ok(Clause { matches: fields::list("matches", clause.matches, match_from_proto)? })
            })?;
            Ok(Rule { clauses })
        })?,
    })
}

pub fn to_proto(policy: &Policy) -> proto::Authorization {
    let clause =
        |clause: &Clause| proto::Clause { matches: clause.matches.iter().map(match_to_proto).collect() };
    proto::Authorization {
        name: policy.key.name.clone(),
        namespace: policy.key.namespace.clone(),
        scope: match policy.scope {
            Scope::Global => proto::Scope::Global,
            Scope::Namespace => proto::Scope::Namespace,
            Scope::WorkloadSelector => proto::Scope::WorkloadSelector,
        }
        .into(),
        action: match policy.action {
            Action::Allow => proto::Action::Allow,
            Action::Deny => proto::Action::Deny,
        }
        .into(),
        rules: policy
            .rules
            .iter()
            .map(|rule| proto::Rule { clauses: rule.clauses.iter().map(clause).collect() })
            .collect(),
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    }
}

fn match_from_proto(message: proto::Match) -> Result<Match, Error> {
    let texts = |name: &str, list| fields::list(name, list, string_match);
    let prefixes = |name: &str, list: Vec<proto::Address>| {
        fields::list(name, list, |address| fields::prefix(&address.address, address.length))
    };
    let ports = |name: &str, list| fields::list(name, list, |number| fields::port("", number));
    let accounts = |list: Vec<proto::ServiceAccountMatch>| {
        list.into_iter()
            .map(|m| ServiceAccountMatch { namespace: m.namespace, service_account: m.service_account })
            .collect()
    };
    Ok(Match {
        namespaces: texts("namespaces", message.namespaces)?,
        not_namespaces: texts("not_namespaces", message.not_namespaces)?,
        service_accounts: accounts(message.service_accounts),
        not_service_accounts: accounts(message.not_service_accounts),
        principals: texts("principals", message.principals)?,
        not_principals: texts("not_principals", message.not_principals)?,
        source_ips: prefixes("source_ips", message.source_ips)?,
        not_source_ips: prefixes("not_source_ips", message.not_source_ips)?,
        destination_ips: prefixes("destination_ips", message.destination_ips)?,
        not_destination_ips: prefixes("not_destination_ips", message.not_destination_ips)?,
        destination_ports: ports("destination_ports", message.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", message.not_destination_ports)?,
    })
}

fn match_to_proto(m: &Match) -> proto::Match {
    let texts = |list: &[StringMatch]| list.iter().map(string_match_proto).collect();
    let prefixes = |list: &[IpNet]| list.iter().map(prefix_proto).collect();
    let ports = |list: &[u16]| list.iter().map(|port| u32::from(*port)).collect();
    let accounts = |list: &[ServiceAccountMatch]| {
        list.iter()
            .map(|m| proto::ServiceAccountMatch {
                namespace: m.namespace.clone(),
                service_account: m.service_account.clone(),
            })
            .collect()
    };
    proto::Match {
        namespaces: texts(&m.namespaces),
        not_namespaces: texts(&m.not_namespaces),
        principals: texts(&m.principals),
        not_principals: texts(&m.not_principals),
        source_ips: prefixes(&m.source_ips),
        not_source_ips: prefixes(&m.not_source_ips),
        destination_ips: prefixes(&m.destination_ips),
        not_destination_ips: prefixes(&m.not_destination_ips),
        destination_ports: ports(&m.destination_ports),
        not_destination_ports: ports(&m.not_destination_ports),
        service_accounts: accounts(&m.service_accounts),
        not_service_accounts: accounts(&m.not_service_accounts),
        extensions: Vec::new(),
    }
}

fn string_match(message: proto::StringMatch) -> Result<StringMatch, Error> {
    use proto::string_match::MatchType;
    match message.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text)),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text)),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text)),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(Error::new("match_type", "absent", "expected exact, prefix, suffix or presence")),
    }
}

fn string_match_proto(m: &StringMatch) -> proto::StringMatch {
    use proto::string_match::MatchType;
    let match_type = match m {
        StringMatch::Exact(text) => MatchType::Exact(text.clone()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.clone()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.clone()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    proto::StringMatch { match_type: Some(match_type) }
}

fn prefix_proto(prefix: &IpNet) -> proto::Address {
    proto::Address { address: fields::ip_bytes(prefix.addr()), length: prefix.prefix_len().into() }
}
