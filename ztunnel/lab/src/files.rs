//! What the processes of a lab read.

use std::path::PathBuf;

use serde_json::json;
use ztunnel_model::codec::static_config;

use crate::error::Error;
use crate::lab::namespace_name;
use crate::node::PROXY_USER;
use crate::process::write_atomically;
use crate::spec::Pod;
use crate::{Lab, namespace};

impl Lab {
    /// Writes all of them, each whole. Tokens are made once.
    pub(crate) fn write_files(&self) -> Result<(), Error> {
        let folder = self.folder();
        let write = |path: PathBuf, text: &str, owner, mode| {
            write_atomically(&path, text, owner, mode).map_err(|source| Error::File { path, source })
        };
        let static_config = static_config::to_json(&self.spec.static_config());
        let mut nodes = Vec::new();
        for node in &self.nodes {
            let own: Vec<&Pod> =
                self.spec.pods.iter().filter(|pod| pod.mesh && pod.node == node.name()).collect();
            write(node.token_path(), node.token(), Some(PROXY_USER), 0o400)?;
            write(node.config_path(), &static_config, Some(PROXY_USER), 0o644)?;
            let identities: std::collections::BTreeSet<String> =
                own.iter().map(|pod| pod.identity().to_string()).collect();
            nodes.push(json!({ "name": node.name(), "token": node.token(), "identities": identities }));
            let pods: Vec<_> = own.iter().map(|pod| self.source_entry(pod)).collect();
            write(node.pods_path(), &json!({ "pods": pods }).to_string(), None, 0o644)?;
        }
        write(folder.join("nodes.json"), &json!({ "nodes": nodes }).to_string(), None, 0o600)
    }

    fn source_entry(&self, pod: &Pod) -> serde_json::Value {
        json!({
            "uid": pod.uid(),
            "name": pod.name,
            "namespace": pod.namespace,
            "serviceAccount": pod.service_account,
            "netns": namespace::path(&namespace_name(&self.name, &pod.name)),
            "addresses": pod.addresses,
        })
    }
}
