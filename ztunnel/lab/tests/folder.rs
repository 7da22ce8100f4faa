//! The folder of manifests is alive: what is edited there is what the mesh does, soon and without harm to the rest.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ztunnel_lab::mesh::{self, Mesh};
use ztunnel_lab::node::PodHandle;
use ztunnel_lab::{Lab, namespace, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
/// From the edit of a policy to its enforcement on every node.
const PROMISED: Duration = Duration::from_secs(1);
const PORT: u16 = 7000;
const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {notPorts: ['1']}}]}]
";

fn peer_authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: mode, namespace: shop}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

/// A client on the first node and a server on each.
fn bed() -> Lab {
    let nodes = ["node1", "node2", "node3"];
    let mesh = Mesh::new().pod("node1", "front/client").outside("node2", "legacy/legacy");
    let mesh = nodes.into_iter().fold(mesh, |mesh, node| mesh.pod(node, &format!("shop/on-{node}")));
    let lab = Lab::for_test(&mesh, &[]);
    for node in nodes {
        traffic::serve(lab.pod(&format!("on-{node}")), PORT, traffic::echo).expect("a free port");
    }
    lab
}

fn servers(lab: &Lab) -> Vec<SocketAddr> {
    ["on-node1", "on-node2", "on-node3"].map(|pod| SocketAddr::new(lab.pod(pod).ipv4(), PORT)).into()
}

