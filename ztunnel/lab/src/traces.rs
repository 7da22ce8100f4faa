//! What there is of a lab on this machine, by looking at the machine and not at what the lab knows of itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::lab::STATE;
use crate::namespace;
use crate::teardown::namespaces;

/// Namespaces, mounts, files and processes of a lab.
pub fn of(name: &str) -> Vec<String> {
    let mut traces: Vec<String> =
        namespaces(name).into_iter().map(|name| format!("network namespace {name}")).collect();
    let mounted = format!("{}/{name}.", namespace::FOLDER);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    traces.extend(mounts.lines().filter(|line| line.contains(&mounted)).map(|line| format!("mount {line}")));
    let folder = Path::new(STATE).join(name);
    if folder.exists() {
        traces.push(folder.display().to_string());
    }
    traces.extend(processes(&format!("{}/", folder.display())));
    traces
}

/// Links beside this process that are named as a lab names its own.
pub fn links() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let names = table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    names.filter(|name| is_lab_link(name)).map(str::to_owned).collect()
}

fn is_lab_link(name: &str) -> bool {
    let near = name.strip_suffix("-far").unwrap_or(name);
    let numbered = ["node", "pod"].iter().filter_map(|kind| near.strip_prefix(kind));
    let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    ["underlay0", "pods0"].contains(&name) || numbered.into_iter().any(number)
}

/// Processes that were told of a file in the lab's folder.
fn processes(folder: &str) -> Vec<String> {
    let own = std::process::id();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let told = |pid: &u32| {
        let holds = |file: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            bytes.windows(folder.len()).any(|window| window == folder.as_bytes())
        };
        holds("cmdline") || holds("environ")
    };
    pids.filter(|pid| *pid != own).filter(told).map(|pid| format!("process {pid}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn links_of_a_lab_are_known_by_name() {
        for name in ["node1", "pod12", "pod12-far", "underlay0", "pods0"] {
            assert!(is_lab_link(name), "{name}");
        }
        for name in ["lo", "eth0", "node", "podman0", "pod1x", "pods1", "docker0"] {
            assert!(!is_lab_link(name), "{name}");
        }
    }

    #[test]
    fn a_process_that_was_told_of_the_folder_is_found() {
        const TOLD: &str = "ZTUNNEL_LAB_TEST_TOLD";
        if std::env::var_os(TOLD).is_some() {
            // This program again; it ends with the one that started it.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            return;
        }
        let folder = format!("{STATE}/traces{}/", std::process::id());
        assert!(processes(&folder).is_empty());
        let mut told = Command::new("/proc/self/exe")
            .args(["--exact", "traces::tests::a_process_that_was_told_of_the_folder_is_found"])
            .env(TOLD, format!("{folder}file"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("this program again");
        let found = processes(&folder);
        assert!(told.wait().expect("it ends with its input").success());
        assert_eq!(found, [format!("process {}", told.id())]);
        assert!(processes(&folder).is_empty());
    }
}
