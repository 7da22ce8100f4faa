//! A node: pods with namespaces of their own, the folder of its processes, and an API server that says what a test tells it to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use redirect::cni::{Enrolled, Request, Sandbox};
use redirect::locate::Locator;
use redirect::netns::Netns;
use redirect::source::kube::{Cni, Config, start};
use redirect::source::{Notice, Notices, Pod, Served, Update};
use reflector::Timing;
use reflector::scripted::{Asked, DEADLINE, Open, Server, list};
use rtnetlink::{LinkUnspec, LinkVeth};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

pub const HASTY: Timing = Timing {
    answer: DEADLINE,
    watch: Duration::from_secs(120),
    stalled: DEADLINE,
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(10),
    steady: Duration::from_secs(1),
};

/// A folder that is gone with the test, and what was mounted there.
pub struct Node {
    pub folder: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Node {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("node-{}-{number}", std::process::id()));
        for part in ["proc", "netns", "elsewhere"] {
            std::fs::create_dir_all(folder.join(part)).expect("a temporary folder");
        }
        Self { folder, mounted: Vec::new() }
    }

    pub fn locator(&self) -> Locator {
        Locator { proc: self.folder.join("proc"), netns: self.folder.join("netns") }
    }

    /// A namespace that the container runtime made.
    pub async fn namespace(&mut self, name: &str, addresses: &[&str]) -> PathBuf {
        self.make(self.folder.join("netns").join(name), addresses).await
    }

    /// A namespace that is found by a process only.
    pub async fn hidden_namespace(&mut self, name: &str, addresses: &[&str]) -> PathBuf {
        self.make(self.folder.join("elsewhere").join(name), addresses).await
    }

    async fn make(&mut self, path: PathBuf, addresses: &[&str]) -> PathBuf {
        std::fs::write(&path, "").expect("mount point");
        let target = path.clone();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare, root needed");
            let source = Some("/proc/thread-self/ns/net");
            mount(source, &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind mount");
        })
        .join()
        .expect("namespace");
        self.mounted.push(path.clone());
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().expect("an address")).collect();
        let inside = Netns::open(&path).expect("just made");
        inside.run(move || set_up(addresses)).await.expect("work in the namespace");
        path
    }

    /// A process with the pod's UID in its control group, in the namespace at a path.
    pub fn process(&self, number: u32, uid: &str, netns: &Path) {
        let group = format!("0::/kubepods.slice/kubepods-pod{}.slice/cri-1.scope\n", uid.replace('-', "_"));
        let folder = self.folder.join("proc").join(number.to_string());
        std::fs::create_dir_all(folder.join("ns")).expect("a folder");
        std::fs::write(folder.join("cgroup"), group).expect("written");
        std::os::unix::fs::symlink(netns, folder.join("ns/net")).expect("a link");
    }

    pub fn end_process(&self, number: u32) {
        std::fs::remove_dir_all(self.folder.join("proc").join(number.to_string())).expect("it was there");
    }

    pub fn remove(&mut self, path: &Path) {
        umount2(path, MntFlags::MNT_DETACH).expect("it was mounted");
        std::fs::remove_file(path).expect("it was there");
        self.mounted.retain(|mounted| mounted != path);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for path in &self.mounted {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn set_up(addresses: Vec<IpAddr>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
        tokio::spawn(connection);
        // Left down: it has its addresses, and no routes that the kernel adds only once it has looked for duplicates.
        let link = LinkVeth::new("eth0", "other").build();
        handle.link().add(link).execute().await.expect("a link");
        let index = nix::net::if_::if_nametoindex("eth0").expect("just made");
        for address in addresses {
            let length = if address.is_ipv4() { 24 } else { 64 };
            handle.address().add(index, address, length).execute().await.expect("an address");
        }
        handle.link().change(LinkUnspec::new_with_index(1).up().build()).execute().await.expect("loopback");
    });
}

/// The source, the API server, and what the source has told last.
pub struct Following {
    pub server: Server,
    pub pods: Asked,
    pub namespaces: Asked,
    pub notices: Notices,
    pub served: watch::Sender<Served>,
    pub requests: mpsc::Sender<Request>,
    pub enrolled: PathBuf,
    updates: mpsc::Receiver<Update>,
    pub last: Update,
}

impl Following {
    pub async fn start(node: &Node) -> Self {
        let server = Server::start().await;
        Self::with(node, server, HASTY, DEADLINE)
    }

