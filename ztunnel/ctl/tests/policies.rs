//! `ztunnelctl policies` against a lab: what the controller says of each policy, and which proxies hold it.

mod bed;

use std::fs;
use std::time::Duration;

use bed::{Bed, json, run, soon, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// From the edit of a policy to its status.
const PROMISED: Duration = Duration::from_secs(2);
const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop}
spec: {serviceAccountName: cart, containers: [{name: cart, image: example.org/cart}]}
";
const PARTLY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  rules:
  - to: [{operation: {ports: ['80']}}]
  - to: [{operation: {methods: [GET]}}]
";

fn shown(bed: &Bed) -> Value {
    json(&bed.policies(&["--output", "json"]))
}

fn policy(bed: &Bed, name: &str) -> Option<Value> {
    shown(bed)["policies"].as_array()?.iter().find(|policy| policy["name"] == name).cloned()
}

#[test]
fn a_policy_in_part_and_a_mistake_are_shown_while_the_lab_runs() {
    let bed = Bed::new("policies");
    bed.write("shop.yaml", PODS);
    bed.up();
    assert_eq!(shown(&bed)["policies"], Value::Array(Vec::new()));

    bed.write("policy.yaml", PARTLY);
    let everywhere = |bed: &Bed| {
        policy(bed, "readers").is_some_and(|one| one["resources"][0]["forms"][0]["knownTo"] == "all")
    };
    let took = soon(|| everywhere(&bed)).expect("the policy is shown, and held by every proxy");
    assert!(took < PROMISED, "shown after {took:?}");
    let found = policy(&bed, "readers").expect("it was there");
    assert_eq!(
        (&found["kind"], &found["status"]),
        (&"AuthorizationPolicy".into(), &"partly enforced".into())
    );
    assert_eq!(found["workloads"], 1);
    assert_eq!(found["resources"][0]["name"], "shop/readers");
    let reasons = found["reasons"].as_array().expect("a list");
    let reason = reasons[0].as_str().expect("a text");
    assert!(reasons.len() == 1 && reason.starts_with("spec.rules[1].to[0].operation.methods: "), "{found}");
    let table = text(&bed.policies(&[]).stdout);
    let mut lines = table.lines().skip_while(|line| !line.contains("readers"));
    let line = lines.next().unwrap_or_default();
    assert!(line.contains("shop") && line.contains("partly enforced") && line.contains("all"), "{table}");
    assert_eq!(lines.next().map(str::trim), Some(reason), "{table}");

    bed.write("policy.yaml", &PARTLY.replace("- to: [{operation: {methods", "- too: [{operation: {methods"));
    let mistake = |bed: &Bed| shown(bed)["mistakes"][0].clone();
    let took = soon(|| mistake(&bed)["path"] == "spec.rules[1].too").expect("the mistake is shown");
    assert!(took < PROMISED, "shown after {took:?}");
    assert_eq!(mistake(&bed)["object"]["name"], "readers");
    let table = text(&bed.policies(&[]).stdout);
    assert!(table.contains("policy.yaml:8:5: document 1: spec.rules[1].too: "), "{table}");
    assert!(everywhere(&bed), "what worked stays");
    let other = json(&bed.policies(&["--output", "json", "--namespace", "other"]));
    assert_eq!((&other["policies"], &other["mistakes"]), (&Value::Array(vec![]), &Value::Array(vec![])));

    fs::remove_file(bed.folder.join("policy.yaml")).expect("it was written");
    soon(|| shown(&bed)["policies"] == Value::Array(vec![])).expect("the policy goes with its file");
}

#[test]
fn without_the_controller_the_proxies_are_shown() {
    let bed = Bed::new("nocontroller");
    bed.write("shop.yaml", PODS);
    bed.write("policy.yaml", PARTLY);
    bed.up();
    let path = std::path::Path::new("/run/ztunnel-lab").join(&bed.name).join("controller.pid");
    let record = fs::read_to_string(&path).expect("the controller is recorded");
    let pid = record.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    let output = soon_fails(&bed);
    let error = text(&output.stderr);
    assert!(
        error.contains("no answer from the controller of the lab: ") && error.contains("proxies hold"),
        "{error}"
    );
    let found = &json(&output)["policies"][0];
    assert_eq!((&found["name"], &found["status"]), (&"readers".into(), &Value::Null));
    assert_eq!(found["resources"][0]["forms"][0]["knownTo"], "all");
}

/// The answer once the controller is gone.
fn soon_fails(bed: &Bed) -> std::process::Output {
    let mut last = None;
    soon(|| {
        let output = bed.policies(&["--output", "json"]);
        let failed = !output.status.success();
        last = Some(output);
        failed
    })
    .expect("the controller is gone");
    last.expect("it was asked")
}

#[test]
fn a_controller_outside_of_a_lab_is_named() {
    let output = run(&["policies", "--lab", "never-up", "--controller", "127.0.0.1:1"]);
    let error = text(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("never-up") && error.contains("controller at 127.0.0.1:1"), "{error}");
    let help = text(&run(&["policies", "--help"]).stdout);
    assert!(help.contains("--controller") && help.contains("CONTROLLER_STATUS"), "{help}");
}
