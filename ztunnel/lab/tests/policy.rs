//! Authorization on real connections: every kind of match, what a change does to open streams, strict and permissive.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ztunnel_lab::{Lab, traffic, wait_until};
use ztunnel_model::codec::static_config;
use ztunnel_model::policy::Policy;

const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a stream may outlive the policy that allowed it.
const REVOCATION: Duration = Duration::from_secs(1);

const MESH: &str = "
nodes: [{name: node1}, {name: node2}]
pods:
- {name: web, namespace: front, serviceAccount: web, node: node1}
- {name: job, namespace: back, serviceAccount: job, node: node1}
- {name: cart, namespace: shop, serviceAccount: cart, node: node2}
- {name: legacy, namespace: legacy, node: node1, mesh: false}
";

fn lab(environment: &[(&str, &str)]) -> Lab {
    let lab = Lab::for_test(MESH, environment);
    for port in [PORT, OTHER_PORT] {
        traffic::serve(lab.pod("cart"), port, traffic::echo).expect("the cart can listen");
    }
    lab
}

fn policies(text: &str) -> Vec<Policy> {
    static_config::parse(&format!("policies:{text}"), "policies")
        .unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
        .policies
}

/// One policy of the cart's namespace; `rules` as in the static format.
fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "\n- {{name: {name}, namespace: shop, scope: Namespace, action: {action}, dryRun: false, rules: {rules}}}"
    )
}

fn known(lab: &Lab) -> Vec<String> {
    let dump = lab.node("node2").config_dump();
    let names = dump["policies"].as_array().map_or(&[][..], Vec::as_slice);
    let mut names: Vec<String> =
        names.iter().filter_map(|policy| policy["name"].as_str()).map(str::to_owned).collect();
    names.sort_unstable();
    names
}

/// Replaces all policies and waits until the cart's proxy decides by them.
fn set(lab: &mut Lab, text: &str) {
    let policies = policies(text);
    let mut names: Vec<String> = policies.iter().map(|policy| policy.key.name.clone()).collect();
    names.sort_unstable();
    lab.edit(|spec| spec.policies = policies);
    assert!(wait_until(DEADLINE, || known(lab) == names), "{names:?} did not arrive: {:?}", known(lab));
}

fn cart(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.pod("cart").ipv4(), PORT)
}

fn passes(lab: &Lab, from: &str, to: SocketAddr) -> bool {
    traffic::request(lab.pod(from), to, b"hello").is_ok_and(|reply| reply == b"hello")
}

fn denials(lab: &Lab) -> f64 {
    let labels = [("reporter", "destination"), ("response_flags", "DENY")];
    lab.node("node2").metrics().sum("istio_tcp_connections_failed_total", &labels)
}

/// Lines of the cart's proxy that hold all of `parts`; the log is written behind the traffic.
fn logged(lab: &Lab, parts: &[&str]) -> bool {
    wait_until(DEADLINE, || {
        lab.node("node2").log().lines().any(|line| parts.iter().all(|part| line.contains(part)))
    })
}

/// A connection that has carried a byte there and back, so it is authorized and established.
fn open(lab: &Lab, from: &str, to: SocketAddr) -> TcpStream {
    let mut stream = lab.pod(from).connect(to, DEADLINE).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout above zero");
    echoes(&mut stream).expect("the echo answers");
    stream
}

