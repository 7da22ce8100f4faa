//! Which processes are of which pod, by their control groups.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::netns::Ident;

/// One look through all processes.
pub(super) struct Scan {
    /// By pod, the oldest process first.
    candidates: HashMap<String, Vec<Candidate>>,
    /// Paths that do not end with a process.
    stable: HashMap<Ident, PathBuf>,
    pub(super) hosts: HashSet<Ident>,
}

/// A process of a pod.
pub(super) struct Candidate {
    pub(super) ident: Ident,
    path: PathBuf,
    /// Since boot, and its number where that is not known.
    started: (u64, u32),
}

impl Scan {
    pub(super) fn of(proc: &Path, netns: &Path, uids: &HashSet<String>) -> io::Result<Self> {
        let mut candidates: HashMap<String, Vec<Candidate>> = HashMap::new();
        for entry in std::fs::read_dir(proc)? {
            let entry = entry?;
            let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // It may end at any time.
            let Ok(groups) = std::fs::read_to_string(entry.path().join("cgroup")) else { continue };
            let Some(uid) = pod_uids(&groups).find(|uid| uids.contains(uid)) else { continue };
            let path = entry.path().join("ns/net");
            let Ok(ident) = Ident::at(&path) else { continue };
            let started = (started(&entry.path()).unwrap_or(u64::MAX), process);
            candidates.entry(uid).or_default().push(Candidate { ident, path, started });
        }
        candidates.values_mut().for_each(|found| found.sort_by_key(|candidate| candidate.started));
        Ok(Self { candidates, stable: stable(netns), hosts: hosts(proc) })
    }

    pub(super) fn candidates(&self, uid: &str) -> &[Candidate] {
        self.candidates.get(uid).map_or(&[], Vec::as_slice)
    }

    pub(super) fn path(&self, candidate: &Candidate) -> PathBuf {
        self.stable.get(&candidate.ident).unwrap_or(&candidate.path).clone()
    }
}

/// The namespaces that are no pod's: this agent's own, which is on the node's network, and that of the first process.
pub(super) fn hosts(proc: &Path) -> HashSet<Ident> {
    let paths = [PathBuf::from("/proc/self/ns/net"), proc.join("1/ns/net")];
    paths.iter().filter_map(|path| Ident::at(path).ok()).collect()
}

fn stable(folder: &Path) -> HashMap<Ident, PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((Ident::at(&entry.path()).ok()?, entry.path()))).collect()
}

/// Everything in a process' control groups that may be a pod's UID: `pod<uid>` where the kubelet makes folders,
/// `kubepods-…-pod<uid>.slice` with underscores where systemd does, in version 1 once for each controller. Where the reader is in
/// a control group namespace, the beginning of the path is not to be seen.
fn pod_uids(groups: &str) -> impl Iterator<Item = String> {
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.split('/')).filter_map(|part| match part.strip_suffix(".slice") {
        Some(slice) => {
            let (before, uid) = slice.rsplit_once("pod")?;
            (before.is_empty() || before.ends_with('-')).then(|| uid.replace('_', "-"))
        }
        None => part.strip_prefix("pod").map(str::to_owned),
    })
}

fn started(process: &Path) -> Option<u64> {
    let status = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name before may have anything in it.
    let (_, fields) = status.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_control_group_names_the_pod() {
        let uid = "3b9ac6de-0d1c-4b6a-9f52-0c8d3a9b1f70";
        let line = uid.replace('-', "_");
        for group in [
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{line}.slice/cri-containerd-1.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{line}.slice/crio-1.scope"),
            format!("0::/../../kubepods-besteffort-pod{line}.slice/cri-containerd-1.scope"),
            format!("0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{line}.slice/a"),
            format!(
                "12:memory:/kubepods/burstable/pod{uid}/1\n1:name=systemd:/kubepods/burstable/pod{uid}/1\n0::/"
            ),
            format!("0::/kubepods/besteffort/pod{uid}/abc"),
            format!("0::/kubepods/pod{uid}"),
        ] {
            assert!(pod_uids(&group).any(|found| found == uid), "{group}");
        }
        for group in ["", "0::/", "0::/init.scope", "0::/system.slice/podman.service", "no colons"] {
            assert!(!pod_uids(group).any(|found| found == uid), "{group}");
        }
        assert!(!pod_uids(&format!("0::/kubepods/pod{uid}0/a")).any(|found| found == uid));
    }

    #[test]
    fn this_process_has_started() {
        assert!(started(Path::new("/proc/self")).is_some_and(|ticks| ticks > 0));
    }
}
