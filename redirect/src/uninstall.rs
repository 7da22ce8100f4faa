//! Takes everything out of a node that agents left there. The agent must have ended.
//!
//! Rules are looked for in every namespace that a process of the node lives in or that the container runtime named, not only in
//! those that an agent recorded: what a record does not tell, a rule would go on closing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::cni::install;
use crate::netns::{Ident, Netns};
use crate::rules;

/// Where to look.
#[derive(Debug, Clone)]
pub struct Config {
    /// Of the agent, for its files beside it.
    pub socket: PathBuf,
    pub proc: PathBuf,
    pub netns: PathBuf,
    pub cni: Option<install::Config>,
    /// Removed in the end, if nothing is in them.
    pub folders: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Cni(#[from] install::Error),
    #[error("{} of the node cannot be cleaned up: {}", .0.len(), .0.join("; "))]
    Left(Vec<String>),
}

/// Returns what was removed or restored. What fails does not hinder the rest, and can be tried again.
///
/// The calling thread must be in the node's own namespace.
pub fn uninstall(config: &Config) -> Result<Vec<String>, Error> {
    // First, so that no new pod waits for an agent that is gone.
    let (mut removed, mut left) = (Vec::new(), Vec::new());
    match config.cni.as_ref().map(install::uninstall) {
        Some(Ok(done)) => removed = done,
        Some(Err(error @ install::Error::Running { .. })) => return Err(error.into()),
        Some(Err(error)) => left.push(error.to_string()),
        None => {}
    }
    for (ident, paths) in namespaces(config) {
        match withdraw(&paths) {
            Ok(Some(path)) => removed.push(format!("rules in network namespace {}", path.display())),
            Ok(None) => {}
            Err(reason) => left.push(format!("network namespace {}: {reason}", ident.inode)),
        }
    }
    if let Err(error) = rules::host::withdraw() {
        left.push(format!("the node's own table: {error}"));
    }
    for extension in ["sock", "lock", "captured.json"] {
        let path = config.socket.with_extension(extension);
        match std::fs::remove_file(&path) {
            Ok(()) => removed.push(format!("removed {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => left.push(format!("{}: {error}", path.display())),
        }
    }
    for folder in &config.folders {
        match std::fs::remove_dir(folder) {
            Ok(()) => removed.push(format!("removed {}", folder.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                removed.push(format!("{} stays: there are files of others in it", folder.display()));
            }
            Err(error) => left.push(format!("{}: {error}", folder.display())),
        }
    }
    if left.is_empty() { Ok(removed) } else { Err(Error::Left(left)) }
}

/// By the first of the paths that still leads there: a process may have ended since it was seen. Says by which, if there was
/// something to remove.
fn withdraw(paths: &[PathBuf]) -> Result<Option<&Path>, String> {
    let work = || -> Result<bool, rules::Error> {
        let before = rules::dump()?;
        rules::withdraw()?;
        Ok(rules::dump()? != before)
    };
    for path in paths {
        match Netns::open(path) {
            Ok(netns) => {
                let worked =
                    netns.run_blocking(work).map_err(|error| format!("{}: {error}", path.display()))?;
                let differs = worked.map_err(|error| format!("{}: {error}", path.display()))?;
                return Ok(differs.then_some(path));
            }
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(None)
}

/// Every path to each, those that have a name first.
fn namespaces(config: &Config) -> BTreeMap<Ident, Vec<PathBuf>> {
    let entries = |folder: &Path| {
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
    };
    let named = entries(&config.netns);
    let lived_in = entries(&config.proc).filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u32>().is_ok())
    });
    let paths = named.chain(lived_in.map(|path| path.join("ns/net")));
    let mut found = BTreeMap::<_, Vec<PathBuf>>::new();
    for path in paths {
        if let Ok(ident) = Ident::at(&path) {
            found.entry(ident).or_default().push(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::fixture::Named;
    use crate::rules::{Closed, Installed, Ports, Uncaptured};
    use crate::sockets::Listeners;

    #[test]
    fn a_process_that_ends_meanwhile_hides_no_namespace() {
        let folder = std::env::temp_dir().join(format!("uninstall-ended-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let namespace = Named::make(folder.join("pod"));
        let _rules: Closed = namespace
            .open()
            .run_blocking(|| Closed::install(Uncaptured::Dropped).expect("rules"))
            .expect("work inside");
        let paths = [folder.join("ended"), folder.join("pod")];
        assert_eq!(withdraw(&paths), Ok(Some(paths[1].as_path())));
        assert_eq!(withdraw(&paths), Ok(None));
        namespace.remove().expect("unmounted");
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn rules_that_nobody_recorded_are_found_and_removed() {
        let folder = std::env::temp_dir().join(format!("uninstall-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("netns")).expect("a temporary folder");
        std::fs::create_dir_all(folder.join("proc")).expect("a temporary folder");
        let namespace = Named::make(folder.join("netns/pod"));
        let dump = || namespace.open().run_blocking(|| rules::dump().expect("a dump")).expect("work inside");
        let before = dump();
        let ident = namespace.open().ident();
        let install = move || {
            let ports = Ports::prove(Listeners::bind().expect("listeners"), ident).expect("live");
            drop(Installed::install(ports, Uncaptured::Dropped).expect("rules"));
            Closed::install(Uncaptured::Dropped).expect("rules again")
        };
        let _rules: Closed = namespace.open().run_blocking(install).expect("work inside");
        assert_ne!(dump(), before);
        std::fs::write(folder.join("a.captured.json"), "[]").expect("written");
        let config = Config {
            socket: folder.join("a.sock"),
            proc: folder.join("proc"),
            netns: folder.join("netns"),
            cni: None,
            folders: vec![folder.join("empty"), folder.join("proc"), folder.join("netns")],
        };
        std::fs::create_dir(folder.join("empty")).expect("a folder");
        std::fs::write(folder.join("proc/another's"), "").expect("written");
        let removed = uninstall(&config).expect("it is all removed");
        assert_eq!(removed.len(), 5, "{removed:?}");
        assert!(!folder.join("empty").exists() && folder.join("proc/another's").exists());
        assert_eq!(dump(), before);
        let stays = uninstall(&config).expect("again");
        assert!(stays.iter().all(|one| one.contains("stays")), "{stays:?}");
        namespace.remove().expect("unmounted");
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
