use std::net::SocketAddr;

use ztunnel_model::Identity;
use ztunnel_model::policy::{Connection, Decision, Scope, decide};

use super::oracle::{Destination, Request, allowed};
use crate::index::tests::{Mirror, Random, built, namespace, pod, policy, sets};
use crate::index::{Config, Enforcement, Index, PolicyStatus};
use crate::object::{
    Action, AuthorizationPolicy, Change, Condition, From, Labels, Name, Object, Operation, Rule, Source, To,
};

fn decision(mirror: &Mirror, request: &Request) -> Decision {
    let workload = mirror.workload("a");
    let policies = mirror.policies();
    let applying = policies.values().filter(|policy| match policy.scope {
        Scope::Global => true,
        Scope::Namespace => policy.key.namespace == workload.namespace,
        Scope::WorkloadSelector => workload.authorization_policies.contains(&policy.key.to_string().into()),
    });
    let identity = request.identity.map(|(domain, namespace, account)| {
        Identity::new(domain, namespace, account).expect("the parts are good")
    });
    let connection = Connection {
        identity: identity.as_ref(),
        source: SocketAddr::new(request.source, 4000),
        destination: SocketAddr::new(request.destination, request.port),
    };
    decide(applying, &connection)
}

const PRINCIPALS: [&str; 8] = [
    "cluster.local/ns/web/sa/web",
    "cluster.local/ns/shop/sa/cart",
    "*/sa/web",
    "cluster.local/ns/web/*",
    "*",
    "other/ns/web/sa/web",
    "spiffe://cluster.local/ns/web/sa/web",
    "",
];
const NAMESPACES: [&str; 7] = ["web", "shop", "w*", "*b", "*", "*eb*", ""];
const ACCOUNTS: [&str; 7] = ["web/web", "cart", "shop/cart", "web", "a/b/c", "*", "/web"];
const BLOCKS: [&str; 9] = [
    "10.1.0.1",
    "10.1.0.0/16",
    "0.0.0.0/0",
    "10.0.0.0/8",
    "fd00::/16",
    "::/0",
    "10.1.0.7/33",
    "x",
    "10.1.0.9/24",
];
const PORTS: [&str; 6] = ["80", "8080", "443", "0", "http", "70000"];
const KEYS: [&str; 7] = [
    "source.ip",
    "source.namespace",
    "source.principal",
    "destination.ip",
    "destination.port",
    "request.headers[x]",
    "source.trustDomain",
];

/// One value, seldom two; unreadable ones, which stand last in each pool, are rarer than their number.
fn some(random: &mut Random, pool: &[&str], bad: usize) -> Vec<String> {
    let mut list = Vec::new();
    for _ in 0..1 + random.below(3) / 2 {
        let good = if random.below(12) == 0 { pool } else { &pool[..pool.len() - bad] };
        list.push((*random.pick(good)).to_owned());
    }
    list
}

fn maybe(random: &mut Random, pool: &[&str], bad: usize, one_in: usize) -> Vec<String> {
    if random.below(one_in) == 0 { some(random, pool, bad) } else { Vec::new() }
}

fn random_source(random: &mut Random) -> Source {
    Source {
        principals: maybe(random, &PRINCIPALS, 1, 3),
        not_principals: maybe(random, &PRINCIPALS, 1, 6),
        namespaces: maybe(random, &NAMESPACES, 1, 4),
        not_namespaces: maybe(random, &NAMESPACES, 1, 6),
        service_accounts: maybe(random, &ACCOUNTS, 3, 6),
        not_service_accounts: maybe(random, &ACCOUNTS, 3, 6),
        ip_blocks: maybe(random, &BLOCKS[..8], 2, 4),
        not_ip_blocks: maybe(random, &BLOCKS[..8], 2, 6),
        request_principals: maybe(random, &["x"], 0, 40),
        not_request_principals: maybe(random, &["x"], 0, 40),
        remote_ip_blocks: maybe(random, &BLOCKS[..2], 0, 40),
        not_remote_ip_blocks: maybe(random, &BLOCKS[..2], 0, 40),
        trust_domains: maybe(random, &["x"], 0, 40),
        not_trust_domains: maybe(random, &["x"], 0, 40),
    }
}

