use super::*;

/// Every key of the format at least once.
const EVERYTHING: &str = r#"
workloads:
- uid: c1//v1/Pod/shop/cart-0
  name: cart-0
  namespace: shop
  serviceAccount: cart
  trustDomain: cluster.local
  workloadIps: ["10.1.0.7", "fd00::7"]
  protocol: HBONE
  node: n1
  network: ""
  waypoint: {destination: "/10.9.0.1", hboneMtlsPort: 15008}
  networkGateway: {destination: "infra/gateway.svc", hboneMtlsPort: 15008}
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: ["shop/only-web"]
  status: Healthy
  capacity: 3
  locality: {region: r, zone: z}
  workloadType: job
  services: {"shop/cart.shop.svc.cluster.local": {80: 8080}}
- {uid: x, namespace: shop, workloadIps: [], services: {}}
services:
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: ["/10.9.1.1", "other/10.8.0.0/16"]
  ports: {80: 8080}
  subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/cart"]
  loadBalancer: {routingPreferences: [Network, Zone], mode: Failover, healthPolicy: OnlyHealthy}
  ipFamilies: Dual
  canonical: true
  visibility: Namespace
policies:
- name: only-web
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [{Exact: cluster.local/ns/web/sa/web}, {Presence: []}]
        notNamespaces: [{Prefix: a}, {Suffix: b}]
        serviceAccounts: [{namespace: web, serviceAccount: web}]
        sourceIps: [10.0.0.0/8]
        destinationPorts: [8080]
"#;

