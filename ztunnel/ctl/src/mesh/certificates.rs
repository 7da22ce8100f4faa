//! `ztunnelctl certificates`.

use serde::Serialize;
use serde_json::Value;

use super::Row;
use super::proxies::{Proxy, text};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Certificate {
    node: String,
    identity: String,
    state: String,
    serial_number: String,
    valid_from: String,
    expiration_time: String,
    roots: Vec<String>,
}

impl Row for Certificate {
    const COLUMNS: &'static [&'static str] =
        &["NODE", "IDENTITY", "STATE", "SERIAL", "VALID FROM", "EXPIRES", "ROOTS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.clone(),
            self.identity.clone(),
            self.state.clone(),
            self.serial_number.clone(),
            self.valid_from.clone(),
            self.expiration_time.clone(),
            self.roots.len().to_string(),
        ]
    }
}

pub(super) fn rows(proxies: &[Proxy], in_scope: impl Fn(&str) -> bool) -> Vec<Certificate> {
    let mut rows = Vec::new();
    for proxy in proxies {
        for record in proxy.list("certificates").filter(|record| in_scope(namespace(record))) {
            let chain = record["certChain"].as_array().into_iter().flatten();
            let roots = record["rootCerts"].as_array().into_iter().flatten();
            let leaf = chain.clone().next().unwrap_or(&Value::Null);
            rows.push(Certificate {
                node: proxy.node.clone(),
                identity: text(record, "identity"),
                state: text(record, "state"),
                serial_number: text(leaf, "serialNumber"),
                valid_from: text(leaf, "validFrom"),
                expiration_time: text(leaf, "expirationTime"),
                roots: roots.map(|root| text(root, "serialNumber")).collect(),
            });
        }
    }
    rows
}

/// Of `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
fn namespace(record: &Value) -> &str {
    record["identity"].as_str().and_then(|identity| identity.split('/').nth(4)).unwrap_or_default()
}
