//! Named network namespaces, as `ip netns` keeps them: a file in /run/netns with the namespace mounted on it.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use redirect::netns::Netns;
use socket2::{Domain, Protocol, Socket, Type};

use crate::traffic::limit;

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

/// Where a program of a load talks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    Named(String),
    /// That of this process, which needs no privilege.
    Own,
}

impl Namespace {
    /// Runs `work` inside, on a thread of its own.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Self::Named(name) => run(name, work).unwrap_or_else(|error| panic!("{error}")),
            Self::Own => {
                std::thread::spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
        }
    }

    /// Connects from inside; no read or write takes longer than the deadline either.
    pub fn connect(&self, addr: SocketAddr, deadline: Duration) -> io::Result<TcpStream> {
        let stream = self.run(move || TcpStream::connect_timeout(&addr, deadline))?;
        limit(&stream, deadline)?;
        Ok(stream)
    }

    /// Listens inside, on both families.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.run(move || {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        })
    }
}
