//! Policies with mistakes, from their text to what they let pass: never more than the policy that was meant.

mod random;

use std::net::SocketAddr;
use std::path::Path;

use ztunnel_model::Identity;
use ztunnel_model::codec::{self, located::Mistake};
use ztunnel_model::policy::{Connection, Policy, Scope, decide};

use super::super::tests::Scratch;
use super::super::{Folder, parse};
use crate::index::{Config, Enforcement, Index, PolicyStatus};
use crate::object::Change;
use crate::resource::{Changes, Kind};

const HEAD: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                    metadata: {name: p, namespace: shop}\n";
const PEER: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                    metadata: {name: p, namespace: shop}\n";
/// The policy that every strict workload names.
const STRICT: &str = "istio-system/istio_converted_static_strict";
const PODS: &str = "
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: n, containers: []}
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, labels: {app: other}}
spec: {nodeName: n, containers: []}
status: {phase: Running, podIP: 10.0.0.2}
";

struct Outcome {
    policies: Vec<Policy>,
    statuses: Vec<PolicyStatus>,
    mistakes: Vec<Mistake>,
    /// Which policies the pods name.
    named: Vec<(String, Vec<String>)>,
}

/// These policies and two pods, as they are read first.
fn outcome(text: &str) -> Outcome {
    let manifests = parse(&format!("{text}{PODS}"), Path::new("p.yaml"));
    let mistakes: Vec<_> = manifests.iter().flat_map(|(_, manifest)| manifest.mistakes.clone()).collect();
    let mut index = Index::new(Config::default());
    let objects = manifests.into_iter().filter_map(|(_, manifest)| manifest.object);
    let Changes { set, .. } = index.apply(objects.map(Change::Set));
    let of_kind = |kind| set.iter().filter(move |one| one.kind == kind);
    let policies = of_kind(Kind::Authorization).map(|one| codec::policy::decode(&one.body).expect("ours"));
    let named =
        of_kind(Kind::Address).filter_map(|one| match codec::Address::decode(&one.body).expect("ours") {
            codec::Address::Workload(one) => {
                let names = one.authorization_policies.iter().map(ToString::to_string).collect();
                Some((one.name.to_string(), names))
            }
            codec::Address::Service(_) => None,
        });
    Outcome {
        policies: policies.collect(),
        statuses: index.statuses().collect(),
        named: named.collect(),
        mistakes,
    }
}

impl Outcome {
    /// Which of the ports 80 and 81 the identity web, another and plaintext reach on a pod.
    fn reached(&self, pod: &str) -> String {
        let (_, named) = self.named.iter().find(|(name, _)| name == pod).expect("the pod");
        let applying = |policy: &&Policy| match policy.scope {
            Scope::WorkloadSelector => named.contains(&policy.key.to_string()),
            _ => true,
        };
        let identity = |account| Identity::new("cluster.local", "web", account).expect("a good name");
        let peers = [("web", Some(identity("web"))), ("else", Some(identity("else"))), ("plain", None)];
        let mut reached = Vec::new();
        for (name, identity) in &peers {
            for port in [80, 81] {
                let connection = Connection {
                    identity: identity.as_ref(),
                    source: SocketAddr::from(([10, 1, 0, 1], 4000)),
                    destination: SocketAddr::from(([10, 0, 0, 1], port)),
                };
                if decide(self.policies.iter().filter(applying), &connection).is_allowed() {
                    reached.push(format!("{name}:{port}"));
                }
            }
        }
        reached.join(" ")
    }
}

const WEB: &str = "from: [{source: {serviceAccounts: [web/web]}}]";

