//! Pods come and go, each with a namespace, an ADD and a DEL of its own, and the agent keeps nothing of them: no
//! descriptor, no namespace, no memory, no record. 300 of them unless the environment says how many:
//! `CYCLES=10000 cargo test -p redirect --test cni_cycles` takes some minutes.

#[expect(dead_code, reason = "the agent of this one follows Kubernetes")]
mod namespace;

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use nix::mount::{MntFlags, umount2};
use redirect::client::{Client, Event};
use redirect::netns::Netns;
use reflector::scripted::{Open, Server, kubeconfig, list};
use rtnetlink::LinkVeth;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(20);
/// Pods of a round, at once.
const AT_ONCE: usize = 10;
/// What allocator and buffers may take beyond what the first rounds have taken.
const GROWTH: u64 = 8 << 20;

/// A node in a namespace of its own.
struct Node {
    folder: PathBuf,
    agent: Child,
    pods: Open,
    namespaces: Open,
    _server: Server,
}

/// What the agent's process holds.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    /// Namespaces among them.
    namespaces: usize,
}

impl Node {
    /// On the thread that is to be the node.
    async fn start(folder: PathBuf) -> Self {
        let server = Server::start().await;
        let kubeconfig = kubeconfig(server.address);
        std::fs::write(folder.join("kubeconfig"), kubeconfig.to_string()).expect("written");
        let (mut pods, mut namespaces) = (server.asked("pods"), server.asked("namespaces"));
        let agent = Command::new(env!("CARGO_BIN_EXE_ztunnel-redirect"))
            .args(["--kubernetes", "--node-name", "n1", "--proxy-uid", "0", "--log", "warn"])
            .arg("--socket")
            .arg(folder.join("redirect.sock"))
            .arg("--cni-socket")
            .arg(folder.join("cni.sock"))
            .arg("--enrolled")
            .arg(folder.join("enrolled.json"))
            .arg("--netns-dir")
            .arg(folder.join("netns"))
            .env("KUBECONFIG", folder.join("kubeconfig"))
            .spawn()
            .expect("the agent starts");
        namespaces.list().await.answer(200, &list("1", "", [shop()])).await;
        let namespaces = namespaces.watch("1").await.open().await;
        pods.list().await.answer(200, &list("1", "", [])).await;
        let pods = pods.watch("1").await.open().await;
        Self { folder, agent, pods, namespaces, _server: server }
    }