fn echoes(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// The stream ends within the promised time after `since`.
fn assert_closed(mut stream: TcpStream, since: Instant, what: &str) {
    let ended = match stream.read(&mut [0]) {
        Ok(0) => true,
        Ok(_) => panic!("{what}: a byte came from nowhere"),
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    };
    let took = since.elapsed();
    assert!(ended && took < REVOCATION, "{what}: still open after {took:?}");
}

#[test]
fn every_kind_of_match_and_its_negation() {
    let mut lab = lab(&[]);
    let (web, to) = (lab.pod("web").ipv4(), cart(&lab));
    let six = SocketAddr::new(lab.pod("cart").ipv6(), PORT);
    let other_port = SocketAddr::new(to.ip(), OTHER_PORT);
    // Kind, its twin, a value, a connection that has this value, and one that has another.
    let cases = [
        ("namespaces", "notNamespaces", "[{Exact: front}]".to_owned(), ("web", to), ("job", to)),
        (
            "principals",
            "notPrincipals",
            "[{Exact: cluster.local/ns/front/sa/web}]".to_owned(),
            ("web", to),
            ("job", to),
        ),
        (
            "serviceAccounts",
            "notServiceAccounts",
            "[{namespace: front, serviceAccount: web}]".to_owned(),
            ("web", to),
            ("job", to),
        ),
        ("sourceIps", "notSourceIps", format!("[{web}/32]"), ("web", to), ("job", to)),
        ("destinationIps", "notDestinationIps", format!("[{}/32]", to.ip()), ("web", to), ("web", six)),
        ("destinationPorts", "notDestinationPorts", format!("[{PORT}]"), ("web", to), ("web", other_port)),
    ];
    for (index, (kind, twin, value, with, without)) in cases.iter().enumerate() {
        for (key, allowed, denied) in [(kind, with, without), (twin, without, with)] {
            // A name of its own for each policy tells in the dump when the proxy has it.
            let rules = format!("[[[{{{key}: {value}}}]]]");
            set(&mut lab, &policy(&format!("{}-{index}", key.to_lowercase()), "Allow", &rules));
            let before = denials(&lab);
            assert!(passes(&lab, allowed.0, allowed.1), "{key} must allow {allowed:?}");
            assert!(!passes(&lab, denied.0, denied.1), "{key} must not allow {denied:?}");
            assert!(wait_until(DEADLINE, || denials(&lab) == before + 1.0), "{key}: one denial is counted");
        }
    }
    assert!(logged(&lab, &["sa/job", "allow policies exist, but none allowed"]));
}

#[test]
fn deny_comes_before_allow() {
    let mut lab = lab(&[]);
    let to = cart(&lab);
    let allow = policy("everybody", "Allow", "[[[{notDestinationPorts: [1]}]]]");
    let deny = policy("no-web", "Deny", "[[[{serviceAccounts: [{namespace: front, serviceAccount: web}]}]]]");
    set(&mut lab, &format!("{allow}{deny}"));
    assert!(!passes(&lab, "web", to), "both match, and DENY decides");
    assert!(passes(&lab, "job", to), "only ALLOW matches");
    assert!(
        logged(
            &lab,
            &[
                "direction=\"inbound\"",
                "sa/web",
                "connection closed due to policy rejection: explicitly denied by: shop/no-web"
            ]
        ),
        "the access log names the policy"
    );
}

#[test]
fn a_dry_run_denies_nobody_and_is_logged() {
    let mut lab = lab(&[("AUTHZ_POLICY_INFO_LOGGING", "true")]);
    let to = cart(&lab);
    let deny = policy("dry-deny", "Deny", "[[[{notDestinationPorts: [1]}]]]");
    let allow = policy("dry-allow", "Allow", "[[[{destinationPorts: [1]}]]]");
    let dry = |text: &str| text.replace("dryRun: false", "dryRun: true");
    set(&mut lab, &dry(&format!("{deny}{allow}")));
    assert!(passes(&lab, "web", to));
    assert!(passes(&lab, "legacy", to));
    assert!(logged(&lab, &["dry-run deny match: shop/dry-deny", "sa/web"]));
    assert!(logged(&lab, &["no dry-run allow matched", "sa/web"]));
    assert_eq!(denials(&lab), 0.0);
    // The very same policies do deny when they are meant.
    set(&mut lab, &format!("{}{}", deny.replace("dry-deny", "deny"), allow.replace("dry-allow", "allow")));
    assert!(!passes(&lab, "web", to));
}

#[test]
fn a_pushed_policy_closes_open_streams_and_only_those_it_denies() {
    let mut lab = lab(&[]);
    let to = cart(&lab);
    let (hbone, plain, mut kept) = (open(&lab, "web", to), open(&lab, "legacy", to), open(&lab, "job", to));
    let addresses = format!("[{}/32, {}/32]", lab.pod("web").ipv4(), lab.pod("legacy").ipv4());
    let deny = policies(&policy("pushed", "Deny", &format!("[[[{{sourceIps: {addresses}}}]]]")));
    let since = Instant::now();
    lab.edit(|spec| spec.policies = deny);
    assert_closed(hbone, since, "HBONE");
    assert_closed(plain, since, "plaintext");
    for source in [lab.pod("web").ipv4(), lab.pod("legacy").ipv4()] {
        let source = format!("src.addr={source}:");
        let error = "connection closed due to policy change: explicitly denied by: shop/pushed";
        assert!(logged(&lab, &["direction=\"inbound\"", &source, error]), "no line of {source}");
    }
    echoes(&mut kept).expect("a stream that no policy denies goes on");
}

#[test]
fn a_selector_policy_newly_attached_closes_open_streams() {
    let mut lab = lab(&[]);
    let to = cart(&lab);
    let selector = policy("picked", "Deny", "[[[{notDestinationPorts: [1]}]]]")
        .replace("scope: Namespace", "scope: WorkloadSelector");
    set(&mut lab, &selector);
    let stream = open(&lab, "web", to);
    let since = Instant::now();
    attach(&mut lab, "shop/picked");
    assert_closed(stream, since, "HBONE");
    let error = "connection closed due to policy change: explicitly denied by: shop/picked";
    assert!(logged(&lab, &["direction=\"inbound\"", error]));
    assert!(!passes(&lab, "web", to), "a new connection is denied as well");
}

fn attach(lab: &mut Lab, policy: &str) {
    lab.edit(|spec| {
        let cart = spec.pods.iter_mut().find(|pod| pod.name == "cart").expect("the lab has a cart");
        cart.authorization_policies = vec![policy.to_owned()];
    });
    let attached = || {
        let dump = lab.node("node2").config_dump();
        let workloads = dump["workloads"].as_array().cloned().unwrap_or_default();
        workloads
            .iter()
            .any(|one| one["name"] == "cart" && one["authorizationPolicies"][0].as_str() == Some(policy))
    };
    assert!(wait_until(DEADLINE, attached), "{policy} was not attached");
}

#[test]
fn strict_takes_mutual_tls_alone_and_permissive_takes_both() {
    let mut lab = lab(&[]);
    let to = cart(&lab);
    assert!(passes(&lab, "web", to), "permissive takes mutual TLS");
    assert!(passes(&lab, "legacy", to), "permissive takes plaintext");
    let strict = "
- name: istio_converted_static_strict
  namespace: istio-system
  scope: WorkloadSelector
  action: Deny
  dryRun: false
  rules: [[[{notPrincipals: [{Presence: []}]}]]]
";
    set(&mut lab, strict);
    attach(&mut lab, "istio-system/istio_converted_static_strict");
    assert!(passes(&lab, "web", to), "strict takes mutual TLS");
    assert!(!passes(&lab, "legacy", to), "strict refuses plaintext");
    let source = format!("src.addr={}:", lab.pod("legacy").ipv4());
    let error = "explicitly denied by: istio-system/istio_converted_static_strict";
    assert!(logged(&lab, &["direction=\"inbound\"", &source, error]));
}

#[test]
fn a_policy_that_is_named_but_unknown_refuses() {
    let mut lab = lab(&[]);
    let to = cart(&lab);
    attach(&mut lab, "shop/ghost");
    assert!(!passes(&lab, "web", to));
    assert!(!passes(&lab, "legacy", to));
    assert!(logged(&lab, &["direction=\"inbound\"", "shop/ghost applies to this workload but is not known"]));
    let arrived = policy("ghost", "Deny", "[[[{destinationPorts: [1]}]]]")
        .replace("scope: Namespace", "scope: WorkloadSelector");
    set(&mut lab, &arrived);
    assert!(passes(&lab, "web", to), "once it is known, it decides");
}
