//! Istio's security policies. Values stand as they were written: whether one can be read, and what becomes of a policy
//! with one that cannot, is decided where policies are converted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use ztunnel_model::codec::located::Mistake;

use super::{Labels, Name};

/// A part of a policy that is written but not known: a misspelt field, a value of another kind. What it may have closed
/// must be closed without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    pub part: Part,
    /// Counted from 1; 0 if it stands in no file.
    pub document: usize,
    pub at: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It may concern everything in the policy.
    Whole,
    /// The rule of this index, which holds as far as it could be read.
    Rule(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    pub name: Name,
    pub selector: Option<Labels>,
    /// The `targetRefs`, as `Kind/name`.
    pub targets: Vec<String>,
    pub action: Action,
    /// The annotation `istio.io/dry-run`.
    pub dry_run: Option<String>,
    pub rules: Vec<Rule>,
    pub unread: Vec<Unread>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub from: Vec<From>,
    pub to: Vec<To>,
    pub when: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct From {
    pub source: Source,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub trust_domains: Vec<String>,
    pub not_trust_domains: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct To {
    pub operation: Operation,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    pub key: String,
    #[serde(default)]
    pub values: Vec<String>,
    #[serde(default)]
    pub not_values: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    pub name: Name,
    /// Seconds since 1970; an unknown time is older than every known one.
    pub created: Option<i64>,
    pub selector: Option<Labels>,
    pub mode: Mode,
    pub ports: BTreeMap<u16, Mode>,
    /// With any of it, `mode` is what it may have been at the strictest.
    pub unread: Vec<Unread>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// A text to match: with `*` alone, at its start or at its end.
pub fn text(value: &str) -> Result<&str, String> {
    if value.is_empty() { Err("\"\" is no value; leave it out".to_owned()) } else { Ok(value) }
}

/// An address or a prefix.
pub fn block(value: &str) -> Result<IpNet, String> {
    let parsed = value.parse().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.ok_or_else(|| format!("{value:?} is not an IP address or a prefix such as 10.0.0.0/8"))
}

pub fn port(value: &str) -> Result<u16, String> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = value.parse().ok().filter(|port| digits && *port != 0);
    parsed.ok_or_else(|| format!("{value:?} is not a port; write a number from 1 to 65535"))
}

/// Namespace, if written, and service account.
pub fn service_account(value: &str) -> Result<(Option<&str>, &str), String> {
    let (namespace, account) = match value.split_once('/') {
        Some((namespace, account)) => (Some(namespace), account),
        None => (None, value),
    };
    let name = |text: &str| !text.is_empty() && !text.contains(['/', '*']);
    if name(account) && namespace.is_none_or(name) {
        return Ok((namespace, account));
    }
    Err(format!("{value:?} is not a service account; write NAME or NAMESPACE/NAME, without '*'"))
}
