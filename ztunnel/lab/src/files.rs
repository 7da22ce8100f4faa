//! What the processes of a lab read.

use std::path::PathBuf;

use serde_json::json;

use crate::error::Error;
use crate::lab::namespace_name;
use crate::manifests::Pod;
use crate::node::PROXY_USER;
use crate::process::write_atomically;
use crate::{Lab, namespace};

impl Lab {
    /// The nodes and their tokens, which are made once. Who lives where, the controller reads out of the manifests.
    pub(crate) fn write_nodes(&self) -> Result<(), Error> {
        let mut nodes = Vec::new();
        for node in &self.nodes {
            write(node.token_path(), node.token(), Some(PROXY_USER), 0o400)?;
            nodes.push(json!({ "name": node.name(), "token": node.token(), "identities": [] }));
        }
        write(self.folder().join("nodes.json"), &json!({ "nodes": nodes }).to_string(), None, 0o600)
    }

    /// The pods of each agent, of those that are there.
    pub(crate) fn write_pods(&self, present: &[&Pod]) -> Result<(), Error> {
        for node in &self.nodes {
            let own = present.iter().filter(|pod| pod.mesh && pod.node == node.name());
            let pods: Vec<_> = own.map(|pod| self.source_entry(pod)).collect();
            write(node.pods_path(), &json!({ "pods": pods }).to_string(), None, 0o644)?;
        }
        Ok(())
    }

    fn source_entry(&self, pod: &Pod) -> serde_json::Value {
        json!({
            "uid": pod.uid(),
            "name": pod.name,
            "namespace": pod.namespace,
            "serviceAccount": pod.service_account,
            "netns": namespace::path(&namespace_name(&self.name, &pod.netns)),
            "addresses": pod.addresses,
        })
    }
}

fn write(path: PathBuf, text: &str, owner: Option<u32>, mode: u32) -> Result<(), Error> {
    write_atomically(&path, text, owner, mode).map_err(|source| Error::File { path, source })
}