/// Spec; what is reached on the cart and on the other pod; the field that is named first, and what else the reason says.
const AUTHORIZATIONS: &[(&str, &str, &str, &str, &str)] = &[
    // ALLOW: the rule with the mistake allows nobody, the others stay.
    ("rules: [{WEB, too: []}]", "", "", "spec.rules[0].too", "is it \"to\"?; the rule is left out"),
    (
        "rules: [{to: [{operation: {prts: ['80']}}]}, {to: [{operation: {ports: ['81']}}]}]",
        "web:81 else:81 plain:81",
        "web:81 else:81 plain:81",
        "spec.rules[0].to[0].operation.prts",
        "is it \"ports\"?; the rule is left out",
    ),
    (
        "rules: [{to: [{operation: {ports: [80]}}]}]",
        "",
        "",
        "spec.rules[0].to[0].operation.ports[0]",
        "in quotes",
    ),
    (
        "selector: {matchLabels: {app: cart}}\n  rules: [{form: []}]",
        "",
        ALL,
        "spec.rules[0].form",
        "\"from\"?",
    ),
    ("action: ALLOW\n  rules: {to: []}", "", "", "spec.rules", "the policy allows nobody"),
    ("ruels: [{}]", "", "", "spec.ruels", "\"rules\"?; the policy allows nobody"),
    ("rules: [{}]\n  rules: [{}]", "", "", "spec.rules", "the policy allows nobody"),
    // A template that was filled in with nothing.
    ("rules: [{from: []}]", "", "", "spec.rules[0].from", "would hold for everyone"),
    (
        "action: DENY\n  rules: [{from: [], to: [{operation: {ports: ['80']}}]}]",
        "web:81 else:81 plain:81",
        "web:81 else:81 plain:81",
        "spec.rules[0].from",
        "would hold for everyone",
    ),
    // The selector: the whole namespace, without the rules, which may be wider than those of other policies there.
    (
        "selector: {matchLabel: {app: cart}}\n  rules: [{}]",
        "",
        "",
        "spec.selector.matchLabel",
        "\"matchLabels\"?",
    ),
    ("selecter: {matchLabels: {app: cart}}\n  rules: [{}]", "", "", "spec.selecter", "\"selector\"?"),
    // The action: nobody passes, also nobody whom another policy allows.
    ("action: DENNY\n  rules: [{}]", "", "", "spec.action", "unknown value \"DENNY\""),
    (
        "acton: DENY\n  rules: [{}]",
        "",
        "",
        "spec.acton",
        "\"action\"?; the policy is enforced without it and denies more",
    ),
    ("action: DENY\n  action: ALLOW\n  rules: [{}]", "", "", "spec.action", "denies more"),
    // DENY: without the part that is not known, so that more is denied.
    (
        "action: DENY\n  rules: [{WEB, to: [{operation: {prts: ['80']}}]}]",
        "else:80 else:81 plain:80 plain:81",
        "else:80 else:81 plain:80 plain:81",
        "spec.rules[0].to[0].operation.prts",
        "is it \"ports\"?; the rule is enforced without it and denies more",
    ),
    (
        "action: DENY\n  rules: [{WEB, to: [{operation: {ports: ['80', 81]}}]}]",
        "else:80 else:81 plain:80 plain:81",
        "else:80 else:81 plain:80 plain:81",
        "spec.rules[0].to[0].operation.ports[1]",
        "denies more",
    ),
    (
        "action: DENY\n  rules: [{to: [{operation: {ports: ['80']}}], from: [{sorce: {}}, {source: {namespaces: [x]}}]}]",
        "web:81 else:81 plain:81",
        "web:81 else:81 plain:81",
        "spec.rules[0].from[0].sorce",
        "denies more",
    ),
    (
        "action: DENY\n  rules: [{to: [{operation: {ports: ['80']}}], when: [{key: source.ip, valus: [10.9.9.9]}]}]",
        "web:81 else:81 plain:81",
        "web:81 else:81 plain:81",
        "spec.rules[0].when[0].valus",
        "\"values\"?",
    ),
    (
        "action: DENY\n  rules: [{to: [], to: [{operation: {ports: ['80']}}]}]",
        "",
        "",
        "spec.rules[0].to",
        "denies more",
    ),
    ("action: DENY\n  rules: [{to: 80}]", "", "", "spec.rules[0].to", "denies more"),
    ("action: DENY\n  rules: [80]", "", "", "spec.rules[0]", "denies more"),
    ("action: DENY\n  rules: 80", "", "", "spec.rules", "denies more"),
    ("action: DENY\n  ruels: [{}]", "", "", "spec.ruels", "\"rules\"?; the policy is enforced without it"),
    (
        "action: DENY\n  selector: {matchLabels: {app: cart}}\n  rules: [{too: []}]",
        "",
        ALL,
        "spec.rules[0].too",
        "denies more",
    ),
    (
        "action: DENY\n  selector: {app: cart}\n  rules: [{to: [{operation: {ports: ['80']}}]}]",
        "web:81 else:81 plain:81",
        "web:81 else:81 plain:81",
        "spec.selector.app",
        "the policy is enforced without it and denies more",
    ),
    // Whose place is elsewhere.
    (
        "targetRefs: [{kid: Service, name: x}]\n  rules: [{}]",
        ALL,
        ALL,
        "spec.targetRefs",
        "enforced by waypoints",
    ),
];
const ALL: &str = "web:80 web:81 else:80 else:81 plain:80 plain:81";

#[test]
fn an_authorization_policy_with_mistakes_opens_nothing() {
    for (spec, cart, other, field, reason) in AUTHORIZATIONS {
        let text = format!("{HEAD}spec:\n  {}\n", spec.replace("WEB", WEB));
        let found = outcome(&text);
        assert_eq!(
            (found.reached("cart").as_str(), found.reached("other").as_str()),
            (*cart, *other),
            "{text}"
        );
        let status = &found.statuses[0];
        let enforcement =
            if spec.starts_with("targetRefs") { Enforcement::None } else { Enforcement::Partial };
        assert_eq!(status.enforcement, enforcement, "{text}{status:?}");
        let told = &status.reasons[0];
        assert_eq!(told.field, *field, "{text}{status:?}");
        assert!(told.text.contains(reason), "{text}{status:?}");
        let place = found.mistakes[0].line;
        let places = status.reasons.iter().any(|one| {
            one.text.contains("p.yaml:")
                && one.text.contains(&format!(":{place}:"))
                && one.text.contains("document 1")
        });
        assert!(places, "{text}{status:?} {:?}", found.mistakes);
    }
}

