//! A pod speaks before its own record has come: who it is, the agent has said.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ztunnel_lab::process::write_atomically;
use ztunnel_lab::{Lab, Mesh, namespace, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
/// Far below what a connection waits for a record that it needs.
const SOON: Duration = Duration::from_secs(2);
const PORT: u16 = 7000;

/// Tells the agent of a pod that the control plane knows as another's.
fn enrol(lab: &Lab) {
    let path = lab.node("node1").pods_path();
    let text = std::fs::read_to_string(&path).expect("the agent's pods");
    let mut document: Value = serde_json::from_str(&text).expect("JSON");
    document["pods"].as_array_mut().expect("a list").push(json!({
        "uid": "late",
        "name": "late",
        "namespace": "front",
        // An account that the node runs, so that the CA signs for it; the record of "late" has another.
        "serviceAccount": "web",
        "netns": namespace::path(lab.pod("late").namespace()),
        "addresses": lab.pod("late").spec().addresses,
    }));
    write_atomically(&path, &document.to_string(), None, 0o644).expect("the lab's folder");
    let served = || lab.node("node1").config_dump()["workloadState"].get("late").is_some();
    assert!(wait_until(DEADLINE, served), "{}", lab.node("node1").agent_log());
}

fn what_it_opens_goes_through_a_tunnel_at_once(environment: &[(&str, &str)]) {
    let mesh = Mesh::new().pod("node1", "front/web").outside("node1", "front/late");
    let lab = Lab::for_test(&mesh.pod("node2", "shop/cart"), environment);
    traffic::serve(lab.pod("cart"), PORT, traffic::echo).expect("a free port");
    enrol(&lab);
    let started = Instant::now();
    let cart = SocketAddr::new(lab.pod("cart").ipv4(), PORT);
    assert_eq!(traffic::request(lab.pod("late"), cart, b"x").expect("it is answered"), b"x");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    let labels = [
        ("reporter", "source"),
        ("source_principal", "spiffe://cluster.local/ns/front/sa/web"),
        ("source_workload", "unknown"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let counted = || lab.node("node1").metrics().sum("istio_tcp_connections_opened_total", &labels) == 1.0;
    assert!(wait_until(DEADLINE, counted), "{}", lab.node("node1").metrics().0);
}

#[test]
fn a_pod_without_a_record_is_not_kept_waiting() {
    what_it_opens_goes_through_a_tunnel_at_once(&[]);
}

#[test]
fn nor_where_records_are_asked_for() {
    what_it_opens_goes_through_a_tunnel_at_once(&[("XDS_ON_DEMAND", "true")]);
}
