//! The plugin's place on a node, kept by the real agent against another CNI that writes its files all the time.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// An inotify event and two renames, on a machine that does much else; the agent's period is the worst case.
const BOUND: Duration = Duration::from_secs(5);

struct Node {
    root: PathBuf,
    own_list: bool,
    agent: Option<Child>,
}

impl Node {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("cni-install-{}-{name}", std::process::id()));
        for folder in ["bin", "net.d", "run"] {
            std::fs::create_dir_all(root.join(folder)).expect("a temporary folder");
        }
        std::fs::write(root.join("pods.json"), r#"{"pods":[]}"#).expect("written");
        Self { root, own_list: false, agent: None }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ztunnel-redirect"));
        command.env_clear().args(arguments).arg("--cni-bin-dir").arg(self.root.join("bin"));
        command.arg("--cni-conf-dir").arg(self.net_d());
        command.arg("--cni-socket").arg(self.root.join("run/cni.sock"));
        command.arg("--enrolled").arg(self.root.join("run/enrolled.json"));
        command.arg("--cni-own-list").arg(self.own_list.to_string());
        command
    }

    fn start(&mut self) {
        let mut command = self.command(&[]);
        command.arg("--pods").arg(self.root.join("pods.json"));
        command.arg("--socket").arg(self.root.join("run/redirect.sock"));
        self.agent = Some(command.stdout(Stdio::null()).spawn().expect("the agent starts"));
    }

    fn terminate(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(agent.id()).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("it lives");
        assert!(agent.wait().expect("ended").success());
    }

    fn uninstall(&self) -> Output {
        self.command(&["uninstall"]).output().expect("started")
    }

    fn net_d(&self) -> PathBuf {
        self.root.join("net.d")
    }

    fn files(&self) -> BTreeMap<OsString, Vec<u8>> {
        let entries = std::fs::read_dir(self.net_d()).expect("the folder");
        entries
            .filter_map(|entry| {
                let entry = entry.expect("an entry");
                // The agent may move it meanwhile.
                Some((entry.file_name(), std::fs::read(entry.path()).ok()?))
            })
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn conflist(round: u32) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "network",
        "plugins": [{ "type": "ptp", "round": round }, { "type": "portmap" }],
    });
    serde_json::to_string_pretty(&list).expect("JSON")
}

/// The types of the plugins of a file and its round. Panics on what no runtime could read.
fn read(path: &Path) -> (Vec<String>, u64) {
    let text = std::fs::read(path).expect("the file is always there");
    let value: Value = serde_json::from_slice(&text).expect("the file is always valid");
    let plugins = value["plugins"].as_array().expect("a list");
    let types = plugins.iter().map(|plugin| plugin["type"].as_str().expect("a type").to_owned()).collect();
    (types, plugins[0]["round"].as_u64().expect("a round"))
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < BOUND, "{what} takes more than {BOUND:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_configuration_that_is_rewritten_has_the_entry_again() {
    let mut node = Node::new("rewritten");
    let path = node.net_d().join("10-network.conflist");
    let write = |round| {
        let fresh = path.with_extension("tmp");
        std::fs::write(&fresh, conflist(round)).expect("written");
        std::fs::rename(&fresh, &path).expect("renamed");
    };
    write(0);
    node.start();
    let meshed = ["ptp", "portmap", "ztunnel-cni"];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A runtime that reads all the while.
        let reader = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let (types, _) = read(&path);
                assert!(types == meshed || types == meshed[..2], "{types:?}");
            }
        });
        for round in 0..100 {
            write(round);
            wait("the entry's return", || {
                reader.is_finished() || read(&path) == (meshed.map(str::to_owned).into(), round.into())
            });
        }
        over.store(true, Ordering::Relaxed);
        reader.join().expect("every read was valid");
    });
    // In place, as careless writers do, and without a pause.
    for round in 100..200 {
        std::fs::write(&path, conflist(round)).expect("written");
    }
    wait("the entry's return", || {
        serde_json::from_slice::<Value>(&std::fs::read(&path).expect("there")).is_ok()
            && read(&path) == (meshed.map(str::to_owned).into(), 199)
    });

    // The agent's end leaves the node as it is, and nobody uninstalls under a living one.
    let running = node.uninstall();
    assert!(!running.status.success());
    node.terminate();
    assert_eq!(read(&path).0, meshed);
    let done = node.uninstall();
    assert!(done.status.success());
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("10-network.conflist") && said.contains("bin/ztunnel-cni"), "{said}");
    let expected = BTreeMap::from([(OsString::from("10-network.conflist"), conflist(199).into_bytes())]);
    assert_eq!(node.files(), expected);
    assert_eq!(std::fs::read_dir(node.root.join("bin")).expect("there").count(), 0);
}

#[test]
fn an_own_list_keeps_the_node_closed_when_another_cni_writes_its_file_at_boot() {
    let mut node = Node::new("own");
    node.own_list = true;
    let (path, own) = (node.net_d().join("10-network.conflist"), node.net_d().join("00-00-ztunnel.conflist"));
    let write = |round| std::fs::write(&path, conflist(round)).expect("written");
    write(0);
    node.start();
    let meshed: Vec<String> = ["ptp", "portmap", "ztunnel-cni"].map(str::to_owned).into();
    for round in 0..100 {
        write(round);
        wait("the copy", || own.exists() && read(&own) == (meshed.clone(), round.into()));
    }
    node.terminate();
    // The node boots, and the agent is not there yet.
    write(200);
    let first = node.files().into_keys().next().expect("there are files");
    assert_eq!(read(&node.net_d().join(first)).0, meshed, "what the runtime takes calls the plugin");
    assert!(node.uninstall().status.success());
    let expected = BTreeMap::from([(OsString::from("10-network.conflist"), conflist(200).into_bytes())]);
    assert_eq!(node.files(), expected);
}

#[test]
fn a_folder_that_appears_later_is_followed() {
    let mut node = Node::new("later");
    std::fs::remove_dir(node.net_d()).expect("empty");
    node.start();
    wait("the plugin", || node.root.join("bin/ztunnel-cni").exists());
    std::fs::create_dir(node.net_d()).expect("made");
    let single = "{ \"cniVersion\": \"0.3.1\", \"name\": \"n\", \"type\": \"ptp\", \"round\": 7 }";
    std::fs::write(node.net_d().join("20-single.conf"), single).expect("written");
    wait("the list", || node.net_d().join("20-single.conflist").exists());
    wait("the move", || !node.net_d().join("20-single.conf").exists());
    assert_eq!(
        read(&node.net_d().join("20-single.conflist")),
        (vec!["ptp".to_owned(), "ztunnel-cni".to_owned()], 7)
    );
    std::fs::write(node.net_d().join("10-first.conflist"), conflist(8)).expect("written");
    let restored =
        || node.files().get(&OsString::from("20-single.conf")).is_some_and(|text| text == single.as_bytes());
    wait("the move of the entry", || node.files().len() == 2 && restored());
    wait("the entry", || read(&node.net_d().join("10-first.conflist")).0.len() == 3);
    node.terminate();
    assert!(node.uninstall().status.success());
    assert_eq!(node.files()[&OsString::from("10-first.conflist")], conflist(8).as_bytes());
    assert_eq!(node.files().len(), 2);
}
