//! What stands in a folder and those below it, by the controller's rules: names that start with a dot are passed over,
//! links are followed, each folder is entered once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub files: BTreeMap<PathBuf, String>,
    /// Files and folders that are there and cannot be read.
    pub unreadable: Vec<PathBuf>,
    pub folders: Vec<PathBuf>,
}

pub(super) fn walk(root: &Path) -> Contents {
    let mut contents = Contents::default();
    let (mut folders, mut entered) = (vec![root.to_owned()], BTreeSet::new());
    while let Some(folder) = folders.pop() {
        let entries = fs::canonicalize(&folder).and_then(|path| {
            if !entered.insert(path) {
                return Ok(Vec::new());
            }
            let entries = list(&folder)?;
            contents.folders.push(folder.clone());
            Ok(entries)
        });
        match entries {
            Ok(entries) => entries.into_iter().for_each(|path| take(path, &mut folders, &mut contents)),
            Err(_) => contents.unreadable.push(folder),
        }
    }
    contents.unreadable.sort();
    contents.folders.sort();
    contents
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn take(path: PathBuf, folders: &mut Vec<PathBuf>, contents: &mut Contents) {
    if path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b".")) {
        return;
    }
    if path.is_dir() {
        return folders.push(path);
    }
    if path.extension().is_none_or(|one| one != "yaml" && one != "yml" && one != "json") {
        return;
    }
    match fs::read_to_string(&path) {
        Ok(text) => drop(contents.files.insert(path, text)),
        // Gone between the listing and the reading.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
        Err(_) => contents.unreadable.push(path),
    }
}
