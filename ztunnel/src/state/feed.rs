//! The static feed (interop.md section 4.8): a file that is applied at start and again whenever it changes, or an
//! inline text. A text that cannot be used changes nothing: the state before it stays.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use ztunnel_model::codec::located::Mistake;
use ztunnel_model::codec::static_config::{self, StaticConfig};

use super::{Changes, Writer};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the static configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the static configuration has {} mistake(s):\n{}", .0.len(), lines(.0))]
    Mistakes(Vec<Mistake>),
    #[error("cannot watch {path}: {source}")]
    Watch { path: PathBuf, source: std::io::Error },
}

/// A configuration that was published, and what it changed.
#[derive(Debug)]
pub struct Applied {
    pub config: StaticConfig,
    pub changes: Changes,
}

/// Parses a text and publishes it.
pub fn apply_text(writer: &mut Writer, text: &str, name: &str) -> Result<Applied, Error> {
    let config = static_config::parse(text, name).map_err(Error::Mistakes)?;
    let changes = writer.replace_static(&config);
    Ok(Applied { config, changes })
}

/// A file whose changes are followed.
pub struct Watched {
    path: PathBuf,
    applied: String,
    watch: Inotify,
}

impl Watched {
    /// Reads and applies the file; from here on no change is missed.
    pub fn start(writer: &mut Writer, path: &Path) -> Result<(Self, Applied), Error> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let fail = |source| Error::Watch { path: folder.to_owned(), source };
        let watch = Inotify::init().map_err(fail)?;
        watch
            .watches()
            .add(folder, WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE)
            .map_err(fail)?;
        let applied = read(path)?;
        let first = apply_text(writer, &applied, &path.display().to_string())?;
        Ok((Self { path: path.to_owned(), applied, watch }, first))
    }

    /// Applies every later change, for ever. The writer is shared with whoever else feeds on this thread.
    pub async fn follow(self, writer: Rc<RefCell<Writer>>, applied: impl Fn(Applied)) {
        let Self { path, applied: mut text, watch } = self;
        let mut events = match watch.into_event_stream(vec![0; 4096]) {
            Ok(events) => events,
            Err(error) => return tracing::error!(%error, "cannot follow the static configuration"),
        };
        while let Some(event) = events.next().await {
            match event {
                // A symbolic link that is swapped (as ConfigMap volumes do) changes the file under another name, so
                // any event in the folder leads to a look at the content.
                Ok(_) => reload(&path, &mut text, &mut writer.borrow_mut(), &applied),
                Err(error) => {
                    tracing::warn!(%error, "watching the static configuration failed; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

fn reload(path: &Path, held: &mut String, writer: &mut Writer, applied: &impl Fn(Applied)) {
    let text = match read(path) {
        Ok(text) if text == *held => return,
        Ok(text) => text,
        Err(error) => return tracing::warn!(%error, "static configuration not re-read; the last one stays"),
    };
    match apply_text(writer, &text, &path.display().to_string()) {
        Ok(next) => {
            tracing::info!(
                workloads = next.config.workloads.len(),
                services = next.config.services.len(),
                policies = next.config.policies.len(),
                "static configuration applied"
            );
            applied(next);
        }
        Err(error) => tracing::error!(%error, "static configuration refused; the last one stays"),
    }
    *held = text;
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("  {mistake}")).collect::<Vec<_>>().join("\n")
}
