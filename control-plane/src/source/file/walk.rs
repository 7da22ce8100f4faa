//! What stands in a folder and those below it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// No manifest is so long; the API server takes 3 MiB.
const LONGEST: u64 = 16 << 20;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub files: BTreeMap<PathBuf, String>,
    /// Files and folders that are there and cannot be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Reads all manifests; `enter` is called with each folder before it is listed. Links are followed, each folder once.
pub fn walk(root: &Path, mut enter: impl FnMut(&Path)) -> Contents {
    let mut contents = Contents::default();
    let (mut folders, mut seen) = (vec![root.to_owned()], HashSet::new());
    while let Some(folder) = folders.pop() {
        let lost = |error: io::Error| (folder.clone(), format!("cannot be read: {error}"));
        match fs::canonicalize(&folder) {
            Ok(path) => {
                if !seen.insert(path) {
                    continue;
                }
            }
            Err(error) => {
                contents.unreadable.push(lost(error));
                continue;
            }
        }
        enter(&folder);
        match list(&folder) {
            Ok(entries) => entries.into_iter().for_each(|path| take(path, &mut folders, &mut contents)),
            Err(error) => contents.unreadable.push(lost(error)),
        }
    }
    contents
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn take(path: PathBuf, folders: &mut Vec<PathBuf>, contents: &mut Contents) {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    if hidden {
        return;
    }
    let manifest = path.extension().is_some_and(|one| one == "yaml" || one == "yml" || one == "json");
    let outcome = fs::metadata(&path).and_then(|metadata| match () {
        () if metadata.is_dir() => {
            folders.push(path.clone());
            Ok(None)
        }
        () if manifest && metadata.is_file() => read(&path).map(Some),
        () => Ok(None),
    });
    match outcome {
        Ok(Some(text)) => drop(contents.files.insert(path, text)),
        Ok(None) => {}
        // Gone between the listing and the reading.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
        Err(error) if manifest => contents.unreadable.push((path, format!("cannot be read: {error}"))),
        Err(_) => {}
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other(format!("longer than {LONGEST} bytes; split it")));
    }
    Ok(text)
}
