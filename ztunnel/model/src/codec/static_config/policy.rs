//! Policies between written form and model.

use ipnet::IpNet;

use super::document::{AccountText, MatchText, PolicyText, StringText};
use super::workload::{choice, word};
use crate::codec::fields::canonical_prefix;
use crate::codec::located::{Mistake, Place};
use crate::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
};

const SCOPES: [(&str, Scope); 3] = [
    ("Global", Scope::Global),
    ("Namespace", Scope::Namespace),
    ("WorkloadSelector", Scope::WorkloadSelector),
];
const ACTIONS: [(&str, Action); 2] = [("Allow", Action::Allow), ("Deny", Action::Deny)];

pub(super) fn read(place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Option<Policy> {
    let text: PolicyText = place.decode(mistakes)?;
    let before = mistakes.len();
    for (key, value) in [("name", &text.name), ("namespace", &text.namespace)] {
        if value.is_empty() || value.contains('/') {
            mistakes.push(
                place.key(key).mistake(format!("\"{value}\" is not a {key}: it is empty or holds a '/'")),
            );
        }
    }
    let rules = text.rules.iter().enumerate().map(|(index, clauses)| {
        let place = place.key("rules").index(index);
        let clauses = clauses.iter().enumerate().map(|(index, matches)| {
            let place = place.index(index);
            let matches =
                matches.iter().enumerate().map(|(index, one)| matched(one, &place.index(index), mistakes));
            Clause { matches: matches.collect() }
        });
        Rule { clauses: clauses.collect() }
    });
    let rules = rules.collect();
    // Both are read before one is missed: the first mistake must not hide the next.
    let scope = choice(&SCOPES, &text.scope, &place.key("scope"), mistakes);
    let action = choice(&ACTIONS, &text.action, &place.key("action"), mistakes);
    let policy = Policy {
        rules,
        scope: scope?,
        action: action?,
        dry_run: text.dry_run,
        key: PolicyKey { namespace: text.namespace, name: text.name },
    };
    (mistakes.len() == before).then_some(policy)
}

fn matched(text: &MatchText, place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Match {
    let mut strings = |key: &str, texts: &[StringText]| {
        let place = place.key(key);
        texts
            .iter()
            .enumerate()
            .filter_map(|(index, text)| string(text, &place.index(index), mistakes))
            .collect()
    };
    let (namespaces, not_namespaces) =
        (strings("namespaces", &text.namespaces), strings("notNamespaces", &text.not_namespaces));
    let (principals, not_principals) =
        (strings("principals", &text.principals), strings("notPrincipals", &text.not_principals));
    let mut prefixes = |key: &str, texts: &[String]| {
        let place = place.key(key);
        texts
            .iter()
            .enumerate()
            .filter_map(|(index, text)| prefix(text, &place.index(index), mistakes))
            .collect()
    };
    Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        service_accounts: text.service_accounts.iter().map(account).collect(),
        not_service_accounts: text.not_service_accounts.iter().map(account).collect(),
        source_ips: prefixes("sourceIps", &text.source_ips),
        not_source_ips: prefixes("notSourceIps", &text.not_source_ips),
        destination_ips: prefixes("destinationIps", &text.destination_ips),
        not_destination_ips: prefixes("notDestinationIps", &text.not_destination_ips),
        destination_ports: text.destination_ports.clone(),
        not_destination_ports: text.not_destination_ports.clone(),
    }
}

fn string(text: &StringText, place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Option<StringMatch> {
    match text {
        StringText { exact: Some(text), prefix: None, suffix: None, presence: None } => {
            Some(StringMatch::Exact(text.clone()))
        }
        StringText { exact: None, prefix: Some(text), suffix: None, presence: None } => {
            Some(StringMatch::Prefix(text.clone()))
        }
        StringText { exact: None, prefix: None, suffix: Some(text), presence: None } => {
            Some(StringMatch::Suffix(text.clone()))
        }
        StringText { exact: None, prefix: None, suffix: None, presence: Some(_) } => {
            Some(StringMatch::Presence)
        }
        _ => {
            mistakes.push(place.mistake("exactly one of Exact, Prefix, Suffix, Presence is expected"));
            None
        }
    }
}

fn prefix(text: &str, place: &Place<'_>, mistakes: &mut Vec<Mistake>) -> Option<IpNet> {
    let parsed = text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from));
    if parsed.is_none() {
        mistakes.push(place.mistake(format!("\"{text}\" is not an IP address or prefix")));
    }
    parsed.map(canonical_prefix)
}

fn account(text: &AccountText) -> ServiceAccountMatch {
    ServiceAccountMatch { namespace: text.namespace.clone(), service_account: text.service_account.clone() }
}

impl From<&Policy> for PolicyText {
    fn from(policy: &Policy) -> Self {
        let clauses = |rule: &Rule| {
            rule.clauses.iter().map(|clause| clause.matches.iter().map(MatchText::from).collect()).collect()
        };
        Self {
            name: policy.key.name.clone(),
            namespace: policy.key.namespace.clone(),
            scope: word(&SCOPES, policy.scope),
            action: word(&ACTIONS, policy.action),
            dry_run: policy.dry_run,
            rules: policy.rules.iter().map(clauses).collect(),
        }
    }
}

impl From<&Match> for MatchText {
    fn from(one: &Match) -> Self {
        let strings = |list: &[StringMatch]| list.iter().map(StringText::from).collect();
        let accounts = |list: &[ServiceAccountMatch]| {
            let text = |one: &ServiceAccountMatch| AccountText {
                namespace: one.namespace.clone(),
                service_account: one.service_account.clone(),
            };
            list.iter().map(text).collect()
        };
        let prefixes = |list: &[IpNet]| list.iter().map(ToString::to_string).collect();
        Self {
            namespaces: strings(&one.namespaces),
            not_namespaces: strings(&one.not_namespaces),
            service_accounts: accounts(&one.service_accounts),
            not_service_accounts: accounts(&one.not_service_accounts),
            principals: strings(&one.principals),
            not_principals: strings(&one.not_principals),
            source_ips: prefixes(&one.source_ips),
            not_source_ips: prefixes(&one.not_source_ips),
            destination_ips: prefixes(&one.destination_ips),
            not_destination_ips: prefixes(&one.not_destination_ips),
            destination_ports: one.destination_ports.clone(),
            not_destination_ports: one.not_destination_ports.clone(),
        }
    }
}

impl From<&StringMatch> for StringText {
    fn from(one: &StringMatch) -> Self {
        let mut text = Self::default();
        match one {
            StringMatch::Exact(value) => text.exact = Some(value.clone()),
            StringMatch::Prefix(value) => text.prefix = Some(value.clone()),
            StringMatch::Suffix(value) => text.suffix = Some(value.clone()),
            StringMatch::Presence => text.presence = Some(Vec::new()),
        }
        text
    }
}
