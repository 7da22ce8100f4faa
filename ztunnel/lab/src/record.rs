//! What a lab leaves on disk for the commands that come later.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::lab::write;
use crate::manifests::Cluster;

const FILE: &str = "lab.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The folder that the lab runs on.
    pub manifests: PathBuf,
    pub cluster: Cluster,
    /// What is wrong in the folder, and what could not be done about a change of it.
    pub mistakes: Vec<String>,
    /// Kinds that nobody reads here, and how many objects there are of each.
    pub unread: BTreeMap<String, usize>,
}

impl Record {
    /// `None` if there is no lab, or it is not made yet.
    pub fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::File { path, source }),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| Error::File { path, source: error.into() })
    }

    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let text = serde_json::to_string(self).expect("invariant: texts and numbers are JSON");
        write(&folder.join(FILE), &text)
    }
}