fn random_operation(random: &mut Random) -> Operation {
    Operation {
        ports: maybe(random, &PORTS, 3, 2),
        not_ports: maybe(random, &PORTS, 3, 3),
        hosts: maybe(random, &["x"], 0, 40),
        not_hosts: maybe(random, &["x"], 0, 40),
        methods: maybe(random, &["GET"], 0, 30),
        not_methods: maybe(random, &["GET"], 0, 40),
        paths: maybe(random, &["/x"], 0, 40),
        not_paths: maybe(random, &["/x"], 0, 40),
    }
}

fn random_condition(random: &mut Random) -> Condition {
    let key = if random.below(10) == 0 { *random.pick(&KEYS) } else { *random.pick(&KEYS[..5]) };
    let (pool, bad): (&[&str], usize) = match key {
        "source.ip" | "destination.ip" => (&BLOCKS[..8], 2),
        "source.principal" => (&PRINCIPALS, 1),
        "destination.port" => (&PORTS, 3),
        _ => (&NAMESPACES, 1),
    };
    let values = maybe(random, pool, bad, 2);
    Condition { key: key.to_owned(), values, not_values: maybe(random, pool, bad, 3) }
}

fn random_policy(random: &mut Random, index: usize) -> AuthorizationPolicy {
    let up_to = |random: &mut Random, most: usize| random.below(most + 1);
    let rules = (0..random.below(4)).map(|_| Rule {
        from: (0..up_to(random, 2)).map(|_| From { source: random_source(random) }).collect(),
        to: (0..up_to(random, 2)).map(|_| To { operation: random_operation(random) }).collect(),
        when: (0..random.below(5) / 3).map(|_| random_condition(random)).collect(),
    });
    let rules = rules.collect();
    let selector = |pairs: &[(&str, &str)]| {
        Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Labels>())
    };
    let action = *random.pick(&[Action::Allow, Action::Allow, Action::Deny, Action::Deny, Action::Audit]);
    AuthorizationPolicy {
        name: Name::new(*random.pick(&["shop", "shop", "shop", "istio-system", "web"]), format!("p{index}")),
        selector: match random.below(6) {
            0 => selector(&[]),
            1 => selector(&[("app", "a")]),
            2 => selector(&[("app", "a"), ("tier", "x")]),
            3 => selector(&[("app", "b")]),
            _ => None,
        },
        targets: if random.below(20) == 0 { vec!["Service/x".to_owned()] } else { Vec::new() },
        action,
        dry_run: if random.below(15) == 0 { Some("true".to_owned()) } else { None },
        rules,
        unread: Vec::new(),
    }
}

fn random_request(random: &mut Random) -> Request {
    let identity = *random.pick(&[
        None,
        Some(("cluster.local", "web", "web")),
        Some(("cluster.local", "shop", "cart")),
        Some(("other", "web", "web")),
    ]);
    let mut ip = |list: &[&str]| random.pick(list).parse().expect("an address");
    Request {
        identity,
        source: ip(&["10.1.0.1", "10.2.0.1", "192.168.0.1", "fd00::1"]),
        destination: ip(&["10.1.0.1", "fd00::9"]),
        port: *random.pick(&[80, 8080, 443]),
    }
}