fn ask(from: &PodHandle, to: SocketAddr) -> io::Result<()> {
    let reply = traffic::request(from, to, b"hello")?;
    if reply == b"hello" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Connections of one pod to all servers, one after the other, until it is told to end.
struct Load {
    ends: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<(Instant, io::Error)>>,
}

impl Load {
    fn start(lab: &Lab, from: &str) -> Self {
        let (ends, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (pod, to) = (lab.pod(from).clone(), servers(lab));
        let (told, count) = (ends.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            for to in to.into_iter().cycle() {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                // Several round trips on each connection: else the ports of the pod run out.
                match traffic::round_trips(&pod, to, 20) {
                    Ok(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failures.push((Instant::now(), error)),
                }
            }
            failures
        });
        let load = Self { ends, done, thread };
        load.goes_on();
        load
    }

    /// Waits for twenty more connections.
    fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        assert!(
            wait_until(DEADLINE, || self.done.load(Ordering::Relaxed) >= before + 20),
            "no traffic passes"
        );
    }

    fn finish(self) -> Vec<(Instant, io::Error)> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

#[test]
fn an_edited_policy_is_enforced_on_every_node_within_a_second() {
    let mut lab = bed();
    let load = Load::start(&lab, "client");
    let to = servers(&lab);
    for round in 0..3 {
        let started = Instant::now();
        lab.edit("policy.yaml", DENY);
        let denied = || to.iter().all(|&to| ask(lab.pod("client"), to).is_err());
        assert!(wait_until(DEADLINE, denied), "round {round}: the policy is not enforced everywhere");
        let took = started.elapsed();
        assert!(took < PROMISED, "round {round}: enforced after {took:?}");
        let started = Instant::now();
        lab.remove("policy.yaml");
        let open = || to.iter().all(|&to| ask(lab.pod("client"), to).is_ok());
        assert!(wait_until(DEADLINE, open), "round {round}: the policy is still enforced");
        let took = started.elapsed();
        assert!(took < PROMISED, "round {round}: lifted after {took:?}");
    }
    load.goes_on();
    let failures = load.finish();
    assert!(!failures.is_empty(), "the traffic met no policy");
    assert!(lab.node("node3").log().contains("explicitly denied by: shop/nobody"));
}

#[test]
fn strict_harms_no_mutual_tls_client() {
    let mut lab = bed();
    lab.edit("mode.yaml", &peer_authentication("PERMISSIVE"));
    let load = Load::start(&lab, "client");
    let to = servers(&lab);
    let plaintext = |lab: &Lab| to.iter().filter(|&&to| ask(lab.pod("legacy"), to).is_ok()).count();
    assert_eq!(plaintext(&lab), 3, "permissive takes plaintext");
    for _ in 0..5 {
        lab.edit("mode.yaml", &peer_authentication("STRICT"));
        assert!(wait_until(DEADLINE, || plaintext(&lab) == 0), "strict refuses plaintext");
        load.goes_on();
        lab.edit("mode.yaml", &peer_authentication("PERMISSIVE"));
        assert!(wait_until(DEADLINE, || plaintext(&lab) == 3), "permissive takes it again");
    }
    let failures = load.finish();
    assert!(failures.is_empty(), "mutual TLS must never fail: {failures:?}");
}

#[test]
fn a_pod_comes_and_goes_with_its_file() {
    let mut lab = bed();
    let load = Load::start(&lab, "client");
    let manifest = |labels: &[(&str, &str)]| mesh::pod("node2", "shop/late", labels).to_string();
    lab.edit("late.json", &manifest(&[]));
    assert!(wait_until(DEADLINE, || lab.wait_ready("node2").is_ok()));
    traffic::serve(lab.pod("late"), PORT, traffic::echo).expect("a free port");
    let to = SocketAddr::new(lab.pod("late").ipv4(), PORT);
    let tunnelled = |lab: &Lab| {
        let labels = [
            ("destination_workload", "late"),
            ("connection_security_policy", "mutual_tls"),
            ("reporter", "destination"),
        ];
        lab.node("node2").metrics().sum("istio_tcp_connections_opened_total", &labels)
    };
    assert!(wait_until(DEADLINE, || ask(lab.pod("client"), to).is_ok() && tunnelled(&lab) > 0.0));
    // A policy that selects by label finds the pod when it gets the label.
    let selecting = DENY.replace("  action", "  selector: {matchLabels: {closed: 'yes'}}\n  action");
    lab.edit("policy.yaml", &selecting);
    lab.edit("late.json", &manifest(&[("closed", "yes")]));
    assert!(wait_until(DEADLINE, || ask(lab.pod("client"), to).is_err()), "the label closes it");
    let netns = namespace::path(lab.pod("late").namespace());
    assert!(netns.exists());
    // Another takes its place, and its address with it.
    lab.edit("late.json", &mesh::pod("node2", "shop/later", &[]).to_string());
    assert!(!netns.exists(), "the pod is gone");
    assert!(lab.cluster().pod("late").is_none());
    assert_eq!(lab.pod("later").ipv4(), to.ip());
    assert!(wait_until(DEADLINE, || lab.wait_ready("node2").is_ok()));
    traffic::serve(lab.pod("later"), PORT, traffic::echo).expect("a free port");
    assert!(wait_until(DEADLINE, || ask(lab.pod("client"), to).is_ok()), "the new one answers there");
    lab.remove("late.json");
    assert!(lab.cluster().pod("later").is_none());
    let known = || lab.node("node1").config_dump()["workloads"].to_string().contains("shop/late");
    assert!(wait_until(DEADLINE, || !known()), "proxies forget them");
    load.goes_on();
    let failures = load.finish();
    assert!(failures.is_empty(), "other pods must not notice: {failures:?}");
}

#[test]
fn a_malformed_manifest_keeps_the_rest() {
    let mut lab = bed();
    lab.edit("policy.yaml", DENY);
    let to = servers(&lab);
    let denied = |lab: &Lab| to.iter().all(|&to| ask(lab.pod("client"), to).is_err());
    assert!(wait_until(DEADLINE, || denied(&lab)));
    lab.edit("policy.yaml", &DENY.replace("[{to", "[{too"));
    lab.edit("pod-shop-on-node2.json", "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", ");
    lab.edit("late.json", &mesh::pod("node1", "shop/late", &[]).to_string());
    assert!(wait_until(DEADLINE, || lab.wait_ready("node1").is_ok()), "a good file beside them counts");
    assert!(denied(&lab), "the policy stays");
    assert!(lab.cluster().pod("on-node2").is_some(), "the pod stays");
    let status = lab.status().json();
    for part in ["policy.yaml:7:", "pod-shop-on-node2.json:2:1: document 1: while parsing"] {
        assert!(status.contains(part), "no {part} in {status}");
    }
    lab.remove("policy.yaml");
    assert!(wait_until(DEADLINE, || to.iter().all(|&to| ask(lab.pod("client"), to).is_ok())));
    lab.edit("pod-shop-on-node2.json", &mesh::pod("node2", "shop/on-node2", &[]).to_string());
    assert!(lab.status().json().contains("\"mistakes\": []"), "{}", lab.status().json());
}

#[test]
fn an_external_node_waits_for_somebody_elses_proxy() {
    let mesh = Mesh::new().pod("node1", "front/client").pod("node2", "shop/on-node2").external("node2");
    let lab = Lab::for_test(&mesh, &[]);
    let node = lab.node("node2");
    assert!(node.proxy().is_none(), "the lab starts none");
    assert!(node.agent().is_some_and(|agent| agent.runs()));
    let status: serde_json::Value = serde_json::from_str(&lab.status().json()).expect("JSON");
    let shown = &status["nodes"][1];
    assert_eq!(shown["proxy"], "external");
    assert_eq!(shown["external"]["enter"], namespace::path(node.namespace()).display().to_string());
    let told = |key: &str| shown["external"]["environment"][key].as_str().unwrap_or_default().to_owned();
    assert_eq!(told("NODE_NAME"), "node2");
    for key in ["XDS_ADDRESS", "CA_ADDRESS"] {
        assert_eq!(told(key), "https://172.30.0.1:15012");
    }
    for key in ["XDS_ROOT_CA", "CA_ROOT_CA", "AUTH_TOKEN", "REDIRECT_SOCKET", "INPOD_UDS"] {
        assert!(wait_until(DEADLINE, || std::path::Path::new(&told(key)).exists()), "{key} {}", told(key));
        assert!(lab.status().to_string().contains(&format!("{key}={}", told(key))), "{}", lab.status());
    }
    assert_eq!(std::fs::read_to_string(told("AUTH_TOKEN")).expect("a token"), node.token());
}

#[test]
fn nobody_notices_a_controller_that_is_killed_and_comes_back() {
    let mut lab = bed();
    let load = Load::start(&lab, "client");
    for _ in 0..2 {
        lab.kill_controller();
        load.goes_on();
        lab.start_controller().expect("it comes back");
        load.goes_on();
    }
    let connected = || {
        let dumps = ["node1", "node2", "node3"].map(|node| lab.node(node).config_dump());
        dumps.iter().all(|dump| dump["workloads"].to_string().contains("shop/on-node3"))
    };
    assert!(connected(), "the state stays");
    let failed = load.finish();
    assert!(failed.is_empty(), "{failed:?}");
    lab.edit("policy.yaml", DENY);
    let to = servers(&lab);
    let denied = || to.iter().all(|&to| ask(lab.pod("client"), to).is_err());
    assert!(wait_until(2 * DEADLINE, denied), "the proxies are connected again");
}
