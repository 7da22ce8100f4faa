//! The cluster that KUBECONFIG names, by kubectl; and its nodes, by the program that CLUSTER names.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// For everything that the cluster does by itself: starting a pod, electing a leader, booting a node.
pub const DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);

/// Runs kubectl; its output, or what it said instead.
pub fn attempt(arguments: &[&str]) -> Result<String, String> {
    answer(Command::new("kubectl").args(arguments).stdin(Stdio::null()).output(), arguments)
}

pub fn kubectl(arguments: &[&str]) -> String {
    attempt(arguments).unwrap_or_else(|error| panic!("{error}"))
}

pub fn json(arguments: &[&str]) -> Value {
    let text = kubectl(&[arguments, &["--output=json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
}

pub fn apply(manifests: &str) {
    fed(&["apply", "--filename=-"], manifests);
}

/// Runs kubectl on what is fed to it.
pub fn fed(arguments: &[&str], input: &str) -> String {
    let mut kubectl = Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is there");
    // Dropped at the end of the statement, which is the end of its input.
    kubectl.stdin.take().expect("invariant: piped").write_all(input.as_bytes()).expect("it reads");
    answer(kubectl.wait_with_output(), arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a program in a pod.
pub fn exec(pod: &str, command: &[&str]) -> Result<String, String> {
    let (namespace, name) = pod.split_once('/').expect("NAMESPACE/NAME");
    attempt(&[&["--namespace", namespace, "exec", name, "--"], command].concat())
}

/// What a pod serves over HTTP, through the API server.
pub fn get(namespace: &str, pod: &str, port: u16, path: &str) -> Result<String, String> {
    attempt(&["get", "--raw", &format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}")])
}

/// `node N CMD…` runs a program on a node, `crash N` cuts its power, `boot N` starts it; N is the number in the node's name.
pub fn node(what: &str, name: &str, command: &[&str]) -> String {
    let program = std::env::var("CLUSTER").expect("CLUSTER names a program that reaches the nodes (README)");
    let number = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    let arguments = [&[what, number], command].concat();
    answer(Command::new(program).args(&arguments).stdin(Stdio::null()).output(), &arguments)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn answer(output: std::io::Result<Output>, arguments: &[&str]) -> Result<String, String> {
    let output = output.map_err(|error| format!("{arguments:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Waits for a condition; the last reason against it is told when the time is over.
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Result<T, String>) -> T {
    within(DEADLINE, what, condition)
}

pub fn within<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(reason) if started.elapsed() > deadline => {
                panic!("{what}: not within {deadline:?}: {reason}")
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

pub fn require(condition: bool, reason: impl Into<String>) -> Result<(), String> {
    if condition { Ok(()) } else { Err(reason.into()) }
}
