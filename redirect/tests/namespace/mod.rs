//! Network namespaces as pods have them, and agents beside them.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Makes one that lies at a path.
pub fn make(path: &Path) {
    std::fs::write(path, "").expect("a mount point");
    let path = path.to_owned();
    let made = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        loopback_up();
        let own = Some("/proc/thread-self/ns/net");
        mount(own, &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("mounted");
    });
    made.join().expect("a namespace");
}

/// Starts the agent of a folder, for the pods of its `pods.json`, in a namespace of its own: it has rules for that too.
pub fn agent(folder: &Path, arguments: &'static [&'static str]) -> Child {
    let (pods, socket) = (folder.join("pods.json"), folder.join("redirect.sock"));
    let start = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        Command::new(env!("CARGO_BIN_EXE_ztunnel-redirect"))
            .arg("--pods")
            .arg(pods)
            .arg("--socket")
            .arg(socket)
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("the agent starts")
    };
    std::thread::spawn(start).join().expect("started")
}

/// As every pod has it.
fn loopback_up() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
        tokio::spawn(connection);
        let up = rtnetlink::LinkUnspec::new_with_index(1).up().build();
        handle.link().change(up).execute().await.expect("up");
    });
}
