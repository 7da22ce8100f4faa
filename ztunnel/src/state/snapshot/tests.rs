use super::*;
use crate::state::apply::build;
use ztunnel_model::codec::static_config::parse;

fn snapshot(text: &str) -> Snapshot {
    build(&parse(text, "test.yaml").expect("the test's configuration is valid"))
}

fn service(namespace: &str, name: &str, extra: &str) -> String {
    format!(
        "- {{name: {name}, namespace: {namespace}, hostname: {name}.{namespace}.svc, ports: {{80: 8080}}, {extra}}}\n"
    )
}

#[test]
fn an_address_with_several_owners_belongs_to_the_pod() {
    let state = snapshot(
        "workloads:
- {uid: a//Node/x, name: x, namespace: n, workloadIps: [10.0.0.1], protocol: HBONE, services: {}}
- {uid: a//Pod/n/p, name: p, namespace: n, workloadIps: [10.0.0.1], services: {}}
",
    );
    let ip = "10.0.0.1".parse().expect("an address");
    assert_eq!(state.workload_by_address(&Network::default(), ip).expect("owned").name, "p");
}

#[test]
fn virtual_addresses_prefer_exact_then_own_namespace_then_length() {
    let text = format!(
        "services:\n{}{}{}{}",
        service("a", "exact", "vips: [/10.1.0.1]"),
        service("d", "wide", "vips: [/10.1.0.0/16]"),
        service("b", "narrow", "vips: [/10.1.2.0/24]"),
        service("c", "hidden", "vips: [/10.1.0.2], visibility: Namespace"),
    );
    let state = snapshot(&text);
    let find = |ip: &str, namespace: &str| {
        state
            .service_by_vip(&Network::default(), ip.parse().expect("an address"), namespace)
            .map(|service| service.name.clone())
    };
    assert_eq!(find("10.1.0.1", "x").as_deref(), Some("exact"));
    assert_eq!(find("10.1.2.9", "x").as_deref(), Some("narrow"));
    assert_eq!(find("10.1.9.9", "x").as_deref(), Some("wide"));
    assert_eq!(find("10.1.0.2", "c").as_deref(), Some("hidden"));
    assert_eq!(find("10.1.0.2", "x").as_deref(), Some("wide"), "an invisible exact address falls through");
    assert_eq!(find("10.2.0.1", "x"), None);
}

#[test]
fn endpoints_may_come_before_their_service() {
    let workload = "workloads:
- {uid: a//Pod/n/p, name: p, namespace: n, workloadIps: [10.0.0.1], services: {n/s.n.svc: {80: 8080}}}
";
    let state = snapshot(workload);
    assert_eq!(state.staged().count(), 1);
    let state = snapshot(&format!("{workload}services:\n{}", service("n", "s", "vips: []")));
    assert_eq!(state.staged().count(), 0);
    assert_eq!(state.endpoints(&"n/s.n.svc".parse().expect("a key")).len(), 1);
}

#[test]
fn a_named_policy_that_is_absent_is_reported() {
    let state = snapshot(
        "workloads:
- {uid: a, name: p, namespace: n, workloadIps: [10.0.0.1], services: {}, authorizationPolicies: [n/absent]}
",
    );
    let workload = state.workload(&"a".into()).expect("there");
    assert_eq!(state.missing_policy(workload), Some("n/absent"));
}
