//! The command line of the human's command.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ztunnelctl"))
        .args(arguments)
        .output()
        .expect("the program can be started")
}

fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} must be refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn mistakes_are_named() {
    assert!(refused(&["lab", "dance"]).contains("dance"));
    assert!(refused(&["lab", "exec", "web"]).contains("COMMAND"));
    assert!(refused(&["lab", "--name", "no-such-lab", "status"]).contains("\"no-such-lab\" is not up"));
    assert!(refused(&["lab", "up", "--file", "/no/such/file"]).contains("/no/such/file"));
    assert!(refused(&["lab", "--file", "x.yaml"]).contains("lab up -f"));
}

#[test]
fn a_lab_file_with_mistakes_is_refused_with_all_of_them() {
    let path = std::env::temp_dir().join(format!("lab-{}.yaml", std::process::id()));
    std::fs::write(
        &path,
        "nodes: [{name: n}]\npods:\n- {name: a, node: m}\n- {name: b, node: n, colour: 1}\n",
    )
    .expect("a temporary file");
    let text = refused(&["lab", "up", "--file", &path.display().to_string()]);
    std::fs::remove_file(&path).expect("it was just written");
    assert!(text.contains(".yaml:3:") && text.contains("no node \"m\""), "{text}");
    assert!(text.contains(".yaml:4:") && text.contains("colour"), "{text}");
}

#[test]
fn down_is_idempotent() {
    assert!(run(&["lab", "--name", "never-up", "down"]).status.success());
}
