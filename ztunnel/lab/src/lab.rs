//! A lab from up to down.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::binaries::{self, Binaries};
pub use crate::error::Error;
use crate::manifests::{Cluster, Folder, Pod, default};
use crate::mesh::Mesh;
use crate::node::{NodeHandle, PodHandle};
use crate::process::{Process, write_atomically};
use crate::record::Record;

pub(crate) const STATE: &str = "/run/ztunnel-lab";
pub(crate) const UNDERLAY: &str = "underlay";
pub(crate) const CA_FOLDER: &str = "ca";
/// Manifests that the lab was given as texts.
const GIVEN_FOLDER: &str = "folder";
/// What the lab adds to the manifests.
const ADDED_FOLDER: &str = "manifests";
/// Names in the state folder, and of network namespaces, that no node can have.
pub(crate) const RESERVED: [&str; 4] = [UNDERLAY, CA_FOLDER, GIVEN_FOLDER, ADDED_FOLDER];
pub(crate) const LONGEST_NAME: usize = 40;
pub(crate) const CONTROLLER: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
const GRACE: Duration = Duration::from_secs(10);

/// A lab that is up. Dropping it takes it down, unless it is kept.
pub struct Lab {
    pub(crate) name: String,
    pub(crate) record: Record,
    /// The manifests; `None` for who only looks at a lab that another process keeps in step with them.
    pub(crate) source: Option<Folder>,
    /// The last attempt to follow the folder failed in part.
    pub(crate) incomplete: bool,
    pub(crate) binaries: Option<Binaries>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) congestion: Option<String>,
    pub(crate) nodes: Vec<NodeHandle>,
    pub(crate) pods: Vec<PodHandle>,
    pub(crate) controller: Option<Process>,
    pub(crate) follower: Option<Process>,
    kept: bool,
}

/// Where a lab's manifests come from.
#[derive(Clone, Debug)]
pub enum Manifests {
    /// A folder, which is followed and never written to.
    Folder(PathBuf),
    /// File names and texts; they become a folder in the lab's state.
    Files(Vec<(String, String)>),
}

/// How a lab is brought up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Further environment of every proxy; wins over the lab's own.
    pub environment: Vec<(String, String)>,
    /// Only namespaces and links.
    pub without_processes: bool,
    /// Congestion control of every namespace, instead of cubic.
    pub congestion: Option<String>,
}

impl Manifests {
    /// The built-in lab.
    pub fn builtin() -> Self {
        Self::Files(default::FILES.map(|(name, text)| (name.to_owned(), text.to_owned())).into())
    }
}

impl From<&Mesh> for Manifests {
    fn from(mesh: &Mesh) -> Self {
        Self::Files(mesh.files())
    }
}

