//! Authorization on real connections: every kind of match, what a change does to open streams, strict and permissive.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ztunnel_lab::mesh::{self, Mesh};
use ztunnel_lab::{Lab, traffic, wait_until};

const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a stream may outlive the policy that allowed it.
const REVOCATION: Duration = Duration::from_secs(1);

/// Rules that match every connection.
const EVERYTHING: &str = "[{to: [{operation: {notPorts: ['1']}}]}]";
const POLICIES: &str = "policies.yaml";

fn lab(environment: &[(&str, &str)]) -> Lab {
    let meshed = Mesh::new().pod("node1", "front/web").pod("node1", "back/job").pod("node2", "shop/cart");
    let lab = Lab::for_test(&meshed.outside("node1", "legacy/legacy"), environment);
    for port in [PORT, OTHER_PORT] {
        traffic::serve(lab.pod("cart"), port, traffic::echo).expect("the cart can listen");
    }
    lab
}

/// One policy of the cart's namespace.
fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{action: {action}, rules: {rules}}}\n"
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

/// Replaces all policies and waits until the cart's proxy knows these names.
fn set(lab: &mut Lab, text: &str, names: &[&str]) {
    lab.edit(POLICIES, text);
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
    traffic::echoes(&mut stream).expect("the echo answers");
    stream
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
    let source = |key: &str, value: &str| format!("[{{from: [{{source: {{{key}: ['{value}']}}}}]}}]");
    let port = |key: &str, value: &str| format!("[{{to: [{{operation: {{{key}: ['{value}']}}}}]}}]");
    let address =
        |key: &str, value: &str| format!("[{{when: [{{key: destination.ip, {key}: ['{value}']}}]}}]");
    type Rules<'a> = &'a dyn Fn(&str, &str) -> String;
    let (web, ip) = (format!("{web}/32"), to.ip().to_string());
    // How a rule is written, kind, its twin, a value, a connection that has this value, and one that has another.
    let cases: [(Rules<'_>, &str, &str, &str, _, _); 6] = [
        (&source, "namespaces", "notNamespaces", "front", ("web", to), ("job", to)),
        (&source, "principals", "notPrincipals", "cluster.local/ns/front/sa/web", ("web", to), ("job", to)),
        (&source, "serviceAccounts", "notServiceAccounts", "front/web", ("web", to), ("job", to)),
        (&source, "ipBlocks", "notIpBlocks", &web, ("web", to), ("job", to)),
        (&address, "values", "notValues", &ip, ("web", to), ("web", six)),
        (&port, "ports", "notPorts", "8080", ("web", to), ("web", other_port)),
    ];
    for (index, (rules, kind, twin, value, with, without)) in cases.into_iter().enumerate() {
        for (key, allowed, denied) in [(kind, with, without), (twin, without, with)] {
            // A name of its own for each policy tells in the dump when the proxy has it.
            let name = format!("{}-{index}", key.to_lowercase());
            set(&mut lab, &policy(&name, "ALLOW", &rules(key, value)), &[&name]);
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
    let allow = policy("everybody", "ALLOW", EVERYTHING);
    let deny = policy("no-web", "DENY", "[{from: [{source: {serviceAccounts: [front/web]}}]}]");
    set(&mut lab, &format!("{allow}{deny}"), &["everybody", "no-web"]);
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
    let deny = policy("dry-deny", "DENY", EVERYTHING);
    let allow = policy("dry-allow", "ALLOW", "[{to: [{operation: {ports: ['1']}}]}]");
    let dry = |text: &str| text.replace("shop}", "shop, annotations: {istio.io/dry-run: 'true'}}");
    set(&mut lab, &dry(&format!("{deny}{allow}")), &["dry-allow", "dry-deny"]);
    assert!(passes(&lab, "web", to));
    assert!(passes(&lab, "legacy", to));
    assert!(logged(&lab, &["dry-run deny match: shop/dry-deny", "sa/web"]));
    assert!(logged(&lab, &["no dry-run allow matched", "sa/web"]));
    assert_eq!(denials(&lab), 0.0);
    // The very same policies do deny when they are meant.
    set(&mut lab, &format!("{deny}{allow}").replace("dry-", ""), &["allow", "deny"]);
    assert!(!passes(&lab, "web", to));
}

#[test]
fn a_pushed_policy_closes_open_streams_and_only_those_it_denies() {
    let mut lab = lab(&[]);
    let to = cart(&lab);
    let (hbone, plain, mut kept) = (open(&lab, "web", to), open(&lab, "legacy", to), open(&lab, "job", to));
    let addresses = format!("[{}, {}]", lab.pod("web").ipv4(), lab.pod("legacy").ipv4());
    let deny = policy("pushed", "DENY", &format!("[{{from: [{{source: {{ipBlocks: {addresses}}}}}]}}]"));
    let since = Instant::now();
    lab.edit(POLICIES, &deny);
    assert_closed(hbone, since, "HBONE");
    assert_closed(plain, since, "plaintext");
    for source in [lab.pod("web").ipv4(), lab.pod("legacy").ipv4()] {
        let source = format!("src.addr={source}:");
        let error = "connection closed due to policy change: explicitly denied by: shop/pushed";
        assert!(logged(&lab, &["direction=\"inbound\"", &source, error]), "no line of {source}");
    }
    traffic::echoes(&mut kept).expect("a stream that no policy denies goes on");
}

#[test]
fn a_selector_policy_newly_attached_closes_open_streams() {
    let mut lab = lab(&[]);
    let to = cart(&lab);
    set(&mut lab, &selecting("picked", EVERYTHING), &["picked"]);
    let stream = open(&lab, "web", to);
    let since = Instant::now();
    lab.edit("pod-shop-cart.json", &mesh::pod("node2", "shop/cart", &[("guarded", "yes")]).to_string());
    assert_closed(stream, since, "HBONE");
    let error = "connection closed due to policy change: explicitly denied by: shop/picked";
    assert!(logged(&lab, &["direction=\"inbound\"", error]));
    assert!(!passes(&lab, "web", to), "a new connection is denied as well");
}

/// A DENY policy for pods with the label `guarded`.
fn selecting(name: &str, rules: &str) -> String {
    policy(name, "DENY", rules).replace("{action", "{selector: {matchLabels: {guarded: 'yes'}}, action")
}

/// Whether the cart's proxy has a policy attached to the cart.
fn attached(lab: &Lab, policy: &str) -> bool {
    wait_until(DEADLINE, || {
        let dump = lab.node("node2").config_dump();
        let workloads = dump["workloads"].as_array().cloned().unwrap_or_default();
        workloads
            .iter()
            .any(|one| one["name"] == "cart" && one["authorizationPolicies"][0].as_str() == Some(policy))
    })
}

#[test]
fn strict_takes_mutual_tls_alone_and_permissive_takes_both() {
    let mut lab = lab(&[]);
    let to = cart(&lab);
    assert!(passes(&lab, "web", to), "permissive takes mutual TLS");
    assert!(passes(&lab, "legacy", to), "permissive takes plaintext");
    let strict = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
    set(&mut lab, strict, &["istio_converted_static_strict"]);
    assert!(attached(&lab, "istio-system/istio_converted_static_strict"));
    assert!(passes(&lab, "web", to), "strict takes mutual TLS");
    assert!(!passes(&lab, "legacy", to), "strict refuses plaintext");
    let source = format!("src.addr={}:", lab.pod("legacy").ipv4());
    let error = "explicitly denied by: istio-system/istio_converted_static_strict";
    assert!(logged(&lab, &["direction=\"inbound\"", &source, error]));
}

/// Our controller never names a policy that it has not sent, so a static file says it here.
#[test]
fn a_policy_that_is_named_but_unknown_refuses() {
    let path = std::env::temp_dir().join(format!("unknown-policy-{}.json", std::process::id()));
    let write = |policies: &str| {
        let workload = |node: &str, path: &str, address: &str, more: &str| {
            let (namespace, name) = path.split_once('/').expect("a path");
            format!(
                "{{uid: Kubernetes//Pod/{path}, name: {name}, namespace: {namespace}, \
                 serviceAccount: {name}, node: {node}, protocol: HBONE, workloadIps: [{address}], services: {{}}{more}}}"
            )
        };
        let cart = workload("node2", "shop/cart", "10.244.2.10", ", authorizationPolicies: [shop/ghost]");
        let web = workload("node1", "front/web", "10.244.1.11", "");
        std::fs::write(&path, format!("workloads: [{cart}, {web}]\npolicies: [{policies}]\n"))
            .expect("a file");
    };
    write("");
    let lab = lab(&[("XDS_ADDRESS", ""), ("LOCAL_XDS_PATH", &path.display().to_string())]);
    let to = cart(&lab);
    assert_eq!([to.ip(), lab.pod("web").ipv4()].map(|ip| ip.to_string()), ["10.244.2.10", "10.244.1.11"]);
    assert!(!passes(&lab, "web", to));
    assert!(!passes(&lab, "legacy", to));
    assert!(logged(&lab, &["direction=\"inbound\"", "shop/ghost applies to this workload but is not known"]));
    write(
        "{name: ghost, namespace: shop, scope: WorkloadSelector, action: Deny, dryRun: false, \
         rules: [[[{destinationPorts: [1]}]]]}",
    );
    assert!(wait_until(DEADLINE, || known(&lab) == ["ghost"]), "{:?}", known(&lab));
    assert!(passes(&lab, "web", to), "once it is known, it decides");
    std::fs::remove_file(&path).expect("it was written");
}
