//! Random policies and random mistakes in them: whoever got through with the mistake got through without it.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};

use super::{HEAD, Outcome, PEER, outcome};

/// Closes the other pod for all but web on port 80: what a policy with a mistake allows must not add to it.
const BESIDE: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: beside, namespace: shop}
spec:
  selector: {matchLabels: {app: other}}
  rules: [{from: [{source: {serviceAccounts: [web/web]}}], to: [{operation: {ports: ['80']}}]}]
";

type Make = fn(&mut StdRng) -> Value;

fn some(random: &mut StdRng, make: Make) -> Value {
    (0..random.random_range(1..3)).map(|_| make(random)).collect()
}

fn pick(random: &mut StdRng, pool: &[&str]) -> Value {
    json!([*pool.choose(random).expect("a pool is not empty")])
}

fn fields(random: &mut StdRng, all: &[(&str, &[&str])]) -> Value {
    let mut made = Map::new();
    while made.is_empty() {
        for (key, pool) in all {
            if random.random_range(0..all.len()) == 0 {
                made.insert((*key).to_owned(), pick(random, pool));
            }
        }
    }
    Value::Object(made)
}

fn source(random: &mut StdRng) -> Value {
    let principals = ["cluster.local/ns/web/sa/web", "*/sa/else", "*"];
    let all: [(&str, &[&str]); 6] = [
        ("principals", &principals),
        ("notPrincipals", &principals),
        ("ipBlocks", &["10.1.0.0/16", "10.9.0.1"]),
        ("notIpBlocks", &["10.1.0.0/16", "10.9.0.1"]),
        ("namespaces", &["web", "x*"]),
        ("requestPrincipals", &["x"]),
    ];
    json!({ "source": fields(random, &all) })
}

fn operation(random: &mut StdRng) -> Value {
    let all: [(&str, &[&str]); 3] =
        [("ports", &["80", "81"]), ("notPorts", &["80", "81"]), ("methods", &["GET"])];
    json!({ "operation": fields(random, &all) })
}

fn condition(random: &mut StdRng) -> Value {
    let mut made = match random.random_range(0..3) {
        0 => fields(random, &[("values", &["80", "81"]), ("notValues", &["80"])]),
        1 => fields(random, &[("values", &["web", "x"]), ("notValues", &["web"])]),
        _ => fields(random, &[("values", &["y"])]),
    };
    let ports = made.to_string().contains("80") || made.to_string().contains("81");
    made["key"] = if ports { "destination.port" } else { "source.namespace" }.into();
    made
}

fn rule(random: &mut StdRng) -> Value {
    let mut made = Map::new();
    let parts: [(&str, Make); 3] = [("from", source), ("to", operation), ("when", condition)];
    for (key, make) in parts {
        if random.random() {
            made.insert(key.to_owned(), some(random, make));
        }
    }
    Value::Object(made)
}

fn selector(random: &mut StdRng, spec: &mut Map<String, Value>) {
    if random.random() {
        spec.insert("selector".to_owned(), json!({"matchLabels": {"app": "cart"}}));
    }
}

fn authorization(random: &mut StdRng) -> Value {
    let mut spec = Map::new();
    selector(random, &mut spec);
    match random.random_range(0..3) {
        0 => {}
        1 => drop(spec.insert("action".to_owned(), "ALLOW".into())),
        _ => drop(spec.insert("action".to_owned(), "DENY".into())),
    }
    spec.insert("rules".to_owned(), some(random, rule));
    Value::Object(spec)
}

fn peer(random: &mut StdRng) -> Value {
    let mut spec = Map::new();
    selector(random, &mut spec);
    let mode = |random: &mut StdRng| {
        let modes = ["STRICT", "PERMISSIVE", "DISABLE", "UNSET"];
        json!({"mode": *modes.choose(random).expect("there are four")})
    };
    spec.insert("mtls".to_owned(), mode(random));
    if random.random() {
        spec.insert("portLevelMtls".to_owned(), json!({"80": mode(random)}));
    }
    Value::Object(spec)
}

/// How many places there are in which a mistake can be made.
fn places(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.values().map(|value| 2 + places(value)).sum(),
        Value::Array(list) => list.iter().map(|value| 1 + places(value)).sum(),
        _ => 0,
    }
}

/// Makes one in the place of this number: a key with a letter too many, or a value of another kind.
fn spoil(value: &mut Value, place: &mut usize) -> bool {
    match value {
        Value::Object(map) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            for key in keys {
                if is_here(place) {
                    let value = map.remove(&key).expect("invariant: the key was just listed");
                    map.insert(format!("{key}x"), value);
                    return true;
                }
                if is_here(place) {
                    map.insert(key, json!(7));
                    return true;
                }
                if map.get_mut(&key).is_some_and(|value| spoil(value, place)) {
                    return true;
                }
            }
            false
        }
        Value::Array(list) => list.iter_mut().any(|value| {
            if is_here(place) {
                *value = json!(7);
                return true;
            }
            spoil(value, place)
        }),
        _ => false,
    }
}

/// Counts down to the place.
fn is_here(place: &mut usize) -> bool {
    std::mem::replace(place, place.wrapping_sub(1)) == 0
}

fn passes(outcome: &Outcome) -> BTreeSet<String> {
    ["cart", "other"]
        .into_iter()
        .flat_map(|pod| {
            let reached = outcome.reached(pod);
            reached.split_whitespace().map(|one| format!("{pod}:{one}")).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn a_mistake_never_lets_anybody_through() {
    let mut random = StdRng::seed_from_u64(7);
    let (mut bad, mut closed) = (0, 0);
    for case in 0..6000 {
        let (head, good) = match case % 4 {
            0 => (PEER, peer(&mut random)),
            _ => (HEAD, authorization(&mut random)),
        };
        let mut spoilt = good.clone();
        let mut place = random.random_range(0..places(&good));
        assert!(spoil(&mut spoilt, &mut place), "{good}");
        let read = |spec: &Value| outcome(&format!("{head}spec: {spec}{BESIDE}"));
        let (meant, found) = (read(&good), read(&spoilt));
        assert!(meant.mistakes.is_empty(), "{good}: {:?}", meant.mistakes);
        // A label has no wrong name.
        if found.mistakes.is_empty() {
            continue;
        }
        bad += 1;
        let (meant, found) = (passes(&meant), passes(&found));
        assert!(found.is_subset(&meant), "case {case}: {good} lets {meant:?} pass, but {spoilt} {found:?}");
        closed += usize::from(found != meant);
    }
    assert!(bad > 5000 && closed > 1000 && closed < bad, "cases that say little: {bad}, {closed}");
}
