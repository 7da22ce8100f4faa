//! The processes of a lab: what they are told and when they are ready.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, UP_DEADLINE};
use crate::http::{self, Answer};
use crate::lab::{CONTROLLER, tail};
use crate::manifests::Pod;
use crate::node::PROXY_USER;
use crate::process::{Process, Start};
use crate::wait::wait_until;
use crate::{Lab, namespace};

const CONTROLLER_PORT: u16 = 15012;
const STATUS_PORT: u16 = 15014;
/// In the lab's state.
pub(crate) const FOLLOWER_LOG: &str = "follow.log";
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

impl Lab {
    pub(crate) fn start_processes(&mut self) -> Result<(), Error> {
        self.write_nodes()?;
        self.start_controller()?;
        let names: Vec<String> = self.cluster().nodes.iter().map(|node| node.name.clone()).collect();
        for name in &names {
            self.start_agent(name)?;
            if !self.node(name).external() {
                self.start_proxy(name)?;
            }
        }
        names.iter().try_for_each(|name| self.wait_ready(name))
    }

    pub fn kill_controller(&mut self) {
        if let Some(controller) = self.controller.take() {
            controller.kill();
        }
    }

    pub fn start_controller(&mut self) -> Result<(), Error> {
        let Some(binaries) = &self.binaries else { return Ok(()) };
        let folder = self.folder();
        let text = |path: PathBuf| path.display().to_string();
        let arguments = [
            ("--listen", SocketAddr::from((CONTROLLER, CONTROLLER_PORT)).to_string()),
            ("--status-listen", status_address().to_string()),
            ("--host", CONTROLLER.to_string()),
            ("--ca-dir", text(self.ca_folder())),
            ("--nodes", text(folder.join("nodes.json"))),
            ("--manifests", text(self.manifests().to_owned())),
            ("--manifests", text(self.added_folder())),
        ];
        let process = Process::start(Start {
            namespace: &self.underlay(),
            program: &binaries.controller,
            arguments: arguments.into_iter().flat_map(|(key, value)| [key.to_owned(), value]).collect(),
            environment: vec![("RUST_LOG".into(), "info".into())],
            user: None,
            log: &folder.join("controller.log"),
            record: &folder.join("controller.pid"),
        })?;
        self.controller = Some(process);
        let root = self.root_path();
        let listens_at = SocketAddr::from((CONTROLLER, CONTROLLER_PORT));
        let listens = || {
            root.exists()
                && namespace::run(&self.underlay(), move || {
                    TcpStream::connect_timeout(&listens_at, CONNECT_DEADLINE).is_ok()
                })
                .unwrap_or(false)
        };
        if wait_until(UP_DEADLINE, listens) {
            return Ok(());
        }
        Err(Error::NotReady { what: "the controller".to_owned(), log: tail(&folder.join("controller.log")) })
    }

    /// One GET of the controller's status page.
    pub fn controller_status(&self, path: &str) -> io::Result<Answer> {
        http::request_in(&self.underlay(), status_address(), "GET", path)
    }

    /// Starts an agent on a node.
    pub fn start_agent(&mut self, node: &str) -> Result<(), Error> {
        let Some(binaries) = self.binaries.clone() else { return Ok(()) };
        self.node_mut(node).start_agent(&binaries.agent, None)
    }

    /// Starts an agent that learns its pods by ZDS, as beneath istio-cni.
    pub fn start_agent_beneath(&mut self, node: &str, zds: &Path) -> Result<(), Error> {
        let Some(binaries) = self.binaries.clone() else { return Ok(()) };
        self.node_mut(node).start_agent(&binaries.agent, Some(zds))
    }

    /// Starts a proxy on a node, without waiting for it.
    pub fn start_proxy(&mut self, node: &str) -> Result<(), Error> {
        let Some(binaries) = self.binaries.clone() else { return Ok(()) };
        let mut environment = self.proxy_environment(node);
        let own = [
            ("XDS_REVOCATIONS", "true"),
            ("RUST_LOG", "info"),
            ("RUST_BACKTRACE", "1"),
            ("ZTUNNEL_WORKER_THREADS", "2"),
        ];
        environment.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        environment.extend(self.environment.iter().cloned());
        self.node_mut(node).start_proxy(
            &binaries.proxy,
            vec!["proxy".to_owned()],
            environment,
            Some(PROXY_USER),
        )
    }