#[test]
fn a_second_evaluator_never_differs() {
    let mut random = Random(2026);
    let labels: Labels = [("app", "a"), ("tier", "x")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let to = Destination { namespace: "shop", labels: &labels };
    let pod = sets(&pod("shop", "a", "10.0.0.9", "labels: {app: a, tier: x}", ""));
    let mut outcomes = [0_usize; 4];
    for case in 0..100_000 {
        let policies: Vec<_> =
            (0..1 + random.below(3)).map(|index| random_policy(&mut random, index)).collect();
        let request = random_request(&mut random);
        let (mut index, mut mirror) = (Index::new(Config::default()), Mirror::default());
        let objects = policies.iter().cloned().map(Object::AuthorizationPolicy).map(Change::Set);
        mirror.take(index.apply(pod.iter().cloned().chain(objects)));
        let decided = decision(&mirror, &request);
        let expected = allowed(&policies, &to, &request);
        assert_eq!(decided.is_allowed(), expected, "case {case}: {policies:#?}\n{request:#?}\n{decided:?}");
        outcomes[match decided {
            Decision::AllowedByDefault => 0,
            Decision::AllowedBy(_) => 1,
            Decision::DeniedBy(_) => 2,
            Decision::NoAllowMatched => 3,
        }] += 1;
    }
    assert!(outcomes.iter().all(|count| *count > 5_000), "cases that say little: {outcomes:?}");
}

fn only_status(index: &Index) -> PolicyStatus {
    let mut all = index.statuses();
    let one = all.next().expect("one policy");
    assert!(all.next().is_none());
    one
}

const WEB: Option<(&str, &str, &str)> = Some(("cluster.local", "web", "web"));

/// Whether the identity, and plaintext, get to ports 80 and 81 of the pod `a` under one policy.
#[track_caller]
fn check(spec: &str, expected: [bool; 4]) -> PolicyStatus {
    let text = namespace("shop", true)
        + &pod("shop", "a", "10.0.0.9", "labels: {app: a}", "")
        + &pod("shop", "b", "10.0.0.8", "", "")
        + &policy("AuthorizationPolicy", "shop", "p", spec);
    let (index, mirror) = built(&text);
    let found = [(WEB, 80), (WEB, 81), (None, 80), (None, 81)].map(|(identity, port)| {
        let ip = |text: &str| text.parse().expect("an address");
        let request = Request { identity, source: ip("10.1.0.1"), destination: ip("10.0.0.9"), port };
        decision(&mirror, &request).is_allowed()
    });
    assert_eq!(found, expected, "{spec}");
    only_status(&index)
}

#[test]
fn documented_examples() {
    let (all, none) = ([true; 4], [false; 4]);
    let full = |status: PolicyStatus| {
        assert_eq!((status.enforcement, status.reasons.len()), (Enforcement::Full, 0), "{status:?}");
        status
    };
    assert_eq!(full(check("{}", none)).workloads, 2, "without rules nobody is allowed");
    full(check("{rules: [{}]}", all));
    full(check("{action: DENY, rules: [{}]}", none));
    full(check("{rules: [{to: [{operation: {ports: ['80']}}]}]}", [true, false, true, false]));
    full(check(
        "{action: DENY, rules: [{to: [{operation: {notPorts: ['80']}}]}]}",
        [true, false, true, false],
    ));
    full(check("{rules: [{from: [{source: {namespaces: [web]}}]}]}", [true, true, false, false]));
    full(check("{rules: [{from: [{source: {notNamespaces: [web]}}]}]}", [false, false, true, true]));
    full(check(
        "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}",
        [true, true, false, false],
    ));
    full(check("{rules: [{from: [{source: {serviceAccounts: [web/web]}}]}]}", [true, true, false, false]));
    full(check("{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}", none));
    full(check(
        "{rules: [{when: [{key: destination.port, notValues: ['81']}]}]}",
        [true, false, true, false],
    ));
    full(check("{rules: [{when: [{key: source.ip, values: [10.1.0.0/16]}]}]}", all));
    let selected = full(check("{selector: {matchLabels: {app: a}}}", none));
    assert_eq!((selected.workloads, &*selected.resources[0]), (1, "shop/p"));
    let other = full(check("{selector: {matchLabels: {app: c}}}", all));
    assert_eq!(other.workloads, 0);
    full(check("{selector: {}}", none));
}

#[test]
fn what_cannot_be_enforced_is_never_wider_and_is_reported() {
    for (spec, expected, enforcement, field) in [
        (
            "{rules: [{to: [{operation: {methods: [GET]}}]}]}",
            [false; 4],
            Enforcement::Partial,
            "spec.rules[0].to[0].operation.methods",
        ),
        (
            "{rules: [{to: [{operation: {ports: ['80']}}]}, {to: [{operation: {paths: [/]}}]}]}",
            [true, false, true, false],
            Enforcement::Partial,
            "spec.rules[1].to[0].operation.paths",
        ),
        (
            "{action: DENY, rules: [{to: [{operation: {ports: ['80'], methods: [GET]}}]}]}",
            [false, true, false, true],
            Enforcement::Partial,
            "spec.rules[0].to[0].operation.methods",
        ),
        (
            "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}",
            [false; 4],
            Enforcement::Partial,
            "spec.rules[0].to[0].operation.methods",
        ),
        (
            "{action: DENY, rules: [{from: [{source: {requestPrincipals: ['*']}}], to: [{operation: {ports: ['80']}}]}]}",
            [false, true, false, true],
            Enforcement::Partial,
            "spec.rules[0].from[0].source.requestPrincipals",
        ),
        (
            "{rules: [{when: [{key: 'request.headers[x]', values: [y]}]}]}",
            [false; 4],
            Enforcement::Partial,
            "spec.rules[0].when[0].key",
        ),
        (
            "{rules: [{from: [{source: {namespaces: [web], trustDomains: [other]}}]}]}",
            [false; 4],
            Enforcement::Partial,
            "spec.rules[0].from[0].source.trustDomains",
        ),
        ("{action: AUDIT, rules: [{}]}", [true; 4], Enforcement::None, "spec.action"),
        ("{action: CUSTOM, provider: {name: x}, rules: [{}]}", [true; 4], Enforcement::None, "spec.action"),
        (
            "{targetRefs: [{kind: Service, group: '', name: x}]}",
            [true; 4],
            Enforcement::None,
            "spec.targetRefs",
        ),
    ] {
        let status = check(spec, expected);
        assert_eq!((status.enforcement, status.reasons.len()), (enforcement, 1), "{spec}: {status:?}");
        assert_eq!(status.reasons[0].field, field, "{spec}");
    }
}

#[test]
fn scopes_and_dry_run() {
    let dry = "{rules: []}";
    let text = namespace("shop", true) + &pod("shop", "a", "10.0.0.9", "labels: {app: a}", "");
    for (place, annotation, scope, dry_run, count, reasons) in [
        ("shop", "", Scope::Namespace, false, 1, 0),
        ("istio-system", "", Scope::Global, false, 1, 0),
        ("bank", "", Scope::Namespace, false, 0, 0),
        ("shop", "true", Scope::Namespace, true, 1, 0),
        ("shop", "yes", Scope::Namespace, false, 1, 1),
    ] {
        let annotated = format!("namespace: {place}, annotations: {{istio.io/dry-run: '{annotation}'}}");
        let one = policy("AuthorizationPolicy", place, "p", dry)
            .replace(&format!("namespace: {place}"), &annotated);
        let (index, mirror) = built(&(text.clone() + &one));
        let found = mirror.policies().remove(&format!("{place}/p")).expect("it is given out");
        assert_eq!((found.scope, found.dry_run), (scope, dry_run), "{place} {annotation}");
        let status = only_status(&index);
        assert_eq!((status.workloads, status.reasons.len()), (count, reasons), "{place} {annotation}");
    }
    let wide = policy("AuthorizationPolicy", "istio-system", "w", "{selector: {matchLabels: {app: a}}}");
    let (mut index, mut mirror) = built(&(text + &wide));
    assert_eq!(mirror.workload("a").authorization_policies[..], ["istio-system/w"]);
    mirror.take(index.apply(sets(&wide.replace("app: a", "app: b"))));
    assert!(mirror.workload("a").authorization_policies.is_empty());
}
