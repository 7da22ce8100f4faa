use std::net::SocketAddr;

use ztunnel_model::Identity;
use ztunnel_model::policy::{Connection, Scope, decide};

use crate::index::tests::{Mirror, built, pod, policy, sets};
use crate::index::{Enforcement, PolicyStatus};
use crate::object::{Change, Key, Kind, Name};

const LEVELS: [Option<&str>; 4] = [None, Some("UNSET"), Some("STRICT"), Some("PERMISSIVE")];
const PORTS: [&str; 3] = ["UNSET", "STRICT", "PERMISSIVE"];

/// Asks as a proxy does: policies of the workload's own list, of its namespace, and those for all.
fn allows(mirror: &Mirror, name: &str, plaintext: bool, port: u16) -> bool {
    let workload = mirror.workload(name);
    let policies = mirror.policies();
    for named in workload.authorization_policies.iter() {
        assert!(policies.contains_key(named.as_str()), "{named} is named by {name} and was never given out");
    }
    let applying = policies.values().filter(|policy| match policy.scope {
        Scope::Global => true,
        Scope::Namespace => policy.key.namespace == workload.namespace,
        Scope::WorkloadSelector => workload.authorization_policies.contains(&policy.key.to_string().into()),
    });
    let identity = Identity::new("cluster.local", "web", "web").expect("an identity");
    let connection = Connection {
        identity: (!plaintext).then_some(&identity),
        source: "10.1.0.1:4000".parse().expect("an address"),
        destination: SocketAddr::new(workload.addresses[0], port),
    };
    decide(applying, &connection).is_allowed()
}

/// As the public reference of PeerAuthentication has it: the narrowest level that says something decides.
fn may_connect(levels: [Option<&str>; 3], port_mode: &str, on_that_port: bool, plaintext: bool) -> bool {
    let [mesh, namespace, workload] = levels;
    let port = if on_that_port && workload.is_some() { Some(port_mode) } else { None };
    for level in [port, workload, namespace, mesh] {
        match level {
            None | Some("UNSET") => {}
            Some("STRICT") => return !plaintext,
            Some(_) => return true,
        }
    }
    true
}

fn manifests([mesh, namespace, workload]: [Option<&str>; 3], port_mode: &str) -> String {
    let mut text = pod("shop", "a", "10.0.0.1", "labels: {app: a}", "");
    let mut add = |place: &str, name: &str, spec: String| {
        text += &policy("PeerAuthentication", place, name, &spec);
    };
    if let Some(mode) = mesh {
        add("istio-system", "mesh", format!("{{mtls: {{mode: {mode}}}}}"));
    }
    if let Some(mode) = namespace {
        add("shop", "room", format!("{{mtls: {{mode: {mode}}}}}"));
    }
    if let Some(mode) = workload {
        let ports = format!("portLevelMtls: {{8080: {{mode: {port_mode}}}}}");
        add(
            "shop",
            "own",
            format!("{{selector: {{matchLabels: {{app: a}}}}, mtls: {{mode: {mode}}}, {ports}}}"),
        );
    }
    text
}

