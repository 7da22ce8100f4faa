use serde_json::{Value, json};

use super::{Proxy, json as printed, lines};
use crate::mesh::controller::Controller;
use crate::mesh::policies::{Report, report};

fn record(namespace: &str, name: &str, scope: &str, rules: usize) -> Value {
    json!({
        "name": name, "namespace": namespace, "scope": scope, "action": "Deny", "dryRun": false,
        "rules": vec![Value::Null; rules],
    })
}

fn proxy(node: &str, policies: &[Value]) -> Proxy {
    let workload =
        |namespace: &str, names: &[&str]| json!({"namespace": namespace, "authorizationPolicies": names});
    let workloads = [workload("shop", &["shop/named"]), workload("web", &[])];
    let dump = json!({"policies": policies, "workloads": workloads});
    Proxy { node: node.to_owned(), ready: true, dump: Some(dump) }
}

fn silent(node: &str) -> Proxy {
    Proxy { node: node.to_owned(), ready: false, dump: None }
}

fn controller(policies: Value, mistakes: Value) -> Controller {
    Controller {
        policies: serde_json::from_value(policies).expect("statuses"),
        mistakes: serde_json::from_value(mistakes).expect("mistakes"),
    }
}

fn status(kind: &str, path: &str, status: &str, resources: &[&str], reasons: &[&str]) -> Value {
    let (namespace, name) = path.split_once('/').expect("a namespace and a name");
    json!({
        "kind": kind, "namespace": namespace, "name": name, "status": status, "resources": resources,
        "reasons": reasons, "workloads": 1,
    })
}

fn mistake(line: usize, object: Value) -> Value {
    json!({
        "file": "p.yaml", "document": 2, "line": line, "column": 3, "path": "spec.x", "reason": "unknown",
        "object": object,
    })
}

