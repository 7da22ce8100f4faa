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
    assert!(refused(&["lab", "up", "--folder", "/no/such/folder"]).contains("/no/such/folder"));
    assert!(refused(&["lab", "up", "--folder", "/etc/passwd"]).contains("not a folder"));
    assert!(refused(&["lab", "--folder", "x"]).contains("lab up -f"));
}

#[test]
fn a_folder_with_mistakes_is_refused_with_all_of_them() {
    let folder = std::env::temp_dir().join(format!("lab-mistakes-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: m}\n";
    let policy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {mtls: {mod: STRICT}}\n";
    for (name, text) in
        [("a.yaml", format!("{pod}---\n{policy}")), ("b.yaml", pod.replace("Pod", "Pod\nspce: {}"))]
    {
        std::fs::write(folder.join(name), text).expect("a file");
    }
    let name = format!("never{}", std::process::id());
    let text = refused(&["lab", "--name", &name, "up", "--folder", &folder.display().to_string()]);
    let one = folder.join("a.yaml").display().to_string();
    let alone = refused(&["lab", "--name", &name, "up", "--file", &one]);
    assert!(alone.contains("a.yaml:9:15: document 2: spec.mtls.mod"), "one file is read as well: {alone}");
    std::fs::remove_dir_all(&folder).expect("it was just made");
    for part in [
        "a.yaml:4:18: document 1: spec.nodeName: there is no node \"m\"",
        "a.yaml:9:15: document 2: spec.mtls.mod",
        "b.yaml:3:1: document 1: spce",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(refused(&["lab", "--name", &name, "status"]).contains("is not up"), "nothing is left");
}

#[test]
fn down_is_idempotent() {
    assert!(run(&["lab", "--name", "never-up", "down"]).status.success());
}
