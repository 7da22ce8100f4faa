//! What the cluster says of the pods: to the agent by an API server, to the controller by manifests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reflector::scripted::{self, Ask, Asked, Open, Server, list};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, sleep_until};

use super::{NAMESPACE, NODE, Node};
use crate::process::write_atomically;
use crate::{Lab, namespace};

/// Of the bookmarks, without which a quiet watch counts as dead.
const PERIOD: Duration = Duration::from_secs(5);

pub struct ApiServer {
    kubeconfig: PathBuf,
    bound: PathBuf,
    told: mpsc::UnboundedSender<Told>,
}

enum Told {
    Created(String),
    Addressed(String, IpAddr, Instant),
    Deleted(String),
    GoAway(oneshot::Sender<()>),
    ComeBack(oneshot::Sender<()>),
}

/// What it has and whom it answers.
struct Api {
    told: mpsc::UnboundedReceiver<Told>,
    pods: Kind,
    namespaces: Kind,
    /// The one namespace by itself.
    namespace: Asked,
    /// Annotations that the agent writes.
    marks: Asked,
    /// Addresses that are told later.
    due: BTreeMap<(Instant, String), IpAddr>,
    /// The controller's folder.
    records: PathBuf,
    server: Server,
}

/// Objects of a kind, and who watches them.
struct Kind {
    asked: Asked,
    objects: BTreeMap<String, Value>,
    version: u64,
    open: Option<Open>,
}

impl ApiServer {
    /// On the node.
    pub(super) fn start(lab: &Lab, node: &Node) -> Self {
        let added = lab.added_manifests();
        let records = added.parent().expect("invariant: a file is in a folder").to_owned();
        let (told, hears) = mpsc::unbounded_channel();
        let (ready, address) = oneshot::channel();
        let inside = node.namespace().to_owned();
        std::thread::spawn(move || {
            let serve = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async move {
                    let server = Server::start().await;
                    let _ = ready.send(server.address);
                    Api::new(server, hears, records).serve().await;
                });
            };
            namespace::run(&inside, serve).expect("the namespace is there");
        });
        let address = address.blocking_recv().expect("it serves");
        let kubeconfig = node.folder().join("kubeconfig.json");
        std::fs::write(&kubeconfig, scripted::kubeconfig(address).to_string()).expect("the lab's folder");
        Self { kubeconfig, bound: lab.manifests().join("bound.json"), told }
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The controller hears that these are to run on the node, and nothing of those before.
    pub fn bind(&self, names: impl Iterator<Item = String>) {
        let items: Vec<Value> = names.map(|name| pod(&name, &[])).collect();
        let text = json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
        write_atomically(&self.bound, &text, None, 0o644).expect("the lab's folder");
    }

    pub fn created(&self, name: &str) {
        self.tell(Told::Created(name.to_owned()));
    }

    /// Agent and controller hear of the address then, if the pod still lives.
    pub fn addressed(&self, name: &str, ip: IpAddr, when: std::time::Instant) {
        self.tell(Told::Addressed(name.to_owned(), ip, when.into()));
    }

    pub fn deleted(&self, name: &str) {
        self.tell(Told::Deleted(name.to_owned()));
    }

    /// Nobody listens, and all connections are gone.
    pub fn go_away(&self) {
        self.wait_for(Told::GoAway);
    }

    pub fn come_back(&self) {
        self.wait_for(Told::ComeBack);
    }

    fn wait_for(&self, told: impl FnOnce(oneshot::Sender<()>) -> Told) {
        let (done, is_done) = oneshot::channel();
        self.tell(told(done));
        is_done.blocking_recv().expect("the API server lives as long as this");
    }

    fn tell(&self, told: Told) {
        self.told.send(told).expect("the API server lives as long as this");
    }
}

impl Api {
    fn new(server: Server, told: mpsc::UnboundedReceiver<Told>, records: PathBuf) -> Self {
        let kind =
            |plural| Kind { asked: server.asked(plural), objects: BTreeMap::new(), version: 1, open: None };
        let (pods, mut namespaces, marks) = (kind("pods"), kind("namespaces"), server.asked("status"));
        let labels = json!({ "istio.io/dataplane-mode": "ambient" });
        let meshed = json!({ "metadata": { "name": NAMESPACE, "labels": labels, "resourceVersion": "1" } });
        namespaces.objects.insert(NAMESPACE.to_owned(), meshed);
        let namespace = server.asked(&format!("/api/v1/namespaces/{NAMESPACE}"));
        Self { told, pods, namespaces, namespace, marks, due: BTreeMap::new(), records, server }
    }

