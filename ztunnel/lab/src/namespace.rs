//! Named network namespaces, as `ip netns` keeps them: a file in /run/netns with the namespace mounted on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use redirect::netns::Netns;

pub const FOLDER: &str = "/run/netns";

#[derive(Debug, thiserror::Error)]
#[error("network namespace {name}: {source}")]
pub struct Error {
    name: String,
    source: io::Error,
}

pub fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Makes a namespace and gives it its name.
pub fn create(name: &str) -> Result<(), Error> {
    let fail = |source| Error { name: name.to_owned(), source };
    fs::create_dir_all(FOLDER).map_err(fail)?;
    let file = path(name);
    fs::OpenOptions::new().write(true).create_new(true).open(&file).map_err(fail)?;
    let target = file.clone();
    let made = std::thread::spawn(move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    });
    let result = made.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")));
    if result.is_err() {
        let _ = fs::remove_file(&file);
    }
    result.map_err(fail)
}

/// Takes the name away; the namespace ends when nothing uses it. No error if it is gone already.
pub fn remove(name: &str) -> Result<(), Error> {
    let fail = |source| Error { name: name.to_owned(), source };
    let file = path(name);
    match umount2(&file, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(fail(error.into())),
    }
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
        _ => Ok(()),
    }
}

/// Runs `work` inside, on a thread of its own.
pub fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    Netns::open(&path(name))
        .and_then(|namespace| namespace.run_blocking(work))
        .map_err(|error| Error { name: name.to_owned(), source: io::Error::other(error.to_string()) })
}
