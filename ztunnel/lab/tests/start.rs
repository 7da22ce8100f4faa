//! How a proxy starts: without privileges, or not at all and with the reason.

use std::fs;
use std::time::Duration;

use ztunnel_lab::node::PROXY_USER;
use ztunnel_lab::{Lab, Mesh, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);
fn mesh() -> Mesh {
    Mesh::new().pod("node1", "default/client")
}

/// The values of one key in the status of a thread (proc_pid_status(5)).
fn field<'a>(status: &'a str, key: &str) -> Vec<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {status}")).split_whitespace().collect()
}

#[test]
fn no_thread_of_the_proxy_has_or_can_gain_a_privilege() {
    let lab = Lab::for_test(&mesh(), &[]);
    let pid = lab.node("node1").proxy().expect("it runs").pid();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let tasks: Vec<_> = tasks.map(|task| task.expect("a thread").path()).collect();
    assert!(tasks.len() > 2, "the control thread and two workers: {tasks:?}");
    let user = PROXY_USER.to_string();
    for task in tasks {
        let status = fs::read_to_string(task.join("status")).expect("the thread's status");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(&status, set), ["0000000000000000"], "{set} of {}", task.display());
        }
        assert_eq!(field(&status, "NoNewPrivs"), ["1"], "{}", task.display());
        for key in ["Uid", "Gid"] {
            assert_eq!(field(&status, key), [user.as_str(); 4], "{key} of {}", task.display());
        }
        assert!(field(&status, "Groups").is_empty(), "{}", task.display());
    }
}

#[test]
fn a_proxy_without_its_configuration_says_which_file_is_missing() {
    let mut lab = Lab::for_test(&mesh(), &[]);
    lab.node_mut("node1").kill_proxy();
    lab.set_environment("XDS_ADDRESS", "");
    lab.set_environment("LOCAL_XDS_PATH", "/no-such-mesh.json");
    lab.start_proxy("node1").expect("it can be started");
    let mut status = None;
    wait_until(DEADLINE, || {
        status = lab.node_mut("node1").proxy_status();
        status.is_some()
    });
    assert_eq!(status.expect("it ends by itself").code(), Some(1));
    let log = lab.node("node1").log();
    let last = log.lines().last().unwrap_or_default();
    let expected = "ztunnel: cannot read the static configuration /no-such-mesh.json: No such file";
    assert!(last.starts_with(expected), "{last}");
}