impl Lab {
    /// Brings a lab up under a name of its own, for a test.
    pub fn for_test(mesh: &Mesh, environment: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let environment =
            environment.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let options = Options { environment, ..Options::default() };
        Self::up(&name, &mesh.into(), options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Brings a lab up and waits until every proxy serves every pod of its node. Any mistake in the manifests refuses it,
    /// with all of them.
    pub fn up(name: &str, manifests: &Manifests, options: Options) -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let folder = state_folder(name)?;
        if folder.exists() {
            return Err(Error::Up(name.to_owned()));
        }
        let given = match manifests {
            Manifests::Folder(path) => absolute(path)?,
            Manifests::Files(_) => folder.join(GIVEN_FOLDER),
        };
        let binaries = if options.without_processes { None } else { Some(binaries::find()?) };
        make_folder(&folder.join(ADDED_FOLDER))?;
        let mut lab = Self {
            name: name.to_owned(),
            record: Record { manifests: given.clone(), ..Record::default() },
            source: Some(Folder::new(&given)),
            incomplete: false,
            binaries,
            environment: options.environment,
            congestion: options.congestion,
            nodes: Vec::new(),
            pods: Vec::new(),
            controller: None,
            follower: None,
            kept: false,
        };
        if let Manifests::Files(files) = manifests {
            make_folder(&given)?;
            files.iter().try_for_each(|(name, text)| write(&given.join(name), text))?;
        }
        lab.make()?;
        Ok(lab)
    }

    fn make(&mut self) -> Result<(), Error> {
        let plan = self.first_plan()?;
        self.build_nodes(&plan.cluster.nodes)?;
        self.carry_out(plan)?;
        if self.binaries.is_some() {
            self.start_processes()?;
        }
        Ok(())
    }

    /// A lab that an earlier command brought up.
    pub fn attach(name: &str) -> Result<Self, Error> {
        let folder = state_folder(name)?;
        let record = Record::read(&folder)?.ok_or_else(|| Error::Down(name.to_owned()))?;
        let nodes = record.cluster.nodes.iter().map(|node| {
            let namespace = namespace_name(name, &node.name);
            NodeHandle::attach(node, namespace, folder.join(&node.name))
        });
        Ok(Self {
            nodes: nodes.collect(),
            pods: record.cluster.pods.iter().map(|pod| pod_handle(name, pod)).collect(),
            name: name.to_owned(),
            source: None,
            incomplete: false,
            record,
            binaries: None,
            environment: Vec::new(),
            congestion: None,
            controller: Process::recorded(&folder.join("controller.pid")),
            follower: Process::recorded(&folder.join("follow.pid")),
            kept: true,
        })
    }

    /// Leaves the lab up; `down` by name takes it down.
    pub fn keep(mut self) {
        self.kept = true;
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &Cluster {
        &self.record.cluster
    }

    /// The folder of manifests that the lab runs on.
    pub fn manifests(&self) -> &Path {
        &self.record.manifests
    }

    pub fn nodes(&self) -> &[NodeHandle] {
        &self.nodes
    }

    pub fn pods(&self) -> &[PodHandle] {
        &self.pods
    }

    /// A pod as [`Cluster::pod`] finds it; the lab's own tests know which there are.
    pub fn pod(&self, name: &str) -> &PodHandle {
        let found = self.cluster().pod(name).and_then(|pod| self.pods.iter().find(|one| one.spec() == pod));
        found.unwrap_or_else(|| panic!("{}", self.unknown(name)))
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
        let pod = self.cluster().pod(name).map(|pod| pod.netns.as_str());
        let node = self.cluster().node_number(name).map(|_| name);
        let found = node.or(pod).ok_or_else(|| self.unknown(name))?;
        Ok(namespace_name(&self.name, found))
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

    pub(crate) fn added_folder(&self) -> PathBuf {
        self.folder().join(ADDED_FOLDER)
    }

    /// The file of manifests as a cluster would have completed them; the controller reads it after the folder.
    pub fn added_manifests(&self) -> PathBuf {
        self.added_folder().join("cluster.json")
    }

    /// Of proxies that are started from now on; wins over what was set before.
    pub fn set_environment(&mut self, key: &str, value: &str) {
        self.environment.push((key.to_owned(), value.to_owned()));
    }

    /// Writes a file of the folder of manifests, whole, and follows it.
    pub fn edit(&mut self, file: &str, text: &str) {
        let done = write(&self.manifests().join(file), text).and_then(|()| self.sync());
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Removes a file of the folder of manifests, and follows it.
    pub fn remove(&mut self, file: &str) {
        let path = self.manifests().join(file);
        let done = fs::remove_file(&path).map_err(|source| Error::File { path, source });
        done.and_then(|()| self.sync()).unwrap_or_else(|error| panic!("{error}"));
    }

    fn unknown(&self, name: &str) -> Error {
        let nodes = self.cluster().nodes.iter().map(|node| node.name.as_str());
        let pods = self.cluster().pods.iter().map(|pod| pod.netns.as_str());
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
            eprintln!("--- controller\n{}", tail(&self.folder().join("controller.log")));
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
    PodHandle::new(pod.clone(), namespace_name(lab, &pod.netns))
}

pub(crate) fn namespace_name(lab: &str, name: &str) -> String {
    format!("{lab}.{name}")
}

/// `down` removes this folder with all that is in it, so a name must never lead out of the lab's own.
pub(crate) fn state_folder(name: &str) -> Result<PathBuf, Error> {
    if !is_name(name) {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(Path::new(STATE).join(name))
}

/// A DNS label (RFC 1123 section 2.1) of so many letters.
pub(crate) fn is_label(name: &str, longest: usize) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=longest).contains(&name.len()) && name.bytes().all(letter) && !name.starts_with('-')
}

/// Names of labs and nodes become files, folders and network namespaces.
pub(crate) fn is_name(name: &str) -> bool {
    is_label(name, LONGEST_NAME)
}

pub(crate) fn make_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    write_atomically(path, text, None, 0o644).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// The followed folder is read by processes that run elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let found = fs::canonicalize(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    if found.is_dir() { Ok(found) } else { Err(Error::NoFolder(path.to_owned())) }
}

pub(crate) fn tail(path: &Path) -> String {
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
