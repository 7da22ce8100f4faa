//! A lab of a folder from the command line: what is edited in the folder happens, and the commands show it.

mod bed;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bed::{Bed, soon, text};
use ztunnel_lab::process::Process;

/// From the edit of a policy to its enforcement.
const PROMISED: Duration = Duration::from_secs(1);
const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}}
    spec:
      serviceAccountName: cart
      containers: [{name: cart, image: example.org/cart, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80, targetPort: 8080}]}
";
const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {ports: ['8080']}}]}]}
";

fn pods(bed: &Bed) -> Vec<String> {
    let status = bed.status();
    let pods = status["pods"].as_array().cloned().unwrap_or_default();
    pods.iter().map(|pod| pod["name"].as_str().unwrap_or_default().to_owned()).collect()
}

fn policies(bed: &Bed) -> String {
    text(&bed.policies(&["--output", "json"]).stdout)
}

#[test]
fn a_running_lab_follows_its_folder() {
    let bed = Bed::new("follow");
    bed.write("shop.yaml", PODS);
    bed.write("config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n");
    let told = text(&bed.up().stdout);
    assert!(told.contains("Not read here: ConfigMap (1)"), "{told}");
    assert_eq!(pods(&bed), ["cart-0", "cart-1"]);
    assert!(bed.status()["pods"].as_array().expect("pods").iter().all(|pod| !pod["identity"].is_null()));

    bed.write("policy.yaml", POLICY);
    let known = soon(|| policies(&bed).contains("\"knownTo\": \"all\"")).expect("every proxy knows it");
    assert!(known < PROMISED, "known after {known:?}");

    bed.write("shop.yaml", &PODS.replace("replicas: 2", "replicas: 3"));
    soon(|| pods(&bed) == ["cart-0", "cart-1", "cart-2"]).expect("a pod comes");
    assert!(bed.lab(&["exec", "shop/cart-2", "--", "true"]).status.success());
    bed.write("shop.yaml", &PODS.replace("replicas: 2", "replicas: 1"));
    soon(|| pods(&bed) == ["cart-0"]).expect("pods go");

    the_followers_death_is_told_and_mended(&bed);

    bed.write("policy.yaml", "kind: [");
    let mistaken = |bed: &Bed| bed.status()["mistakes"].to_string().contains("policy.yaml:");
    soon(|| mistaken(&bed)).expect("the status tells the mistake");
    assert!(policies(&bed).contains("closed"), "what worked stays");
    fs::remove_file(bed.folder.join("policy.yaml")).expect("it was written");
    soon(|| !policies(&bed).contains("closed")).expect("the policy goes with its file");
    soon(|| !mistaken(&bed)).expect("and its mistake");
    assert_eq!(fs::read_dir(&bed.folder).expect("the folder").count(), 2, "the lab writes nothing there");
}

fn the_followers_death_is_told_and_mended(bed: &Bed) {
    let record = PathBuf::from("/run/ztunnel-lab").join(&bed.name).join("follow.pid");
    let recorded = || fs::read_to_string(&record).expect("it is recorded");
    let first = recorded();
    Process::recorded(&record).expect("it runs").kill();
    fs::write(&record, first).expect("a crash leaves the record behind");
    soon(|| bed.status()["follower"] == "not running").expect("its death shows");
    let told = String::from_utf8_lossy(&bed.lab(&["status"]).stdout).into_owned();
    let remedy = format!("ztunnelctl lab --name {} follow", bed.name);
    assert!(told.contains(&remedy) && told.contains("follow.log"), "{told}");
    let follow = || String::from_utf8_lossy(&bed.lab(&["follow"]).stdout).into_owned();
    assert!(follow().contains("is started"));
    assert_eq!(bed.status()["follower"], "running");
    let second = recorded();
    assert!(follow().contains("runs already") && recorded() == second, "it is not started twice");
    bed.write("shop.yaml", PODS);
    soon(|| pods(bed) == ["cart-0", "cart-1"]).expect("the folder is followed again");
    bed.write("shop.yaml", &PODS.replace("replicas: 2", "replicas: 1"));
    soon(|| pods(bed) == ["cart-0"]).expect("and again");
}
