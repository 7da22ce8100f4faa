//! The end of a lab, however far it came.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use redirect::netns::Ident;

use crate::error::Error;
use crate::lab::state_folder;
use crate::process::Process;
use crate::{Lab, namespace};

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);

impl Lab {
    /// Takes down whatever there is of a lab, also what others run inside.
    pub fn down(name: &str) -> Result<bool, Error> {
        let folder = state_folder(name)?;
        let existed = folder.exists();
        let mut records = Vec::new();
        find_records(&folder, &mut records);
        // First who would make pods again. Agents last: they withdraw nothing, but a proxy that drains still asks them for
        // sockets.
        records.sort_by_key(|record| (!record.ends_with("follow.pid"), record.ends_with("agent.pid")));
        for record in records {
            if let Some(process) = Process::recorded(&record) {
                process.stop(GRACE);
            }
        }
        let namespaces = namespaces(name);
        let idents: Vec<Ident> =
            namespaces.iter().filter_map(|name| Ident::at(&namespace::path(name)).ok()).collect();
        // A program that somebody started inside would keep its namespace alive.
        let inside = Process::inside(&idents);
        inside.iter().for_each(|process| process.signal(Signal::SIGTERM));
        inside.into_iter().for_each(|process| process.stop(GRACE));
        namespaces.iter().try_for_each(|name| namespace::remove(name))?;
        match fs::remove_dir_all(&folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { path: folder, source })
            }
            _ => Ok(existed),
        }
    }
}

pub(crate) fn namespaces(lab: &str) -> Vec<String> {
    let prefix = format!("{lab}.");
    let entries = fs::read_dir(namespace::FOLDER).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

fn find_records(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_records(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "pid") {
            found.push(path);
        }
    }
}
