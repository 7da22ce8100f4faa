//! Namespaces for tests: made on a thread, gone with the last descriptor.

mod network;

use std::io;
use std::path::{Path, PathBuf};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::exchange::Exchange;
use super::message::{ACK, Message};
use crate::netns::Netns;
pub(crate) use network::{Pair, setting, within};

/// A namespace with loopback up, as every pod has it.
pub(crate) fn fresh_netns() -> Netns {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare, root needed");
        loopback_up();
        Netns::open(Path::new("/proc/thread-self/ns/net")).expect("open own namespace")
    })
    .join()
    .expect("namespace")
}

/// A namespace at a path, as `ip netns add` makes it.
pub(crate) struct Named {
    pub(crate) path: PathBuf,
}

impl Named {
    pub(crate) fn make(path: PathBuf) -> Self {
        std::fs::write(&path, "").expect("mount point");
        let target = path.clone();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare, root needed");
            loopback_up();
            let source = Some("/proc/thread-self/ns/net");
            mount(source, &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind mount");
        })
        .join()
        .expect("namespace");
        Self { path }
    }

    pub(crate) fn open(&self) -> Netns {
        Netns::open(&self.path).expect("open namespace")
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        umount2(&self.path, MntFlags::MNT_DETACH)?;
        std::fs::remove_file(&self.path)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // Fails when the test has removed it already.
        let _ = self.remove();
    }
}

/// In the namespace of the calling thread.
pub(crate) fn loopback_up() {
    let mut header = [0; 16];
    header[4] = 1;
    header[8] = libc::IFF_UP as u8;
    header[12] = libc::IFF_UP as u8;
    let up = Message::new("loopback", libc::RTM_NEWLINK, ACK, &header);
    Exchange::open(NETLINK_ROUTE).expect("netlink").send(&[up]).expect("loopback up");
}
