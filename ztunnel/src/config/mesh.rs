//! The mesh file and `PROXY_CONFIG` (interop.md section 1.4): YAML in which only a few keys matter here.

use std::collections::BTreeMap;
use std::{fs, io};

use marked_yaml::Node;
use marked_yaml::types::MarkedMappingNode;

use super::Mistake;

/// Relative to the working directory, as the deployment mounts it.
pub(super) const FILE: &str = "./etc/istio/config/mesh";

/// The keys in use; every other one is ignored, because control planes add to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProxyConfig {
    pub(super) admin_port: Option<u16>,
    pub(super) stats_port: Option<u16>,
    pub(super) concurrency: Option<u16>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl ProxyConfig {
    pub(super) fn overlaid_with(mut self, over: Self) -> Self {
        self.metadata.extend(over.metadata);
        Self {
            admin_port: over.admin_port.or(self.admin_port),
            stats_port: over.stats_port.or(self.stats_port),
            concurrency: over.concurrency.or(self.concurrency),
            metadata: self.metadata,
        }
    }
}

/// The text of the mesh file; a missing one is fine.
pub(super) fn read() -> Result<Option<String>, Mistake> {
    match fs::read_to_string(FILE) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Mistake {
            place: FILE.to_owned(),
            value: error.to_string(),
            expected: "a readable file or none".to_owned(),
        }),
    }
}

/// Reads one document; `under` names the key that holds the proxy's part.
pub(super) fn parse(
    place: &str,
    text: &str,
    under: Option<&str>,
    mistakes: &mut Vec<Mistake>,
) -> ProxyConfig {
    if text.trim().is_empty() {
        return ProxyConfig::default();
    }
    let mut refuse = |place: String, value: String, expected: &str| {
        mistakes.push(Mistake { place, value, expected: expected.to_owned() });
    };
    let root = match marked_yaml::parse_yaml(0, text) {
        Ok(Node::Mapping(root)) => root,
        Ok(_) => {
            refuse(place.to_owned(), first_line(text), "a YAML mapping");
            return ProxyConfig::default();
        }
        Err(error) => {
            refuse(place.to_owned(), first_line(text), &format!("YAML ({error})"));
            return ProxyConfig::default();
        }
    };
    let keys = match under.map(|key| (key, root.get_node(key))) {
        None => root,
        Some((_, None)) => return ProxyConfig::default(),
        Some((_, Some(Node::Mapping(keys)))) => keys.clone(),
        Some((_, Some(node))) if is_null(node) => return ProxyConfig::default(),
        Some((key, Some(node))) => {
            refuse(format!("{place}{}: {key}", position(node)), written(node), "a mapping");
            return ProxyConfig::default();
        }
    };
    let mut number = |key: &str, expected: &str| {
        let node = keys.get_node(key).filter(|node| !is_null(node))?;
        let value = node.as_scalar().and_then(|scalar| scalar.as_str().parse::<u16>().ok());
        if value.is_none() {
            refuse(format!("{place}{}: {key}", position(node)), written(node), expected);
        }
        value
    };
    ProxyConfig {
        admin_port: number("proxyAdminPort", "a port number"),
        stats_port: number("statsPort", "a port number"),
        concurrency: number("concurrency", "a number of threads, 0 for all CPUs"),
        metadata: metadata(place, &keys, refuse),
    }
}

fn metadata(
    place: &str,
    keys: &MarkedMappingNode,
    mut refuse: impl FnMut(String, String, &str),
) -> BTreeMap<String, String> {
    let mut result = BTreeMap::new();
    let Some(node) = keys.get_node("proxyMetadata").filter(|node| !is_null(node)) else { return result };
    let Node::Mapping(pairs) = node else {
        refuse(format!("{place}{}: proxyMetadata", position(node)), written(node), "a mapping");
        return result;
    };
    for (key, value) in pairs.iter() {
        match value.as_scalar() {
            Some(scalar) => drop(result.insert(key.as_str().to_owned(), scalar.as_str().to_owned())),
            None => {
                let at = format!("{place}{}: proxyMetadata.{}", position(value), key.as_str());
                refuse(at, written(value), "a text");
            }
        }
    }
    result
}

fn is_null(node: &Node) -> bool {
    node.as_scalar().is_some_and(|scalar| scalar.may_coerce() && matches!(scalar.as_str(), "" | "~" | "null"))
}

fn position(node: &Node) -> String {
    node.span().start().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default()
}

fn written(node: &Node) -> String {
    match node {
        Node::Scalar(scalar) => scalar.as_str().to_owned(),
        Node::Mapping(_) => "{…}".to_owned(),
        Node::Sequence(_) => "[…]".to_owned(),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(80).collect()
}