    async fn serve(mut self) {
        let mut tick = interval(PERIOD);
        loop {
            let next = self.due.keys().next().map(|(when, _)| *when);
            tokio::select! {
                told = self.told.recv() => match told {
                    Some(told) => self.hear(told).await,
                    None => return,
                },
                ask = self.pods.asked.next() => self.pods.answer(ask).await,
                ask = self.namespaces.asked.next() => self.namespaces.answer(ask).await,
                ask = self.namespace.next() => ask.answer(200, &self.namespaces.objects[NAMESPACE]).await,
                ask = self.marks.next() => self.mark(ask).await,
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.address().await,
                _ = tick.tick() => {
                    self.pods.bookmark().await;
                    self.namespaces.bookmark().await;
                }
            }
        }
    }

    async fn hear(&mut self, told: Told) {
        match told {
            Told::Created(name) => self.pods.set("ADDED", &name, pod(&name, &[])).await,
            Told::Addressed(name, ip, when) => drop(self.due.insert((when, name), ip)),
            Told::Deleted(name) => {
                self.due.retain(|(_, waits), _| *waits != name);
                self.pods.remove(&name).await;
                // It may never have come.
                let _ = std::fs::remove_file(self.record(&name));
            }
            // Whoever waits may have panicked.
            Told::GoAway(done) => {
                self.server.go_away().await;
                for kind in [&mut self.pods, &mut self.namespaces] {
                    kind.open = None;
                    kind.asked.forget();
                }
                let _ = done.send(());
            }
            Told::ComeBack(done) => {
                self.server.come_back().await;
                let _ = done.send(());
            }
        }
    }

    async fn address(&mut self) {
        let Some(((_, name), ip)) = self.due.pop_first() else { return };
        let Some(mut object) = self.pods.objects.get(&name).cloned() else { return };
        object["status"] = pod(&name, &[ip])["status"].clone();
        write_atomically(&self.record(&name), &object.to_string(), None, 0o644).expect("the lab's folder");
        self.pods.set("MODIFIED", &name, object).await;
    }

    /// An agent says that a pod is captured.
    async fn mark(&mut self, ask: Ask) {
        let name = ask.path.rsplit('/').nth(1).unwrap_or_default().to_owned();
        let Some(mut object) = self.pods.objects.get(&name).cloned() else {
            return ask.refuse(404, "not found").await;
        };
        object["metadata"]["annotations"] = ask.body["metadata"]["annotations"].clone();
        ask.answer(200, &object).await;
        self.pods.set("MODIFIED", &name, object).await;
    }

    fn record(&self, name: &str) -> PathBuf {
        self.records.join(format!("record-{name}.json"))
    }
}

impl Kind {
    async fn answer(&mut self, ask: Ask) {
        if ask.is_watch() {
            self.open = Some(ask.open().await);
        } else {
            let objects: Vec<Value> = self.objects.values().cloned().collect();
            ask.answer(200, &list(&self.version.to_string(), "", objects)).await;
        }
    }

    async fn set(&mut self, r#type: &str, name: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(name.to_owned(), object.clone());
        self.say(r#type, object).await;
    }

    async fn remove(&mut self, name: &str) {
        let Some(mut object) = self.objects.remove(name) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.say("DELETED", object).await;
    }

    async fn bookmark(&mut self) {
        let object = json!({ "metadata": { "resourceVersion": self.version.to_string() } });
        self.say("BOOKMARK", object).await;
    }

    async fn say(&mut self, r#type: &str, object: Value) {
        if let Some(open) = &mut self.open {
            open.event(r#type, object).await;
        }
    }
}

/// Meshed by its namespace, with an account of its own.
fn pod(name: &str, addresses: &[IpAddr]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "uid": format!("u-{name}"), "labels": { "app": name } },
        "spec": { "nodeName": NODE, "serviceAccountName": name, "containers": [{ "name": "app" }] },
        "status": { "phase": "Running", "podIPs": addresses },
    })
}