fn config(text: &str) -> StaticConfig {
    parse(text, "mesh.yaml").unwrap_or_else(|mistakes| {
        panic!("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })
}

fn mistakes(text: &str) -> Vec<String> {
    parse(text, "mesh.yaml").expect_err("it must be refused").iter().map(ToString::to_string).collect()
}

#[test]
fn every_key_is_read_and_written_back_equal() {
    let read = config(EVERYTHING);
    assert_eq!(read.workloads[0].identity.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(read.workloads[1].identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!(read.services[0].vips.len(), 2);
    assert_eq!(read.policies[0].rules[0].clauses[0].matches[0].principals.len(), 2);
    assert_eq!(config(&to_json(&read)), read);
}

#[test]
fn the_dump_lists_service_names() {
    let read = config(EVERYTHING);
    let view = serde_json::to_value(WorkloadView::from(&read.workloads[0])).expect("JSON");
    assert_eq!(view["services"], serde_json::json!(["shop/cart.shop.svc.cluster.local"]));
    assert_eq!(view["protocol"], "HBONE");
    assert_eq!(view["workloadType"], "job");
}

#[test]
fn virtual_addresses_must_not_overlap_in_a_namespace_nor_be_a_workloads() {
    let text = "
workloads:
- {uid: w, namespace: n, workloadIps: [10.1.0.9], services: {}}
services:
- {name: narrow, namespace: n, hostname: narrow, vips: [/10.1.2.0/24], ports: {}}
- {name: wide, namespace: n, hostname: wide, vips: [/10.1.0.0/16], ports: {}}
- {name: elsewhere, namespace: m, hostname: elsewhere, vips: [/10.1.2.0/24, other/10.1.0.0/16], ports: {}}
- {name: pod, namespace: m, hostname: pod, vips: [/10.1.0.9, other/10.1.0.9], ports: {}}
- {name: own, namespace: o, hostname: own, vips: [/10.3.0.0/16, /10.3.0.1], ports: {}}
";
    assert_eq!(
        mistakes(text),
        [
            "mesh.yaml:6:53: services[1].vips[0]: virtual address /10.1.0.0/16 overlaps /10.1.2.0/24 of service n/narrow \
             on line 5",
            "mesh.yaml:8:51: services[3].vips[0]: virtual address /10.1.0.9 is the address of workload w, so that the \
             service could never be reached",
            "mesh.yaml:8:62: services[3].vips[1]: virtual address other/10.1.0.9 overlaps other/10.1.0.0/16 of service \
             m/elsewhere on line 7",
        ]
    );
}

#[test]
fn all_mistakes_are_told_at_once_with_their_places() {
    let text = "
workloads:
- {uid: a, namespace: n, workloadIps: [10.0.0.300], services: {}, bogus: 1}
- {uid: b, namespace: n, workloadIps: [10.0.0.300], services: {}}
- {uid: b, namespace: n, workloadIps: [], services: {nonsense: {}}}
- {uid: c, namespace: n, workloadIps: [], services: {}, protocol: QUIC}
- {uid: d, namespace: n, workloadIps: [], services: {}}
- {uid: d, namespace: n, workloadIps: [], services: {}}
services:
- {name: s, namespace: n, hostname: s, vips: [/10.0.0.1, 10.0.0.2], ports: {}}
- {name: t, namespace: n, hostname: t, vips: [/10.1.0.1], ports: {}}
- {name: u, namespace: n, hostname: u, vips: [/10.1.0.1], ports: {}}
policies:
- {name: p, namespace: n, scope: Galaxy, action: Allow, dryRun: false, rules: []}
- {name: p, namespace: n, scope: Global, action: Deny, rules: []}
- {name: q, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{sourceIps: [x], principals: [{}]}]]]}
";
    let all = mistakes(text);
    for (line, part) in [
        (3, "workloads[0].bogus: unknown key"),
        (4, "workloads[1].workloadIps[0]: \"10.0.0.300\" is not an IP address"),
        (5, "\"nonsense\" is not a service key"),
        (6, "\"QUIC\" is unknown (expected one of TCP, HBONE)"),
        (8, "workload uid d is already taken on line 7"),
        (10, "services[0].vips[1]: \"10.0.0.2\" is not a virtual address"),
        (12, "virtual address /10.1.0.1 overlaps /10.1.0.1 of service n/t on line 11"),
        (14, "\"Galaxy\" is unknown"),
        (15, "dryRun"),
        (16, "sourceIps[0]: \"x\" is not an IP address or prefix"),
        (16, "exactly one of Exact, Prefix, Suffix, Presence"),
    ] {
        let place = format!("mesh.yaml:{line}:");
        assert!(
            all.iter().any(|text| text.starts_with(&place) && text.contains(part)),
            "no mistake on line {line} with \"{part}\" in\n{}",
            all.join("\n")
        );
    }
}

#[test]
fn mistakes_in_one_item_do_not_hide_each_other() {
    let text = "
workloads:
- {uid: a, namespace: null, workloadIps: [1.1.1.x, 5], protocol: Q, networkMode: X, status: z, workloadType: 1}
- {uid: a, uid: b, namespace: n, workloadIps: [10.0.0.x], services: {80: {}, n/h: {99999: 1}}, status: z, protocol: Q}
- {uid: a, namespace: n, workloadIps: [1.1.1.x], services: {80: {}}, status: z, protocol: Q}
services:
- {}
- {name: s, namespace: n, hostname: s, vips: [], ports: {}, ipFamilies: X, visibility: Y, loadBalancer: {routingPreferences: [A, B], mode: C}}
policies:
- {name: p, namespace: n, scope: X, action: Y, dryRun: 0, rules: [[[{destinationPorts: [70000], principals: [{Foo: a}]}]]]}
- {name: p, namespace: n, scope: X, action: Y, dryRun: true, rules: [[[{principals: [{}], sourceIps: [a]}]]]}
";
    let all = mistakes(text);
    let told =
        |line: usize| all.iter().filter(|text| text.starts_with(&format!("mesh.yaml:{line}:"))).count();
    let counts: Vec<usize> = [3, 4, 5, 7, 8, 10, 11].into_iter().map(told).collect();
    assert_eq!(counts, [4, 2, 4, 5, 5, 3, 4], "{}", all.join("\n"));
}

#[test]
fn a_second_document_is_refused() {
    let second = "policies: []\n---\npolicies:\n- {name: deny, namespace: n}\n";
    assert!(
        mistakes(second)[0].starts_with("mesh.yaml:2:1: "),
        "its policies would be passed over in silence"
    );
}

#[test]
fn v4_mapped_prefixes_are_ipv4() {
    let text = "
services:
- {name: s, namespace: n, hostname: s, vips: ['/::ffff:10.1.0.0/112', '/::ffff:10.2.0.1'], ports: {}}
policies:
- {name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: [[[{sourceIps: ['::ffff:10.0.0.0/104']}]]]}
";
    let read = config(text);
    let vips: Vec<String> = read.services[0].vips.iter().map(|vip| vip.prefix.to_string()).collect();
    assert_eq!(vips, ["10.1.0.0/16", "10.2.0.1/32"]);
    assert_eq!(read.policies[0].rules[0].clauses[0].matches[0].source_ips[0].to_string(), "10.0.0.0/8");
}
