//! Which namespaces may hold rules of ours, kept in a file beside the socket, so that an agent that starts again can
//! withdraw those that left the source meanwhile. Written before rules are installed, and after they were withdrawn.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::netns::Ident;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) uid: String,
    pub(super) netns: PathBuf,
    pub(super) ident: Ident,
}

pub(super) struct Record {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl Record {
    /// Reads what an earlier agent left.
    pub(super) fn beside(socket: &Path) -> Self {
        let path = socket.with_extension("captured.json");
        let entries = match std::fs::read_to_string(&path) {
            Err(_) => Vec::new(),
            Ok(text) => serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "record of captured pods not readable, ignored");
                Vec::new()
            }),
        };
        Self { path, entries }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Takes the place of what was known of the same pod at the same path: that namespace is no more.
    pub(super) fn add(&mut self, entry: Entry) {
        if !self.entries.contains(&entry) {
            self.entries.retain(|known| known.uid != entry.uid || known.netns != entry.netns);
            self.entries.push(entry);
            self.write();
        }
    }

    pub(super) fn remove(&mut self, entry: &Entry) {
        let before = self.entries.len();
        self.entries.retain(|known| known != entry);
        if self.entries.len() != before {
            self.write();
        }
    }

    /// A record that cannot be written is no reason to leave a pod open.
    fn write(&self) {
        let fresh = self.path.with_extension("new");
        let written = serde_json::to_vec(&self.entries)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&fresh, text))
            .and_then(|()| std::fs::rename(&fresh, &self.path));
        if let Err(error) = written {
            tracing::error!(path = %self.path.display(), %error, "captured pods not recorded");
        }
    }
}