    /// A proxy that serves every pod of which it hears. Counts those that are gone.
    async fn proxy(&self) -> Arc<AtomicUsize> {
        let socket = self.folder.join("redirect.sock");
        let started = Instant::now();
        let mut client = loop {
            match Client::connect(&socket, Vec::new()).await {
                Ok(client) => break client,
                Err(error) => assert!(started.elapsed() < DEADLINE, "no agent serves: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let gone = Arc::new(AtomicUsize::new(0));
        let counted = gone.clone();
        tokio::spawn(async move {
            let agent = client.handle();
            loop {
                match client.next().await {
                    Ok(Event::PodAdded(pod)) => agent.ready(&pod.uid),
                    Ok(Event::PodRemoved { .. }) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        gone
    }

    /// Some pods come and go.
    async fn round(&mut self, first: usize) {
        let names: Vec<String> = (first..first + AT_ONCE).map(|index| format!("p{index}")).collect();
        let addresses: Vec<IpAddr> =
            (0..AT_ONCE).map(|place| IpAddr::from([10, 0, 0, 1 + place as u8])).collect();
        for (name, ip) in names.iter().zip(&addresses) {
            self.pods.event("ADDED", pod(name)).await;
            make(&self.netns(name), *ip);
        }
        let added = names.iter().zip(&addresses).map(|(name, ip)| self.call("ADD", name, *ip));
        succeed(added).await;
        // A pod ends in this order, or loses its namespace at once, or is deleted before its sandbox is.
        let (orderly, rest) = names.split_at(AT_ONCE / 2);
        let (lost, deleted) = rest.split_at(rest.len() / 2);
        lost.iter().for_each(|name| remove(&self.netns(name)));
        for name in deleted {
            self.pods.event("DELETED", pod(name)).await;
        }
        succeed(names.iter().zip(&addresses).map(|(name, ip)| self.call("DEL", name, *ip))).await;
        for name in orderly.iter().chain(lost) {
            self.pods.event("DELETED", pod(name)).await;
        }
        orderly.iter().chain(deleted).for_each(|name| remove(&self.netns(name)));
        // Or its watch would count as dead one day.
        self.namespaces.event("BOOKMARK", shop()).await;
    }

    fn call(&self, command: &str, name: &str, ip: IpAddr) -> JoinHandle<Output> {
        let netns = self.netns(name);
        let mut call = Command::new(env!("CARGO_BIN_EXE_ztunnel-cni"));
        call.env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("c-{name}"))
            .env("CNI_NETNS", &netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID=u-{name}"),
            );
        let stdin = json!({
            "cniVersion": "1.1.0",
            "name": "network",
            "type": "ztunnel-cni",
            "socket": self.folder.join("cni.sock"),
            "enrolled": self.folder.join("enrolled.json"),
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{ "name": "eth0", "sandbox": netns }],
                "ips": [{ "address": format!("{ip}/24"), "interface": 0 }],
            },
        });
        tokio::task::spawn_blocking(move || {
            let started = call.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut child = started.expect("it can be executed");
            let mut pipe = child.stdin.take().expect("a pipe");
            pipe.write_all(stdin.to_string().as_bytes()).expect("the plugin reads");
            drop(pipe);
            child.wait_with_output().expect("it ends")
        })
    }

    fn netns(&self, name: &str) -> PathBuf {
        self.folder.join("netns").join(name)
    }

    fn held(&self) -> Held {
        let folder = format!("/proc/{}/fd", self.agent.id());
        let entries = std::fs::read_dir(folder).expect("the agent lives").flatten();
        let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        // Opened once by a static program, whenever it first needs what is random.
        let links: Vec<PathBuf> = links.filter(|link| link != Path::new("/dev/urandom")).collect();
        let is_namespace = |link: &&PathBuf| link.to_string_lossy().starts_with("net:[");
        Held { descriptors: links.len(), namespaces: links.iter().filter(is_namespace).count() }
    }

    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    fn record(&self) -> String {
        std::fs::read_to_string(self.folder.join("redirect.captured.json")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        for entry in std::fs::read_dir(self.folder.join("netns")).into_iter().flatten().flatten() {
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
        }
        let _ = umount2(&self.folder.join("node"), MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn succeed(calls: impl Iterator<Item = JoinHandle<Output>>) {
    let ended = tokio::time::timeout(DEADLINE, join_all(calls)).await.expect("in time");
    for output in ended {
        let output = output.expect("no panic");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// With an address, on a link that stays down.
fn make(path: &Path, ip: IpAddr) {
    namespace::make(path);
    let set_up = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
            tokio::spawn(connection);
            handle.link().add(LinkVeth::new("eth0", "other").build()).execute().await.expect("a link");
            let index = nix::net::if_::if_nametoindex("eth0").expect("just made");
            handle.address().add(index, ip, 24).execute().await.expect("an address");
        });
    };
    let netns = Netns::open(path).expect("just made");
    // Not on the thread of the test's runtime.
    let made = std::thread::spawn(move || netns.run_blocking(set_up).expect("work inside"));
    made.join().expect("a pod's namespace");
}

fn remove(path: &Path) {
    umount2(path, MntFlags::MNT_DETACH).expect("it was mounted");
    std::fs::remove_file(path).expect("it was there");
}

fn shop() -> Value {
    let labels = json!({ "istio.io/dataplane-mode": "ambient" });
    json!({ "metadata": { "name": "shop", "labels": labels, "resourceVersion": "1" } })
}

fn pod(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "shop", "uid": format!("u-{name}"), "resourceVersion": "2" },
        "spec": { "nodeName": "n1", "serviceAccountName": "web", "containers": [{ "name": "app" }] },
        "status": { "phase": "Pending" },
    })
}

/// Until it holds, or to tell what does not.
async fn until(what: impl Fn() -> String, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "{}", what());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn come_and_go(folder: PathBuf, cycles: usize) {
    let mut node = Node::start(folder).await;
    let gone = node.proxy().await;
    let all_gone = |count: usize| {
        let gone = gone.clone();
        move || gone.load(Ordering::Relaxed) == count
    };
    let warm = 3 * AT_ONCE;
    for first in (0..warm).step_by(AT_ONCE) {
        node.round(first).await;
    }
    let told = || format!("{} pods are told to be gone", gone.load(Ordering::Relaxed));
    until(told, all_gone(warm)).await;
    until(|| node.record(), || node.record() == "[]").await;
    let (before, resident) = (node.held(), node.resident());

    for first in (warm..warm + cycles).step_by(AT_ONCE) {
        node.round(first).await;
    }
    let count = warm + cycles.next_multiple_of(AT_ONCE);
    until(told, all_gone(count)).await;
    until(|| node.record(), || node.record() == "[]").await;
    until(|| format!("{:?}, and before {before:?}", node.held()), || node.held() == before).await;
    let grown = node.resident().saturating_sub(resident);
    println!(
        "{cycles} cycles: {before:?} before and after, {} KiB more than {} KiB",
        grown >> 10,
        resident >> 10
    );
    assert!(grown < GROWTH, "{grown} bytes more than {resident}");
}

#[test]
fn pods_come_and_go_and_nothing_of_them_stays() {
    let cycles = std::env::var("CYCLES").map_or(300, |text| text.parse().expect("CYCLES is a number"));
    let folder = std::env::temp_dir().join(format!("cycles-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("netns")).expect("a temporary folder");
    let own = folder.join("node");
    namespace::make(&own);
    let live = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(come_and_go(folder, cycles));
    };
    Netns::open(&own).and_then(|netns| netns.run_blocking(live)).expect("nothing stayed");
}
