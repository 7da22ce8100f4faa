//! A node of a lab that follows an API server in this process, in the place of the lab's file of pods, and what a container
//! runtime does there: pods come and go by calls of the real CNI plugin.

mod api;
mod pod;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use api::ApiServer;
pub use pod::Pod;

use crate::error::Error;
use crate::process::{Process, Start};
use crate::{Lab, binaries};

/// Where its pods come and go.
pub const NODE: &str = "node1";
/// Whose pods are meshed.
pub const NAMESPACE: &str = "front";
const DEADLINE: Duration = Duration::from_secs(30);

/// The node on which pods come and go.
pub struct Node {
    lab: String,
    namespace: String,
    folder: PathBuf,
    agent: PathBuf,
    plugin: PathBuf,
}

impl Node {
    pub fn of(lab: &Lab) -> Result<Self, Error> {
        let node = lab.node(NODE);
        let folder = node.agent_socket().parent().expect("invariant: a file is in a folder").to_owned();
        let agent = binaries::find()?.agent;
        let plugin = agent.with_file_name("ztunnel-cni");
        Ok(Self { lab: lab.name().to_owned(), namespace: node.namespace().to_owned(), folder, agent, plugin })
    }

    /// Ends the lab's agent there, which follows a file.
    pub fn follow_kubernetes(&self, lab: &mut Lab) -> ApiServer {
        lab.node_mut(NODE).kill_agent();
        ApiServer::start(lab, self)
    }

    pub fn start_agent(&self, lab: &Lab, api: &ApiServer) -> Result<Process, Error> {
        let handle = lab.node(NODE);
        let text = |path: &Path| path.display().to_string();
        let arguments = [
            ("--node-name", NODE.to_owned()),
            ("--socket", text(&handle.agent_socket())),
            ("--cni-socket", text(&self.cni_socket())),
            ("--enrolled", text(&self.enrolled())),
        ];
        let arguments = arguments.into_iter().flat_map(|(key, value)| [key.to_owned(), value]);
        Ok(Process::start(Start {
            namespace: handle.namespace(),
            program: &self.agent,
            arguments: std::iter::once("--kubernetes".to_owned()).chain(arguments).collect(),
            environment: vec![
                ("KUBECONFIG".into(), text(api.kubeconfig())),
                ("RUST_LOG".into(), "info".into()),
            ],
            user: None,
            log: &handle.agent_log_path(),
            record: &self.folder.join("agent.pid"),
        })?)
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Where the agent leaves what a reboot takes away, and `enrolled.json`, which is on the disk.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn cni_socket(&self) -> PathBuf {
        self.folder.join("cni.sock")
    }

    fn enrolled(&self) -> PathBuf {
        self.folder.join("enrolled.json")
    }
}
