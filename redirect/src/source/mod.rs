//! Where the agent learns which pods to capture. A source yields the whole set each time something changed.
//!
//! Knows names, addresses and namespace files; must not know rules or sockets.

pub mod file;

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// A pod that must be captured.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    /// The file of its network namespace.
    pub netns: PathBuf,
    pub addresses: Vec<IpAddr>,
}
