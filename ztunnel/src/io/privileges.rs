//! What the process may do. It parses bytes from anybody, so it holds no capability and can never gain one.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "this process holds capabilities ({set}={held}) and cannot give them up; run it as a user without any, or \
         set ALLOW_PRIVILEGES=true to accept the risk"
    )]
    Capabilities { set: &'static str, held: String },
    #[error("cannot set no_new_privs: {0}")]
    NoNewPrivileges(nix::Error),
    #[error("cannot give up capabilities: {0}")]
    GiveUp(io::Error),
    #[error("no_new_privs is not in force although it was set")]
    NotInForce,
    #[error("cannot read /proc/self/status, which tells the capabilities: {0}")]
    Status(io::Error),
}

/// What is in force, and what could be brought into force at any time.
const HELD: [&str; 4] = ["CapEff", "CapPrm", "CapInh", "CapAmb"];

/// Whether it could enter pods' namespaces and listen there.
pub fn may_capture() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
    capabilities(None).is_ok_and(|held| held.effective.contains(needed))
}

/// Gives up what it may do, and new privileges for ever, and checks that there are none.
pub fn drop_all() -> Result<(), Error> {
    nix::sys::prctl::set_no_new_privs().map_err(Error::NoNewPrivileges)?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).map_err(|error| Error::GiveUp(error.into()))?;
    let status = std::fs::read_to_string("/proc/self/status").map_err(Error::Status)?;
    for set in HELD {
        let held = field(&status, set).unwrap_or("unknown");
        if !held.trim_start_matches('0').is_empty() {
            return Err(Error::Capabilities { set, held: held.to_owned() });
        }
    }
    if field(&status, "NoNewPrivs") != Some("1") {
        return Err(Error::NotInForce);
    }
    Ok(())
}

/// Each connection takes two descriptors, so the soft limit is of no use.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Of `/proc/PID/status` (proc(5)).
pub(super) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