    pub fn with(node: &Node, server: Server, timing: Timing, deadline: Duration) -> Self {
        let (pods, namespaces) = (server.asked("pods"), server.asked("namespaces"));
        let (tell, updates) = mpsc::channel(1);
        let (requests, asked) = mpsc::channel(16);
        let (notices, noticed) = Notices::channel();
        let enrolled = node.folder.join("enrolled");
        let config = Config {
            api: server.config(),
            timing,
            node: "n1".to_owned(),
            locator: node.locator(),
            cni: Some(Cni { requests: asked, enrolled: Enrolled::at(enrolled.clone()), deadline }),
        };
        let (served, seen_served) = watch::channel(Served::new());
        start(config, tell, noticed, seen_served).expect("a client");
        let last = Update::default();
        Self { server, pods, namespaces, notices, served, requests, enrolled, updates, last }
    }

    /// Answers the first lists.
    pub async fn listed(&mut self, namespaces: Vec<Value>, pods: Vec<Value>) -> (Open, Open) {
        self.namespaces.list().await.answer(200, &list("1", "", namespaces)).await;
        let namespaces = self.namespaces.watch("1").await.open().await;
        let asked = self.pods.list().await;
        assert!(asked.query.contains("fieldSelector=spec.nodeName%3Dn1"), "{}", asked.query);
        asked.answer(200, &list("1", "", pods)).await;
        (namespaces, self.pods.watch("1").await.open().await)
    }

    pub async fn next(&mut self) -> &mut Update {
        let next = timeout(DEADLINE, self.updates.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing is told after {:?}", self.names()));
        self.last = next.expect("the source lives");
        &mut self.last
    }

    /// Whole lists, until one has these pods.
    pub async fn until(&mut self, expected: &[&str]) {
        while !self.last.complete || self.names() != expected {
            self.next().await;
        }
    }

    /// Until these are members whose namespaces are not known.
    pub async fn until_unlocated(&mut self, expected: &[&str]) {
        while !self.last.complete || {
            let unlocated: BTreeMap<&str, ()> =
                self.last.unlocated.iter().map(|pod| (pod.uid.as_str(), ())).collect();
            !unlocated.keys().eq(expected.iter())
        } {
            self.next().await;
        }
    }

    /// What is told meanwhile is that nothing changed.
    pub async fn stays(&mut self, expected: &[&str], time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while let Ok(update) = tokio::time::timeout_at(until, self.updates.recv()).await {
            self.last = update.expect("the source lives");
            assert_eq!(self.names(), expected);
        }
        assert_eq!(self.names(), expected);
    }

    pub fn names(&self) -> Vec<&str> {
        self.last.pods.iter().map(|pod| pod.name.as_str()).collect()
    }

    pub fn pod(&self, name: &str) -> &Pod {
        self.last.pods.iter().find(|pod| pod.name == name).expect("it is told")
    }

    pub async fn add(&self, sandbox: Sandbox) -> oneshot::Receiver<Result<(), String>> {
        let (answer, outcome) = oneshot::channel();
        self.requests.send(Request::Add { sandbox, answer }).await.expect("the source lives");
        outcome
    }

    /// The agent serves the pod that was asked about.
    pub async fn serve(&mut self, uid: &str, outcome: Result<(), String>) {
        loop {
            if let Some(ask) = self.next().await.ask.take() {
                assert_eq!(ask.uid, uid);
                return ask.answer.send(outcome).expect("somebody asks");
            }
        }
    }
}

pub async fn answered(outcome: oneshot::Receiver<Result<(), String>>) -> Result<(), String> {
    timeout(DEADLINE, outcome).await.expect("it is answered").expect("the source lives")
}

pub fn sandbox(name: &str, netns: &Path, address: &str) -> Sandbox {
    Sandbox {
        container_id: format!("container-{name}"),
        uid: Some(uid(name)),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        netns: netns.to_owned(),
        addresses: vec![address.parse().expect("an address")],
    }
}

pub fn uid(name: &str) -> String {
    format!("{name}-0d1c-4b6a")
}

pub fn notice(name: &str, message: &str) -> Notice {
    Notice { uid: uid(name), warning: true, reason: "NotCaptured", message: message.to_owned() }
}

pub fn namespace(mode: Option<&str>) -> Value {
    let labels = mode.map_or(json!({}), |mode| json!({"istio.io/dataplane-mode": mode}));
    json!({"metadata": {"name": "shop", "labels": labels, "resourceVersion": "2"}})
}

pub fn pod(name: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": uid(name), "resourceVersion": "2", "labels": {}},
        "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [{"name": "app", "env": [{"name": "A"}]}]},
        "status": {"phase": "Running", "podIPs": addresses},
    })
}

pub fn labelled(mut pod: Value, mode: &str) -> Value {
    pod["metadata"]["labels"]["istio.io/dataplane-mode"] = json!(mode);
    pod
}