#[test]
fn a_policy_with_its_fields_at_the_top_denies_everybody() {
    let found = outcome(&format!("{HEAD}action: DENY\nrules: [{{}}]\n"));
    assert_eq!((found.reached("cart"), found.statuses[0].reasons.len()), (String::new(), 2));
    let other_version = HEAD.replace("/v1", "/v9") + "spec: {action: DENY, rules: [{}]}\n";
    let found = outcome(&other_version);
    assert_eq!((found.reached("cart"), found.mistakes.len()), (String::new(), 1));
}

#[test]
fn a_kind_that_the_group_does_not_have_is_told() {
    for kind in ["AuthorisationPolicy", "PeerAuthentification", "authorizationpolicy"] {
        let text = HEAD.replace("AuthorizationPolicy", kind) + "spec: {rules: []}\n";
        let found = outcome(&text);
        let told: Vec<String> = found.mistakes.iter().map(ToString::to_string).collect();
        assert!(told.len() == 1 && told[0].contains(kind) && told[0].contains("write Auth"), "{told:?}");
    }
    let other = HEAD.replace("AuthorizationPolicy", "RequestAuthentication") + "spec: {jwtRules: []}\n";
    assert!(outcome(&other).mistakes.is_empty());
}

#[test]
fn what_has_no_certain_place_is_in_force_nowhere_and_told() {
    for metadata in
        ["{name: p, namspace: shop}", "{name: p, namespace: 7}", "{nam: p, namespace: shop}", "{name: P_p}"]
    {
        let text = HEAD.replace("{name: p, namespace: shop}", metadata) + "spec: {rules: []}\n";
        let found = outcome(&text);
        assert!(found.policies.is_empty() && !found.mistakes.is_empty(), "{metadata}: {:?}", found.mistakes);
    }
    let found = outcome(&(HEAD.replace("name: p,", "name: p, lables: {},") + "spec: {rules: []}\n"));
    assert_eq!((found.reached("cart"), found.mistakes.len()), (String::new(), 1), "labels place nothing");
}

/// Spec, and which pods are strict.
const PEERS: &[(&str, &[&str], &str)] = &[
    ("mtls: {mode: STRONG}", &["cart", "other"], "spec.mtls.mode"),
    ("mtls: {mod: PERMISSIVE}", &["cart", "other"], "spec.mtls.mod"),
    ("mlts: {mode: PERMISSIVE}", &["cart", "other"], "spec.mlts"),
    ("selector: {matchLabels: {app: cart}}\n  mtls: {mode: STRONG}", &["cart"], "spec.mtls.mode"),
    ("selector: {app: cart}\n  mtls: {mode: PERMISSIVE}", &["cart", "other"], "spec.selector.app"),
    (
        "selector: {matchLabels: {app: cart}}\n  mtls: {mode: PERMISSIVE}\n  portLevelMtls: {80: {mod: STRICT}}",
        &["cart"],
        "spec.portLevelMtls.80.mod",
    ),
    (
        "selector: {matchLabels: {app: cart}}\n  portLevelMtls: {0: {mode: STRICT}}",
        &["cart"],
        "spec.portLevelMtls.0",
    ),
];

#[test]
fn a_peer_authentication_with_mistakes_is_strict() {
    let older = PEER.replace("name: p,", "name: a, creationTimestamp: '2000-01-01T00:00:00Z',");
    for beside in ["", "spec: {mtls: {mode: PERMISSIVE}}\n"] {
        for (spec, strict, field) in PEERS {
            let mut text = format!("{PEER}spec:\n  {spec}\n");
            if !beside.is_empty() {
                text = format!("{text}---\n{older}{beside}");
            }
            let found = outcome(&text);
            let named: Vec<&str> = found
                .named
                .iter()
                .filter(|(_, policies)| policies.iter().any(|name| name == STRICT))
                .map(|(pod, _)| pod.as_str())
                .collect();
            assert_eq!(named, *strict, "{text}");
            let status = found.statuses.iter().find(|status| &*status.name == "p").expect("its status");
            assert_eq!(status.enforcement, Enforcement::Partial, "{text}{status:?}");
            let told = &status.reasons[0];
            assert!(
                told.field == *field && told.text.contains("STRICT until it is mended"),
                "{text}{status:?}"
            );
        }
    }
}

#[test]
fn a_good_version_stays_and_a_mended_one_replaces_a_bad_one() {
    let scratch = Scratch::new();
    let write = |spec: &str| scratch.write("p.yaml", &format!("{HEAD}spec: {spec}\n"));
    write("{rules: [{too: []}], foo: 1}");
    let (mut folder, first, _) = Folder::open(&scratch.0);
    assert_eq!(first.len(), 1);
    write("{rules: [{too: []}]}");
    assert_eq!(folder.read().len(), 1, "of two bad ones the later counts");
    write("{rules: []}");
    assert_eq!(folder.read().len(), 1);
    write("{rules: [{too: []}]}");
    assert!(folder.read().is_empty() && folder.mistakes.len() == 1, "the good one stays");
}
