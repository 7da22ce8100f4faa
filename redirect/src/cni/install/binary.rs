//! The plugin's file in the CNI bin folder.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Error;
use crate::cni::durable;

pub(super) struct Binary {
    source: PathBuf,
    target: PathBuf,
    /// Of both files when they were last known to be equal; reading them each second would cost too much.
    equal: Option<[Stamp; 2]>,
}

/// What changes with a file's bytes.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    mode: u32,
    modified: Option<SystemTime>,
}

impl Binary {
    pub(super) fn new(source: PathBuf, target: PathBuf) -> Self {
        Self { source, target, equal: None }
    }

    /// Copies it unless it is there.
    pub(super) fn put(&mut self) -> Result<(), Error> {
        let source = fs::metadata(&self.source).map_err(fail(&self.source))?;
        let target = match fs::metadata(&self.target) {
            Ok(target) => Some(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fail(&self.target)(error)),
        };
        if let (Some(target), Some(equal)) = (&target, &self.equal)
            && [stamp(&source), stamp(target)] == *equal
        {
            return Ok(());
        }
        let bytes = fs::read(&self.source).map_err(fail(&self.source))?;
        let same = target.is_some_and(|target| target.mode() & 0o777 == 0o755)
            && fs::read(&self.target).is_ok_and(|found| found == bytes);
        if !same {
            durable::write(&self.target, &bytes, 0o755).map_err(fail(&self.target))?;
            tracing::info!(path = %self.target.display(), "CNI plugin installed");
        }
        let target = fs::metadata(&self.target).map_err(fail(&self.target))?;
        self.equal = Some([stamp(&source), stamp(&target)]);
        Ok(())
    }
}

fn stamp(found: &Metadata) -> Stamp {
    Stamp { inode: found.ino(), length: found.len(), mode: found.mode(), modified: found.modified().ok() }
}

fn fail(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}
