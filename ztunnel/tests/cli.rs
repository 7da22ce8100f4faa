//! The command line of the proxy.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ztunnel"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("the program can be started")
}

#[test]
fn version_and_help_succeed() {
    let version = run(&["version"], &[]);
    assert!(version.status.success());
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("ztunnel "));
    assert!(run(&["help"], &[]).status.success());
}

#[test]
fn an_unknown_command_shows_the_usage() {
    let output = run(&["dance"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("unknown command \"dance\"") && text.contains("usage:"), "{text}");
}

#[test]
fn a_privileged_process_gives_its_capabilities_up() {
    let mut proxy = Command::new(env!("CARGO_BIN_EXE_ztunnel"))
        .env_clear()
        .envs([
            ("REDIRECT_SOCKET", "/nowhere/redirect.sock"),
            ("XDS_ADDRESS", ""),
            ("CA_ADDRESS", "https://127.0.0.1:1"),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let log = BufReader::new(proxy.stdout.take().expect("invariant: piped"));
    let started = log.lines().map_while(Result::ok).any(|line| line.contains("starting"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.id()));
    proxy.kill().expect("it runs");
    proxy.wait().expect("it ends");
    assert!(started);
    let status = status.expect("it ran");
    for held in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert!(status.contains(&format!("{held}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
}

#[test]
fn all_mistakes_of_the_environment_are_told() {
    let output = run(&["proxy"], &[("SECRET_TTL", "soon"), ("HTTP2_FRAME_SIZE", "big")]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("SECRET_TTL") && text.contains("HTTP2_FRAME_SIZE"), "{text}");
}
