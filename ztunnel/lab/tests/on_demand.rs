//! Proxies that ask for addresses when a connection needs them (XDS_ON_DEMAND), under the controller.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ztunnel_lab::mesh::{self, Mesh};
use ztunnel_lab::{Lab, traffic, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  selector: {role: cart}
  ports: [{port: 80, targetPort: 7000}]
";
const ROLE: &[(&str, &str)] = &[("role", "cart")];

fn lab() -> Lab {
    let mesh = Mesh::new()
        .pod("node1", "front/client")
        .labelled("node2", "shop/first", ROLE)
        .pod("node3", "shop/stranger")
        .file("service.yaml", SERVICE);
    let lab = Lab::for_test(&mesh, &[("XDS_ON_DEMAND", "true")]);
    serve(&lab, "first");
    lab
}

/// Answers with its name.
fn serve(lab: &Lab, pod: &'static str) {
    let answer = move |mut stream: std::net::TcpStream| io::Write::write_all(&mut stream, pod.as_bytes());
    traffic::serve(lab.pod(pod), PORT, answer).expect("a free port");
}

/// Who answers at an address of the service.
fn ask(lab: &Lab, address: &str) -> io::Result<String> {
    let address: IpAddr = address.parse().expect("a literal");
    let reply = traffic::request(lab.pod("client"), SocketAddr::new(address, 80), b"")?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

fn known(lab: &Lab, what: &str) -> String {
    lab.node("node1").config_dump()[what].to_string()
}

fn tunnelled(lab: &Lab, pod: &str) -> f64 {
    let labels = [("destination_workload", pod), ("connection_security_policy", "mutual_tls")];
    lab.node("node1").metrics().sum("istio_tcp_connections_opened_total", &labels)
}

#[test]
fn an_address_of_a_service_leads_to_its_endpoints_and_to_their_successors() {
    let mut lab = lab();
    assert!(!known(&lab, "services").contains("cart"), "nobody has asked yet");
    assert_eq!(ask(&lab, "10.96.0.10").expect("the first connection passes"), "first");
    assert_eq!(ask(&lab, "fd00:96::10").expect("by the other address too"), "first");
    assert!(wait_until(DEADLINE, || tunnelled(&lab, "first") == 2.0), "{}", lab.node("node1").log());
    let workloads = known(&lab, "workloads");
    assert!(workloads.contains("shop/first") && !workloads.contains("shop/stranger"), "{workloads}");

    lab.edit("second.json", &mesh::pod("node3", "shop/second", ROLE).to_string());
    assert!(wait_until(DEADLINE, || lab.wait_ready("node3").is_ok()));
    serve(&lab, "second");
    let arrived = wait_until(DEADLINE, || known(&lab, "workloads").contains("shop/second"));
    assert!(arrived, "a new endpoint of a service that was asked for comes unasked");
    lab.remove("pod-shop-first.json");
    let gone = wait_until(DEADLINE, || !known(&lab, "workloads").contains("shop/first"));
    assert!(gone, "one that is gone is removed");
    for address in ["10.96.0.10", "fd00:96::10"] {
        assert_eq!(ask(&lab, address).expect("the service is served"), "second");
    }
    assert!(wait_until(DEADLINE, || tunnelled(&lab, "second") == 2.0), "{}", lab.node("node1").log());
    assert!(!known(&lab, "workloads").contains("shop/stranger"));
}

#[test]
fn a_controller_that_comes_back_goes_on_telling() {
    let mut lab = lab();
    assert_eq!(ask(&lab, "10.96.0.10").expect("the first connection passes"), "first");
    lab.kill_controller();
    lab.edit("second.json", &mesh::pod("node3", "shop/second", ROLE).to_string());
    lab.remove("pod-shop-first.json");
    lab.start_controller().expect("it comes back");
    assert!(wait_until(DEADLINE, || lab.wait_ready("node3").is_ok()));
    serve(&lab, "second");
    let replaced = || {
        let workloads = known(&lab, "workloads");
        workloads.contains("shop/second") && !workloads.contains("shop/first")
    };
    assert!(wait_until(2 * DEADLINE, replaced), "{}", known(&lab, "workloads"));
    assert_eq!(ask(&lab, "10.96.0.10").expect("the service is served"), "second");
}