    /// Starts a proxy on an external node as Istio's chart does: as root, with an agent of its own, which the node's agent
    /// tells of pods as istio-cni would.
    pub fn start_proxy_alone(&mut self, node: &str) -> Result<(), Error> {
        let Some(binaries) = self.binaries.clone() else { return Ok(()) };
        let mut environment = self.proxy_environment(node);
        // The file of the token is for another user, whom root without a capability cannot pass for.
        environment.retain(|(key, _)| !["REDIRECT_SOCKET", "AUTH_TOKEN"].contains(&key.as_str()));
        let handle = self.node(node);
        environment.push(("AUTH_TOKEN".to_owned(), handle.token().to_owned()));
        environment.push(("INPOD_UDS".to_owned(), handle.zds_socket().display().to_string()));
        self.node_mut(node).start_proxy(&binaries.proxy, vec!["proxy".to_owned()], environment, None)
    }

    /// Starts somebody else's proxy on an external node, as root, without waiting for it.
    pub fn start_external(
        &mut self,
        node: &str,
        program: &Path,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
    ) -> Result<(), Error> {
        self.node_mut(node).start_proxy(program, arguments, environment, None)
    }

    /// What another proxy must be told to serve a node, by names of the environment that Istio's ztunnel reads.
    pub fn external_environment(&self, node: &str) -> BTreeMap<String, String> {
        let zds = self.node(node).zds_socket().display().to_string();
        self.proxy_environment(node).into_iter().chain([("INPOD_UDS".to_owned(), zds)]).collect()
    }

    /// What any proxy must be told to serve a node.
    pub(crate) fn proxy_environment(&self, node: &str) -> Vec<(String, String)> {
        let controller = format!("https://{CONTROLLER}:{CONTROLLER_PORT}");
        let root = self.root_path().display().to_string();
        let handle = self.node(node);
        [
            ("NODE_NAME", node.to_owned()),
            ("XDS_ADDRESS", controller.clone()),
            ("XDS_ROOT_CA", root.clone()),
            ("CA_ADDRESS", controller),
            ("CA_ROOT_CA", root),
            ("AUTH_TOKEN", handle.token_path().display().to_string()),
            ("REDIRECT_SOCKET", handle.agent_socket().display().to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// Waits until the proxy of a node serves every enrolled pod there; somebody else's proxy is not waited for.
    pub fn wait_ready(&self, node: &str) -> Result<(), Error> {
        let handle = self.node(node);
        if handle.external() {
            return Ok(());
        }
        let pods = self.cluster().pods.iter();
        let enrolled: Vec<String> = pods.filter(|pod| pod.mesh && pod.node == node).map(Pod::uid).collect();
        let ready = || handle.is_ready() && handle.serves(&enrolled);
        if wait_until(UP_DEADLINE, ready) {
            return Ok(());
        }
        let log = format!("{}\n{}", tail(&handle.log_path()), tail(&handle.agent_log_path()));
        Err(Error::NotReady { what: format!("the proxy of {node}"), log })
    }

    /// Starts `PROGRAM lab --name NAME follow --foreground`, which keeps the lab in step with its folder; `false` if it
    /// runs already.
    pub fn start_follower(&mut self, program: &Path) -> Result<bool, Error> {
        if self.follower.as_ref().is_some_and(Process::runs) {
            return Ok(false);
        }
        let folder = self.folder();
        let process = Process::start(Start {
            namespace: &self.underlay(),
            program,
            arguments: ["lab", "--name", &self.name, "follow", "--foreground"].map(str::to_owned).into(),
            environment: Vec::new(),
            user: None,
            log: &folder.join(FOLLOWER_LOG),
            record: &folder.join("follow.pid"),
        })?;
        self.follower = Some(process);
        Ok(true)
    }

    pub(crate) fn root_path(&self) -> PathBuf {
        self.ca_folder().join("root-cert.pem")
    }
}

/// In the underlay.
fn status_address() -> SocketAddr {
    SocketAddr::from((CONTROLLER, STATUS_PORT))
}
