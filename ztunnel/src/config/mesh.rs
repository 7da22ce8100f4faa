//! The mesh file and `PROXY_CONFIG` (interop.md section 1.4): YAML in which only a few keys matter here.

use std::collections::BTreeMap;
use std::{fs, io};

use serde::de::{DeserializeOwned, IgnoredAny};
use ztunnel_model::codec::located::{self, Document, Place};

use super::Mistake;

/// Relative to the working directory, as the deployment mounts it.
pub(super) const FILE: &str = "./etc/istio/config/mesh";

/// The keys in use; every other one is ignored, because control planes add to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProxyConfig {
    pub(super) discovery_address: Option<String>,
    pub(super) admin_port: Option<u16>,
    pub(super) stats_port: Option<u16>,
    /// Threads; 0 for all CPUs.
    pub(super) concurrency: Option<u16>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl ProxyConfig {
    pub(super) fn overlaid_with(mut self, over: Self) -> Self {
        self.metadata.extend(over.metadata);
        Self {
            discovery_address: over.discovery_address.or(self.discovery_address),
            admin_port: over.admin_port.or(self.admin_port),
            stats_port: over.stats_port.or(self.stats_port),
            concurrency: over.concurrency.or(self.concurrency),
            metadata: self.metadata,
        }
    }

    fn read(part: Place<'_>, mistakes: &mut Vec<located::Mistake>) -> Self {
        type Any = Option<BTreeMap<String, IgnoredAny>>;
        if part.decode::<Any>(mistakes).flatten().is_none() {
            return Self::default();
        }
        Self {
            discovery_address: value(part, "discoveryAddress", mistakes),
            admin_port: value(part, "proxyAdminPort", mistakes),
            stats_port: value(part, "statsPort", mistakes),
            concurrency: value(part, "concurrency", mistakes),
            metadata: value(part, "proxyMetadata", mistakes).unwrap_or_default(),
        }
    }
}

fn value<T: DeserializeOwned>(part: Place<'_>, key: &str, mistakes: &mut Vec<located::Mistake>) -> Option<T> {
    part.get(key)?.decode::<Option<T>>(mistakes)?
}

/// The text of the mesh file; a missing one is fine.
pub(super) fn read() -> Result<Option<String>, Mistake> {
    match fs::read_to_string(FILE) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Mistake::Value {
            place: FILE.to_owned(),
            value: error.to_string(),
            expected: "a readable file or none".to_owned(),
        }),
    }
}

/// Reads one document; `under` names the key that holds the proxy's part.
pub(super) fn parse(file: &str, text: &str, under: Option<&str>, mistakes: &mut Vec<Mistake>) -> ProxyConfig {
    let mut found = Vec::new();
    let config = match Document::parse(text, file) {
        Ok(document) => {
            let part = under.map_or_else(|| Some(document.root()), |key| document.field(key));
            part.map(|part| ProxyConfig::read(part, &mut found))
        }
        Err(mistake) => {
            found.push(mistake);
            None
        }
    };
    located::sort(&mut found);
    mistakes.extend(found.into_iter().map(Mistake::Written));
    config.unwrap_or_default()
}
