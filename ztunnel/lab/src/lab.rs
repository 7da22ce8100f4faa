//! A lab from up to down.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::binaries::{self, Binaries};
pub use crate::error::Error;
use crate::error::UP_DEADLINE;
use crate::namespace;
use crate::node::{NodeHandle, PodHandle};
use crate::process::{Process, Start, write_atomically};
use crate::spec::{self, Pod, Spec};
use crate::wait::wait_until;

pub(crate) const STATE: &str = "/run/ztunnel-lab";
pub(crate) const UNDERLAY: &str = "underlay";
pub(crate) const CA_FOLDER: &str = "ca";
const CONTROLLER: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
const CONTROLLER_PORT: u16 = 15012;
const GRACE: Duration = Duration::from_secs(10);
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// A lab that is up. Dropping it takes it down, unless it is kept.
pub struct Lab {
    pub(crate) name: String,
    pub(crate) spec: Spec,
    binaries: Option<Binaries>,
    environment: Vec<(String, String)>,
    pub(crate) nodes: Vec<NodeHandle>,
    pub(crate) pods: Vec<PodHandle>,
    controller: Option<Process>,
    kept: bool,
}

/// How a lab is brought up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Further environment of every proxy; wins over the lab's own.
    pub environment: Vec<(String, String)>,
    /// Only namespaces and links.
    pub without_processes: bool,
}