fn table(report: &Report) -> Vec<String> {
    let lines = lines(&report.table());
    lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn objects_are_joined_with_what_proxies_hold_of_them() {
    let (own, shared) =
        (record("shop", "cart", "WorkloadSelector", 2), record("root", "strict", "WorkloadSelector", 1));
    let older = record("shop", "cart", "WorkloadSelector", 1);
    let proxies = [
        proxy("n1", &[own.clone(), shared.clone()]),
        proxy("n2", &[older, shared]),
        silent("n3"),
        proxy("n4", &[]),
    ];
    let asked = controller(
        json!([
            status(
                "AuthorizationPolicy",
                "shop/cart",
                "partly enforced",
                &["shop/cart"],
                &["spec.a: b", "spec.c: d"]
            ),
            status("AuthorizationPolicy", "shop/audit", "not enforced", &[], &["spec.action: AUDIT"]),
            status("AuthorizationPolicy", "shop/fresh", "enforced", &["shop/fresh"], &[]),
            status("PeerAuthentication", "shop/one", "enforced", &["root/strict"], &[]),
            status("PeerAuthentication", "web/two", "enforced", &["root/strict"], &[]),
        ]),
        json!([]),
    );
    let report = report(Ok(asked), &proxies, |_| true);
    assert_eq!(
        table(&report),
        [
            "AuthorizationPolicy shop cart partly enforced shop/cart Deny WorkloadSelector 2 no 1 n1 n4",
            "AuthorizationPolicy shop cart partly enforced shop/cart Deny WorkloadSelector 1 no 1 n2 n4",
            "spec.a: b",
            "spec.c: d",
            "AuthorizationPolicy shop audit not enforced - - - - - 1 - -",
            "spec.action: AUDIT",
            "AuthorizationPolicy shop fresh enforced shop/fresh - - - - 1 - n1,n2,n4",
            "PeerAuthentication shop one enforced root/strict Deny WorkloadSelector 1 no 1 n1,n2 n4",
            "PeerAuthentication web two enforced root/strict Deny WorkloadSelector 1 no 1 n1,n2 n4",
        ]
    );
    assert!(!printed(&report).contains("unknown to"), "what is named is not told twice");
}

#[test]
fn what_the_controller_does_not_name_stands_alone() {
    let proxies = [proxy("n1", &[record("shop", "gone", "Namespace", 2)])];
    let report = report(Ok(Controller::default()), &proxies, |_| true);
    assert_eq!(
        table(&report),
        ["- shop gone unknown to the controller shop/gone Deny Namespace 2 no 1 all -"]
    );
}

#[test]
fn without_the_controller_there_is_what_the_proxies_hold() {
    let policies = ["Global", "Namespace", "WorkloadSelector"].map(|scope| {
        let name = if scope == "WorkloadSelector" { "named" } else { scope };
        record("shop", name, scope, 2)
    });
    let proxies = [proxy("n1", &policies), proxy("n2", &policies), silent("n3")];
    let report = report(Err("no answer".to_owned()), &proxies, |_| true);
    assert_eq!(
        table(&report),
        [
            "- shop Global - shop/Global Deny Global 2 no 2 all -",
            "- shop Namespace - shop/Namespace Deny Namespace 2 no 1 all -",
            "- shop named - shop/named Deny WorkloadSelector 2 no 1 all -",
        ]
    );
    let value: Value = serde_json::from_str(&printed(&report)).expect("JSON");
    assert_eq!(value["controllerError"], "no answer");
    assert_eq!(value["policies"][0]["status"], Value::Null);
}

#[test]
fn the_json_form_has_all_fields() {
    let asked = controller(
        json!([status("AuthorizationPolicy", "shop/p", "partly enforced", &["shop/p"], &["spec.a: b"])]),
        json!([mistake(7, json!({"kind": "AuthorizationPolicy", "namespace": "shop", "name": "q"}))]),
    );
    let report = report(Ok(asked), &[proxy("n1", &[record("shop", "p", "Namespace", 1)])], |_| true);
    let value: Value = serde_json::from_str(&printed(&report)).expect("JSON");
    let form = json!({
        "action": "Deny", "scope": "Namespace", "rules": 1, "dryRun": false, "nodes": ["n1"], "knownTo": "all",
    });
    let expected = json!({
        "controllerError": null,
        "policies": [{
            "kind": "AuthorizationPolicy", "namespace": "shop", "name": "p", "status": "partly enforced",
            "reasons": ["spec.a: b"], "workloads": 1,
            "resources": [{"name": "shop/p", "forms": [form], "missingOn": []}],
        }],
        "mistakes": [mistake(7, json!({"kind": "AuthorizationPolicy", "namespace": "shop", "name": "q"}))],
    });
    assert_eq!(value, expected);
}

#[test]
fn mistakes_are_those_of_policies_and_of_what_may_be_one() {
    let object = |kind: &str, namespace: &str| json!({"kind": kind, "namespace": namespace, "name": "p"});
    let asked = controller(
        json!([status("AuthorizationPolicy", "web/p", "enforced", &[], &[])]),
        json!([
            mistake(1, object("AuthorizationPolicy", "shop")),
            mistake(2, object("PeerAuthentication", "shop")),
            mistake(3, object("AuthorizationPolicy", "web")),
            mistake(4, object("Pod", "shop")),
            mistake(5, Value::Null),
        ]),
    );
    let report = report(Ok(asked), &[], |namespace| namespace == "shop");
    let told: Vec<String> = report.mistakes().iter().map(ToString::to_string).collect();
    assert_eq!(told, [1, 2, 5].map(|line| format!("p.yaml:{line}:3: document 2: spec.x: unknown")));
    assert!(table(&report).is_empty(), "policies of other namespaces are not shown");
}

#[test]
fn a_mistake_of_an_object_of_the_cluster_has_no_line() {
    let mut mistake = mistake(0, json!({"kind": "AuthorizationPolicy", "namespace": "shop", "name": "p"}));
    mistake["file"] = json!("Kubernetes: AuthorizationPolicy shop/p");
    mistake["document"] = json!(0);
    let report = report(Ok(controller(json!([]), json!([mistake]))), &[], |_| true);
    assert_eq!(report.mistakes()[0].to_string(), "Kubernetes: AuthorizationPolicy shop/p: spec.x: unknown");
}
