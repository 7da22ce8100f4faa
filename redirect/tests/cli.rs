//! The command line of the agent.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ztunnel-redirect"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("the program can be started")
}

#[test]
fn the_version_is_printed() {
    let output = run(&["--version"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("ztunnel-redirect "));
}

#[test]
fn unknown_and_missing_arguments_are_refused() {
    let both = ["--pods", "pods.json", "--inpod-uds", "ztunnel.sock"];
    let loops = ["--inpod-uds", "one.sock", "--ztunnel-uds-address", "other.sock"];
    for (arguments, part) in [
        (&["--dance"][..], "--dance"),
        (&[][..], "--pods <FILE>|--inpod-uds <PATH>|--kubernetes"),
        (&both[..], "cannot be used with"),
        (&loops[..], "cannot be used with"),
        (&["--kubernetes"][..], "--node-name <NAME>"),
        (&["--pods", "pods.json", "--audit-period", "0s"][..], "from 1s to 5m"),
        (&["--pods", "pods.json", "--audit-period", "6m"][..], "from 1s to 5m"),
        (&["--pods", "pods.json", "--audit-period", "\u{1f980}"][..], "from 1s to 5m"),
        (&["--pods", "pods.json", "--cni-bin-dir", "bin"][..], "--cni-conf-dir <DIR>"),
        (&["uninstall", "--dance"][..], "--dance"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(part), "{text}");
    }
}
