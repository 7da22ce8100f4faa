//! Which pods are captured, kept in a file beside the socket, so that an agent that starts again can withdraw those
//! that left the source meanwhile.

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
}

impl Record {
    pub(super) fn beside(socket: &Path) -> Self {
        Self { path: socket.with_extension("captured.json") }
    }

    pub(super) fn read(&self) -> Vec<Entry> {
        let Ok(text) = std::fs::read_to_string(&self.path) else { return Vec::new() };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            tracing::error!(path = %self.path.display(), %error, "record of captured pods not readable, ignored");
            Vec::new()
        })
    }

    pub(super) fn write(&self, entries: &[Entry]) {
        let fresh = self.path.with_extension("new");
        let written = serde_json::to_vec(entries)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&fresh, text))
            .and_then(|()| std::fs::rename(&fresh, &self.path));
        if let Err(error) = written {
            tracing::error!(path = %self.path.display(), %error, "captured pods not recorded");
        }
    }
}