impl Lab {
    /// Brings a lab up under a name of its own, for a test.
    pub fn for_test(text: &str, environment: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let spec =
            Spec::parse(text, "lab.yaml").unwrap_or_else(|mistakes| panic!("{}", Error::Mistakes(mistakes)));
        let environment =
            environment.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let options = Options { environment, without_processes: false };
        Self::up(&name, spec, options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Brings a lab up and waits until every proxy serves every pod of its node.
    pub fn up(name: &str, spec: Spec, options: Options) -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let folder = state_folder(name)?;
        if folder.exists() {
            return Err(Error::Up(name.to_owned()));
        }
        let binaries = if options.without_processes { None } else { Some(binaries::find()?) };
        make_folder(&folder)?;
        let mut lab = Self {
            name: name.to_owned(),
            spec,
            binaries,
            environment: options.environment,
            nodes: Vec::new(),
            pods: Vec::new(),
            controller: None,
            kept: false,
        };
        lab.build_network()?;
        if lab.binaries.is_some() {
            lab.start_processes()?;
        }
        Ok(lab)
    }

    /// A lab that an earlier command brought up.
    pub fn attach(name: &str) -> Result<Self, Error> {
        let folder = state_folder(name)?;
        let path = folder.join("lab.yaml");
        let text = fs::read_to_string(&path).map_err(|_| Error::Down(name.to_owned()))?;
        let spec = Spec::parse(&text, &path.display().to_string()).map_err(Error::Mistakes)?;
        let nodes = spec.nodes.iter().map(|node| {
            let mut handle =
                NodeHandle::new(&node.name, namespace_name(name, &node.name), folder.join(&node.name));
            handle.attach();
            handle
        });
        Ok(Self {
            nodes: nodes.collect(),
            pods: spec.pods.iter().map(|pod| pod_handle(name, pod)).collect(),
            name: name.to_owned(),
            spec,
            binaries: None,
            environment: Vec::new(),
            controller: Process::recorded(&folder.join("controller.pid")),
            kept: true,
        })
    }

    /// Leaves the lab up; `down` by name takes it down. `text` is the file that it was made from.
    pub fn keep(mut self, text: &str) -> Result<(), Error> {
        let path = self.folder().join("lab.yaml");
        write_atomically(&path, text, None, 0o644).map_err(|source| Error::File { path, source })?;
        self.kept = true;
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub fn nodes(&self) -> &[NodeHandle] {
        &self.nodes
    }

    pub fn pods(&self) -> &[PodHandle] {
        &self.pods
    }

    /// A pod by its name; the lab's own tests know which there are.
    pub fn pod(&self, name: &str) -> &PodHandle {
        self.pods.iter().find(|pod| pod.name() == name).unwrap_or_else(|| panic!("{}", self.unknown(name)))
    }

    pub fn node(&self, name: &str) -> &NodeHandle {
        self.nodes.iter().find(|node| node.name() == name).unwrap_or_else(|| panic!("{}", self.unknown(name)))
    }

    pub fn node_mut(&mut self, name: &str) -> &mut NodeHandle {
        match self.nodes.iter().position(|node| node.name() == name) {
            Some(index) => &mut self.nodes[index],
            None => panic!("{}", self.unknown(name)),
        }
    }

    /// The network namespace of a pod or a node.
    pub fn namespace_of(&self, name: &str) -> Result<String, Error> {
        let known = self.spec.pod(name).is_some() || self.spec.node_number(name).is_some();
        if known { Ok(namespace_name(&self.name, name)) } else { Err(self.unknown(name)) }
    }

    /// Where everything between nodes passes.
    pub fn underlay(&self) -> String {
        namespace_name(&self.name, UNDERLAY)
    }

    /// The name was checked when the lab came up.
    pub(crate) fn folder(&self) -> PathBuf {
        Path::new(STATE).join(&self.name)
    }

    pub fn ca_folder(&self) -> PathBuf {
        self.folder().join(CA_FOLDER)
    }

    /// Changes services, policies or what pods say of themselves while the lab runs.
    pub fn edit(&mut self, change: impl FnOnce(&mut Spec)) {
        change(&mut self.spec);
        self.write_files().unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends a pod: its namespace loses its name, and the agent is told.
    pub fn delete_pod(&mut self, name: &str) {
        let namespace = namespace_name(&self.name, name);
        self.spec.pods.retain(|pod| pod.name != name);
        self.pods.retain(|pod| pod.name() != name);
        namespace::remove(&namespace).unwrap_or_else(|error| panic!("{error}"));
        self.write_files().unwrap_or_else(|error| panic!("{error}"));
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
        let process = Process::start(Start {
            namespace: &self.underlay(),
            program: &binaries.controller,
            arguments: vec![
                "--listen".into(),
                format!("{CONTROLLER}:{CONTROLLER_PORT}"),
                "--ca-dir".into(),
                text(self.ca_folder()),
                "--nodes".into(),
                text(folder.join("nodes.json")),
                "--host".into(),
                CONTROLLER.to_string(),
            ],
            environment: vec![("RUST_LOG".into(), "info".into())],
            user: None,
            log: &folder.join("controller.log"),
            record: &folder.join("controller.pid"),
        })?;
        self.controller = Some(process);
        let root = self.ca_folder().join("root-cert.pem");
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

    /// Starts an agent on a node.
    pub fn start_agent(&mut self, node: &str) -> Result<(), Error> {
        let Some(binaries) = self.binaries.clone() else { return Ok(()) };
        self.node_mut(node).start_agent(&binaries.agent)
    }

    /// Starts a proxy on a node, without waiting for it.
    pub fn start_proxy(&mut self, node: &str) -> Result<(), Error> {
        let Some(binaries) = self.binaries.clone() else { return Ok(()) };
        let root = self.ca_folder().join("root-cert.pem");
        let mut environment: Vec<(String, String)> = [
            ("NODE_NAME", node.to_owned()),
            ("CA_ADDRESS", format!("https://{CONTROLLER}:{CONTROLLER_PORT}")),
            ("CA_ROOT_CA", root.display().to_string()),
            ("RUST_LOG", "info".to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
            ("ZTUNNEL_WORKER_THREADS", "2".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        environment.extend(self.environment.iter().cloned());
        self.node_mut(node).start_proxy(&binaries.proxy, environment)
    }

    /// Waits until the proxy of a node serves every enrolled pod there.
    pub fn wait_ready(&self, node: &str) -> Result<(), Error> {
        let handle = self.node(node);
        let enrolled: Vec<String> =
            self.spec.pods.iter().filter(|pod| pod.mesh && pod.node == node).map(Pod::uid).collect();
        let ready = || handle.is_ready() && handle.serves(&enrolled);
        if wait_until(UP_DEADLINE, ready) {
            return Ok(());
        }
        let log = format!("{}\n{}", tail(&handle.log_path()), tail(&handle.agent_log_path()));
        Err(Error::NotReady { what: format!("the proxy of {node}"), log })
    }

    fn start_processes(&mut self) -> Result<(), Error> {
        self.write_files()?;
        self.start_controller()?;
        let names: Vec<String> = self.spec.nodes.iter().map(|node| node.name.clone()).collect();
        for name in &names {
            self.start_agent(name)?;
            self.start_proxy(name)?;
        }
        names.iter().try_for_each(|name| self.wait_ready(name))
    }

    fn unknown(&self, name: &str) -> Error {
        let nodes = self.spec.nodes.iter().map(|node| node.name.as_str());
        let pods = self.spec.pods.iter().map(|pod| pod.name.as_str());
        let known = pods.chain(nodes).collect::<Vec<_>>().join(", ");
        Error::Unknown { name: name.to_owned(), known }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- proxy of {}\n{}", node.name(), tail(&node.log_path()));
                eprintln!("--- agent of {}\n{}", node.name(), tail(&node.agent_log_path()));
            }
        }
        for node in &mut self.nodes {
            node.stop(GRACE / 10);
        }
        if let Some(controller) = self.controller.take() {
            controller.stop(GRACE / 10);
        }
        if let Err(error) = Self::down(&self.name) {
            eprintln!("the lab {} is not wholly down: {error}", self.name);
        }
    }
}

pub(crate) fn pod_handle(lab: &str, pod: &Pod) -> PodHandle {
    PodHandle::new(pod.clone(), namespace_name(lab, &pod.name))
}

pub(crate) fn namespace_name(lab: &str, name: &str) -> String {
    format!("{lab}.{name}")
}

/// `down` removes this folder with all that is in it, so a name must never lead out of the lab's own.
pub(crate) fn state_folder(name: &str) -> Result<PathBuf, Error> {
    if !spec::is_name(name) {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(Path::new(STATE).join(name))
}

pub(crate) fn make_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_labs_own_folder() {
        for name in ["", "..", ".", "/", "/run", "a/b", "a.b", "A", "-a"] {
            assert!(matches!(state_folder(name), Err(Error::Name(_))), "{name:?} must be refused");
        }
        assert_eq!(state_folder("lab-1").expect("a plain name"), Path::new("/run/ztunnel-lab/lab-1"));
    }
}