#[test]
fn truth_table() {
    let mut cases = 0;
    for mesh in LEVELS {
        for namespace in LEVELS {
            for workload in LEVELS {
                for port_mode in PORTS {
                    let levels = [mesh, namespace, workload];
                    let (_, mirror) = built(&manifests(levels, port_mode));
                    for (plaintext, port) in [(true, 8080), (true, 9090), (false, 8080), (false, 9090)] {
                        let expected = may_connect(levels, port_mode, port == 8080, plaintext);
                        let found = allows(&mirror, "a", plaintext, port);
                        assert_eq!(
                            found, expected,
                            "{levels:?} {port_mode} plaintext {plaintext} port {port}"
                        );
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 768);
}

#[test]
fn disable_is_as_permissive_on_every_level() {
    for levels in [
        [Some("DISABLE"), None, None],
        [Some("STRICT"), Some("DISABLE"), None],
        [Some("STRICT"), None, Some("DISABLE")],
        [Some("STRICT"), Some("STRICT"), Some("UNSET")],
        [Some("PERMISSIVE"), Some("UNSET"), Some("STRICT")],
    ] {
        for port_mode in ["UNSET", "STRICT", "DISABLE"] {
            let (_, mirror) = built(&manifests(levels, port_mode));
            for (plaintext, port) in [(true, 8080), (true, 9090), (false, 8080), (false, 9090)] {
                let expected = may_connect(levels, port_mode, port == 8080, plaintext);
                assert_eq!(allows(&mirror, "a", plaintext, port), expected, "{levels:?} {port_mode} {port}");
            }
        }
    }
}

#[test]
fn resources_have_the_names_that_proxies_know() {
    let (mut index, mut mirror) = built(&manifests([Some("STRICT"), None, None], "UNSET"));
    let names = |mirror: &Mirror| mirror.policies().into_keys().collect::<Vec<_>>();
    assert_eq!(names(&mirror), ["istio-system/istio_converted_static_strict"]);
    assert_eq!(mirror.workload("a").authorization_policies[..], names(&mirror)[..]);
    let own =
        "{selector: {matchLabels: {app: a}}, portLevelMtls: {80: {mode: PERMISSIVE}, 81: {mode: DISABLE}}}";
    let changes = index.apply(sets(&policy("PeerAuthentication", "shop", "own", own)));
    assert_eq!(
        &*changes.set[0].name, "shop/converted_peer_authentication_own",
        "before the workload that names it"
    );
    mirror.take(changes);
    assert_eq!(names(&mirror), ["shop/converted_peer_authentication_own"]);
    assert_eq!(mirror.workload("a").authorization_policies[..], names(&mirror)[..]);
    for (port, expected) in [(80, true), (81, true), (82, false)] {
        assert_eq!(allows(&mirror, "a", true, port), expected, "{port}");
    }
    mirror.take(index.apply([Change::Remove(Key::new(Kind::Pod, &Name::new("shop", "a")))]));
    assert_eq!(names(&mirror), ["shop/converted_peer_authentication_own"]);
}

fn status(statuses: impl Iterator<Item = PolicyStatus>, name: &str) -> PolicyStatus {
    let mut found = statuses.filter(|one| &*one.name == name);
    found.next().unwrap_or_else(|| panic!("no status of {name}"))
}

fn aged(name: &str, created: &str, spec: &str) -> String {
    policy("PeerAuthentication", "shop", name, spec)
        .replace("namespace: shop", &format!("namespace: shop, creationTimestamp: '{created}'"))
}

#[test]
fn the_oldest_of_a_level_is_in_force() {
    let selected = "selector: {matchLabels: {app: a}}, ";
    for selector in ["", selected] {
        let spec = |mode: &str| format!("{{{selector}mtls: {{mode: {mode}}}}}");
        let text = pod("shop", "a", "10.0.0.1", "labels: {app: a}", "")
            + &aged("a-young", "2026-02-01T00:00:00Z", &spec("STRICT"))
            + &aged("z-old", "2026-01-01T00:00:00Z", &spec("PERMISSIVE"));
        let (mut index, mut mirror) = built(&text);
        assert!(allows(&mirror, "a", true, 80), "{selector}");
        let counts = |index: &super::super::Index| {
            ["a-young", "z-old"].map(|name| status(index.statuses(), name).workloads)
        };
        assert_eq!(counts(&index), [0, 1], "{selector}");
        let older = aged("b-older", "2025-12-31T23:00:00-02:00", &spec("STRICT"));
        mirror.take(index.apply(sets(&older)));
        assert!(allows(&mirror, "a", true, 80), "an hour of another zone is compared as a time");
        mirror.take(index.apply(sets(&older.replace("2025-12-31", "2025-12-30"))));
        assert!(!allows(&mirror, "a", true, 80), "{selector}");
        mirror.take(index.apply([
            Change::Remove(Key::new(Kind::PeerAuthentication, &Name::new("shop", "b-older"))),
            Change::Remove(Key::new(Kind::PeerAuthentication, &Name::new("shop", "z-old"))),
        ]));
        assert!(!allows(&mirror, "a", true, 80), "the young one is in force now");
        assert_eq!(status(index.statuses(), "a-young").workloads, 1);
    }
    let same = pod("shop", "a", "10.0.0.1", "", "")
        + &policy("PeerAuthentication", "shop", "b", "{mtls: {mode: PERMISSIVE}}")
        + &policy("PeerAuthentication", "shop", "a", "{mtls: {mode: STRICT}}");
    let (index, mirror) = built(&same);
    assert!(!allows(&mirror, "a", true, 80), "of equally old ones the first by name");
    let loser = status(index.statuses(), "b");
    assert_eq!((loser.enforcement, loser.workloads), (Enforcement::None, 0));
    assert!(loser.reasons[0].text.contains("shop/a"), "{loser:?}");
    let winner = status(index.statuses(), "a");
    assert_eq!((winner.enforcement, winner.workloads), (Enforcement::Full, 1));
    assert_eq!(&*winner.resources[0], "istio-system/istio_converted_static_strict");
}

#[test]
fn what_has_no_effect_is_reported() {
    let text = pod("istio-system", "a", "10.0.0.1", "labels: {app: a}", "")
        + &pod("shop", "b", "10.0.0.2", "", "")
        + &policy(
            "PeerAuthentication",
            "istio-system",
            "root",
            "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}",
        )
        + &policy(
            "PeerAuthentication",
            "shop",
            "ports",
            "{selector: {}, portLevelMtls: {80: {mode: STRICT}}}",
        );
    let (index, mirror) = built(&text);
    assert!(allows(&mirror, "a", true, 80) && allows(&mirror, "b", true, 80));
    let root = status(index.statuses(), "root");
    assert_eq!((root.enforcement, root.reasons[0].field.as_str()), (Enforcement::None, "spec.selector"));
    let ports = status(index.statuses(), "ports");
    assert_eq!(ports.enforcement, Enforcement::Partial);
    assert_eq!(ports.reasons[0].field, "spec.portLevelMtls");
}
