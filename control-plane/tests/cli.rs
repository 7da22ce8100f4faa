//! The binary as an operator meets it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, nodes: &str) -> Self {
        let path = std::env::temp_dir().join(format!("controller-cli-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("nodes.json"), nodes).unwrap();
        Self(path)
    }

    fn controller(&self) -> Command {
        let mut command = controller();
        command.args(["--listen", "127.0.0.1:0", "--host", "127.0.0.1"]);
        command.arg("--ca-dir").arg(self.0.join("ca")).arg("--nodes").arg(self.0.join("nodes.json"));
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn controller() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ztunnel-controller"));
    command.env_clear();
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait(child: &mut Child) -> std::process::ExitStatus {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "the controller does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn version_and_help_are_there() {
    let output = controller().arg("--version").output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("ztunnel-controller {}\n", env!("CARGO_PKG_VERSION"))
    );
    let output = controller().arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for option in [
        "--listen",
        "--ca-dir",
        "--ca-state-dir",
        "--revoked",
        "--nodes",
        "--host",
        "--max-ttl",
        "--kubernetes",
        "--token-audience",
        "--proxy-accounts",
        "--ca-secret",
        "--leader-elect",
        "--root-configmap",
    ] {
        assert!(help.contains(option), "{help} lacks {option}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let folder = Folder::new("refused", r#"{"nodes":[]}"#);
    let output = folder.controller().arg("--colour").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--colour"), "{}", stderr(&output));
    let output = controller().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--listen"), "{}", stderr(&output));
    for ttl in ["0s", "forever", "-1h", "99999999999999999999d"] {
        let output = folder.controller().arg(format!("--max-ttl={ttl}")).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "--max-ttl={ttl}");
    }
}

#[test]
fn files_that_cannot_be_used_end_the_start_and_are_named() {
    let folder = Folder::new("files", "{");
    let output = folder.controller().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("nodes.json"), "{}", stderr(&output));
}

#[test]
fn it_says_ready_and_ends_cleanly_at_sigterm() {
    let folder = Folder::new("ready", r#"{"nodes":[]}"#);
    let mut child = folder.controller().stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    let ready = lines.find(|line| line.contains(": ready ")).expect("it becomes ready");
    assert!(ready.contains("address=127.0.0.1:"), "{ready}");
    for name in ["tls.crt", "tls.key", "ca.crt", "root-cert.pem", "ca-crl.pem"] {
        assert!(folder.0.join("ca").join(name).exists(), "{name}");
    }
    terminate(&child);
    assert!(wait(&mut child).success());
    assert!(lines.any(|line| line.contains("stopped")));
}

#[test]
fn probes_and_metrics_are_served_with_and_without_manifests() {
    let folder = Folder::new("status", r#"{"nodes":[]}"#);
    for manifests in [true, false] {
        let mut command = folder.controller();
        command.args(["--status-listen", "127.0.0.1:0"]);
        if manifests {
            command.arg("--manifests").arg(&folder.0);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let serving = lines.find(|line| line.contains("serving the status")).expect("it serves");
        let address = serving.rsplit("status_address=").next().unwrap().trim().to_owned();
        let end = Instant::now() + DEADLINE;
        while !get(&address, "/healthz/ready").starts_with("HTTP/1.1 200 ") {
            assert!(Instant::now() < end, "it is never ready");
        }
        assert!(get(&address, "/healthz/live").starts_with("HTTP/1.1 200 "));
        let text = get(&address, "/metrics");
        assert!(text.contains("\nztunnel_controller_build_info{"), "{text}");
        assert_eq!(text.contains("ztunnel_controller_policies{"), manifests, "{text}");
        terminate(&child);
        assert!(wait(&mut child).success());
    }
}

#[test]
fn a_cluster_that_nobody_names_ends_the_start() {
    let folder = Folder::new("nowhere", r#"{"nodes":[]}"#);
    let mut command = folder.controller();
    let output = command.arg("--kubernetes").env("KUBECONFIG", folder.0.join("none")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("KUBECONFIG"), "{}", stderr(&output));
}

/// Nobody listens on the first port.
const AWAY: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
                    users: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n";

#[test]
fn it_waits_for_the_secret_of_its_ca_and_ends_when_told() {
    let folder = Folder::new("secret", r#"{"nodes":[]}"#);
    let config = folder.0.join("kubeconfig");
    std::fs::write(&config, AWAY).unwrap();
    let mut command = controller();
    command
        .args(["--listen", "127.0.0.1:0", "--host", "127.0.0.1", "--kubernetes"])
        .env("KUBECONFIG", &config);
    command.args(["--ca-secret", "ztunnel-system/ca", "--status-listen", "127.0.0.1:0"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--ca-state-dir"), "{}", stderr(&output));
    command.arg("--ca-state-dir").arg(folder.0.join("state"));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let serving = lines.find(|line| line.contains("serving the status")).expect("it serves");
    let address = serving.rsplit("status_address=").next().unwrap().trim().to_owned();
    lines
        .find(|line| line.contains("the CA's Secret is unusable; there is nothing to sign with yet"))
        .expect("it tells");
    let answer = get(&address, "/healthz/ready");
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("the CA's Secret is not read yet"),
        "{answer}"
    );
    assert!(get(&address, "/healthz/live").starts_with("HTTP/1.1 200 "));
    terminate(&child);
    assert!(wait(&mut child).success());
}

#[test]
fn who_may_lead_needs_a_name() {
    let folder = Folder::new("nameless", r#"{"nodes":[]}"#);
    let output = folder.controller().args(["--kubernetes", "--leader-elect"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--pod-name"), "{}", stderr(&output));
}

#[test]
fn it_waits_for_a_cluster_that_is_away_and_ends_when_told() {
    let folder = Folder::new("away", r#"{"nodes":[]}"#);
    let config = folder.0.join("kubeconfig");
    std::fs::write(&config, AWAY).unwrap();
    let mut command = folder.controller();
    command.args(["--kubernetes", "--status-listen", "127.0.0.1:0"]).env("KUBECONFIG", &config);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let serving = lines.find(|line| line.contains("serving the status")).expect("it serves");
    let address = serving.rsplit("status_address=").next().unwrap().trim().to_owned();
    lines.find(|line| line.contains("the API server is not heard")).expect("it tells");
    assert!(get(&address, "/healthz/ready").starts_with("HTTP/1.1 503 "));
    assert!(get(&address, "/healthz/live").starts_with("HTTP/1.1 200 "));
    terminate(&child);
    assert!(wait(&mut child).success());
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn terminate(child: &Child) {
    let pid = i32::try_from(child.id()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
}
