//! A lab of a folder from the command line: what is edited in the folder happens, and the commands show it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use ztunnel_lab::process::Process;
use ztunnel_lab::wait_until;

const DEADLINE: Duration = Duration::from_secs(20);
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

/// A lab and its folder; both go at the end.
struct Bed {
    name: String,
    folder: PathBuf,
}

impl Bed {
    fn new(what: &str) -> Self {
        let name = format!("{what}{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(&folder).expect("a temporary folder");
        Self { name, folder }
    }

    /// Replaced whole, as an editor does it.
    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.join(".fresh"), text).expect("a file");
        fs::rename(self.folder.join(".fresh"), self.folder.join(file)).expect("a file");
    }

    fn lab(&self, arguments: &[&str]) -> Output {
        run(&[&["lab", "--name", &self.name], arguments].concat())
    }

    fn status(&self) -> Value {
        json(&self.lab(&["--output", "json", "status"]))
    }

    fn pods(&self) -> Vec<String> {
        let status = self.status();
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        pods.iter().map(|pod| pod["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn policies(&self) -> String {
        let output = run(&["policies", "--lab", &self.name, "--output", "json"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = PathBuf::from("/run/ztunnel-lab").join(&self.name);
            for log in ["follow.log", "controller.log"] {
                eprintln!("--- {log}\n{}", fs::read_to_string(state.join(log)).unwrap_or_default());
            }
        }
        self.lab(&["down"]);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ztunnelctl"))
        .args(arguments)
        .output()
        .expect("the program can be started")
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|reason| panic!("{reason}: {text}{error}"))
}

/// How long it took until the condition came true.
fn soon(condition: impl FnMut() -> bool) -> Option<Duration> {
    let started = Instant::now();
    wait_until(DEADLINE, condition).then(|| started.elapsed())
}

#[test]
fn a_running_lab_follows_its_folder() {
    let bed = Bed::new("follow");
    bed.write("shop.yaml", PODS);
    bed.write("config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n");
    let folder = bed.folder.display().to_string();
    let up = bed.lab(&["up", "-f", &folder]);
    let told = String::from_utf8_lossy(&up.stdout).into_owned();
    assert!(up.status.success(), "{told}{}", String::from_utf8_lossy(&up.stderr));
    assert!(told.contains("Not read here: ConfigMap (1)"), "{told}");
    assert_eq!(bed.pods(), ["cart-0", "cart-1"]);
    assert!(bed.status()["pods"].as_array().expect("pods").iter().all(|pod| !pod["identity"].is_null()));

    bed.write("policy.yaml", POLICY);
    let known = soon(|| bed.policies().contains("\"knownTo\": \"all\"")).expect("every proxy knows it");
    assert!(known < PROMISED, "known after {known:?}");

    bed.write("shop.yaml", &PODS.replace("replicas: 2", "replicas: 3"));
    soon(|| bed.pods() == ["cart-0", "cart-1", "cart-2"]).expect("a pod comes");
    assert!(bed.lab(&["exec", "shop/cart-2", "--", "true"]).status.success());
    bed.write("shop.yaml", &PODS.replace("replicas: 2", "replicas: 1"));
    soon(|| bed.pods() == ["cart-0"]).expect("pods go");

    the_followers_death_is_told_and_mended(&bed);

    bed.write("policy.yaml", "kind: [");
    let mistaken = |bed: &Bed| bed.status()["mistakes"].to_string().contains("policy.yaml:");
    soon(|| mistaken(&bed)).expect("the status tells the mistake");
    assert!(bed.policies().contains("closed"), "what worked stays");
    fs::remove_file(bed.folder.join("policy.yaml")).expect("it was written");
    soon(|| !bed.policies().contains("closed")).expect("the policy goes with its file");
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
    soon(|| bed.pods() == ["cart-0", "cart-1"]).expect("the folder is followed again");
    bed.write("shop.yaml", &PODS.replace("replicas: 2", "replicas: 1"));
    soon(|| bed.pods() == ["cart-0"]).expect("and again");
}
