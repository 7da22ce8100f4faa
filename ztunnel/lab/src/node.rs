//! Handles to what a lab consists of: a node with its agent and proxy, and a pod.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::error::Error;
use crate::http;
pub use crate::http::Answer;
use crate::manifests::{Node, Pod};
use crate::namespace::Namespace;
use crate::process::{Process, Start};

/// The proxy's user: no name, no group, no capability.
pub const PROXY_USER: u32 = 1337;

#[derive(Debug)]
pub struct NodeHandle {
    name: String,
    namespace: String,
    folder: PathBuf,
    external: bool,
    token: String,
    agent: Option<Process>,
    proxy: Option<Process>,
}

impl NodeHandle {
    pub(crate) fn new(node: &Node, namespace: String, folder: PathBuf) -> Self {
        let token = format!("{:032x}", rand::random::<u128>());
        let (name, external) = (node.name.clone(), node.external);
        Self { name, namespace, folder, external, token, agent: None, proxy: None }
    }

    /// A node of a lab that an earlier command brought up.
    pub(crate) fn attach(node: &Node, namespace: String, folder: PathBuf) -> Self {
        let mut handle = Self::new(node, namespace, folder);
        handle.token = fs::read_to_string(handle.token_path()).unwrap_or_default();
        handle.agent = Process::recorded(&handle.folder.join("agent.pid"));
        handle.proxy = Process::recorded(&handle.folder.join("proxy.pid"));
        handle
    }

    /// Whether somebody else runs the proxy here.
    pub fn external(&self) -> bool {
        self.external
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn token_path(&self) -> PathBuf {
        self.folder.join("token")
    }

    pub fn pods_path(&self) -> PathBuf {
        self.folder.join("pods.json")
    }

    pub fn agent_socket(&self) -> PathBuf {
        self.folder.join("redirect.sock")
    }

    /// Where the agent of an external node serves stock ztunnels.
    pub fn zds_socket(&self) -> PathBuf {
        self.folder.join("ztunnel.sock")
    }

    pub fn log_path(&self) -> PathBuf {
        self.folder.join("proxy.log")
    }

    pub fn agent_log_path(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// All that the proxies of this node ever logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.agent_log_path()).unwrap_or_default()
    }

    pub(crate) fn start_agent(&mut self, program: &Path, source: Option<&Path>) -> Result<(), Error> {
        let text = |path: PathBuf| path.display().to_string();
        let mut arguments = vec!["--socket".into(), text(self.agent_socket())];
        arguments.extend(["--proxy-uid".into(), PROXY_USER.to_string()]);
        match source {
            Some(zds) => arguments.extend(["--inpod-uds".into(), text(zds.to_owned())]),
            None => arguments.extend(["--pods".into(), text(self.pods_path())]),
        }
        if self.external {
            arguments.extend(["--ztunnel-uds-address".into(), text(self.zds_socket())]);
        }
        let process = Process::start(Start {
            namespace: &self.namespace,
            program,
            arguments,
            environment: vec![("RUST_LOG".into(), "info".into())],
            user: None,
            log: &self.agent_log_path(),
            record: &self.folder.join("agent.pid"),
        })?;
        self.agent = Some(process);
        Ok(())
    }

    pub(crate) fn start_proxy(
        &mut self,
        program: &Path,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
        user: Option<u32>,
    ) -> Result<(), Error> {
        let process = Process::start(Start {
            namespace: &self.namespace,
            program,
            arguments,
            environment,
            user,
            log: &self.log_path(),
            record: &self.folder.join("proxy.pid"),
        })?;
        self.proxy = Some(process);
        Ok(())
    }

    pub fn proxy(&self) -> Option<&Process> {
        self.proxy.as_ref()
    }

    pub fn agent(&self) -> Option<&Process> {
        self.agent.as_ref()
    }

    /// `kill -9`.
    pub fn kill_proxy(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            proxy.kill();
        }
    }

    pub fn kill_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.kill();
        }
    }

    /// SIGTERM, without waiting.
    pub fn terminate_proxy(&self) {
        if let Some(proxy) = &self.proxy {
            proxy.signal(Signal::SIGTERM);
        }
    }

    /// Whether the proxy has ended, and how.
    pub fn proxy_status(&mut self) -> Option<std::process::ExitStatus> {
        self.proxy.as_mut().and_then(Process::status)
    }

    pub(crate) fn stop(&mut self, grace: Duration) {
        for process in [self.proxy.take(), self.agent.take()].into_iter().flatten() {
            process.stop(grace);
        }
    }

    /// One request to an endpoint of the proxy, from inside the node.
    pub fn http(&self, method: &str, port: u16, path: &str) -> io::Result<Answer> {
        http::request_in(&self.namespace, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), method, path)
    }

    pub fn is_ready(&self) -> bool {
        self.http("GET", 15021, "/healthz/ready").is_ok_and(|answer| answer.status == 200)
    }

    pub fn config_dump(&self) -> Value {
        let body = self.http("GET", 15000, "/config_dump").map(|answer| answer.body).unwrap_or_default();
        serde_json::from_str(&body).unwrap_or(Value::Null)
    }

    /// Whether the proxy accepts for all these pods and has their certificates.
    pub(crate) fn serves(&self, uids: &[String]) -> bool {
        let dump = self.config_dump();
        let states = &dump["workloadState"];
        let certificates = dump["certificates"].as_array().map_or(&[][..], Vec::as_slice);
        uids.iter().all(|uid| states.get(uid).is_some())
            && certificates.iter().all(|certificate| certificate["state"] == "Available")
    }

    /// The metrics page.
    pub fn metrics(&self) -> Metrics {
        Metrics(self.http("GET", 15020, "/metrics").map(|answer| answer.body).unwrap_or_default())
    }
}

/// Samples of the metrics page.
#[derive(Clone, Debug)]
pub struct Metrics(pub String);

impl Metrics {
    /// The sum of all samples of a name that carry these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| {
                rest.starts_with(['{', ' ']) && wanted.iter().all(|label| rest.contains(label.as_str()))
            })
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

#[derive(Clone, Debug)]
pub struct PodHandle {
    pod: Pod,
    namespace: String,
}

impl PodHandle {
    pub(crate) fn new(pod: Pod, namespace: String) -> Self {
        Self { pod, namespace }
    }

    pub fn name(&self) -> &str {
        &self.pod.name
    }

    pub fn spec(&self) -> &Pod {
        &self.pod
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn ipv4(&self) -> IpAddr {
        self.address(IpAddr::is_ipv4)
    }

    pub fn ipv6(&self) -> IpAddr {
        self.address(IpAddr::is_ipv6)
    }

    fn address(&self, family: impl Fn(&IpAddr) -> bool) -> IpAddr {
        *self.pod.addresses.iter().find(|ip| family(ip)).expect("invariant: the test's pod has this family")
    }

    /// Its network namespace, to talk from.
    pub fn netns(&self) -> Namespace {
        Namespace::Named(self.namespace.clone())
    }

    /// Runs `work` in the pod's network namespace, on a thread of its own.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.netns().run(work)
    }

    /// Connects from inside the pod; no read or write takes longer than the deadline either.
    pub fn connect(&self, addr: SocketAddr, deadline: Duration) -> io::Result<TcpStream> {
        self.netns().connect(addr, deadline)
    }

    /// Listens inside the pod, on both families.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.netns().listen(port)
    }
}
