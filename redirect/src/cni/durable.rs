//! Files that are whole after a power cut: what was there, or what was to be.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// How the names of unfinished files end; no container runtime takes them for a configuration.
pub(super) const UNFINISHED: &str = ".ztunnel-new";

/// Writes a file, or replaces it.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let fresh = prepare(path, bytes, mode)?;
    fs::rename(&fresh, path)?;
    sync_folder_of(path)
}

/// Replaces a file that still reads `old`, and keeps its owner and mode; false if somebody else has changed it. Whoever
/// writes at the same moment wins.
pub(super) fn replace(path: &Path, old: &[u8], new: &[u8]) -> io::Result<bool> {
    // A link stays one.
    let path = &fs::canonicalize(path)?;
    let was = fs::metadata(path)?;
    let fresh = prepare(path, new, was.mode() & 0o7777)?;
    chown(&fresh, Some(was.uid()), Some(was.gid()))?;
    match renameat_with(CWD, &fresh, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        // A file system that cannot: the moment between the look and the rename remains.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let same = fs::read(path)? == old;
            if same {
                fs::rename(&fresh, path)?;
                sync_folder_of(path)?;
            } else {
                fs::remove_file(&fresh)?;
            }
            return Ok(same);
        }
        Err(error) => {
            // The error that matters is the first.
            let _ = fs::remove_file(&fresh);
            return Err(error.into());
        }
    }
    // What was replaced may be newer than what was read, and its writer may still be at it.
    let same = fs::read(&fresh)? == old;
    if same {
        fs::remove_file(&fresh)?
    } else {
        fs::rename(&fresh, path)?
    }
    sync_folder_of(path)?;
    Ok(same)
}

pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn prepare(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(UNFINISHED);
    let fresh = path.with_file_name(name);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_meanwhile_stays() {
        let path = std::env::temp_dir().join(format!("durable-{}.conflist", std::process::id()));
        write(&path, b"one", 0o640).expect("written");
        assert!(replace(&path, b"one", b"two").expect("replaced"));
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o640);
        assert!(!replace(&path, b"one", b"three").expect("looked at"));
        assert_eq!(fs::read(&path).expect("there"), b"two");
        let unfinished = format!(".durable-{}.conflist{UNFINISHED}", std::process::id());
        assert!(!path.with_file_name(unfinished).exists());
        fs::remove_file(&path).expect("removed");
        assert!(replace(&path, b"two", b"three").is_err());
    }
}
