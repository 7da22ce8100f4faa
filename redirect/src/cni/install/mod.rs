//! Keeps the plugin where the container runtime finds it: its binary in the CNI bin folder, its entry at the end of the
//! plugins of the one configuration that the runtime takes.
//!
//! ```text
//! each change in the folder, and each second:
//!   binary differs ─▶ copied
//!   own list:     differs from the first other file with the entry ─▶ written;  another file has the entry ─▶ taken out
//!   no own list:  first file lacks the entry ─▶ added;  another file has it ─▶ taken out
//! ```
//!
//! The own list is a copy that comes before all other files. Another CNI that writes its file anew when the node boots, as
//! most do, would otherwise open the node until the agent is there again; the copy stays, and the plugin is called. Where
//! Multus comes first, which makes its configuration of whatever file it finds, the entry goes into the file of the other.
//!
//! Nothing of it ends with the agent: an upgrade must not open the node. Only [`uninstall`] takes it out. Every step leaves
//! files that a runtime can read, and what was not finished is finished by the next look.
//!
//! A runtime takes the first file in lexical order, and so does this, valid or not: containerd then has no network rather
//! than the next one. (CRI-O passes an invalid file over, and its pods run outside the mesh until the file is put right; the
//! agent's log says so.) A `.conf` cannot hold two plugins. It becomes a list and is kept aside, because it would come
//! before the list.

mod binary;
mod conflist;
mod folder;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::sync::watch;

use binary::Binary;
pub use conflist::Invalid;
use conflist::{Entry, PLUGIN};

/// Where the plugin goes, and what it is told. Paths are those of the node: what the plugin is told must hold there.
#[derive(Debug, Clone)]
pub struct Config {
    pub bin_dir: PathBuf,
    pub conf_dir: PathBuf,
    /// The plugin that is installed.
    pub plugin: PathBuf,
    pub socket: PathBuf,
    pub enrolled: PathBuf,
    pub exempt: Vec<String>,
    /// A list of its own that comes first, rather than an entry in the file of another.
    pub own_list: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "CNI configuration {path}: {source}; no pod joins the mesh by it until the file is valid, it is looked at again"
    )]
    Invalid { path: PathBuf, source: Invalid },
    #[error(
        "CNI configuration {path} belongs to another plugin, and {single} cannot become a list; rename one"
    )]
    Occupied { path: PathBuf, single: PathBuf },
    #[error(
        "{path} has no CNI configuration yet; name the folder that the container runtime reads, if it is another"
    )]
    NoConfiguration { path: PathBuf },
    #[error("an agent serves {socket} and would install the plugin again; end it first")]
    Running { socket: PathBuf },
}

/// Looked at besides the notifications, so that a lost one costs a moment.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two looks, so that a quarrel with another writer keeps nobody busy.
const PAUSE: Duration = Duration::from_millis(20);

/// Installs the plugin and keeps it installed, for ever. Says whether it is.
pub async fn follow(config: Config, installed: watch::Sender<bool>) {
    let folder = config.conf_dir.clone();
    let mut installer = Installer::new(config);
    let mut events = None;
    loop {
        // Before the look, so that no change falls between the two.
        events = events.or_else(|| watch(&folder));
        let looked = tokio::task::spawn_blocking(move || {
            installer.look();
            installer
        });
        installer = match looked.await {
            Ok(installer) => installer,
            Err(error) => return tracing::error!(%error, "the CNI plugin is no longer kept installed"),
        };
        installed.send_replace(installer.complaint.is_none());
        tokio::time::sleep(PAUSE).await;
        match &mut events {
            // Whatever happened in the folder leads to a look at all of it.
            Some(events) => drop(tokio::time::timeout(PERIOD, events.next()).await),
            None => tokio::time::sleep(PERIOD).await,
        }
    }
}

/// None where the folder does not exist yet.
fn watch(folder: &Path) -> Option<EventStream<Vec<u8>>> {
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO;
    let started = Inotify::init().and_then(|events| {
        events.watches().add(folder, mask)?;
        events.into_event_stream(vec![0; 4096])
    });
    started.ok()
}

struct Installer {
    config: Config,
    entry: Entry,
    binary: Binary,
    /// What was last complained of; it is not said again.
    complaint: Option<String>,
}

impl Installer {
    fn new(config: Config) -> Self {
        let entry = Entry {
            r#type: PLUGIN.to_owned(),
            socket: config.socket.to_string_lossy().into_owned(),
            enrolled: config.enrolled.to_string_lossy().into_owned(),
            exempt: config.exempt.clone(),
            converted_from: None,
        };
        let binary = Binary::new(config.plugin.clone(), config.bin_dir.join(PLUGIN));
        Self { config, entry, binary, complaint: None }
    }

    /// Puts everything in its place.
    fn look(&mut self) {
        let complaint = self.put().err().map(|error| error.to_string());
        if complaint != self.complaint
            && let Some(error) = &complaint
        {
            tracing::error!(error, "the CNI plugin is not installed");
        }
        self.complaint = complaint;
    }

    fn put(&mut self) -> Result<(), Error> {
        // First: a runtime that meets the entry without the binary can start no pod.
        self.binary.put()?;
        let folder = &self.config.conf_dir;
        let Some(first) = folder::others(folder)?.into_iter().next() else {
            // A copy of what is no more would have the node take pods that get no network.
            folder::remove_own(folder)?;
            return Err(Error::NoConfiguration { path: folder.clone() });
        };
        let own = self.config.own_list && folder::copy(folder, &first, &self.entry)?;
        if !own {
            folder::add(folder, &first, &self.entry)?;
            folder::remove_own(folder)?;
        }
        // Only now: the first file has the entry, so no pod can start without it. It may have got another name.
        for name in folder::others(folder)?.iter().skip(usize::from(!own)) {
            if let Some(done) = folder::take_out(folder, name)? {
                tracing::info!(done, "the container runtime takes another CNI configuration now");
            }
        }
        Ok(())
    }
}

/// Takes everything out again and returns what was removed or restored. The agent must have ended. Can be called again
/// after a failure.
pub fn uninstall(config: &Config) -> Result<Vec<String>, Error> {
    let lock = config.socket.with_extension("lock");
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    if let Ok(lock) = File::open(&lock)
        && lock.try_lock().is_err()
    {
        return Err(Error::Running { socket: config.socket.clone() });
    }
    let mut removed = folder::restore(&config.conf_dir)?;
    for path in [
        // After the entries: what a runtime still calls must be there.
        config.bin_dir.join(PLUGIN),
        config.enrolled.clone(),
        config.socket.clone(),
        lock,
    ] {
        match std::fs::remove_file(&path) {
            Ok(()) => removed.push(format!("removed {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(&path)(error)),
        }
    }
    removed.extend(folder::remove_unfinished(&config.conf_dir)?);
    removed.extend(folder::remove_unfinished(&config.bin_dir)?);
    Ok(removed)
}
