//! The command line of the proxy.

use std::process::{Command, Output};

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
fn a_privileged_process_refuses_to_run() {
    let output = run(&["proxy"], &[]);
    assert_eq!(output.status.code(), Some(1), "as root this process holds capabilities");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("capabilities") && text.contains("ALLOW_PRIVILEGES"), "{text}");
}

#[test]
fn all_mistakes_of_the_environment_are_told() {
    let output = run(&["proxy"], &[("SECRET_TTL", "soon"), ("HTTP2_FRAME_SIZE", "big")]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("SECRET_TTL") && text.contains("HTTP2_FRAME_SIZE"), "{text}");
}
