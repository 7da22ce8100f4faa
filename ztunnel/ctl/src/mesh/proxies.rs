//! The proxies that are asked, and their answers.

use serde_json::Value;
use ztunnel_lab::Lab;

use super::Error;

/// A proxy and what it said.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) node: String,
    pub(super) ready: bool,
    /// `/config_dump`; `None` if there was no answer.
    pub(super) dump: Option<Value>,
}

impl Proxy {
    /// The entries of a list in the dump.
    pub(super) fn list(&self, key: &str) -> impl Iterator<Item = &Value> {
        self.dump.as_ref().and_then(|dump| dump[key].as_array()).into_iter().flatten()
    }
}

/// The proxies of a lab that is up; `only` of these nodes, if it names any.
pub(super) fn of_lab(lab: &Lab, only: &[String]) -> Result<Vec<Proxy>, Error> {
    if let Some(name) = only.iter().find(|name| lab.nodes().iter().all(|node| node.name() != name.as_str())) {
        let known: Vec<&str> = lab.nodes().iter().map(|node| node.name()).collect();
        return Err(Error::Node { name: name.clone(), known: known.join(", ") });
    }
    let asked =
        lab.nodes().iter().filter(|node| only.is_empty() || only.iter().any(|name| name == node.name()));
    Ok(asked
        .map(|node| {
            let dump = Some(node.config_dump()).filter(Value::is_object);
            Proxy { node: node.name().to_owned(), ready: node.is_ready(), dump }
        })
        .collect())
}

/// A text of a record; empty if it has none.
pub(super) fn text(record: &Value, key: &str) -> String {
    record[key].as_str().unwrap_or_default().to_owned()
}

/// The texts of a list in a record.
pub(super) fn texts(record: &Value, key: &str) -> Vec<String> {
    let list = record[key].as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}
