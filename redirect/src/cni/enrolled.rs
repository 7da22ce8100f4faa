//! The names of the enrolled namespaces, in a file that speaks for the agent while it is away:
//! `{"namespaces": ["shop"]}`. No file means that no agent ever ran here, so nothing is enrolled; a file that cannot be
//! read could name any namespace.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;

/// Tells the plugin, for when the agent is away, which namespaces are enrolled (a file; persistent).
#[derive(Debug)]
pub struct Enrolled {
    path: PathBuf,
    /// None until the file is known to say something.
    published: Option<BTreeSet<String>>,
}

impl Enrolled {
    pub fn at(path: PathBuf) -> Self {
        let published = match read(&path) {
            Ok(Some(names)) => Some(names),
            Ok(None) | Err(_) => None,
        };
        Self { path, published }
    }

    /// Whether a namespace was enrolled when this was last published, by an earlier agent too; one that nobody can tell of is.
    pub fn contains(&self, namespace: &str) -> bool {
        match read(&self.path) {
            Ok(names) => names.is_some_and(|names| names.contains(namespace)),
            Err(_) => true,
        }
    }

    /// What cannot be written is logged, and written with the next call.
    pub fn publish(&mut self, namespaces: &BTreeSet<String>) {
        if self.published.as_ref() == Some(namespaces) {
            return;
        }
        match self.write(namespaces) {
            Ok(()) => self.published = Some(namespaces.clone()),
            Err(error) => {
                self.published = None;
                tracing::error!(path = %self.path.display(), %error, "enrolled namespaces not recorded: while the agent \
                    is away, pods start by what the file said before");
            }
        }
    }

    fn write(&self, namespaces: &BTreeSet<String>) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let document = Document { namespaces: namespaces.clone() };
        durable::write(&self.path, &serde_json::to_vec(&document)?, 0o644)
    }
}

#[derive(Serialize, Deserialize)]
struct Document {
    namespaces: BTreeSet<String>,
}

/// None if there is no file.
pub(super) fn read(path: &Path) -> io::Result<Option<BTreeSet<String>>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice::<Document>(&text)?.namespaces)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_whole_or_refused() {
        let folder = std::env::temp_dir().join(format!("enrolled-{}", std::process::id()));
        let path = folder.join("below").join("enrolled.json");
        assert_eq!(read(&path).expect("no file is no mistake"), None);
        let names: BTreeSet<String> = ["shop".to_owned(), "bank".to_owned()].into();
        Enrolled::at(path.clone()).publish(&names);
        assert_eq!(read(&path).expect("valid"), Some(names.clone()));
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o644);

        let text = std::fs::read(&path).expect("there");
        for garbage in [&b""[..], b"{}", b"[]", b"{\"namespaces\":{}}", &text[..text.len() - 1]] {
            std::fs::write(&path, garbage).expect("written");
            assert!(read(&path).is_err(), "{garbage:?}");
        }
        let mut enrolled = Enrolled::at(path.clone());
        enrolled.publish(&BTreeSet::new());
        assert_eq!(read(&path).expect("valid"), Some(BTreeSet::new()));

        // What could not be written is written with the next call.
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("a folder in its place");
        enrolled.publish(&names);
        assert!(read(&path).is_err());
        std::fs::remove_dir(&path).expect("removed");
        enrolled.publish(&names);
        assert_eq!(read(&path).expect("valid"), Some(names));
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
